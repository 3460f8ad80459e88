package olm

import (
	"fmt"
	"testing"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// What one device costs of a message that goes to many: at first with a one-time key that is claimed,
// then within the session.
//
//	go test -tags goolm ./core/client/olm -run xxx -bench FanOut
func BenchmarkFanOut(b *testing.B) {
	perDevice := func(b *testing.B, devices int) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/1000/float64(b.N*devices), "us/device")
	}
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("again/%d", n), func(b *testing.B) {
			f := newFake(b)
			a := f.party("@a:x", "A")
			everybody := f.strangers("again", n)
			a.greet(b, everybody)
			for b.Loop() {
				a.greet(b, everybody)
			}
			perDevice(b, n)
		})
	}
	b.Run("first/100", func(b *testing.B) {
		f := newFake(b)
		a := f.party("@a:x", "A")
		round := 0
		for b.Loop() {
			b.StopTimer()
			round++
			everybody := f.strangers(fmt.Sprint(round), 100)
			b.StartTimer()
			a.greet(b, everybody)
		}
		perDevice(b, 100)
	})
}

func (f *fake) strangers(name string, n int) (devices []wire.Device) {
	for i := range n {
		d := wire.Device{UserID: id.UserID(fmt.Sprintf("@%s%d:s", name, i)), DeviceID: "D"}
		f.stranger(d.UserID, d.DeviceID, 1)
		devices = append(devices, d)
	}
	return devices
}

// greet sends what a media key looks like.
func (p *party) greet(b *testing.B, to []wire.Device) {
	key := wire.BuildKeyToDevice(wire.KeyMessage{
		Room: "!r:x", SlotID: "m.call#ROOM", ClaimedDevice: "A", MemberID: "@a:x:A", SentTS: 1,
		Keys: []wire.IndexedKey{{Index: 0, Key: make([]byte, wire.KeyLength)}},
	})
	reached := 0
	p.Send(p.ctx, wire.TypeEncryptionKeys, key, to, func(deliveries []wire.Delivery) {
		for _, d := range deliveries {
			if d.Reason == "" {
				reached++
			}
		}
	})
	if reached != len(to) {
		b.Fatalf("%d of %d devices were reached", reached, len(to))
	}
	clear(p.f.inbox)
}
