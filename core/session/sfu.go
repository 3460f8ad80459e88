package session

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/btree"
	"github.com/tidwall/gjson"
)

// The SFUs of a call: where its members publish, which a client must connect to, and the tokens
// that let it in (MSC4195).
//
// An SFU is there while somebody holds it: each member with multi_sfu its own; those with
// oldest_membership together that of the oldest member; and we the one that we publish to. Strangers
// may name as many as they like, so only some are shown; the others wait for a place.
type sfus struct {
	o       *own
	byName  map[string]*sfu
	shown   int
	waiting *btree.BTreeG[*sfu] // beyond the limit, the longest there first
	nextSeq uint64

	publish string           // where our media goes; "" nowhere
	elders  int              // members with oldest_membership
	elder   string           // where they publish
	oldest  *wire.Membership // as it was last,
	first   string           // and its SFU

	emptied []*sfu          // that nobody holds, unless somebody does by the time we settle
	touched map[string]bool // whether it was shown when the host was told last
	crowded bool            // told that some are ignored
	asked   []*sfu          // whose tokens are wanted
}

type sfu struct {
	name     string // the URL
	holds    int
	seq      uint64
	shown    bool
	distrust string // why we do not talk to it

	wanted    bool // its token was asked for
	connected bool // the host says that it is
	token     *livekit.Token
	by        livekit.Generation // of the token
	refreshAt time.Duration
	failure   *livekit.Failure
	attempts  int // that failed
	inARow    int // of these, since the last token
	task      task
}

const (
	sfusAtMost    = 64
	refreshWithin = 24 * time.Hour // however long a token is good for
)

func newSFUs(o *own) sfus {
	return sfus{
		o: o, byName: map[string]*sfu{}, touched: map[string]bool{},
		waiting: btree.NewBTreeGOptions(func(a, b *sfu) bool { return a.seq < b.seq }, btree.Options{NoLocks: true}),
	}
}

// watch begins with the members that are there already.
func (s *sfus) watch() {
	for _, m := range s.o.slot.roster.all() {
		s.count(m, 1)
	}
	s.settle()
}

// members takes in who came and who went; moved says that we publish elsewhere now.
func (s *sfus) members(d *rosterDiff) (moved bool) {
	for _, m := range d.joined {
		s.count(m, 1)
	}
	for _, u := range d.updated {
		s.count(u.after, 1)
		s.count(u.before, -1)
	}
	for _, l := range d.left {
		s.count(l.m, -1)
	}
	return s.settle()
}

func (s *sfus) count(m *wire.Membership, n int) {
	switch m.FocusSelection {
	case wire.SelectionOldest:
		s.elders += n
	case wire.SelectionMultiSFU:
		s.hold(livekit.SFU(firstTransport(m)), n)
	}
}

func (s *sfus) hold(name string, n int) {
	if name == "" {
		return
	}
	x := s.byName[name]
	if x == nil {
		s.nextSeq++
		x = &sfu{name: name, seq: s.nextSeq}
		s.byName[name] = x
		s.waiting.Set(x)
	}
	if x.holds += n; x.holds <= 0 {
		s.emptied = append(s.emptied, x)
	}
}

func (s *sfus) show(x *sfu, show bool) {
	if x.shown == show {
		return
	}
	if _, noted := s.touched[x.name]; !noted {
		s.touched[x.name] = x.shown
	}
	x.shown = show
	if show {
		s.shown++
		s.waiting.Delete(x)
		x.distrust = s.o.set.distrust(s.o, x.name)
		return
	}
	s.shown--
	s.asked = slices.DeleteFunc(s.asked, func(y *sfu) bool { return y == x })
}

