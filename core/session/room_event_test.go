package session

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"libmatrixrtc/core/wire"
)

const byRoomEvent = `{"foci_preferred":[],"delayed_leave_delay_ms":86400000,"delayed_leave_restart_ms":86000000,"manage_media_keys":true,"key_transport":"room_event"}`

// next is the next room event that is asked for, within a minute.
func (w *world) next(t *testing.T) wire.Request {
	t.Helper()
	for range 60 {
		w.drain()
		for i, r := range w.asked {
			if r.Kind == wire.EncryptAndSendEvent {
				w.asked = append(w.asked[:i:i], w.asked[i+1:]...)
				return r
			}
		}
		w.pass(time.Second)
		if err := w.set.Handle(w.now, Tick{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no room event was asked for")
	return wire.Request{}
}

func (w *world) members(t *testing.T, lines string) {
	t.Helper()
	if err := w.set.Handle(w.now, RoomState{Room: "!r:x", Events: w.parseEvents(t, lines)}); err != nil {
		t.Fatal(err)
	}
}

// An event of which no answer came may have been sent: it is repeated under its name, and whoever
// joined meanwhile gets another, since that one is encrypted for those before.
func TestRoomEventIsRepeatedUnderItsName(t *testing.T) {
	w := newWorld()
	w.joined(t, byRoomEvent)
	w.members(t, "member @a:x join\ncall @a:x A1")
	first := w.next(t)
	if first.TxnID == "" {
		t.Fatal("a room event without a transaction id")
	}
	lost := wire.Answer{Err: &wire.Error{Network: true, Message: "reset"}}
	if err := w.set.Handle(w.now, Response{first.ID, lost}); err != nil {
		t.Fatal(err)
	}
	again := w.next(t)
	if again.TxnID != first.TxnID || again.ID == first.ID {
		t.Errorf("request %d %q is repeated as %d %q", first.ID, first.TxnID, again.ID, again.TxnID)
	}
	if err := w.set.Handle(w.now, Response{again.ID, wire.Answer{}}); err != nil {
		t.Fatal(err)
	}
	w.members(t, "member @b:x join\ncall @b:x B1")
	if other := w.next(t); other.TxnID == first.TxnID {
		t.Error("what is sent for a newcomer has the name of an event that it cannot read")
	}
}

func TestRoomEventsThatAreRefused(t *testing.T) {
	w := newWorld()
	w.joined(t, byRoomEvent)
	w.members(t, "member @a:x join\ncall @a:x A1\nencrypted")
	take := func(index int, in Timeline) {
		t.Helper()
		in.Room = "!r:x"
		in.Event = wire.Event{
			Type: wire.TypeEncryptionKeys, Sender: "@a:x", OriginServerTS: w.now.Wall,
			Content: json.RawMessage(fmt.Sprintf(`{"keys":[{"index":%d,"key":"AAAAAAAAAAAAAAAAAAAAAA"}],"device_id":"A1","call_id":""}`, index)),
		}
		if err := w.set.Handle(w.now, in); err != nil {
			t.Fatal(err)
		}
	}
	take(1, Timeline{Clear: true})
	take(2, Timeline{SenderDevice: "A2"})
	take(3, Timeline{SenderDevice: "A1"})
	take(4, Timeline{})
	keys, _ := w.set.ParticipantKeys(w.session, "@a:x", "A1")
	if len(keys) != 2 || keys[0].Index != 3 || keys[1].Index != 4 {
		t.Errorf("keys %+v", keys)
	}
	snap, _ := w.set.DebugSnapshot(w.now, w.session)
	for _, reason := range []string{"came in clear in an encrypted room", "claims another device than it was encrypted by"} {
		if snap.Keys.Refused[reason] != 1 {
			t.Errorf("refused: %v", snap.Keys.Refused)
		}
	}
}
