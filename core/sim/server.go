package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

const (
	theRoom     = id.RoomID("!call:x")
	theSFU      = "https://lk.x"
	roomVersion = "10"
)

// server is a homeserver with one room, as far as calls see it. It does what Synapse does.
type server struct {
	w     *world
	log   []wire.Event // every state event, in order; a sync position counts them
	state map[string]int
	users []id.UserID

	members map[string]*wire.Membership // what the state means, by state key

	delayed map[string]*delayedEvent
	nextID  int
	epoch   int // counts restarts: connections of an earlier one are dead
	down    bool

	upSince                                            time.Duration
	limitsUntil, errorsUntil, slowUntil, troubledUntil time.Duration
	buckets                                            map[id.UserID]bucket
	polls                                              []*poll
}

type delayedEvent struct {
	id    string
	owner id.UserID
	key   string
	body  json.RawMessage
	delay time.Duration
	due   time.Duration
}

type bucket struct {
	tokens float64
	at     time.Duration
}

// poll is a /sync that waits for something to tell.
type poll struct {
	user   *client
	since  int
	epoch  int
	answer func(*session.RoomState, int)
}

func newServer(w *world) *server {
	s := &server{w: w, state: map[string]int{}, members: map[string]*wire.Membership{}, delayed: map[string]*delayedEvent{}, buckets: map[id.UserID]bucket{}}
	s.append("@admin:x", "m.room.create", "", `{"room_version":"`+roomVersion+`"}`)
	for i := range w.plan.Clients {
		s.users = append(s.users, userOf(i))
		s.append(userOf(i), "m.room.member", string(userOf(i)), `{"membership":"join"}`)
	}
	return s
}

func (s *server) clock() int64 { return epoch + (s.w.now + s.w.plan.Server.Skew).Milliseconds() }

// suffer is a fault of the server.
func (s *server) suffer(a Action) {
	until := s.w.now + a.Lasts
	s.troubledUntil = max(s.troubledUntil, until)
	switch a.Kind {
	case restart, amnesia:
		if a.Kind == amnesia {
			clear(s.delayed)
		}
		s.down = true
		s.epoch++
		epoch := s.epoch
		for _, p := range s.polls {
			p.answer(nil, 0)
		}
		s.polls = nil
		s.w.at(until, func() {
			if s.epoch == epoch {
				s.down, s.upSince = false, s.w.now
				s.w.trace("server", "is back")
				s.fireDue()
			}
		})
	case forgetting:
		clear(s.delayed)
	case limits:
		s.limitsUntil = until
	case errors5xx:
		s.errorsUntil = until
	case slow:
		s.slowUntil = until
	}
}

func (s *server) slowness() time.Duration {
	if s.w.now < s.slowUntil {
		return s.w.between(100*time.Millisecond, 8*time.Second)
	}
	return 0
}

// --- room state

func (s *server) append(sender id.UserID, eventType, key, content string) id.EventID {
	if eventType == wire.TypeStateMember {
		s.w.trace("server", "%s of %s is %s", key, sender, content)
	}
	eventID := id.EventID(fmt.Sprintf("$%d", len(s.log)))
	s.state[eventType+"|"+key] = len(s.log)
	s.log = append(s.log, wire.Event{
		Type: eventType, StateKey: key, Sender: sender, EventID: eventID,
		OriginServerTS: s.clock(), Content: json.RawMessage(content),
	})
	if eventType == wire.TypeStateMember {
		s.members[key], _ = wire.ParseStateMember(s.log[len(s.log)-1], roomVersion, 24*time.Hour)
	}
	for _, p := range s.polls {
		s.w.at(s.w.now, func() { s.tell(p) })
	}
	s.polls = nil
	return eventID
}

// writeAs writes a membership. What changes nothing makes no event; what another user writes
// deletes the delayed events of the key's owner.
func (s *server) writeAs(sender id.UserID, key, content string) id.EventID {
	if now := s.standing(key); now != nil && string(now.Content) == content && now.Sender == sender {
		return now.EventID
	}
	for _, id := range slices.Sorted(maps.Keys(s.delayed)) {
		d := s.delayed[id]
		if d.key == key && (d.owner != sender || s.w.plan.Server.CancelsOnWrite) {
			s.w.trace("server", "the write cancels %s", d.id)
			delete(s.delayed, d.id)
		}
	}
	return s.append(sender, wire.TypeStateMember, key, content)
}

