package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Our own membership, as a machine that reconciles what the host wants with what the server has.
//
//	        Join                 list answered,        leave scheduled
//	       (room known)          stale leaves gone     (or cannot be)
//	idle ───────────▶ clearing ─────────────▶ arming ─────────────▶ announcing
//	 ▲                                          ▲                        │ membership sent
//	 │ the server has our leave                 │                        ▼
//	 ├──────────── leaving ◀── Leave ───────────┼──────────────────── present
//	 │                                          │                        │
//	 │ dead token, 403                          └── lost: our delayed leave fired, somebody
//	 └── from anywhere                              cleared or overwrote our state ──┘
//
// Beside the phase stands the switch (the delayed leave of MSC4140), kept alive from arming on:
//
//	none ──schedule──▶ armed ──restart every few seconds──▶ armed
//	 ▲                   │ 404 before its due time: cancelled or lost by the server: schedule
//	 └───────────────────┤     another, keep joined-since, refresh the membership
//	                     └ 404 after it: it has fired: lost
//
// step looks at all of this and asks for whatever is missing. It runs after every input, is
// idempotent, and notes in wakeAt when it wants to run again. Each kind of request is a task of
// its own, so a membership write that hangs delays neither the restarts nor the leave.
type own struct {
	set     *Set
	session uint64
	room    *room
	slot    *slot

	params JoinParams
	settings
	stateKey string
	next     *JoinParams // a Join that waits for the present leave to finish

	phase  phase
	wakeAt time.Duration
	timer  timer
	status Status
	joined bool // what the host wants
	closed bool // the session is gone once it has left

	sw         delayedLeave
	membership written
	lost       bool // since the last announcement
	losses     int  // in a row; each one delays the next rejoin
	lostAt     time.Duration
	probably   bool
	stats      Statistics

	roomBy   time.Duration // Boot: a room that is not known by then is missed, though a sync is still out
	waitsFor string        // why the room is not known yet, as it was told
	stale    []string      // leaves of an earlier life, to be cancelled before we join
	listed   bool
	discards []string // switches that we no longer want
	leave    leaving

	keys     ownKeys
	rings    keyrings
	sfus     sfus
	handover handover

	listing, clearingTask, scheduling, restarting, writing, leavingTask, discarding task
}

type phase string

const (
	idle       phase = "idle"
	clearing   phase = "clearing"
	arming     phase = "arming"
	announcing phase = "announcing"
	present    phase = "present"
	leavingNow phase = "leaving"
)

// delayedLeave is the dead man's switch.
type delayedLeave struct {
	id          string
	delay       time.Duration
	dueAt       time.Duration // Boot: not before this can it have fired
	confirmedAt time.Duration // Boot: the server held it at this moment
	restartNow  bool          // wanted at once: after the membership, before a refresh
	most        time.Duration // the longest delay that the server takes, 0: unknown
	unsupported bool          // the server has no delayed events
	without     bool          // go on without one for now; scheduling is tried again
	orphan      bool          // another may be armed as well, of an earlier life or whose id we never learnt,
	lateTill    time.Duration // Boot: until when a request that went unanswered may arm one
	sweepAt     time.Duration // Boot: when to look for it
	delegated   bool          // the authorisation service keeps it alive
}

// written is our membership event as far as we know it.
type written struct {
	announced bool
	eventID   id.EventID
	joinedTS  int64
	at        time.Duration // Boot, of the last write that succeeded
	askedTS   int64         // server time when that was asked for
	expiresTS int64
	echoed    bool // the sync has shown it
	dirty     bool // what we would write differs from what stands there
	refresh   bool // as dirty, but the switch must be restarted first
	uncertain bool // a write went unanswered and may yet stand

	content     json.RawMessage // of the last write
	corrections int             // in a row

	again   bool          // an earlier membership of ours may yet be shown
	since   int64         // created_ts of the first attempt of this announcement, where it has one
	before  id.EventID    // our event before the last loss
	seen    []id.EventID  // own-key events seen while a write was in flight
	current ownState      // the own-key event that the sync showed last
	gone    bool          // others have seen us leave since we joined: our last write brought us back
	foreign time.Duration // Boot: when current, not ours, counts as a loss unless our echo comes; 0: no
}

// ownState is what stands under our state key.
type ownState struct {
	known    bool
	eventID  id.EventID
	sender   id.UserID
	originTS int64

	ours                bool // a valid membership of this device, sent by us
	joinedTS, expiresTS int64
	content             json.RawMessage
}

// leaving is how far our leave has come.
type leaving struct {
	reason    string
	bySwitch  bool // the delayed leave is to be sent
	byState   bool // an empty state event is to be sent
	anonymous bool // our token is dead: only the switch can be sent, without a token
	sent      bool
}

