package session

import (
	"container/heap"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"
)

// Our own media key: when one is made, whom it goes to, and when it comes into use.
//
//	Join         a joiner,        a joiner,                  a leaver,
//	             key young        key old                    then two more
//	 │            │                │                          │    │ │
//	 │ key 0      │ key 0          │ key 1 to everybody,      │ key 2 to everybody who is left
//	 │ in use     │ to it alone    │ key 0 to it as well      │    │ │ (one more is owed)
//	 ▼            ▼                ├─ delay ─▶ key 1 in use   ├─ delay ─▶ key 2 in use,
//	                                                                      key 3 made: and so on
//
// At most two keys are alive: the one in use and the next, which waits for its delay so that
// everybody has it before the first frame that needs it. Whoever joins is given both. Each copy of
// a key for a device is a parcel: ready, in flight, or waiting to be tried again. Nothing is sent
// before our membership stands or while we may have lost it (after a sleep we do not know who has
// left meanwhile), and nothing after Leave, when all keys are wiped. The delay of a key begins when
// it is sent.
type ownKeys struct {
	o  *own
	on bool

	inUse, next *ownKey
	old         []*ownKey // the latest that were made, these two among them
	made        int       // how many
	owed        bool      // a rotation, once it may be
	suppressed  bool      // so many are here that keys are not rotated

	peers   map[memberKey]*peer
	list    []*peer // the same, in an order that does not depend on chance
	retries parcels
	flights map[uint64]*flight
	order   []uint64       // of flights, oldest first
	open    map[string]int // flights with parcels for a homeserver
	sent    string         // the room event that was sent last
}

type ownKey struct {
	index         int
	key           []byte
	madeAt, useAt time.Duration
	number        int             // of the keys made before it
	content       json.RawMessage // once it has been sent
	ready         []*parcel
	replaced      bool
}

// peer is another device in the call.
type peer struct {
	key      memberKey
	memberID string
	at       int           // in the list
	gone     bool          // it has left, and gets nothing more
	told     bool          // that it could not be reached
	missed   *ownKey       // the newest that has failed to reach it
	reached  *ownKey       // the newest that has reached it
	againAt  time.Duration // not before is it given again what has reached it
}

// parcel is one key for one device.
type parcel struct {
	to       *peer
	key      *ownKey
	failures int
	at       time.Duration // when it is tried again
	txn      string        // of the room event that it was in
	unread   bool          // it was under way when its device said that it could not decrypt something
}

// held says that the key is for somebody and has been sent to nobody: its delay has not begun.
func (key *ownKey) held() bool { return key.content == nil && len(key.ready) > 0 }

func (p *parcel) void() bool { return p.to.gone || p.key.replaced }

// flight is a request with many parcels.
type flight struct {
	parcels   []*parcel
	open      map[memberKey]*parcel // whose fate is not known
	servers   map[string]int        // of these, for each homeserver
	timeoutAt time.Duration
}

const (
	flightTimeout   = time.Minute
	flightsAtOnce   = 16 // to one homeserver: one that is slow holds up nobody else
	retriesAtOnce   = 8  // of these, with what is tried again
	keyRetryAtMost  = time.Minute
	keysAgainEvery  = time.Minute
	ownKeysKept     = 16 // for the getters
	reasonNoAnswer  = "no_answer"
	reasonNotListed = "not_sent"
)

// managesKeys says whether this call has media keys.
func (o *own) managesKeys() bool {
	if o.params.ManageMediaKeys != nil && o.joined {
		return *o.params.ManageMediaKeys
	}
	return o.room.encrypted
}

