package session

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

const (
	never         = time.Duration(math.MaxInt64)
	outageAtLeast = 5 * time.Second // without any sign of life of the server
)

// SetConfig is what a Set must know from the start.
type SetConfig struct {
	UserID   id.UserID
	DeviceID id.DeviceID
	Rand     *rand.Rand              // jitter
	NewKey   func(length int) []byte // media keys: unpredictable bytes

	MaxExpiry time.Duration // how long a membership counts after its event came; 0: a day

	SFUTrust    SFUTrust
	PrivateSFUs bool // SFUs on private addresses are as good as others: the homeserver is on one
}

// Set is every call of one device: the rooms that the homeserver told of, the calls in them
// whether opened by the host or not, and the sessions that the host opened. It is not safe for
// concurrent use.
type Set struct {
	cfg      SetConfig
	rooms    map[id.RoomID]*room
	sessions map[uint64]*own
	outputs  []Output
	timers   timers

	nextSession, nextRequest uint64
	pending                  map[uint64]pending
	abandoned                []uint64 // local timeouts, oldest first: a late answer still counts

	clock       serverClock
	clockSet    bool          // it jumped: every call is to be looked at
	contactAt   time.Duration // Boot: the last sign of life of the server
	held        heldKeys
	refusedKeys map[string]int // reasons, for the debug snapshot

	synced      bool // the host has told of all its rooms
	managesKeys bool
	keyed       map[id.RoomID]int // sessions whose own keys are alive

	offers      offers
	proofs      map[string]*proof             // OpenID tokens by service
	proofsLimit int                           // how many are kept before those of no use are looked for
	services    map[string]livekit.Generation // the newest that each has

	delayed       wire.DelayedEventsCapability
	actionsInBody bool // what is to become of a delayed event is said as older servers want it
	capTask       task
	capKnown      bool
	capTries      int
}

// NewSet makes the sessions of one device.
func NewSet(cfg SetConfig) *Set {
	s := &Set{
		cfg:      cfg,
		rooms:    map[id.RoomID]*room{},
		sessions: map[uint64]*own{},
		pending:  map[uint64]pending{},
		proofs:   map[string]*proof{},
		services: map[string]livekit.Generation{},
		keyed:    map[id.RoomID]int{},
	}
	if s.cfg.MaxExpiry == 0 {
		s.cfg.MaxExpiry = day * time.Millisecond
	}
	s.offers.set, s.offers.timer.run = s, s.offers.step
	s.held.timer.run = func(now Time) { s.expireHeld(now); s.watchHeld() }
	return s
}

// pending is a request that waits for its answer.
type pending struct {
	request *wire.Request
	of      *own // the session that asks, nil for none
	done    func(Time, wire.Answer)
}

// OpenOptions names the call of a room. Zero values mean "m.call" and the call of the room.
type OpenOptions struct {
	Application string `json:"application,omitempty"`
	CallID      string `json:"call_id,omitempty"`
}

// Open begins a session: its getters answer and its events come until CloseSession. A slot of a
// room can be open once at a time.
func (s *Set) Open(now Time, roomID id.RoomID, opts OpenOptions) (uint64, error) {
	if opts.Application == "" {
		opts.Application = "m.call"
	}
	slotID, err := wire.SlotID(opts.Application, opts.CallID)
	if err != nil {
		return 0, &ArgumentError{"/application", err.Error()}
	}
	if key := wire.StateMemberKey(s.cfg.UserID, s.cfg.DeviceID, slotID, ""); len(key) > wire.MaxOwnText {
		return 0, &ArgumentError{"/application", fmt.Sprintf("expected less: the state key %q would have more than %d bytes", key, wire.MaxOwnText)}
	}
	r := s.room(roomID)
	sl := r.slot(slotID)
	if sl.session != nil && !sl.session.closed {
		return 0, &StateError{"a session of this room and slot is already open"}
	}
	s.nextSession++
	o := &own{set: s, session: s.nextSession, room: r, slot: sl, status: Disconnected, phase: idle, wakeAt: never}
	o.timer.run = func(now Time) { s.step(now, o) }
	o.keys.o, o.rings.o, o.sfus = o, o, newSFUs(o)
	o.sfus.watch()
	if old := sl.session; old != nil {
		// Still leaving on behalf of a closed session: the new one takes its place when it is done.
		o = old
		delete(s.sessions, old.session)
		o.session, o.closed = s.nextSession, false
	}
	sl.session = o
	s.sessions[s.nextSession] = o
	o.rings.watch(now)
	return s.nextSession, nil
}

