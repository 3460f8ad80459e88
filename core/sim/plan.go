package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Plan is what a seed decides.
type Plan struct {
	Seed          uint64
	Clients       int
	Server        ServerPlan
	Network       NetworkPlan
	Expiry        time.Duration // of memberships
	Delay         time.Duration // of the delayed leave
	Keys          bool          // media keys are managed
	Delegated     bool          // delayed leaves are handed over to the authorisation service
	NoOneTimeKeys float64       // chance that a device has none, while faults last
	Actions       []Action      // in order of time
}

// ServerPlan is what kind of homeserver it is.
type ServerPlan struct {
	NoDelayedEvents bool          // it does not know them
	ActionsInBody   bool          // as older servers: what is to become of a delayed event is in the body
	MaxDelay        time.Duration // 0: any
	TellsMaxDelay   bool          // in its capabilities, and in the error
	CancelsOnWrite  bool          // as older servers do: a state write of one's own cancels the delayed leave
	LazyMembers     bool          // the sync leaves out room members
	RateLimit       float64       // requests a second for each user, 0: none
	Skew            time.Duration // of its clock
}

// NetworkPlan is the network while faults last.
type NetworkPlan struct {
	Latency time.Duration // typical, one way
	Loss    float64       // chance that a request, or its answer, is lost
	Twice   float64       // chance that the server sees a request twice
	Late    float64       // chance that a request arrives only after its sender gave up
}

// Action is something that happens to a client (or, with Client -1, to the server).
type Action struct {
	At     time.Duration
	Kind   string
	Client int
	Lasts  time.Duration
}

func (a Action) String() string {
	s := fmt.Sprintf("%9v %s", a.At.Round(time.Millisecond), a.Kind)
	if a.Client >= 0 {
		s += fmt.Sprintf(" client %d", a.Client)
	}
	if a.Lasts != 0 {
		s += fmt.Sprintf(" (%v)", a.Lasts.Round(time.Millisecond))
	}
	return s
}

// The kinds of action.
const (
	doJoin   = "join"
	doLeave  = "leave"
	doIntent = "update intent"

	crash      = "crash" // and start again after Lasts
	storeLost  = "crash that loses the store of"
	sleep      = "sleep"
	jump       = "jump of the wall clock by"
	offline    = "offline" // its network is gone
	stormed    = "storm of junk keys for"
	dropped    = "dropped by the SFU"
	cleared    = "cleared"     // an admin empties its membership
	overwrite  = "overwritten" // somebody writes another's membership over it
	restart    = "server restart"
	amnesia    = "server restart that loses delayed events"
	forgetting = "server loses the delayed events"
	limits     = "storm of 429"
	errors5xx  = "storm of 5xx"
	slow       = "slow server"
)

