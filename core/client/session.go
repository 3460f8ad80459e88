package client

import (
	"encoding/json"
	"strings"
	"time"

	"libmatrixrtc/core/session"

	"maunium.net/go/mautrix/id"
)

// Session is one call of one room.
type Session struct {
	c  *Client
	id uint64
}

// OpenSession begins a session. The room need not be known yet.
func (c *Client) OpenSession(roomID string, opts session.OpenOptions) (*Session, error) {
	if !strings.HasPrefix(roomID, "!") || len(roomID) > 255 {
		return nil, invalid("/room_id", "expected a room id, which begins with !, got %q", roomID)
	}
	s := &Session{c: c}
	err := c.do(func(now session.Time) (err error) {
		s.id, err = c.set.Open(now, id.RoomID(roomID), opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// ID is how events name this session.
func (s *Session) ID() uint64 { return s.id }

// Client is the client that the session belongs to.
func (s *Session) Client() *Client { return s.c }

// Close ends the session; if it is joined it leaves in the background.
func (s *Session) Close() error {
	return s.c.do(func(now session.Time) error {
		s.c.set.CloseSession(now, s.id)
		delete(s.c.outcome, s.id)
		return nil
	})
}

// Join announces this device and keeps its membership valid until Leave.
func (s *Session) Join(p session.JoinParams) error {
	return s.command(session.Join{Session: s.id, Params: p}, func() { s.c.outcome[s.id] = leaveOutcome{} })
}

// Leave begins to leave. The outcome is the event "left".
func (s *Session) Leave() error { return s.command(session.Leave{Session: s.id}, nil) }

// LeaveWait leaves, if that has not begun yet, and waits for the outcome; a negative timeout waits
// for ever. It says whether the leave reached the server in time.
func (s *Session) LeaveWait(timeout time.Duration) (sent bool, err error) {
	if s.c.HostDriven() {
		return false, &Error{Status: ErrWouldDeadlock, Message: "a host-driven client cannot wait: the host itself makes the requests"}
	}
	var joined bool
	if err := s.c.do(func(now session.Time) error {
		i, _ := s.c.set.Info(now, s.id)
		joined = i.Joined
		return nil
	}); err != nil {
		return false, err
	}
	if joined {
		if err := s.Leave(); err != nil {
			return false, err
		}
	}
	s.c.waitFor(timeout, func() bool {
		o, known := s.c.outcome[s.id]
		sent = o.sent
		return !known || o.done || s.c.state == failed || s.c.state == closed || s.c.state == stopped
	})
	return sent, nil
}

// UpdateIntent changes the call intent; "" removes it.
func (s *Session) UpdateIntent(intent string) error {
	if len(intent) > 255 {
		return invalid("/intent", "expected at most 255 bytes")
	}
	return s.command(session.UpdateIntent{Session: s.id, Intent: intent}, nil)
}

// UpdateApplicationData replaces the application data of our membership.
func (s *Session) UpdateApplicationData(data map[string]json.RawMessage) error {
	return s.command(session.UpdateApplicationData{Session: s.id, Data: data}, nil)
}

// OnMembershipUpdate looks at the members again.
func (s *Session) OnMembershipUpdate() error {
	return s.command(session.Recheck{Session: s.id}, nil)
}

func (s *Session) command(in session.Input, then func()) error {
	return s.c.do(func(now session.Time) error {
		if _, join := in.(session.Join); join && (s.c.state == stopping || s.c.state == stopped) {
			return wrongState("the client is stopped")
		}
		if err := s.c.set.Handle(now, in); err != nil {
			return err
		}
		if then != nil {
			then()
		}
		return nil
	})
}

// Info answers what is true of the session.
func (s *Session) Info() (info session.Info, err error) {
	err = s.read(func(now session.Time) (ok bool) { info, ok = s.c.set.Info(now, s.id); return ok })
	return info, err
}

// Memberships are the members of the call, oldest first.
func (s *Session) Memberships() (list []session.Member, err error) {
	err = s.read(func(session.Time) bool { list = s.c.set.Memberships(s.id); return list != nil })
	return list, err
}

// DebugSnapshot answers why the session is as it is.
func (s *Session) DebugSnapshot() (snap session.Snapshot, err error) {
	err = s.read(func(now session.Time) (ok bool) { snap, ok = s.c.set.DebugSnapshot(now, s.id); return ok })
	return snap, err
}

func (s *Session) read(f func(session.Time) bool) error {
	return s.c.do(func(now session.Time) error {
		if !f(now) {
			return wrongState("the session is closed")
		}
		return nil
	})
}
