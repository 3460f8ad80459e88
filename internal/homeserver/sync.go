package homeserver

import (
	"maps"
	"slices"
	"sort"
	"time"
)

// /sync: what has happened since a position in the rooms of a user, through a filter.

var syncRoutes = []route{
	{"sync", "GET", "/v3/sync", needsToken, (*Server).sync},
	{"filter", "POST", "/v3/user/{user}/filter", needsToken, (*Server).createFilter},
	{"filter", "GET", "/v3/user/{user}/filter/{filter}", needsToken, (*Server).getFilter},
}

// syncAnswer is the answer. Each section is made by one function of its own.
type syncAnswer struct {
	NextBatch       string         `json:"next_batch"`
	Rooms           *syncRooms     `json:"rooms,omitempty"`
	AccountData     *accountDataOf `json:"account_data,omitempty"`
	ToDevice        *toDeviceOf    `json:"to_device,omitempty"`
	DeviceLists     *deviceLists   `json:"device_lists,omitempty"`
	OneTimeKeys     map[string]int `json:"device_one_time_keys_count"`
	UnusedFallbacks []string       `json:"device_unused_fallback_key_types"`
}

// hasNews says whether there is something that a client would wait for.
func (a *syncAnswer) hasNews() bool {
	return a.Rooms != nil || a.AccountData != nil || a.ToDevice != nil || a.DeviceLists != nil
}

type syncRooms struct {
	Join   map[string]*joinedRoom  `json:"join,omitempty"`
	Invite map[string]*invitedRoom `json:"invite,omitempty"`
	Leave  map[string]*leftRoom    `json:"leave,omitempty"`
}

type leftRoom struct {
	Timeline    timeline `json:"timeline"`
	State       eventsOf `json:"state"`
	AccountData eventsOf `json:"account_data"`
}

type joinedRoom struct {
	leftRoom
	Ephemeral           eventsOf `json:"ephemeral"`
	UnreadNotifications struct {
		NotificationCount int `json:"notification_count"`
		HighlightCount    int `json:"highlight_count"`
	} `json:"unread_notifications"`
	Summary summary `json:"summary"`
}

type invitedRoom struct {
	InviteState eventsOf `json:"invite_state"`
}

type timeline struct {
	Events    []clientEvent `json:"events"`
	PrevBatch string        `json:"prev_batch"`
	Limited   bool          `json:"limited"`
}

type eventsOf struct {
	Events []clientEvent `json:"events"`
}

type summary struct {
	Joined  *int     `json:"m.joined_member_count,omitempty"`
	Invited *int     `json:"m.invited_member_count,omitempty"`
	Heroes  []string `json:"m.heroes,omitempty"`
}

// syncing is one request to sync. A first one has since -1.
type syncing struct {
	s         *Server
	device    *device
	filter    *filter
	since     int64
	fullState bool
	now       int64 // server time
	met       meetings
}

const longestPoll = 3_600_000 // ms, whatever the client asks for

// sync answers at once where there is news, else when there is some or the timeout has passed.
func (s *Server) sync(r *request) (any, error) {
	q := r.URL.Query()
	timeout, _, err := r.integer("timeout")
	if err != nil {
		return nil, err
	}
	sy := &syncing{s: s, device: r.device, since: -1, fullState: q.Get("full_state") == "true"}
	if sy.filter, err = r.user.filterOf(q.Get("filter")); err != nil {
		return nil, err
	}
	if since := q.Get("since"); since != "" {
		heard := int64(0)
		if sy.since, heard, err = parseSyncToken(since); err != nil {
			return nil, err
		}
		r.device.heard(heard)
	}
	timer := time.NewTimer(time.Duration(min(timeout, longestPoll)) * time.Millisecond)
	defer timer.Stop()
	for waiting := true; ; {
		a := sy.answer()
		if a.hasNews() || sy.since < 0 || sy.fullState || timeout <= 0 || !waiting {
			return a, nil
		}
		news := r.user.news()
		s.mu.Unlock()
		select {
		case <-news:
		case <-timer.C:
			waiting = false
		case <-r.Context().Done():
		}
		s.mu.Lock()
		if r.Context().Err() != nil {
			return a, nil // nobody reads it
		}
		if err := s.authenticate(r, needsToken); err != nil {
			return nil, err // the token has ended meanwhile
		}
	}
}

