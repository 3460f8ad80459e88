package session

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"slices"
	"strings"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/btree"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// roster is who is in one call. What stands in the room (sources) goes in, one change at a time;
// what changed in the call comes out as a diff. Every operation is O(log n) in its size.
//
// A member is shown while one of its sources has not expired and its user is joined to the room.
type roster struct {
	slotID  string
	users   map[id.UserID]*user             // of the room: all who have sources, in this call or another
	size    int                             // members that have a source, or of which there is more to tell
	order   *btree.BTreeG[*wire.Membership] // the shown, oldest first
	expiry  expiryHeap
	intents map[string]int // of the shown that name one

	changed []*rosterMember // since the last diff
}

// memberKey: two events of one user, device and slot are one member.
type memberKey struct {
	user   id.UserID
	device id.DeviceID
}

// source is one event of a member; whoever puts it holds it.
type source struct {
	m     *wire.Membership
	of    *rosterMember
	index int // in the expiry heap, plus one; 0: expired
}

type rosterMember struct {
	roster  *roster
	user    *user
	key     memberKey
	sources []*source
	shown   *wire.Membership

	isChanged bool
	before    *wire.Membership // shown at the last diff
	reason    string           // why it was hidden last
}

// roomMember is what is known of a user's membership of the room itself.
type roomMember int

const (
	memberUnknown roomMember = iota
	memberJoined
	memberNotJoined
)

// rosterDiff is what changed in a call.
type rosterDiff struct {
	joined  []*wire.Membership
	left    []departed
	updated []changedMember
}

type departed struct {
	m      *wire.Membership
	reason string
}

type changedMember struct{ before, after *wire.Membership }

const (
	reasonExpired  = "expired"
	reasonRejoined = "rejoined" // the same device, as a new membership
)

func newRoster(slotID string, users map[id.UserID]*user) *roster {
	return &roster{
		slotID: slotID, users: users, intents: map[string]int{},
		order: btree.NewBTreeGOptions(older, btree.Options{NoLocks: true, Degree: 16}),
	}
}

// seniority is the order of members: joined-since, then user, device, member id.
func seniority(a, b *wire.Membership) int {
	return cmp.Or(
		cmp.Compare(a.JoinedTS, b.JoinedTS), strings.Compare(string(a.UserID), string(b.UserID)),
		strings.Compare(string(a.DeviceID), string(b.DeviceID)), strings.Compare(a.MemberID, b.MemberID),
	)
}

func older(a, b *wire.Membership) bool {
	if a.JoinedTS != b.JoinedTS {
		return a.JoinedTS < b.JoinedTS
	}
	return seniority(a, b) < 0
}

// put says what now stands under a source, nil for a new one, and answers which that is.
func (r *roster) put(s *source, m *wire.Membership) *source {
	if s != nil && s.of.key != (memberKey{m.UserID, m.DeviceID}) {
		r.remove(s, reasonLeft)
		s = nil
	}
	if s == nil {
		s = &source{of: r.member(m)}
		s.of.sources = append(s.of.sources, s)
	}
	s.m = m
	if s.index != 0 {
		heap.Fix(&r.expiry, s.index-1)
	} else {
		heap.Push(&r.expiry, s)
	}
	r.reconsider(s.of, reasonLeft)
	return s
}

func (r *roster) member(m *wire.Membership) *rosterMember {
	key := memberKey{m.UserID, m.DeviceID}
	rm := r.find(key)
	if rm == nil {
		u := r.users[m.UserID]
		rm = &rosterMember{roster: r, user: u, key: key}
		u.members = append(u.members, rm)
		r.size++
	}
	return rm
}

// find looks among the few members of a user.
func (r *roster) find(key memberKey) *rosterMember {
	if u := r.users[key.user]; u != nil {
		for _, rm := range u.members {
			if rm.roster == r && rm.key.device == key.device {
				return rm
			}
		}
	}
	return nil
}

// forget drops a member of which there is nothing more to tell.
func (r *roster) forget(rm *rosterMember) {
	rm.user.members = slices.DeleteFunc(rm.user.members, func(other *rosterMember) bool { return other == rm })
	r.size--
}

// sources are all that were put.
func (r *roster) sources(yield func(*source) bool) {
	for _, u := range r.users {
		for _, rm := range u.members {
			for _, s := range rm.sources {
				if rm.roster == r && !yield(s) {
					return
				}
			}
		}
	}
}

// remove says that nothing stands under a source any more.
func (r *roster) remove(s *source, reason string) {
	if s.index != 0 {
		heap.Remove(&r.expiry, s.index-1)
	}
	rm := s.of
	rm.sources = slices.DeleteFunc(rm.sources, func(other *source) bool { return other == s })
	r.reconsider(rm, reason)
	if len(rm.sources) == 0 && !rm.isChanged {
		r.forget(rm)
	}
}

// expire hides what is over at that time.
func (r *roster) expire(serverTS int64) {
	for len(r.expiry) > 0 && r.expiry[0].m.ExpiresTS <= serverTS {
		s := heap.Pop(&r.expiry).(*source)
		r.reconsider(s.of, reasonExpired)
	}
}

