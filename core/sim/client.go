package sim

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// client is a machine with one process on it: a session.Set, the driver around it, and a user who
// wants to be in the call or not. A crash ends the process; the next one knows nothing but the
// device id.
type client struct {
	w      *world
	index  int
	user   id.UserID
	device id.DeviceID
	key    string // of its membership in the room state

	wants        bool // the user's wish, which outlives the process
	skew         time.Duration
	offlineUntil time.Duration
	asleepUntil  time.Duration

	life    int // counts processes
	running bool
	set     *session.Set
	session uint64
	ticking time.Duration // the tick that is under way
	since   int           // sync position
	intents int

	// What the process told its user.
	joined   bool
	status   session.Status
	probably bool
	delayID  session.Secret

	delegated bool

	sfu sfuSide
	observed
	keyed
}

func userOf(i int) id.UserID { return id.UserID(fmt.Sprintf("@u%d:x", i)) }

func newClient(w *world, i int) *client {
	c := &client{w: w, index: i, user: userOf(i), device: "DEV"}
	c.made, c.gets = map[string]time.Duration{}, map[string]bool{}
	c.key = wire.StateMemberKey(c.user, c.device, "m.call#ROOM", roomVersion)
	c.start()
	return c
}

func (c *client) name() string { return fmt.Sprintf("client %d", c.index) }

func (c *client) asleep() bool { return c.w.now < c.asleepUntil }

// now is the machine's time. The boot clock goes on while it sleeps.
func (c *client) now() session.Time {
	return session.Time{Boot: time.Hour + c.w.now, Wall: epoch + (c.w.now + c.skew).Milliseconds()}
}

// --- the process

func (c *client) start() {
	c.life++
	c.running = true
	c.status, c.joined, c.probably, c.delayID, c.delegated = session.Disconnected, false, false, "", false
	c.ticking, c.since, c.read, c.current = 0, 0, 0, ""
	c.set = session.NewSet(session.SetConfig{
		UserID: c.user, DeviceID: c.device,
		Rand:   rand.New(rand.NewPCG(c.w.plan.Seed, uint64(100*c.index+c.life))),
		NewKey: c.newKey,
	})
	var err error
	if c.session, err = c.set.Open(c.now(), theRoom, session.OpenOptions{}); err != nil {
		c.w.fail(c, "commands work", "open: %v", err)
	}
	c.poll()
	if c.wants {
		c.command(session.Join{Session: c.session, Params: c.params()})
	}
}

func (c *client) crash(lasts time.Duration) {
	if !c.running {
		return
	}
	c.running = false
	c.life++
	c.ended()
	c.sfu.told = false
	c.silent(c.w.now + lasts)
	c.w.after(lasts, func() {
		if !c.running {
			c.w.trace(c.name(), "starts again")
			c.start()
		}
	})
}

func (c *client) sleep(lasts time.Duration) {
	c.asleepUntil = max(c.asleepUntil, c.w.now+lasts)
}

// awake runs something in the process as it is now: not after a crash, and after a sleep.
func (c *client) awake(run func()) {
	if c.asleep() {
		life := c.life
		c.w.at(c.asleepUntil, func() {
			if c.life == life {
				c.awake(run)
			}
		})
		return
	}
	run()
}

// once makes a callback that reaches the process that asked, if it still runs, the first time it is
// called. What arrives during sleep is a broken connection.
func (c *client) once(run func(wire.Answer)) func(wire.Answer) {
	life, done := c.life, false
	return func(a wire.Answer) {
		if done || c.life != life {
			return
		}
		done = true
		if c.asleep() {
			a = wire.Answer{Err: &wire.Error{Network: true, Message: "connection reset"}}
		}
		c.awake(func() { run(a) })
	}
}

func (c *client) handle(in session.Input) error {
	err := c.set.Handle(c.now(), in)
	c.drain()
	return err
}

func (c *client) drain() {
	for _, o := range c.set.Outputs() {
		if o.Request != nil {
			c.send(*o.Request)
		} else {
			c.told(*o.Event)
		}
	}
	at, ok := c.set.Deadline()
	if at -= time.Hour; !ok || c.ticking != 0 && c.ticking <= at && c.ticking > c.w.now {
		return
	}
	c.ticking = max(at, c.w.now)
	life, mine := c.life, c.ticking
	c.w.at(mine, func() {
		if c.life == life && c.ticking == mine {
			c.awake(func() {
				c.ticking = 0
				_ = c.handle(session.Tick{})
			})
		}
	})
}