func (sy *syncing) answer() *syncAnswer {
	sy.now, sy.met = sy.s.now(), newMeetings()
	end := max(sy.s.pos, sy.since)
	a := &syncAnswer{
		Rooms: sy.rooms(), AccountData: sy.accountData(),
		OneTimeKeys: sy.device.oneTimeCounts(), UnusedFallbacks: sy.device.unusedFallbacks(),
	}
	var heard int64
	a.ToDevice, heard = sy.device.messages(end)
	a.NextBatch = formatSyncToken(end, heard)
	if sy.since >= 0 {
		if lists := sy.met.deviceLists(sy.s, sy.device.user, sy.since); lists.Changed != nil || lists.Left != nil {
			a.DeviceLists = lists
		}
	}
	return a
}

func (sy *syncing) rooms() *syncRooms {
	rooms := &syncRooms{Join: map[string]*joinedRoom{}, Invite: map[string]*invitedRoom{}, Leave: map[string]*leftRoom{}}
	if sy.since < 0 || sy.fullState {
		clear(sy.device.seen)
	}
	for room := range sy.device.user.rooms {
		if !sy.filter.takes(room) {
			continue
		}
		me := room.member(sy.device.user.id)
		switch is := me.membership(); {
		case is == "join":
			if joined := sy.joined(room, me); joined != nil {
				rooms.Join[room.id] = joined
			}
		case is == "invite":
			if me.pos > sy.since {
				rooms.Invite[room.id] = &invitedRoom{eventsOf{room.inviteState(me)}}
			}
		case sy.since < 0 && sy.filter.Room.IncludeLeave || sy.since >= 0 && me.pos > sy.since:
			if left := sy.left(room, me); left != nil {
				rooms.Leave[room.id] = left
			}
		}
	}
	if len(rooms.Join)+len(rooms.Invite)+len(rooms.Leave) == 0 {
		return nil
	}
	return rooms
}

// inviteState is what somebody invited may know of a room.
func (r *room) inviteState(invite *event) []clientEvent {
	var known []clientEvent
	for _, k := range []stateKey{
		{"m.room.create", ""}, {"m.room.join_rules", ""}, {"m.room.canonical_alias", ""}, {"m.room.avatar", ""},
		{"m.room.name", ""}, {"m.room.topic", ""}, {"m.room.encryption", ""}, {"m.room.member", invite.sender},
	} {
		if e := r.current[k]; e != nil {
			known = append(known, e.stripped())
		}
	}
	return append(known, invite.stripped())
}

// wasIn says whether the user was in the room at since and never left it till the event me.
func (sy *syncing) wasIn(me *event) bool {
	for ; me != nil && me.pos > sy.since; me = me.prev {
		if me.prev.membership() != "join" {
			return false
		}
	}
	return me.membership() == "join"
}

func (sy *syncing) joined(r *room, me *event) *joinedRoom {
	stay := span{room: r, since: sy.since, end: sy.s.pos}
	switch {
	case sy.since < 0:
		stay.whole = true
	case !sy.wasIn(me):
		stay.whole, stay.newly = true, true
	default:
		stay.whole = sy.fullState
		if r.after(sy.since) == len(r.log) && !sy.fullState {
			return nil
		}
	}
	b := sy.batch(stay)
	if len(b.events) == 0 && !stay.whole {
		return nil
	}
	state := sy.state(stay, b)
	out := &joinedRoom{Ephemeral: eventsOf{[]clientEvent{}}}
	if sy.filter.lazy() && sy.wantsSummary(b, state) {
		out.Summary = sy.summary(r, b, state)
	}
	out.leftRoom = sy.entry(b, state)
	if stay.newly {
		sy.met.joined(r)
	}
	for _, e := range state {
		if sy.filter.Room.State.matches(e) {
			sy.met.seen(e, e.prev.membership() == "join")
		}
	}
	for _, e := range b.events {
		sy.met.seen(e, e.prev.membership() == "join")
	}
	return out
}

