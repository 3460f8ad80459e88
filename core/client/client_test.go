package client

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"libmatrixrtc/core/session"

	"maunium.net/go/mautrix/id"
)

func TestTwoClientsSeeEachOtherComeAndGo(t *testing.T) {
	f := newFake(t)
	join := func(user string) (*driver, *Session) {
		d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: Secret(user)}).start()
		d.waitSync("syncing")
		s, err := d.OpenSession(room, session.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Join(session.JoinParams{FociPreferred: []json.RawMessage{}}); err != nil {
			t.Fatal(err)
		}
		return d, s
	}
	a, _ := join("a")
	a.waitCount(1)
	b, leaving := join("b")
	b.waitCount(2)
	a.waitCount(2)
	if sent, err := leaving.LeaveWait(patience); !sent || err != nil {
		t.Fatalf("leave: sent %v, %v", sent, err)
	}
	if left := a.waitCount(1).Left; len(left) != 1 || left[0].Membership.UserID != "@b:x" {
		t.Fatalf("left: %+v", left)
	}
	if err := b.StopWait(patience); err != nil {
		t.Fatal(err)
	}
	if err := leaving.Join(session.JoinParams{FociPreferred: []json.RawMessage{}}); AsError(err) == nil || AsError(err).Status != ErrInvalidState {
		t.Fatalf("join after stop: %v", err)
	}
	// A stop leaves what is joined.
	if err := a.StopWait(patience); err != nil {
		t.Fatal(err)
	}
	a.wait("left", func(e Event) bool { l, ok := e.Data.(session.Left); return ok && l.Sent })
}

// A leave is waited for by itself: that an earlier one has reached the server says nothing of it.
func TestLeaveAfterALeave(t *testing.T) {
	f := newFake(t)
	var down atomic.Bool
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		if down.Load() {
			answer(w, 502, map[string]any{})
		}
		return down.Load()
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	connected := func(e Event) bool {
		c, ok := e.Data.(session.StatusChanged)
		return ok && c.Status == session.Connected
	}
	params := session.JoinParams{FociPreferred: []json.RawMessage{}}
	if err := s.Join(params); err != nil {
		t.Fatal(err)
	}
	d.wait("connected", connected)
	if err := s.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(params); err != nil { // before the first leave has ended
		t.Fatal(err)
	}
	d.wait("connected again", connected)
	down.Store(true)
	if sent, err := s.LeaveWait(time.Millisecond); sent || err != nil {
		t.Errorf("sent %v, %v, and the homeserver is down", sent, err)
	}
	down.Store(false)
	if sent, err := s.LeaveWait(-1); !sent || err != nil {
		t.Errorf("sent %v, %v, and the homeserver is there", sent, err)
	}
}

// Whatever is called, nothing is asked before the start; what was called for is asked then.
func TestNothingBeforeTheStart(t *testing.T) {
	for _, user := range []id.UserID{"", "@a:x"} {
		f := newFake(t) // what one client asks may arrive after its end
		var first atomic.Value
		f.override = func(w http.ResponseWriter, r *http.Request) bool {
			first.CompareAndSwap(nil, r.URL.Path)
			if !strings.HasSuffix(r.URL.Path, "/rtc/transports") {
				return false
			}
			answer(w, 200, map[string]any{"rtc_transports": []any{map[string]string{"type": "livekit", "livekit_service_url": "https://lk.x"}}})
			return true
		}
		d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a", UserID: user})
		if _, known, err := d.Transports(); known || err != nil {
			t.Fatal(known, err)
		}
		s, err := d.OpenSession(room, session.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Join(session.JoinParams{}); err != nil {
			t.Fatal(err)
		}
		d.start()
		d.wait("transports_changed", func(e Event) bool { return e.Name == session.EventTransportsChanged })
		if path := first.Load().(string); !strings.HasSuffix(path, "/whoami") {
			t.Errorf("user %q: the first request is %s", user, path)
		}
	}
}

// A homeserver that has forgotten where our sync stood is asked for everything, and what it no longer
// names is over.
func TestSyncFromTheBeginning(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var forgotten, gone atomic.Bool
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/sync") {
			return false
		}
		since := r.URL.Query().Get("since")
		switch {
		case forgotten.Load() && since != "":
			answer(w, 400, map[string]string{"errcode": "M_INVALID_PARAM", "error": "unknown since"})
			return true
		case gone.Load():
			answer(w, 200, map[string]string{"next_batch": "elsewhere"})
			return true
		}
		forgotten.Store(false)
		return false
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	d.join()
	d.waitCount(1)
	forgotten.Store(true)
	f.CloseClientConnections() // the long poll that is out knows nothing of this
	f.put("@b:x", "org.matrix.msc3401.call.member", "_@b:x_D_m.call",
		`{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"},"foci_preferred":[]}`)
	d.waitCount(2)
	gone.Store(true)
	forgotten.Store(true)
	f.CloseClientConnections()
	left := d.wait("left", func(e Event) bool { _, ok := e.Data.(session.Left); return ok }).Data.(session.Left)
	if left.Reason != "room_left" {
		t.Errorf("%+v", left)
	}
}

