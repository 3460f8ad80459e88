package homeserver_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"libmatrixrtc/core/client"
	"libmatrixrtc/core/session"
	"libmatrixrtc/internal/homeserver"

	"maunium.net/go/mautrix/id"
)

// The managed client on the embedded homeserver: a call is joined and left, whatever the fault.

type participant struct {
	*client.Client
	session *client.Session
	t       *testing.T
	events  chan client.Event
	count   int // of members, as the last event taken said
}

func newParticipant(t *testing.T, e *embedded, a account, room string) *participant {
	t.Helper()
	p := &participant{t: t, events: make(chan client.Event, 10000)}
	c, err := client.New(client.Config{
		HomeserverURL: e.URL, AccessToken: client.Secret(a.AccessToken), RefreshToken: client.Secret(a.RefreshToken),
		UserID: id.UserID(a.UserID), DeviceID: id.DeviceID(a.DeviceID),
	}, func(ev client.Event) { p.events <- ev }, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	p.Client = c
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if p.session, err = c.OpenSession(room, session.OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// The delay of a delayed leave: one that is waited for, and one that nobody is too slow for.
const (
	soon = 2_000
	late = 600_000
)

func (p *participant) join(delayMS int) {
	p.t.Helper()
	params := session.JoinParams{FociPreferred: []json.RawMessage{}}
	given := fmt.Sprintf(`{"delayed_leave_delay_ms":%d,"delayed_leave_restart_ms":500,"network_error_retry_ms":100}`, delayMS)
	if err := json.Unmarshal([]byte(given), &params); err != nil {
		p.t.Fatal(err)
	}
	if err := p.session.Join(params); err != nil {
		p.t.Fatal(err)
	}
}

func (p *participant) wait(what string, ok func(client.Event) bool) client.Event {
	p.t.Helper()
	return p.waitEither(p, what, ok)
}

// patience is for what must come, however slow everything is.
const patience = 2 * time.Minute

// waitEither is wait for an event of this participant or of another.
func (p *participant) waitEither(other *participant, what string, ok func(client.Event) bool) client.Event {
	p.t.Helper()
	expired := time.After(patience)
	var passed []string
	for {
		var ev client.Event
		of := p
		select {
		case ev = <-p.events:
		case ev = <-other.events:
			of = other
		case <-expired:
			p.t.Fatalf("no %s within %v, but %q", what, patience, passed)
		}
		if m, changed := ev.Data.(session.MembershipsChanged); changed {
			of.count = m.Count
		}
		if ok(ev) {
			return ev
		}
		passed = append(passed, fmt.Sprintf("%s %+v", ev.Name, ev.Data))
	}
}

// waitCount waits until the call has n members, which an earlier wait may have passed over.
func (p *participant) waitCount(n int) {
	p.t.Helper()
	if p.count != n {
		p.wait(fmt.Sprintf("memberships_changed to %d", n), func(client.Event) bool { return p.count == n })
	}
}

func (p *participant) waitStatus(status string) {
	p.t.Helper()
	p.wait("status "+status, func(ev client.Event) bool {
		s, ok := ev.Data.(session.StatusChanged)
		return ok && fmt.Sprint(s.Status) == status
	})
}

func (p *participant) waitEvent(name string) client.Event {
	p.t.Helper()
	return p.wait(name, func(ev client.Event) bool { return ev.Name == name })
}

func (p *participant) waitSync(state string) {
	p.t.Helper()
	p.wait("sync_state "+state, func(ev client.Event) bool {
		data, _ := ev.Data.(map[string]any)
		return ev.Name == "sync_state" && data["state"] == state
	})
}

func (p *participant) leave() {
	p.t.Helper()
	if sent, err := p.session.LeaveWait(patience); !sent || err != nil {
		p.t.Errorf("leave: sent %v, %v", sent, err)
	}
}

// call is a room with a watcher, to whom Bob's coming and going must show.
func call(t *testing.T) (e *embedded, watcher, bob *participant) {
	e = newEmbedded(t, homeserver.Options{})
	a, b := e.register("alice"), e.register("bob")
	room := e.room(a, b)
	watcher = newParticipant(t, e, a, room)
	bob = newParticipant(t, e, b, room)
	watcher.waitSync("syncing")
	bob.waitSync("syncing")
	return e, watcher, bob
}

func TestJoinAndLeaveUnderEachFault(t *testing.T) {
	ofBob := `,"user":"@bob:example.test"}`
	for name, faults := range map[string][]string{
		"none":              nil,
		"latency":           {`{"kind":"latency","delay_ms":200,"count":6` + ofBob},
		"drop before":       {`{"kind":"drop","class":"delayed","count":2` + ofBob, `{"kind":"drop","class":"state","count":2` + ofBob},
		"drop after":        {`{"kind":"drop","when":"after","class":"state","count":2` + ofBob},
		"disconnect":        {`{"kind":"disconnect","class":"state","count":2` + ofBob},
		"too long a delay":  {`{"kind":"error","status":403,"errcode":"M_FORBIDDEN","class":"schedule","count":1` + ofBob},
		"429":               {`{"kind":"rate_limit","retry_after_ms":100,"count":4` + ofBob},
		"429 in the header": {`{"kind":"rate_limit","retry_after_ms":100,"told":"header","class":"state","count":2` + ofBob},
		"5xx":               {`{"kind":"error","status":502,"count":4` + ofBob},
		"5xx with a body":   {`{"kind":"error","status":500,"errcode":"M_UNKNOWN","class":"state","count":3` + ofBob},
		"html":              {`{"kind":"html","class":"state","count":2` + ofBob, `{"kind":"html","class":"delayed"` + ofBob},
		"truncated":         {`{"kind":"truncate","class":"state","count":2` + ofBob},
		"content type":      {`{"kind":"content_type","value":"text/html","count":5` + ofBob},
		"sync fails":        {`{"kind":"error","status":500,"class":"sync"` + ofBob, `{"kind":"truncate","class":"sync"` + ofBob},
		"sync is cut":       {`{"kind":"disconnect","class":"sync"` + ofBob, `{"kind":"html","class":"sync"` + ofBob},
		"no delayed events": {`{"kind":"error","status":404,"errcode":"M_UNRECOGNIZED","class":"delayed","for_ever":true}`,
			`{"kind":"error","status":404,"errcode":"M_UNRECOGNIZED","class":"schedule","for_ever":true}`},
		"clock skew":    {`{"kind":"clock_skew","skew_ms":7200000}`},
		"restart":       {`{"kind":"restart"}`},
		"expired token": {`{"kind":"expire_tokens","soft":true` + ofBob},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, watcher, bob := call(t)
			for _, f := range faults {
				e.fault(f)
			}
			bob.join(late)
			watcher.waitCount(1)
			bob.waitStatus("Connected")
			// The same again for the leave.
			for _, f := range faults {
				e.fault(f)
			}
			bob.leave()
			watcher.waitCount(0)
		})
	}
}

// A server that wants the action on a delayed event in the body has ours kept alive all the same.
func TestOlderDelayedEvents(t *testing.T) {
	t.Parallel()
	e, watcher, bob := call(t)
	e.fault(`{"kind":"error","status":404,"errcode":"M_UNRECOGNIZED","method":"POST",` +
		`"path":"/_matrix/client/unstable/org.matrix.msc4140/delayed_events/*/*","for_ever":true}`)
	bob.join(late)
	watcher.waitCount(1)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // until it has been
		info, err := bob.session.Info()
		if err != nil || time.Since(began) > patience {
			t.Fatalf("%+v, %v", info, err)
		}
		if info.Statistics.Restarts >= 3 {
			break
		}
	}
	bob.leave()
	watcher.waitCount(0)
}