const (
	refreshAtMost    = time.Hour
	retryAtMost      = 30 * time.Second
	requestTimeout   = 20 * time.Second
	echoWithin       = 10 * time.Second
	lateArrival      = 30 * time.Second // at a server, of a request that we gave up
	stableAfter      = time.Minute
	roomWithin       = 3 * time.Second // of the join, what we were let into just before is in a sync
	clearingPatience = 3               // failures of the look for stale leaves before we join without it
)

// task is one kind of request: at most one that counts is in flight, with a backoff of its own.
type task struct {
	inflight  uint64
	askedAt   time.Duration
	timeoutAt time.Duration
	notBefore time.Duration
	failures  int  // in a row: network errors, 5xx, other refusals
	limits    int  // in a row: 429
	network   bool // the pause is for a network error
}

func (t *task) failed() int { return t.failures + t.limits }

// ask is Set.ask for this session, and has step run when to look again. It says whether the request
// went out.
func (o *own) ask(now Time, t *task, r wire.Request, done func(now Time, a wire.Answer, late bool)) bool {
	again, asked := o.set.ask(now, o, t, r, done)
	o.wake(again)
	return asked
}

// retryLater makes the task pause after a failure: as long as the server says, or longer each
// time, with full jitter, up to limit. Once per streak the host is told.
func (o *own) retryLater(now Time, t *task, e *wire.Error, limit time.Duration) {
	o.stats.Failures++
	counter, most := &t.failures, o.maxFailures
	if e.Status == 429 {
		counter, most = &t.limits, o.maxLimits
	}
	*counter++
	if *counter == most {
		o.trouble(e, true)
	}
	pause := o.retry << min(t.failed()-1, 16)
	pause = min(pause, limit)
	pause = max(time.Duration(o.set.random()*float64(pause)), min(o.retry, limit)/4)
	if e.RetryAfter > 0 {
		pause = min(e.RetryAfter, time.Hour) + time.Duration(o.set.random()*float64(o.retry))
	}
	t.notBefore, t.network = now.Boot+pause, e.Network
	o.wake(t.notBefore)
}

func (o *own) tasks() []*task {
	return []*task{&o.listing, &o.clearingTask, &o.scheduling, &o.restarting, &o.writing, &o.leavingTask, &o.discarding, &o.handover.arming, &o.handover.asking}
}

func (o *own) wake(at time.Duration) { o.wakeAt = min(o.wakeAt, at) }

// step asks for whatever is missing.
func (o *own) step(now Time) {
	o.wakeAt = never
	o.discard(now)
	switch o.phase {
	case idle:
		o.noticeForeign(now)
	case clearing:
		o.clear(now)
	case arming:
		o.arm(now)
	case announcing:
		o.keepSwitch(now)
		if o.phase == announcing {
			o.write(now)
		}
	case present:
		o.noticeForeign(now)
		if o.phase == present {
			o.keepSwitch(now)
		}
		if o.phase == present {
			o.refresh(now)
			o.sweep(now)
			o.handOver(now)
		}
	case leavingNow:
		o.goAway(now)
	}
	o.judge(now)
	o.set.managesKeys = o.set.managesKeys || !o.closed && o.managesKeys()
	o.keys.step(now)
	o.rings.step(now)
	o.sfus.step(now)
	o.set.schedule(o)
}

func (o *own) enter(now Time, p phase) {
	o.phase = p
	o.wake(now.Boot)
}

// --- commands

func (o *own) start(now Time, p JoinParams) error {
	s, err := p.settings(string(o.room.id))
	if err != nil {
		return err
	}
	if o.joined {
		return &StateError{"already joined: leave first"}
	}
	o.setJoined(true)
	if o.phase != idle {
		o.next = &p
		return nil
	}
	o.begin(now, p, s)
	return nil
}

func (o *own) begin(now Time, p JoinParams, s settings) {
	o.params, o.settings = p, s
	most, unsupported := o.sw.most, o.sw.unsupported
	o.sw = delayedLeave{most: most, unsupported: unsupported}
	o.membership = written{current: o.membership.current, again: o.membership.again || o.membership.content != nil}
	o.leave = leaving{}
	o.handover = handover{wanted: p.DelegateLeave}
	o.lost, o.losses, o.listed, o.stale, o.waitsFor = false, 0, false, nil, ""
	for _, t := range o.tasks() {
		if t != &o.discarding {
			*t = task{}
		}
	}
	o.roomBy = now.Boot + roomWithin
	o.setStatus(Connecting)
	o.enter(now, clearing)
}

func (o *own) stop(now Time, reason string) error {
	if !o.joined {
		return &StateError{"not joined"}
	}
	o.setJoined(false)
	if o.next != nil {
		o.next = nil
		return nil
	}
	o.startLeaving(now, reason)
	return nil
}

