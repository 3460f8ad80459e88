package session

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// What one event costs in a call of n members: about the same whatever n is.
//
//	go test ./core/session -run xxx -bench Roster

type crowd struct {
	set    *Set
	now    Time
	events int
}

func newCrowd(b *testing.B, n int) *crowd {
	c := &crowd{
		set: NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: func(n int) []byte { return make([]byte, n) }}),
		now: Time{Boot: time.Hour, Wall: epoch},
	}
	if _, err := c.set.Open(c.now, modelRoom, OpenOptions{}); err != nil {
		b.Fatal(err)
	}
	in := RoomState{Room: modelRoom, Reset: true, Complete: true}
	for i := range n {
		in.Events = append(in.Events, c.joined(i), c.call(i, "video", 14_400_000+int64(i)))
	}
	c.handle(b, in)
	return c
}

func (c *crowd) handle(b *testing.B, in Input) {
	if err := c.set.Handle(c.now, in); err != nil {
		b.Fatal(err)
	}
	if len(c.set.Outputs()) == 0 {
		b.Fatal("nothing was told")
	}
}

func (c *crowd) joined(i int) wire.Event {
	u := fmt.Sprintf("@u%d:x", i)
	return wire.Event{Type: "m.room.member", StateKey: u, Sender: id.UserID(u), Content: json.RawMessage(`{"membership":"join"}`)}
}

// call is the membership of user i, joined i ms before now.
func (c *crowd) call(i int, intent string, expires int64) wire.Event {
	c.events++
	u := fmt.Sprintf("@u%d:x", i)
	return wire.Event{
		Type: wire.TypeStateMember, StateKey: "_" + u + "_D_m.call", Sender: id.UserID(u), EventID: id.EventID(fmt.Sprintf("$%d", c.events)), OriginServerTS: c.now.Wall,
		Content: json.RawMessage(fmt.Sprintf(`{"application":"m.call","call_id":"","device_id":"D","created_ts":%d,"expires":%d,"m.call.intent":%q,"focus_active":{"type":"livekit","focus_selection":"multi_sfu"}}`,
			epoch-i, expires, intent)),
	}
}

func (c *crowd) gone(i int) wire.Event {
	ev := c.call(i, "", 0)
	ev.Content = json.RawMessage(`{}`)
	return ev
}

func BenchmarkRoster(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		// One more joins and leaves again: in the middle of the order.
		b.Run(fmt.Sprintf("join_and_leave/%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			in := []wire.Event{c.joined(n / 2), c.call(n/2, "audio", 14_400_000)}
			out := []wire.Event{c.gone(n / 2)}
			for b.Loop() {
				c.handle(b, RoomState{Room: modelRoom, Events: out})
				c.handle(b, RoomState{Room: modelRoom, Events: in})
			}
		})
		b.Run(fmt.Sprintf("update/%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			var changes [2][]wire.Event
			for i, intent := range []string{"audio", "video"} {
				changes[i] = []wire.Event{c.call(n/2, intent, 14_400_000)}
			}
			i := 0
			for b.Loop() {
				c.handle(b, RoomState{Room: modelRoom, Events: changes[i%2]})
				i++
			}
		})
		b.Run(fmt.Sprintf("room_member_leaves_and_returns/%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			in := []wire.Event{c.joined(n / 2)}
			out := []wire.Event{c.joined(n / 2)}
			out[0].Content = json.RawMessage(`{"membership":"leave"}`)
			for b.Loop() {
				c.handle(b, RoomState{Room: modelRoom, Events: out})
				c.handle(b, RoomState{Room: modelRoom, Events: in})
			}
		})
		b.Run(fmt.Sprintf("expiry/%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			for b.Loop() {
				c.handle(b, RoomState{Room: modelRoom, Events: []wire.Event{c.call(n/2, "audio", int64(n/2)+1_000)}})
				at, ok := c.set.Deadline()
				if !ok {
					b.Fatal("no deadline")
				}
				c.now = Time{Boot: at, Wall: c.now.Wall + (at - c.now.Boot).Milliseconds()}
				c.handle(b, Tick{})
				c.now.Wall = epoch // the others stay
			}
		})
	}
}