// settle finds out where the elders and we are by now, shows what may be shown, and tells. moved
// says that we publish elsewhere now.
func (s *sfus) settle() (moved bool) {
	o := s.o
	if oldest := o.slot.roster.oldest(); oldest != s.oldest {
		s.oldest, s.first = oldest, ""
		if oldest != nil {
			s.first = livekit.SFU(eldersTransport(oldest))
		}
	}
	elder := ""
	if s.elders > 0 {
		elder = s.first
	}
	was, publish := s.publish, s.ours()
	s.hold(elder, 1)
	s.hold(s.elder, -1)
	s.hold(publish, 1)
	s.hold(s.publish, -1)
	s.elder, s.publish = elder, publish
	for _, x := range s.emptied {
		if x.holds <= 0 && s.byName[x.name] == x {
			s.show(x, false)
			s.waiting.Delete(x)
			delete(s.byName, x.name)
		}
	}
	s.emptied = s.emptied[:0]
	if moved = was != publish; moved && was != "" && o.phase != leavingNow && o.phase != idle {
		o.takeBack() // the service there would send our leave once we disconnect
	}
	if x := s.byName[publish]; x != nil {
		s.show(x, true)
		if moved {
			x.distrust = o.set.distrust(o, x.name)
		}
		if x.by != "" && x.by != s.generation(x) {
			x.token, x.by, x.connected = nil, "", false // under another identity our media would belong to nobody
		}
	}
	for s.shown < sfusAtMost && s.waiting.Len() > 0 {
		x, _ := s.waiting.Min()
		s.show(x, true)
	}
	s.tell(was)
	return moved
}

// ours is where our media goes.
func (s *sfus) ours() string {
	o := s.o
	if !o.joined || o.phase == idle || o.phase == leavingNow {
		return ""
	}
	if o.focusSelection == wire.SelectionOldest && s.oldest != nil {
		return s.first
	}
	return o.sfu
}

func (s *sfus) tell(published string) {
	c := SFUsChanged{Added: []SFU{}, Removed: []string{}, Updated: []SFU{}}
	for name, before := range s.touched {
		x := s.byName[name]
		switch after := x != nil && x.shown; {
		case before && !after:
			c.Removed = append(c.Removed, name)
		case after && !before:
			c.Added = append(c.Added, s.describe(x))
		case after:
			c.Updated = append(c.Updated, s.describe(x))
		}
	}
	clear(s.touched)
	if published != s.publish {
		c.Publish = &SFUMove{textOrNull(published), textOrNull(s.publish)}
	}
	c.Ignored = s.waiting.Len()
	if crowded := c.Ignored > 0; crowded != s.crowded {
		s.crowded = crowded
	} else if len(c.Added)+len(c.Removed)+len(c.Updated) == 0 && c.Publish == nil {
		return
	}
	slices.Sort(c.Removed)
	byName := func(a, b SFU) int { return strings.Compare(a.ServiceURL, b.ServiceURL) }
	slices.SortFunc(c.Added, byName)
	slices.SortFunc(c.Updated, byName)
	s.o.tell(EventSFUsChanged, c)
}

// disconnected: whoever joins again tells of the connections of that call.
func (s *sfus) disconnected() {
	for _, x := range s.byName {
		x.connected = false
	}
}

// judge looks again at whom we trust.
func (s *sfus) judge() {
	for _, x := range s.byName {
		if !x.shown {
			continue
		}
		if why := s.o.set.distrust(s.o, x.name); why != x.distrust {
			x.distrust = why
			s.touched[x.name] = true
		}
	}
}

func (s *sfus) describe(x *sfu) SFU {
	return SFU{ServiceURL: x.name, Publish: x.name == s.publish, Trusted: x.distrust == "", Reason: x.distrust}
}

// generation is how a token is got: where we publish as our membership has it, elsewhere the newest
// way that the service knows.
func (s *sfus) generation(x *sfu) livekit.Generation {
	switch {
	case strings.HasPrefix(x.name, "ws"):
		return livekit.Homeserver
	case x.name == s.publish:
		return livekit.State
	case s.o.set.services[x.name] != "":
		return s.o.set.services[x.name]
	default:
		return livekit.Sticky
	}
}

func (s *sfus) step(now Time) {
	if s.settle() {
		s.o.wake(now.Boot)
	}
	for _, x := range s.asked {
		s.enter(now, x)
	}
}