func (o *own) updateIntent(now Time, intent string) error {
	if err := checkIntent("/intent", intent); err != nil {
		return err
	}
	if !o.joined {
		return &StateError{"not joined"}
	}
	p := o.wanted()
	if p.CallIntent != intent {
		p.CallIntent = intent
		o.membership.dirty = true
	}
	return nil
}

func (o *own) updateApplicationData(now Time, data map[string]json.RawMessage) error {
	if !o.joined {
		return &StateError{"not joined"}
	}
	p := *o.wanted()
	p.ApplicationData = data
	transports, _, err := p.foci(string(o.room.id))
	if err == nil {
		err = p.checkData("", transports)
	}
	if err != nil {
		return err
	}
	*o.wanted() = p
	o.membership.dirty = true
	return nil
}

func (o *own) wanted() *JoinParams {
	if o.next != nil {
		return o.next
	}
	return &o.params
}

// --- clearing: what an earlier life of this device left behind

func (o *own) clear(now Time) {
	if !o.room.known {
		if o.set.synced && o.waitsFor == "" {
			if now.Boot >= o.roomBy {
				o.noRoom(now, Synced{})
			} else {
				o.wake(o.roomBy)
			}
		}
		return
	}
	if o.memberID == "" {
		o.memberID = string(o.set.cfg.UserID) + ":" + string(o.set.cfg.DeviceID)
	}
	o.stateKey = wire.StateMemberKey(o.set.cfg.UserID, o.set.cfg.DeviceID, o.slot.id, o.room.version)
	if o.offered && !o.takeOffer(now) {
		return
	}
	if known, wait := o.set.maxDelay(now); wait > 0 {
		o.wake(wait)
		if !known {
			return
		}
	}
	if o.sw.unsupported {
		o.enter(now, arming)
		return
	}
	if !o.listed {
		o.ask(now, &o.listing, wire.Request{Kind: wire.ListDelayed}, func(now Time, a wire.Answer, late bool) {
			switch {
			case late || o.phase != clearing:
			case a.Err == nil:
				o.listed, o.stale = true, o.ours(a.Delayed)
			case a.Err.Unsupported || a.Err.Status == 403 || a.Err.Status == 404:
				o.listed = true // what cannot be listed cannot be cleared
			case o.dead(now, a.Err):
			default:
				o.retryLater(now, &o.listing, a.Err, retryAtMost)
				if o.listed = !a.Err.Network && o.listing.failures >= clearingPatience; o.listed {
					o.sw.orphan = true // looked for again once we are in
				}
			}
		})
		return
	}
	if len(o.stale) == 0 {
		o.enter(now, arming)
		o.arm(now)
		return
	}
	stale := o.stale[0]
	o.ask(now, &o.clearingTask, wire.Request{Kind: wire.CancelDelayed, DelayID: stale}, func(now Time, a wire.Answer, late bool) {
		switch {
		case late || o.phase != clearing || len(o.stale) == 0 || o.stale[0] != stale:
		case a.Err == nil || gone(a.Err):
			o.stale = o.stale[1:]
		case o.dead(now, a.Err):
		default:
			o.retryLater(now, &o.clearingTask, a.Err, retryAtMost)
			if !a.Err.Network && o.clearingTask.failures >= clearingPatience {
				o.stale = o.stale[1:]
				o.sw.orphan = true
			}
		}
	})
}

// noRoom tells the host, once for each reason, why we still wait for the room.
func (o *own) noRoom(now Time, in Synced) {
	why := in.Err
	if why == nil {
		why = &wire.Error{Message: "this account is not in the room: its call is joined as soon as it is"}
	}
	if kind := fmt.Sprint(why.Network, why.Status, why.Code); in.Final || kind != o.waitsFor {
		o.waitsFor = kind
		o.trouble(why, !in.Final)
	}
	if in.Final {
		o.end(now, false, "no_sync")
	}
}

// takeOffer makes the first transport that the homeserver offers ours.
func (o *own) takeOffer(now Time) bool {
	offers := &o.set.offers
	offers.want(now, offersFresh)
	if !offers.known {
		return false
	}
	t, err := offers.ownTransport(string(o.room.id))
	if err != nil {
		o.trouble(&wire.Error{Message: err.Error()}, false)
		o.end(now, true, "no_transport")
		return false
	}
	o.transports, o.sfu, o.offered = []json.RawMessage{t}, livekit.SFU(t), false
	return true
}

// --- the switch

func (o *own) arm(now Time) {
	if pause := o.rejoinPause(); now.Boot < pause {
		o.wake(pause)
		return
	}
	o.keepSwitch(now)
	if o.phase != arming {
		return
	}
	alive := o.sw.id != "" && !o.sw.restartNow
	if alive || o.sw.unsupported || o.sw.without {
		o.enter(now, announcing)
		o.write(now)
	}
}

