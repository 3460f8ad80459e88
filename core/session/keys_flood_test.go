package session

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// flood is a call with @a:x, whose keys must get through whatever @m:x, who is in it, and @z:x, who
// is not, send.
type flood struct {
	*world
	t     *testing.T
	sent  int // messages
	taken map[id.UserID]int
	n     int
}

func newFlood(t *testing.T) *flood {
	f := &flood{world: newWorld(), t: t, taken: map[id.UserID]int{}}
	f.joined(t, `{"foci_preferred":[],"delayed_leave_delay_ms":86400000,"delayed_leave_restart_ms":7200000,"manage_media_keys":true}`)
	f.handle(RoomState{Room: "!r:x", Complete: true, Events: f.parseEvents(t, "member @a:x join\ncall @a:x A1\nmember @m:x join\ncall @m:x M1")})
	return f
}

func (f *flood) handle(in Input) {
	f.t.Helper()
	if err := f.set.Handle(f.now, in); err != nil {
		f.t.Fatal(err)
	}
	f.collect()
}

func (f *flood) collect() {
	for _, o := range f.set.Outputs() {
		if o.Event == nil {
			continue
		}
		if k, ok := o.Event.Data.(MediaKey); ok && !k.Own {
			f.taken[k.UserID]++
		}
	}
}

// fresh is a key unlike any before, as it is written.
func (f *flood) fresh() string {
	f.n++
	return base64.RawStdEncoding.EncodeToString(fmt.Appendf(nil, "%016d", f.n))
}

func (f *flood) send(user id.UserID, device id.DeviceID, content string) {
	f.sent++
	f.handle(ToDevice{
		Type: wire.TypeEncryptionKeys, Sender: user, SenderDevice: device, SenderKey: "curve",
		Encrypted: true, CrossSigned: true, Content: json.RawMessage(content),
	})
}

func (f *flood) good(user id.UserID, device id.DeviceID, index int) string {
	return fmt.Sprintf(`{"keys":{"index":%d,"key":%q},"member":{"id":"%s:%s","claimed_device_id":%q},"room_id":"!r:x",
		"session":{"application":"m.call","call_id":"","scope":"m.room"},"sent_ts":%d}`, index, f.fresh(), user, device, device, f.now.Wall+int64(f.n%7))
}

func (f *flood) junk(i int) {
	key := f.fresh()
	message := func(keys, member, room, more string) {
		f.send("@m:x", "M1", fmt.Sprintf(`{"keys":%s,"member":%s,"room_id":%q%s}`, keys, member, room, more))
	}
	mine := `{"id":"@m:x:M1","claimed_device_id":"M1"}`
	keys := fmt.Sprintf(`{"index":%d,"key":%q}`, i%256, key)
	switch i % 12 {
	case 0:
		message(fmt.Sprintf(`{"index":1,"key":%q}`, key[:len(key)-4]), mine, "!r:x", "")
	case 1:
		message(fmt.Sprintf(`{"index":%d,"key":%q}`, 256+i, key), mine, "!r:x", "")
	case 2:
		message(fmt.Sprintf(`{"index":0.%d,"key":%q}`, i+1, key), mine, "!r:x", "")
	case 3:
		message(fmt.Sprintf(`{"format":%d}`, i), mine, "!r:x", "")
	case 4:
		message(keys, mine, fmt.Sprintf("!unknown%d:x", i), "")
	case 5:
		message(keys, fmt.Sprintf(`{"id":"@m:x:M1","claimed_device_id":"M%d"}`, i), "!r:x", "")
	case 6: // of a membership that never comes
		message(keys, fmt.Sprintf(`{"id":"%d","claimed_device_id":"M1"}`, i), "!r:x", "")
	case 7: // of a call that there is not
		message(keys, mine, "!r:x", fmt.Sprintf(`,"session":{"application":"a%d","call_id":"c%d"}`, i, i))
	case 8: // of a device that is not in the call
		f.send("@z:x", id.DeviceID(fmt.Sprint("Z", i)), f.good("@z:x", id.DeviceID(fmt.Sprint("Z", i)), i%256))
	case 9: // as if from another
		f.send("@m:x", "M1", f.good("@a:x", "A1", i%256))
	case 10:
		f.send("@m:x", "M1", fmt.Sprintf(`[%d]`, i))
	default: // good, but too many
		f.send("@m:x", "M1", f.good("@m:x", "M1", i%256))
	}
}

func (f *flood) counted() (n int) {
	for _, k := range f.set.refusedKeys {
		n += k
	}
	return n
}