// CloseSession ends a session. If it is joined it leaves first, unseen by the host.
func (s *Set) CloseSession(now Time, session uint64) {
	o := s.sessions[session]
	if o == nil {
		return
	}
	o.closed = true
	if o.joined {
		_ = o.stop(now, "closed")
	}
	s.step(now, o)
}

// Handle takes in what happened. The error concerns commands only: an *ArgumentError or a
// *StateError, and nothing has changed then.
func (s *Set) Handle(now Time, in Input) (err error) {
	var touched *own
	command := func(session uint64, do func(*own) error) {
		o := s.sessions[session]
		if o == nil || o.closed {
			err = &StateError{"the session is closed"}
			return
		}
		if err = do(o); err == nil {
			touched = o
		}
	}
	switch in := in.(type) {
	case RoomState:
		s.contact(now)
		s.roomState(now, in)
	case RoomLeft:
		s.roomLeft(now, in.Room)
	case Synced:
		s.hearSync(now, in)
	case Response:
		if p, waited := s.pending[in.ID]; waited {
			if e := in.Answer.Err; !p.request.Foreign() && (e == nil || !e.Network) {
				s.contact(now)
			}
			if s.askAsBefore(p, in.Answer.Err) {
				break
			}
			delete(s.pending, in.ID)
			p.done(now, in.Answer)
			if p.of != nil {
				s.step(now, p.of)
			}
		}
	case Delivered:
		s.delivered(now, in)
	case ToDevice:
		s.toDevice(now, in)
	case Timeline:
		s.timeline(now, in)
	case ServerDate:
		s.contact(now)
		s.learnClock(now, in.UnixMS, 1500)
	case Join:
		command(in.Session, func(o *own) error { return o.start(now, in.Params) })
	case Leave:
		command(in.Session, func(o *own) error { return o.stop(now, "left") })
	case DelegateLeave:
		command(in.Session, func(o *own) error { return o.delegateLeave(in.Delegate) })
	case UpdateIntent:
		command(in.Session, func(o *own) error { return o.updateIntent(now, in.Intent) })
	case UpdateApplicationData:
		command(in.Session, func(o *own) error { return o.updateApplicationData(now, in.Data) })
	case Recheck:
		command(in.Session, func(o *own) error { return nil })
	case Tick:
	}
	if s.clockSet {
		s.clockSet = false
		for _, r := range s.rooms {
			r.flush(now)
		}
	}
	if touched != nil {
		s.step(now, touched)
	}
	s.runTimers(now)
	return err
}

// hearSync tells those who wait for their room why it does not come.
func (s *Set) hearSync(now Time, in Synced) {
	another := in.Err == nil && s.synced
	s.synced = s.synced || in.Err == nil
	var waiting []uint64
	for session, o := range s.sessions {
		if o.phase == clearing && !o.room.known && !(another && now.Boot < o.roomBy) {
			waiting = append(waiting, session)
		}
	}
	slices.Sort(waiting)
	for _, session := range waiting {
		o := s.sessions[session]
		o.noRoom(now, in)
		s.step(now, o)
	}
}

// delivered finds the session whose keys were sent.
func (s *Set) delivered(now Time, in Delivered) {
	for _, o := range s.sessions {
		if o.keys.flights[in.Request] != nil {
			o.keys.delivered(now, in.Request, in.Deliveries, in.Last)
			s.step(now, o)
			return
		}
	}
}

// Outputs drains what is to be done.
func (s *Set) Outputs() []Output {
	out := s.outputs
	s.outputs = nil
	return out
}