func (k *ownKeys) step(now Time) {
	o := k.o
	on := o.joined && o.phase != idle && o.phase != leavingNow && o.managesKeys()
	switch {
	case on && !k.on:
		k.start(now)
	case !on && k.on:
		k.stop()
	}
	if !k.on {
		return
	}
	o.slot.expire(now) // before anything is sent
	k.turn(now)
	for len(k.retries) > 0 && k.retries[0].at <= now.Boot {
		if p := heap.Pop(&k.retries).(*parcel); !p.void() {
			p.key.ready = append(p.key.ready, p)
		}
	}
	for len(k.order) > 0 {
		f := k.flights[k.order[0]]
		if f != nil && f.timeoutAt > now.Boot {
			o.wake(f.timeoutAt)
			break
		}
		if f != nil {
			k.landed(now, k.order[0], reasonNoAnswer)
		}
		k.order = k.order[1:]
	}
	if o.membership.announced && !o.probably {
		k.send(now, k.inUse)
		k.send(now, k.next)
	}
	if k.next != nil && !k.next.held() {
		o.wake(k.next.useAt)
	}
	if len(k.retries) > 0 {
		o.wake(k.retries[0].at)
	}
}

func (k *ownKeys) start(now Time) {
	o := k.o
	o.set.keyed[o.room.id]++
	*k = ownKeys{o: o, on: true, peers: map[memberKey]*peer{}, flights: map[uint64]*flight{}, open: map[string]int{}}
	k.inUse = k.make(now, now.Boot)
	k.tell(k.inUse)
	for _, m := range o.slot.roster.all() {
		k.meet(m)
	}
	k.judgeSize()
	o.rings.watch(now)
}

// stop forgets everything, the keys first.
func (k *ownKeys) stop() {
	k.wipe()
	if k.suppressed {
		k.o.tell(EventKeyRotationSuppressedChanged, KeyRotationSuppressedChanged{false})
	}
	for asked := range k.flights { // the answers are of no use, and who waits for them holds the key
		delete(k.o.set.pending, asked)
	}
	*k = ownKeys{o: k.o}
	k.o.rings.wipe()
	if keyed := k.o.set.keyed; keyed[k.o.room.id] > 1 {
		keyed[k.o.room.id]--
	} else {
		delete(keyed, k.o.room.id)
	}
}

func (k *ownKeys) wipe() {
	for _, key := range k.old {
		clear(key.key)
		key.content = nil
	}
}

// turn brings the next key into use when its time has come, and makes another where one is owed.
func (k *ownKeys) turn(now Time) {
	if n := k.next; n != nil && now.Boot >= n.useAt && !n.held() {
		k.inUse.replaced, k.inUse.ready, k.inUse.content = true, nil, nil
		k.inUse, k.next = n, nil
		k.tell(n)
		if k.owed {
			k.rotate(now)
		}
	}
	if k.next != nil || k.suppressed {
		return
	}
	if old := k.inUse.madeAt + k.o.maxKeyLifetime; now.Boot < old {
		k.o.wake(old)
	} else {
		k.rotate(now)
	}
}

// rotate makes the next key, for everybody who is here now; while one waits to be used, another is
// owed.
func (k *ownKeys) rotate(now Time) {
	if k.suppressed || k.next != nil {
		k.owed = true
		return
	}
	k.owed = false
	k.next = k.make(now, now.Boot+k.o.useKeyDelay)
	k.next.ready = make([]*parcel, 0, len(k.list))
	for _, p := range k.list {
		k.give(p, k.next)
	}
	k.tell(k.next)
	k.o.wake(k.next.useAt)
}

func (k *ownKeys) make(now Time, useAt time.Duration) *ownKey {
	key := &ownKey{
		index: k.made % 256, number: k.made, key: k.o.set.cfg.NewKey(wire.KeyLength),
		madeAt: now.Boot, useAt: useAt,
	}
	k.made++
	k.old = append(k.old, key)
	if len(k.old) > ownKeysKept {
		clear(k.old[0].key)
		k.old = append(k.old[:0], k.old[1:]...)
	}
	return key
}

// members takes in who came and who went.
func (k *ownKeys) members(now Time, d *rosterDiff) {
	if !k.on {
		return
	}
	left := false
	for _, l := range d.left {
		if p := k.peers[memberKey{l.m.UserID, l.m.DeviceID}]; p != nil {
			left = true
			k.part(p)
		}
	}
	k.judgeSize()
	young := now.Boot-k.inUse.madeAt < k.o.keyGrace
	if left || k.owed && k.next == nil || k.next == nil && !young && k.newcomers(d) {
		k.rotate(now)
	}
	for _, m := range d.joined {
		k.meet(m)
	}
}

