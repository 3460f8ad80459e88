// Command sim plays many seeds of the simulator, or replays one.
//
//	sim [-seeds 10000] [-from 1]    play seeds; the last line says how many passed and failed
//	sim -seed N                     replay one: its plan, and if it fails the smallest plan that
//	                                still does, with the end of its trace
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"libmatrixrtc/core/sim"
)

func main() {
	seeds := flag.Uint64("seeds", 10_000, "how many seeds to play")
	from := flag.Uint64("from", 1, "the first seed")
	seed := flag.Uint64("seed", 0, "replay this seed")
	lines := flag.Int("lines", 200, "with -seed: how many lines of the trace's end to print")
	whole := flag.Bool("whole", false, "with -seed: do not look for the smallest plan")
	all := flag.Bool("all", false, "with -seed: print what other clients do as well")
	flag.Parse()
	if *seed != 0 {
		if !replay(*seed, *lines, *all, *whole) {
			os.Exit(1)
		}
		return
	}
	if failed := play(*from, *seeds); failed > 0 {
		os.Exit(1)
	}
}

func play(from, seeds uint64) (failed uint64) {
	began := time.Now()
	debug.SetGCPercent(800) // a call is small and short-lived: by default a third of the time goes into collecting
	var next, bad atomic.Uint64
	next.Store(from)
	var running sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for {
				seed := next.Add(1) - 1
				if seed >= from+seeds {
					return
				}
				if f := sim.Run(sim.PlanOf(seed), sim.Options{}); f != nil {
					bad.Add(1)
					fmt.Printf("%s\n", f)
				}
			}
		})
	}
	running.Wait()
	fmt.Printf("%d seeds passed, %d failed, in %v\n", seeds-bad.Load(), bad.Load(), time.Since(began).Round(time.Second))
	return bad.Load()
}

func replay(seed uint64, lines int, all, whole bool) bool {
	plan := sim.PlanOf(seed)
	f := sim.Run(plan, sim.Options{})
	if f == nil {
		describe(plan)
		fmt.Printf("seed %d passed\n", seed)
		return true
	}
	fmt.Printf("%s\n\n", f)
	smallest := plan
	if !whole {
		smallest, f = sim.Shrink(plan, f, sim.Options{})
	}
	var trace []string
	victim := fmt.Sprintf("client %d", f.Client)
	sim.Run(smallest, sim.Options{Trace: func(at time.Duration, who, what string) {
		if strings.HasPrefix(who, "client") && who != victim && !all {
			return
		}
		trace = append(trace, fmt.Sprintf("%14v  %-9s %s", at.Round(time.Microsecond), who, what))
	}})
	fmt.Println("The smallest plan that fails:")
	describe(smallest)
	fmt.Println()
	if cut := len(trace) - lines; cut > 0 {
		fmt.Printf("... %d lines before (-lines shows more)\n", cut)
		trace = trace[cut:]
	}
	for _, line := range trace {
		fmt.Println(line)
	}
	fmt.Printf("\n%s\n", f)
	return false
}

func describe(p sim.Plan) {
	fmt.Printf("clients %d, delay %v, expiry %v, media keys %v, without one-time keys %.2f\nserver  %+v\nnetwork %+v\n",
		p.Clients, p.Delay, p.Expiry, p.Keys, p.NoOneTimeKeys, p.Server, p.Network)
	for _, a := range p.Actions {
		fmt.Println(a)
	}
}