// keepSwitch schedules the delayed leave if there is none and pushes it back when it is time.
func (o *own) keepSwitch(now Time) {
	switch {
	case o.sw.unsupported:
	case o.sw.id == "":
		o.schedule(now)
	default:
		o.restart(now)
	}
}

func (o *own) schedule(now Time) {
	delay := o.delay
	for _, most := range []time.Duration{o.sw.most, o.set.delayed.MaxDelay} {
		if most > 0 {
			delay = min(delay, most)
		}
	}
	o.ask(now, &o.scheduling, wire.Request{
		Kind: wire.ScheduleDelayed, Type: wire.TypeStateMember, StateKey: o.stateKey,
		Content: json.RawMessage("{}"), Delay: delay,
	}, func(now Time, a wire.Answer, late bool) {
		if a.Err == nil {
			if late || o.sw.id != "" || (o.phase != arming && o.phase != announcing && o.phase != present) {
				o.discards = append(o.discards, a.DelayID)
				return
			}
			// A switch lost after our last write was lost to it, as older servers have it; to write again
			// would lose this one too.
			again := o.handover.former == "" && o.phase == present && o.membership.at <= o.sw.confirmedAt
			o.sw.id, o.sw.delay, o.sw.without, o.sw.restartNow = a.DelayID, delay, false, false
			o.sw.confirmedAt, o.sw.dueAt = o.scheduling.askedAt, o.scheduling.askedAt+delay
			o.restarting = task{}
			o.tellDelayID()
			o.retire()
			if again {
				o.membership.dirty = true
			}
			return
		}
		o.mayBeArmed(now, a.Err)
		if late || o.phase == idle || o.phase == leavingNow {
			return
		}
		switch e := a.Err; {
		case e.DelayTooLong:
			o.sw.most = e.MaxDelay
			if e.MaxDelay <= 0 || e.MaxDelay >= delay {
				o.sw.most = delay / 2
			}
			if o.sw.most < time.Second {
				o.sw.unsupported = true
				o.trouble(e, true)
			}
		case e.Unsupported || e.Status == 403: // not there, or switched off
			o.sw.unsupported = true
		case o.dead(now, e):
		default:
			limit := retryAtMost
			if e.Status == 429 && e.RetryAfter > requestTimeout {
				// All that this user may have scheduled is in use (MSC4140: max_scheduled): the
				// pause named may be hours. Being seen matters more than the switch.
				o.trouble(e, true)
				e = &wire.Error{Status: e.Status, Code: e.Code, Message: e.Message, RetryAfter: retryAtMost}
				o.sw.without = true
			} else if !e.Network && o.scheduling.failed() >= clearingPatience {
				o.sw.without = true
			}
			o.retryLater(now, &o.scheduling, e, limit)
		}
	})
}

func (o *own) restart(now Time) {
	every := min(o.settings.restart, o.sw.delay*2/5)
	if o.sw.delegated {
		every = delegatedRestart
	}
	if at := o.sw.confirmedAt + every; now.Boot < at && !o.sw.restartNow {
		o.wake(at)
		return
	}
	id := o.sw.id
	var askedAt time.Duration
	o.ask(now, &o.restarting, wire.Request{Kind: wire.RestartDelayed, DelayID: id, Timeout: o.restartTimeout}, func(now Time, a wire.Answer, late bool) {
		if o.sw.id != id {
			return
		}
		switch e := a.Err; {
		case e == nil:
			o.stats.Restarts++
			if askedAt >= o.sw.confirmedAt {
				o.sw.confirmedAt, o.sw.dueAt, o.sw.restartNow = askedAt, askedAt+o.sw.delay, false
			}
		case o.phase == leavingNow || o.phase == idle:
		case gone(e):
			fired := now.Boot >= o.sw.dueAt // what the service sends before that is shown by the sync
			o.dropSwitch()
			o.released(id)
			if fired && o.membership.announced {
				o.lose(now, "delayed_leave_fired")
			} else if o.phase == arming {
				o.enter(now, arming)
			}
		case late:
		case e.Unsupported:
			o.dropSwitch()
			o.sw.unsupported = true
		case o.dead(now, e):
		case e.Network && now.Boot >= askedAt+o.restartTimeout:
			o.stats.Failures++
			o.restarting.failures++
			if o.restarting.failures == o.maxFailures {
				o.trouble(e, true)
			}
			o.wake(now.Boot) // unanswered for so long: once more, at once
		default:
			limit := retryAtMost
			if now.Boot < o.sw.dueAt {
				limit = min(every, retryAtMost)
			}
			o.retryLater(now, &o.restarting, e, limit)
		}
	})
	askedAt = o.restarting.askedAt
}

func (o *own) dropSwitch() {
	if o.sw.id != "" {
		o.sw.id = ""
		o.sw.restartNow = false
		o.sw.delegated = false
		o.tellDelayID()
	}
}

