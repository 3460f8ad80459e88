package sim

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/wire"
)

// TestSeeds plays the first seeds; `make sim` plays many more, `make test-fast` fewer.
func TestSeeds(t *testing.T) {
	const batch = 25
	seeds := uint64(300)
	if testing.Short() {
		seeds = 100
	}
	for from := uint64(1); from < seeds; from += batch {
		t.Run(fmt.Sprintf("%d-%d", from, from+batch-1), func(t *testing.T) {
			t.Parallel()
			for seed := from; seed < from+batch; seed++ {
				if f := Run(PlanOf(seed), Options{}); f != nil {
					t.Errorf("%s\nreplay it with: make sim SEED=%d", f, seed)
				}
			}
		})
	}
}

// TestReplay: a seed is the same run every time.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		run := func() (uint64, int) {
			h, n := fnv.New64(), 0
			Run(PlanOf(seed), Options{Trace: func(at time.Duration, who, what string) {
				n++
				fmt.Fprintln(h, at, who, what)
			}})
			return h.Sum64(), n
		}
		first, lines := run()
		if lines < 100 {
			t.Fatalf("seed %d: a trace of %d lines", seed, lines)
		}
		if again, _ := run(); again != first {
			t.Errorf("seed %d ran differently", seed)
		}
	}
}

// TestInvariantsNotice: each kind of broken client is caught within a few seeds.
func TestInvariantsNotice(t *testing.T) {
	drop := func(kind wire.Kind) func(wire.Request) *wire.Request {
		return func(r wire.Request) *wire.Request {
			if r.Kind == kind {
				return nil
			}
			return &r
		}
	}
	for name, mutate := range map[string]func(wire.Request) *wire.Request{
		"never restarts its delayed leave": drop(wire.RestartDelayed),
		"never schedules a delayed leave":  drop(wire.ScheduleDelayed),
		"never cancels":                    drop(wire.CancelDelayed),
		"never leaves": func(r wire.Request) *wire.Request {
			if r.Kind == wire.SendDelayed || r.Kind == wire.SendState && string(r.Content) == "{}" {
				return nil
			}
			return &r
		},
		"never writes":         drop(wire.SendState),
		"never sends its keys": drop(wire.EncryptAndSendToDevice),
		"sends another key than it uses": func(r wire.Request) *wire.Request {
			if r.Kind == wire.EncryptAndSendToDevice {
				r.Content = json.RawMessage(strings.Replace(string(r.Content), `"key":"`, `"key":"AAAA`, 1))
				r.Content = json.RawMessage(regexp.MustCompile(`"key":"(.{22})...."`).ReplaceAllString(string(r.Content), `"key":"$1"`))
			}
			return &r
		},
		"sends its keys to everybody": func(r wire.Request) *wire.Request {
			if r.Kind == wire.EncryptAndSendToDevice {
				r.Recipients = append(r.Recipients, wire.Device{UserID: "@u0:x", DeviceID: "DEV"}, wire.Device{UserID: "@u1:x", DeviceID: "DEV"})
			}
			return &r
		},
		"expires too late": func(r wire.Request) *wire.Request {
			if r.Kind == wire.SendState {
				r.Content = json.RawMessage(strings.Replace(string(r.Content), `"expires":`, `"expires":1`, 1))
			}
			return &r
		},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 20; seed++ {
				if f := Run(PlanOf(seed), Options{Mutate: mutate}); f != nil {
					t.Log(f)
					return
				}
			}
			t.Error("not noticed")
		})
	}
}
