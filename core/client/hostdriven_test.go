package client

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/session"
)

// A host-driven client on a manual clock joins, sees another through gaps, and leaves by the
// answers that the host brings.
func TestHostDriven(t *testing.T) {
	d := newDriver(t, Config{Mode: "host_driven", Clock: "manual", UserID: "@a:x", DeviceID: "DEV"})
	boot, wall := int64(1000), time.Now().UnixMilli()
	if _, err := d.Advance(AdvanceInput{BootMS: &boot, WallTS: &wall}); err != nil {
		t.Fatal(err)
	}
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Join(session.JoinParams{}); err != nil {
		t.Fatal(err)
	}
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
	for what, err := range map[string]error{
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