// newcomers says whether anybody but ourselves has joined.
func (k *ownKeys) newcomers(d *rosterDiff) bool {
	for _, m := range d.joined {
		if !k.o.isOwn(m) {
			return true
		}
	}
	return false
}

// meet gives the keys alive to a device that is here now.
func (k *ownKeys) meet(m *wire.Membership) {
	key := memberKey{m.UserID, m.DeviceID}
	if k.o.isOwn(m) || k.peers[key] != nil {
		return
	}
	p := &peer{key: key, memberID: m.MemberID, at: len(k.list)}
	k.peers[key] = p
	k.list = append(k.list, p)
	k.giveAlive(p)
}

func (k *ownKeys) part(p *peer) {
	p.gone = true
	delete(k.peers, p.key)
	last := k.list[len(k.list)-1]
	k.list[p.at], last.at = last, p.at
	k.list[len(k.list)-1] = nil
	k.list = k.list[:len(k.list)-1]
}

func (k *ownKeys) giveAlive(p *peer) {
	k.give(p, k.inUse)
	if k.next != nil {
		k.give(p, k.next)
	}
}

func (k *ownKeys) give(p *peer, key *ownKey) {
	if len(key.ready) > 2*len(k.list)+16 { // nothing can be sent, and they come and go
		key.ready = slices.DeleteFunc(key.ready, (*parcel).void)
	}
	key.ready = append(key.ready, &parcel{to: p, key: key})
}

// unread gives a device once more what has reached it and what it could not decrypt, as it says. What is
// under way may have reached it before we hear of that.
func (k *ownKeys) unread(now Time, device memberKey) {
	p := k.peers[device]
	if p == nil || k.o.keysByRoomEvent || now.Boot < p.againAt {
		return
	}
	for _, f := range k.flights {
		if sent := f.open[device]; sent != nil {
			sent.unread = true
			p.againAt = now.Boot + keysAgainEvery
		}
	}
	if p.reached == nil {
		return
	}
	p.againAt = now.Boot + keysAgainEvery
	for _, key := range []*ownKey{k.inUse, k.next} {
		if key != nil && key.number <= p.reached.number {
			k.give(p, key)
		}
	}
	k.o.set.timers.set(&k.o.timer, now.Boot)
}

// giveAgain sends the keys alive to everybody: they have seen us leave and come back.
func (k *ownKeys) giveAgain() {
	for i, p := range k.list {
		again := &peer{key: p.key, memberID: p.memberID, at: i, told: p.told, missed: p.missed}
		p.gone = true
		k.list[i], k.peers[p.key] = again, again
		k.giveAlive(again)
	}
}

func (k *ownKeys) judgeSize() {
	limit := k.o.keyRotationLimit
	suppressed := limit > 0 && k.o.slot.roster.len() >= limit
	if suppressed == k.suppressed {
		return
	}
	k.suppressed = suppressed
	k.o.tell(EventKeyRotationSuppressedChanged, KeyRotationSuppressedChanged{suppressed})
}

