package session

import (
	"container/heap"
	"encoding/json"
	"math"
	"math/rand/v2"
	"sort"
	"time"

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
	Rand     *rand.Rand // jitter; the only randomness
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
	pending                  map[uint64]func(Time, wire.Answer)
	abandoned                []uint64 // local timeouts, oldest first: a late answer still counts

	clock     serverClock
	contactAt time.Duration // Boot: the last sign of life of the server
	delayed   wire.DelayedEventsCapability
	capTask   task
	capKnown  bool
	capTries  int
}

// NewSet makes the sessions of one device.
func NewSet(cfg SetConfig) *Set {
	return &Set{
		cfg:      cfg,
		rooms:    map[id.RoomID]*room{},
		sessions: map[uint64]*own{},
		pending:  map[uint64]func(Time, wire.Answer){},
	}
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
	r := s.room(roomID)
	sl := r.slot(slotID)
	if sl.session != nil && !sl.session.closed {
		return 0, &StateError{"a session of this room and slot is already open"}
	}
	s.nextSession++
	o := &own{set: s, session: s.nextSession, room: r, slot: sl, status: Disconnected, phase: idle, wakeAt: never}
	o.timer.run = func(now Time) { s.step(now, o) }
	if old := sl.session; old != nil {
		// Still leaving on behalf of a closed session: the new one takes its place when it is done.
		o = old
		delete(s.sessions, old.session)
		o.session, o.closed = s.nextSession, false
	}
	sl.session = o
	s.sessions[s.nextSession] = o
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
	case Response:
		if done := s.pending[in.ID]; done != nil {
			delete(s.pending, in.ID)
			if e := in.Answer.Err; e == nil || !e.Network {
				s.contact(now)
			}
			done(now, in.Answer)
		}
	case ServerDate:
		s.contact(now)
		s.clock.learn(now, in.UnixMS, 1500)
	case Join:
		command(in.Session, func(o *own) error { return o.start(now, in.Params) })
	case Leave:
		command(in.Session, func(o *own) error { return o.stop(now, "left") })
	case UpdateIntent:
		command(in.Session, func(o *own) error { return o.updateIntent(now, in.Intent) })
	case UpdateApplicationData:
		command(in.Session, func(o *own) error { return o.updateApplicationData(now, in.Data) })
	case Recheck:
		command(in.Session, func(o *own) error { return nil })
	case Tick:
	}
	if touched != nil {
		s.step(now, touched)
	}
	s.runTimers(now)
	return err
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

func (s *Set) request(r wire.Request, done func(Time, wire.Answer)) uint64 {
	s.nextRequest++
	r.ID = s.nextRequest
	s.pending[r.ID] = done
	s.outputs = append(s.outputs, Output{Request: &r})
	return r.ID
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
	if s.capTask.inflight == 0 && now.Boot >= s.capTask.notBefore {
		s.capTask.inflight = s.request(wire.Request{Kind: wire.GetCapabilities, Timeout: requestTimeout}, func(now Time, a wire.Answer) {
			s.capTask.inflight = 0
			if a.Err != nil {
				s.capTries++
				s.capTask.notBefore = now.Boot + time.Duration((0.5+s.random()/2)*float64(time.Second))
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
		s.capTask.timeoutAt = now.Boot + requestTimeout
	}
	if s.capTask.inflight != 0 {
		if now.Boot >= s.capTask.timeoutAt {
			s.abandon(s.capTask.inflight)
			s.capTask.inflight = 0
			s.capTries++
			return s.capTries >= 3, now.Boot + time.Second
		}
		return false, s.capTask.timeoutAt
	}
	return false, s.capTask.notBefore
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

// learn takes a new reading if the clock is off by more than the reading may be.
func (c *serverClock) learn(now Time, unixMS int64, tolerance int64) {
	if d := c.at(now) - unixMS; c.known && d < tolerance && d > -tolerance {
		return
	}
	c.known, c.unix, c.boot = true, unixMS, now.Boot
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
	return snap, true
}

// SetIdentity names our user and device once the homeserver has told them. It must come before
// any room's state.
func (s *Set) SetIdentity(user id.UserID, device id.DeviceID) {
	s.cfg.UserID, s.cfg.DeviceID = user, device
}
