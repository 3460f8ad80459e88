package main

/*
#include <stdlib.h>
#include "abi.h"
*/
import "C"

import (
	"encoding/json"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"libmatrixrtc/core/client"

	"golang.org/x/sys/unix"
)

// Events go two ways: to listeners, from one thread of the library, and into a queue per client
// that the host reads. Both are backlogs with a bound.

// maxBacklog is how many events may wait before they are replaced by one resync_required.
// Requests of host-driven mode are bounded where they arise and are never dropped.
const maxBacklog = 16384

// backlog is a queue that never grows without bound and never loses anything silently.
type backlog struct {
	items []queued
}

type queued struct {
	name   string
	json   []byte
	client *host
	call   *call // nil: an event of the client
	seq    uint64
	ts     int64
	lost   int // of resync_required: how many events it stands for
	log    *logLine
}

type logLine struct {
	level int
	json  []byte
}

func (b *backlog) push(q queued) {
	if len(b.items) >= maxBacklog {
		b.shorten()
	}
	b.items = append(b.items, q)
}

// shorten leaves the requests, and for each client one resync_required in place of its other events.
func (b *backlog) shorten() {
	kept := b.items[:0]
	markers := map[*host]queued{}
	for _, q := range b.items {
		switch {
		case q.name == "request":
			kept = append(kept, q)
		case q.log == nil:
			lost := markers[q.client].lost + max(q.lost, 1)
			markers[q.client] = queued{name: "resync_required", client: q.client, seq: q.seq, ts: q.ts, lost: lost}
		}
	}
	for _, m := range markers {
		m.json = envelope(m, "", map[string]int{"lost": m.lost})
		kept = append(kept, m)
	}
	clear(b.items[len(kept):])
	b.items = kept
}

func (b *backlog) pop() (q queued, ok bool) {
	if len(b.items) == 0 {
		return q, false
	}
	q = b.items[0]
	b.items[0] = queued{}
	b.items = b.items[1:]
	return q, true
}

// --- the queue of a client

type queue struct {
	mu      sync.Mutex
	on      bool
	backlog backlog
	arrived chan struct{} // closed and replaced when an event arrives
	closed  bool
	fds     [2]int // socketpair: [0] is the host's, [1] ours; 0: not made yet
	primed  bool   // a byte is in it
}

func (q *queue) push(e queued) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.on || q.closed {
		return
	}
	q.backlog.push(e)
	close(q.arrived)
	q.arrived = make(chan struct{})
	q.prime()
}

// exists says whether the host reads the queue.
func (q *queue) exists() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.on
}

// prime makes the descriptor readable. The lock is held.
func (q *queue) prime() {
	if q.fds[1] == 0 || q.primed {
		return
	}
	_, err := unix.Write(q.fds[1], []byte{1})
	q.primed = err == nil
}

// enable makes the queue exist. The lock is held.
func (q *queue) enable() {
	if !q.on {
		q.on, q.arrived = true, make(chan struct{})
	}
}

// next takes an event, waiting for one; nil when none came in time or the queue is closed.
func (q *queue) next(timeout time.Duration) *queued {
	var expired <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	for {
		q.mu.Lock()
		q.enable()
		if e, ok := q.backlog.pop(); ok {
			if len(q.backlog.items) == 0 {
				q.drainFD()
			} else {
				q.refill()
			}
			q.mu.Unlock()
			return &e
		}
		q.drainFD()
		arrived, closed := q.arrived, q.closed
		q.mu.Unlock()
		if timeout == 0 || closed {
			return nil
		}
		select {
		case <-arrived:
		case <-expired:
			return nil
		}
	}
}

// refill makes the descriptor readable again where the host has eaten the byte. The lock is held.
func (q *queue) refill() {
	if q.fds[0] != 0 {
		n, err := unix.IoctlGetInt(q.fds[0], unix.TIOCINQ)
		q.primed = err == nil && n > 0
		q.prime()
	}
}

// drainFD takes the byte back. The lock is held.
func (q *queue) drainFD() {
	if q.fds[0] != 0 {
		var b [8]byte
		_, _ = unix.Read(q.fds[0], b[:])
		q.primed = false
	}
}

