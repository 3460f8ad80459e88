// Command session measures core/session, and prints a JSON line for each size.
//
//	session joins SIZE...     what a join costs: one member comes at a time, with the event that says
//	                          it is in the room, from an empty call up to the size
//	session keys SIZE...      the same where we are in the call and hand our media key to each
//	session rotation SIZE...  what a new key costs for each device that it goes to, when one leaves
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

const (
	room       = id.RoomID("!room:example.test")
	startTS    = 1_700_000_000_000
	leastJoins = 50_000 // small calls are filled again and again, to be measurable
)

func main() {
	if err := measure(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func measure(args []string) error {
	usage := errors.New("usage: session joins|keys|rotation SIZE [SIZE ...]")
	if len(args) < 2 {
		return usage
	}
	what := map[string]func(size int) (time.Duration, int, error){
		"joins":    func(size int) (time.Duration, int, error) { return joins(size, false) },
		"keys":     func(size int) (time.Duration, int, error) { return joins(size, true) },
		"rotation": rotations,
	}[args[0]]
	for _, arg := range args[1:] {
		size, err := strconv.Atoi(arg)
		if err != nil || what == nil {
			return usage
		}
		var spent time.Duration
		counted := 0
		for counted < leastJoins {
			d, n, err := what(size)
			if err != nil {
				return err
			}
			spent += d
			counted += n
		}
		us := float64(spent.Nanoseconds()) / 1000 / float64(counted)
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"size": size, "value": us}); err != nil {
			return err
		}
	}
	return nil
}

// call is a call with its homeserver and the driver of its keys.
type call struct {
	set     *session.Set
	session uint64
	now     session.Time
	told    int // members
	keys    int // that were sent
}

func newCall(size int) (*call, error) {
	c := &call{
		now: session.Time{Boot: time.Hour, Wall: startTS + int64(size)},
		set: session.NewSet(session.SetConfig{
			UserID: "@me:example.test", DeviceID: "ME", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: func(n int) []byte { return make([]byte, n) },
		}),
	}
	if err := c.handle(session.RoomState{Room: room, Reset: true, Complete: true}); err != nil {
		return nil, err
	}
	var err error
	c.session, err = c.set.Open(c.now, room, session.OpenOptions{})
	c.set.Outputs()
	return c, err
}

// join announces us, with keys that are young for all of the run.
func (c *call) join() error {
	var p session.JoinParams
	if err := json.Unmarshal([]byte(`{"foci_preferred":[],"manage_media_keys":true,"key_rotation_grace_ms":86400000,"use_key_delay_ms":0}`), &p); err != nil {
		return err
	}
	return c.handle(session.Join{Session: c.session, Params: p})
}

func (c *call) handle(in session.Input) error {
	if err := c.set.Handle(c.now, in); err != nil {
		return err
	}
	for out := c.set.Outputs(); len(out) > 0; out = c.set.Outputs() {
		for _, o := range out {
			if o.Event != nil {
				if changed, ok := o.Event.Data.(session.MembershipsChanged); ok {
					c.told += len(changed.Joined)
				}
			} else if err := c.answer(*o.Request); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *call) answer(r wire.Request) error {
	if r.Kind != wire.EncryptAndSendToDevice {
		return c.set.Handle(c.now, session.Response{ID: r.ID, Answer: wire.Answer{EventID: "$me", DelayID: "d"}})
	}
	in := session.Delivered{Request: r.ID, Last: true, Deliveries: make([]wire.Delivery, len(r.Recipients))}
	for i, to := range r.Recipients {
		in.Deliveries[i].Device = to
	}
	c.keys += len(r.Recipients)
	return c.set.Handle(c.now, in)
}

func member(i int, content string) wire.Event {
	user := fmt.Sprintf("@user%d:example.test", i)
	return wire.Event{
		Type: wire.TypeStateMember, StateKey: fmt.Sprintf("_%s_DEV%d_m.call", user, i), Sender: id.UserID(user),
		EventID: id.EventID(fmt.Sprintf("$m%d", i)), OriginServerTS: startTS + int64(i), Content: json.RawMessage(content),
	}
}

func joining(i int) []wire.Event {
	user := fmt.Sprintf("@user%d:example.test", i)
	return []wire.Event{
		{
			Type: "m.room.member", StateKey: user, Sender: id.UserID(user), EventID: id.EventID(fmt.Sprintf("$u%d", i)),
			OriginServerTS: startTS, Content: json.RawMessage(`{"membership":"join"}`),
		},
		member(i, fmt.Sprintf(`{"application":"m.call","call_id":"","scope":"m.room","device_id":"DEV%d",`+
			`"expires":14400000,"focus_active":{"type":"livekit","focus_selection":"oldest_membership"},`+
			`"foci_preferred":[{"type":"livekit","livekit_service_url":"https://lk.example.test","livekit_alias":"!room:example.test"}]}`, i)),
	}
}

// joins brings size members into a call and answers the CPU time of that.
func joins(size int, withKeys bool) (time.Duration, int, error) {
	c, err := newCall(size)
	if err == nil && withKeys {
		err = c.join()
	}
	if err != nil {
		return 0, 0, err
	}
	events := make([][]wire.Event, size)
	for i := range size {
		events[i] = joining(i)
	}
	before := cpu()
	for i := range events {
		if err := c.handle(session.RoomState{Room: room, Events: events[i]}); err != nil {
			return 0, 0, err
		}
	}
	spent := cpu() - before
	sent := 0
	if withKeys {
		sent = size
	}
	if n := len(c.set.Memberships(c.session)); n != size || c.told != size || c.keys != sent {
		return 0, 0, fmt.Errorf("%d members joined, %d are there, %d were told and %d were sent a key", size, n, c.told, c.keys)
	}
	return spent, size, nil
}

// rotations has one member after the other leave a call of a size and join it again: CPU time and the
// number of keys that were sent.
func rotations(size int) (time.Duration, int, error) {
	c, err := newCall(size)
	if err == nil {
		err = c.join()
	}
	for i := 0; i < size && err == nil; i++ {
		err = c.handle(session.RoomState{Room: room, Events: joining(i)})
	}
	if err != nil {
		return 0, 0, err
	}
	c.keys = 0
	rounds := max(1, 10_000/size)
	before := cpu()
	for i := range rounds {
		for _, events := range [][]wire.Event{{member(i%size, `{}`)}, joining(i % size)} {
			if err := c.handle(session.RoomState{Room: room, Events: events}); err != nil {
				return 0, 0, err
			}
		}
	}
	spent := cpu() - before
	if want := rounds * size; c.keys != want {
		return 0, 0, fmt.Errorf("%d keys were sent, expected %d", c.keys, want)
	}
	return spent, c.keys, nil
}

// cpu is the CPU time of this process, collection of garbage included.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
