package session

import (
	"maps"
	"slices"
	"strings"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// A room as far as calls need it: what stands under each call member key, who of the senders is
// joined to the room, and the calls (slots) that result.
type room struct {
	set       *Set
	id        id.RoomID
	known     bool // its state has arrived in full
	version   string
	encrypted bool

	slots   map[string]*slot
	entries map[entryKey]entry
	users   map[id.UserID]*user // the senders of entries, and some who were that lately
	past    []id.UserID         // of these, who has none now: they often come back
	unknown map[id.UserID]bool  // of these, whose room membership we have yet to learn

	touched []*slot // to be flushed

	fetching task
	timer    timer // of the next fetch

	refused      []RefusedMember // the latest, for the debug snapshot
	refusedCount int
}

type entryKey struct{ eventType, stateKey string }

type entry struct {
	slot   *slot
	source *source
}

func (e entry) membership() *wire.Membership {
	if e.source == nil {
		return nil
	}
	return e.source.m
}

type user struct {
	state   roomMember
	entries int
	members []*rosterMember // in all calls of the room
}

// slot is one call of a room.
type slot struct {
	room    *room
	id      string
	roster  *roster
	session *own  // opened by the host, or nil
	live    bool  // session_started was told
	timer   timer // of the next expiry
	touched bool  // it is among those of the room
}

const (
	devicesPerUser  = 512 // member events that one user may have in one room
	refusedRemember = 32
	pastRemembered  = 256 // users of a room without a call membership now
	reasonLeft      = "left"
	reasonRoomLeft  = "room_left"
	reasonRefused   = "invalid"
)

func (s *Set) room(roomID id.RoomID) *room {
	r := s.rooms[roomID]
	if r == nil {
		r = &room{
			set: s, id: roomID, slots: map[string]*slot{}, entries: map[entryKey]entry{},
			users: map[id.UserID]*user{}, unknown: map[id.UserID]bool{},
		}
		r.timer.run = r.fetch
		s.rooms[roomID] = r
	}
	return r
}

func (r *room) slot(slotID string) *slot {
	sl := r.slots[slotID]
	if sl == nil {
		sl = &slot{room: r, id: slotID, roster: newRoster(slotID, r.users)}
		sl.timer.run = func(now Time) { sl.touch(); r.flush(now) }
		r.slots[slotID] = sl
	}
	return sl
}

// forget drops a slot in which nothing is and that nobody watches.
func (s *Set) forget(r *room, sl *slot) {
	if sl.session == nil && sl.roster.empty() && !sl.live {
		s.timers.set(&sl.timer, never)
		delete(r.slots, sl.id)
	}
}

func (s *Set) roomState(now Time, in RoomState) {
	r := s.room(in.Room)
	joined := map[id.UserID]roomMember{}
	for i := range in.Events {
		switch ev := &in.Events[i]; ev.Type {
		case "m.room.member":
			joined[id.UserID(ev.StateKey)] = roomMemberOf(gjson.GetBytes(ev.Content, "membership").Str)
		case "m.room.create":
			r.version = "1"
			if v := gjson.GetBytes(ev.Content, "room_version"); v.Type == gjson.String {
				r.version = strings.Clone(v.Str)
			}
		case "m.room.encryption":
			if !r.encrypted {
				r.encrypted = true // cannot be undone
				for _, sl := range r.slots {
					if sl.session != nil {
						s.timers.set(&sl.session.timer, now.Boot) // keys are managed from now on
					}
				}
			}
		}
	}
	if in.Gap || in.Reset {
		r.forgetPast(len(r.past))
	}
	for u, state := range joined {
		r.setMember(u, state)
	}
	for _, m := range in.Malformed {
		r.refuse(m)
	}
	stale := map[entryKey]bool{}
	if in.Reset {
		for k := range r.entries {
			stale[k] = true
		}
	}
	for i := range in.Events {
		ev := &in.Events[i]
		if !wire.IsStateMember(ev.Type) {
			continue
		}
		delete(stale, entryKey{ev.Type, ev.StateKey})
		r.ingest(now, ev, joined)
	}
	for k := range stale {
		r.drop(k, reasonLeft)
		r.showOwn(now, k, ownState{})
	}
	if in.Gap {
		r.forgetPast(len(r.past))
		for u := range r.users {
			if _, told := joined[u]; !told && u != s.cfg.UserID {
				r.unknown[u] = true
			}
		}
	}
	if in.Complete && !r.known {
		r.known = true
		for _, sl := range r.slots {
			if sl.session != nil {
				sl.session.wakeAt = now.Boot
				s.timers.set(&sl.session.timer, now.Boot)
			}
		}
	}
	r.flush(now)
	r.fetch(now)
}

// ingest puts one call member event in its place.
func (r *room) ingest(now Time, ev *wire.Event, joined map[id.UserID]roomMember) {
	k := entryKey{ev.Type, ev.StateKey}
	if ev.Sender == r.set.cfg.UserID && ev.AgeMS > 0 {
		r.set.learnClock(now, ev.OriginServerTS+ev.AgeMS, 5000)
	}
	m, reason := wire.ParseStateMember(*ev, r.version, r.set.cfg.MaxExpiry)
	if m != nil {
		m.ExpiresTS = min(m.ExpiresTS, r.set.latestExpiry(now))
		u := r.users[ev.Sender]
		if _, replaces := r.entries[k]; !replaces && u != nil && u.entries >= devicesPerUser {
			m, reason = nil, "too many members of one user"
		}
	}
	if m == nil {
		why := reasonLeft
		if reason != "" {
			why = reasonRefused
			r.refuse(RefusedMember{ev.Sender, ev.StateKey, reason})
		}
		r.drop(k, why)
	} else {
		r.put(k, m, joined)
	}
	shown := ownState{known: true, eventID: ev.EventID, sender: ev.Sender, originTS: ev.OriginServerTS}
	if m != nil && m.UserID == r.set.cfg.UserID && m.DeviceID == r.set.cfg.DeviceID {
		shown.ours, shown.joinedTS, shown.expiresTS, shown.content = true, m.JoinedTS, m.ExpiresTS, ev.Content
	}
	r.showOwn(now, k, shown)
}

func (r *room) put(k entryKey, m *wire.Membership, joined map[id.UserID]roomMember) {
	old, replaces := r.entries[k]
	if replaces && (old.slot.id != m.SlotID || old.source.m.UserID != m.UserID) {
		r.drop(k, reasonLeft)
		old, replaces = entry{}, false
	}
	sl := r.slot(m.SlotID)
	if !replaces {
		u := r.users[m.UserID]
		if u == nil {
			u = &user{state: joined[m.UserID]}
			if m.UserID == r.set.cfg.UserID {
				u.state = memberJoined // we see the room
			}
			r.users[m.UserID] = u
		}
		if u.state == memberUnknown {
			r.unknown[m.UserID] = true
		}
		u.entries++
	}
	r.entries[k] = entry{slot: sl, source: sl.roster.put(old.source, m)}
	sl.touch()
}

func (r *room) drop(k entryKey, reason string) {
	e, ok := r.entries[k]
	if !ok {
		return
	}
	delete(r.entries, k)
	e.slot.roster.remove(e.source, reason)
	e.slot.touch()
	userID := e.source.m.UserID
	if u := r.users[userID]; u != nil {
		if u.entries--; u.entries == 0 {
			delete(r.unknown, userID)
			r.past = append(r.past, userID)
			if len(r.past) > pastRemembered {
				r.forgetPast(1)
			}
		}
	}
}

// forgetPast drops those of the past who have not come back, n of them, longest gone first.
func (r *room) forgetPast(n int) {
	for _, userID := range r.past[:n] {
		if u := r.users[userID]; u != nil && u.entries == 0 {
			delete(r.users, userID)
		}
	}
	r.past = append(r.past[:0], r.past[n:]...)
}

func (r *room) setMember(userID id.UserID, state roomMember) {
	u := r.users[userID]
	delete(r.unknown, userID)
	if u == nil || u.state == state {
		return
	}
	u.state = state
	for _, rm := range u.members {
		rm.roster.reconsider(rm, reasonRoomLeft)
	}
	for _, sl := range r.slots {
		sl.touch()
	}
}

// showOwn tells the session whose state key this is what now stands there.
func (r *room) showOwn(now Time, k entryKey, s ownState) {
	if k.eventType != wire.TypeStateMember || !strings.Contains(k.stateKey, string(r.set.cfg.UserID)) {
		return
	}
	for _, sl := range r.slots {
		if o := sl.session; o != nil && k.stateKey == wire.StateMemberKey(r.set.cfg.UserID, r.set.cfg.DeviceID, sl.id, r.version) {
			o.observe(now, s)
			r.set.timers.set(&o.timer, now.Boot)
		}
	}
}

func (r *room) refuse(m RefusedMember) {
	r.refusedCount++
	if len(r.refused) == refusedRemember {
		r.refused = append(r.refused[:0], r.refused[1:]...)
	}
	r.refused = append(r.refused, m)
}

// expire shows what is over by now, should the timer for it be late.
func (sl *slot) expire(now Time) {
	if at, ok := sl.roster.nextExpiry(); ok && at <= sl.room.set.serverTime(now) {
		sl.touch()
		sl.room.flush(now)
	}
}

// touch has the next flush look at the slot.
func (sl *slot) touch() {
	if !sl.touched {
		sl.touched = true
		sl.room.touched = append(sl.room.touched, sl)
	}
}

// flush tells what has changed in the calls of the room.
func (r *room) flush(now Time) {
	server := r.set.serverTime(now)
	touched := r.touched
	r.touched = nil
	slices.SortFunc(touched, func(a, b *slot) int { return strings.Compare(a.id, b.id) })
	for _, sl := range touched {
		sl.touched = false
		sl.roster.expire(server)
		d := sl.roster.diff()
		live := sl.roster.len() > 0
		call := CallChanged{sl.id, wire.CallID(sl.id)}
		if live && !sl.live {
			sl.live = true
			r.set.tell(Event{Name: EventSessionStarted, Room: r.id, Data: call})
		}
		if o := sl.session; d != nil && o != nil {
			r.set.tell(Event{EventMembershipsChanged, r.id, o.session, sl.changed(d)})
			o.keys.members(now, d)
			o.rings.members(now, d)
			if moved := o.sfus.members(d); moved || o.keys.on {
				r.set.timers.set(&o.timer, now.Boot)
			}
		}
		if !live && sl.live {
			sl.live = false
			r.set.tell(Event{Name: EventSessionEnded, Room: r.id, Data: call})
		}
		at := never
		if next, ok := sl.roster.nextExpiry(); ok {
			at = now.Boot + ms(max(next-server, 0))
		}
		r.set.timers.set(&sl.timer, at)
		r.set.forget(r, sl)
	}
}

func (s *Set) roomLeft(now Time, roomID id.RoomID) {
	r := s.rooms[roomID]
	if r == nil {
		return
	}
	for k := range r.entries {
		r.drop(k, reasonRoomLeft)
	}
	r.known = false
	r.forgetPast(len(r.past))
	s.timers.set(&r.timer, never)
	for _, sl := range r.slots {
		if sl.session != nil {
			sl.session.roomLeft(now)
			s.step(now, sl.session)
		}
	}
	r.flush(now)
	if len(r.slots) == 0 {
		delete(s.rooms, roomID)
	}
}

// fetch learns the room membership of senders that the sync did not tell (lazy loading): one
// request at a time, for one user or for all that are missing.
func (r *room) fetch(now Time) {
	if len(r.unknown) == 0 {
		r.set.timers.set(&r.timer, never)
		return
	}
	req := wire.Request{Kind: wire.GetJoinedMembers, Room: r.id}
	asked := slices.Sorted(maps.Keys(r.unknown))
	if len(asked) == 1 {
		req.Kind, req.Type, req.StateKey = wire.GetRoomMember, "m.room.member", string(asked[0])
	}
	again, _ := r.set.ask(now, nil, &r.fetching, req, func(now Time, a wire.Answer, _ bool) {
		switch e := a.Err; {
		case e == nil:
			in := map[id.UserID]bool{}
			for _, u := range a.Joined {
				in[u] = true
			}
			for _, u := range asked {
				if !r.unknown[u] {
					continue
				}
				state := memberNotJoined
				if in[u] {
					state = memberJoined
				}
				r.setMember(u, state)
			}
		case e.Status == 404 && req.Kind == wire.GetRoomMember:
			r.setMember(asked[0], memberNotJoined)
		default:
			r.set.backOff(now, &r.fetching, e)
		}
		r.flush(now)
		r.fetch(now)
	})
	r.set.timers.set(&r.timer, again)
}

func (r *room) waiting() []id.UserID {
	list := []id.UserID{}
	for u := range r.unknown {
		if list = append(list, u); len(list) == refusedRemember {
			break
		}
	}
	return list
}

func roomMemberOf(membership string) roomMember {
	if membership == "join" {
		return memberJoined
	}
	return memberNotJoined
}

// own is our own membership of this call as the server shows it.
func (sl *slot) own(o *own) *wire.Membership {
	key := wire.StateMemberKey(o.set.cfg.UserID, o.set.cfg.DeviceID, sl.id, sl.room.version)
	return sl.room.entries[entryKey{wire.TypeStateMember, key}].membership()
}

func (sl *slot) member(m *wire.Membership) Member {
	return Member{
		UserID: m.UserID, DeviceID: m.DeviceID, MemberID: m.MemberID, SlotID: m.SlotID,
		Application: m.Application, CallID: m.CallID, Dialect: m.Dialect, EventID: m.EventID,
		JoinedTS: m.JoinedTS, ExpiresTS: m.ExpiresTS, Intent: m.Intent,
		ApplicationData: m.ApplicationData, FocusSelection: m.FocusSelection, Transports: m.Transports,
		ActiveTransport: sl.roster.activeTransport(m), SFUIdentity: livekit.Identity(m), Scope: m.Scope,
	}
}

func (sl *slot) changed(d *rosterDiff) MembershipsChanged {
	c := MembershipsChanged{Joined: []Member{}, Left: []Departure{}, Updated: []Update{}, Count: sl.roster.len()}
	for _, m := range d.joined {
		c.Joined = append(c.Joined, sl.member(m))
	}
	for _, l := range d.left {
		c.Left = append(c.Left, Departure{sl.member(l.m), l.reason})
	}
	for _, u := range d.updated {
		c.Updated = append(c.Updated, Update{sl.member(u.before), sl.member(u.after)})
	}
	return c
}
