package session

import (
	"bytes"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// The media keys of the others, by participant and index. A key is taken in when its Olm sender is
// the member that it claims to be from. One that comes before its membership is held for a while,
// within bounds, and released when the member appears.
//
// The keys of a member that left are kept for some time, and told again when it is back: one whose
// membership merely lapsed does not send them again.

type keyrings struct {
	o        *own
	rings    map[memberKey]*ring
	departed []memberKey // whose rings are kept, longest gone first
	awaited  []awaited   // whose first key is looked for, soonest first
}

type ring struct {
	keys    []ringKey // oldest first
	here    bool
	fresh   bool // a key came in this membership
	missing bool // told
	credit  float64
	at      time.Duration
}

type ringKey struct {
	index  int
	key    []byte
	sentTS int64
	stale  bool // of an earlier membership: any key of the present one replaces it
}

type awaited struct {
	key      memberKey
	memberID string
	joinedTS int64
	at       time.Duration
}

const (
	keysPerMember   = 16
	departedKept    = 256
	keysPerSecond   = 4 // from one member, in the long run
	keysAtOnce      = 64
	heldKeysAtMost  = 256
	heldPerSender   = 16
	heldKeysFor     = time.Minute
	reasonsRemember = 64
)

func (r *keyrings) ring(key memberKey) *ring {
	g := r.rings[key]
	if g == nil {
		if r.rings == nil {
			r.rings = map[memberKey]*ring{}
		}
		g = &ring{credit: keysAtOnce}
		r.rings[key] = g
	}
	return g
}

// members takes in who came and who went.
func (r *keyrings) members(now Time, d *rosterDiff) {
	for _, l := range d.left {
		key := memberKey{l.m.UserID, l.m.DeviceID}
		g := r.rings[key]
		if g == nil {
			continue
		}
		g.here, g.fresh, g.missing = false, false, false
		for i := range g.keys {
			g.keys[i].stale = true
		}
		r.departed = append(r.departed, key)
		if len(r.departed) > departedKept {
			if old := r.rings[r.departed[0]]; old != nil && !old.here {
				old.wipe()
				delete(r.rings, r.departed[0])
			}
			r.departed = append(r.departed[:0], r.departed[1:]...)
		}
	}
	for _, m := range d.joined {
		if g := r.rings[memberKey{m.UserID, m.DeviceID}]; g != nil {
			for _, k := range g.keys { // a host may have dropped them
				r.tell(m, k.index, k.key)
			}
		}
		r.await(now, m)
	}
}

// await looks for the first key of a member, while keys are ours to manage.
func (r *keyrings) await(now Time, m *wire.Membership) {
	o := r.o
	if o.isOwn(m) || !o.keys.on {
		return
	}
	key := memberKey{m.UserID, m.DeviceID}
	r.ring(key).here = true
	o.set.held.release(now, o, m)
	if r.rings[key].fresh {
		return
	}
	if len(r.awaited) > 2*len(r.rings)+16 { // of members that came and went
		r.awaited = slices.DeleteFunc(r.awaited, func(a awaited) bool { return !r.awaits(a) })
	}
	a := awaited{key, m.MemberID, m.JoinedTS, now.Boot + o.keyMissingAfter}
	r.awaited = append(r.awaited, a)
	o.wake(a.at)
}

// awaits says whether that membership is here and none of its keys has come.
func (r *keyrings) awaits(a awaited) bool {
	g, m := r.rings[a.key], r.o.member(a.key)
	return g != nil && !g.fresh && m != nil && m.JoinedTS == a.joinedTS && m.MemberID == a.memberID
}

// watch begins to look for the keys of everybody.
func (r *keyrings) watch(now Time) {
	for _, m := range r.o.slot.roster.all() {
		r.await(now, m)
	}
}

// step tells whose keys have not come.
func (r *keyrings) step(now Time) {
	for len(r.awaited) > 0 {
		a := r.awaited[0]
		if a.at > now.Boot {
			r.o.wake(a.at)
			return
		}
		r.awaited = r.awaited[1:]
		if !r.awaits(a) {
			continue
		}
		r.rings[a.key].missing = true
		r.o.tell(EventEncryptionKeyMissing, KeyMissing{a.key.user, a.key.device, a.memberID, true})
	}
}

// take puts keys into the ring of a present member. The reason says why not.
func (r *keyrings) take(now Time, m *wire.Membership, msg *wire.KeyMessage, byRoomEvent bool) (reason string) {
	key := memberKey{m.UserID, m.DeviceID}
	g := r.ring(key)
	g.here = true
	g.credit = min(keysAtOnce, g.credit+keysPerSecond*(now.Boot-g.at).Seconds())
	g.at = now.Boot
	server := r.o.set.serverTime(now)
	sentTS := msg.SentTS
	if sentTS == 0 {
		sentTS = server
	}
	for _, k := range msg.Keys {
		if g.credit < 1 {
			return "too many keys from one member"
		}
		g.credit--
		var changed bool
		if changed, reason = g.put(ringKey{index: k.Index, key: k.Key, sentTS: sentTS}); changed {
			age := max(server-sentTS, 0)
			st := &r.o.stats
			st.KeysReceived++
			st.KeysReceivedTotalAgeMS += age
			if byRoomEvent {
				st.RoomEventKeysReceived++
				st.RoomEventKeysReceivedTotalAgeMS += age
			}
			r.tell(m, k.Index, k.Key)
		}
		g.fresh = true
	}
	if g.missing {
		g.missing = false
		r.o.tell(EventEncryptionKeyMissing, KeyMissing{m.UserID, m.DeviceID, m.MemberID, false})
	}
	return reason
}

// put keeps of two keys with one index the one that was sent later. The same key once more changes
// nothing.
func (g *ring) put(k ringKey) (changed bool, reason string) {
	for i := range g.keys {
		if old := g.keys[i]; old.index == k.index {
			switch {
			case old.stale:
			case bytes.Equal(old.key, k.key):
				return false, ""
			case old.sentTS > k.sentTS:
				return false, "older than the key held at its index"
			}
			clear(old.key)
			g.keys = append(g.keys[:i], g.keys[i+1:]...)
			break
		}
	}
	if len(g.keys) == keysPerMember {
		clear(g.keys[0].key)
		g.keys = append(g.keys[:0], g.keys[1:]...)
	}
	g.keys = append(g.keys, k)
	return true, ""
}

func (g *ring) wipe() {
	for _, k := range g.keys {
		clear(k.key)
	}
	g.keys = nil
}

// wipe forgets all keys of the call, those that are held as well.
func (r *keyrings) wipe() {
	for _, g := range r.rings {
		g.wipe()
	}
	o := r.o
	*r = keyrings{o: o}
	o.set.held.drop(func(h *heldKey) bool { return h.room == o.room.id && h.of(o.slot) })
}

func (r *keyrings) tell(m *wire.Membership, index int, key []byte) {
	k := mediaKey(m, index, key)
	k.InUse = true
	r.o.tell(EventEncryptionKeyChanged, k)
}

// --- what arrives

// toDevice takes in a message that may carry keys. Whoever it is from must be the member that the
// keys are of.
func (s *Set) toDevice(now Time, in ToDevice) {
	if in.Type == wire.TypeDummy && in.Encrypted { // of a new Olm session, since the old one was of no use
		for _, session := range slices.Sorted(maps.Keys(s.sessions)) {
			s.sessions[session].keys.unread(now, memberKey{in.Sender, in.SenderDevice})
		}
		return
	}
	msg, reason := wire.ParseToDevice(in.Type, in.Content)
	switch {
	case msg == nil && reason == "":
		return
	case !in.Encrypted:
		reason = "came in clear"
	case in.SenderDevice == "":
		reason = "from an unknown device"
	case reason != "":
	case msg.ClaimedDevice != in.SenderDevice && in.Type == wire.TypeEncryptionKeys:
		reason = "claims another device than it was encrypted by"
	default:
		reason = s.offer(now, &heldKey{from: memberKey{in.Sender, in.SenderDevice}, room: msg.Room, msg: msg, crossSigned: in.CrossSigned, at: now.Boot})
	}
	if reason != "" {
		s.refuseKeys(reason)
	}
}

// timeline takes in keys that came as a room event.
func (s *Set) timeline(now Time, in Timeline) {
	if in.Event.Type != wire.TypeEncryptionKeys {
		return
	}
	reason := "came in clear in an encrypted room"
	if r := s.rooms[in.Room]; !in.Clear || r == nil || !r.encrypted {
		reason = s.callEncryption(now, in)
	}
	if reason != "" {
		s.refuseKeys(reason)
	}
}

// CallEncryption hands a session a room event with keys (onCallEncryption of the reference class).
// What cannot be used is ignored, and ignored says why.
func (s *Set) CallEncryption(now Time, session uint64, ev wire.Event) (ignored string, err error) {
	o := s.sessions[session]
	if o == nil || o.closed {
		return "", &StateError{"the session is closed"}
	}
	switch {
	case ev.Type != wire.TypeEncryptionKeys:
		ignored = "type: expected " + wire.TypeEncryptionKeys
	default:
		ignored = s.callEncryption(now, Timeline{Room: o.room.id, Event: ev})
	}
	if ignored != "" {
		s.refuseKeys(ignored)
	}
	s.runTimers(now)
	return ignored, nil
}

func (s *Set) callEncryption(now Time, in Timeline) (reason string) {
	ev := in.Event
	msg, reason := wire.ParseKeyRoomEvent(ev.Content)
	if reason != "" {
		return reason
	}
	if msg.SentTS == 0 {
		msg.SentTS = ev.OriginServerTS
	}
	switch {
	case in.SenderDevice != "" && in.SenderDevice != msg.ClaimedDevice:
		return "claims another device than it was encrypted by"
	case ev.Sender == s.cfg.UserID && msg.ClaimedDevice == s.cfg.DeviceID:
		return ""
	}
	return s.offer(now, &heldKey{
		from: memberKey{ev.Sender, msg.ClaimedDevice}, room: in.Room, msg: msg,
		crossSigned: in.CrossSigned && in.SenderDevice != "", byRoomEvent: true, at: now.Boot,
	})
}

// offer gives keys to the session that they are for, or holds them.
func (s *Set) offer(now Time, h *heldKey) (reason string) {
	r := s.rooms[h.room]
	if r == nil {
		return "for a room that we are not in"
	}
	var o *own
	if sl := r.slotOf(h); sl != nil {
		o = sl.session
	}
	switch {
	case o != nil && !o.closed && r.known && !o.managesKeys():
		return "media keys are not managed"
	case o != nil && o.requireCrossSigned && !h.crossSigned:
		return "from a device that its owner has not signed"
	}
	if o == nil || !o.keys.on || !h.fits(o.member(h.from)) {
		s.expireHeld(now)
		reason = s.held.hold(h)
		s.watchHeld()
		return reason
	}
	return o.rings.take(now, o.member(h.from), h.msg, h.byRoomEvent)
}

// slotOf finds the call of keys: the one that they name, or else the one that their member is in.
func (r *room) slotOf(h *heldKey) (found *slot) {
	if h.msg.SlotID != "" {
		return r.slots[h.msg.SlotID]
	}
	for _, sl := range r.slots {
		if o := sl.session; o != nil && h.fits(o.member(h.from)) && (found == nil || sl.id < found.id) {
			found = sl
		}
	}
	return found
}

func (s *Set) refuseKeys(reason string) {
	reason, _, _ = strings.Cut(reason, ", got")
	if s.refusedKeys == nil {
		s.refusedKeys = map[string]int{}
	}
	if _, known := s.refusedKeys[reason]; known || len(s.refusedKeys) < reasonsRemember {
		s.refusedKeys[reason]++
	}
}

// heldKeys are keys whose member is not here yet, or of a call that we are not in yet.
type heldKeys struct {
	list   []*heldKey // oldest first
	sender map[id.UserID]int
	timer  timer // of the end of the oldest
}

type heldKey struct {
	from        memberKey
	room        id.RoomID
	msg         *wire.KeyMessage
	crossSigned bool
	byRoomEvent bool
	at          time.Duration
}

// of says whether the keys may be of this call.
func (h *heldKey) of(sl *slot) bool { return h.msg.SlotID == "" || h.msg.SlotID == sl.id }

// fits says whether the keys are of this membership.
func (h *heldKey) fits(m *wire.Membership) bool {
	return m != nil && (h.msg.MemberID == "" || h.msg.MemberID == m.MemberID)
}

func (q *heldKeys) hold(h *heldKey) (reason string) {
	if q.sender[h.from.user] >= heldPerSender {
		return "too many keys of a user whose devices are not in the call"
	}
	if len(q.list) >= heldKeysAtMost {
		oldest := q.list[0]
		q.drop(func(old *heldKey) bool { return old == oldest })
		reason = "pushed out by newer keys of devices that are not in the call"
	}
	if q.sender == nil {
		q.sender = map[id.UserID]int{}
	}
	q.sender[h.from.user]++
	q.list = append(q.list, h)
	return reason
}

// expireHeld drops what has been held for too long. While a failing homeserver does not say whether
// a sender is in the room, its keys stay: they are not sent again.
func (s *Set) expireHeld(now Time) {
	for q := &s.held; len(q.list) > 0 && now.Boot-q.list[0].at >= heldKeysFor; {
		h := q.list[0]
		if r := s.rooms[h.room]; r != nil && r.unknown[h.from.user] {
			h.at = now.Boot
			q.list = append(q.list[1:], h)
			continue
		}
		q.drop(func(old *heldKey) bool { return old == h })
	}
}

// watchHeld has keys dropped when they have been held for too long.
func (s *Set) watchHeld() {
	at := never
	if len(s.held.list) > 0 {
		at = s.held.list[0].at + heldKeysFor
	}
	s.timers.set(&s.held.timer, at)
}

// drop wipes what is of no use any more.
func (q *heldKeys) drop(goes func(*heldKey) bool) {
	for _, h := range q.remove(goes) {
		for _, k := range h.msg.Keys {
			clear(k.Key)
		}
	}
}

func (q *heldKeys) remove(goes func(*heldKey) bool) (removed []*heldKey) {
	kept := q.list[:0]
	for _, h := range q.list {
		if !goes(h) {
			kept = append(kept, h)
			continue
		}
		removed = append(removed, h)
		if q.sender[h.from.user]--; q.sender[h.from.user] == 0 {
			delete(q.sender, h.from.user)
		}
	}
	clear(q.list[len(kept):])
	q.list = kept
	return removed
}

// release hands over what was held for a member that is here now.
func (q *heldKeys) release(now Time, o *own, m *wire.Membership) {
	from := memberKey{m.UserID, m.DeviceID}
	if q.sender[from.user] == 0 {
		return
	}
	o.set.expireHeld(now)
	for _, h := range q.remove(func(h *heldKey) bool {
		return h.from == from && h.room == o.room.id && h.of(o.slot) && h.fits(m)
	}) {
		if o.requireCrossSigned && !h.crossSigned {
			o.set.refuseKeys("from a device that its owner has not signed")
			continue
		}
		if reason := o.rings.take(now, m, h.msg, h.byRoomEvent); reason != "" {
			o.set.refuseKeys(reason)
		}
	}
}

// --- what the host asks

// EncryptionKeys are the keys of all participants, oldest member first, our own among them.
func (s *Set) EncryptionKeys(session uint64) (keys []MediaKey, ok bool) {
	o := s.sessions[session]
	if o == nil {
		return nil, false
	}
	keys = append([]MediaKey{}, o.ownMediaKeys()...)
	for _, m := range o.slot.roster.all() {
		keys = append(keys, o.ringOf(m)...)
	}
	return keys, true
}

// ParticipantKeys are the keys of one device, nil where none is known.
func (s *Set) ParticipantKeys(session uint64, user id.UserID, device id.DeviceID) (keys []MediaKey, ok bool) {
	o := s.sessions[session]
	if o == nil {
		return nil, false
	}
	if user == s.cfg.UserID && device == s.cfg.DeviceID {
		return o.ownMediaKeys(), true
	}
	if m := o.member(memberKey{user, device}); m != nil {
		return o.ringOf(m), true
	}
	return nil, true
}

// ReemitEncryptionKeys tells every key that is held once more.
func (s *Set) ReemitEncryptionKeys(session uint64) error {
	o := s.sessions[session]
	if o == nil || o.closed {
		return &StateError{"the session is closed"}
	}
	keys, _ := s.EncryptionKeys(session)
	for _, k := range keys {
		o.tell(EventEncryptionKeyChanged, k)
	}
	return nil
}

func (o *own) ownMediaKeys() []MediaKey {
	var keys []MediaKey
	for _, k := range o.keys.old {
		keys = append(keys, o.keys.describe(k))
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Index < keys[j].Index })
	return keys
}

func (o *own) ringOf(m *wire.Membership) []MediaKey {
	g := o.rings.rings[memberKey{m.UserID, m.DeviceID}]
	if g == nil || len(g.keys) == 0 {
		return nil
	}
	keys := make([]MediaKey, 0, len(g.keys))
	for _, k := range g.keys {
		d := mediaKey(m, k.index, k.key)
		d.InUse = true
		keys = append(keys, d)
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Index < keys[j].Index })
	return keys
}

// member is who is shown under a key of the roster.
func (o *own) member(key memberKey) *wire.Membership {
	if rm := o.slot.roster.find(key); rm != nil {
		return rm.shown
	}
	return nil
}

func (o *own) isOwn(m *wire.Membership) bool {
	return m.UserID == o.set.cfg.UserID && m.DeviceID == o.set.cfg.DeviceID
}

func (o *own) ownMemberID() string {
	if o.memberID != "" {
		return o.memberID
	}
	return string(o.set.cfg.UserID) + ":" + string(o.set.cfg.DeviceID)
}