// A client that vanishes is removed by its delayed leave.
func TestVanishedClientIsRemovedByItsDelayedLeave(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "b"}).start()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watcher := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	if _, err := watcher.OpenSession(room, session.OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	p := session.JoinParams{FociPreferred: []json.RawMessage{}}
	if err := json.Unmarshal([]byte(`{"delayed_leave_delay_ms": 2000, "delayed_leave_restart_ms": 1000}`), &p); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(p); err != nil {
		t.Fatal(err)
	}
	watcher.waitCount(1)
	d.Close()
	watcher.waitCount(0)
}

func TestDeadTokenStopsUntilThereIsAnother(t *testing.T) {
	f := newFake(t)
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer a" {
			return false
		}
		answer(w, 401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "no", "soft_logout": true})
		return true
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "dead", UserID: "@a:x", DeviceID: "DEV"}).start()
	e := d.waitSync("error")
	if e == nil || e.Status != ErrHomeserver || e.Errcode != "M_UNKNOWN_TOKEN" || !e.SoftLogout {
		t.Fatalf("error: %+v", e)
	}
	if n := f.count("whoami"); n != 1 {
		t.Fatalf("%d attempts", n)
	}
	if err := d.SetAccessToken("a", ""); err != nil {
		t.Fatal(err)
	}
	d.waitSync("syncing")
}

func TestTokenOfSomebodyElseIsRefused(t *testing.T) {
	f := newFake(t)
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "b", UserID: "@a:x"}).start()
	if e := d.waitSync("error"); e == nil || e.Path != "/user_id" {
		t.Fatalf("error: %+v", e)
	}
}

func TestWrongPassword(t *testing.T) {
	f := newFake(t)
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		answer(w, 403, map[string]string{"errcode": "M_FORBIDDEN", "error": "Invalid password"})
		return true
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, UserID: "@a:x", Password: "wrong"}).start()
	if e := d.waitSync("error"); e == nil || e.Status != ErrHomeserver || e.Errcode != "M_FORBIDDEN" {
		t.Fatalf("error: %+v", e)
	}
	if n := f.count("login"); n != 1 {
		t.Fatalf("%d attempts", n)
	}
}

// Whoever joins and then waits for events of the session hears why none come.
func TestJoinThatCannotBeginIsTold(t *testing.T) {
	trouble := func(d *driver, roomID string) session.MembershipManagerError {
		s, err := d.OpenSession(roomID, session.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Join(session.JoinParams{FociPreferred: []json.RawMessage{}}); err != nil {
			t.Fatal(err)
		}
		d.start()
		e := d.wait("membership_manager_error", func(e Event) bool { return e.Name == "membership_manager_error" })
		return e.Data.(session.MembershipManagerError)
	}
	refused := newFake(t)
	refused.override = func(w http.ResponseWriter, r *http.Request) bool {
		answer(w, 403, map[string]string{"errcode": "M_FORBIDDEN", "error": "Invalid password"})
		return true
	}
	d := newDriver(t, Config{HomeserverURL: refused.URL, UserID: "@a:x", Password: "wrong"})
	if told := trouble(d, room); told.Recoverable || told.Errcode != "M_FORBIDDEN" || told.Message != "Invalid password" {
		t.Errorf("wrong password: %+v", told)
	}
	d.wait("left", func(e Event) bool { l, ok := e.Data.(session.Left); return ok && l.Reason == "no_sync" })

	f := newFake(t)
	d = newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"})
	if told := trouble(d, "!elsewhere:x"); !told.Recoverable || !strings.Contains(told.Message, "not in the room") {
		t.Errorf("wrong room: %+v", told)
	}
	silent := newFake(t)
	silent.Close()
	d = newDriver(t, Config{HomeserverURL: silent.URL, AccessToken: "a"})
	if told := trouble(d, room); !told.Recoverable || !strings.Contains(told.Message, "no answer from the homeserver") {
		t.Errorf("no homeserver: %+v", told)
	}
}

func TestURLOfSomethingElse(t *testing.T) {
	f := newFake(t)
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		http.NotFound(w, r)
		return true
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	if e := d.waitSync("reconnecting"); e == nil || !strings.Contains(e.Message, "is this the URL of a homeserver?") {
		t.Fatalf("error: %+v", e)
	}
}

// The first refresh meets a broken server: that must not count as a dead token.
func TestTokenIsRefreshed(t *testing.T) {
	f := newFake(t)
	var refreshes atomic.Int32
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/refresh"):
			if refreshes.Add(1) == 1 {
				w.WriteHeader(502)
				return true
			}
			answer(w, 200, map[string]any{"access_token": "a", "refresh_token": "r2", "expires_in_ms": 1000})
			return true
		case r.Header.Get("Authorization") == "Bearer old":
			answer(w, 401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "soft_logout": true})
			return true
		}
		return false
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "old", RefreshToken: "r1"}).start()
	if e := d.waitSync("reconnecting"); e == nil || e.Status != ErrNetwork {
		t.Fatalf("error: %+v", e)
	}
	e := d.wait("token_refreshed", func(e Event) bool { return e.Name == "token_refreshed" })
	if data := e.Data.(map[string]any); data["access_token"] != "a" || data["refresh_token"] != "r2" {
		t.Fatalf("event: %v", data)
	}
	d.waitSync("syncing")
}