// PlanOf is the plan of a seed.
func PlanOf(seed uint64) Plan {
	r := rand.New(rand.NewPCG(seed, 0))
	chance := func(p float64) bool { return r.Float64() < p }
	between := func(low, high time.Duration) time.Duration {
		return low + time.Duration(r.Float64()*float64(high-low)).Truncate(time.Millisecond)
	}
	pick := func(of ...time.Duration) time.Duration { return of[r.IntN(len(of))] }

	p := Plan{Seed: seed, Clients: 2 + r.IntN(7)}
	p.Delay = pick(8*time.Second, 10*time.Second, 10*time.Second, 18*time.Second, 30*time.Second)
	p.Expiry = pick(4*time.Hour, 4*time.Hour, 10*time.Minute, 3*time.Minute)
	p.Server = ServerPlan{
		NoDelayedEvents: chance(0.1),
		TellsMaxDelay:   chance(0.5),
		CancelsOnWrite:  chance(0.2),
		LazyMembers:     chance(0.5),
		Skew:            between(-time.Hour, time.Hour),
	}
	p.Server.ActionsInBody = seed%8 == 5
	if chance(0.15) {
		p.Server.MaxDelay = between(6*time.Second, 20*time.Second)
	}
	if chance(0.2) {
		p.Server.RateLimit = 1 + 4*r.Float64()
	}
	p.Network = NetworkPlan{Latency: between(2*time.Millisecond, 300*time.Millisecond)}
	if chance(0.5) {
		p.Network.Loss = 0.1 * r.Float64() * r.Float64()
		p.Network.Twice = 0.05 * r.Float64()
		p.Network.Late = 0.02 * r.Float64()
	}

	if p.Keys = chance(0.6); p.Keys && chance(0.4) {
		p.NoOneTimeKeys = 0.5 * r.Float64()
	}

	add := func(kind string, client int, at, lasts time.Duration) {
		p.Actions = append(p.Actions, Action{at, kind, client, lasts})
	}
	for c := range p.Clients {
		at := between(0, time.Minute)
		for at < faultsEnd {
			add(doJoin, c, at, 0)
			for n := r.IntN(4); n > 0; n-- {
				add(doIntent, c, at+between(0, 5*time.Minute), 0)
			}
			at += pick(time.Second, 20*time.Second, 3*time.Minute, 15*time.Minute, callLasts)
			at += between(-800*time.Millisecond, time.Minute)
			if at < faultsEnd {
				add(doLeave, c, at, 0)
				if chance(0.2) { // another one leaves while the key of that is on its way
					add(doLeave, r.IntN(p.Clients), at+between(0, 1500*time.Millisecond), 0)
				}
			}
			at += pick(10*time.Millisecond, 3*time.Second, time.Minute, 10*time.Minute)
		}
	}
	// Faults come alone and together.
	for n := r.IntN(16); n > 0; n-- {
		at := between(0, faultsEnd)
		lasts := min(pick(500*time.Millisecond, 5*time.Second, 15*time.Second, time.Minute, 4*time.Minute)+between(0, 3*time.Second), faultsEnd-at)
		victims := []int{r.IntN(p.Clients)}
		if chance(0.1) { // all at once
			victims = victims[:0]
			for c := range p.Clients {
				victims = append(victims, c)
			}
		}
		one := []string{crash, crash, storeLost, sleep, sleep, jump, offline, offline, cleared, overwrite, stormed}
		all := []string{restart, restart, amnesia, forgetting, limits, errors5xx, slow}
		if k := r.IntN(len(one) + len(all)); k < len(one) {
			for _, c := range victims {
				if one[k] == jump {
					lasts = between(-3*time.Hour, 3*time.Hour)
				}
				add(one[k], c, at, lasts)
			}
		} else {
			add(all[k-len(one)], -1, at, lasts)
		}
	}
	if p.Delegated = !p.Server.NoDelayedEvents && p.Server.MaxDelay == 0 && chance(0.35); p.Delegated {
		for n := r.IntN(6); n > 0; n-- {
			add(dropped, r.IntN(p.Clients), between(0, faultsEnd), 0)
		}
	}
	slices.SortStableFunc(p.Actions, func(a, b Action) int { return int(a.At - b.At) })
	return p
}

// act carries out an action.
func (w *world) act(a Action) {
	w.trace("plan", "%s", a)
	if a.Client < 0 {
		w.server.suffer(a)
		return
	}
	c := w.clients[a.Client]
	switch a.Kind {
	case doJoin:
		c.wish(true)
	case doLeave:
		c.wish(false)
	case doIntent:
		c.updateIntent()
	case crash:
		c.crash(a.Lasts)
	case storeLost:
		c.identity++
		c.crash(a.Lasts)
	case sleep:
		c.sleep(a.Lasts)
		c.silent(c.asleepUntil)
	case jump:
		c.skew += a.Lasts
	case offline:
		c.offlineUntil = max(c.offlineUntil, w.now+a.Lasts)
		c.silent(c.offlineUntil)
	case stormed:
		c.storm()
	case dropped:
		c.dropped()
	case cleared:
		c.trouble(w.now)
		w.server.writeAs("@admin:x", c.key, "{}")
	case overwrite:
		c.trouble(w.now)
		w.server.writeAs(w.clients[(a.Client+1)%len(w.clients)].user, c.key, `{"application":"m.call","call_id":"","device_id":"OTHER","focus_active":{"type":"livekit"},"foci_preferred":[],"expires":1000000}`)
	}
}
