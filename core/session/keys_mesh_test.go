package session

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

// mesh is a call of several sessions: what each writes into the room and sends to the others arrives
// late, and what it sends may be lost.
type mesh struct {
	t       *rapid.T
	now     Time
	log     []wire.Event // the state of the room, in order
	parties []*party
	made    uint64 // keys, of all
}

type party struct {
	*mesh
	user    id.UserID
	set     *Set
	session uint64
	wants   bool
	in      bool           // on the server
	seen    int            // of the log
	asked   []wire.Request // to send keys
	inbox   []ToDevice
	current string          // fingerprint of the own key in use
	gets    map[string]bool // every key that was ever sent to it
}

func newMesh(t *rapid.T, size int) *mesh {
	m := &mesh{t: t, now: Time{Boot: time.Hour, Wall: epoch}}
	m.append("@admin:x", "m.room.create", "", `{"room_version":"11"}`)
	for i := range size {
		p := &party{mesh: m, user: id.UserID(fmt.Sprintf("@p%d:x", i)), gets: map[string]bool{}}
		m.append(p.user, "m.room.member", string(p.user), `{"membership":"join"}`)
		p.set = NewSet(SetConfig{UserID: p.user, DeviceID: "DEV", Rand: rand.New(rand.NewPCG(uint64(i), 7)), NewKey: m.newKey})
		p.session, _ = p.set.Open(m.now, "!r:x", OpenOptions{})
		m.parties = append(m.parties, p)
	}
	for _, p := range m.parties {
		p.sync()
	}
	return m
}

func (m *mesh) newKey(length int) []byte {
	m.made++
	return binary.BigEndian.AppendUint64(bytes.Repeat([]byte{1}, length-8), m.made)
}

func (m *mesh) append(sender id.UserID, eventType, key, content string) id.EventID {
	ev := wire.Event{
		Type: eventType, StateKey: key, Sender: sender, EventID: id.EventID(fmt.Sprint("$", len(m.log))),
		OriginServerTS: m.now.Wall, Content: json.RawMessage(content),
	}
	m.log = append(m.log, ev)
	return ev.EventID
}

func (p *party) handle(in Input) {
	p.t.Helper()
	if err := p.set.Handle(p.now, in); err != nil {
		p.t.Fatal(err)
	}
	for out := p.set.Outputs(); len(out) > 0; out = p.set.Outputs() {
		for _, o := range out {
			if o.Request != nil {
				p.serve(*o.Request)
			} else if k, ok := o.Event.Data.(MediaKey); ok && k.Own && k.InUse {
				p.current = k.Fingerprint
			}
		}
	}
}

// serve is the homeserver. Sending keys takes a while.
func (p *party) serve(r wire.Request) {
	var a wire.Answer
	switch r.Kind {
	case wire.SendState:
		p.in = string(r.Content) != "{}"
		a.EventID = p.append(p.user, r.Type, r.StateKey, string(r.Content))
	case wire.GetRoomMember, wire.GetJoinedMembers:
		for _, q := range p.parties {
			a.Joined = append(a.Joined, q.user)
		}
	case wire.ScheduleDelayed:
		a.DelayID = "d"
	case wire.SendDelayed:
		p.in = false
		p.append(p.user, wire.TypeStateMember, "_"+string(p.user)+"_DEV_m.call", "{}")
	case wire.EncryptAndSendToDevice:
		here := p.set.Memberships(p.session)
		for _, to := range r.Recipients {
			if !slices.ContainsFunc(here, func(m Member) bool { return m.UserID == to.UserID }) {
				p.t.Fatalf("%s sends a key to %s, who is not in the call", p.user, to.UserID)
			}
		}
		p.asked = append(p.asked, r)
		return
	}
	if err := p.set.Handle(p.now, Response{r.ID, a}); err != nil {
		p.t.Fatal(err)
	}
}

// land has a request arrive, for those devices that do not fail, and be answered unless that is lost.
func (p *party) land(i int, fails func() bool, answered bool) {
	r := p.asked[i]
	p.asked = append(p.asked[:i:i], p.asked[i+1:]...)
	in := Delivered{Request: r.ID, Last: true}
	for _, to := range r.Recipients {
		d := wire.Delivery{Device: to}
		if fails() {
			d.Reason = "no_one_time_key"
		} else {
			for _, q := range p.parties {
				if q.user == to.UserID {
					key, _ := wire.DecodeBase64(gjson.GetBytes(r.Content, "keys.key").Str)
					q.gets[fingerprint(key)] = true
					q.inbox = append(q.inbox, ToDevice{Type: r.Type, Sender: p.user, SenderDevice: "DEV", Encrypted: true, Content: r.Content})
				}
			}
		}
		in.Deliveries = append(in.Deliveries, d)
	}
	if answered {
		p.handle(in)
	}
}

