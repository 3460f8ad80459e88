package client

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/session"

	"maunium.net/go/mautrix/id"
)

// A host-driven client on a manual clock joins, sees another through gaps, and leaves by the
// answers that the host brings.
func TestHostDriven(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@a:x", DeviceID: "DEV"})
	boot, wall := int64(1000), time.Now().UnixMilli()
	if _, err := d.Advance(AdvanceInput{BootMS: &boot, WallTS: &wall}); err != nil {
		t.Fatal(err)
	}
	d.join()
	feed := func(state, timeline string, limited bool) {
		t.Helper()
		body := fmt.Sprintf(`{"next_batch":"s","rooms":{"join":{%q:{"state":{"events":[%s]},"timeline":{"limited":%v,"events":[%s]}}}}}`,
			room, state, limited, timeline)
		if err := d.Feed(FeedInput{Sync: json.RawMessage(body)}); err != nil {
			t.Fatal(err)
		}
	}
	event := func(user, typ, key, content string) string {
		return fmt.Sprintf(`{"type":%q,"sender":%q,"state_key":%q,"event_id":"$%s","origin_server_ts":%d,"content":%s}`,
			typ, user, key, typ+key, wall, content)
	}
	answerTo := func(r hostRequest, key string) {
		t.Helper()
		if err := d.Respond(ResponseInput{ID: r.ID, Status: 200, Body: json.RawMessage(key)}); err != nil {
			t.Fatal(err)
		}
	}
	request := func(kinds ...string) hostRequest {
		t.Helper()
		for {
			e := d.wait("request", func(e Event) bool { return e.Name == "request" })
			r := e.Data.(hostRequest)
			for _, k := range kinds {
				if string(r.Kind) == k {
					return r
				}
			}
			switch r.Kind { // what comes before
			case "get_capabilities":
				answerTo(r, `{"capabilities":{}}`)
			case "list_delayed":
				answerTo(r, `{"delayed_events":[]}`)
			case "schedule_delayed":
				answerTo(r, `{"delay_id":"d"}`)
			case "get_room_member":
				answerTo(r, `{"membership":"join"}`)
			default:
				answerTo(r, `{}`)
			}
		}
	}
	feed(event("@a:x", "m.room.create", "", `{"room_version":"10"}`)+","+event("@a:x", "m.room.member", "@a:x", `{"membership":"join"}`), "", false)
	send := request("send_state")
	answerTo(send, `{"event_id":"$own"}`)
	path := strings.Split(send.HTTP.Path, "/")
	stateType := path[len(path)-2]
	ownKey, err := url.PathUnescape(path[len(path)-1])
	if err != nil {
		t.Fatal(err)
	}
	own := event("@a:x", stateType, ownKey, string(send.HTTP.Body))
	feed("", own, false)
	d.waitCount(1)

	// The other's join is in the state of a limited timeline, where members may be missing too.
	other := event("@b:x", stateType, "_@b:x_DEV_m.call", string(send.HTTP.Body))
	feed(other, event("@c:x", "m.room.member", "@c:x", `{"membership":"join"}`), true)
	answerTo(request("get_room_member"), `{"membership":"join"}`)
	d.waitCount(2)

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	answerTo(request("send_delayed"), `{}`)
	d.wait("left", func(e Event) bool { _, ok := e.Data.(session.Left); return ok })
	d.wait("sync_state stopped", func(e Event) bool { return e.Name == "sync_state" })
	if info, err := d.Info(); err != nil || info.State != "stopped" {
		t.Fatalf("info: %+v, %v", info, err)
	}
	if err := d.Feed(FeedInput{Sync: json.RawMessage(`{}`)}); AsError(err) == nil || AsError(err).Status != ErrInvalidState {
		t.Fatalf("feed after stop: %v", err)
	}
}

