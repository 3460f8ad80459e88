// Package client drives a session.Set: it turns network into inputs and outputs into requests,
// and owns the clock. Managed mode is a Matrix account of its own (sync, requests, tokens);
// host-driven mode hands the requests to a host that has a Matrix client.
package client

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"golang.org/x/sys/unix"
	"maunium.net/go/mautrix/id"
)

// Event is something to tell the host. Data marshals to the fields of the event.
type Event struct {
	Name    string
	Session uint64 // of the Set, 0 for the client itself
	RoomID  id.RoomID
	TS      int64
	Data    any
}

// Client is one Matrix account. Every method may be called from any goroutine.
type Client struct {
	cfg  Config
	sink func(Event)
	log  func(level int, msg string, fields map[string]any)

	mu        sync.Mutex
	set       *session.Set
	state     state
	failure   string
	timer     *time.Timer
	armedFor  time.Duration // the deadline that the timer is set for, or unarmed
	manual    session.Time  // the clock of host-driven mode with a manual clock
	changed   chan struct{} // closed when something happens: what waiters wait on, nil where none does
	outcome   map[uint64]leaveOutcome
	info      Info
	rooms     map[id.RoomID]bool // joined, as far as the sync told
	inflight  map[uint64]wire.Request
	sending   map[uint64]context.CancelFunc // of keys, by request
	crypt     encryption
	keyEvents bool // room events with media keys are asked for

	http       *http.Client
	token      Secret
	refresh    Secret
	tokenSet   chan struct{}      // closed and replaced when a new token is there
	password   Secret             // to log in again after a soft logout; "" once it was refused
	rejection  *wire.HTTPResponse // how the homeserver refused our token for good
	cancelSync context.CancelFunc // of the sync that is under way

	renewing    sync.Mutex
	renewFailed *wire.HTTPResponse // why the last attempt to get a new token came to nothing
	renewAgain  time.Time          // not before

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	stopBy  time.Time
}

type state string

const (
	created  state = "created"
	started  state = "started"
	stopping state = "stopping" // leaving what is joined
	stopped  state = "stopped"
	failed   state = "failed"
	closed   state = "closed"
)

// leaveOutcome is how the last leave of a session ended.
type leaveOutcome struct{ done, sent bool }

// Info is what is true of a client now.
type Info struct {
	Mode          string      `json:"mode"`
	State         string      `json:"state"`
	SyncState     string      `json:"sync_state"`
	HomeserverURL string      `json:"homeserver_url,omitempty"`
	UserID        id.UserID   `json:"user_id"`
	DeviceID      id.DeviceID `json:"device_id"`
	RoomCount     int         `json:"room_count"`
	LastError     *Error      `json:"last_error"`
}

// stopGrace bounds how long a stop waits for the leaves of joined sessions. After it their
// delayed leaves remove us.
const stopGrace = 10 * time.Second

// wakeAtLeast is how often the clocks are read again: Go's timers stand still while the machine
// sleeps.
const wakeAtLeast = 30 * time.Second

const unarmed time.Duration = -2 // -1: there is no deadline

// New makes a client. Nothing happens before Start. sink gets every event, in order, never two at
// once, while the client's lock is held: it must not block or call back.
func New(cfg Config, sink func(Event), log func(level int, msg string, fields map[string]any)) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, sink: sink, log: log, state: created,
		tokenSet: make(chan struct{}),
		outcome:  map[uint64]leaveOutcome{}, rooms: map[id.RoomID]bool{}, inflight: map[uint64]wire.Request{}, sending: map[uint64]context.CancelFunc{},
		token: cfg.AccessToken, refresh: cfg.RefreshToken, password: cfg.Password,
		crypt: encryption{opened: make(chan struct{}), settled: make(chan struct{})},
	}
	if log == nil {
		c.log = func(int, string, map[string]any) {}
	}
	c.info = Info{Mode: cfg.Mode, SyncState: "stopped", HomeserverURL: cfg.HomeserverURL, UserID: cfg.UserID, DeviceID: cfg.DeviceID}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if cfg.Mode == "managed" {
		var err error
		if c.http, err = cfg.transport(); err != nil {
			return nil, err
		}
	}
	c.set = c.newSet()
	return c, nil
}