// mayBeArmed notes that a request to schedule a switch may yet have armed one.
func (o *own) mayBeArmed(now Time, e *wire.Error) {
	if uncertain(e) {
		o.sw.orphan, o.sw.sweepAt, o.sw.lateTill = true, 0, now.Boot+lateArrival
	}
}

// sweep finds the other switches that may be armed, before they fire.
func (o *own) sweep(now Time) {
	if !o.sw.orphan || o.sw.id == "" {
		return
	}
	if now.Boot < o.sw.sweepAt {
		o.wake(o.sw.sweepAt)
		return
	}
	// The list may have what is being armed, whose id we do not know yet.
	arming := func() bool { return o.scheduling.inflight != 0 || o.handover.arming.inflight != 0 }
	if arming() {
		return
	}
	o.ask(now, &o.listing, wire.Request{Kind: wire.ListDelayed}, func(now Time, a wire.Answer, late bool) {
		switch {
		case late || o.phase != present:
		case a.Err == nil && arming(): // once more, when that is answered
		case a.Err == nil:
			o.sw.orphan, o.sw.sweepAt = now.Boot < o.sw.lateTill, o.sw.lateTill
			for _, id := range o.ours(a.Delayed) {
				if id != o.sw.id && id != o.handover.id {
					o.discards = append(o.discards, id)
				}
			}
		case a.Err.Unsupported || a.Err.Status == 403 || a.Err.Status == 404:
			o.sw.orphan = false
		default:
			o.retryLater(now, &o.listing, a.Err, retryAtMost)
		}
	})
}

// ours picks the leaves of our own state key.
func (o *own) ours(list []wire.DelayedEvent) (ids []string) {
	for _, d := range list {
		if d.Room == o.room.id && d.Type == wire.TypeStateMember && d.StateKey == o.stateKey {
			ids = append(ids, d.DelayID)
		}
	}
	return ids
}

// discard cancels switches that nobody wants any more, in any phase.
func (o *own) discard(now Time) {
	if len(o.discards) == 0 {
		return
	}
	id := o.discards[0]
	o.ask(now, &o.discarding, wire.Request{Kind: wire.CancelDelayed, DelayID: id}, func(now Time, a wire.Answer, late bool) {
		if late || len(o.discards) == 0 || o.discards[0] != id {
			return
		}
		switch e := a.Err; {
		case e == nil || gone(e) || e.Unsupported || e.Status == 401 || e.Status == 403:
			o.discards = o.discards[1:]
			o.discarding = task{}
			o.released(id)
		default:
			o.retryLater(now, &o.discarding, e, retryAtMost)
		}
	})
}

// --- the membership

func (o *own) write(now Time) {
	m := &o.membership
	first := !m.announced
	server := o.set.serverTime(now)
	b := wire.StateMember{
		DeviceID:        o.set.cfg.DeviceID,
		MemberID:        o.memberID,
		SlotID:          o.slot.id,
		Intent:          o.params.CallIntent,
		ApplicationData: o.params.ApplicationData,
		FocusSelection:  o.focusSelection,
		Transports:      o.transports,
		ExpiresMS:       o.expiry.Milliseconds(),
	}
	switch {
	case !first:
		b.CreatedTS = m.joinedTS
		b.ExpiresMS += max(server-m.joinedTS, 0)
	case m.again || m.current.ours:
		// Written, so that the content differs from what stood there, in this life or an earlier
		// one: servers drop a write that changes nothing, and peers overlook a leave and a rejoin
		// with equal content.
		b.CreatedTS = server
		if m.since == 0 {
			m.since = server
		}
	}
	content := wire.BuildStateMember(b)
	asked := o.ask(now, &o.writing, wire.Request{
		Kind: wire.SendState, Type: wire.TypeStateMember, StateKey: o.stateKey, Content: content,
	}, func(now Time, a wire.Answer, late bool) {
		if a.Err != nil {
			if uncertain(a.Err) {
				m.uncertain = true
			}
			if late || o.phase != announcing && o.phase != present || m.echoed && sameJSON(m.current.content, content) {
				return
			}
			m.dirty = true
			switch e := a.Err; {
			case o.dead(now, e):
			case e.Status == 403:
				o.refused(now, e)
			default:
				o.retryLater(now, &o.writing, e, retryAtMost)
			}
			return
		}
		if late || o.phase != announcing && o.phase != present {
			m.uncertain = true // it stands, and we did not count on it
			return
		}
		m.eventID, m.at, m.askedTS, m.uncertain = a.EventID, now.Boot, server, false
		// A server answers a write that changes nothing with the event that stands there already.
		m.echoed = a.EventID == m.current.eventID || a.EventID == m.before || contains(m.seen, a.EventID)
		if first {
			m.joinedTS = max(b.CreatedTS, server) // the echo tells better
		}
		m.expiresTS = m.joinedTS + b.ExpiresMS
		o.sw.restartNow = o.sw.id != "" // some servers cancel it when the state changes
		o.present(now)
		if m.echoed || len(m.seen) > 0 {
			o.noticeState(now)
		}
	})
	if asked {
		m.dirty, m.refresh, m.seen, m.content = false, false, nil, content
	}
}