// standing is the event under a key, nil for none.
func (s *server) standing(key string) *wire.Event {
	if at, ok := s.state[wire.TypeStateMember+"|"+key]; ok {
		return &s.log[at]
	}
	return nil
}

// member is the membership under a key, as long as it has not expired.
func (s *server) member(key string) *wire.Membership {
	if m := s.members[key]; m != nil && m.ExpiresTS > s.clock() {
		return m
	}
	return nil
}

// --- delayed events (MSC4140)

func (s *server) schedule(owner id.UserID, r wire.Request) *delayedEvent {
	s.nextID++
	d := &delayedEvent{fmt.Sprintf("d%d", s.nextID), owner, r.StateKey, r.Content, r.Delay, s.w.now + r.Delay}
	s.delayed[d.id] = d
	s.w.at(d.due, func() { s.fireIfDue(d) })
	return d
}

func (s *server) fireIfDue(d *delayedEvent) {
	if s.delayed[d.id] == d && d.due <= s.w.now && !s.down {
		s.fire(d)
	}
}

func (s *server) fireDue() {
	var due []*delayedEvent
	for _, d := range s.delayed {
		if d.due <= s.w.now {
			due = append(due, d)
		}
	}
	slices.SortFunc(due, func(a, b *delayedEvent) int { return int(a.due - b.due) })
	for _, d := range due {
		s.fireIfDue(d)
	}
}

func (s *server) fire(d *delayedEvent) {
	s.w.trace("server", "%s fires", d.id)
	delete(s.delayed, d.id)
	s.writeAs(d.owner, d.key, string(d.body))
}

// armed are the delayed leaves of a state key that the server holds.
func (s *server) armed(key string) (leaves []*delayedEvent) {
	for _, d := range s.delayed {
		if d.key == key {
			leaves = append(leaves, d)
		}
	}
	return leaves
}

// --- requests

var ok = wire.Answer{}

func failed(status int, code string) wire.Answer {
	return wire.Answer{Err: &wire.Error{Status: status, Code: code, Message: code, Unsupported: code == "M_UNRECOGNIZED"}}
}

// serve does what a request asks.
func (s *server) serve(user id.UserID, r wire.Request) wire.Answer {
	return s.guarded(user, func() wire.Answer { return s.carryOut(user, r) })
}

// guarded is what may stand between a request and its being carried out.
func (s *server) guarded(user id.UserID, carryOut func() wire.Answer) wire.Answer {
	w := s.w
	if w.now < s.limitsUntil && w.chance(0.8) || !s.withinLimit(user) {
		a := failed(429, "M_LIMIT_EXCEEDED")
		if w.chance(0.8) {
			a.Err.RetryAfter = w.between(100*time.Millisecond, 4*time.Second)
		}
		return a
	}
	if w.now < s.errorsUntil && w.chance(0.8) {
		if w.chance(0.3) {
			carryOut() // a gateway lost the answer
		}
		return failed(502, "M_UNKNOWN")
	}
	return carryOut()
}

func (s *server) withinLimit(user id.UserID) bool {
	rate := s.w.plan.Server.RateLimit
	if rate == 0 || s.w.now >= faultsEnd {
		return true
	}
	b, known := s.buckets[user]
	if !known {
		b.tokens = 5
	}
	b.tokens = min(5, b.tokens+rate*(s.w.now-b.at).Seconds())
	b.at = s.w.now
	within := b.tokens >= 1
	if within {
		b.tokens--
	}
	s.buckets[user] = b
	return within
}