// Deadline is the Boot time at which Handle wants a Tick if nothing happens before.
func (s *Set) Deadline() (time.Duration, bool) {
	if len(s.timers) == 0 {
		return 0, false
	}
	return s.timers[0].at, true
}

// Idle says that nothing of ours stands on the server or is on its way there.
func (s *Set) Idle() bool {
	for _, o := range s.sessions {
		if o.phase != idle || len(o.discards) > 0 {
			return false
		}
	}
	return true
}

// Awaits says whether an answer to a request would still count.
func (s *Set) Awaits(request uint64) bool { _, waits := s.pending[request]; return waits }

// ManagesKeys says whether some session has, or has had, media keys to take in.
func (s *Set) ManagesKeys() bool { return s.managesKeys }

// KeyRooms are the rooms in whose calls we are with media keys.
func (s *Set) KeyRooms() map[id.RoomID]int { return maps.Clone(s.keyed) }

// InKeyRooms says whether there are such rooms.
func (s *Set) InKeyRooms() bool { return len(s.keyed) > 0 }

// Encryption says whether a room is encrypted, once its state is known.
func (s *Set) Encryption(roomID id.RoomID) (encrypted, known bool) {
	r := s.rooms[roomID]
	return r != nil && r.encrypted, r != nil && r.known
}

// Wipe forgets all media keys, as far as Go allows: nothing will be handled any more.
func (s *Set) Wipe() {
	for _, o := range s.sessions {
		o.keys.wipe()
		o.rings.wipe()
	}
	s.held.drop(func(*heldKey) bool { return true })
}

// LeaveAll asks every joined session to leave.
func (s *Set) LeaveAll(now Time) {
	for _, o := range s.sessions {
		if o.joined {
			_ = o.stop(now, "stopped")
			s.step(now, o)
		}
	}
}

// --- inside

func (s *Set) step(now Time, o *own) {
	o.step(now)
	if o.closed && o.phase == idle && len(o.discards) == 0 {
		o.rings.wipe()
		delete(s.sessions, o.session)
		if o.slot.session == o {
			o.slot.session = nil
		}
		s.timers.set(&o.timer, never)
		s.forget(o.room, o.slot)
	}
}

func (s *Set) schedule(o *own) { s.timers.set(&o.timer, o.wakeAt) }

// runTimers runs what is due. Whoever asks for the same moment again and again is a bug that must
// not hang the host: it is put off.
func (s *Set) runTimers(now Time) {
	for i := 0; len(s.timers) > 0 && s.timers[0].at <= now.Boot; i++ {
		t := s.timers[0]
		if i > 1000+4*len(s.timers) {
			s.timers.set(t, now.Boot+time.Second)
			continue
		}
		s.timers.set(t, never)
		t.run(now)
	}
}

// request sends a request of a session, which steps when there is an answer, or of nobody's.
func (s *Set) request(o *own, r wire.Request, done func(Time, wire.Answer)) uint64 {
	s.nextRequest++
	r.ID = s.nextRequest
	if o != nil {
		r.Session, r.Room = o.session, o.room.id
		o.stats.Requests++
	}
	r.InBody = s.actionsInBody && r.DelayID != ""
	s.send(pending{&r, o, done})
	return r.ID
}

func (s *Set) send(p pending) {
	s.pending[p.request.ID] = p
	s.outputs = append(s.outputs, Output{Request: p.request})
}

// askAsBefore repeats a request in the form that older servers know, where ours turns out to be one.
func (s *Set) askAsBefore(p pending, e *wire.Error) bool {
	if e == nil || !e.Unsupported || p.request.InBody || p.request.DelayID == "" {
		return false
	}
	s.actionsInBody = true
	again := *p.request
	again.InBody = true
	p.request = &again
	s.send(p)
	return true
}

