package olm

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// SyncFacts is what a sync says that concerns this device's encryption.
type SyncFacts struct {
	Asked        time.Time         // when the sync began
	ToDevice     []json.RawMessage // events
	Events       []RoomEvent       // encrypted ones
	OneTimeKeys  int               // that the server still has; -1: not told
	FallbackUsed bool              // no unused fallback key is left
}

// RoomEvent is an event of a room's timeline.
type RoomEvent struct {
	Room id.RoomID
	wire.Event
}

// Decrypted is a to-device message or a room event with the facts of its decryption.
type Decrypted struct {
	Room           id.RoomID // of a room event
	OriginServerTS int64     // likewise
	Type           string
	Content        json.RawMessage
	Sender         id.UserID
	SenderDevice   id.DeviceID // empty where it came in clear
	SenderKey      id.SenderKey
	Encrypted      bool
	CrossSigned    bool // the device is signed by its owner
}

const (
	unwedgeEvery     = time.Hour
	wedgedRemembered = 1000
	sessionsPerKey   = 2 * crypto.MaxOlmSessionsPerDevice
)

// Why a message could not be decrypted, beside what mautrix says.
var (
	errNoForm        = errors.New("it has not the form of an encrypted message")
	errUnknownSender = errors.New("its sender has no such device")
)

// Sync takes in what a sync brought. deliver is called with what could be decrypted, which is then
// stored as seen: at once with what comes from devices that are known, and later, from other
// goroutines, with what comes from those that have to be asked for. From one sender it comes in
// order. When Sync has answered nil, the store has everything, and the server may forget it.
func (m *Machine) Sync(ctx context.Context, facts SyncFacts, deliver func([]Decrypted)) error {
	now, later := m.sort(facts)
	var got outcome
	if len(now)+len(later) > 0 {
		err := m.safely(ctx, func(ctx context.Context) (err error) {
			if err := m.keep(ctx, later); err != nil {
				return err
			}
			got, err = m.receive(ctx, now)
			return err
		})
		if err != nil {
			m.unsort(later)
			return err
		}
	}
	if len(got.messages) > 0 {
		deliver(got.messages)
	}
	m.mend(ctx, got.broken)
	m.await(ctx, later, deliver)
	m.refresh(ctx)
	m.replenish(ctx, facts.Asked, facts.OneTimeKeys, facts.FallbackUsed)
	return nil
}

// outcome is what became of messages.
type outcome struct {
	messages []Decrypted
	broken   []*device // whose sessions have to be replaced
}

// receive decrypts messages. The error is one of the store: nothing was taken in then. The lock is
// held.
func (m *Machine) receive(ctx context.Context, events []*incoming) (got outcome, err error) {
	for len(events) > 0 {
		ev := events[0]
		events = events[1:]
		if ev.kind == inClear {
			got.messages = append(got.messages, Decrypted{Type: ev.Type, Content: ev.Content, Sender: ev.Sender})
			continue
		}
		d, freed, err := m.decrypt(ctx, ev, &got)
		switch {
		case errors.As(err, new(storeError)):
			return outcome{}, err
		case errors.Is(err, crypto.ErrDuplicateMessage):
		case err != nil:
			m.drop(ev, err)
		case d != nil:
			got.messages = append(got.messages, *d)
		}
		events = append(events, freed...)
		if err := m.settle(ctx, ev); err != nil {
			return outcome{}, err
		}
	}
	return got, nil
}

func (m *Machine) drop(ev *incoming, err error) {
	fields := map[string]any{"error": err.Error()}
	if ev != nil {
		fields["sender"] = string(ev.Sender)
	}
	m.cfg.Log(1, "a message could not be decrypted", fields)
}