// send puts all that is ready of a key into one request, except what is for homeservers with many
// open requests.
func (k *ownKeys) send(now Time, key *ownKey) {
	if key == nil || len(key.ready) == 0 {
		return
	}
	o := k.o
	var goes []*parcel
	waits := key.ready[:0]
	for _, p := range key.ready {
		most := flightsAtOnce
		if p.failures > 0 {
			most = retriesAtOnce
		}
		switch {
		case p.void():
		case k.open[k.serverOf(p)] >= most:
			waits = append(waits, p)
		default:
			goes = append(goes, p)
		}
	}
	clear(key.ready[len(waits):])
	key.ready = waits
	if len(goes) == 0 {
		return
	}
	f := &flight{parcels: goes, open: make(map[memberKey]*parcel, len(goes)), servers: map[string]int{}, timeoutAt: now.Boot + flightTimeout}
	for _, p := range goes {
		f.open[p.to.key] = p
	}
	for _, p := range f.open {
		f.servers[k.serverOf(p)]++
	}
	for server := range f.servers {
		k.open[server]++
	}
	if key.content == nil {
		key.useAt = now.Boot + o.useKeyDelay
		key.content = k.content(now, key)
	}
	r := wire.Request{
		Kind: wire.EncryptAndSendToDevice,
		Type: wire.TypeEncryptionKeys, Content: key.content, Timeout: flightTimeout,
	}
	r.Recipients = make([]wire.Device, len(f.parcels))
	for i, p := range f.parcels {
		r.Recipients[i] = wire.Device{UserID: p.to.key.user, DeviceID: p.to.key.device}
	}
	if o.keysByRoomEvent {
		r.Kind, r.TxnID = wire.EncryptAndSendEvent, k.txn(f.parcels)
	}
	var asked uint64
	asked = o.set.request(o, r, func(now Time, a wire.Answer) {
		reason := ""
		if a.Err != nil {
			reason = "send_failed: " + a.Err.Message
		} else if o.keysByRoomEvent && k.sent != r.TxnID {
			k.sent = r.TxnID
			o.stats.KeysSent++
			o.stats.RoomEventKeysSent++
		}
		k.landed(now, asked, reason)
	})
	k.flights[asked] = f
	k.order = append(k.order, asked)
	o.wake(f.timeoutAt)
}

// serverOf is the homeserver that a parcel goes to: a room event goes to our own.
func (k *ownKeys) serverOf(p *parcel) string {
	if k.o.keysByRoomEvent {
		return ""
	}
	return p.to.key.user.Homeserver()
}

// content is the message with a key, the same for everybody. Its time is that of the first copy.
func (k *ownKeys) content(now Time, key *ownKey) json.RawMessage {
	o := k.o
	m := wire.KeyMessage{
		Room: o.room.id, SlotID: o.slot.id, ClaimedDevice: o.set.cfg.DeviceID, MemberID: o.memberID,
		SentTS: o.set.serverTime(now), Keys: []wire.IndexedKey{{Index: key.index, Key: key.key}},
	}
	if o.keysByRoomEvent {
		return wire.BuildKeyRoomEvent(m)
	}
	return wire.BuildKeyToDevice(m)
}

// txn names a room event. One that repeats another, for want of an answer, has the name of that,
// so that it is sent once; whoever came since gets one of their own.
func (k *ownKeys) txn(parcels []*parcel) string {
	txn := parcels[0].txn
	for _, p := range parcels {
		if p.txn != txn {
			txn = ""
		}
	}
	if txn == "" {
		txn = fmt.Sprintf("%016x", k.o.set.cfg.Rand.Uint64())
	}
	for _, p := range parcels {
		p.txn = txn
	}
	return txn
}

// delivered takes in what became of some parcels of a flight.
func (k *ownKeys) delivered(now Time, request uint64, deliveries []wire.Delivery, last bool) {
	f := k.flights[request]
	if f == nil {
		return
	}
	for _, d := range deliveries {
		key := memberKey{d.UserID, d.DeviceID}
		if p := f.open[key]; p != nil {
			delete(f.open, key)
			k.reached(f, k.serverOf(p))
			k.arrived(now, p, d.Reason)
		}
	}
	if last || len(f.open) == 0 {
		k.landed(now, request, reasonNotListed)
	}
}

// reached notes the end of one parcel's flight.
func (k *ownKeys) reached(f *flight, server string) {
	if f.servers[server]--; f.servers[server] > 0 {
		return
	}
	if k.open[server]--; k.open[server] == 0 {
		delete(k.open, server)
	}
}

