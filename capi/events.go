package main

/*
#include <stdlib.h>
#include "abi.h"
*/
import "C"

import (
	"encoding/json"
	"runtime"
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
	lost  int
}

type queued struct {
	name   string
	json   []byte
	client *host
	call   *call // nil: an event of the client
	log    *logLine
}

type logLine struct {
	level int
	json  []byte
}

func (b *backlog) push(q queued) {
	if len(b.items) >= maxBacklog {
		kept := b.items[:0]
		for _, old := range b.items {
			if old.name == "request" {
				kept = append(kept, old)
			} else if old.log == nil {
				b.lost++
			}
		}
		clear(b.items[len(kept):])
		b.items = kept
	}
	b.items = append(b.items, q)
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
		if q.backlog.lost > 0 {
			lost := q.backlog.lost
			q.backlog.lost = 0
			q.mu.Unlock()
			return &queued{name: "resync_required", json: envelope("resync_required", 0, nil, "", map[string]int{"lost": lost})}
		}
		if e, ok := q.backlog.pop(); ok {
			if len(q.backlog.items) == 0 {
				q.drainFD()
			} else {
				q.drainFD()
				q.prime()
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
	if len(q.backlog.items) > 0 || q.backlog.lost > 0 {
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
	} else if len(d.listeners[q.client.handle]) == 0 && (q.call == nil || len(d.listeners[q.call.handle]) == 0) {
		return
	}
	d.backlog.push(q)
	d.start()
	d.work.Signal()
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
		if !ok {
			d.work.Wait()
			continue
		}
		if lost := d.backlog.lost; lost > 0 && q.client != nil {
			d.backlog.lost = 0
			d.deliver(queued{name: "resync_required", client: q.client,
				json: envelope("resync_required", 0, nil, "", map[string]int{"lost": lost})})
		}
		if q.log != nil {
			d.deliverLog(q.log)
		} else {
			d.deliver(q)
		}
	}
}

// deliver calls the listeners of one event. The lock is held, but not during a callback.
func (d *dispatcher) deliver(q queued) {
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
func envelope(name string, ts int64, h *host, room string, data any) []byte {
	return h.envelope(name, ts, nil, room, data)
}

func (h *host) envelope(name string, ts int64, s *call, room string, data any) []byte {
	head := struct {
		Event   string `json:"event"`
		Client  uint64 `json:"client,omitempty"`
		Session uint64 `json:"session,omitempty"`
		RoomID  string `json:"room_id,omitempty"`
		Seq     uint64 `json:"seq,omitempty"`
		TS      int64  `json:"ts,omitempty"`
	}{Event: name, RoomID: room, TS: ts}
	if h != nil {
		h.seq++
		head.Client, head.Seq = h.handle, h.seq
	}
	if s != nil {
		head.Session = s.handle
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

// sink takes an event of the core. The client's lock is held: nothing here waits.
func (h *host) sink(e client.Event) {
	h.mu.Lock()
	s := h.calls[e.Session]
	if h.freed || e.Session != 0 && s == nil {
		h.mu.Unlock()
		return
	}
	q := queued{name: e.Name, client: h, call: s, json: h.envelope(e.Name, e.TS, s, string(e.RoomID), e.Data)}
	h.mu.Unlock()
	h.queue.push(q)
	dispatch.push(q)
}
