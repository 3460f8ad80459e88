package olm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Why a device was not reached.
const (
	unknownDevice = "unknown_device"   // its user has no such device
	noDeviceList  = "no_device_list"   // its server does not say which devices its user has
	noOneTimeKey  = "no_one_time_key"  // it has published none, nor a fallback key
	claimFailed   = "claim_failed: "   // its server did not answer
	notEncrypted  = "encrypt_failed: " // its keys are not usable
	notSent       = "send_failed: "    // our server did not take it
)

const (
	devicesInRequest = 100
	bytesInRequest   = 256 << 10
	claimTimeout     = 10 * time.Second // that our server grants another
	sendTimeout      = 30 * time.Second
)

// Send encrypts content for every recipient and sends it. done tells what became of it, in
// portions, never two at once, each recipient once. Those with a session go first and together; the
// others server by server, side by side, so that nobody waits for a slow one.
func (m *Machine) Send(ctx context.Context, eventType string, content json.RawMessage, recipients []wire.Device, done func([]wire.Delivery)) {
	s := &sending{m: m, ctx: ctx, eventType: eventType, content: content, done: done, open: make(map[wire.Device]bool, len(recipients))}
	var ready []*device
	byServer := map[string][]wire.Device{}
	err := m.safely(ctx, func(ctx context.Context) error {
		for _, r := range recipients {
			if s.open[r] {
				continue
			}
			s.open[r] = true
			if d := m.lists.named(r); d != nil && m.hasSession(ctx, d) && m.check(ctx, d) == nil {
				ready = append(ready, d)
			} else {
				byServer[r.UserID.Homeserver()] = append(byServer[r.UserID.Homeserver()], r)
			}
		}
		return nil
	})
	if err != nil {
		s.close(notEncrypted + err.Error())
		return
	}
	var running sync.WaitGroup
	for server, group := range byServer {
		running.Add(1)
		m.cfg.Go(func() {
			defer running.Done()
			if err := m.at(server, m.asking).in(ctx, func() { s.approach(group) }); err != nil {
				s.fail(group, notEncrypted+err.Error())
			}
		})
	}
	s.deliver(ready)
	running.Wait()
	s.close(notEncrypted + "it was forgotten")
}

// sending is one message on its way to many devices.
type sending struct {
	m         *Machine
	ctx       context.Context
	eventType string
	content   json.RawMessage

	mu   sync.Mutex
	open map[wire.Device]bool // whose fate is not told yet
	done func([]wire.Delivery)
}

// tell says what became of devices that nothing was said about before.
func (s *sending) tell(deliveries []wire.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := deliveries[:0:0]
	for _, d := range deliveries {
		if s.open[d.Device] {
			delete(s.open, d.Device)
			fresh = append(fresh, d)
		}
	}
	if len(fresh) > 0 {
		s.done(fresh)
	}
}

func (s *sending) fail(devices []wire.Device, reason string) {
	out := make([]wire.Delivery, len(devices))
	for i, d := range devices {
		out[i] = wire.Delivery{Device: d, Reason: reason}
	}
	s.tell(out)
}

// close fails whoever is left.
func (s *sending) close(reason string) {
	s.mu.Lock()
	left := make([]wire.Device, 0, len(s.open))
	for d := range s.open {
		left = append(left, d)
	}
	s.mu.Unlock()
	s.fail(left, reason)
}

// approach finds out how to reach devices of one server, and delivers to those that can be.
func (s *sending) approach(group []wire.Device) {
	m := s.m
	var users []id.UserID
	asked := map[id.UserID]bool{}
	for _, r := range group {
		if !asked[r.UserID] {
			asked[r.UserID] = true
			users = append(users, r.UserID)
		}
		if m.lists.named(r) == nil {
			m.lists.doubt(r.UserID)
		}
	}
	_ = m.query(s.ctx, users) // whose list is not known then is not reached
	var ready, strangers []*device
	var out []wire.Delivery
	err := m.safely(s.ctx, func(ctx context.Context) error {
		for _, r := range group {
			d := m.lists.named(r)
			if d == nil {
				reason := unknownDevice
				if m.lists.of(r.UserID) == nil {
					reason = noDeviceList
				}
				out = append(out, wire.Delivery{Device: r, Reason: reason})
				continue
			}
			switch err := m.check(ctx, d); {
			case errors.As(err, new(storeError)):
				return err
			case err != nil:
				out = append(out, wire.Delivery{Device: r, Reason: notEncrypted + err.Error()})
			case m.hasSession(ctx, d):
				ready = append(ready, d)
			default:
				strangers = append(strangers, d)
			}
		}
		return nil
	})
	if err != nil {
		s.fail(group, notEncrypted+err.Error())
		return
	}
	s.tell(out)
	s.deliver(append(ready, s.introduce(strangers)...))
}