// What is no sync at all is told and tried again.
func TestStrangeAnswersToSync(t *testing.T) {
	for name, strange := range map[string]func(w http.ResponseWriter){
		"html":      func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>hello</html>")) },
		"truncated": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"next_batch":"s1","rooms":{`)) },
		"cut off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"next`))
		},
		"error with 200": func(w http.ResponseWriter) { answer(w, 200, map[string]string{"errcode": "M_UNKNOWN"}) },
		"array":          func(w http.ResponseWriter) { answer(w, 200, []int{1}) },
		"forbidden html": func(w http.ResponseWriter) { w.WriteHeader(403); _, _ = w.Write([]byte("<html>")) },
		"429": func(w http.ResponseWriter) {
			answer(w, 429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 10})
		},
		"no answer": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			var syncs atomic.Int32
			failures := int32(1)
			if name == "no answer" {
				failures = 2 // net/http itself tries once more
			}
			f.override = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "/sync") && syncs.Add(1) <= failures {
					strange(w)
					return true
				}
				return false
			}
			d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
			if e := d.waitSync("reconnecting"); e == nil || e.Message == "" {
				t.Fatalf("error: %+v", e)
			}
			d.waitSync("syncing")
		})
	}
}

// A panic fails the client, is told, and nothing but Close does anything any more.
func TestPanicFailsTheClient(t *testing.T) {
	f := newFake(t)
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	d.waitSync("syncing")
	d.mu.Lock()
	d.spawn(func() { panic("boom") })
	d.mu.Unlock()
	d.wait("client_failed", func(e Event) bool { return e.Name == "client_failed" })
	if _, err := d.OpenSession(room, session.OpenOptions{}); AsError(err) == nil || AsError(err).Status != ErrClientFailed {
		t.Fatalf("open: %v", err)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for path, cfg := range map[string]Config{
		"/mode":           {Mode: "other"},
		"/homeserver_url": {HomeserverURL: "matrix.org", AccessToken: "a"},
		"/access_token":   {HomeserverURL: "https://x"},
		"/user_id":        {HomeserverURL: "https://x", Password: "p"},
		"/recovery_key":   {HomeserverURL: "https://x", AccessToken: "a", RecoveryKey: "EsTc no such key"},
		"/ca_file":        {HomeserverURL: "https://x", AccessToken: "a", CAFile: "/nonexistent"},
		"/proxy_url":      {HomeserverURL: "https://x", AccessToken: "a", ProxyURL: "gopher://x"},
		"/clock":          {Mode: "host_driven", UserID: "@a:x", DeviceID: "D", Clock: "sun"},
		"/device_id":      {Mode: "host_driven", UserID: "@a:x"},

		"/max_membership_expiry_ms": {HomeserverURL: "https://x", AccessToken: "a", MaxMembershipExpiryMS: new(int64)},
	} {
		if _, err := New(cfg, func(Event) {}, nil); AsError(err) == nil || AsError(err).Path != path {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	out, err := json.Marshal(Config{AccessToken: "sesame", Password: "sesame", RefreshToken: "sesame"})
	if err != nil || strings.Contains(string(out), "sesame") {
		t.Fatalf("%s %v", out, err)
	}
}