func (p *party) sync() {
	in := RoomState{Room: "!r:x", Complete: true, Events: p.log[p.seen:]}
	p.seen = len(p.log)
	p.handle(in)
}

func (p *party) read() {
	for _, in := range p.inbox {
		p.handle(in)
	}
	p.inbox = nil
}

func (m *mesh) pass(d time.Duration) {
	for end := m.now.Boot + d; m.now.Boot < end; {
		next := end
		for _, p := range m.parties {
			if at, ok := p.set.Deadline(); ok {
				next = min(next, max(at, m.now.Boot))
			}
		}
		m.now.Wall += (next - m.now.Boot).Milliseconds()
		m.now.Boot = next
		for _, p := range m.parties {
			p.handle(Tick{})
		}
	}
}

func (p *party) decide(in bool, limit int) {
	if p.wants == in {
		return
	}
	p.pass(time.Millisecond) // nobody is so quick
	if p.wants = in; !in {
		p.handle(Leave{p.session})
		return
	}
	var params JoinParams
	if err := json.Unmarshal(fmt.Appendf(nil, `{"foci_preferred":[],"delayed_leave_delay_ms":86400000,"delayed_leave_restart_ms":86000000,
		"manage_media_keys":true,"key_rotation_participant_limit":%d}`, limit), &params); err != nil {
		p.t.Fatal(err)
	}
	p.handle(Join{p.session, params})
}

// TestEveryPairSharesAKey: whoever joins and leaves, and whatever is lost or late, in the end each of
// those present has the key that each other uses, and none of those who left knows one in use.
func TestEveryPairSharesAKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{0, 0, 0, 3}).Draw(t, "limit")
		m := newMesh(t, rapid.IntRange(2, 5).Draw(t, "size"))
		one := func(t *rapid.T) *party { return rapid.SampledFrom(m.parties).Draw(t, "who") }
		t.Repeat(map[string]func(*rapid.T){
			"joins or leaves": func(t *rapid.T) { p := one(t); p.decide(!p.wants, limit) },
			"syncs":           func(t *rapid.T) { one(t).sync() },
			"reads":           func(t *rapid.T) { one(t).read() },
			"time passes": func(t *rapid.T) {
				m.pass(time.Duration(rapid.IntRange(1, 15_000).Draw(t, "ms")) * time.Millisecond)
			},
			"keys land": func(t *rapid.T) {
				p := one(t)
				if len(p.asked) == 0 {
					t.Skip("nothing was sent")
				}
				chance := rand.New(rand.NewPCG(m.made, uint64(len(m.log))))
				p.land(rapid.IntRange(0, len(p.asked)-1).Draw(t, "which"), func() bool { return chance.Float64() < 0.3 }, rapid.Bool().Draw(t, "answered"))
			},
			"keys are lost": func(t *rapid.T) {
				if p := one(t); len(p.asked) > 0 {
					p.asked = p.asked[1:]
				}
			},
		})
		for range 12 {
			for _, p := range m.parties {
				p.sync()
				for len(p.asked) > 0 {
					p.land(0, func() bool { return false }, true)
				}
			}
			for _, p := range m.parties {
				p.read()
			}
			m.pass(15 * time.Second)
		}
		for _, p := range m.parties {
			if p.wants != p.in {
				t.Fatalf("%s wants to be in: %v, is: %v", p.user, p.wants, p.in)
			}
			for _, q := range m.parties {
				switch keys, _ := q.set.ParticipantKeys(q.session, p.user, "DEV"); {
				case p == q || !p.in:
				case q.in && !slices.ContainsFunc(keys, func(k MediaKey) bool { return k.Fingerprint == p.current }):
					t.Fatalf("%s lacks the key %s of %s; it has %v", q.user, p.current, p.user, keys)
				case !q.in && q.gets[p.current] && limit == 0:
					t.Fatalf("%s left and knows the key %s of %s, which is in use", q.user, p.current, p.user)
				}
			}
		}
	})
}
