// Package main is the C ABI: handles, JSON in and out, delivery of events, panics and forks. What
// any of it means is in the packages below and in include/matrixrtc.h.
package main

/*
#cgo CFLAGS: -O2 -std=c11 -Wall -Wextra -Werror -Wno-unused-parameter -fvisibility=hidden
#include <stdlib.h>
#include "abi.h"
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

	"libmatrixrtc/core/client"
	"libmatrixrtc/core/session"

	"maunium.net/go/mautrix/id"
)

func main() {}

// host is a client with what the ABI adds to it.
type host struct {
	c      *client.Client
	handle uint64
	queue  queue

	mu    sync.Mutex
	calls map[uint64]*call // by the core's id
	seq   uint64
	freed bool
}

// call is a session with its handle.
type call struct {
	host   *host
	s      *client.Session
	handle uint64
}

// run is every function's frame: it stops panics, and turns what f answers into JSON and status.
func run(out **C.char, f func() (any, error)) (status C.int32_t) {
	defer func() {
		if p := recover(); p != nil {
			logEvent(3, "panic", map[string]any{"panic": fmt.Sprint(p), "stack": string(debug.Stack())})
			status = answer(out, nil, &client.Error{Status: client.ErrInternal, Message: fmt.Sprintf("internal error: %v", p)})
		}
	}()
	result, err := f()
	return answer(out, result, err)
}

func answer(out **C.char, result any, err error) C.int32_t {
	status := client.OK
	if err != nil {
		e := client.AsError(err)
		status, result = e.Status, e
		if status == client.Timeout {
			result = nil
		}
	}
	if out == nil || result == nil {
		return C.int32_t(status)
	}
	raw, ok := result.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(result); err != nil {
			raw, status = []byte(`{"status":"MRTC_ERR_INTERNAL","message":"the answer cannot be written as JSON"}`), client.ErrInternal
		}
	}
	*out = (*C.char)(C.CBytes(append(raw, 0)))
	return C.int32_t(status)
}

// text reads a required string argument, which is its own path in an error.
func text(name string, s *C.char) (string, error) {
	if s == nil {
		return "", bad("/"+name, "expected a string, got NULL")
	}
	t := C.GoString(s)
	if !utf8.ValidString(t) {
		return "", bad("/"+name, "expected UTF-8")
	}
	return t, nil
}

// eventName reads the name of an event.
func eventName(s *C.char) (string, error) {
	name, err := text("event", s)
	if err == nil && (name == "" || len(name) > 255) {
		err = bad("/event", "expected 1 to 255 bytes")
	}
	return name, err
}

// input decodes a required JSON argument; paths in its errors are those in the JSON.
func input(s *C.char, into any) error {
	if s == nil {
		return bad("", "expected JSON, got NULL")
	}
	return decode(C.GoString(s), into)
}

// guarded fails the client when f panics.
func guarded(c *client.Client, f func() (any, error)) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			result, err = nil, c.Fail(p)
		}
	}()
	return f()
}

func withClient(h C.uint64_t, out **C.char, f func(*host) (any, error)) C.int32_t {
	return run(out, func() (any, error) {
		c, err := clientOf(uint64(h))
		if err != nil {
			return nil, err
		}
		return guarded(c.c, func() (any, error) { return f(c) })
	})
}

func withSession(h C.uint64_t, out **C.char, f func(*client.Session) (any, error)) C.int32_t {
	return run(out, func() (any, error) {
		s, err := sessionOf(uint64(h))
		if err != nil {
			return nil, err
		}
		return guarded(s.host.c, func() (any, error) { return f(s.s) })
	})
}

// mayWait refuses to wait on the thread that everything waited for needs.
func mayWait() error {
	if C.mrtc_in_callback() != 0 {
		return &client.Error{Status: client.ErrWouldDeadlock, Message: "this waits, and cannot be called from inside a callback"}
	}
	return nil
}

// patience is a timeout argument: -1 for ever.
func patience(ms C.int64_t) time.Duration {
	if ms < 0 {
		return -1
	}
	return time.Duration(min(int64(ms), 1<<40)) * time.Millisecond
}

// --- library and listeners

//export mrtcgo_set_log_callback
func mrtcgo_set_log_callback(fn, data unsafe.Pointer, level C.int) C.int32_t {
	return run(nil, func() (any, error) { dispatch.setLog(fn, data, int(level)); return nil, nil })
}

//export mrtcgo_add_listener
func mrtcgo_add_listener(h C.uint64_t, event *C.char, fn, data unsafe.Pointer, flags C.uint32_t, id *C.uint64_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if err := listenable(uint64(h)); err != nil {
			return nil, err
		}
		if fn == nil {
			return nil, bad("/callback", "expected a function, got NULL")
		}
		if flags&^(C.MRTC_ONCE|C.MRTC_PREPEND) != 0 {
			return nil, bad("/flags", "expected MRTC_ONCE and MRTC_PREPEND only")
		}
		l := &listener{handle: uint64(h), fn: fn, data: data, once: flags&C.MRTC_ONCE != 0}
		if event != nil {
			name, err := eventName(event)
			if err != nil {
				return nil, err
			}
			l.event = name
		}
		dispatch.add(l, flags&C.MRTC_PREPEND != 0)
		if id != nil {
			*id = C.uint64_t(l.id)
		}
		return nil, nil
	})
}

func listenable(h uint64) error {
	switch handles.get(h).(type) {
	case *host, *call:
		return nil
	}
	return staleHandle("client or session")
}

//export mrtcgo_remove_listener
func mrtcgo_remove_listener(id C.uint64_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		l, ok := handles.get(uint64(id)).(*listener)
		if !ok || dispatch.removeWhere(l.handle, func(x *listener) bool { return x == l }) == 0 {
			dispatch.await(uint64(id))
			return nil, &client.Error{Status: client.ErrNotFound, Message: "no such listener"}
		}
		return nil, nil
	})
}

//export mrtcgo_remove_all_listeners
func mrtcgo_remove_all_listeners(h C.uint64_t, event *C.char, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if err := listenable(uint64(h)); err != nil {
			return nil, err
		}
		name := C.GoString(event)
		dispatch.removeWhere(uint64(h), func(l *listener) bool { return event == nil || l.event == name })
		return nil, nil
	})
}

//export mrtcgo_listener_count
func mrtcgo_listener_count(h C.uint64_t, event *C.char, count *C.size_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if err := listenable(uint64(h)); err != nil {
			return nil, err
		}
		if count == nil {
			return nil, bad("/count", "expected a pointer, got NULL")
		}
		*count = C.size_t(dispatch.count(uint64(h), C.GoString(event), event == nil))
		return nil, nil
	})
}

//export mrtcgo_emit
func mrtcgo_emit(h C.uint64_t, event, jsonText *C.char, had *C.int, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		name, err := eventName(event)
		if err != nil {
			return nil, err
		}
		data := map[string]json.RawMessage{}
		if jsonText != nil {
			if err := decode(C.GoString(jsonText), &data); err != nil {
				return nil, err
			}
		}
		for _, own := range []string{"event", "client", "session", "room_id", "seq", "ts"} {
			if _, ok := data[own]; ok {
				return nil, bad("/"+own, "this field belongs to the library")
			}
		}
		q := queued{name: name, ts: time.Now().UnixMilli()}
		var to *host
		switch o := handles.get(uint64(h)).(type) {
		case *host:
			to = o
		case *call:
			to, q.call = o.host, o
		}
		heard := dispatch.count(uint64(h), name, false)+dispatch.count(uint64(h), "", false) > 0
		if to == nil || !to.tell(q, "", data) {
			return nil, staleHandle("client or session")
		}
		if had != nil {
			*had = 0
			if heard {
				*had = 1
			}
		}
		return nil, nil
	})
}

// --- client

//export mrtcgo_client_new
func mrtcgo_client_new(config *C.char, handle *C.uint64_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if handle == nil {
			return nil, bad("/client", "expected a pointer, got NULL")
		}
		*handle = 0
		var cfg client.Config
		if err := input(config, &cfg); err != nil {
			return nil, err
		}
		h := &host{calls: map[uint64]*call{}}
		c, err := client.New(cfg, h.sink, logEvent)
		if err != nil {
			return nil, err
		}
		h.c = c
		h.handle = handles.add(kindClient, h)
		*handle = C.uint64_t(h.handle)
		return nil, nil
	})
}

//export mrtcgo_client_start
func mrtcgo_client_start(h C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) { return nil, c.c.Start() })
}

//export mrtcgo_client_stop
func mrtcgo_client_stop(h C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) { return nil, c.c.Stop() })
}

//export mrtcgo_client_stop_wait
func mrtcgo_client_stop_wait(h C.uint64_t, timeout C.int64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		if err := mayWait(); err != nil {
			return nil, err
		}
		return nil, c.c.StopWait(patience(timeout))
	})
}

//export mrtcgo_client_free
func mrtcgo_client_free(h C.uint64_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if _, err := clientOf(uint64(h)); err != nil {
			return nil, err
		}
		c, ok := handles.take(uint64(h)).(*host)
		if !ok {
			return nil, staleHandle("client")
		}
		c.c.Close()
		c.mu.Lock()
		c.freed = true
		calls := c.calls
		c.calls = nil
		c.mu.Unlock()
		every := func(*listener) bool { return true }
		for _, s := range calls {
			handles.take(s.handle)
			dispatch.removeWhere(s.handle, every)
		}
		dispatch.removeWhere(c.handle, every)
		c.queue.close()
		return nil, nil
	})
}

//export mrtcgo_client_info
func mrtcgo_client_info(h C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) { return c.c.Info() })
}

//export mrtcgo_client_next_event
func mrtcgo_client_next_event(h C.uint64_t, timeout C.int64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		if timeout != 0 {
			if err := mayWait(); err != nil {
				return nil, err
			}
		}
		if e := c.queue.next(patience(timeout)); e != nil {
			return e.json, nil
		}
		return nil, &client.Error{Status: client.Timeout}
	})
}

//export mrtcgo_client_event_fd
func mrtcgo_client_event_fd(h C.uint64_t, fd *C.int, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		if fd == nil {
			return nil, bad("/fd", "expected a pointer, got NULL")
		}
		n, err := c.queue.fd()
		if err == nil {
			*fd = C.int(n)
		}
		return nil, err
	})
}

//export mrtcgo_client_set_access_token
func mrtcgo_client_set_access_token(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		var in struct {
			AccessToken  string `json:"access_token"`
			RefreshToken string `json:"refresh_token"`
		}
		if err := input(text, &in); err != nil {
			return nil, err
		}
		return nil, c.c.SetAccessToken(in.AccessToken, in.RefreshToken)
	})
}

//export mrtcgo_client_sessions
func mrtcgo_client_sessions(h C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		calls, err := c.c.Sessions()
		return map[string]any{"sessions": calls}, err
	})
}

//export mrtcgo_client_transports
func mrtcgo_client_transports(h C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		list, known, err := c.c.Transports()
		return map[string]any{"transports": list, "known": known}, err
	})
}

//export mrtcgo_client_feed
func mrtcgo_client_feed(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		var in client.FeedInput
		if err := input(text, &in); err != nil {
			return nil, err
		}
		return nil, c.c.Feed(in)
	})
}

//export mrtcgo_client_respond
func mrtcgo_client_respond(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		var in client.ResponseInput
		if err := input(text, &in); err != nil {
			return nil, err
		}
		return nil, c.c.Respond(in)
	})
}

//export mrtcgo_client_advance
func mrtcgo_client_advance(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		var in client.AdvanceInput
		if err := input(text, &in); err != nil {
			return nil, err
		}
		return c.c.Advance(in)
	})
}

// --- session

//export mrtcgo_session_open
func mrtcgo_session_open(h C.uint64_t, room, options *C.char, handle *C.uint64_t, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		if handle == nil {
			return nil, bad("/session", "expected a pointer, got NULL")
		}
		*handle = 0
		roomID, err := text("room_id", room)
		if err != nil {
			return nil, err
		}
		var opts session.OpenOptions
		if options != nil {
			if err := decode(C.GoString(options), &opts); err != nil {
				return nil, err
			}
		}
		s, err := c.c.OpenSession(roomID, opts)
		if err != nil {
			return nil, err
		}
		opened := &call{host: c, s: s}
		opened.handle = handles.add(kindSession, opened)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.freed {
			handles.take(opened.handle)
			return nil, staleHandle("client")
		}
		c.calls[s.ID()] = opened
		*handle = C.uint64_t(opened.handle)
		return nil, nil
	})
}

//export mrtcgo_session_close
func mrtcgo_session_close(h C.uint64_t, out **C.char) C.int32_t {
	return run(out, func() (any, error) {
		if _, err := sessionOf(uint64(h)); err != nil {
			return nil, err
		}
		s, ok := handles.take(uint64(h)).(*call)
		if !ok {
			return nil, staleHandle("session")
		}
		err := s.s.Close()
		s.host.mu.Lock()
		delete(s.host.calls, s.s.ID())
		s.host.mu.Unlock()
		dispatch.removeWhere(s.handle, func(*listener) bool { return true })
		return nil, err
	})
}

//export mrtcgo_session_join
func mrtcgo_session_join(h C.uint64_t, params *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		var p session.JoinParams
		if err := input(params, &p); err != nil {
			return nil, err
		}
		return nil, s.Join(p)
	})
}

//export mrtcgo_session_leave
func mrtcgo_session_leave(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return nil, s.Leave() })
}

//export mrtcgo_session_leave_wait
func mrtcgo_session_leave_wait(h C.uint64_t, timeout C.int64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		if err := mayWait(); err != nil {
			return nil, err
		}
		sent, err := s.LeaveWait(patience(timeout))
		return map[string]bool{"sent": sent}, err
	})
}

//export mrtcgo_session_info
func mrtcgo_session_info(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return s.Info() })
}

//export mrtcgo_session_memberships
func mrtcgo_session_memberships(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		list, err := s.Memberships()
		return map[string]any{"memberships": list}, err
	})
}

//export mrtcgo_session_on_membership_update
func mrtcgo_session_on_membership_update(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return nil, s.OnMembershipUpdate() })
}

//export mrtcgo_session_update_intent
func mrtcgo_session_update_intent(h C.uint64_t, intent *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		if intent == nil {
			return nil, s.UpdateIntent("")
		}
		name, err := text("intent", intent)
		if err != nil {
			return nil, err
		}
		return nil, s.UpdateIntent(name)
	})
}

//export mrtcgo_session_update_application_data
func mrtcgo_session_update_application_data(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		data := map[string]json.RawMessage{}
		if err := input(text, &data); err != nil {
			return nil, err
		}
		return nil, s.UpdateApplicationData(data)
	})
}

//export mrtcgo_session_encryption_keys
func mrtcgo_session_encryption_keys(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		keys, err := s.EncryptionKeys()
		return map[string]any{"keys": keys}, err
	})
}

//export mrtcgo_session_participant_keys
func mrtcgo_session_participant_keys(h C.uint64_t, user, device *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		userID, err := text("user_id", user)
		if err != nil {
			return nil, err
		}
		deviceID, err := text("device_id", device)
		if err != nil {
			return nil, err
		}
		keys, err := s.ParticipantKeys(id.UserID(userID), id.DeviceID(deviceID))
		return map[string]any{"keys": keys}, err
	})
}

//export mrtcgo_session_reemit_encryption_keys
func mrtcgo_session_reemit_encryption_keys(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return nil, s.ReemitEncryptionKeys() })
}

//export mrtcgo_session_on_call_encryption
func mrtcgo_session_on_call_encryption(h C.uint64_t, event *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		if event == nil {
			return nil, bad("/event", "expected a string, got NULL")
		}
		return nil, s.OnCallEncryption(json.RawMessage(C.GoString(event)))
	})
}

//export mrtcgo_session_sfus
func mrtcgo_session_sfus(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		list, ignored, err := s.SFUs()
		return map[string]any{"sfus": list, "ignored": ignored}, err
	})
}

// whichSFU reads the optional argument that names an SFU.
func whichSFU(text *C.char) (string, error) {
	var in struct {
		ServiceURL string `json:"service_url"`
	}
	if text == nil {
		return "", nil
	}
	err := input(text, &in)
	return in.ServiceURL, err
}

//export mrtcgo_session_sfu_token
func mrtcgo_session_sfu_token(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		sfu, err := whichSFU(text)
		if err != nil {
			return nil, err
		}
		token, err := s.SFUToken(sfu)
		if token == nil && err == nil {
			err = &client.Error{Status: client.Timeout}
		}
		return token, err
	})
}

//export mrtcgo_session_sfu_token_wait
func mrtcgo_session_sfu_token_wait(h C.uint64_t, text *C.char, timeout C.int64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		if err := mayWait(); err != nil {
			return nil, err
		}
		sfu, err := whichSFU(text)
		if err != nil {
			return nil, err
		}
		return s.SFUTokenWait(sfu, patience(timeout))
	})
}

//export mrtcgo_session_sfu_connected
func mrtcgo_session_sfu_connected(h C.uint64_t, text *C.char, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) {
		var in session.SFUConnection
		if err := input(text, &in); err != nil {
			return nil, err
		}
		return nil, s.SFUConnected(in)
	})
}

//export mrtcgo_session_delegate_leave
func mrtcgo_session_delegate_leave(h C.uint64_t, delegate C.int, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return nil, s.DelegateLeave(delegate != 0) })
}

//export mrtcgo_session_debug_snapshot
func mrtcgo_session_debug_snapshot(h C.uint64_t, out **C.char) C.int32_t {
	return withSession(h, out, func(s *client.Session) (any, error) { return s.DebugSnapshot() })
}