// ask sends a request, of a session or of nobody's, unless the task is busy or pausing. It answers
// when to look again, and whether the request went out. done also gets what comes to a session after
// the local timeout, with late set; that does not count for the task.
func (s *Set) ask(now Time, o *own, t *task, r wire.Request, done func(now Time, a wire.Answer, late bool)) (again time.Duration, sent bool) {
	switch {
	case t.inflight != 0 && now.Boot >= t.timeoutAt:
		s.abandon(t.inflight)
		t.inflight = 0
		done(now, wire.Answer{Err: &wire.Error{Network: true, Message: "no answer in time"}}, false)
		return now.Boot, false // done may have changed everything
	case t.inflight != 0:
		return t.timeoutAt, false
	case now.Boot < t.notBefore:
		return t.notBefore, false
	}
	if r.Timeout == 0 {
		r.Timeout = requestTimeout
	}
	t.askedAt, t.timeoutAt = now.Boot, now.Boot+r.Timeout
	var asked uint64
	asked = s.request(o, r, func(now Time, a wire.Answer) {
		switch late := t.inflight != asked; {
		case !late:
			t.inflight = 0
			if a.Err == nil {
				t.failures, t.limits = 0, 0
			}
			done(now, a, false)
		case o != nil:
			done(now, a, true)
		}
	})
	t.inflight = asked
	return t.timeoutAt, true
}

// backOff makes a task pause after a failure, as long as the server says or longer each time.
func (s *Set) backOff(now Time, t *task, e *wire.Error) time.Duration {
	pause := min(time.Second<<min(t.failures, 10), retryAtMost)
	t.failures++
	pause = pause/2 + time.Duration(s.random()*float64(pause/2))
	t.notBefore = now.Boot + max(pause, min(e.RetryAfter, time.Hour))
	return t.notBefore - now.Boot
}

// abandon keeps listening for a late answer, within bounds.
func (s *Set) abandon(request uint64) {
	if len(s.abandoned) >= 256 {
		delete(s.pending, s.abandoned[0])
		s.abandoned = append(s.abandoned[:0], s.abandoned[1:]...)
	}
	s.abandoned = append(s.abandoned, request)
}

func (s *Set) tell(e Event) {
	if o := s.sessions[e.Session]; e.Session != 0 && (o == nil || o.closed) {
		return
	}
	s.outputs = append(s.outputs, Output{Event: &e})
}

// contact notes a sign of life. The first after an outage ends the pauses that the outage caused,
// spread over a moment, so that what is overdue does not wait for a long backoff to end.
func (s *Set) contact(now Time) {
	outage := now.Boot-s.contactAt > outageAtLeast
	s.contactAt = now.Boot
	if !outage {
		return
	}
	for _, o := range s.sessions {
		if o.phase == idle && len(o.discards) == 0 {
			continue
		}
		for _, t := range o.tasks() {
			if t.network && t.notBefore > now.Boot {
				t.notBefore = min(t.notBefore, now.Boot+time.Duration(s.random()*float64(o.retry)))
			}
		}
		s.timers.set(&o.timer, now.Boot)
	}
}

func (s *Set) random() float64 { return s.cfg.Rand.Float64() }

func (s *Set) serverTime(now Time) int64 { return s.clock.at(now) }

// maxDelay asks once for what the server allows, and says when to look again if that is not
// known yet. After three failures it goes on without.
func (s *Set) maxDelay(now Time) (known bool, wait time.Duration) {
	if s.capKnown || s.capTries >= 3 {
		return true, 0
	}
	wait, _ = s.ask(now, nil, &s.capTask, wire.Request{Kind: wire.GetCapabilities}, func(now Time, a wire.Answer, _ bool) {
		if a.Err != nil {
			s.capTries++
			s.backOff(now, &s.capTask, a.Err)
		} else {
			s.capKnown = true
			if a.DelayedEvents != nil {
				s.delayed = *a.DelayedEvents
			}
		}
		for _, o := range s.sessions {
			if o.phase == clearing {
				s.timers.set(&o.timer, now.Boot)
			}
		}
	})
	return s.capKnown || s.capTries >= 3, wait
}

// serverClock is the homeserver's time, told by what it sends, carried on by the boot clock, so
// that neither a wrong nor a jumping local clock matters.
type serverClock struct {
	known bool
	unix  int64
	boot  time.Duration
}