func TestHostDrivenRefusesNonsense(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@a:x", DeviceID: "DEV"})
	back := int64(-1)
	_, advanced := d.Advance(AdvanceInput{BootMS: &back})
	_, long := New(Config{Mode: "host_driven", UserID: "@a:x", DeviceID: id.DeviceID(strings.Repeat("D", 256))}, func(Event) {}, nil)
	for what, err := range map[string]error{
		"long device id":  long,
		"empty feed":      d.Feed(FeedInput{}),
		"sync, no object": d.Feed(FeedInput{Sync: json.RawMessage(`[]`)}),
		"no room id":      d.Feed(FeedInput{State: &FeedState{RoomID: "r", Events: json.RawMessage(`[]`)}}),
		"events":          d.Feed(FeedInput{State: &FeedState{RoomID: room, Events: json.RawMessage(`{}`)}}),
		"unknown request": d.Respond(ResponseInput{ID: 99, Status: 200}),
		"empty response":  d.Respond(ResponseInput{ID: 99}),
		"clock back":      advanced,
		"start":           d.Start(),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	// Strange rooms are passed over.
	for _, body := range []string{`{"rooms":[]}`, `{"rooms":{"join":[1,"a"]}}`, `{"rooms":{"join":{"!r:x":null}}}`,
		`{"rooms":{"join":{"!r:x":{"state":7,"timeline":{"events":{"a":[null,1,{}]}}}}}}`, `{"rooms":{"leave":{"!r:x":1}}}`} {
		if err := d.Feed(FeedInput{Sync: json.RawMessage(body)}); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// The clock of somebody else's service is not that of our homeserver: it could empty the call.
func TestHostDrivenForeignClock(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@a:x", DeviceID: "DEV"})
	boot, wall := int64(1000), time.Now().UnixMilli()
	if _, err := d.Advance(AdvanceInput{BootMS: &boot, WallTS: &wall}); err != nil {
		t.Fatal(err)
	}
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	events := fmt.Sprintf(`[{"type":"m.room.member","sender":"@b:x","state_key":"@b:x","event_id":"$1","origin_server_ts":%d,"content":{"membership":"join"}},
		{"type":"org.matrix.msc3401.call.member","sender":"@b:x","state_key":"_@b:x_D_m.call","event_id":"$2","origin_server_ts":%d,"content":{
		"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit","focus_selection":"multi_sfu"},
		"foci_preferred":[{"type":"livekit","livekit_service_url":"https://sfu.b"}]}}]`, wall, wall)
	if err := d.Feed(FeedInput{State: &FeedState{RoomID: room, Events: json.RawMessage(events), Complete: true}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SFUToken("https://sfu.b"); err != nil {
		t.Fatal(err)
	}
	foreign := false
	for !foreign {
		e := d.wait("request", func(e Event) bool { return e.Name == "request" })
		r := e.Data.(hostRequest)
		answer := ResponseInput{ID: r.ID, Status: 200, Body: json.RawMessage(`{"access_token":"o","token_type":"Bearer","matrix_server_name":"x","expires_in":3600}`)}
		if foreign = r.HTTP.BaseURL != ""; foreign {
			answer.Headers = map[string]string{"Date": "Tue, 01 Jan 2041 00:00:00 GMT"}
		}
		if err := d.Respond(answer); err != nil {
			t.Fatal(err)
		}
	}
	if snap, err := s.DebugSnapshot(); err != nil || snap.ServerTS != wall || snap.MemberCount != 1 {
		t.Errorf("the homeserver's time is %d, expected %d; %d members; %v", snap.ServerTS, wall, snap.MemberCount, err)
	}
}

// A host that answers nothing costs little, and nothing that is to be sent is kept for it.
func TestHostThatNeverAnswers(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@a:x", DeviceID: "DEV"})
	d.join()
	if err := d.Feed(FeedInput{State: &FeedState{RoomID: room, Events: json.RawMessage(`[]`), Complete: true}}); err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for boot := int64(0); last < 3*unansweredKept; {
		next, err := d.Advance(AdvanceInput{BootMS: &boot})
		if err != nil || next.DeadlineMS == nil {
			t.Fatalf("%+v, %v", next, err)
		}
		boot = max(boot, *next.DeadlineMS)
		for len(d.events) > 0 {
			if r, is := (<-d.events).Data.(hostRequest); is {
				last = r.ID
			}
		}
	}
	if n := len(d.inflight); n == 0 || n > unansweredKept {
		t.Errorf("%d requests are kept", n)
	}
	for _, r := range d.inflight {
		if r.Content != nil {
			t.Errorf("%s is kept with its content", r.Kind)
		}
	}
}

// Events of members that are none are passed over, and the debug snapshot says why.
func TestMalformedMembersAreExplained(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", UserID: "@a:x", DeviceID: "DEV"})
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	content := `{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"}}`
	event := map[string]string{
		"type": `"org.matrix.msc3401.call.member"`, "sender": `"@b:x"`, "state_key": `"_@b:x_D_m.call"`, "event_id": `"$1"`,
		"origin_server_ts": fmt.Sprint(time.Now().UnixMilli()), "content": content,
	}
	feed := func(field, value string) {
		t.Helper()
		var fields []string
		for k, v := range event {
			if k == field {
				v = value
			}
			if v != "" {
				fields = append(fields, fmt.Sprintf("%q:%s", k, v))
			}
		}
		body := fmt.Sprintf(`{"rooms":{"join":{%q:{"timeline":{"events":[{%s}]}}}}}`, room, strings.Join(fields, ","))
		if err := d.Feed(FeedInput{Sync: json.RawMessage(body)}); err != nil {
			t.Fatal(err)
		}
	}
	long, deep := `"`+strings.Repeat("x", 10_000)+`"`, strings.Repeat("[", 200)+strings.Repeat("]", 200)
	refused := 0
	for field, values := range map[string][]string{
		"sender":    {"", "null", "7", "[]", "{}", `""`, `"b"`, long, deep},
		"state_key": {"", "null", "7", "[]", "{}", `""`, `"_@c:x"`, long, deep},
		"event_id":  {long},
		"content":   {"", "null", "7", `"text"`, "[]", deep, `{"application":` + deep + `}`},
	} {
		for _, value := range values {
			feed(field, value)
			refused++
			snap, err := s.DebugSnapshot()
			if err != nil || snap.RefusedAll != refused || len(snap.Refused) == 0 || !strings.HasPrefix(snap.Refused[len(snap.Refused)-1].Reason, field) {
				t.Fatalf("%s %.20s: %d refused: %+v, %v", field, value, snap.RefusedAll, snap.Refused, err)
			}
			if last := snap.Refused[len(snap.Refused)-1]; len(last.Reason)+len(last.StateKey)+len(last.Sender) > 2000 {
				t.Errorf("%s %.20s: is told at length", field, value)
			}
		}
	}
	feed("", "")
	if snap, err := s.DebugSnapshot(); err != nil || len(snap.Waiting) != 1 {
		t.Errorf("a good one after them: %+v, %v", snap.Waiting, err)
	}
}