// enter gets a token, and another before the one that is held expires.
func (s *sfus) enter(now Time, x *sfu) {
	o := s.o
	if x.distrust != "" {
		if x.failure == nil || x.failure.Reason != livekit.Untrusted {
			s.fail(x, &livekit.Failure{Reason: livekit.Untrusted, Message: x.distrust}, 0)
		}
		return
	}
	if x.failure != nil && x.failure.Reason == livekit.Untrusted {
		x.failure = nil
	}
	if x.token != nil && x.token.ExpiresTS <= o.set.serverTime(now) {
		x.token = nil
	}
	if x.token != nil && now.Boot < x.refreshAt && x.task.inflight == 0 {
		o.wake(x.refreshAt)
		return
	}
	by := s.generation(x)
	ask, ok := s.request(now, x, by)
	if !ok {
		return
	}
	ready := by.TokenRequest(ask)
	ready.Public = !o.set.mayBePrivate(o, x.name)
	request := wire.Request{Kind: wire.GetSFUToken, Ready: &ready, Anonymous: by.NeedsOpenID()}
	o.ask(now, &x.task, request, func(now Time, a wire.Answer, late bool) {
		switch {
		case s.byName[x.name] != x: // it is no longer of the call
		case x.name == s.publish && by != s.generation(x): // we did not publish there when it was asked
		case late && a.Err != nil:
		case a.Err != nil && by == livekit.Sticky && livekit.NoEndpoint(a.Err):
			o.set.remember(x.name, livekit.State)
		case a.Err != nil:
			s.failed(now, x, livekit.TokenError(a.Err), a.Err)
		default:
			s.taken(now, x, by, a.Body)
		}
	})
}

// request is what a token, or a delegation, is asked with; not ok while the OpenID token is on its
// way.
func (s *sfus) request(now Time, x *sfu, by livekit.Generation) (livekit.Ask, bool) {
	o := s.o
	ask := livekit.Ask{SFU: x.name, Room: o.room.id, SlotID: o.slot.id, Member: s.self()}
	if !by.NeedsOpenID() {
		if x.name != s.publish {
			ask.Server = s.server(x)
		}
		return ask, true
	}
	p := o.set.proof(now, x.name)
	if p.token == nil {
		if f := p.failure; f != nil && p.failures > 0 {
			p.failures = 0
			s.fail(x, f, p.task.notBefore-now.Boot)
		}
		o.wake(p.wakeAt)
		return ask, false
	}
	ask.OpenID = p.token
	return ask, true
}

// server is the homeserver of somebody who publishes there.
func (s *sfus) server(x *sfu) string {
	for _, m := range s.o.slot.roster.all() {
		if s.of(m) == x.name {
			return m.UserID.Homeserver()
		}
	}
	return ""
}

func (s *sfus) self() livekit.Member {
	cfg := s.o.set.cfg
	return livekit.Member{UserID: cfg.UserID, DeviceID: cfg.DeviceID, MemberID: s.o.ownMemberID()}
}

// taken reads the answer that should have a token.
func (s *sfus) taken(now Time, x *sfu, by livekit.Generation, body json.RawMessage) {
	server := s.o.set.serverTime(now)
	asked := livekit.Ask{SFU: x.name, Room: s.o.room.id, SlotID: s.o.slot.id, Member: s.self()}
	token, f := by.ParseToken(body, asked, server)
	if f != nil {
		s.failed(now, x, f, &wire.Error{})
		return
	}
	if by != livekit.State {
		s.o.set.remember(x.name, by)
	}
	x.token, x.by, x.failure, x.inARow = &token, by, nil, 0
	left := ms(min(token.ExpiresTS-server, refreshWithin.Milliseconds()))
	x.refreshAt = now.Boot + time.Duration(float64(left)*(0.75+0.1*s.o.set.random()))
	s.o.wake(x.refreshAt)
	s.o.tell(EventSFUTokenRefreshed, s.tokenOf(x))
}

func (s *sfus) failed(now Time, x *sfu, f *livekit.Failure, e *wire.Error) {
	s.o.stats.Failures++
	x.task.failures = x.inARow
	pause := s.o.set.backOff(now, &x.task, e)
	x.inARow++
	s.o.wake(x.task.notBefore)
	s.fail(x, f, pause)
	if f.Reason == livekit.OpenIDRejected {
		delete(s.o.set.proofs, x.name)
	}
}