// introduce claims one-time keys of devices and makes sessions with those that have one.
func (s *sending) introduce(strangers []*device) (met []*device) {
	if len(strangers) == 0 {
		return nil
	}
	m := s.m
	wanted := map[id.UserID]map[id.DeviceID]id.KeyAlgorithm{}
	for _, d := range strangers {
		if wanted[d.UserID] == nil {
			wanted[d.UserID] = map[id.DeviceID]id.KeyAlgorithm{}
		}
		wanted[d.UserID][d.DeviceID] = id.KeyAlgorithmSignedCurve25519
	}
	ctx, cancel := context.WithTimeout(s.ctx, claimTimeout+5*time.Second)
	defer cancel()
	answer, claimErr := m.ask(ctx, "POST", "/_matrix/client/v3/keys/claim", map[string]any{
		"one_time_keys": wanted, "timeout": claimTimeout.Milliseconds(),
	})
	down := answer.Get("failures").Map()
	claimed := map[id.UserID]map[string]gjson.Result{}
	answer.Get("one_time_keys").ForEach(func(user, devices gjson.Result) bool {
		if u := id.UserID(user.Str); wanted[u] != nil {
			claimed[u] = devices.Map()
		}
		return true
	})
	var failed []wire.Delivery
	err := m.safely(s.ctx, func(txn context.Context) error {
		for _, d := range strangers {
			reason := ""
			switch _, isDown := down[d.UserID.Homeserver()]; {
			case claimErr != nil:
				reason = claimFailed + claimErr.Error()
			case isDown:
				reason = claimFailed + "its server does not answer"
			default:
				reason = m.meet(txn, d, claimed[d.UserID][string(d.DeviceID)])
			}
			if reason == "" {
				met = append(met, d)
			} else {
				failed = append(failed, wire.Delivery{Device: d.Device, Reason: reason})
			}
		}
		return nil
	})
	if err != nil {
		for _, d := range strangers {
			failed = append(failed, wire.Delivery{Device: d.Device, Reason: notEncrypted + err.Error()})
		}
		met = nil
	}
	s.tell(failed)
	return met
}

// meet makes a session with a one-time key of a device. The lock is held.
func (m *Machine) meet(ctx context.Context, d *device, keys gjson.Result) (reason string) {
	reason = noOneTimeKey
	keys.ForEach(func(name, raw gjson.Result) bool {
		if algorithm, _ := id.KeyID(name.Str).Parse(); algorithm != id.KeyAlgorithmSignedCurve25519 {
			return true
		}
		if err := m.newSession(ctx, d, raw); err != nil {
			reason = notEncrypted + err.Error()
		} else {
			reason = ""
		}
		return false
	})
	return reason
}

func (m *Machine) newSession(ctx context.Context, d *device, key gjson.Result) (err error) {
	defer caught(&err)
	if ok, err := signatures.VerifySignatureJSON(json.RawMessage(key.Raw), d.UserID, string(d.DeviceID), id.Ed25519(d.signing)); err != nil || !ok {
		return errors.New("its one-time key is not signed by it")
	}
	session, err := m.account.Internal.NewOutboundSession(d.identity, id.Curve25519(key.Get("key").Str))
	if err != nil {
		return err
	}
	now := time.Now()
	delete(m.wedged, d.identity)
	return m.addSession(ctx, d.identity, &crypto.OlmSession{
		Internal: session,
		ExpirationMixin: crypto.ExpirationMixin{TimeMixin: crypto.TimeMixin{
			CreationTime: now, LastEncryptedTime: now, LastDecryptedTime: now,
		}},
	})
}

// hasSession says whether there is a session to encrypt with. The lock is held.
func (m *Machine) hasSession(ctx context.Context, d *device) bool {
	return !m.wedged[d.identity] && m.store.HasSession(ctx, d.identity)
}

