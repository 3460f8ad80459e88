package session

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

// The roster beside a model that computes everything anew from the state of the room: whatever
// comes in whatever order, the list, the diffs, the oldest member, the transports, the intent and
// the calls of the room are those of the model.

type rosterModel struct {
	set     *Set
	session uint64
	now     Time
	events  int

	state  map[entryKey]wire.Event // what stands in the room
	joined map[id.UserID]bool      // who is in the room

	mirror map[memberKey]id.EventID // who is in the call, by the diffs
	calls  map[string]bool          // slots, by session_started and session_ended
}

const modelRoom = id.RoomID("!r:x")

func newRosterModel() *rosterModel {
	m := &rosterModel{
		set: NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: func(n int) []byte { return make([]byte, n) }}),
		now: Time{Boot: time.Hour, Wall: epoch}, state: map[entryKey]wire.Event{}, joined: map[id.UserID]bool{},
		mirror: map[memberKey]id.EventID{}, calls: map[string]bool{},
	}
	m.session, _ = m.set.Open(m.now, modelRoom, OpenOptions{})
	return m
}

func TestRosterAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newRosterModel()
		users := rapid.SampledFrom([]id.UserID{"@a:x", "@b:x", "@c:x", "@d:x"})
		t.Repeat(map[string]func(*rapid.T){
			"": m.check,
			"call": func(t *rapid.T) {
				var in RoomState
				for range rapid.IntRange(1, 4).Draw(t, "events") {
					in.Events = append(in.Events, m.callEvent(t, users.Draw(t, "user")))
				}
				m.feed(t, in)
			},
			"member": func(t *rapid.T) { m.feed(t, RoomState{Events: []wire.Event{m.memberEvent(t, users.Draw(t, "user"))}}) },
			"together": func(t *rapid.T) {
				u := users.Draw(t, "user")
				m.feed(t, RoomState{Events: []wire.Event{m.memberEvent(t, u), m.callEvent(t, u)}})
			},
			"gap": func(t *rapid.T) {
				// Changes of room members that nobody tells.
				m.joined[users.Draw(t, "user")] = rapid.Bool().Draw(t, "joined")
				m.feed(t, RoomState{Events: []wire.Event{m.callEvent(t, users.Draw(t, "other"))}, Gap: true})
			},
			"reset": func(t *rapid.T) {
				in := RoomState{Reset: true, Complete: true}
				for _, k := range m.keys() {
					if rapid.Bool().Draw(t, "stays") {
						in.Events = append(in.Events, m.state[k])
					}
				}
				m.feed(t, in)
			},
			"recheck": func(t *rapid.T) { m.handle(t, Recheck{Session: m.session}) },
			"time": func(t *rapid.T) {
				d := time.Duration(rapid.Int64Range(1, 7_200_000).Draw(t, "ms")) * time.Millisecond
				m.now = Time{Boot: m.now.Boot + d, Wall: m.now.Wall + d.Milliseconds()}
				m.handle(t, Tick{})
			},
			"left": func(t *rapid.T) {
				clear(m.state)
				m.handle(t, RoomLeft{Room: modelRoom})
			},
		})
	})
}