// present is reached when the server has our membership.
func (o *own) present(now Time) {
	if o.phase != announcing {
		return
	}
	o.membership.announced = true
	o.sw.restartNow = o.sw.id != ""
	o.setStatus(Connected)
	if o.lost {
		o.lost = false
		o.stats.Rejoins++
		o.keys.giveAgain()
		o.tell(EventRejoined, Rejoined{})
	}
	o.enter(now, present)
}

// refresh writes our membership again when it is about to expire or has changed.
func (o *own) refresh(now Time) {
	m := &o.membership
	if m.announced && now.Boot-m.at > stableAfter {
		o.losses, m.corrections = 0, 0
	}
	due := min(m.at+refreshAtMost, now.Boot+ms(m.expiresTS-o.set.serverTime(now))) - o.headroom
	if now.Boot >= due && !m.refresh && o.writing.inflight == 0 {
		m.refresh, m.dirty = true, true
		o.sw.restartNow = o.sw.id != ""
		o.keepSwitch(now)
		if o.phase != present {
			return
		}
	}
	if !m.dirty && o.writing.inflight == 0 {
		o.wake(due)
		return
	}
	armed := o.sw.id != "" && now.Boot < o.sw.dueAt && !(m.refresh && o.sw.restartNow)
	if armed || o.sw.unsupported || o.sw.without || o.writing.inflight != 0 {
		o.write(now)
	}
}

// refused ends what the server forbids.
func (o *own) refused(now Time, e *wire.Error) {
	if o.membership.announced {
		o.trouble(e, false)
		o.setJoined(false)
		o.startLeaving(now, "forbidden")
		return
	}
	if o.sw.id != "" {
		o.discards = append(o.discards, o.sw.id)
		o.dropSwitch()
	}
	o.trouble(e, false)
	o.end(now, false, "forbidden")
}

// lose is called when the server no longer has our membership. We go back in.
func (o *own) lose(now Time, reason string) {
	o.abortHandover()
	if x := o.sfus.byName[o.sfus.publish]; x != nil && o.sw.delegated {
		x.connected = false // it must be told again: the service says that we are not on the SFU
	}
	m := &o.membership
	*m = written{current: m.current, again: true, before: m.eventID, uncertain: m.uncertain || o.writing.inflight != 0}
	o.writing = task{}
	o.lost = true
	o.losses++
	o.lostAt = now.Boot
	o.sw.restartNow = o.sw.id != "" // it may be gone as well
	o.setStatus(Connecting)
	o.tell(EventMembershipLost, MembershipLost{Reason: reason})
	o.enter(now, arming)
}

// rejoinPause keeps two who disagree from fighting over our state at full speed.
func (o *own) rejoinPause() time.Duration {
	if o.losses < 2 {
		return 0
	}
	return o.lostAt + min(o.retry<<min(o.losses-2, 16), retryAtMost)
}

// --- what the sync shows under our state key

// observe takes in the event that now stands under our state key.
func (o *own) observe(now Time, s ownState) {
	m := &o.membership
	s.content = bytes.Clone(s.content)
	m.current = s
	if o.writing.inflight != 0 && len(m.seen) < 64 {
		m.seen = append(m.seen, s.eventID)
	}
	o.noticeState(now)
}

func (o *own) noticeState(now Time) {
	m, s := &o.membership, o.membership.current
	m.foreign = 0
	switch {
	case o.phase == announcing && s.ours && (m.uncertain || o.writing.inflight != 0) &&
		gjson.GetBytes(s.content, "created_ts").Int() >= m.since:
		// A write that seemed to fail, or is yet to be answered, has taken effect. What is older
		// than the first attempt is what we had left or lost before, shown late.
		m.eventID, m.at, m.echoed, m.uncertain = s.eventID, now.Boot, true, false
		m.joinedTS, m.expiresTS = s.joinedTS, s.expiresTS
		o.present(now)
	case o.phase == idle && s.ours && o.stateKey != "":
		// A write of ours took effect after we had left, unless our leave is yet to be shown.
		m.foreign = now.Boot + echoWithin
		if m.uncertain {
			m.foreign = now.Boot
		}
		o.wake(m.foreign)
	case o.phase != present:
	case s.eventID == m.eventID:
		m.echoed = true
		m.joinedTS, m.expiresTS = s.joinedTS, s.expiresTS
		if m.gone {
			m.gone = false
			o.keys.giveAgain()
		}
	case s.ours:
		if m.echoed || m.uncertain {
			m.eventID, m.expiresTS, m.uncertain = s.eventID, s.expiresTS, false
			o.correct(now)
		}
	case o.writing.inflight != 0 && !m.echoed:
		// The answer will tell whether this came before or after our write.
	case m.echoed || s.known && s.originTS > m.askedTS+2000:
		o.lose(now, lossReason(o.set.cfg.UserID, s))
	default:
		m.gone = m.gone || s.known && s.originTS > m.joinedTS
		m.foreign = now.Boot + echoWithin
		o.wake(m.foreign)
	}
}

