package session

import (
	"strings"
	"time"

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
	users   map[id.UserID]*user // the senders of entries
	unknown map[id.UserID]bool  // of these, whose room membership we have yet to learn

	fetching task
	timer    timer // of the next fetch

	refused      []RefusedMember // the latest, for the debug snapshot
	refusedCount int
}

type entryKey struct{ eventType, stateKey string }

type entry struct {
	slot  *slot
	state ownState
	m     *wire.Membership
}

type user struct {
	state   roomMember
	entries int
}

// slot is one call of a room.
type slot struct {
	room    *room
	id      string
	roster  *roster
	session *own  // opened by the host, or nil
	live    bool  // session_started was told
	timer   timer // of the next expiry
	touched bool
}

const (
	maxExpiry       = 24 * time.Hour
	devicesPerUser  = 512 // member events that one user may have in one room
	refusedRemember = 32
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
		sl = &slot{room: r, id: slotID, roster: newRoster(slotID)}
		sl.timer.run = func(now Time) { sl.touched = true; r.flush(now) }
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
			r.encrypted = true // cannot be undone
		}
	}
	if in.Gap {
		for u := range r.users {
			r.unknown[u] = true
		}
		delete(r.unknown, s.cfg.UserID)
	}
	for u, state := range joined {
		r.setMember(u, state)
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
		r.set.clock.learn(now, ev.OriginServerTS+ev.AgeMS, 5000)
	}
	m, reason := wire.ParseStateMember(*ev, r.version, maxExpiry)
	if m != nil {
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
	ours := m != nil && m.UserID == r.set.cfg.UserID && m.DeviceID == r.set.cfg.DeviceID
	r.showOwn(now, k, ownState{true, ev.EventID, ev.Sender, ev.OriginServerTS, ours})
}

func (r *room) put(k entryKey, m *wire.Membership, joined map[id.UserID]roomMember) {
	old, replaces := r.entries[k]
	if replaces && (old.slot.id != m.SlotID || old.m.UserID != m.UserID) {
		r.drop(k, reasonLeft)
		replaces = false
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
			if u.state == memberUnknown {
				r.unknown[m.UserID] = true
			}
		}
		u.entries++
	}
	r.entries[k] = entry{slot: sl, m: m, state: ownState{true, m.EventID, m.UserID, m.OriginServerTS, false}}
	sl.roster.put(k.eventType+"|"+k.stateKey, m)
	sl.roster.setRoomMember(m.UserID, r.users[m.UserID].state)
	sl.touched = true
}

func (r *room) drop(k entryKey, reason string) {
	e, ok := r.entries[k]
	if !ok {
		return
	}
	delete(r.entries, k)
	e.slot.roster.remove(k.eventType+"|"+k.stateKey, reason)
	e.slot.touched = true
	if u := r.users[e.m.UserID]; u != nil {
		if u.entries--; u.entries == 0 {
			delete(r.users, e.m.UserID)
			delete(r.unknown, e.m.UserID)
		}
	}
}

func (r *room) setMember(userID id.UserID, state roomMember) {
	u := r.users[userID]
	delete(r.unknown, userID)
	if u == nil || u.state == state {
		return
	}
	u.state = state
	for _, sl := range r.slots {
		sl.roster.setRoomMember(userID, state)
		sl.touched = true
	}
}

// showOwn tells the session whose state key this is what now stands there.
func (r *room) showOwn(now Time, k entryKey, s ownState) {
	if k.eventType != wire.TypeStateMember {
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

// flush tells what has changed in the calls of the room.
func (r *room) flush(now Time) {
	server := r.set.serverTime(now)
	for _, sl := range r.slots {
		if !sl.touched {
			continue
		}
		sl.touched = false
		sl.roster.expire(server)
		d := sl.roster.diff()
		live := sl.roster.len() > 0
		call := CallChanged{sl.id, wire.CallID(sl.id)}
		if live && !sl.live {
			sl.live = true
			r.set.tell(Event{Name: EventSessionStarted, Room: r.id, Data: call})
		}
		if d != nil && sl.session != nil {
			r.set.tell(Event{EventMembershipsChanged, r.id, sl.session.session, sl.changed(d)})
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
	t := &r.fetching
	if len(r.unknown) == 0 {
		r.set.timers.set(&r.timer, never)
		return
	}
	if t.inflight != 0 && now.Boot >= t.timeoutAt {
		r.set.abandon(t.inflight)
		t.inflight = 0
		r.fetchFailed(now)
	}
	if t.inflight != 0 {
		r.set.timers.set(&r.timer, t.timeoutAt)
		return
	}
	if now.Boot < t.notBefore {
		r.set.timers.set(&r.timer, t.notBefore)
		return
	}
	req := wire.Request{Kind: wire.GetJoinedMembers, Room: r.id, Timeout: requestTimeout}
	var asked []id.UserID
	for u := range r.unknown {
		asked = append(asked, u)
	}
	if len(asked) == 1 {
		req.Kind, req.Type, req.StateKey = wire.GetRoomMember, "m.room.member", string(asked[0])
	}
	t.timeoutAt = now.Boot + requestTimeout
	var reqID uint64
	reqID = r.set.request(req, func(now Time, a wire.Answer) {
		if t.inflight != reqID {
			return
		}
		t.inflight = 0
		switch e := a.Err; {
		case e == nil:
			t.failures = 0
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
			r.fetchFailed(now)
		}
		r.flush(now)
		r.fetch(now)
	})
	t.inflight = reqID
	r.set.timers.set(&r.timer, t.timeoutAt)
}

func (r *room) fetchFailed(now Time) {
	t := &r.fetching
	pause := min(time.Second<<min(t.failures, 10), retryAtMost)
	t.failures++
	t.notBefore = now.Boot + pause/2 + time.Duration(r.set.random()*float64(pause/2))
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
	return sl.room.entries[entryKey{wire.TypeStateMember, key}].m
}

func (sl *slot) member(m *wire.Membership) Member {
	return Member{
		UserID: m.UserID, DeviceID: m.DeviceID, MemberID: m.MemberID, SlotID: m.SlotID,
		Application: m.Application, CallID: m.CallID, Dialect: m.Dialect, EventID: m.EventID,
		JoinedTS: m.JoinedTS, ExpiresTS: m.ExpiresTS, Intent: m.Intent,
		ApplicationData: m.ApplicationData, FocusSelection: m.FocusSelection, Transports: m.Transports,
		ActiveTransport: sl.roster.activeTransport(m), SFUIdentity: m.SFUIdentity(), Scope: m.Scope,
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
