package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"
)

// A homeserver that answers nonsense, too much, or for ever.

// Whatever each endpoint answers at first, the call is joined and left in the end.
func TestStrangeAnswersToRequests(t *testing.T) {
	for name, strange := range map[string]func(w http.ResponseWriter){
		"html":           func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>Welcome</html>")) },
		"html, 500":      func(w http.ResponseWriter) { w.WriteHeader(500); _, _ = w.Write([]byte("<html>Oops</html>")) },
		"html, 401":      func(w http.ResponseWriter) { w.WriteHeader(401); _, _ = w.Write([]byte("<html>Log in</html>")) },
		"truncated":      func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"event_id":"$1","delay_id":"d`)) },
		"error with 200": func(w http.ResponseWriter) { answer(w, 200, map[string]string{"errcode": "M_UNKNOWN", "error": "no"}) },
		"null":           func(w http.ResponseWriter) { _, _ = w.Write([]byte(`null`)) },
		"nothing":        func(w http.ResponseWriter) {},
		"no content":     func(w http.ResponseWriter) { w.WriteHeader(204) },
		"wrong types": func(w http.ResponseWriter) {
			answer(w, 200, map[string]any{"event_id": 1, "delay_id": []int{1}, "errcode": 5})
		},
		"429, no pause":   func(w http.ResponseWriter) { answer(w, 429, map[string]any{"errcode": "M_LIMIT_EXCEEDED"}) },
		"429, odd header": func(w http.ResponseWriter) { w.Header().Set("Retry-After", "soon"); w.WriteHeader(429) },
		"cut off":         func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			var mu sync.Mutex
			asked := map[string]int{}
			f.override = func(w http.ResponseWriter, r *http.Request) bool {
				what := r.Method + " " + r.URL.Path + r.URL.Query().Get("org.matrix.msc4140.delay")
				if strings.HasSuffix(r.URL.Path, "/sync") || strings.HasSuffix(r.URL.Path, "/whoami") {
					return false
				}
				mu.Lock()
				asked[what]++
				first := asked[what] == 1
				mu.Unlock()
				if first {
					strange(w)
				}
				return first
			}
			d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
			s, err := d.OpenSession(room, session.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			p := session.JoinParams{FociPreferred: []json.RawMessage{}}
			if err := json.Unmarshal([]byte(`{"network_error_retry_ms":100}`), &p); err != nil {
				t.Fatal(err)
			}
			if err := s.Join(p); err != nil {
				t.Fatal(err)
			}
			d.waitCount(1)
			if sent, err := s.LeaveWait(patience); !sent || err != nil {
				t.Fatalf("leave: %v %v", sent, err)
			}
		})
	}
}

// JSON is read whatever it is called.
func TestWrongContentType(t *testing.T) {
	f := newFake(t)
	serve := f.serve
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve(mislabelled{w}, r)
	}))
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	d := newDriver(t, Config{HomeserverURL: web.URL, AccessToken: "a"}).start()
	d.join()
	d.waitCount(1)
}

type mislabelled struct{ http.ResponseWriter }

func (w mislabelled) WriteHeader(status int) {
	w.Header().Set("Content-Type", "image/png")
	w.ResponseWriter.WriteHeader(status)
}

// An answer without end is read up to a bound, one that never comes up to a time.
func TestAnswersWithoutEnd(t *testing.T) {
	var served atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat(" ", 64<<10))
		switch r.URL.Path {
		case "/headers":
			for i := range 3000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
			}
			return
		case "/drip":
			chunk = chunk[:1]
		}
		for r.Context().Err() == nil {
			n, err := w.Write(chunk)
			if err != nil {
				return
			}
			served.Add(int64(n))
			if len(chunk) == 1 {
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		}
	}))
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	d := newDriver(t, Config{HomeserverURL: web.URL, AccessToken: "a"})
	for _, path := range []string{"/endless", "/drip", "/headers"} {
		served.Store(0)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		began := time.Now()
		h := d.exchange(ctx, wire.HTTPRequest{Method: "GET", Path: path}, "a", 1<<20)
		cancel()
		if h.NetworkError == "" || len(h.Body) > 0 || time.Since(began) > 30*time.Second || served.Load() > 64<<20 {
			t.Errorf("%s: %d %q after %v and %d bytes", path, h.Status, h.NetworkError, time.Since(began), served.Load())
		}
	}
}

// A homeserver that answers every long poll at once, each time with another token, does not keep
// us busy.
func TestSyncsThatComeAtOnce(t *testing.T) {
	const looked = rapidSyncs + 10
	f := newFake(t)
	asked, enough := make([]time.Time, 0, looked), make(chan struct{}) // syncs come one at a time
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/sync") {
			return false
		}
		if len(asked) < looked {
			if asked = append(asked, time.Now()); len(asked) == looked {
				close(enough)
			}
		}
		answer(w, 200, map[string]string{"next_batch": fmt.Sprintf("s%d", f.count("sync"))})
		return true
	}
	newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	gets(t, enough, fmt.Sprintf("%d syncs", looked))
	quick := 0
	for i := 1; i < looked; i++ {
		// Where the client found one slow, one of two came after half of that time.
		if quick++; asked[i].Sub(asked[i-1]) >= rapidSync/2 {
			quick = 0
		}
		if quick > rapidSyncs+2 {
			t.Fatalf("%d syncs without a pause", quick)
		}
	}
}