// fail tells. What a service or an SDK says may repeat what it was given.
func (s *sfus) fail(x *sfu, f *livekit.Failure, pause time.Duration) {
	f = &livekit.Failure{Reason: f.Reason, Message: s.redacted(x, f.Message)}
	x.failure = f
	x.attempts++
	s.o.tell(EventSFUFailed, SFUFailed{x.name, f.Reason, f.Message, pause.Milliseconds()})
}

// redacted leaves out the secrets that an SFU and its service have of us.
func (s *sfus) redacted(x *sfu, said string) string {
	secrets := []string{s.o.handover.id, s.o.handover.former, s.o.sw.id}
	if p := s.o.set.proofs[x.name]; p != nil {
		secrets = append(secrets, gjson.GetBytes(p.token, "access_token").Str)
	}
	if x.token != nil {
		secrets = append(secrets, x.token.JWT)
	}
	for _, secret := range secrets {
		if secret != "" {
			said = strings.ReplaceAll(said, secret, "[redacted]")
		}
	}
	return livekit.WithoutTokens(said)
}

func (s *sfus) tokenOf(x *sfu) SFUToken {
	t := x.token
	return SFUToken{
		ServiceURL: x.name, URL: t.URL, JWT: Secret(t.JWT), Identity: t.Identity, Room: t.Room,
		ExpiresTS: t.ExpiresTS, Generation: string(x.by),
	}
}

// of is where a member publishes.
func (s *sfus) of(m *wire.Membership) string {
	return livekit.SFU(s.o.slot.roster.activeTransport(m))
}

// --- OpenID tokens: each proves who we are to anybody who holds it, so each service has its own

type proof struct {
	token    json.RawMessage
	goodTill time.Duration
	failure  *livekit.Failure
	failures int // not told yet
	task     task
	wakeAt   time.Duration
}

const proofsAtMost = 256

// dropProofs forgets the tokens for services that are of no call any more. Those of the others are
// kept, however many: to forget them would be to ask for them again and again.
func (s *Set) dropProofs() {
	needed := map[string]bool{}
	for _, o := range s.sessions {
		for _, x := range o.sfus.asked {
			needed[x.name] = true
		}
		needed[o.sfus.publish] = true
	}
	maps.DeleteFunc(s.proofs, func(service string, _ *proof) bool { return !needed[service] })
	s.proofsLimit = max(proofsAtMost, 2*len(s.proofs))
}

// proof is the OpenID token for a service. Without a token it is on its way until wakeAt.
func (s *Set) proof(now Time, service string) *proof {
	p := s.proofs[service]
	if p == nil {
		if len(s.proofs) >= s.proofsLimit {
			s.dropProofs()
		}
		p = &proof{}
		s.proofs[service] = p
	}
	if p.token != nil && now.Boot < p.goodTill {
		return p
	}
	p.token = nil
	path := "/_matrix/client/v3/user/" + url.PathEscape(string(s.cfg.UserID)) + "/openid/request_token"
	ready := wire.HTTPRequest{Method: "POST", Path: path, Body: json.RawMessage("{}")}
	p.wakeAt, _ = s.ask(now, nil, &p.task, wire.Request{Kind: wire.GetOpenID, Ready: &ready}, func(now Time, a wire.Answer, _ bool) {
		token, lifetime, err := livekit.OpenID(a.Body)
		switch {
		case a.Err != nil:
			p.failure = &livekit.Failure{Reason: livekit.Unreachable, Message: "our homeserver gives no OpenID token: " + a.Err.Message}
		case err != nil:
			p.failure = &livekit.Failure{Reason: livekit.BadAnswer, Message: err.Error()}
		default:
			p.token, p.goodTill, p.failure = token, now.Boot+lifetime*9/10, nil
		}
		if p.failure != nil {
			p.failures++
			e := a.Err
			if e == nil {
				e = &wire.Error{}
			}
			s.backOff(now, &p.task, e)
		}
		for _, o := range s.inOrder() {
			if o.sfus.byName[service] != nil {
				s.timers.set(&o.timer, now.Boot)
			}
		}
	})
	return p
}

// remember notes the newest generation that a service has.
func (s *Set) remember(service string, by livekit.Generation) {
	if len(s.services) >= proofsAtMost {
		clear(s.services)
	}
	s.services[service] = by
}