// callEvent draws a member event and puts it into the model's state.
func (m *rosterModel) callEvent(t *rapid.T, user id.UserID) wire.Event {
	m.events++
	device := rapid.SampledFrom([]string{"D1", "D2"}).Draw(t, "device")
	callID := rapid.SampledFrom([]string{"", "", "", "other"}).Draw(t, "call_id")
	ev := wire.Event{
		Type:   rapid.SampledFrom([]string{wire.TypeStateMember, wire.TypeStateMember, wire.TypeStateMemberStable}).Draw(t, "type"),
		Sender: user, StateKey: fmt.Sprintf("_%s_%s_m.call", user, rapid.SampledFrom([]string{device, device, "elsewhere"}).Draw(t, "key")),
		EventID: id.EventID(fmt.Sprintf("$%06d", m.events)), OriginServerTS: m.now.Wall - rapid.Int64Range(0, 3).Draw(t, "age"),
	}
	switch rapid.IntRange(0, 9).Draw(t, "content") {
	case 0, 1:
		ev.Content = json.RawMessage(`{}`)
	case 2:
		ev.Content = json.RawMessage(`{"application":"m.call"}`)
	default:
		content := map[string]any{
			"application": "m.call", "call_id": callID, "device_id": device,
			"focus_active": map[string]any{"type": "livekit", "focus_selection": rapid.SampledFrom([]string{"oldest_membership", "multi_sfu", "new"}).Draw(t, "selection")},
			"expires":      rapid.SampledFrom([]int64{1000, 3_600_000, 14_400_000}).Draw(t, "expires"),
		}
		if rapid.Bool().Draw(t, "has created") {
			content["created_ts"] = m.now.Wall - rapid.SampledFrom([]int64{0, 1, 2, 600_000}).Draw(t, "created")
		}
		if intent := rapid.SampledFrom([]string{"", "audio", "video"}).Draw(t, "intent"); intent != "" {
			content["m.call.intent"] = intent
		}
		if rapid.Bool().Draw(t, "has foci") {
			content["foci_preferred"] = []any{map[string]any{"type": "other"}, map[string]any{"type": "livekit", "of": ev.EventID}}
		}
		ev.Content, _ = json.Marshal(content)
	}
	m.state[entryKey{ev.Type, ev.StateKey}] = ev
	return ev
}

func (m *rosterModel) memberEvent(t *rapid.T, user id.UserID) wire.Event {
	membership := rapid.SampledFrom([]string{"join", "join", "leave", "ban", "invite"}).Draw(t, "membership")
	m.joined[user] = membership == "join"
	return wire.Event{
		Type: "m.room.member", StateKey: string(user), Sender: user, EventID: "$m", OriginServerTS: m.now.Wall,
		Content: json.RawMessage(fmt.Sprintf(`{"membership":%q}`, membership)),
	}
}

func (m *rosterModel) keys() []entryKey {
	keys := make([]entryKey, 0, len(m.state))
	for k := range m.state {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.eventType, b.eventType), cmp.Compare(a.stateKey, b.stateKey))
	})
	return keys
}

func (m *rosterModel) feed(t *rapid.T, in RoomState) {
	in.Room = modelRoom
	if in.Reset {
		clear(m.state)
		for _, ev := range in.Events {
			m.state[entryKey{ev.Type, ev.StateKey}] = ev
		}
	}
	m.handle(t, in)
}

