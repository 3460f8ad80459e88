package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"libmatrixrtc/core/session"
)

// fake is a homeserver with one room in which every user is joined: whoami, sync, state and
// delayed events. override answers first where it wants to.
type fake struct {
	*httptest.Server
	override func(w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	changed chan struct{}
	log     []map[string]any // state events, in order
	delayed map[string]*time.Timer
	calls   map[string]int // by last part of the path
}

const room = "!r:x"

func newFake(t *testing.T) *fake {
	f := &fake{changed: make(chan struct{}), delayed: map[string]*time.Timer{}, calls: map[string]int{}}
	f.put("@a:x", "m.room.create", "", `{"room_version":"10"}`)
	for _, u := range []string{"@a:x", "@b:x"} {
		f.put(u, "m.room.member", u, `{"membership":"join"}`)
	}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *fake) put(sender, typ, key, content string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("$%d", len(f.log))
	f.log = append(f.log, map[string]any{"type": typ, "state_key": key, "sender": sender, "event_id": id,
		"origin_server_ts": time.Now().UnixMilli(), "content": json.RawMessage(content)})
	close(f.changed)
	f.changed = make(chan struct{})
	return id
}

func (f *fake) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[path]
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	last := parts[len(parts)-1]
	f.mu.Lock()
	f.calls[last]++
	f.mu.Unlock()
	if f.override != nil && f.override(w, r) {
		return
	}
	who := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") // the token is the user's letter
	user := "@" + who + ":x"
	body, _ := io.ReadAll(r.Body)
	switch {
	case last == "whoami":
		answer(w, 200, map[string]string{"user_id": user, "device_id": "DEV"})
	case last == "sync":
		f.sync(w, r)
	case last == "capabilities":
		answer(w, 200, map[string]any{"capabilities": map[string]any{}})
	case last == "delayed_events":
		answer(w, 200, map[string]any{"delayed_events": []any{}})
	case last == "joined_members":
		answer(w, 200, map[string]any{"joined": map[string]any{"@a:x": map[string]any{}, "@b:x": map[string]any{}}})
	case r.Method == "GET" && strings.Contains(r.URL.Path, "/state/m.room.member/"):
		answer(w, 200, map[string]string{"membership": "join"})
	case r.Method == "PUT" && strings.Contains(r.URL.Path, "/state/"):
		put := func() string { return f.put(user, parts[len(parts)-2], last, string(body)) }
		ms := r.URL.Query().Get("org.matrix.msc4140.delay")
		if ms == "" {
			answer(w, 200, map[string]string{"event_id": put()})
			return
		}
		d, _ := time.ParseDuration(ms + "ms")
		f.mu.Lock()
		id := fmt.Sprintf("d%d", len(f.delayed))
		f.delayed[id] = time.AfterFunc(d, func() { put() })
		f.mu.Unlock()
		answer(w, 200, map[string]string{"delay_id": id})
	case last == "restart" || last == "send" || last == "cancel":
		f.mu.Lock()
		t := f.delayed[parts[len(parts)-2]]
		f.mu.Unlock()
		switch {
		case t == nil:
			answer(w, 404, map[string]string{"errcode": "M_NOT_FOUND"})
			return
		case last == "send":
			t.Reset(0)
		case last == "restart":
			t.Reset(8 * time.Second)
		case last == "cancel":
			t.Stop()
		}
		answer(w, 200, map[string]any{})
	default:
		answer(w, 404, map[string]string{"errcode": "M_UNRECOGNIZED"})
	}
}

// sync answers what is new after since, waiting for it. One new event more than the last is a
// gap: the timeline is limited to one event and the others come as state.
func (f *fake) sync(w http.ResponseWriter, r *http.Request) {
	since := 0
	_, _ = fmt.Sscanf(r.URL.Query().Get("since"), "s%d", &since)
	f.mu.Lock()
	for len(f.log) == since {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		f.mu.Lock()
	}
	n := len(f.log)
	state, last := f.log[since:n-1], f.log[n-1]
	f.mu.Unlock()
	answer(w, 200, map[string]any{"next_batch": fmt.Sprintf("s%d", n), "rooms": map[string]any{"join": map[string]any{room: map[string]any{
		"state":    map[string]any{"events": state},
		"timeline": map[string]any{"events": []any{last}, "limited": len(state) > 0},
	}}}})
}

// driver is a client and the events it has emitted.
type driver struct {
	*Client
	t       *testing.T
	events  chan Event
	members *session.MembershipsChanged // the last one taken from events
}

func newDriver(t *testing.T, cfg Config) *driver {
	t.Helper()
	d := &driver{t: t, events: make(chan Event, 1000)}
	c, err := New(cfg, func(e Event) { d.events <- e }, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.Client = c
	t.Cleanup(func() { c.Close(); c.running.Wait() })
	return d
}

func (d *driver) start() *driver {
	d.t.Helper()
	if err := d.Start(); err != nil {
		d.t.Fatal(err)
	}
	return d
}

// join joins the call of the room, without a transport.
func (d *driver) join() *Session {
	d.t.Helper()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := s.Join(session.JoinParams{FociPreferred: []json.RawMessage{}}); err != nil {
		d.t.Fatal(err)
	}
	return s
}

// wait returns the first event that ok accepts, passing over the others.
func (d *driver) wait(what string, ok func(Event) bool) Event {
	d.t.Helper()
	return d.waitEither(d, what, ok)
}

// patience is for what must come, however slow everything is.
const patience = 2 * time.Minute

// waitEither is wait for an event of this client or of another.
func (d *driver) waitEither(other *driver, what string, ok func(Event) bool) Event {
	d.t.Helper()
	expired := time.After(patience)
	for {
		var e Event
		of := d
		select {
		case e = <-d.events:
		case e = <-other.events:
			of = other
		case <-expired:
			d.t.Fatalf("no %s within %v", what, patience)
		}
		if m, changed := e.Data.(session.MembershipsChanged); changed {
			of.members = &m
		}
		if ok(e) {
			return e
		}
		d.t.Logf("passed over %s: %v", e.Name, e.Data)
	}
}

// waitSync waits for a sync_state and answers its error.
func (d *driver) waitSync(state string) *Error {
	d.t.Helper()
	e := d.wait("sync_state "+state, func(e Event) bool {
		data, _ := e.Data.(map[string]any)
		return e.Name == "sync_state" && data["state"] == state
	})
	err, _ := e.Data.(map[string]any)["error"].(*Error)
	return err
}

// waitCount waits until the call has n members, and answers the change to it, also where an earlier
// wait has passed over that.
func (d *driver) waitCount(n int) session.MembershipsChanged {
	d.t.Helper()
	if d.members == nil || d.members.Count != n {
		d.wait(fmt.Sprintf("memberships_changed to %d", n), func(Event) bool { return d.members != nil && d.members.Count == n })
	}
	return *d.members
}

// gets waits until ch gives something.
func gets(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
	}
}
