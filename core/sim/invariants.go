package sim

import (
	"slices"
	"sort"
	"strings"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"
)

// What must hold, at every step:
//
//   - no ghosts: the membership of a process that is gone stands no longer than its delayed leave,
//     or its expiry, lets it; that of one which left, no longer than the network is in trouble
//   - no false belief: whoever is Connected and not probably left stands in the room, but for the
//     time that its delayed leave grants
//   - no hammering: at most requestsAMinute requests a minute from one process, the restarts that its
//     delayed leave needs, and keyRequestsAMinute to send keys, whatever happens
//   - keys are shared: every present pair ends up with the key in use of the other
//   - no key for who left: no device receives a key that was made after it had left, nor does one that
//     left know the key in use, but for the time in which that news travels
//   - keys are forgotten: who left has none
//   - memory is bounded: of what strangers send, and of what is on its way to others
//   - recovery: settleWithin after the last trouble, all is as the users wish: who wants to be in
//     is, with one delayed leave armed; who does not is not, with none; and all rosters agree with
//     the server's state
const (
	settleWithin       = 60 * time.Second
	delegatedSlack     = 80 * time.Second              // two are armed for a while, and that all are lost is noticed within a minute
	rosterWithin       = pollPatience + 10*time.Second // a poll may be lost in silence
	beliefSlack        = 6 * time.Second
	rearmWithin        = 15 * time.Second // older servers cancel it at every write
	requestsAMinute    = 70               // beside the restarts of the delayed leave, and:
	handoversAMinute   = 20               // where delayed leaves are handed over: another one, proof of who we are, the request
	keyRequestsAMinute = 100              // to send keys, each to all devices that need it
)

// observed is what the invariants remember of a client.
type observed struct {
	requests       []time.Duration // of the last minute
	keyRequests    []time.Duration
	wishedAt       time.Duration // the last command, start or crash
	troubledUntil  time.Duration
	ghostSince     time.Duration // 0: no ghost
	ghostExpiry    int64
	believesSince  time.Duration // wrongly; 0: no
	disagreesSince time.Duration
	wasIn          bool          // this process asked to join once
	armedSince     time.Duration // as many delayed leaves as there should be
}

// trouble says that a client's affairs may be in disorder until then.
func (c *client) trouble(until time.Duration) { c.troubledUntil = max(c.troubledUntil, until) }

// quiet says that nothing has befallen a client, nor has its user acted, for so long.
func (c *client) quiet(long time.Duration) bool {
	n, s := c.w.plan.Network, c.w.plan.Server
	since := max(c.troubledUntil, c.offlineUntil, c.asleepUntil, c.w.server.troubledUntil, c.wishedAt)
	if n.Loss > 0 || n.Late > 0 || n.Twice > 0 || s.RateLimit > 0 {
		since = max(since, faultsEnd)
	}
	return c.w.now > since+long
}

func (c *client) commanded(session.Input) { c.wishedAt = c.w.now }
func (c *client) ended()                  { c.wishedAt, c.wasIn = c.w.now, false }
func (c *client) claims() bool            { return c.running && c.joined }
func (c *client) usable() bool            { return c.running && !c.asleep() }
func (c *client) switchExpected() bool    { return !c.w.plan.Server.NoDelayedEvents }
func (c *client) countRequest(kind wire.Kind) {
	made, most := &c.requests, requestsAMinute
	if kind == wire.EncryptAndSendToDevice {
		made, most = &c.keyRequests, keyRequestsAMinute
	} else {
		delay := c.w.plan.Delay
		if longest := c.w.plan.Server.MaxDelay; longest > 0 {
			delay = min(delay, longest/2) // halved where the maximum is not told
		}
		most += int(time.Minute / min(4*time.Second, delay*2/5))
		if c.w.plan.Delegated {
			most += handoversAMinute
		}
	}
	minute := c.w.now - time.Minute
	for len(*made) > 0 && (*made)[0] <= minute {
		*made = (*made)[1:]
	}
	if *made = append(*made, c.w.now); len(*made) > most {
		c.w.fail(c, "no hammering", "%d requests in a minute, %s the last", len(*made), kind)
	}
}

// check judges every client.
func (w *world) check() {
	for _, c := range w.clients {
		if w.failure != nil {
			return
		}
		c.checkGhost()
		c.checkBelief()
		c.checkSettled()
	}
}