func (c *serverClock) at(now Time) int64 {
	if !c.known {
		return now.Wall
	}
	return c.unix + (now.Boot - c.boot).Milliseconds()
}

// learnClock takes a new reading if the clock is off by more than the reading may be. What seemed
// to have expired by a clock that was ahead comes back.
func (s *Set) learnClock(now Time, unixMS int64, tolerance int64) {
	c := &s.clock
	off := c.at(now) - unixMS
	if c.known && off < tolerance && off > -tolerance {
		return
	}
	first := !c.known
	c.known, c.unix, c.boot = true, unixMS, now.Boot
	wrong := off >= tolerance || off <= -tolerance
	s.clockSet = s.clockSet || first || wrong
	for _, r := range s.rooms {
		for _, sl := range r.slots {
			if first {
				sl.roster.bound(s.latestExpiry(now))
				sl.touch()
			}
			if wrong {
				sl.roster.revive(unixMS)
				sl.touch()
			}
		}
	}
}

// latestExpiry is when a membership that comes now ends at the latest, whenever its event claims to
// be from. Until the homeserver has told the time it may be any: ours may be wrong by years.
func (s *Set) latestExpiry(now Time) int64 {
	if !s.clock.known {
		return math.MaxInt64
	}
	return s.serverTime(now) + s.cfg.MaxExpiry.Milliseconds()
}

// --- timers

type timer struct {
	at    time.Duration
	index int // in the heap, plus one; 0: not there
	run   func(Time)
}

type timers []*timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timers) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i+1, j+1 }
func (h *timers) Push(x any)        { t := x.(*timer); t.index = len(*h) + 1; *h = append(*h, t) }
func (h *timers) Pop() any {
	t := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	t.index = 0
	return t
}

func (h *timers) set(t *timer, at time.Duration) {
	t.at = at
	switch {
	case at == never && t.index != 0:
		heap.Remove(h, t.index-1)
	case at == never:
	case t.index != 0:
		heap.Fix(h, t.index-1)
	default:
		heap.Push(h, t)
	}
}

// --- what the host asks

// Info answers what is true of a session now.
func (s *Set) Info(now Time, session uint64) (Info, bool) {
	o := s.sessions[session]
	if o == nil {
		return Info{}, false
	}
	i := Info{
		RoomID: o.room.id, SlotID: o.slot.id, Joined: o.joined, Status: o.status,
		ProbablyLeft: o.probably, DelayID: o.delayID(),
		RoomVersion: o.room.version, Encrypted: o.room.encrypted,
		MemberCount: o.slot.roster.len(), Statistics: o.stats,
		KeysManaged: o.keys.on, KeyRotationSuppressed: o.keys.suppressed, LeaveDelegated: o.handover.held != "",
	}
	if m := o.slot.roster.oldest(); m != nil {
		callID := wire.CallID(o.slot.id)
		i.CallID = &callID
		oldest := o.slot.member(m)
		i.OldestMembership = &oldest
		if intent := o.slot.roster.consensusIntent(); intent != "" {
			i.ConsensusIntent = &intent
		}
	}
	if m := o.slot.own(o); m != nil {
		own := o.slot.member(m)
		i.OwnMembership = &own
		i.ActiveTransport = own.ActiveTransport
	} else if i.OldestMembership != nil {
		i.ActiveTransport = i.OldestMembership.ActiveTransport
	}
	return i, true
}

// Memberships are the members of a session's call, oldest first.
func (s *Set) Memberships(session uint64) []Member {
	o := s.sessions[session]
	if o == nil {
		return nil
	}
	list := make([]Member, 0, o.slot.roster.len())
	for _, m := range o.slot.roster.all() {
		list = append(list, o.slot.member(m))
	}
	return list
}