// revive undoes expiries that a corrected clock shows to have been wrong.
func (r *roster) revive(serverTS int64) {
	for s := range r.sources {
		if s.index == 0 && s.m.ExpiresTS > serverTS {
			heap.Push(&r.expiry, s)
			r.reconsider(s.of, reasonExpired)
		}
	}
}

// bound has nothing count any longer than until then.
func (r *roster) bound(latest int64) {
	for s := range r.sources {
		s.m.ExpiresTS = min(s.m.ExpiresTS, latest)
	}
	heap.Init(&r.expiry)
}

// nextExpiry is when expire has something to do next.
func (r *roster) nextExpiry() (int64, bool) {
	if len(r.expiry) == 0 {
		return 0, false
	}
	return r.expiry[0].m.ExpiresTS, true
}

// reconsider decides what is shown of a member: of its sources that have not expired the latest.
func (r *roster) reconsider(rm *rosterMember, reason string) {
	var best *wire.Membership
	if rm.user.state == memberJoined {
		for _, s := range rm.sources {
			if s.index != 0 && (best == nil || s.m.OriginServerTS > best.OriginServerTS ||
				s.m.OriginServerTS == best.OriginServerTS && s.m.EventID > best.EventID) {
				best = s.m
			}
		}
	}
	if best == rm.shown {
		return
	}
	if !rm.isChanged {
		rm.isChanged, rm.before = true, rm.shown
		r.changed = append(r.changed, rm)
	}
	if m := rm.shown; m != nil {
		r.order.Delete(m)
		if r.intents[m.Intent]--; r.intents[m.Intent] <= 0 {
			delete(r.intents, m.Intent)
		}
	}
	if best != nil {
		r.order.Set(best)
		r.intents[best.Intent]++
	} else {
		rm.reason = reason
	}
	rm.shown = best
}

// diff drains what changed, oldest first; nil where nothing did.
func (r *roster) diff() *rosterDiff {
	var d rosterDiff
	for _, rm := range r.changed {
		before, after := rm.before, rm.shown
		rm.isChanged, rm.before = false, nil
		switch {
		case before == nil && after == nil:
		case before == nil:
			d.joined = append(d.joined, after)
		case after == nil:
			d.left = append(d.left, departed{before, rm.reason})
		case after.JoinedTS > before.JoinedTS || after.MemberID != before.MemberID:
			d.left = append(d.left, departed{before, reasonRejoined})
			d.joined = append(d.joined, after)
		case after.EventID != before.EventID:
			d.updated = append(d.updated, changedMember{before, after})
		}
		if len(rm.sources) == 0 {
			r.forget(rm)
		}
	}
	r.changed = r.changed[:0]
	if len(d.joined)+len(d.left)+len(d.updated) == 0 {
		return nil
	}
	slices.SortFunc(d.joined, seniority)
	slices.SortFunc(d.left, func(a, b departed) int { return seniority(a.m, b.m) })
	slices.SortFunc(d.updated, func(a, b changedMember) int { return seniority(a.after, b.after) })
	return &d
}

func (r *roster) len() int { return r.order.Len() }

func (r *roster) empty() bool { return r.size == 0 }

func (r *roster) oldest() *wire.Membership {
	m, _ := r.order.Min()
	return m
}

// all are the members, oldest first.
func (r *roster) all() []*wire.Membership { return r.order.Items() }

// activeTransport is where a member's media is: with multi_sfu on its own first transport, with
// oldest_membership where the oldest member prefers it, asked of that member in turn.
func (r *roster) activeTransport(m *wire.Membership) json.RawMessage {
	switch m.FocusSelection {
	case wire.SelectionMultiSFU:
		return firstTransport(m)
	case wire.SelectionOldest:
		o := r.oldest()
		if o == nil {
			o = m
		}
		return eldersTransport(o)
	default:
		return nil
	}
}

// eldersTransport is where those with oldest_membership have their media while that member is the
// oldest: nowhere that we know of where it chooses in a way that we do not understand.
func eldersTransport(oldest *wire.Membership) json.RawMessage {
	if oldest.FocusSelection != wire.SelectionOldest && oldest.FocusSelection != wire.SelectionMultiSFU {
		return nil
	}
	return firstTransport(oldest)
}

func firstTransport(m *wire.Membership) json.RawMessage {
	for _, t := range m.Transports {
		if gjson.GetBytes(t, "type").Str == "livekit" {
			return t
		}
	}
	return nil
}

// consensusIntent is the intent of all members that name one, or "" where they differ.
func (r *roster) consensusIntent() string {
	named := len(r.intents)
	if r.intents[""] > 0 {
		named--
	}
	if named != 1 {
		return ""
	}
	for intent := range r.intents {
		if intent != "" {
			return intent
		}
	}
	return ""
}

type expiryHeap []*source

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].m.ExpiresTS < h[j].m.ExpiresTS }
func (h expiryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i+1, j+1 }
func (h *expiryHeap) Push(x any)        { s := x.(*source); s.index = len(*h) + 1; *h = append(*h, s) }
func (h *expiryHeap) Pop() any {
	s := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	s.index = 0
	return s
}