// newSet makes the set. Who we are is not said before we have logged in: until then nothing is asked.
func (c *Client) newSet() *session.Set {
	trust, _ := c.cfg.sfuTrust() // validated
	s := session.SetConfig{
		NewKey: newKey, SFUTrust: trust, PrivateSFUs: livekit.Private(c.cfg.HomeserverURL),
		Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	}
	if v := c.cfg.MaxMembershipExpiryMS; v != nil {
		s.MaxExpiry = time.Duration(*v) * time.Millisecond
	}
	if c.HostDriven() {
		s.UserID, s.DeviceID = c.cfg.UserID, c.cfg.DeviceID
	}
	return session.NewSet(s)
}

func newKey(length int) []byte {
	key := make([]byte, length)
	cryptorand.Read(key) // never fails
	return key
}

// now reads both clocks.
func (c *Client) now() session.Time {
	if c.cfg.Clock == "manual" {
		return c.manual
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err))
	}
	return session.Time{Boot: time.Duration(ts.Nano()), Wall: time.Now().UnixMilli()}
}

// do runs f under the lock and passes on what comes out of the set. A panic fails this client
// and nothing else.
func (c *Client) do(f func(now session.Time) error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.catch(&err)
	switch c.state {
	case failed:
		return &Error{Status: ErrClientFailed, Message: c.failure}
	case closed:
		return &Error{Status: ErrInvalidHandle, Message: "the client is freed"}
	}
	err = f(c.now())
	c.drain()
	return err
}

// catch marks the client failed after a panic. The lock is held.
func (c *Client) catch(err *error) {
	p := recover()
	if p == nil {
		return
	}
	if c.state == closed || c.state == failed {
		return // nobody is to be told, or was
	}
	c.state = failed
	c.failure = fmt.Sprintf("internal error: %v", p)
	c.log(3, "panic", map[string]any{"panic": fmt.Sprint(p), "stack": string(debug.Stack())})
	c.cancel()
	c.emit(Event{Name: "client_failed", Data: map[string]string{"message": c.failure}})
	c.signal()
	if err != nil {
		*err = &Error{Status: ErrInternal, Message: c.failure}
	}
}

// Fail ends the client after a panic outside its lock, and answers the error.
func (c *Client) Fail(p any) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.catch(&err)
	panic(p)
}

// closeStore lets go of the store once nobody uses it any more.
func (c *Client) closeStore() {
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.catch(nil)
	if m := c.crypt.machine; m != nil {
		c.crypt.machine = nil
		m.Close()
	}
}

// spawn is the one way to start a goroutine. The lock is held.
func (c *Client) spawn(f func()) {
	c.running.Add(1)
	go func() {
		defer c.running.Done()
		defer func() {
			if p := recover(); p != nil {
				_ = c.Fail(p)
			}
		}()
		f()
	}()
}

// signal wakes whoever waits. The lock is held.
func (c *Client) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

func (c *Client) emit(e Event) {
	e.TS = c.manual.Wall
	if c.cfg.Clock != "manual" {
		e.TS = time.Now().UnixMilli()
	}
	c.sink(e)
}

// drain passes on what the set wants done and told, and sets the timer. The lock is held.
func (c *Client) drain() {
	outputs := c.set.Outputs()
	for _, o := range outputs {
		if o.Request != nil {
			c.perform(*o.Request)
			continue
		}
		switch e := o.Event.Data.(type) {
		case session.Left:
			c.outcome[o.Event.Session] = leaveOutcome{done: true, sent: e.Sent}
		case session.MembershipManagerError:
			c.log(2, "trouble with our membership", map[string]any{"room_id": o.Event.Room, "error": e.Message, "errcode": e.Errcode, "http_status": e.HTTPStatus})
		case session.SFUFailed:
			c.log(2, "an SFU cannot be entered", map[string]any{"room_id": o.Event.Room, "service_url": e.ServiceURL, "reason": e.Reason, "error": e.Message})
		}
		c.emit(Event{Name: o.Event.Name, Session: o.Event.Session, RoomID: o.Event.Room, Data: o.Event.Data})
	}
	c.cancelUnwanted()
	if len(outputs) > 0 {
		c.signal()
	}
	if !c.crypt.wanted && c.set.ManagesKeys() {
		c.wantEncryption()
	}
	if keys := c.set.InKeyRooms(); keys != c.keyEvents {
		c.keyEvents = keys
		if keys && c.cancelSync != nil {
			c.cancelSync() // it would pass over the room events with the keys that now come
		}
	}
	if c.state == stopping && c.set.Idle() {
		c.halt()
	}
	c.arm()
}

