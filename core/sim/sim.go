// Package sim runs real session.Sets against a model of a homeserver in virtual time. Everything
// that happens, the faults above all, is decided by one seed, so every failure can be replayed.
//
// A run is a call of 2 to 8 clients over 30 virtual minutes. The faults end five minutes before
// it does. At every step the invariants of invariants.go are judged; the first that does not hold
// ends the run.
//
//	plan.go        what a seed decides: the clients, what they do, what befalls them
//	server.go      the model of the homeserver: state, delayed events, sync with gaps
//	todevice.go    media keys on their way
//	sfu.go         an SFU that notices who is gone, and sends their leaves
//	network.go     the way between them: latency, loss, duplicates, outages
//	client.go      a process with a session.Set, its driver and its user
//	invariants.go  what must hold
//	shrink.go      a failing plan made smaller
package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"libmatrixrtc/core/wire"
)

const (
	callLasts = 30 * time.Minute
	faultsEnd = 25 * time.Minute
	epoch     = 1_790_000_000_000 // Unix ms at virtual time 0
)

// Options are how to look at a run, not what happens in it.
type Options struct {
	Trace func(at time.Duration, who, what string) // nil: none
	// Mutate changes what clients send, to show that the invariants notice: nil drops the request.
	Mutate func(wire.Request) *wire.Request
}

// Failure is an invariant that did not hold.
type Failure struct {
	Seed      uint64
	At        time.Duration
	Client    int
	Invariant string
	Detail    string
}

func (f *Failure) String() string {
	return fmt.Sprintf("seed %d at %v: %s: client %d: %s", f.Seed, f.At.Round(time.Millisecond), f.Invariant, f.Client, f.Detail)
}

// Run plays a plan to its end or to its first failure.
func Run(p Plan, o Options) *Failure {
	w := &world{
		plan: p, options: o,
		random: rand.New(rand.NewPCG(p.Seed, 1)),
	}
	w.server = newServer(w)
	for i := range p.Clients {
		w.clients = append(w.clients, newClient(w, i))
	}
	for _, a := range p.Actions {
		w.at(a.At, func() { w.act(a) })
	}
	for at := time.Second; at < callLasts; at += time.Second {
		w.at(at, func() {
			w.compareRosters()
			w.connect()
		})
	}
	for at := time.Second; at < callLasts; at += 5 * time.Second {
		w.at(at, w.compareKeys)
	}
	for w.failure == nil && len(w.queue) > 0 && w.queue[0].at <= callLasts {
		e := heap.Pop(&w.queue).(*event)
		w.now = e.at
		e.run()
		w.noteMembers()
		w.check()
	}
	return w.failure
}

// world is everything in a run.
type world struct {
	plan    Plan
	options Options
	random  *rand.Rand
	now     time.Duration
	queue   events
	order   int
	server  *server
	clients []*client
	failure *Failure
}

// at makes something happen at a moment; of two at one moment, in the order of asking.
func (w *world) at(at time.Duration, run func()) {
	w.order++
	heap.Push(&w.queue, &event{max(at, w.now), w.order, run})
}

func (w *world) after(d time.Duration, run func()) { w.at(w.now+d, run) }

// between is a random duration.
func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.random.Float64()*float64(high-low))
}

func (w *world) chance(p float64) bool { return p > 0 && w.random.Float64() < p }

func (w *world) trace(who, format string, args ...any) {
	if w.options.Trace != nil {
		w.options.Trace(w.now, who, fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(c *client, invariant, format string, args ...any) {
	if w.failure == nil {
		w.failure = &Failure{w.plan.Seed, w.now, c.index, invariant, fmt.Sprintf(format, args...)}
		w.trace(c.name(), "FAILED %s: %s", invariant, w.failure.Detail)
	}
}

type event struct {
	at    time.Duration
	order int
	run   func()
}

type events []*event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *events) Pop() any {
	e := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return e
}
