package authservice

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A delayed leave that was handed over: once its owner is seen on the SFU it is restarted, again and
// again while they are connected, and sent when they are gone. Whoever is not seen within the delay
// (an hour at most) is left to it.

const (
	lookEvery    = time.Second // for the owner, at first
	lookSlowest  = time.Minute
	waitsAtMost  = time.Hour
	restartAfter = 0.8 // of the delay
	retryEvery   = time.Second
)

type job struct {
	s      *Service
	who    participant
	server string
	leave  leave
	cancel context.CancelFunc
	there  chan bool // what LiveKit says, the latest
}

// takeOver replaces what was handed over for the same participant before.
func (s *Service) takeOver(p participant, server string, l leave) {
	ctx, cancel := context.WithCancel(s.ctx)
	j := &job{s: s, who: p, server: server, leave: l, cancel: cancel, there: make(chan bool, 1)}
	s.mu.Lock()
	if before := s.jobs[p]; before != nil {
		before.cancel()
	}
	s.jobs[p] = j
	s.mu.Unlock()
	go func() {
		defer s.drop(j)
		j.run(ctx)
	}()
}

func (s *Service) drop(j *job) {
	j.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[j.who] == j {
		delete(s.jobs, j.who)
	}
}

// tell passes on that a participant is there, or is not.
func (s *Service) tell(p participant, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[p]
	if j == nil {
		return
	}
	select {
	case <-j.there: // what was said before no longer counts
	default:
	}
	j.there <- there
}

func (j *job) run(ctx context.Context) {
	delay := time.Duration(j.leave.DelayTimeout) * time.Millisecond
	if !j.await(ctx, min(delay, waitsAtMost)) {
		return
	}
	for {
		if !j.act(ctx, "restart", delay) {
			return
		}
		restart := time.NewTimer(time.Duration(restartAfter * float64(delay)))
		for connected := true; connected; {
			select {
			case <-ctx.Done():
				restart.Stop()
				return
			case there := <-j.there:
				if !there {
					restart.Stop()
					j.act(ctx, "send", delay)
					return
				}
			case <-restart.C:
				connected = false // once more round
			}
		}
	}
}

// await waits until LiveKit has the owner, by its word or by asking.
func (j *job) await(ctx context.Context, atMost time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for pause := lookEvery; ; pause = min(pause*3/2, lookSlowest) {
		if there, err := j.s.isThere(ctx, j.who); err == nil && there {
			return true
		}
		look := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			look.Stop()
			return false
		case there := <-j.there:
			look.Stop()
			if there {
				return true
			}
		case <-look.C:
		}
	}
}

// act restarts or sends the leave (MSC4140), trying until the homeserver has answered; false: the
// leave is no more.
func (j *job) act(ctx context.Context, action string, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	path := j.s.homeserver(j.server) + "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/" + url.PathEscape(j.leave.DelayID) + "/" + action
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, http.NoBody)
		if err != nil {
			return false
		}
		a, err := j.s.http.Do(r)
		if err == nil {
			_ = a.Body.Close()
			if a.StatusCode == 200 || a.StatusCode/100 == 4 && a.StatusCode != 429 {
				j.s.cfg.Log("%s the delayed leave of %s: %d", action, j.who.identity, a.StatusCode)
				return a.StatusCode == 200
			}
		}
		again := time.NewTimer(retryEvery)
		select {
		case <-ctx.Done():
			again.Stop()
			return false
		case <-again.C:
		}
	}
}