// handle takes in an input, follows the diffs, and answers who is in the room.
func (m *rosterModel) handle(t *rapid.T, in Input) {
	if err := m.set.Handle(m.now, in); err != nil {
		t.Fatal(err)
	}
	for out := m.set.Outputs(); len(out) > 0; out = m.set.Outputs() {
		for _, o := range out {
			if o.Event != nil {
				m.follow(t, o.Event.Data, o.Event.Name)
				continue
			}
			var a wire.Answer
			switch r := o.Request; {
			case r.Kind == wire.GetJoinedMembers:
				for u, in := range m.joined {
					if in {
						a.Joined = append(a.Joined, u)
					}
				}
			case r.Kind == wire.GetRoomMember && m.joined[id.UserID(r.StateKey)]:
				a.Joined = []id.UserID{id.UserID(r.StateKey)}
			}
			if err := m.set.Handle(m.now, Response{ID: o.Request.ID, Answer: a}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// follow applies what is told: nobody joins who is there, nobody leaves or changes who is not.
func (m *rosterModel) follow(t *rapid.T, data any, name string) {
	key := func(x Member) memberKey { return memberKey{x.UserID, x.DeviceID} }
	switch d := data.(type) {
	case CallChanged:
		if started := name == EventSessionStarted; m.calls[d.SlotID] == started {
			t.Fatalf("%s of %s, again", name, d.SlotID)
		} else {
			m.calls[d.SlotID] = started
		}
	case MembershipsChanged:
		if len(d.Joined)+len(d.Left)+len(d.Updated) == 0 {
			t.Fatal("nothing changed and was told")
		}
		for _, l := range d.Left {
			if m.mirror[key(l.Membership)] != l.Membership.EventID || l.Reason == "" {
				t.Fatalf("%s left, and was not there: %q", l.Membership.EventID, l.Reason)
			}
			delete(m.mirror, key(l.Membership))
		}
		for _, u := range d.Updated {
			if m.mirror[key(u.Before)] != u.Before.EventID || key(u.Before) != key(u.After) {
				t.Fatalf("%s changed, and was not there", u.Before.EventID)
			}
			m.mirror[key(u.After)] = u.After.EventID
		}
		for _, j := range d.Joined {
			if was, ok := m.mirror[key(j)]; ok {
				t.Fatalf("%s joined, and was there as %s", j.EventID, was)
			}
			m.mirror[key(j)] = j.EventID
		}
		if d.Count != len(m.mirror) {
			t.Fatalf("count %d, and the diffs say %d", d.Count, len(m.mirror))
		}
	}
}

// members are those of a slot, oldest first, computed from nothing but the state.
func (m *rosterModel) members(slotID string) []*wire.Membership {
	best := map[memberKey]*wire.Membership{}
	for _, ev := range m.state {
		x, _ := wire.ParseStateMember(ev, "", 24*time.Hour)
		if x == nil || x.SlotID != slotID || !m.joined[x.UserID] || x.ExpiresTS <= m.now.Wall {
			continue
		}
		k := memberKey{x.UserID, x.DeviceID}
		if b := best[k]; b == nil || x.OriginServerTS > b.OriginServerTS || x.OriginServerTS == b.OriginServerTS && x.EventID > b.EventID {
			best[k] = x
		}
	}
	list := make([]*wire.Membership, 0, len(best))
	for _, x := range best {
		list = append(list, x)
	}
	slices.SortFunc(list, seniority)
	return list
}

func (m *rosterModel) check(t *rapid.T) {
	want := m.members("m.call#ROOM")
	got := m.set.Memberships(m.session)
	if len(got) != len(want) || len(got) != len(m.mirror) {
		t.Fatalf("%d members, expected %d, and the diffs say %d", len(got), len(want), len(m.mirror))
	}
	intents := map[string]bool{}
	for i, x := range want {
		g := got[i]
		if g.EventID != x.EventID || m.mirror[memberKey{x.UserID, x.DeviceID}] != x.EventID {
			t.Fatalf("member %d is %s, expected %s; the diffs say %s", i, g.EventID, x.EventID, m.mirror[memberKey{x.UserID, x.DeviceID}])
		}
		var transport json.RawMessage
		switch x.FocusSelection {
		case "multi_sfu":
			transport = firstTransport(x)
		case "oldest_membership":
			if want[0].FocusSelection != "new" {
				transport = firstTransport(want[0])
			}
		}
		if !bytes.Equal(g.ActiveTransport, transport) {
			t.Fatalf("transport of %s: %s, expected %s", x.EventID, g.ActiveTransport, transport)
		}
		if x.Intent != "" {
			intents[x.Intent] = true
		}
	}
	info, _ := m.set.Info(m.now, m.session)
	if (info.OldestMembership == nil) != (len(want) == 0) || len(want) > 0 && info.OldestMembership.EventID != want[0].EventID {
		t.Fatalf("oldest: %+v", info.OldestMembership)
	}
	switch {
	case len(intents) != 1 && info.ConsensusIntent != nil:
		t.Fatalf("consensus %q among %v", *info.ConsensusIntent, intents)
	case len(intents) == 1 && (info.ConsensusIntent == nil || !intents[*info.ConsensusIntent]):
		t.Fatalf("no consensus on %v", intents)
	}
	calls := m.set.Sessions()
	for _, slotID := range []string{"m.call#ROOM", "m.call#other"} {
		list := m.members(slotID)
		i := slices.IndexFunc(calls, func(c RoomCall) bool { return c.SlotID == slotID })
		if m.calls[slotID] != (len(list) > 0) || (i >= 0) != (len(list) > 0) {
			t.Fatalf("%s has %d members, is told %v, listed %v", slotID, len(list), m.calls[slotID], i >= 0)
		}
		if i >= 0 && (calls[i].MemberCount != len(list) || calls[i].StartedTS != list[0].JoinedTS) {
			t.Fatalf("%+v, expected %d since %d", calls[i], len(list), list[0].JoinedTS)
		}
	}
}

// An event may claim to be from any time: its membership ends a day after it came all the same, as
// soon as the homeserver has told the time, and nothing is calculated beyond what a number holds.
func TestDatesOfStrangers(t *testing.T) {
	const far = 9_223_372_036_854 // ms: the most nanoseconds that fit
	for _, ts := range []int64{epoch + 3_600_000, epoch + 30*day, far, epoch + far, 1<<53 - 1} {
		for _, told := range []string{"before", "after", "never"} {
			m := newRosterModel()
			now := Time{Boot: time.Hour, Wall: 1000} // a clock that begins in 1970
			date := func(when string) {
				if told == when {
					_ = m.set.Handle(now, ServerDate{epoch})
				}
			}
			date("before")
			in := RoomState{Room: modelRoom, Reset: true, Complete: true, Events: []wire.Event{
				{Type: "m.room.member", StateKey: "@a:x", Sender: "@a:x", Content: json.RawMessage(`{"membership":"join"}`)},
				{Type: wire.TypeStateMember, StateKey: "_@a:x_D_m.call", Sender: "@a:x", EventID: "$1", OriginServerTS: ts, Content: json.RawMessage(
					`{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"},"expires":9007199254740991}`)},
			}}
			_ = m.set.Handle(now, in)
			date("after")
			list := m.set.Memberships(m.session)
			if len(list) != 1 {
				t.Fatalf("%d, told %s: %d members", ts, told, len(list))
			}
			if ends := list[0].ExpiresTS; told != "never" && ends != epoch+day {
				t.Errorf("%d, told %s: ends at %d, %d ms after it came", ts, told, ends, ends-epoch)
			}
			if at, ok := m.set.Deadline(); !ok || at < now.Boot+day*time.Millisecond {
				t.Errorf("%d, told %s: looks again at %v", ts, told, at)
			}
			now.Boot += (day + 1) * time.Millisecond
			_ = m.set.Handle(now, Tick{})
			if list := m.set.Memberships(m.session); told != "never" && len(list) != 0 {
				t.Errorf("%d, told %s: is still there after a day", ts, told)
			}
		}
	}
}

// A host may trust memberships for longer or shorter.
func TestMaxExpiry(t *testing.T) {
	set := NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), MaxExpiry: time.Hour})
	now := Time{Boot: time.Hour, Wall: epoch}
	session, _ := set.Open(now, modelRoom, OpenOptions{})
	_ = set.Handle(now, RoomState{Room: modelRoom, Complete: true, Events: []wire.Event{
		{Type: "m.room.member", StateKey: "@a:x", Sender: "@a:x", Content: json.RawMessage(`{"membership":"join"}`)},
		{Type: wire.TypeStateMember, StateKey: "_@a:x_D_m.call", Sender: "@a:x", EventID: "$1", OriginServerTS: epoch, Content: json.RawMessage(
			`{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"}}`)},
	}})
	if list := set.Memberships(session); len(list) != 1 || list[0].ExpiresTS != epoch+3_600_000 {
		t.Errorf("%+v", list)
	}
}