// correct writes again where an earlier write of ours, late on its way, has overwritten the last.
func (o *own) correct(now Time) {
	m := &o.membership
	if o.writing.inflight != 0 || sameJSON(m.current.content, m.content) {
		return
	}
	m.dirty = true
	m.corrections++
	o.writing.notBefore = max(o.writing.notBefore, now.Boot+min(o.retry<<min(m.corrections, 16), retryAtMost))
}

// noticeForeign settles a doubt: our last request was answered, and all the sync shows is an event
// that may be older.
func (o *own) noticeForeign(now Time) {
	m := &o.membership
	if m.foreign == 0 {
		return
	}
	if now.Boot < m.foreign {
		o.wake(m.foreign)
		return
	}
	m.foreign = 0
	if o.phase == idle {
		o.startLeaving(now, "left")
		o.goAway(now)
		return
	}
	o.lose(now, lossReason(o.set.cfg.UserID, m.current))
}

func lossReason(self id.UserID, s ownState) string {
	switch {
	case !s.known:
		return "removed"
	case s.sender == self:
		return "delayed_leave_fired"
	default:
		return "removed_by " + string(s.sender)
	}
}

// --- leaving

func (o *own) startLeaving(now Time, reason string) {
	m := &o.membership
	o.abortHandover()
	o.leave = leaving{reason: reason}
	announced := m.announced || o.writing.inflight != 0 || m.uncertain || o.phase == idle
	switch {
	case announced && o.sw.id != "":
		o.leave.bySwitch = true
	case announced:
		o.leave.byState = true
	case o.sw.id != "":
		o.discards = append(o.discards, o.sw.id)
		o.dropSwitch()
	}
	o.leavingTask = task{}
	o.setStatus(Disconnecting)
	o.enter(now, leavingNow)
}

// goAway makes the server take our leave: the delayed leave at once, else an empty state event.
// A write still in flight may come to stand after it, so its end is awaited and followed by a
// leave of its own.
func (o *own) goAway(now Time) {
	o.settleWrite(now)
	switch {
	case o.leave.bySwitch:
		id := o.sw.id
		r := wire.Request{Kind: wire.SendDelayed, DelayID: id, Anonymous: o.leave.anonymous, Timeout: max(o.restartTimeout, 5*time.Second)}
		o.ask(now, &o.leavingTask, r, func(now Time, a wire.Answer, late bool) {
			if late || o.phase != leavingNow || !o.leave.bySwitch {
				return
			}
			o.leave.bySwitch = false
			o.dropSwitch()
			switch e := a.Err; {
			case e == nil:
				o.leave.sent = true
			case o.leave.anonymous:
				if e.Network || e.Status == 429 || e.Status >= 500 {
					o.sw.id, o.leave.bySwitch = id, true
					o.retryLater(now, &o.leavingTask, e, retryAtMost)
				}
			case o.dead(now, e):
				o.sw.id = id
				o.leave.bySwitch, o.leave.anonymous = true, true
			default:
				if !gone(e) {
					o.discards = append(o.discards, id)
				}
				o.leave.byState = true
			}
			o.enter(now, leavingNow)
		})
	case o.leave.byState:
		o.ask(now, &o.leavingTask, wire.Request{
			Kind: wire.SendState, Type: wire.TypeStateMember, StateKey: o.stateKey, Content: json.RawMessage("{}"),
		}, func(now Time, a wire.Answer, late bool) {
			if late || o.phase != leavingNow || !o.leave.byState {
				return
			}
			switch e := a.Err; {
			case e == nil:
				o.leave.byState, o.leave.sent = false, true
				o.enter(now, leavingNow)
			case e.Status == 403 || rejectsToken(e):
				o.stats.Failures++
				o.end(now, false, o.leave.reason)
			default:
				o.retryLater(now, &o.leavingTask, e, retryAtMost)
			}
		})
	case o.writing.inflight != 0:
	case o.membership.uncertain && o.leave.sent && !o.leave.anonymous:
		o.membership.uncertain = false
		o.leave.byState, o.leave.sent = true, false
		o.enter(now, leavingNow)
	default:
		// Our leave stands, or nothing of ours ever stood there.
		o.end(now, o.leave.sent || !o.leave.anonymous, o.leave.reason)
	}
}

