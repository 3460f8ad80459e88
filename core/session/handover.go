package session

import (
	"encoding/json"
	"fmt"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"
)

// Handing our delayed leave over to the authorisation service (MSC4195), which hears from the SFU at
// once when our connection there is gone, and keeps the leave alive until then.
//
//	our switch, 10 s    ──────────────────────────────────────┐ cancelled
//	connected to the SFU  │                                   │
//	another leave, 1 h    └─ scheduled ── service takes it ───┴─ is the switch ─── ...
//	                                      ├──── overlap ──────┤
//
// Both are armed for a while, since the service must first see us on the SFU. When our connection
// ends without our leaving, we arm a switch of our own again and only then cancel the other.
type handover struct {
	wanted  bool
	refused bool // until the next connection

	id     string        // of the leave to be handed over, a secret; "" none
	asked  time.Duration // Boot: when it was scheduled
	taken  time.Duration // Boot: when the service took it; 0: not yet
	held   string        // what the service may send, until it is gone: before the overlap and after the end
	former string        // a switch that is cancelled once another is armed

	arming, asking task
}

const (
	delegatedDelay  = time.Hour
	handoverOverlap = 10 * time.Second

	delegatedRestart = time.Minute // by us as well: a server that has lost it must not go unnoticed
)

func (o *own) delegateLeave(wanted bool) error {
	if !o.joined {
		return &StateError{"not joined"}
	}
	o.wanted().DelegateLeave = wanted
	if o.next == nil {
		o.handover.wanted, o.handover.refused = wanted, false
		if !wanted {
			o.takeBack()
		}
	}
	return nil
}

// handOver does what is next.
func (o *own) handOver(now Time) {
	h := &o.handover
	x := o.sfus.byName[o.sfus.publish]
	if !h.wanted || h.refused || x == nil || !x.connected || o.sw.delegated || o.sw.id == "" {
		return
	}
	switch {
	case x.distrust != "":
		o.keepOurs("the SFU is not trusted: " + x.distrust)
	case h.id == "":
		o.armAnother(now)
	case h.taken == 0:
		o.offerTo(now, x)
	case now.Boot < h.taken+handoverOverlap:
		o.wake(h.taken + handoverOverlap)
	default:
		o.discards = append(o.discards, o.sw.id)
		o.sw.id, o.sw.delay, o.sw.restartNow = h.id, delegatedDelay, false
		o.sw.confirmedAt, o.sw.dueAt = h.asked, h.asked+delegatedDelay
		h.id, h.taken = "", 0
		o.sw.orphan, o.sw.sweepAt = true, 0 // one that stays for an hour would remove us then
		o.restarting = task{}
		o.sw.delegated = true
		o.tellDelayID()
		o.wake(now.Boot)
	}
}

// armAnother schedules the leave that is to be handed over.
func (o *own) armAnother(now Time) {
	h := &o.handover
	if most := o.set.delayed.MaxDelay; most > 0 && most < delegatedDelay {
		o.keepOurs(fmt.Sprintf("the homeserver delays events by at most %v, and an hour is needed", most))
		return
	}
	o.ask(now, &h.arming, wire.Request{
		Kind: wire.ScheduleDelayed, Type: wire.TypeStateMember, StateKey: o.stateKey,
		Content: json.RawMessage("{}"), Delay: delegatedDelay,
	}, func(now Time, a wire.Answer, late bool) {
		switch e := a.Err; {
		case e == nil && (late || o.phase != present || h.id != "" || o.sw.delegated || !h.wanted):
			o.discards = append(o.discards, a.DelayID)
		case e == nil:
			h.id, h.asked, h.taken = a.DelayID, h.arming.askedAt, 0
		case late || o.phase != present:
			o.mayBeArmed(now, e)
		case e.Network || e.Status == 429 || e.Status >= 500:
			o.mayBeArmed(now, e)
			o.retryLater(now, &h.arming, e, retryAtMost)
		case o.dead(now, e):
		default:
			o.keepOurs("the homeserver refuses another delayed leave: " + e.Message)
		}
	})
}

// offerTo asks the service to take it.
func (o *own) offerTo(now Time, x *sfu) {
	h := &o.handover
	by := o.sfus.generation(x)
	ask, ok := o.sfus.request(now, x, by)
	if !ok {
		return
	}
	ask.DelayID, ask.Delay = h.id, delegatedDelay
	ready := by.DelegationRequest(ask)
	ready.Public = !o.set.mayBePrivate(o, x.name)
	id := h.id
	request := wire.Request{Kind: wire.DelegateLeave, Ready: &ready, Anonymous: by.NeedsOpenID()}
	o.ask(now, &h.asking, request, func(now Time, a wire.Answer, late bool) {
		if o.phase != present || h.id != id || h.taken != 0 {
			return // it is cancelled, whoever has it
		}
		switch e := a.Err; {
		case e == nil:
			h.taken = now.Boot
			o.setHeld(id)
			if by == livekit.State {
				o.sfus.taken(now, x, by, a.Body)
			}
		case late:
		case e.Network || e.Status == 429 || e.Status >= 500:
			o.retryLater(now, &h.asking, e, retryAtMost)
		case e.Status == 401:
			delete(o.set.proofs, x.name)
			o.retryLater(now, &h.asking, e, retryAtMost)
		default:
			o.keepOurs("the authorisation service refuses to take it: " + o.sfus.redacted(x, e.Message))
		}
	})
}

// keepOurs gives up handing over until the next connection.
func (o *own) keepOurs(why string) {
	o.handover.refused = true
	o.dropOffer()
	o.tell(EventLeaveDelegated, LeaveDelegated{false, why})
}

// takeBack makes the switch ours again: the SFU no longer knows whether we are here.
func (o *own) takeBack() {
	o.handover.refused = false
	o.dropOffer()
	if !o.sw.delegated {
		return
	}
	o.retire()
	o.handover.former = o.sw.id
	o.dropSwitch()
}

// retire cancels the switch that another has replaced.
func (o *own) retire() {
	if former := o.handover.former; former != "" {
		o.handover.former = ""
		o.discards = append(o.discards, former)
	}
}

func (o *own) dropOffer() {
	h := &o.handover
	if h.id != "" {
		o.discards = append(o.discards, h.id)
		h.id, h.taken = "", 0
	}
}

// abortHandover ends what is under way: our membership is, or will be, no more.
func (o *own) abortHandover() {
	o.dropOffer()
	o.retire()
	o.handover.refused = false
}

func (o *own) setHeld(id string) {
	held := o.handover.held != ""
	o.handover.held = id
	if held != (id != "") {
		o.tell(EventLeaveDelegated, LeaveDelegated{Delegated: id != ""})
	}
}

// released notes that a delayed event is no longer there.
func (o *own) released(id string) {
	if id == o.handover.held {
		o.setHeld("")
	}
}