func (s *server) carryOut(user id.UserID, r wire.Request) wire.Answer {
	p := s.w.plan.Server
	switch r.Kind {
	case wire.SendState:
		return wire.Answer{EventID: s.writeAs(user, r.StateKey, string(r.Content))}
	case wire.GetCapabilities:
		if p.NoDelayedEvents || p.MaxDelay == 0 || !p.TellsMaxDelay {
			return ok
		}
		return wire.Answer{DelayedEvents: &wire.DelayedEventsCapability{MaxDelay: p.MaxDelay}}
	case wire.GetRoomMember:
		return wire.Answer{Joined: []id.UserID{id.UserID(r.StateKey)}}
	case wire.GetJoinedMembers:
		return wire.Answer{Joined: s.users}
	case wire.GetOpenID:
		return wire.Answer{Body: json.RawMessage(`{"access_token":"o","token_type":"Bearer","matrix_server_name":"x","expires_in":3600}`)}
	case wire.DelegateLeave:
		return s.w.takeOver(s.w.clients[slices.Index(s.users, user)], r)
	}
	if p.NoDelayedEvents {
		if r.Kind == wire.ScheduleDelayed && s.w.plan.Seed%2 == 0 {
			return failed(403, "M_FORBIDDEN") // it knows them and does not want them
		}
		return failed(404, "M_UNRECOGNIZED")
	}
	switch r.Kind {
	case wire.ScheduleDelayed:
		if p.MaxDelay > 0 && r.Delay > p.MaxDelay {
			a := failed(400, "M_UNKNOWN")
			a.Err.DelayTooLong = true
			if p.TellsMaxDelay {
				a.Err.MaxDelay = p.MaxDelay
			}
			return a
		}
		return wire.Answer{DelayID: s.schedule(user, r).id}
	case wire.ListDelayed:
		var a wire.Answer
		for _, d := range s.delayed {
			if d.owner == user {
				a.Delayed = append(a.Delayed, wire.DelayedEvent{DelayID: d.id, Room: theRoom, Type: wire.TypeStateMember, StateKey: d.key, Content: d.body})
			}
		}
		slices.SortFunc(a.Delayed, func(x, y wire.DelayedEvent) int { return int(s.delayed[x.DelayID].due - s.delayed[y.DelayID].due) })
		return a
	}
	if p.ActionsInBody && !r.InBody {
		return failed(404, "M_UNRECOGNIZED")
	}
	d := s.delayed[r.DelayID]
	if d == nil {
		return failed(404, "M_NOT_FOUND")
	}
	switch r.Kind {
	case wire.RestartDelayed:
		d.due = s.w.now + d.delay
		s.w.at(d.due, func() { s.fireIfDue(d) })
	case wire.SendDelayed:
		s.fire(d)
	case wire.CancelDelayed:
		delete(s.delayed, d.id)
	}
	return ok
}

// --- sync

const (
	timelineLimit = 10
	pollLasts     = 30 * time.Second
	pollPatience  = pollLasts + 10*time.Second // of the client
)

// sync answers at once if there is something to tell since then, else when there is.
func (s *server) sync(user *client, since int, answer func(in *session.RoomState, next int)) {
	p := &poll{user, since, s.epoch, answer}
	if since < len(s.log) || len(user.inbox) > 0 {
		s.tell(p)
		return
	}
	s.polls = append(s.polls, p)
	s.w.after(pollLasts, func() {
		if i := slices.Index(s.polls, p); i >= 0 {
			s.polls = slices.Delete(s.polls, i, i+1)
			answer(&session.RoomState{Room: theRoom}, p.since)
		}
	})
}

// wake answers the polls of a client for which there is mail.
func (s *server) wake(c *client) {
	for i := 0; i < len(s.polls); i++ {
		if p := s.polls[i]; p.user == c {
			s.polls = slices.Delete(s.polls, i, i+1)
			i--
			s.w.at(s.w.now, func() { s.tell(p) })
		}
	}
}

// tell answers a poll: with the whole state, with all that happened, or, where that is too much,
// with a gap: the state before the last few events and these.
func (s *server) tell(p *poll) {
	if p.epoch != s.epoch || s.down {
		p.answer(nil, 0)
		return
	}
	in := &session.RoomState{Room: theRoom, Reset: p.since == 0, Complete: p.since == 0}
	from := p.since
	cut := from
	if len(s.log)-from > timelineLimit || p.since == 0 {
		cut = len(s.log)
		if p.since > 0 {
			cut, in.Gap = len(s.log)-timelineLimit, true
		}
		before := map[string]int{}
		var keys []string
		for i := from; i < cut; i++ {
			k := s.log[i].Type + "|" + s.log[i].StateKey
			if _, seen := before[k]; !seen {
				keys = append(keys, k)
			}
			before[k] = i
		}
		s.w.random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		for _, k := range keys {
			s.add(in, s.log[before[k]])
		}
	}
	for _, ev := range s.log[cut:] {
		s.add(in, ev)
	}
	p.answer(in, len(s.log))
}

func (s *server) add(in *session.RoomState, ev wire.Event) {
	if ev.Type == "m.room.member" && s.w.plan.Server.LazyMembers {
		return
	}
	ev.AgeMS = max(s.clock()-ev.OriginServerTS, 1)
	in.Events = append(in.Events, ev)
}