// incoming is a message as it came.
type incoming struct {
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`

	kind       kind
	senderKey  id.SenderKey // olm
	prekey     bool         // olm: it may begin a session
	ciphertext string       // olm

	room    RoomEvent    // megolm
	session id.SessionID // megolm
	group   []byte       // megolm: the ciphertext

	raw   json.RawMessage // to be stored
	row   int64           // where it is stored
	old   bool            // by an earlier life
	since time.Time       // it waits
}

type kind int

const (
	inClear kind = iota
	byOlm
	byMegolm
)

func (m *Machine) parse(raw json.RawMessage) (ev *incoming, err error) {
	defer caught(&err)
	ev = &incoming{raw: raw}
	if json.Unmarshal(raw, ev) != nil || ev.Type == "" || ev.Sender == "" {
		return nil, errNoForm
	}
	if ev.Type != "m.room.encrypted" {
		return ev, nil
	}
	var content event.EncryptedEventContent
	if json.Unmarshal(ev.Content, &content) != nil {
		return ev, errNoForm
	}
	if content.Algorithm != id.AlgorithmOlmV1 {
		return ev, crypto.ErrUnsupportedAlgorithm
	}
	own, ok := content.OlmCiphertext[m.identity]
	switch {
	case !ok:
		return ev, crypto.ErrNotEncryptedForMe
	case own.Type != id.OlmMsgTypePreKey && own.Type != id.OlmMsgTypeMsg:
		return ev, crypto.ErrUnsupportedOlmMessageType
	case own.Body == "":
		return ev, errNoForm
	}
	ev.kind, ev.senderKey, ev.prekey, ev.ciphertext = byOlm, content.SenderKey, own.Type == id.OlmMsgTypePreKey, own.Body
	return ev, nil
}

func parseRoomEvent(e RoomEvent) (ev *incoming, err error) {
	defer caught(&err)
	ev = &incoming{kind: byMegolm, Sender: e.Sender, room: e}
	var content event.EncryptedEventContent
	if json.Unmarshal(e.Content, &content) != nil || content.Algorithm != id.AlgorithmMegolmV1 {
		return ev, errNoForm
	}
	ev.session, ev.group = content.SessionID, content.MegolmCiphertext
	return ev, nil
}

// payload is what an Olm message holds.
type payload struct {
	Type          string              `json:"type"`
	Content       json.RawMessage     `json:"content"`
	Sender        id.UserID           `json:"sender"`
	Recipient     id.UserID           `json:"recipient"`
	Keys          crypto.OlmEventKeys `json:"keys"`
	RecipientKeys crypto.OlmEventKeys `json:"recipient_keys"`
}

// decrypt answers nil where the message was for the machine itself; freed are room events that it
// brought the key of. The lock is held.
func (m *Machine) decrypt(ctx context.Context, ev *incoming, got *outcome) (out *Decrypted, freed []*incoming, err error) {
	defer caught(&err)
	if ev.kind == byMegolm {
		out, err = m.decryptEvent(ctx, ev)
		return out, nil, err
	}
	d := m.lists.withKey(ev.Sender, ev.senderKey)
	if d == nil {
		return nil, nil, errUnknownSender
	}
	if err := m.check(ctx, d); err != nil {
		return nil, nil, err
	}
	plaintext, err := m.open(ctx, ev)
	switch {
	case errors.Is(err, crypto.ErrDuplicateMessage) || errors.As(err, new(storeError)):
		return nil, nil, err
	case err != nil:
		got.broken = append(got.broken, d)
		return nil, nil, err
	}
	var p payload
	if json.Unmarshal(plaintext, &p) != nil {
		p = payload{} // refused below
	}
	switch {
	case p.Sender != ev.Sender:
		return nil, nil, crypto.ErrSenderMismatch
	case p.Recipient != m.cfg.UserID:
		return nil, nil, crypto.ErrRecipientMismatch
	case p.RecipientKeys.Ed25519 != id.Ed25519(m.signing):
		return nil, nil, crypto.ErrRecipientKeyMismatch
	case p.Keys.Ed25519 != id.Ed25519(d.signing):
		return nil, nil, crypto.ErrSigningKeyMismatch
	}
	if p.Type == typeRoomKey {
		freed, err = m.takeRoomKey(ctx, d, p.Content)
		return nil, freed, err
	}
	return &Decrypted{
		Type: p.Type, Content: p.Content, Sender: ev.Sender, SenderDevice: d.DeviceID, SenderKey: d.identity,
		Encrypted: true, CrossSigned: d.crossSigned,
	}, nil, nil
}

// open decrypts one message with a session that we have, or with the one that it begins. The lock
// is held.
func (m *Machine) open(ctx context.Context, ev *incoming) ([]byte, error) {
	raw, err := base64.RawStdEncoding.DecodeString(ev.ciphertext)
	if err != nil || len(raw) == 0 {
		return nil, errNoForm
	}
	hash := sha256.Sum256(raw)
	if at, err := m.store.GetOlmHash(ctx, hash); err != nil {
		return nil, stored(err)
	} else if !at.IsZero() {
		return nil, crypto.ErrDuplicateMessage
	}
	plaintext, err := m.openWithSession(ctx, ev)
	if err != nil {
		return nil, err
	}
	m.written++
	return plaintext, stored(m.store.PutOlmHash(ctx, hash, time.Now()))
}

func (m *Machine) openWithSession(ctx context.Context, ev *incoming) ([]byte, error) {
	sessions, err := m.store.GetSessions(ctx, ev.senderKey)
	if err != nil {
		return nil, stored(err)
	}
	msgType := id.OlmMsgTypeMsg
	if ev.prekey {
		msgType = id.OlmMsgTypePreKey
	}
	for _, session := range sessions {
		if ev.prekey {
			if matches, err := session.Internal.MatchesInboundSession(ev.ciphertext); err != nil || !matches {
				continue
			}
		}
		plaintext, err := session.Decrypt(ev.ciphertext, msgType)
		switch {
		case err == nil:
			return plaintext, stored(m.store.UpdateSession(ctx, ev.senderKey, session))
		case ev.prekey:
			return nil, crypto.ErrDecryptionFailedWithMatchingSession
		}
	}
	if !ev.prekey {
		return nil, crypto.ErrDecryptionFailedForNormalMessage
	}
	session, err := m.account.NewInboundSessionFrom(ev.senderKey, ev.ciphertext)
	if err != nil {
		return nil, err
	}
	plaintext, err := session.Decrypt(ev.ciphertext, msgType)
	if err != nil {
		return nil, err
	}
	if err := m.addSession(ctx, ev.senderKey, session); err != nil {
		return nil, err
	}
	if err := m.account.Internal.RemoveOneTimeKeys(session.Internal); err != nil {
		return nil, err
	}
	return plaintext, stored(m.store.PutAccount(ctx, m.account))
}

// addSession stores a new session, and ends the one with that device that was silent longest where
// there are many. The lock is held.
func (m *Machine) addSession(ctx context.Context, key id.IdentityKey, session *crypto.OlmSession) error {
	sessions, err := m.store.GetSessions(ctx, key)
	if err != nil {
		return stored(err)
	}
	if len(sessions) >= sessionsPerKey {
		if err := m.store.DeleteSession(ctx, key, sessions[len(sessions)-1]); err != nil {
			return stored(err)
		}
	}
	m.written++
	return stored(m.store.AddSession(ctx, key, session))
}

// mend replaces sessions that do not decrypt what their peers send: the next message goes by a new
// one, and a dummy goes at once; at most once an hour for each device, and few at the same time.
func (m *Machine) mend(ctx context.Context, devices []*device) {
	for _, d := range devices {
		if !m.wedge(d) {
			continue
		}
		select {
		case m.repair <- struct{}{}:
			m.cfg.Go(func() {
				defer func() { <-m.repair }()
				m.Send(ctx, wire.TypeDummy, json.RawMessage("{}"), []wire.Device{d.Device}, func([]wire.Delivery) {})
			})
		default: // the next message will do
		}
	}
}

// wedge marks a session as broken, unless it was that lately.
func (m *Machine) wedge(d *device) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.unwedged[d.identity]) < unwedgeEvery {
		return false
	}
	if len(m.unwedged) >= wedgedRemembered {
		m.unwedged, m.wedged = map[id.IdentityKey]time.Time{}, map[id.IdentityKey]bool{}
	}
	m.unwedged[d.identity], m.wedged[d.identity] = time.Now(), true
	return true
}