// Sessions are the rooms with a live call.
func (s *Set) Sessions() []RoomCall {
	calls := []RoomCall{}
	for _, r := range s.rooms {
		for _, sl := range r.slots {
			if m := sl.roster.oldest(); m != nil {
				calls = append(calls, RoomCall{r.id, sl.id, wire.CallID(sl.id), sl.roster.len(), m.JoinedTS})
			}
		}
	}
	sort.Slice(calls, func(i, j int) bool {
		a, b := calls[i], calls[j]
		return a.RoomID < b.RoomID || a.RoomID == b.RoomID && a.SlotID < b.SlotID
	})
	return calls
}

// Snapshot is what a person needs to see why a session is as it is.
type Snapshot struct {
	Info
	Phase       string            `json:"phase"`
	RoomKnown   bool              `json:"room_known"`
	StateKey    string            `json:"state_key"`
	WakeInMS    *int64            `json:"wake_in_ms"`
	SwitchDueMS *int64            `json:"delayed_leave_due_in_ms"`
	Unsupported bool              `json:"delayed_events_unsupported"`
	ServerTS    int64             `json:"server_ts"`
	Waiting     []id.UserID       `json:"waiting_for_room_members"`
	Refused     []RefusedMember   `json:"refused"`
	RefusedAll  int               `json:"refused_count"`
	Settings    map[string]int64  `json:"settings"`
	Foci        []json.RawMessage `json:"foci"`
	Keys        KeysSnapshot      `json:"keys"`
}

// KeysSnapshot says how the distribution of media keys stands.
type KeysSnapshot struct {
	Peers       int            `json:"peers"`
	InUse       *int           `json:"in_use_index"`
	Next        *int           `json:"next_index"`
	InFlight    int            `json:"in_flight"`   // requests
	Retrying    int            `json:"retrying"`    // copies that failed and are tried again
	Held        int            `json:"held"`        // messages of devices that are not in the call, all rooms
	Refused     map[string]int `json:"refused"`     // messages that were not taken in, all rooms
	Unreachable []wire.Device  `json:"unreachable"` // that some key has not reached
}

// RefusedMember is a member event that was not taken in.
type RefusedMember struct {
	Sender   id.UserID `json:"sender"`
	StateKey string    `json:"state_key"`
	Reason   string    `json:"reason"`
}

// DebugSnapshot answers why a session is as it is.
func (s *Set) DebugSnapshot(now Time, session uint64) (Snapshot, bool) {
	o := s.sessions[session]
	if o == nil {
		return Snapshot{}, false
	}
	info, _ := s.Info(now, session)
	info.DelayID = nil // a secret: the snapshot is for bug reports
	snap := Snapshot{
		Info: info, Phase: string(o.phase), RoomKnown: o.room.known, StateKey: o.stateKey,
		Unsupported: o.sw.unsupported, ServerTS: s.serverTime(now),
		Waiting: o.room.waiting(), Refused: append([]RefusedMember{}, o.room.refused...), RefusedAll: o.room.refusedCount,
		Foci: append([]json.RawMessage{}, o.transports...),
		Settings: map[string]int64{
			"delayed_leave_delay_ms": o.delay.Milliseconds(), "delayed_leave_restart_ms": o.settings.restart.Milliseconds(),
			"delayed_leave_restart_timeout_ms": o.restartTimeout.Milliseconds(), "membership_expiry_ms": o.expiry.Milliseconds(),
			"membership_expiry_headroom_ms": o.headroom.Milliseconds(), "network_error_retry_ms": o.retry.Milliseconds(),
		},
	}
	in := func(at time.Duration) *int64 { v := (at - now.Boot).Milliseconds(); return &v }
	if o.timer.index != 0 {
		snap.WakeInMS = in(o.timer.at)
	}
	if o.sw.id != "" {
		snap.SwitchDueMS = in(o.sw.dueAt)
	}
	snap.Keys = o.keys.snapshot()
	return snap, true
}

// SetIdentity names our user and device once the homeserver has told them. It must come before
// any room's state.
func (s *Set) SetIdentity(now Time, user id.UserID, device id.DeviceID) {
	s.cfg.UserID, s.cfg.DeviceID = user, device
	s.offers.step(now)
}
