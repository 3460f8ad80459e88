package olm

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Room events are encrypted with a session of the room, which each device is given from the event
// on that it is to read first. Ours live as long as the process: no ratchet of theirs can be used
// twice. Those of others are stored.

const (
	typeRoomKey = "m.room_key"

	shareWait      = 5 * time.Second // how long an event waits for slow servers
	roomsEncrypted = 1000
	eventsRepeated = 8 // the latest of a room, which may be sent again
	parkedAtMost   = 500
)

// roomSessions are the sessions that we encrypt with.
type roomSessions struct {
	mu     sync.Mutex
	byRoom map[id.RoomID]*room
}

type room struct {
	mu     sync.Mutex // one event at a time
	now    *roomSession
	events []*encryptedEvent // the oldest first
}

// roomSession is one session and who has it.
type roomSession struct {
	session *crypto.OutboundGroupSession

	mu    sync.Mutex
	from  map[wire.Device]uint   // the first event that it can read, from when that is on its way to it
	fails map[wire.Device]string // why it is not there, or not yet
}

// encryptedEvent is an event, the session that it is encrypted with, and the key to that from here on.
type encryptedEvent struct {
	txn     string
	content json.RawMessage
	session *roomSession
	index   uint
	key     json.RawMessage
}

// EncryptEvent makes the content of an m.room.encrypted event for all devices of users, and gives
// them the session before. Whoever is no longer among them gets no session that is used from now
// on. Under the same txn it answers the same event once more, for those who could not be given the
// session then. Of some devices it answers why they cannot read the event.
func (m *Machine) EncryptEvent(ctx context.Context, roomID id.RoomID, txn, eventType string, content json.RawMessage, users []id.UserID, readers []wire.Device) (out json.RawMessage, lacking []wire.Delivery, err error) {
	defer caught(&err)
	r := m.rooms.of(roomID)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range readers {
		if m.lists.named(d) == nil {
			m.lists.doubt(d.UserID)
		}
	}
	m.learn(ctx, users)
	e := r.event(txn)
	if e == nil {
		if e, err = m.encryptEvent(r, roomID, txn, eventType, content, users); err != nil {
			return nil, nil, err
		}
	}
	done := make(chan struct{})
	m.cfg.Go(func() { defer close(done); m.share(ctx, e, users) })
	slow := time.NewTimer(shareWait)
	defer slow.Stop()
	select {
	case <-done:
	case <-slow.C:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	for _, d := range readers {
		if reason := m.unreadable(e, d); reason != "" {
			lacking = append(lacking, wire.Delivery{Device: d, Reason: reason})
		}
	}
	return e.content, lacking, nil
}

func (s *roomSessions) of(roomID id.RoomID) *room {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byRoom[roomID]
	if r == nil {
		if len(s.byRoom) >= roomsEncrypted {
			clear(s.byRoom)
		}
		r = &room{}
		s.byRoom[roomID] = r
	}
	return r
}

func (r *room) event(txn string) *encryptedEvent {
	for _, e := range r.events {
		if e.txn == txn {
			return e
		}
	}
	return nil
}

// encryptEvent makes a new event. The room is locked.
func (m *Machine) encryptEvent(r *room, roomID id.RoomID, txn, eventType string, content json.RawMessage, users []id.UserID) (*encryptedEvent, error) {
	if r.now == nil || r.now.session.Expired() || m.anyLeft(r.now, users) {
		session, err := crypto.NewOutboundGroupSession(roomID, nil, nil)
		if err != nil {
			return nil, err
		}
		session.Shared = true
		r.now = &roomSession{session: session, from: map[wire.Device]uint{}, fails: map[wire.Device]string{}}
	}
	session := r.now.session
	e := &encryptedEvent{txn: txn, session: r.now, index: session.Internal.MessageIndex()}
	key := &event.RoomKeyEventContent{Algorithm: id.AlgorithmMegolmV1, RoomID: roomID, SessionID: session.ID(), SessionKey: session.Internal.Key()}
	plaintext, err := json.Marshal(map[string]any{"type": eventType, "room_id": roomID, "content": content})
	if err != nil {
		return nil, err
	}
	ciphertext, err := session.Encrypt(plaintext)
	if err != nil {
		return nil, err
	}
	if e.key, err = json.Marshal(key); err != nil {
		return nil, err
	}
	if e.content, err = json.Marshal(&event.EncryptedEventContent{
		Algorithm: id.AlgorithmMegolmV1, SessionID: session.ID(), MegolmCiphertext: ciphertext,
		SenderKey: m.identity, DeviceID: m.cfg.DeviceID, // deprecated, still read
	}); err != nil {
		return nil, err
	}
	if len(r.events) == eventsRepeated {
		r.events = append(r.events[:0:0], r.events[1:]...)
	}
	r.events = append(r.events, e)
	return e, nil
}

// learn makes the devices of users known. It does not wait for slow servers.
func (m *Machine) learn(ctx context.Context, users []id.UserID) {
	byServer := map[string][]id.UserID{}
	for _, u := range users {
		if m.lists.of(u) == nil {
			byServer[u.Homeserver()] = append(byServer[u.Homeserver()], u)
		}
	}
	var asking sync.WaitGroup
	for server, group := range byServer {
		asking.Add(1)
		m.cfg.Go(func() {
			defer asking.Done()
			if err := m.at(server, m.asking).in(ctx, func() { _ = m.query(ctx, group) }); err != nil {
				m.cfg.Log(1, "device lists could not be fetched", map[string]any{"error": err.Error()})
			}
		})
	}
	answered := make(chan struct{})
	m.cfg.Go(func() { asking.Wait(); close(answered) })
	slow := time.NewTimer(shareWait)
	defer slow.Stop()
	select {
	case <-answered:
	case <-slow.C:
	case <-ctx.Done():
	}
}

// anyLeft says whether a device that has the session is no longer to read along.
func (m *Machine) anyLeft(s *roomSession, users []id.UserID) bool {
	here := make(map[id.UserID]bool, len(users))
	for _, u := range users {
		here[u] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.from {
		if !here[d.UserID] || m.lists.of(d.UserID) != nil && m.lists.named(d) == nil {
			return true
		}
	}
	return false
}

// share gives the session of an event to the devices of users, as far as they are known and cannot
// read it yet.
func (m *Machine) share(ctx context.Context, e *encryptedEvent, users []id.UserID) {
	own := wire.Device{UserID: m.cfg.UserID, DeviceID: m.cfg.DeviceID}
	s := e.session
	var missing []wire.Device
	s.mu.Lock()
	m.lists.mu.Lock()
	for _, u := range users {
		list := m.lists.users[u]
		if list == nil {
			continue
		}
		for _, d := range list.byID {
			if from, has := s.from[d.Device]; d.Device != own && (!has || from > e.index) {
				missing = append(missing, d.Device)
				s.from[d.Device] = e.index // in whatever moment it is sent: it may be read
				s.fails[d.Device] = notSent + "its server has not answered yet"
			}
		}
	}
	m.lists.mu.Unlock()
	s.mu.Unlock()
	m.Send(ctx, typeRoomKey, e.key, missing, func(deliveries []wire.Delivery) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range deliveries {
			if d.Reason == "" {
				delete(s.fails, d.Device)
			} else {
				delete(s.from, d.Device)
				s.fails[d.Device] = d.Reason
			}
		}
	})
}

// unreadable says why a device cannot read an event; empty: it can.
func (m *Machine) unreadable(e *encryptedEvent, d wire.Device) string {
	s := e.session
	s.mu.Lock()
	reason := s.fails[d]
	from, has := s.from[d]
	s.mu.Unlock()
	switch {
	case reason != "":
		return reason
	case has && from <= e.index:
		return ""
	case m.lists.of(d.UserID) == nil:
		return noDeviceList
	}
	return unknownDevice
}

// takeRoomKey stores the session that a device will encrypt for a room with, and answers the
// events that waited for it. The lock is held.
func (m *Machine) takeRoomKey(ctx context.Context, d *device, content json.RawMessage) (freed []*incoming, err error) {
	var key event.RoomKeyEventContent
	if err := json.Unmarshal(content, &key); err != nil || key.Algorithm != id.AlgorithmMegolmV1 || key.RoomID == "" {
		return nil, errors.New("a room key has not the form of one")
	}
	session, err := crypto.NewInboundGroupSession(d.identity, id.Ed25519(d.signing), key.RoomID, key.SessionKey, 0, 0, nil, false)
	if err != nil {
		return nil, err
	}
	if session.ID() != key.SessionID {
		return nil, errors.New("a room key is not that of its session")
	}
	switch known, err := m.store.GetGroupSession(ctx, key.RoomID, key.SessionID); {
	case err != nil:
		return nil, stored(err)
	case known != nil && (known.SenderKey != d.identity || known.Internal.FirstKnownIndex() <= session.Internal.FirstKnownIndex()):
		return nil, nil // nobody may replace it, and only by one that reaches further back
	}
	m.written++
	if err := m.store.PutGroupSession(ctx, session); err != nil {
		return nil, stored(err)
	}
	kept := m.parked[:0:0]
	for _, ev := range m.parked {
		if ev.room.Room == key.RoomID && ev.session == key.SessionID {
			freed = append(freed, ev)
		} else {
			kept = append(kept, ev)
		}
	}
	m.parked = kept
	return freed, nil
}

// decryptEvent opens a room event with media keys; others are none of ours. One whose key has not
// come waits for it. The lock is held.
func (m *Machine) decryptEvent(ctx context.Context, ev *incoming) (*Decrypted, error) {
	session, err := m.store.GetGroupSession(ctx, ev.room.Room, ev.session)
	if err != nil {
		return nil, stored(err)
	}
	if session == nil {
		if len(m.parked) >= parkedAtMost {
			m.parked = append(m.parked[:0:0], m.parked[1:]...)
		}
		m.parked = append(m.parked, ev)
		return nil, nil
	}
	d := m.lists.withKey(ev.Sender, session.SenderKey)
	if d == nil {
		return nil, errUnknownSender
	}
	if err := m.check(ctx, d); err != nil {
		return nil, err
	}
	if id.Ed25519(d.signing) != session.SigningKey {
		return nil, crypto.ErrDeviceKeyMismatch
	}
	plaintext, index, err := session.Internal.Decrypt(ev.group)
	if err != nil {
		return nil, err
	}
	var p struct {
		Type    string          `json:"type"`
		Room    id.RoomID       `json:"room_id"`
		Content json.RawMessage `json:"content"`
	}
	switch {
	case json.Unmarshal(plaintext, &p) != nil:
		return nil, errNoForm
	case p.Room != ev.room.Room:
		return nil, crypto.ErrWrongRoom
	case p.Type != wire.TypeEncryptionKeys:
		return nil, nil
	}
	m.written++
	switch fresh, err := m.store.ValidateMessageIndex(ctx, ev.session, ev.room.EventID, index, ev.room.OriginServerTS); {
	case err != nil:
		return nil, stored(err)
	case !fresh:
		return nil, crypto.ErrDuplicateMessageIndex
	}
	return &Decrypted{
		Room: ev.room.Room, OriginServerTS: ev.room.OriginServerTS, Type: p.Type, Content: p.Content, Sender: ev.Sender,
		SenderDevice: d.DeviceID, SenderKey: d.identity, Encrypted: true, CrossSigned: d.crossSigned,
	}, nil
}