// arm sets the one timer. The lock is held.
func (c *Client) arm() {
	if c.cfg.Clock == "manual" && c.state != stopping || c.state == stopped || c.state == failed || c.state == closed || c.state == created && c.cfg.Mode == "managed" {
		return
	}
	at, ok := c.set.Deadline()
	if !ok {
		at = -1
	}
	if c.timer != nil && at == c.armedFor && c.state != stopping {
		return
	}
	c.armedFor = at
	wait := wakeAtLeast
	if ok && c.cfg.Clock != "manual" {
		wait = min(wait, max(at-c.now().Boot, 0))
	}
	if c.state == stopping {
		wait = min(wait, max(time.Until(c.stopBy), 0))
	}
	if c.timer == nil {
		c.timer = time.AfterFunc(wait, c.tick)
	} else {
		c.timer.Reset(wait)
	}
}

func (c *Client) tick() {
	_ = c.do(func(now session.Time) error {
		c.armedFor = unarmed
		if c.state == stopping && !time.Now().Before(c.stopBy) {
			c.halt()
			return nil
		}
		return c.set.Handle(now, session.Tick{})
	})
}

// Start begins to log in and sync, in the background. What comes of it is told by sync_state.
func (c *Client) Start() error {
	return c.do(func(session.Time) error {
		switch {
		case c.cfg.Mode != "managed":
			return wrongState("a host-driven client has nothing to start")
		case c.state != created:
			return wrongState("the client is %s: it can be started once", c.state)
		}
		c.state = started
		c.spawn(c.runSync)
		return nil
	})
}

// Stop leaves the calls that are joined and then ends sync and requests, in the background.
func (c *Client) Stop() error {
	return c.do(func(now session.Time) error {
		if c.state == stopping || c.state == stopped {
			return nil
		}
		if c.state != started {
			c.halt()
			return nil
		}
		c.state = stopping
		c.stopBy = time.Now().Add(stopGrace)
		c.set.LeaveAll(now)
		return nil
	})
}

// halt ends everything at once. The lock is held.
func (c *Client) halt() {
	c.state = stopped
	c.cancel()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.info.SyncState = "stopped"
	c.emit(Event{Name: "sync_state", Data: map[string]any{"state": "stopped"}}) // also of a client that never synced
	c.signal()
	go c.closeStore()
}

// StopWait is Stop and waits until it is done; a negative timeout waits for ever.
func (c *Client) StopWait(timeout time.Duration) error {
	if err := c.Stop(); err != nil {
		return err
	}
	if !c.waitFor(timeout, c.over) {
		return &Error{Status: Timeout, Message: "not stopped in time"}
	}
	c.closeStore()
	return nil
}

// over: nothing will happen any more. The lock is held.
func (c *Client) over() bool { return c.state == stopped || c.state == failed || c.state == closed }

// waitFor waits until cond, asked under the lock, is true.
func (c *Client) waitFor(timeout time.Duration, cond func() bool) bool {
	var expired <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	for {
		c.mu.Lock()
		ok := cond()
		if !ok && c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-expired:
			return false
		}
	}
}

// Close frees the client: no event comes after it. Calls that are joined are left to their
// delayed leave.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closed {
		return
	}
	c.state = closed
	c.set.Wipe()
	c.cancel()
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.signal()
	go c.closeStore()
}

// Info answers what is true of the client.
func (c *Client) Info() (info Info, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closed {
		return info, &Error{Status: ErrInvalidHandle, Message: "the client is freed"}
	}
	info = c.info
	info.State = string(c.state)
	info.RoomCount = len(c.rooms)
	return info, nil
}

// Sessions are the rooms with a live call.
func (c *Client) Sessions() (calls []session.RoomCall, err error) {
	err = c.do(func(session.Time) error { calls = c.set.Sessions(); return nil })
	return calls, err
}

// Transports are where the homeserver offers to have the media of calls; known says whether it has
// been asked with success. What changes is told by transports_changed.
func (c *Client) Transports() (list []json.RawMessage, known bool, err error) {
	err = c.do(func(now session.Time) error { list, known = c.set.Transports(now); return nil })
	return list, known, err
}

// HostDriven says whether the host makes the requests.
func (c *Client) HostDriven() bool { return c.cfg.Mode == "host_driven" }

// tellSync emits sync_state when it changes, or with an error. The lock is held.
func (c *Client) tellSync(s string, e *Error) {
	if c.info.SyncState == s && e == nil {
		return
	}
	c.info.SyncState = s
	if e != nil || s == "syncing" {
		c.info.LastError = e
	}
	data := map[string]any{"state": s}
	if e != nil {
		data["error"] = e
	}
	c.emit(Event{Name: "sync_state", Data: data})
	c.signal()
}
