package olm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// fake is the homeserver of all users: device keys, one-time keys, to-device messages, cross-signing
// and account data. override answers first where it wants to.
type fake struct {
	t        testing.TB
	override func(ctx context.Context, path string, body []byte) (wire.HTTPResponse, bool)

	mu       sync.Mutex
	devices  map[id.UserID]map[id.DeviceID]map[string]any
	oneTime  map[wire.Device]map[string]json.RawMessage
	fallback map[wire.Device]map[string]json.RawMessage
	inbox    map[wire.Device][]json.RawMessage
	signing  map[string]map[id.UserID]json.RawMessage // master_keys, self_signing_keys, user_signing_keys
	account  map[string]json.RawMessage
	calls    map[string]int // by last part of the path that is fixed
}

func newFake(t testing.TB) *fake {
	return &fake{
		t: t, devices: map[id.UserID]map[id.DeviceID]map[string]any{},
		oneTime: map[wire.Device]map[string]json.RawMessage{}, fallback: map[wire.Device]map[string]json.RawMessage{},
		inbox: map[wire.Device][]json.RawMessage{}, signing: map[string]map[id.UserID]json.RawMessage{},
		account: map[string]json.RawMessage{}, calls: map[string]int{},
	}
}

func ok(body any) wire.HTTPResponse {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return wire.HTTPResponse{Status: 200, Body: raw}
}

