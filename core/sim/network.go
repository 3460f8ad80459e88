package sim

import (
	"time"

	"libmatrixrtc/core/wire"
)

var refused = wire.Error{Network: true, Message: "connection refused"}

// exchange carries a request to the server and the answer back. What is lost on the way shows as an
// error after a moment, or as silence until the sender's own timeout. answer may be called more
// than once, and counts the first time.
func (w *world) exchange(c *client, timeout time.Duration, serve func(done func(wire.Answer)), answer func(wire.Answer)) {
	n := w.plan.Network
	if w.now >= faultsEnd {
		n.Loss, n.Twice, n.Late = 0, 0, 0
	}
	silent := func() bool { return w.chance(0.5) }
	lost := func() {
		if !silent() {
			w.after(n.Latency, func() { answer(wire.Answer{Err: &wire.Error{Network: true, Message: "connection reset"}}) })
		}
	}
	w.after(timeout, func() { answer(wire.Answer{Err: &wire.Error{Network: true, Message: "timeout"}}) })
	if c.offlineUntil > w.now || w.chance(n.Loss) {
		lost()
		return
	}
	way := func() time.Duration { return w.between(n.Latency/2, n.Latency*2) }
	there := way()
	if w.chance(n.Late) {
		there += timeout + w.between(0, 5*time.Second)
	}
	back := func(a wire.Answer) {
		if w.chance(n.Loss) || c.offlineUntil > w.now {
			lost()
			return
		}
		w.after(way(), func() { answer(a) })
	}
	arrive := func(done func(wire.Answer)) func() {
		return func() {
			if w.server.down {
				done(wire.Answer{Err: &refused})
				return
			}
			w.after(w.server.slowness(), func() { serve(done) })
		}
	}
	w.after(there, arrive(back))
	if w.chance(n.Twice) {
		w.after(there+w.between(0, time.Second), arrive(func(wire.Answer) {}))
	}
}