// fd answers a descriptor of the caller's own.
func (q *queue) fd() (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, staleHandle("client")
	}
	q.enable()
	if q.fds[1] == 0 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		q.fds = fds
	}
	if len(q.backlog.items) > 0 {
		q.prime()
	}
	return unix.FcntlInt(uintptr(q.fds[0]), unix.F_DUPFD_CLOEXEC, 0)
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	if q.arrived != nil {
		close(q.arrived)
		q.arrived = make(chan struct{})
	}
	if q.fds[1] != 0 {
		_ = unix.Close(q.fds[0])
		_ = unix.Close(q.fds[1])
		q.fds = [2]int{}
	}
}

// --- listeners

type listener struct {
	handle   uint64 // of the client or session
	event    string // "": every event
	fn, data unsafe.Pointer
	once     bool
	id       uint64
	removed  bool
}

// dispatcher is the one thread that calls into the host.
type dispatcher struct {
	mu        sync.Mutex
	idle      *sync.Cond // signalled when a callback has returned
	work      *sync.Cond
	started   bool
	backlog   backlog
	listeners map[uint64][]*listener // by handle, in order
	running   *listener
	logging   bool // the log callback is running

	logFn, logData unsafe.Pointer
	logLevel       int
}

var dispatch = func() *dispatcher {
	d := &dispatcher{listeners: map[uint64][]*listener{}}
	d.idle, d.work = sync.NewCond(&d.mu), sync.NewCond(&d.mu)
	return d
}()

func (d *dispatcher) push(q queued) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.log != nil {
		if d.logFn == nil || q.log.level < d.logLevel {
			return
		}
	} else if !d.heard(q) {
		return
	}
	d.backlog.push(q)
	d.start()
	d.work.Signal()
}

// hears says whether anybody listens for an event.
func (d *dispatcher) hears(q queued) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.heard(q)
}

// heard is hears with the lock held.
func (d *dispatcher) heard(q queued) bool {
	on := func(handle uint64) bool {
		return slices.ContainsFunc(d.listeners[handle], func(l *listener) bool { return l.event == "" || l.event == q.name })
	}
	return on(q.client.handle) || q.call != nil && on(q.call.handle)
}

// start runs the thread. The lock is held.
func (d *dispatcher) start() {
	if !d.started {
		d.started = true
		go d.run()
	}
}

func (d *dispatcher) run() {
	runtime.LockOSThread()
	d.mu.Lock()
	for {
		q, ok := d.backlog.pop()
		switch {
		case !ok:
			d.work.Wait()
		case q.log != nil:
			d.deliverLog(q.log)
		default:
			if p := d.deliver(q); p != nil {
				d.mu.Unlock()
				_ = q.client.c.Fail(p)
				d.mu.Lock()
			}
		}
	}
}

// deliver calls the listeners of one event, and answers a panic. The lock is held, but not during a
// callback.
func (d *dispatcher) deliver(q queued) (panicked any) {
	defer func() { panicked = recover() }()
	targets := d.listeners[q.client.handle]
	if q.call != nil {
		targets = append(append([]*listener{}, d.listeners[q.call.handle]...), targets...)
	} else {
		targets = append([]*listener{}, targets...)
	}
	var name, text *C.char
	for _, l := range targets {
		if l.removed || l.event != "" && l.event != q.name {
			continue
		}
		if l.once {
			d.remove(l)
		}
		if name == nil {
			name, text = C.CString(q.name), (*C.char)(C.CBytes(append(q.json, 0)))
		}
		d.running = l
		d.mu.Unlock()
		C.mrtc_call_listener(l.fn, C.uint64_t(l.handle), name, text, C.size_t(len(q.json)), l.data)
		d.mu.Lock()
		d.running = nil
		d.idle.Broadcast()
	}
	C.free(unsafe.Pointer(name))
	C.free(unsafe.Pointer(text))
	return nil
}

func (d *dispatcher) deliverLog(l *logLine) {
	fn, data := d.logFn, d.logData
	if fn == nil || l.level < d.logLevel {
		return
	}
	text := (*C.char)(C.CBytes(append(l.json, 0)))
	d.logging = true
	d.mu.Unlock()
	C.mrtc_call_log(fn, C.int(l.level), text, C.size_t(len(l.json)), data)
	d.mu.Lock()
	d.logging = false
	d.idle.Broadcast()
	C.free(unsafe.Pointer(text))
}