// State of a limited timeline and the events after it both count, in this order; and so does
// state_after, which makes both superfluous.
func TestLimitedTimelineLosesNothing(t *testing.T) {
	wall := time.Now().UnixMilli()
	n := 0
	event := func(user, typ, key, content string) string {
		n++
		return fmt.Sprintf(`{"type":%q,"sender":%q,"state_key":%q,"event_id":"$%d","origin_server_ts":%d,"content":%s}`, typ, user, key, n, wall, content)
	}
	call := func(user string) string {
		return event(user, wire.TypeStateMember, "_"+user+"_D_m.call", `{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"}}`)
	}
	gone := func(user string) string {
		return event(user, wire.TypeStateMember, "_"+user+"_D_m.call", `{}`)
	}
	member := func(user string) string { return event(user, "m.room.member", user, `{"membership":"join"}`) }
	create := event("@me:x", "m.room.create", "", `{"room_version":"11"}`)
	for _, after := range []string{"", "state_after", "org.matrix.msc4222.state_after"} {
		d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@me:x", DeviceID: "DEV"})
		boot := int64(1000)
		if _, err := d.Advance(AdvanceInput{BootMS: &boot, WallTS: &wall}); err != nil {
			t.Fatal(err)
		}
		s, err := d.OpenSession(room, session.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		feed := func(state, timeline []string, limited bool) {
			t.Helper()
			list := func(events []string) string { return strings.Join(events, ",") }
			in := fmt.Sprintf(`"state":{"events":[%s]},"timeline":{"limited":%v,"events":[%s]}`, list(state), limited, list(timeline))
			if after != "" {
				// The timeline may hold what is not in the state any more.
				in = fmt.Sprintf(`%q:{"events":[%s]},"timeline":{"limited":%v,"events":[%s]}`, after, list(append(state, timeline...)), limited, call("@nobody:x"))
			}
			body := fmt.Sprintf(`{"next_batch":"s","rooms":{"join":{%q:{%s}}}}`, room, in)
			if err := d.Feed(FeedInput{Sync: json.RawMessage(body)}); err != nil {
				t.Fatal(err)
			}
		}
		present := func(users ...string) {
			t.Helper()
			list, err := s.Memberships()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range list {
				got = append(got, string(m.UserID))
			}
			if fmt.Sprint(got) != fmt.Sprint(users) {
				t.Errorf("%q: %v, expected %v", after, got, users)
			}
		}
		feed([]string{create, member("@a:x"), member("@b:x"), member("@c:x"), member("@d:x"), call("@a:x")}, []string{call("@b:x")}, true)
		present("@a:x", "@b:x")
		feed([]string{call("@c:x"), gone("@a:x"), call("@d:x")}, []string{gone("@d:x"), call("@a:x")}, true)
		// Who is in the room is asked again after a gap; meanwhile nobody is dropped.
		present("@a:x", "@b:x")
		asked := d.wait("request", func(e Event) bool { return e.Name == "request" }).Data.(hostRequest)
		if err := d.Respond(ResponseInput{ID: asked.ID, Status: 200, Body: json.RawMessage(`{"joined":{"@a:x":{},"@b:x":{},"@c:x":{},"@d:x":{}}}`)}); err != nil {
			t.Fatal(err)
		}
		present("@a:x", "@b:x", "@c:x")
		feed(nil, []string{gone("@b:x")}, false)
		present("@a:x", "@c:x")
	}
}

// Any JSON in place of a sync.
func FuzzSync(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"rooms":{"join":{"!r:x":{"state":{"events":[{"type":"m.room.create","sender":"@a:x","state_key":"","content":{"room_version":7}}]}}}}}`,
		`{"rooms":{"join":{"!r:x":{"timeline":{"limited":"yes","events":[{"type":"m.room.member","sender":"@a:x","state_key":"@a:x","content":{"membership":["join"]}}]}}}}}`,
		`{"rooms":{"join":{"!r:x":{"state_after":{"events":7},"state":{"events":{"a":{}}}},"r":{},"":1}}}`,
		`{"rooms":{"leave":{"!r:x":null},"ban":[1]},"device_lists":{"changed":{}},"to_device":{"events":[1,null,{"type":7}]},"device_one_time_keys_count":[]}`,
		`{"rooms":{"join":{"!r:x":{"timeline":{"events":[{"type":"org.matrix.msc3401.call.member","sender":"@a:x","state_key":"_@a:x_D_m.call","event_id":"$1","origin_server_ts":1e300,"content":{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"}}},{"type":"m.room.member","sender":"@a:x","state_key":"@a:x","content":{"membership":"join"}}]}}}}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return
		}
		d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@me:x", DeviceID: "DEV"})
		s, err := d.OpenSession(room, session.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := AsError(d.Feed(FeedInput{Sync: body})); err != nil && err.Status != ErrInvalidArgument {
				t.Fatal(err)
			}
		}
		if err := d.decryptSync(body, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Memberships(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.DebugSnapshot(); err != nil {
			t.Fatal(err)
		}
	})
}
