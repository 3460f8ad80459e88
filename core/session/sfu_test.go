package session

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// A thousand members each name an SFU of their own: only some are looked at, which is told, and when
// one of these goes another takes its place.
func TestManySFUs(t *testing.T) {
	s := NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: countedKeys()})
	session, err := s.Open(Time{}, "!r:x", OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	event := func(i int, content json.RawMessage) wire.Event {
		user := id.UserID(fmt.Sprintf("@u%d:x", i))
		return wire.Event{
			Type: wire.TypeStateMember, StateKey: fmt.Sprintf("_%s_D_m.call", user), Sender: user,
			EventID: id.EventID(fmt.Sprintf("$%d", i)), OriginServerTS: 1, Content: content,
		}
	}
	in := RoomState{Room: "!r:x", Complete: true, Reset: true}
	for i := range 1000 {
		in.Events = append(in.Events, event(i, wire.BuildStateMember(wire.StateMember{
			DeviceID: "D", SlotID: "m.call#ROOM", FocusSelection: wire.SelectionMultiSFU, ExpiresMS: day,
			Transports: []json.RawMessage{json.RawMessage(fmt.Sprintf(`{"type":"livekit","livekit_service_url":"https://lk%d.x"}`, i))},
		})), wire.Event{Type: "m.room.member", StateKey: fmt.Sprintf("@u%d:x", i), Sender: "@a:x", Content: json.RawMessage(`{"membership":"join"}`)})
	}
	changes := func(in Input) (list []SFUsChanged) {
		if err := s.Handle(Time{}, in); err != nil {
			t.Fatal(err)
		}
		for _, o := range s.Outputs() {
			if o.Event != nil && o.Event.Name == EventSFUsChanged {
				list = append(list, o.Event.Data.(SFUsChanged))
			}
		}
		return list
	}
	told := changes(in)
	if len(told) != 1 || len(told[0].Added) != sfusAtMost || told[0].Ignored != 1000-sfusAtMost {
		t.Fatalf("told %d times: %d added, %d ignored", len(told), len(told[0].Added), told[0].Ignored)
	}
	gone := told[0].Added[0].ServiceURL
	var i int
	if _, err := fmt.Sscanf(gone, "https://lk%d.x", &i); err != nil {
		t.Fatal(err)
	}
	told = changes(RoomState{Room: "!r:x", Events: []wire.Event{event(i, json.RawMessage("{}"))}})
	if len(told) != 1 || len(told[0].Added) != 1 || len(told[0].Removed) != 1 || told[0].Removed[0] != gone {
		t.Fatalf("after one left: %+v", told)
	}
	list, ignored, _ := s.SFUs(session)
	if len(list) != sfusAtMost || ignored != 999-sfusAtMost {
		t.Fatalf("%d listed, %d ignored", len(list), ignored)
	}
	for _, x := range list {
		if len(x.Members) != 1 {
			t.Errorf("%s has %d members", x.ServiceURL, len(x.Members))
		}
	}
	if told = changes(RoomState{Room: "!r:x", Complete: true, Reset: true}); len(told) != 1 || len(told[0].Removed) != sfusAtMost || told[0].Ignored != 0 {
		t.Fatalf("at the end: %+v", told)
	}
	if n := len(s.sessions[session].sfus.byName); n != 0 {
		t.Errorf("%d SFUs are remembered of nobody", n)
	}
}

// Strangers in several calls name more services than OpenID tokens are kept for without looking:
// each is asked for once all the same.
func TestManyOpenIDTokens(t *testing.T) {
	s := NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: countedKeys()})
	const rooms = proofsAtMost/sfusAtMost + 1
	asked, refused := 0, 0
	answer := func() {
		for outputs := s.Outputs(); len(outputs) > 0; outputs = s.Outputs() {
			for _, o := range outputs {
				if o.Request == nil {
					continue
				}
				a := wire.Answer{Err: &wire.Error{Status: 404}}
				switch o.Request.Kind {
				case wire.GetOpenID:
					if asked++; asked > 2*rooms*sfusAtMost {
						t.Fatalf("%d OpenID tokens were asked for", asked)
					}
					a = wire.Answer{Body: json.RawMessage(`{"access_token":"o","matrix_server_name":"x","expires_in":3600}`)}
				case wire.GetSFUToken:
					refused++
					a.Err = &wire.Error{Status: 403}
				}
				if err := s.Handle(Time{}, Response{ID: o.Request.ID, Answer: a}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for r := range rooms {
		room := id.RoomID(fmt.Sprintf("!r%d:x", r))
		session, err := s.Open(Time{}, room, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		in := RoomState{Room: room, Complete: true, Reset: true}
		for i := range sfusAtMost {
			user := id.UserID(fmt.Sprintf("@u%d:x", i))
			in.Events = append(in.Events, wire.Event{
				Type: wire.TypeStateMember, StateKey: fmt.Sprintf("_%s_D_m.call", user), Sender: user,
				EventID: id.EventID(fmt.Sprintf("$%d.%d", r, i)), OriginServerTS: 1,
				Content: wire.BuildStateMember(wire.StateMember{
					DeviceID: "D", SlotID: "m.call#ROOM", FocusSelection: wire.SelectionMultiSFU, ExpiresMS: day,
					Transports: []json.RawMessage{json.RawMessage(fmt.Sprintf(`{"type":"livekit","livekit_service_url":"https://lk%d-%d.x"}`, r, i))},
				}),
			}, wire.Event{Type: "m.room.member", StateKey: string(user), Sender: "@a:x", Content: json.RawMessage(`{"membership":"join"}`)})
		}
		if err := s.Handle(Time{}, in); err != nil {
			t.Fatal(err)
		}
		for i := range sfusAtMost {
			if _, _, _, err := s.SFUToken(Time{}, session, fmt.Sprintf("https://lk%d-%d.x", r, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	answer()
	if asked != rooms*sfusAtMost || refused != asked {
		t.Errorf("%d OpenID tokens asked for, %d services asked; expected %d", asked, refused, rooms*sfusAtMost)
	}
}