// inOrder are the sessions in the order in which they were opened.
func (s *Set) inOrder() []*own {
	list := make([]*own, 0, len(s.sessions))
	for _, o := range s.sessions {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *own) int { return int(a.session) - int(b.session) })
	return list
}

// --- what the host asks

// SFUs are the SFUs of a session's call, each with those who publish there, and how many more were
// named than are looked at.
func (s *Set) SFUs(session uint64) (list []SFU, ignored int, ok bool) {
	o := s.sessions[session]
	if o == nil {
		return nil, 0, false
	}
	members := map[string][]SFUMember{}
	for _, m := range o.slot.roster.all() {
		name := o.sfus.of(m)
		members[name] = append(members[name], SFUMember{m.UserID, m.DeviceID, m.MemberID, livekit.Identity(m)})
	}
	list = []SFU{}
	for _, x := range o.sfus.byName {
		if x.shown {
			d := o.sfus.describe(x)
			d.Members = append([]SFUMember{}, members[x.name]...)
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b SFU) int { return strings.Compare(a.ServiceURL, b.ServiceURL) })
	return list, o.sfus.waiting.Len(), true
}

// SFUToken is HeldSFUToken, and has the token got and kept fresh from now on.
func (s *Set) SFUToken(now Time, session uint64, name string) (*SFUToken, *livekit.Failure, int, error) {
	o, x, err := s.sfu(session, name)
	if err != nil {
		return nil, nil, 0, err
	}
	if !x.wanted {
		x.wanted = true
		o.sfus.asked = append(o.sfus.asked, x)
	}
	s.step(now, o)
	return s.HeldSFUToken(session, name)
}

// HeldSFUToken is the token of an SFU ("" where we publish). Without one failure says why the last
// attempt failed, if one did, and attempts how many have; -1: it was never asked for.
func (s *Set) HeldSFUToken(session uint64, name string) (token *SFUToken, failure *livekit.Failure, attempts int, err error) {
	o, x, err := s.sfu(session, name)
	if err != nil {
		return nil, nil, 0, err
	}
	if x.token == nil && !x.wanted {
		return nil, nil, -1, nil
	}
	if x.token == nil {
		return nil, x.failure, x.attempts, nil
	}
	t := o.sfus.tokenOf(x)
	return &t, nil, x.attempts, nil
}

// sfu finds an SFU of a session by its URL, "" being where we publish.
func (s *Set) sfu(session uint64, name string) (*own, *sfu, error) {
	o := s.sessions[session]
	if o == nil || o.closed {
		return nil, nil, &StateError{"the session is closed"}
	}
	if name == "" {
		if name = o.sfus.publish; name == "" {
			return nil, nil, &StateError{"not joined with a transport: name the SFU by its service_url"}
		}
	}
	x := o.sfus.byName[strings.TrimRight(name, "/")]
	if x == nil || !x.shown {
		return nil, nil, &ArgumentError{"/service_url", "expected an SFU of the call, as session_sfus lists them"}
	}
	return o, x, nil
}

// SFUConnection is what the host tells of its media connection.
type SFUConnection struct {
	ServiceURL string `json:"service_url,omitempty"` // absent: where we publish
	Connected  bool   `json:"connected" required:"true"`
	Error      string `json:"error,omitempty"`       // why it could not be made or has ended, as the SDK tells it
	HTTPStatus int    `json:"http_status,omitempty"` // likewise
}

// SFUConnected takes in that a media connection stands, or that it does not.
func (s *Set) SFUConnected(now Time, session uint64, c SFUConnection) error {
	o, x, err := s.sfu(session, c.ServiceURL)
	if err != nil {
		return err
	}
	x.connected = c.Connected
	if !c.Connected && (c.Error != "" || c.HTTPStatus != 0) {
		f := livekit.ConnectError(c.HTTPStatus, c.Error)
		if f.Reason == livekit.Refused || f.Reason == livekit.NoSuchRoom {
			x.token = nil // another one may be accepted, and the service makes the room when it is asked
		}
		o.sfus.fail(x, f, 0)
	}
	if x.name == o.sfus.publish && !c.Connected {
		o.takeBack()
	}
	s.step(now, o)
	return nil
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