// deliver encrypts for devices that we have sessions with, and sends.
func (s *sending) deliver(devices []*device) {
	for len(devices) > 0 {
		n := min(len(devices), devicesInRequest, max(1, bytesInRequest/(2*len(s.content)+2048)))
		s.put(devices[:n])
		devices = devices[n:]
	}
}

func newTxnID() string {
	var random [16]byte
	rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:])
}

// messages are encrypted messages by user and device.
type messages map[id.UserID]map[id.DeviceID]*event.EncryptedEventContent

func (s *sending) put(devices []*device) {
	m := s.m
	ready := messages{}
	var sent, out []wire.Delivery
	err := m.safely(s.ctx, func(ctx context.Context) error {
		for _, d := range devices {
			encrypted, err := m.encrypt(ctx, d, s.eventType, s.content)
			if err != nil {
				out = append(out, wire.Delivery{Device: d.Device, Reason: notEncrypted + err.Error()})
				continue
			}
			if ready[d.UserID] == nil {
				ready[d.UserID] = map[id.DeviceID]*event.EncryptedEventContent{}
			}
			ready[d.UserID][d.DeviceID] = encrypted
			sent = append(sent, wire.Delivery{Device: d.Device})
		}
		return nil
	})
	if err != nil {
		for _, d := range devices {
			out = append(out, wire.Delivery{Device: d.Device, Reason: notEncrypted + err.Error()})
		}
		s.tell(out)
		return
	}
	s.tell(out)
	s.request(ready, sent)
}

// request sends what is encrypted; in halves where that is too much for the homeserver.
func (s *sending) request(ready messages, sent []wire.Delivery) {
	if len(sent) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, sendTimeout)
	defer cancel()
	path := "/_matrix/client/v3/sendToDevice/m.room.encrypted/" + newTxnID()
	var err error
	var e *RequestError
	for again := true; again; again = errors.As(err, &e) && e.Answer.Status == 429 && waited(ctx, e.Answer.RetryAfter) {
		_, err = s.m.ask(ctx, "PUT", path, map[string]any{"messages": ready})
	}
	if errors.As(err, &e) && e.Answer.Status == 413 && len(sent) > 1 {
		for _, half := range [][]wire.Delivery{sent[:len(sent)/2], sent[len(sent)/2:]} {
			some := messages{}
			for _, d := range half {
				if some[d.UserID] == nil {
					some[d.UserID] = map[id.DeviceID]*event.EncryptedEventContent{}
				}
				some[d.UserID][d.DeviceID] = ready[d.UserID][d.DeviceID]
			}
			s.request(some, half)
		}
		return
	}
	if err != nil {
		for i := range sent {
			sent[i].Reason = notSent + err.Error()
		}
	}
	s.tell(sent)
}

// waited waits for as long as the homeserver asks, where it says so and there is the time.
func waited(ctx context.Context, pause time.Duration) bool {
	if end, limited := ctx.Deadline(); pause == 0 || limited && time.Now().Add(pause).After(end) {
		return false
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// encrypt is one message for one device. The ratchet is stored before the message can leave. The
// lock is held.
func (m *Machine) encrypt(ctx context.Context, d *device, eventType string, content json.RawMessage) (encrypted *event.EncryptedEventContent, err error) {
	defer caught(&err)
	session, err := m.store.GetLatestSession(ctx, d.identity)
	if err != nil {
		return nil, err
	}
	if session == nil {
		return nil, errors.New("no session")
	}
	plaintext, err := json.Marshal(map[string]any{
		"type": eventType, "content": content,
		"sender": m.cfg.UserID, "sender_device": m.cfg.DeviceID, "keys": map[string]any{"ed25519": m.signing},
		"recipient": d.UserID, "recipient_keys": map[string]any{"ed25519": d.signing},
		"sender_device_keys": m.own,
	})
	if err != nil {
		return nil, err
	}
	msgType, ciphertext, err := session.Encrypt(plaintext)
	if err != nil {
		return nil, err
	}
	if err := m.store.UpdateSession(ctx, d.identity, session); err != nil {
		return nil, err
	}
	return &event.EncryptedEventContent{
		Algorithm: id.AlgorithmOlmV1, SenderKey: m.identity,
		OlmCiphertext: event.OlmCiphertexts{d.identity: {Type: msgType, Body: string(ciphertext)}},
	}, nil
}