func (d *dispatcher) add(l *listener, prepend bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.listeners[l.handle]
	if prepend {
		list = append([]*listener{l}, list...)
	} else {
		list = append(list[:len(list):len(list)], l)
	}
	d.listeners[l.handle] = list
	l.id = handles.add(kindListener, l)
}

// remove takes a listener out. The lock is held.
func (d *dispatcher) remove(l *listener) {
	if l.removed {
		return
	}
	l.removed = true
	handles.take(l.id)
	old := d.listeners[l.handle]
	list := make([]*listener, 0, len(old))
	for _, o := range old {
		if o != l {
			list = append(list, o)
		}
	}
	if len(list) == 0 {
		delete(d.listeners, l.handle)
	} else {
		d.listeners[l.handle] = list
	}
}

// removeWhere takes out listeners of a handle and waits until none of them is running, unless it
// is called from inside a callback.
func (d *dispatcher) removeWhere(handle uint64, which func(*listener) bool) (n int) {
	inside := C.mrtc_in_callback() != 0
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.listeners[handle] {
		if which(l) {
			d.remove(l)
			n++
		}
	}
	for !inside && d.running != nil && d.running.handle == handle && d.running.removed && which(d.running) {
		d.idle.Wait()
	}
	return n
}

// await waits until a listener that was removed before is not running, unless it is called from
// inside a callback.
func (d *dispatcher) await(id uint64) {
	inside := C.mrtc_in_callback() != 0
	d.mu.Lock()
	defer d.mu.Unlock()
	for !inside && d.running != nil && d.running.id == id {
		d.idle.Wait()
	}
}

func (d *dispatcher) count(handle uint64, event string, all bool) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.listeners[handle] {
		if all || l.event == event {
			n++
		}
	}
	return n
}

func (d *dispatcher) setLog(fn, data unsafe.Pointer, level int) {
	inside := C.mrtc_in_callback() != 0
	d.mu.Lock()
	defer d.mu.Unlock()
	d.logFn, d.logData, d.logLevel = fn, data, level
	for !inside && d.logging {
		d.idle.Wait()
	}
}

// logEvent passes a log line on.
func logEvent(level int, msg string, fields map[string]any) {
	line := map[string]any{"message": msg}
	for k, v := range fields {
		line[k] = v
	}
	raw, err := json.Marshal(line)
	if err != nil {
		return
	}
	dispatch.push(queued{log: &logLine{level, raw}})
}

// --- the JSON of an event

// envelope puts the common fields in front of those of the event.
func envelope(q queued, room string, data any) []byte {
	head := struct {
		Event   string `json:"event"`
		Client  uint64 `json:"client"`
		Session uint64 `json:"session,omitempty"`
		RoomID  string `json:"room_id,omitempty"`
		Seq     uint64 `json:"seq"`
		TS      int64  `json:"ts"`
	}{q.name, q.client.handle, 0, room, q.seq, q.ts}
	if q.call != nil {
		head.Session = q.call.handle
	}
	raw, err := json.Marshal(head)
	if err != nil {
		return []byte("{}")
	}
	body, err := json.Marshal(data)
	if err != nil || len(body) <= 2 || body[0] != '{' {
		return raw
	}
	return append(append(raw[:len(raw)-1], ','), body[1:]...)
}

// tell sends an event to whoever listens. It answers false where the client is freed.
func (h *host) tell(q queued, room string, data any) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.freed {
		return false
	}
	h.seq++
	q.client, q.seq = h, h.seq
	if !h.queue.exists() && !dispatch.hears(q) {
		return true
	}
	q.json = envelope(q, room, data)
	h.queue.push(q)
	dispatch.push(q)
	return true
}

// sink takes an event of the core. The client's lock is held: nothing here waits.
func (h *host) sink(e client.Event) {
	var s *call
	if e.Session != 0 {
		// The requests of a closed session are how it leaves.
		if s = h.session(e.Session); s == nil && e.Name != "request" {
			return
		}
	}
	h.tell(queued{name: e.Name, call: s, ts: e.TS}, string(e.RoomID), e.Data)
}

func (h *host) session(id uint64) *call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[id]
}