// settleWrite waits for a write of an earlier phase, at most until its local timeout.
func (o *own) settleWrite(now Time) {
	switch t := &o.writing; {
	case t.inflight == 0:
	case now.Boot >= t.timeoutAt:
		o.set.abandon(t.inflight)
		t.inflight = 0
		o.membership.uncertain = true
	default:
		o.wake(t.timeoutAt)
	}
}

// end is the way back to idle, from anywhere.
func (o *own) end(now Time, sent bool, reason string) {
	o.membership.announced = false
	o.lost = false
	o.abortHandover()
	o.dropSwitch()
	o.setHeld("")
	o.sfus.disconnected()
	o.enter(now, idle)
	if o.next == nil {
		o.setJoined(false)
	}
	o.setProbably(false)
	o.setStatus(Disconnected)
	o.tell(EventLeft, Left{Sent: sent, Reason: reason})
	if p := o.next; p != nil {
		o.next = nil
		if s, err := p.settings(string(o.room.id)); err == nil {
			o.begin(now, *p, s)
		}
	}
}

// roomLeft: whoever is not in the room is not in its call.
func (o *own) roomLeft(now Time) {
	if o.phase == idle {
		return
	}
	o.next = nil
	if o.sw.id != "" {
		o.discards = append(o.discards, o.sw.id)
	}
	for _, t := range []*task{&o.writing, &o.scheduling, &o.restarting, &o.leavingTask} {
		t.inflight = 0
	}
	o.end(now, false, "room_left")
}

// rejectsToken: a 401 without an errcode is the word of some proxy.
func rejectsToken(e *wire.Error) bool {
	return e.Status == 401 && e.Code != "" && !e.SoftLogout
}

// dead ends the call when our token is rejected for good.
func (o *own) dead(now Time, e *wire.Error) bool {
	if !rejectsToken(e) {
		return false
	}
	if o.phase == leavingNow {
		return true
	}
	o.trouble(&wire.Error{Status: e.Status, Code: e.Code,
		Message: "the access token is rejected for good: log in again and join again (" + e.Message + ")"}, false)
	o.setJoined(false)
	if o.membership.announced && o.sw.id != "" {
		o.startLeaving(now, "token_rejected")
		o.leave.anonymous = true
	} else {
		o.end(now, false, "token_rejected")
	}
	return true
}

// --- what the host is told

// judge says whether the server may have removed us without our knowing.
func (o *own) judge(now Time) {
	if o.phase != present && o.phase != announcing && o.phase != arming || !o.membership.announced && !o.lost {
		return
	}
	probably := o.lost
	if o.sw.id != "" {
		probably = probably || now.Boot >= o.sw.dueAt
		if !probably {
			o.wake(o.sw.dueAt)
		}
	}
	if o.membership.announced {
		left := o.membership.expiresTS - o.set.serverTime(now)
		probably = probably || left <= 0
		if left > 0 {
			o.wake(now.Boot + ms(left))
		}
	}
	o.setProbably(probably)
}

func (o *own) setProbably(v bool) {
	if o.probably != v {
		o.probably = v
		o.tell(EventProbablyLeft, ProbablyLeft{v})
	}
}

func (o *own) setJoined(v bool) {
	if o.joined != v {
		o.joined = v
		o.tell(EventJoinStateChanged, JoinStateChanged{v})
	}
}

func (o *own) setStatus(s Status) {
	if o.status != s {
		was := o.status
		o.status = s
		o.tell(EventStatusChanged, StatusChanged{s, was})
	}
}

func (o *own) tellDelayID() { o.tell(EventDelayIDChanged, DelayIDChanged{o.delayID()}) }

func (o *own) delayID() *Secret {
	if o.sw.id == "" {
		return nil
	}
	s := Secret(o.sw.id)
	return &s
}

func (o *own) trouble(e *wire.Error, recoverable bool) {
	msg := e.Message
	if msg == "" {
		msg = fmt.Sprintf("HTTP status %d", e.Status)
	}
	o.tell(EventMembershipManagerError, MembershipManagerError{msg, recoverable, e.Code, e.Status})
}

func (o *own) tell(name string, data any) {
	o.set.tell(Event{Name: name, Room: o.room.id, Session: o.session, Data: data})
}

// uncertain: the request may have taken effect all the same.
func uncertain(e *wire.Error) bool { return e.Network || e.Status >= 500 }

// gone: the delayed event is no more, however the server says so (MSC4140).
func gone(e *wire.Error) bool {
	return e.Status == 404 && e.Code == "M_NOT_FOUND" || e.Status == 409
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

func contains(ids []id.EventID, e id.EventID) bool {
	for _, x := range ids {
		if x == e {
			return true
		}
	}
	return false
}