func (sy *syncing) left(r *room, me *event) *leftRoom {
	stay := span{room: r, since: sy.since, end: me.pos, whole: sy.since < 0}
	switch {
	case me.prev.membership() != "join":
		if sy.since < 0 {
			return nil
		}
		stay.since = me.pos - 1 // never in, or not since: its own event is all it may see
	case sy.since >= 0 && !sy.wasIn(me.prev):
		stay.whole, stay.newly = true, true // came and went
	}
	if sy.since >= 0 && me.prev.membership() == "join" {
		sy.met.left(r)
	}
	b := sy.batch(stay)
	if len(b.events) == 0 && !stay.whole {
		return nil
	}
	out := sy.entry(b, sy.state(stay, b))
	return &out
}

func (sy *syncing) entry(b batch, state map[stateKey]*event) leftRoom {
	out := leftRoom{AccountData: eventsOf{[]clientEvent{}}}
	out.Timeline = timeline{Events: []clientEvent{}, PrevBatch: formatToken(b.before), Limited: b.limited}
	for _, e := range b.events {
		out.Timeline.Events = append(out.Timeline.Events, e.inTimeline(sy.now, sy.device))
	}
	list := slices.Collect(maps.Values(state))
	sort.Slice(list, func(i, j int) bool { return list[i].pos < list[j].pos })
	out.State.Events = []clientEvent{}
	for _, e := range list {
		if sy.filter.Room.State.matches(e) {
			out.State.Events = append(out.State.Events, e.asState(sy.now, sy.device))
		}
	}
	return out
}

// span is the part of a room's life that a sync tells of.
type span struct {
	room  *room
	since int64
	end   int64
	whole bool // the client is to learn the room's whole state
	newly bool // the user has come since
}

// batch is the timeline of a span.
type batch struct {
	events  []*event
	before  int64 // the position before the first of them
	limited bool  // older ones are left out
	linear  bool  // and none in between
}

// batch takes the newest events that match. As Synapse, it looks back only so far for them, and
// calls a timeline limited where it had to look back and did not come to its beginning.
func (sy *syncing) batch(sp span) batch {
	f := sy.filter.Room.Timeline
	limit := f.limit()
	log := sp.room.log
	end := sp.room.after(sp.end)
	begin := 0
	if !sp.newly && sp.since >= 0 {
		begin = sp.room.after(sp.since)
	}
	b := batch{before: sp.end}
	at := end
	take := func(n int) {
		var more []*event
		from := max(begin, at-n)
		for _, e := range log[from:at] {
			if f.matches(e) {
				more = append(more, e)
			}
		}
		b.events = append(more, b.events...)
		at = from
		b.limited = from > begin
	}
	switch {
	case f.nothing():
		return b
	case sp.since >= 0 && !sp.newly && end-begin <= limit:
		take(limit)
	case sp.since >= 0 && !sp.newly:
		take(limit + 1)
		b.limited = true
	default:
		b.limited = true
	}
	for tries := 0; b.limited && len(b.events) < limit && tries < 5; tries++ {
		take(max(2*limit, 10))
	}
	if at < len(log) {
		b.before = log[at].pos - 1
	}
	if len(b.events) > limit {
		b.events, b.limited = b.events[len(b.events)-limit:], true
	}
	if len(b.events) > 0 && (b.limited || sp.since >= 0 && !sp.newly) {
		b.before = b.events[0].pos - 1
	}
	b.linear = !b.limited && len(b.events) == end-begin
	b.limited = b.limited || sp.newly
	return b
}