// landed ends a flight: what is left in it has the same fate.
func (k *ownKeys) landed(now Time, request uint64, reason string) {
	f := k.flights[request]
	if f == nil {
		return
	}
	delete(k.flights, request)
	delete(k.o.set.pending, request)
	for _, p := range f.parcels {
		if f.open[p.to.key] == p {
			k.reached(f, k.serverOf(p))
			k.arrived(now, p, reason)
		}
	}
}

// arrived notes the fate of one parcel. One that failed is tried again, later each time.
func (k *ownKeys) arrived(now Time, p *parcel, reason string) {
	o := k.o
	if reason == "" && !o.keysByRoomEvent {
		o.stats.KeysSent++
	}
	if p.void() {
		return
	}
	to := p.to
	u := KeyUndelivered{UserID: to.key.user, DeviceID: to.key.device, MemberID: to.memberID, Index: p.key.index, Reason: reason}
	if reason == "" {
		to.reached = newer(to.reached, p.key)
		if p.unread {
			k.give(to, p.key)
			o.wake(now.Boot)
		}
		if to.told && newer(to.missed, p.key) == p.key {
			to.told = false
			u.Delivered = true
			o.tell(EventEncryptionKeyUndelivered, u)
		}
		return
	}
	to.missed = newer(to.missed, p.key)
	if !to.told && newer(to.reached, p.key) == p.key { // who has a newer one can wait for that
		to.told = true
		o.tell(EventEncryptionKeyUndelivered, u)
	}
	pause := min(o.retry<<min(p.failures, 16), keyRetryAtMost)
	p.unread = false
	p.failures++
	p.at = now.Boot + pause/2 + time.Duration(o.set.random()*float64(pause/2))
	p.at = (p.at + o.retry - 1) / o.retry * o.retry // so that many go in one request
	heap.Push(&k.retries, p)
	o.wake(p.at)
}

// newer is the one of two keys that was made later, the second where they are the same.
func newer(a, b *ownKey) *ownKey {
	if a != nil && a.number > b.number {
		return a
	}
	return b
}

// tell says that a key of ours was made or has come into use.
func (k *ownKeys) tell(key *ownKey) {
	k.o.tell(EventEncryptionKeyChanged, k.describe(key))
}

func (k *ownKeys) describe(key *ownKey) MediaKey {
	o := k.o
	m := wire.Membership{UserID: o.set.cfg.UserID, DeviceID: o.set.cfg.DeviceID, MemberID: o.ownMemberID()}
	d := mediaKey(&m, key.index, key.key)
	d.Own, d.InUse = true, key == k.inUse
	return d
}

func mediaKey(m *wire.Membership, index int, key []byte) MediaKey {
	return MediaKey{
		UserID: m.UserID, DeviceID: m.DeviceID, MemberID: m.MemberID, SFUIdentity: livekit.Identity(m),
		Index: index, Key: Secret(base64.RawStdEncoding.EncodeToString(key)), Fingerprint: fingerprint(key),
	}
}

// fingerprint is what people may compare and logs may show.
func fingerprint(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:4])
}

func (k *ownKeys) snapshot() KeysSnapshot {
	s := KeysSnapshot{
		Peers: len(k.list), InFlight: len(k.flights), Retrying: len(k.retries),
		Held: len(k.o.set.held.list), Refused: maps.Clone(k.o.set.refusedKeys), Unreachable: []wire.Device{},
	}
	if s.Refused == nil {
		s.Refused = map[string]int{}
	}
	if k.inUse != nil {
		s.InUse = &k.inUse.index
	}
	if k.next != nil {
		s.Next = &k.next.index
	}
	for _, p := range k.list {
		if p.told && len(s.Unreachable) < refusedRemember {
			s.Unreachable = append(s.Unreachable, wire.Device{UserID: p.key.user, DeviceID: p.key.device})
		}
	}
	return s
}

type parcels []*parcel

func (h parcels) Len() int           { return len(h) }
func (h parcels) Less(i, j int) bool { return h[i].at < h[j].at }
func (h parcels) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *parcels) Push(x any)        { *h = append(*h, x.(*parcel)) }
func (h *parcels) Pop() any {
	p := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	return p
}