func TestKilledClientIsRemovedByItsDelayedLeave(t *testing.T) {
	t.Parallel()
	e, watcher, bob := call(t)
	bob.join(soon)
	watcher.waitCount(1)
	bob.waitStatus("Connected")
	e.fault(`{"kind":"drop","for_ever":true,"user":"@bob:example.test"}`)
	watcher.waitCount(0)
	// And when it can speak again it comes back.
	e.must("", "DELETE", "/_faults", "", nil)
	watcher.waitCount(1)
	bob.leave()
}

// Down for less than the delay, nobody is lost; for more, the leave fires on return, and the member comes back.
func TestRestartsAndMembers(t *testing.T) {
	for name, c := range map[string]struct {
		fault string
		delay int
	}{
		"short":        {`{"kind":"restart","down_ms":3600000}`, late},
		"without them": {`{"kind":"restart","down_ms":3600000,"delayed_events":"lose"}`, late},
		"long":         {`{"kind":"restart","down_ms":3000}`, soon},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, watcher, bob := call(t)
			bob.join(c.delay)
			watcher.waitCount(1)
			bob.waitStatus("Connected")
			e.fault(c.fault)
			if c.delay == soon {
				bob.waitEvent("rejoined")
			} else {
				bob.waitSync("reconnecting")
				watcher.waitSync("reconnecting")
				e.fault(`{"kind":"restart"}`) // it is there again
				bob.waitSync("syncing")
				watcher.waitSync("syncing")
			}
			bob.leave()
			watcher.waitCount(0)
			if info, err := bob.session.Info(); err != nil || c.delay == late && info.Statistics.Rejoins > 0 {
				t.Errorf("was lost: %+v, %v", info.Statistics, err)
			}
		})
	}
}

func TestDeadTokenOnTheEmbeddedServer(t *testing.T) {
	t.Parallel()
	e, _, bob := call(t)
	e.fault(`{"kind":"expire_tokens","user":"@bob:example.test"}`)
	ev := bob.wait("sync_state error", func(ev client.Event) bool {
		data, _ := ev.Data.(map[string]any)
		return ev.Name == "sync_state" && data["state"] == "error"
	})
	err, _ := ev.Data.(map[string]any)["error"].(*client.Error)
	if err == nil || err.Errcode != "M_UNKNOWN_TOKEN" || err.SoftLogout {
		t.Errorf("%+v", err)
	}
}
