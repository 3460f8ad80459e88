package client

import (
	"encoding/json"
	"strings"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// What calls need and nothing else; and room events with media keys where they are wanted.
var (
	syncFilter         = filterOf()
	syncFilterWithKeys = filterOf(wire.TypeEncryptionKeys, "m.room.encrypted")
)

func filterOf(more ...string) string {
	types := []string{wire.TypeStateMember, wire.TypeStateMemberStable, "m.room.member", "m.room.create", "m.room.encryption"}
	none := map[string]any{"types": []string{}}
	f, err := json.Marshal(map[string]any{
		"presence": none, "account_data": none,
		"room": map[string]any{
			"ephemeral": none, "account_data": none,
			"state":    map[string]any{"types": types, "lazy_load_members": true},
			"timeline": map[string]any{"types": append(types, more...), "limit": 100, "lazy_load_members": true},
		},
	})
	if err != nil {
		panic(err)
	}
	return string(f)
}

// handleSync feeds a sync body to the set. The lock is held. It takes any JSON: what has not the
// form of an event is passed over.
func (c *Client) handleSync(now session.Time, body gjson.Result) error {
	body.Get("rooms").ForEach(func(section, rooms gjson.Result) bool {
		rooms.ForEach(func(k, room gjson.Result) bool {
			roomID, ok := roomIDOf(k)
			switch {
			case !ok:
			case section.Str == "join":
				c.handleRoom(now, roomID, room)
			case (section.Str == "leave" || section.Str == "ban") && c.rooms[roomID]:
				delete(c.rooms, roomID)
				_ = c.set.Handle(now, session.RoomLeft{Room: roomID})
			}
			return true
		})
		return true
	})
	return nil
}

func (c *Client) handleRoom(now session.Time, roomID id.RoomID, room gjson.Result) {
	in := session.RoomState{Room: roomID, Complete: true}
	var state, timeline, limited, after gjson.Result
	room.ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "state":
			state = v
		case "timeline":
			v.ForEach(func(k, v gjson.Result) bool {
				switch k.Str {
				case "events":
					timeline = v
				case "limited":
					limited = v
				}
				return true
			})
		case "state_after", "org.matrix.msc4222.state_after":
			after = v
		}
		return true
	})
	if !c.rooms[roomID] {
		c.rooms[roomID] = true
		in.Reset = true
	} else {
		in.Gap = limited.Bool()
	}
	if after.Exists() {
		addEvents(&in, after.Get("events"))
	} else {
		addEvents(&in, state.Get("events"))
		addEvents(&in, timeline)
	}
	if in.Reset || in.Gap || len(in.Events)+len(in.Malformed) > 0 {
		_ = c.set.Handle(now, in)
	}
	if c.set.InKeyRooms() {
		eachEvent(timeline, wire.TypeEncryptionKeys, func(ev wire.Event) {
			_ = c.set.Handle(now, session.Timeline{Room: roomID, Event: ev, Clear: true})
		})
	}
}

// eachEvent passes on the events of a type.
func eachEvent(events gjson.Result, eventType string, f func(wire.Event)) {
	events.ForEach(func(_, raw gjson.Result) bool {
		if raw.Get("type").Str != eventType {
			return true
		}
		if ev, ok := wire.ParseTimelineEvent(raw); ok {
			f(ev)
		}
		return true
	})
}

// roomIDOf reads the name of a room in a sync.
func roomIDOf(k gjson.Result) (id.RoomID, bool) {
	name := k.String()
	return id.RoomID(name), strings.HasPrefix(name, "!") && len(name) <= 255
}

// addEvents takes in a list of state events.
func addEvents(in *session.RoomState, list gjson.Result) {
	list.ForEach(func(_, raw gjson.Result) bool {
		if ev, ok := wire.ParseEvent(raw); ok {
			in.Events = append(in.Events, ev)
		} else if sender, key, why := wire.MalformedMember(raw); why != "" {
			in.Malformed = append(in.Malformed, session.RefusedMember{Sender: sender, StateKey: key, Reason: why})
		}
		return true
	})
}
