package client

import (
	"encoding/json"
	"strings"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
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
	return s.command(session.Join{Session: s.id, Params: p}, s.forgetOutcome)
}

// Leave begins to leave. The outcome is the event "left".
func (s *Session) Leave() error { return s.command(session.Leave{Session: s.id}, s.forgetOutcome) }

// forgetOutcome: how an earlier leave has ended, perhaps after this join, says nothing of the next.
func (s *Session) forgetOutcome() { s.c.outcome[s.id] = leaveOutcome{} }

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
		return !known || o.done || s.c.over()
	})
	return sent, nil
}

// UpdateIntent changes the call intent; "" removes it.
func (s *Session) UpdateIntent(intent string) error {
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

// EncryptionKeys are the media keys of all participants, our own among them.
func (s *Session) EncryptionKeys() (keys []session.MediaKey, err error) {
	err = s.read(func(session.Time) (ok bool) { keys, ok = s.c.set.EncryptionKeys(s.id); return ok })
	return keys, err
}

// ParticipantKeys are the media keys of one device, nil where none is known.
func (s *Session) ParticipantKeys(user id.UserID, device id.DeviceID) (keys []session.MediaKey, err error) {
	err = s.read(func(session.Time) (ok bool) { keys, ok = s.c.set.ParticipantKeys(s.id, user, device); return ok })
	return keys, err
}

// ReemitEncryptionKeys tells every key that is held once more.
func (s *Session) ReemitEncryptionKeys() error {
	return s.c.do(func(session.Time) error { return s.c.set.ReemitEncryptionKeys(s.id) })
}

// OnCallEncryption takes in a room event with media keys, plain or already decrypted. One that is
// malformed, or says nothing of use, is logged and ignored.
func (s *Session) OnCallEncryption(event json.RawMessage) error {
	ev, ok := wire.ParseTimelineEvent(gjson.ParseBytes(event))
	return s.c.do(func(now session.Time) error {
		ignored := "expected a room event with type, sender and content"
		if ok {
			var err error
			if ignored, err = s.c.set.CallEncryption(now, s.id, ev); err != nil {
				return err
			}
		}
		if ignored != "" {
			s.c.log(1, "a call encryption event was ignored", map[string]any{"reason": ignored, "sender": string(ev.Sender)})
		}
		return nil
	})
}

// DelegateLeave has our delayed leave handed over to the authorisation service of the SFU that we
// publish to, while we are connected there, or kept by ourselves.
func (s *Session) DelegateLeave(delegate bool) error {
	return s.command(session.DelegateLeave{Session: s.id, Delegate: delegate}, nil)
}

// SFUs are the SFUs of the call, each with those who publish there, and how many more were named
// than are looked at.
func (s *Session) SFUs() (list []session.SFU, ignored int, err error) {
	err = s.read(func(session.Time) (ok bool) { list, ignored, ok = s.c.set.SFUs(s.id); return ok })
	return list, ignored, err
}

// SFUToken is the token of an SFU ("" where we publish), which is kept fresh from now on; nil while
// it is on its way.
func (s *Session) SFUToken(sfu string) (*session.SFUToken, error) {
	token, _, _, err := s.sfuToken(sfu)
	return token, err
}

// SFUTokenWait waits for the token, or for an attempt that fails; a negative timeout waits for ever.
func (s *Session) SFUTokenWait(sfu string, timeout time.Duration) (token *session.SFUToken, err error) {
	if s.c.HostDriven() {
		return nil, &Error{Status: ErrWouldDeadlock, Message: "a host-driven client cannot wait: the host itself makes the requests"}
	}
	deadline := time.Now().Add(timeout)
	for {
		token, failure, before, err := s.sfuToken(sfu)
		if token != nil || err != nil {
			return token, err
		}
		if failure != nil && failure.Reason == livekit.Untrusted {
			return nil, sfuError(failure)
		}
		left := timeout
		if timeout >= 0 {
			left = max(time.Until(deadline), 0)
		}
		attempts, over := before, false
		if !s.c.waitFor(left, func() bool {
			over = s.c.over()
			token, failure, attempts, err = s.c.set.HeldSFUToken(s.id, sfu)
			return token != nil || err != nil || attempts < 0 || failure != nil && attempts > before || over
		}) {
			return nil, &Error{Status: Timeout, Message: "no token in time"}
		}
		switch {
		case token != nil || err != nil:
			return token, err
		case over:
			return nil, wrongState("the client is stopped")
		case failure != nil && attempts > before:
			return nil, sfuError(failure)
		}
		// We publish elsewhere by now, or it has left the call and come back: nobody has asked there yet.
	}
}

func (s *Session) sfuToken(sfu string) (token *session.SFUToken, failure *livekit.Failure, attempts int, err error) {
	err = s.c.do(func(now session.Time) (err error) {
		token, failure, attempts, err = s.c.set.SFUToken(now, s.id, sfu)
		return err
	})
	return token, failure, attempts, err
}

func sfuError(f *livekit.Failure) *Error {
	return &Error{Status: ErrSFU, Reason: f.Reason, Message: f.Message}
}

// SFUConnected takes in what the host tells of its media connection.
func (s *Session) SFUConnected(c session.SFUConnection) error {
	return s.c.do(func(now session.Time) error { return s.c.set.SFUConnected(now, s.id, c) })
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
