package client

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"libmatrixrtc/core/session"
)

// Tokens that end: what renews them, and that nothing hammers where nothing can.

// expiring is a fake whose first token, "old", ends when end is set; "a" is good.
type expiring struct {
	*fake
	end     atomic.Bool
	soft    bool
	refused atomic.Int32 // requests with the dead token
	answers func(w http.ResponseWriter, r *http.Request) bool
}

func newExpiring(t *testing.T, soft bool, answers func(w http.ResponseWriter, r *http.Request) bool) *expiring {
	e := &expiring{fake: newFake(t), soft: soft, answers: answers}
	e.override = func(w http.ResponseWriter, r *http.Request) bool {
		if e.answers != nil && e.answers(w, r) {
			return true
		}
		if r.Header.Get("Authorization") != "Bearer old" {
			return false
		}
		if e.end.Load() {
			e.refused.Add(1)
			answer(w, 401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "ended", "soft_logout": e.soft})
			return true
		}
		r.Header.Set("Authorization", "Bearer a")
		return false
	}
	return e
}

func loginAs(t *testing.T, w http.ResponseWriter, r *http.Request, logins *atomic.Int32) bool {
	if !strings.HasSuffix(r.URL.Path, "/login") {
		return false
	}
	logins.Add(1)
	var in struct {
		Password string `json:"password"`
		Device   string `json:"device_id"`
	}
	body, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(body, &in); err != nil {
		t.Error(err)
	}
	switch {
	case in.Password != "p":
		answer(w, 403, map[string]string{"errcode": "M_FORBIDDEN", "error": "no"})
	case logins.Load() == 1:
		answer(w, 200, map[string]any{"access_token": "old", "user_id": "@a:x", "device_id": "DEV"})
	case in.Device != "DEV":
		t.Errorf("logged in again as device %q", in.Device)
		answer(w, 500, nil)
	default:
		answer(w, 200, map[string]any{"access_token": "a", "refresh_token": "r", "user_id": "@a:x", "device_id": "DEV"})
	}
	return true
}

// A soft logout in the middle of a call: with the password known the same device logs in again and
// the call goes on.
func TestSoftLogoutWithPassword(t *testing.T) {
	var logins atomic.Int32
	f := newExpiring(t, true, nil)
	f.answers = func(w http.ResponseWriter, r *http.Request) bool { return loginAs(t, w, r, &logins) }
	d := newDriver(t, Config{HomeserverURL: f.URL, UserID: "@a:x", Password: "p"}).start()
	s := d.join()
	d.waitCount(1)
	f.end.Store(true)
	f.put("@b:x", "m.room.topic", "", `{}`) // ends the long poll
	e := d.wait("token_refreshed", func(e Event) bool { return e.Name == "token_refreshed" })
	if data := e.Data.(map[string]any); data["access_token"] != "a" || data["refresh_token"] != "r" {
		t.Fatalf("event: %v", data)
	}
	if sent, err := s.LeaveWait(patience); !sent || err != nil {
		t.Fatalf("leave: %v %v", sent, err)
	}
	if n := logins.Load(); n != 2 {
		t.Errorf("%d logins", n)
	}
}