func (c *client) checkGhost() {
	m := c.w.server.member(c.key)
	if m == nil || m.UserID != c.user || c.claims() {
		c.ghostSince = 0
		return
	}
	now := c.w.now
	if c.ghostSince == 0 || m.ExpiresTS != c.ghostExpiry {
		c.ghostSince, c.ghostExpiry = max(now, 1), m.ExpiresTS
		if left := time.Duration(m.ExpiresTS-c.w.server.clock()) * time.Millisecond; left > c.w.plan.Expiry+settleWithin {
			c.w.fail(c, "no ghosts", "it would stand for another %v, with an expiry of %v", left, c.w.plan.Expiry)
		}
	}
	// A leave of an hour that nobody has taken over, since the answer to scheduling it was lost, ends nothing soon.
	due := slices.ContainsFunc(c.w.server.armed(c.key), func(d *delayedEvent) bool {
		return d.delay <= c.w.plan.Delay || d.id == c.sfu.handedID
	})
	switch up := max(c.ghostSince, c.w.server.upSince); {
	case c.w.server.down:
	case due && now > up+c.w.plan.Delay+sfuNotices+c.latest():
		c.w.fail(c, "no ghosts", "a delayed leave is armed, yet it stands since %v", c.ghostSince)
	case c.usable() && c.wasIn && c.quiet(settleWithin):
		c.w.fail(c, "no ghosts", "it left, but stands since %v", c.ghostSince)
	}
}

// latest is how late a restart may arrive.
func (c *client) latest() time.Duration { return 30 * time.Second }

func (c *client) checkBelief() {
	believes := c.usable() && c.status == session.Connected && !c.probably
	m := c.w.server.member(c.key)
	if !believes || m != nil && m.UserID == c.user {
		c.believesSince = 0
		return
	}
	if c.believesSince == 0 {
		c.believesSince = max(c.w.now, c.asleepUntil, 1)
	}
	grants := c.w.plan.Delay
	if c.delayID == "" || c.delegated || c.w.server.delayed[string(c.delayID)] != nil {
		grants += pollPatience // only the sync can tell
		if !c.quiet(0) {
			c.believesSince = c.w.now
		}
	}
	if c.w.now > c.believesSince+grants+beliefSlack {
		c.w.fail(c, "no false belief", "Connected, but not in the room since %v", c.believesSince)
	}
}

func (c *client) checkSettled() {
	armed := len(c.w.server.armed(c.key))
	want := 0
	if c.wants && c.switchExpected() {
		want = 1
	}
	if armed == want || want == 0 && c.w.plan.Delegated { // one that the network doubled may stay for an hour: the next join cancels it
		c.armedSince = c.w.now
	}
	if !c.usable() || !c.quiet(settleWithin) {
		return
	}
	m := c.w.server.member(c.key)
	switch {
	case c.joined != c.wants:
		c.w.fail(c, "recovery", "joined is %v", c.joined)
	case c.wants && c.status != session.Connected:
		c.w.fail(c, "recovery", "its status is %s", c.status)
	case c.wants && c.probably:
		c.w.fail(c, "recovery", "it has probably left")
	case c.wants && (m == nil || m.UserID != c.user):
		c.w.fail(c, "recovery", "it does not stand in the room")
	case !c.wants && c.status != session.Disconnected:
		c.w.fail(c, "recovery", "its status is %s", c.status)
	case c.w.now > c.armedSince+rearmWithin && !(c.w.plan.Delegated && c.w.now < c.armedSince+delegatedSlack):
		c.w.fail(c, "recovery", "%d delayed leaves are armed", armed)
	}
}

// compareRosters is called every virtual second.
func (w *world) compareRosters() {
	var here []string
	for _, c := range w.clients {
		if m := w.server.member(c.key); m != nil && m.UserID == c.user {
			here = append(here, string(m.UserID)+" "+string(m.EventID))
		}
	}
	sort.Strings(here)
	truth := strings.Join(here, ", ")
	for _, c := range w.clients {
		if !c.usable() || !c.quiet(0) {
			c.disagreesSince = w.now
			continue
		}
		var seen []string
		for _, m := range c.set.Memberships(c.session) {
			seen = append(seen, string(m.UserID)+" "+string(m.EventID))
		}
		sort.Strings(seen)
		if roster := strings.Join(seen, ", "); roster == truth {
			c.disagreesSince = w.now
		} else if w.now > c.disagreesSince+rosterWithin {
			w.fail(c, "rosters agree", "it sees [%s], the room has [%s]", roster, truth)
		}
	}
}
