package client

import (
	"encoding/json"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// syncFilter asks for what calls need and nothing else.
var syncFilter = func() string {
	types := []string{wire.TypeStateMember, wire.TypeStateMemberStable, "m.room.member", "m.room.create", "m.room.encryption"}
	none := map[string]any{"types": []string{}}
	f, err := json.Marshal(map[string]any{
		"presence": none, "account_data": none,
		"room": map[string]any{
			"ephemeral": none, "account_data": none,
			"state":    map[string]any{"types": types, "lazy_load_members": true},
			"timeline": map[string]any{"types": types, "limit": 100, "lazy_load_members": true},
		},
	})
	if err != nil {
		panic(err)
	}
	return string(f)
}()

// handleSync feeds a sync body to the set. The lock is held. It takes any JSON: what has not the
// form of an event is passed over.
func (c *Client) handleSync(now session.Time, body []byte) error {
	root := gjson.ParseBytes(body)
	root.Get("rooms.join").ForEach(func(k, room gjson.Result) bool {
		roomID := id.RoomID(k.String())
		in := session.RoomState{Room: roomID, Complete: true}
		timeline := room.Get("timeline")
		if !c.rooms[roomID] {
			c.rooms[roomID] = true
			in.Reset = true
		} else {
			in.Gap = timeline.Get("limited").Bool()
		}
		state := room.Get("state.events")
		after := room.Get("state_after.events")
		if !after.Exists() {
			after = room.Get(`org\.matrix\.msc4222\.state_after.events`)
		}
		if after.Exists() {
			in.Events = appendEvents(in.Events, after)
		} else {
			in.Events = appendEvents(in.Events, state)
			in.Events = appendEvents(in.Events, timeline.Get("events"))
		}
		if in.Reset || in.Gap || len(in.Events) > 0 {
			_ = c.set.Handle(now, in)
		}
		return true
	})
	for _, section := range []string{"rooms.leave", "rooms.ban"} {
		root.Get(section).ForEach(func(k, _ gjson.Result) bool {
			roomID := id.RoomID(k.String())
			if c.rooms[roomID] {
				delete(c.rooms, roomID)
				_ = c.set.Handle(now, session.RoomLeft{Room: roomID})
			}
			return true
		})
	}
	return nil
}

func appendEvents(events []wire.Event, list gjson.Result) []wire.Event {
	list.ForEach(func(_, raw gjson.Result) bool {
		if ev, ok := wire.ParseEvent(raw); ok {
			events = append(events, ev)
		}
		return true
	})
	return events
}