func (f *fake) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *fake) do(ctx context.Context, from wire.Device, h wire.HTTPRequest) wire.HTTPResponse {
	path := strings.TrimPrefix(strings.TrimPrefix(h.Path, "/_matrix/client/v3/"), "/_matrix/client/v3/")
	call := path
	for _, c := range []string{"keys/upload", "keys/query", "keys/claim", "keys/signatures/upload", "keys/device_signing/upload", "sendToDevice", "account_data"} {
		if strings.Contains(path, c) {
			call = c
		}
	}
	f.mu.Lock()
	f.calls[call]++
	f.mu.Unlock()
	if f.override != nil {
		if a, does := f.override(ctx, call, h.Body); does {
			return a
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch call {
	case "keys/upload":
		return f.upload(from, h.Body)
	case "keys/query":
		return f.query(h.Body)
	case "keys/claim":
		return f.claim(h.Body)
	case "sendToDevice":
		return f.send(from, h.Body)
	case "keys/device_signing/upload":
		return f.uploadSigning(from, h.Body)
	case "keys/signatures/upload":
		return f.uploadSignatures(h.Body)
	case "account_data":
		name, _ := url.PathUnescape(path[strings.LastIndex(path, "/")+1:])
		if h.Method == "PUT" {
			f.account[name] = h.Body
			return ok(struct{}{})
		}
		if raw, has := f.account[name]; has {
			return wire.HTTPResponse{Status: 200, Body: raw}
		}
		return wire.HTTPResponse{Status: 404, Body: []byte(`{"errcode":"M_NOT_FOUND","error":"no account data"}`)}
	}
	f.t.Errorf("a request for %s", h.Path)
	return wire.HTTPResponse{Status: 404, Body: []byte(`{"errcode":"M_UNRECOGNIZED"}`)}
}

func (f *fake) upload(from wire.Device, body []byte) wire.HTTPResponse {
	var in struct {
		Device   map[string]any             `json:"device_keys"`
		OneTime  map[string]json.RawMessage `json:"one_time_keys"`
		Fallback map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	if in.Device != nil {
		f.put(from, in.Device)
	}
	for name, key := range in.OneTime {
		if f.oneTime[from] == nil {
			f.oneTime[from] = map[string]json.RawMessage{}
		}
		f.oneTime[from][name] = key
	}
	if len(in.Fallback) > 0 {
		f.fallback[from] = in.Fallback
	}
	return ok(map[string]any{"one_time_key_counts": map[string]int{"signed_curve25519": len(f.oneTime[from])}})
}

func (f *fake) put(d wire.Device, keys map[string]any) {
	if f.devices[d.UserID] == nil {
		f.devices[d.UserID] = map[id.DeviceID]map[string]any{}
	}
	f.devices[d.UserID][d.DeviceID] = keys
}

func (f *fake) query(body []byte) wire.HTTPResponse {
	var in struct {
		Users map[id.UserID][]id.DeviceID `json:"device_keys"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	out := map[id.UserID]any{}
	answer := map[string]any{"device_keys": out, "failures": struct{}{}}
	for u := range in.Users {
		out[u] = f.devices[u]
		for kind, keys := range f.signing {
			if keys[u] != nil {
				if answer[kind] == nil {
					answer[kind] = map[id.UserID]json.RawMessage{}
				}
				answer[kind].(map[id.UserID]json.RawMessage)[u] = keys[u]
			}
		}
	}
	return ok(answer)
}

func (f *fake) claim(body []byte) wire.HTTPResponse {
	var in struct {
		Wanted map[id.UserID]map[id.DeviceID]string `json:"one_time_keys"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	out := map[id.UserID]map[id.DeviceID]any{}
	for u, devices := range in.Wanted {
		out[u] = map[id.DeviceID]any{}
		for name := range devices {
			d := wire.Device{UserID: u, DeviceID: name}
			for keyID, key := range f.oneTime[d] {
				delete(f.oneTime[d], keyID)
				out[u][name] = map[string]json.RawMessage{keyID: key}
				break
			}
			if out[u][name] == nil && f.fallback[d] != nil {
				out[u][name] = f.fallback[d]
			}
		}
	}
	return ok(map[string]any{"one_time_keys": out, "failures": struct{}{}})
}

func (f *fake) send(from wire.Device, body []byte) wire.HTTPResponse {
	var in struct {
		Messages map[id.UserID]map[id.DeviceID]json.RawMessage `json:"messages"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	for u, devices := range in.Messages {
		for name, content := range devices {
			d := wire.Device{UserID: u, DeviceID: name}
			raw, _ := json.Marshal(map[string]any{"type": "m.room.encrypted", "sender": from.UserID, "content": content})
			f.inbox[d] = append(f.inbox[d], raw)
		}
	}
	return ok(struct{}{})
}

func (f *fake) uploadSigning(from wire.Device, body []byte) wire.HTTPResponse {
	var in map[string]json.RawMessage
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	for kind, name := range map[string]string{"master_key": "master_keys", "self_signing_key": "self_signing_keys", "user_signing_key": "user_signing_keys"} {
		if f.signing[name] == nil {
			f.signing[name] = map[id.UserID]json.RawMessage{}
		}
		f.signing[name][from.UserID] = in[kind]
	}
	return ok(struct{}{})
}

func (f *fake) uploadSignatures(body []byte) wire.HTTPResponse {
	var in map[id.UserID]map[id.DeviceID]struct {
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	for u, devices := range in {
		for name, signed := range devices {
			if device := f.devices[u][name]; device != nil {
				for by, all := range signed.Signatures {
					for key, signature := range all {
						device["signatures"].(map[string]any)[by].(map[string]any)[key] = signature
					}
				}
			}
		}
	}
	return ok(map[string]any{"failures": struct{}{}})
}

// stranger is a device with keys but no machine: others can encrypt for it.
func (f *fake) stranger(user id.UserID, name id.DeviceID, oneTimeKeys uint) *crypto.OlmAccount {
	account := crypto.NewOlmAccount()
	d := wire.Device{UserID: user, DeviceID: name}
	keys := map[string]any{
		"user_id": user, "device_id": name, "algorithms": []id.Algorithm{id.AlgorithmOlmV1},
		"keys": map[string]any{"curve25519:" + string(name): account.IdentityKey(), "ed25519:" + string(name): account.SigningKey()},
	}
	f.sign(account, d, keys)
	if err := account.Internal.GenOneTimeKeys(oneTimeKeys); err != nil {
		f.t.Fatal(err)
	}
	unpublished, err := account.Internal.OneTimeKeys()
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(d, keys)
	f.oneTime[d] = map[string]json.RawMessage{}
	for keyID, key := range unpublished {
		signed := map[string]any{"key": key}
		f.sign(account, d, signed)
		raw, _ := json.Marshal(signed)
		f.oneTime[d]["signed_curve25519:"+keyID] = raw
	}
	return account
}

func (f *fake) sign(account *crypto.OlmAccount, d wire.Device, object map[string]any) {
	signature, err := account.SignJSON(object)
	if err != nil {
		f.t.Fatal(err)
	}
	object["signatures"] = signatures.NewSingleSignature(d.UserID, id.KeyAlgorithmEd25519, string(d.DeviceID), signature)
}

// party is a machine and what it has received.
type party struct {
	*Machine
	wire.Device
	t       testing.TB
	f       *fake
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	arrived chan struct{} // closed and replaced when something was received or logged
	got     []Decrypted
	logged  []string
}

func (f *fake) party(user id.UserID, device id.DeviceID, set ...func(*Config)) *party {
	f.t.Helper()
	p, err := f.open(user, device, set...)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := p.Start(p.ctx); err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fake) open(user id.UserID, device id.DeviceID, set ...func(*Config)) (*party, error) {
	p := &party{Device: wire.Device{UserID: user, DeviceID: device}, t: f.t, f: f, arrived: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	cfg := Config{
		UserID: user, DeviceID: device,
		Do: func(ctx context.Context, h wire.HTTPRequest) wire.HTTPResponse { return f.do(ctx, p.Device, h) },
		Go: func(g func()) {
			p.running.Add(1)
			go func() { defer p.running.Done(); g() }()
		},
		Log: func(_ int, msg string, fields map[string]any) {
			p.note(func() { p.logged = append(p.logged, fmt.Sprint(msg, " ", fields)) })
		},
	}
	for _, s := range set {
		s(&cfg)
	}
	var err error
	if p.Machine, err = Open(p.ctx, cfg); err != nil {
		p.cancel()
		return nil, err
	}
	p.listedAtLast = 0
	f.t.Cleanup(p.stop)
	return p, nil
}

func (p *party) stop() {
	p.cancel()
	p.running.Wait()
	p.Close()
}

func (p *party) note(what func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	what()
	close(p.arrived)
	p.arrived = make(chan struct{})
}

// until waits for a condition, which is asked with p.mu locked.
func (p *party) until(what string, cond func() bool) {
	p.t.Helper()
	const atMost = 2 * time.Minute
	expired := time.After(atMost)
	for {
		p.mu.Lock()
		done, arrived := cond(), p.arrived
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-arrived:
		case <-expired:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Fatalf("no %s within %v; got %d messages, logged %q", what, atMost, len(p.got), p.logged)
		}
	}
}

// sync takes in what waits on the server, and events besides.
func (p *party) sync(events ...RoomEvent) error {
	p.f.mu.Lock()
	facts := SyncFacts{Asked: time.Now(), OneTimeKeys: -1, ToDevice: p.f.inbox[p.Device], Events: events}
	p.f.inbox[p.Device] = nil
	p.f.mu.Unlock()
	return p.take(facts)
}

func (p *party) take(facts SyncFacts) error {
	return p.Sync(p.ctx, facts, func(messages []Decrypted) {
		p.note(func() { p.got = append(p.got, messages...) })
	})
}

// receives takes in what waits, and waits for the n messages that it has had by then.
func (p *party) receives(n int) []Decrypted {
	p.t.Helper()
	if err := p.sync(); err != nil {
		p.t.Fatal(err)
	}
	p.until(fmt.Sprintf("%d messages", n), func() bool { return len(p.got) >= n })
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got) != n {
		p.t.Fatalf("%d messages in place of %d", len(p.got), n)
	}
	return p.got
}

// say sends a message and answers what became of it.
func (p *party) say(text string, to ...wire.Device) map[wire.Device]string {
	content, _ := json.Marshal(map[string]string{"text": text})
	fates := map[wire.Device]string{}
	p.Send(p.ctx, wire.TypeEncryptionKeys, content, to, func(deliveries []wire.Delivery) {
		for _, d := range deliveries {
			if _, twice := fates[d.Device]; twice {
				p.t.Errorf("%v was told twice", d.Device)
			}
			fates[d.Device] = d.Reason
		}
	})
	return fates
}

// reaches says a message that must arrive.
func (p *party) reaches(text string, to ...wire.Device) {
	p.t.Helper()
	for d, reason := range p.say(text, to...) {
		if reason != "" {
			p.t.Fatalf("%s %s was not reached: %s", d.UserID, d.DeviceID, reason)
		}
	}
}

func text(d Decrypted) string {
	var c struct{ Text string }
	_ = json.Unmarshal(d.Content, &c)
	return c.Text
}