// A hard logout: the device is gone, and nobody logs in behind the back of whoever ended it.
func TestHardLogoutWithPassword(t *testing.T) {
	var logins atomic.Int32
	f := newExpiring(t, false, nil)
	f.answers = func(w http.ResponseWriter, r *http.Request) bool { return loginAs(t, w, r, &logins) }
	d := newDriver(t, Config{HomeserverURL: f.URL, UserID: "@a:x", Password: "p"}).start()
	d.waitSync("syncing")
	f.end.Store(true)
	f.put("@b:x", "m.room.topic", "", `{}`)
	if e := d.waitSync("error"); e == nil || e.Errcode != "M_UNKNOWN_TOKEN" || e.SoftLogout || e.Status != ErrHomeserver {
		t.Fatalf("error: %+v", e)
	}
	if n := logins.Load(); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// The password has been changed meanwhile: one attempt, then it is told as a soft logout.
func TestSoftLogoutWithWrongPassword(t *testing.T) {
	var logins atomic.Int32
	f := newExpiring(t, true, nil)
	f.end.Store(true)
	f.answers = func(w http.ResponseWriter, r *http.Request) bool { return loginAs(t, w, r, &logins) }
	d := newDriver(t, Config{HomeserverURL: f.URL, UserID: "@a:x", DeviceID: "DEV", AccessToken: "old", Password: "changed"}).start()
	if e := d.waitSync("error"); e == nil || e.Errcode != "M_UNKNOWN_TOKEN" || !e.SoftLogout {
		t.Fatalf("error: %+v", e)
	}
	if n := logins.Load(); n != 1 {
		t.Errorf("%d logins", n)
	}
	if err := d.SetAccessToken("a", ""); err != nil {
		t.Fatal(err)
	}
	d.waitSync("syncing")
}

// With neither, the client stops: whatever the sessions want, the dead token is not sent again,
// though the long poll would have gone on with it. A new token brings everything back.
func TestDeadTokenIsNotSentAgain(t *testing.T) {
	f := newExpiring(t, true, nil)
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "old"}).start()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := session.JoinParams{FociPreferred: []json.RawMessage{}}
	if err := json.Unmarshal([]byte(`{"delayed_leave_delay_ms":8000,"delayed_leave_restart_ms":200,"network_error_retry_ms":100}`), &p); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(p); err != nil {
		t.Fatal(err)
	}
	d.waitCount(1)
	f.end.Store(true) // the next restart of the delayed leave meets it
	if e := d.waitSync("error"); e == nil || e.Errcode != "M_UNKNOWN_TOKEN" || !e.SoftLogout {
		t.Fatalf("error: %+v", e)
	}
	for range 5 {
		if err := s.UpdateIntent("audio"); err != nil {
			t.Fatal(err)
		}
		if err := s.UpdateIntent("video"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-time.After(time.Second): // that nothing happens cannot be waited for otherwise
	case <-d.ctx.Done():
	}
	if n := f.refused.Load(); n > 3 { // those that were on their way when the first was refused
		t.Errorf("%d requests with the dead token", n)
	}
	if err := d.SetAccessToken("a", ""); err != nil {
		t.Fatal(err)
	}
	d.waitSync("syncing")
	if sent, err := s.LeaveWait(patience); !sent || err != nil {
		t.Fatalf("leave: %v %v", sent, err)
	}
}

// A 401 that is not the homeserver's word is trouble on the way, not the end of the token.
func TestUnauthorizedPageOfAProxy(t *testing.T) {
	f := newFake(t)
	var syncs atomic.Int32
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/sync") && syncs.Add(1) == 1 {
			w.WriteHeader(401)
			_, _ = w.Write([]byte("<html>Log in to the hotel's network</html>"))
			return true
		}
		return false
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	d.waitSync("reconnecting")
	d.waitSync("syncing")
}

// A refresh token that is refused is the end, told once; the password is tried before that.
func TestRefreshTokenRefused(t *testing.T) {
	for _, password := range []string{"", "p"} {
		var logins, refreshes atomic.Int32
		logins.Store(1)
		f := newExpiring(t, true, nil)
		f.end.Store(true)
		f.answers = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/refresh") {
				refreshes.Add(1)
				answer(w, 401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "used"})
				return true
			}
			return loginAs(t, w, r, &logins)
		}
		d := newDriver(t, Config{HomeserverURL: f.URL, UserID: "@a:x", DeviceID: "DEV", AccessToken: "old", RefreshToken: "r0", Password: Secret(password)}).start()
		if password == "" {
			d.waitSync("error")
		} else {
			d.waitSync("syncing")
		}
		if n := refreshes.Load(); n != 1 {
			t.Errorf("%d refreshes", n)
		}
	}
}
