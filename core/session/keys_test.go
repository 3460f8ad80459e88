package session

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"pgregory.net/rapid"
)

// keyWorld is one session among devices that come and go, with everything that they were sent.
type keyWorld struct {
	*world
	t       *rapid.T
	here    map[string]bool
	asked   []wire.Request // for keys to be sent
	made    map[int]time.Duration
	last    map[string]time.Duration // when a device left
	got     map[string]map[int]bool
	current int // our key in use
}

func (w *keyWorld) collect() {
	for _, o := range w.set.Outputs() {
		if e := o.Event; e != nil {
			if k, ok := e.Data.(MediaKey); ok && k.Own {
				if k.InUse {
					w.current = k.Index
				}
				if _, known := w.made[k.Index]; !known {
					w.made[k.Index] = w.now.Boot
				}
			}
			continue
		}
		r := *o.Request
		if r.Kind != wire.EncryptAndSendToDevice {
			continue
		}
		index := int(gjson.GetBytes(r.Content, "keys.index").Int())
		for _, to := range r.Recipients {
			if !w.here[string(to.DeviceID)] {
				w.t.Fatalf("key %d is sent to %s, who is not in the call", index, to.DeviceID)
			}
		}
		w.asked = append(w.asked, r)
	}
}

func (w *keyWorld) handle(in Input) {
	if err := w.set.Handle(w.now, in); err != nil {
		w.t.Fatal(err)
	}
	w.collect()
}

func (w *keyWorld) pass(d time.Duration) {
	end := w.now.Boot + d
	for {
		at, ok := w.set.Deadline()
		if !ok || at > end {
			break
		}
		w.world.pass(max(at-w.now.Boot, 0))
		w.handle(Tick{})
	}
	w.world.pass(end - w.now.Boot)
}

// land answers a request, devices failing by chance.
func (w *keyWorld) land(r wire.Request, fails func() bool) {
	in := Delivered{Request: r.ID, Last: true}
	index := int(gjson.GetBytes(r.Content, "keys.index").Int())
	for _, to := range r.Recipients {
		d := wire.Delivery{Device: to}
		if fails() {
			d.Reason = "no_one_time_key"
		} else {
			device := string(to.DeviceID)
			if left, gone := w.last[device]; gone && !w.here[device] && w.made[index] > left {
				w.t.Fatalf("%s left at %v and was sent key %d, made at %v", device, left, index, w.made[index])
			}
			if w.got[device] == nil {
				w.got[device] = map[int]bool{}
			}
			w.got[device][index] = true
		}
		in.Deliveries = append(in.Deliveries, d)
	}
	w.handle(in)
}

// TestKeysReachWhoIsHere: whatever happens, in the end everybody in the call has the key in use, and
// no device was ever sent a key made after it had left.
func TestKeysReachWhoIsHere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &keyWorld{
			world: newWorld(), t: t, here: map[string]bool{}, made: map[int]time.Duration{},
			last: map[string]time.Duration{}, got: map[string]map[int]bool{},
		}
		w.joined(nil, fmt.Sprintf(`{"foci_preferred":[],"delayed_leave_delay_ms":86400000,"delayed_leave_restart_ms":86000000,"manage_media_keys":true,
			"key_rotation_participant_limit":%d}`, rapid.SampledFrom([]int{0, 0, 4}).Draw(t, "limit")))
		w.made[0] = w.now.Boot
		events := 0
		t.Repeat(map[string]func(*rapid.T){
			"comes or goes": func(t *rapid.T) {
				device := rapid.SampledFrom([]string{"A", "B", "C", "D", "E"}).Draw(t, "device")
				line := "call @a:x " + device
				if w.here[device] {
					line = "empty @a:x " + device
					w.last[device] = w.now.Boot
				} else {
					delete(w.got, device)
				}
				w.here[device] = !w.here[device]
				events++
				w.handle(RoomState{Room: "!r:x", Events: w.parseEvents(nil, "member @a:x join\n"+line)})
			},
			"time passes": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
			},
			"a request lands": func(t *rapid.T) {
				if len(w.asked) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(w.asked)-1).Draw(t, "which")
				r := w.asked[i]
				w.asked = append(w.asked[:i:i], w.asked[i+1:]...)
				chance := rand.New(rand.NewPCG(uint64(r.ID), uint64(events)))
				w.land(r, func() bool { return chance.Float64() < 0.3 })
			},
			"a request is lost": func(t *rapid.T) {
				if len(w.asked) == 0 {
					t.Skip()
				}
				w.asked = w.asked[1:]
			},
		})
		for range 20 { // quiescence
			for len(w.asked) > 0 {
				r := w.asked[0]
				w.asked = w.asked[1:]
				w.land(r, func() bool { return false })
			}
			w.pass(10 * time.Second)
		}
		for device, here := range w.here {
			if here && !w.got[device][w.current] {
				t.Fatalf("%s is here and has not got key %d, which is in use; it has %v", device, w.current, w.got[device])
			}
		}
	})
}