// TestFloodOfJunk: of 10,000 junk keys a second none is taken in, each is counted with its reason or
// held, memory does not grow, and the keys of others are taken in as they come.
func TestFloodOfJunk(t *testing.T) {
	f := newFlood(t)
	honest := 0
	for second := range 20 {
		for i := range 10_000 {
			f.junk(second*10_000 + i)
			if i%1000 == 0 {
				f.send("@a:x", "A1", f.good("@a:x", "A1", honest%256))
				if honest++; f.taken["@a:x"] > honest || honest <= keysAtOnce && f.taken["@a:x"] < honest {
					t.Fatalf("%d keys of @a:x were taken in of %d", f.taken["@a:x"], honest)
				}
				f.pass(100 * time.Millisecond)
				f.handle(Tick{})
			}
		}
		s, _ := f.set.DebugSnapshot(f.now, f.session)
		if s.Keys.Held > heldPerSender*2 || len(f.set.held.sender) > 2 {
			t.Fatalf("%d keys are held, of %d users", s.Keys.Held, len(f.set.held.sender))
		}
		if len(s.Keys.Refused) > 20 {
			t.Fatalf("%d reasons: %v", len(s.Keys.Refused), s.Keys.Refused)
		}
		o := f.set.sessions[f.session]
		if len(o.rings.rings) != 2 || len(o.rings.awaited) > 2 {
			t.Fatalf("%d rings, %d awaited", len(o.rings.rings), len(o.rings.awaited))
		}
		for who, g := range o.rings.rings {
			if len(g.keys) > keysPerMember {
				t.Fatalf("%d keys of %v", len(g.keys), who)
			}
		}
	}
	if most := keysAtOnce + 20*keysPerSecond + 1; f.taken["@m:x"] > most {
		t.Errorf("%d keys of @m:x were taken in, expected at most %d", f.taken["@m:x"], most)
	}
	if got := f.taken["@a:x"] + f.taken["@m:x"] + f.counted() + len(f.set.held.list); got != f.sent {
		t.Errorf("%d messages are accounted for of %d: %v", got, f.sent, f.set.refusedKeys)
	}
	f.pass(heldKeysFor)
	f.handle(Tick{})
	if n := len(f.set.held.list); n != 0 {
		t.Errorf("%d keys are held for more than their time", n)
	}
	for _, k := range must(f.set.ParticipantKeys(f.session, "@a:x", "A1")) {
		if k.UserID != "@a:x" {
			t.Errorf("%+v", k)
		}
	}
}

func must[T any](v T, ok bool) T {
	if !ok {
		panic("no such session")
	}
	return v
}

// TestHeldKeysAreBounded: many users who are not in the call fill no more than their room, and who
// comes in time finds their keys.
func TestHeldKeysAreBounded(t *testing.T) {
	f := newFlood(t)
	for user := range 100 {
		for i := range 20 {
			who := id.UserID(fmt.Sprintf("@z%d:x", user))
			f.send(who, id.DeviceID(fmt.Sprint("Z", i)), f.good(who, id.DeviceID(fmt.Sprint("Z", i)), i))
		}
	}
	if n := len(f.set.held.list); n != heldKeysAtMost {
		t.Errorf("%d keys are held", n)
	}
	want := map[string]int{
		"too many keys of a user whose devices are not in the call":    100 * 4,
		"pushed out by newer keys of devices that are not in the call": 100*16 - heldKeysAtMost,
	}
	for reason, n := range want {
		if f.set.refusedKeys[reason] != n {
			t.Errorf("%s: %d, expected %d", reason, f.set.refusedKeys[reason], n)
		}
	}
	f.handle(RoomState{Room: "!r:x", Events: f.parseEvents(t, "member @z99:x join\ncall @z99:x Z3")})
	if f.taken["@z99:x"] != 1 {
		t.Error("the key that was held for the last is not there")
	}
}

// TestMembersThatComeAndGo: memory is that of who is here, however many were.
func TestMembersThatComeAndGo(t *testing.T) {
	f := newFlood(t)
	o := f.set.sessions[f.session]
	o.keyMissingAfter = 24 * time.Hour
	for i := range 5000 {
		who := fmt.Sprintf("@p%d:x", i)
		f.handle(RoomState{Room: "!r:x", Events: f.parseEvents(t, "member "+who+" join\ncall "+who+" P")})
		f.send(id.UserID(who), "P", f.good(id.UserID(who), "P", 0))
		f.pass(10 * time.Millisecond)
		f.handle(RoomState{Room: "!r:x", Events: f.parseEvents(t, "empty "+who+" P")})
		if i/100%2 == 0 { // for a second nothing is answered
			continue
		}
		for _, r := range slices.Collect(maps.Keys(o.keys.flights)) {
			f.handle(Delivered{Request: r, Last: true})
		}
	}
	if n := len(o.rings.rings); n > departedKept+2 {
		t.Errorf("%d rings", n)
	}
	if n := len(o.rings.awaited); n > 4*departedKept {
		t.Errorf("%d are awaited", n)
	}
	if n := len(o.keys.peers) + len(o.keys.list) + len(o.keys.retries) + len(o.keys.flights) + len(o.keys.order); n > 64 {
		t.Errorf("%d peers, %d in the list, %d retries, %d flights, %d in their order", len(o.keys.peers), len(o.keys.list), len(o.keys.retries), len(o.keys.flights), len(o.keys.order))
	}
	if n := len(o.keys.inUse.ready); n > 64 {
		t.Errorf("%d parcels are ready", n)
	}
}