func (c *client) told(e session.Event) {
	switch d := e.Data.(type) {
	case session.StatusChanged:
		c.w.trace(c.name(), "status %s", d.Status)
		c.status = d.Status
	case session.JoinStateChanged:
		c.joined = d.Joined
	case session.DelayIDChanged:
		c.delayID = ""
		if d.DelayID != nil {
			c.delayID = *d.DelayID
		}
	case session.MediaKey:
		c.w.trace(c.name(), "key %s of %s, in use %v", d.Fingerprint, d.UserID, d.InUse)
		if d.Own {
			if _, known := c.made[d.Fingerprint]; !known {
				c.made[d.Fingerprint] = c.w.now
			}
		}
		if d.Own && d.InUse {
			c.current = d.Fingerprint
		}
	case session.ProbablyLeft:
		c.w.trace(c.name(), "probably left: %v", d.ProbablyLeft)
		c.probably = d.ProbablyLeft
	case session.Left:
		c.w.trace(c.name(), "left, sent %v: %s", d.Sent, d.Reason)
	case session.MembershipManagerError:
		c.w.trace(c.name(), "error, recoverable %v: %s", d.Recoverable, d.Message)
		if !d.Recoverable {
			c.w.fail(c, "nothing here is final", "%s", d.Message)
		}
	case session.MembershipLost:
		c.w.trace(c.name(), "membership lost: %s", d.Reason)
	case session.LeaveDelegated:
		c.w.trace(c.name(), "leave delegated: %v %s", d.Delegated, d.Reason)
		c.delegated = d.Delegated
	case session.Rejoined:
		c.w.trace(c.name(), "rejoined")
	}
}

func (c *client) send(r wire.Request) {
	c.countRequest(r.Kind)
	if m := c.w.options.Mutate; m != nil {
		changed := m(r)
		if changed == nil {
			return
		}
		r = *changed
	}
	if r.Kind == wire.EncryptAndSendToDevice {
		c.w.trace(c.name(), "asks %d %s %s", r.ID, r.Kind, describeKeys(r))
		c.sendKeys(r)
		return
	}
	c.w.trace(c.name(), "asks %d %s %s%s", r.ID, r.Kind, r.DelayID, r.Content)
	answer := c.once(func(a wire.Answer) {
		c.w.trace(c.name(), "is answered %d %s", r.ID, describe(a))
		if a.Err == nil || !a.Err.Network {
			c.learnDate()
		}
		_ = c.handle(session.Response{ID: r.ID, Answer: a})
	})
	c.w.exchange(c, max(r.Timeout, time.Second), func(done func(wire.Answer)) { done(c.w.server.serve(c.user, r)) }, answer)
}

// learnDate takes in the Date header of an answer.
func (c *client) learnDate() {
	_ = c.set.Handle(c.now(), session.ServerDate{UnixMS: c.w.server.clock()/1000*1000 + 500})
}

func describe(a wire.Answer) string {
	switch {
	case a.Err != nil && a.Err.Network:
		return a.Err.Message
	case a.Err != nil:
		return fmt.Sprintf("%d %s, retry after %v", a.Err.Status, a.Err.Code, a.Err.RetryAfter)
	default:
		return fmt.Sprintf("ok %s%s", a.EventID, a.DelayID)
	}
}

// poll is the driver's sync loop.
func (c *client) poll() {
	life, since, read := c.life, c.since, c.read
	var got *session.RoomState
	var letters []mail
	var next int
	answer := c.once(func(a wire.Answer) {
		pause := time.Duration(0)
		if a.Err != nil {
			pause = c.w.between(time.Second, 3*time.Second)
		} else {
			c.since = next
			c.learnDate()
			_ = c.handle(*got)
			c.readMail(letters)
		}
		c.w.after(pause, func() {
			if c.life == life {
				c.awake(c.poll)
			}
		})
	})
	c.w.exchange(c, pollPatience, func(done func(wire.Answer)) {
		c.fetchMail(read)
		c.w.server.sync(c, since, func(in *session.RoomState, n int) {
			if in == nil {
				done(wire.Answer{Err: &refused})
				return
			}
			got, next, letters = in, n, c.fetchMail(read)
			done(ok)
		})
	}, answer)
}

// newKey makes a key that is unlike any other of the run.
func (c *client) newKey(length int) []byte {
	key := make([]byte, length)
	for i := range key {
		key[i] = byte(c.w.random.Uint32())
	}
	return key
}

// --- the user

func (c *client) params() session.JoinParams {
	delay, expiry := c.w.plan.Delay.Milliseconds(), c.w.plan.Expiry.Milliseconds()
	return session.JoinParams{
		FociPreferred:       []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"` + theSFU + `"}`)},
		DelayedLeaveDelayMS: &delay, MembershipExpiryMS: &expiry, ManageMediaKeys: &c.w.plan.Keys,
		DelegateLeave: c.w.plan.Delegated,
	}
}

// wish is the user's decision to be in the call or not.
func (c *client) wish(in bool) {
	if c.wants == in {
		return
	}
	c.wants = in
	if !c.running {
		return
	}
	c.awake(func() {
		if c.joined == c.wants {
			return // changed back while asleep
		}
		if c.wants {
			c.command(session.Join{Session: c.session, Params: c.params()})
		} else {
			c.command(session.Leave{Session: c.session})
		}
	})
}

func (c *client) updateIntent() {
	if !c.running || !c.wants {
		return
	}
	c.awake(func() {
		if c.joined {
			c.intents++
			c.command(session.UpdateIntent{Session: c.session, Intent: []string{"audio", "video"}[c.intents%2]})
		}
	})
}

func (c *client) command(in session.Input) {
	c.commanded(in)
	if err := c.handle(in); err != nil {
		c.w.fail(c, "commands work", "%T: %v", in, err)
	}
}