// state is what the client has to know beside the timeline: the state where the timeline begins,
// or how that differs from the one at since, and what of the state changed behind the filter.
func (sy *syncing) state(sp span, b batch) map[stateKey]*event {
	first := sp.end // the position of the first event of the timeline
	contained := map[stateKey]*event{}
	senders := map[string]bool{}
	if len(b.events) > 0 {
		first = b.events[0].pos
	}
	for _, e := range b.events {
		senders[e.sender] = true
		if e.key != nil {
			contained[e.state()] = e
		}
	}
	lazy := sy.filter.lazy()
	out := map[stateKey]*event{}
	consider := func(k stateKey, since int64) {
		now := sp.room.current[k].at(sp.end)
		begin := now.at(first)
		switch {
		case now != nil && now != contained[k] && now.pos > since:
			out[k] = now
		case begin != nil && begin != contained[k] && begin.pos > since:
			out[k] = begin
		}
	}
	skip := func(k stateKey) bool {
		return lazy && k.typ == "m.room.member" && !senders[k.key]
	}
	if sp.whole {
		senders[sy.device.user.id] = true
		for k := range sp.room.current {
			if !skip(k) {
				consider(k, -1)
			}
		}
		for k, e := range out {
			sy.remember(k, e)
		}
		return out
	}
	if !b.linear || b.limited {
		for _, e := range sp.room.log[sp.room.after(sp.since):sp.room.after(sp.end)] {
			if e.key != nil && (b.limited || !skip(e.state())) {
				consider(e.state(), sp.since)
			}
		}
	}
	if lazy {
		for u := range senders {
			k := stateKey{"m.room.member", u}
			e := sp.room.current[k].at(first)
			if e != nil && out[k] == nil && e != contained[k] && !sy.knows(e) {
				out[k] = e
			}
		}
	}
	for k, e := range out {
		sy.remember(k, e)
	}
	for k, e := range contained {
		sy.remember(k, e)
	}
	return out
}

// Lazy loading sends a member once. What was sent in an answer that the client never got is known
// from its asking for the same position again.

type lazyKey struct {
	room *room
	user string
}

type sentMember struct {
	event *event
	pos   int64 // of the answer
}

func (sy *syncing) remember(k stateKey, e *event) {
	if k.typ == "m.room.member" && sy.filter.lazy() {
		sy.device.seen[lazyKey{e.room, k.key}] = sentMember{e, sy.s.pos}
	}
}

func (sy *syncing) knows(e *event) bool {
	if sy.filter.Room.State.IncludeRedundantMembers {
		return false
	}
	sent := sy.device.seen[lazyKey{e.room, *e.key}]
	return sent.event == e && sent.pos <= sy.since
}

func (sy *syncing) wantsSummary(b batch, state map[stateKey]*event) bool {
	isMember := func(e *event) bool { return e.key != nil && e.typ == "m.room.member" }
	return sy.since < 0 || slices.ContainsFunc(b.events, isMember) ||
		b.limited && slices.ContainsFunc(slices.Collect(maps.Values(state)), isMember)
}

// summary lets a client that knows few members name a room that has no name. It adds to state the
// members that it names.
func (sy *syncing) summary(r *room, b batch, state map[stateKey]*event) summary {
	joined, invited := 0, 0
	var others []*event
	for id, e := range r.members {
		switch e.membership() {
		case "join":
			joined++
		case "invite":
			invited++
		default:
			continue
		}
		if id != sy.device.user.id {
			others = append(others, e)
		}
	}
	sort.Slice(others, func(i, j int) bool { return others[i].pos < others[j].pos })
	out := summary{Joined: &joined, Invited: &invited}
	if r.current[stateKey{"m.room.name", ""}] != nil || r.current[stateKey{"m.room.canonical_alias", ""}] != nil {
		return out // it has a name
	}
	for _, e := range others[:min(5, len(others))] {
		out.Heroes = append(out.Heroes, *e.key)
		if !slices.Contains(b.events, e) && !sy.knows(e) {
			state[e.state()] = e
			sy.remember(e.state(), e)
		}
	}
	return out
}