// TestKeysAreWiped: after Leave, and when the set ends, no key stands in the memory that held it.
func TestKeysAreWiped(t *testing.T) {
	for name, end := range map[string]func(f *flood){
		"leave": func(f *flood) { f.handle(Leave{f.session}) },
		"close": func(f *flood) { f.set.CloseSession(f.now, f.session) },
		"wipe":  func(f *flood) { f.set.Wipe() },
		"room":  func(f *flood) { f.handle(RoomLeft{"!r:x"}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlood(t)
			var made [][]byte
			inner := f.set.cfg.NewKey
			f.set.cfg.NewKey = func(n int) []byte {
				made = append(made, inner(n))
				return made[len(made)-1]
			}
			for i := range 3 { // several of our own
				f.handle(RoomState{Room: "!r:x", Events: f.parseEvents(t, fmt.Sprintf("call @a:x A%d", i+2))})
				f.handle(RoomState{Room: "!r:x", Events: f.parseEvents(t, fmt.Sprintf("empty @a:x A%d", i+2))})
				f.pass(2 * time.Second)
				f.handle(Tick{})
			}
			f.send("@a:x", "A1", f.good("@a:x", "A1", 0))
			f.send("@z:x", "Z1", f.good("@z:x", "Z1", 0))
			o := f.set.sessions[f.session]
			for _, g := range o.rings.rings {
				for _, k := range g.keys {
					made = append(made, k.key)
				}
			}
			for _, h := range f.set.held.list {
				made = append(made, h.msg.Keys[0].Key)
			}
			if len(made) < 4 {
				t.Fatalf("%d keys", len(made))
			}
			waiting := len(f.set.pending)
			end(f)
			if name != "wipe" && len(f.set.pending) > 1 { // the leave
				t.Errorf("%d requests wait for answers, %d before: they hold what is to be sent", len(f.set.pending), waiting)
			}
			for i, key := range made {
				if !bytes.Equal(key, make([]byte, len(key))) {
					t.Errorf("key %d of %d is still there", i, len(made))
				}
			}
		})
	}
}

// FuzzKeyMessages: whatever a message says, it is taken in, held or refused with a reason, and only
// its sender's keys can change.
func FuzzKeyMessages(f *testing.F) {
	const good = `{"keys":{"index":3,"key":"AAECAwQFBgcICQoLDA0ODw"},"member":{"id":"@m:x:M1","claimed_device_id":"M1"},"room_id":"!r:x",` +
		`"session":{"application":"m.call","call_id":"","scope":"m.room"},"sent_ts":5}`
	for _, content := range []string{
		good, strings.Replace(good, "M1", "A1", 1), strings.Replace(good, `"index":3`, `"index":3.5`, 1), strings.Replace(good, "!r:x", "!s:x", 1),
		strings.Replace(good, `"call_id":""`, `"call_id":"other"`, 1), strings.Replace(good, `"sent_ts":`, `"sent_ts":-`, 1), `{}`, `[]`, ``,
		`{"keys":[{"index":7,"key":"AAECAwQFBgcICQoLDA0ODw"}],"device_id":"M1","call_id":"","sent_ts":5}`,
	} {
		f.Add("@m:x", "M1", true, content)
		f.Add("@z:x", "Z1", true, content)
		f.Add("@a:x", "M1", false, content)
	}
	f.Fuzz(func(t *testing.T, sender, device string, encrypted bool, content string) {
		w := newFlood(t)
		w.handle(ToDevice{
			Type: wire.TypeEncryptionKeys, Sender: id.UserID(sender), SenderDevice: id.DeviceID(device), Encrypted: encrypted, Content: json.RawMessage(content),
		})
		if len(w.taken) > 1 || len(w.taken) == 1 && (w.taken[id.UserID(sender)] == 0 || !encrypted) {
			t.Errorf("keys of %v were taken in", w.taken)
		}
		if w.counted()+len(w.set.held.list)+w.taken[id.UserID(sender)] != 1 {
			t.Errorf("refused %v, %d held, taken %v", w.set.refusedKeys, len(w.set.held.list), w.taken)
		}
		ignored, err := w.set.CallEncryption(w.now, w.session, wire.Event{Type: wire.TypeEncryptionKeys, Sender: id.UserID(sender), Content: json.RawMessage(content)})
		if err != nil || len(ignored) > 300 {
			t.Errorf("%q %v", ignored, err)
		}
	})
}
