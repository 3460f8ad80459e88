package olm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/id"
)

func TestTwoTalkBothWays(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.reaches("one", b.Device)
	got := b.receives(1)[0]
	if text(got) != "one" || got.Sender != "@a:x" || got.SenderDevice != "A" || !got.Encrypted || got.CrossSigned || got.SenderKey != a.identity {
		t.Fatalf("got %+v", got)
	}
	for i := range 5 {
		b.reaches(fmt.Sprint("back ", i), a.Device)
		if all := a.receives(i + 1); text(all[i]) != fmt.Sprint("back ", i) {
			t.Fatalf("got %q", text(all[i]))
		}
		a.reaches(fmt.Sprint("and forth ", i), b.Device)
		b.receives(i + 2)
	}
	if claims := f.count("keys/claim"); claims != 1 {
		t.Errorf("%d claims of one-time keys for one session", claims)
	}
}

// They meet in the middle: both make a session at the same time, and both go on being understood.
func TestBothBeginAtOnce(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.reaches("from a", b.Device)
	b.reaches("from b", a.Device)
	a.receives(1)
	b.receives(1)
	for i := range 3 {
		a.reaches("again", b.Device)
		b.reaches("again", a.Device)
		a.receives(i + 2)
		b.receives(i + 2)
	}
}

func TestThousandDevicesInFewRequests(t *testing.T) {
	f := newFake(t)
	a := f.party("@a:x", "A")
	var everybody []wire.Device
	for i := range 1000 {
		d := wire.Device{UserID: id.UserID(fmt.Sprintf("@u%d:s%d", i/4, i%4)), DeviceID: id.DeviceID(fmt.Sprint("D", i))}
		f.stranger(d.UserID, d.DeviceID, 1)
		everybody = append(everybody, d)
	}
	queries := f.count("keys/query")
	a.reaches("hello", everybody...)
	if n := f.count("keys/query") - queries; n != 4 {
		t.Errorf("%d queries for 4 servers", n)
	}
	if n := f.count("keys/claim"); n != 4 {
		t.Errorf("%d claims for 4 servers", n)
	}
	sends := f.count("sendToDevice")
	if sends > 16 {
		t.Errorf("%d sends", sends)
	}
	a.reaches("again", everybody...)
	if n := f.count("sendToDevice") - sends; n > 16 || f.count("keys/claim") != 4 {
		t.Errorf("%d sends, %d claims the second time", n, f.count("keys/claim"))
	}
	for _, d := range everybody {
		if n := len(f.inbox[d]); n != 2 {
			t.Fatalf("%v was sent %d messages", d, n)
		}
	}
}

// hang makes requests that name a server hang until they are released, however long ago they were given
// up; then they fail.
func (f *fake) hang(server string) (release func(), hanging <-chan string) {
	released, calls := make(chan struct{}), make(chan string, 1000)
	f.override = func(_ context.Context, path string, body []byte) (wire.HTTPResponse, bool) {
		if !strings.Contains(string(body), ":"+server+`"`) {
			return wire.HTTPResponse{}, false
		}
		calls <- path
		<-released
		return ok(map[string]any{"device_keys": struct{}{}, "one_time_keys": struct{}{}, "failures": map[string]any{server: struct{}{}}}), true
	}
	return func() { close(released) }, calls
}

// sends begins to send to devices: their fates as they are told, and when that has ended.
func (p *party) sends(to ...wire.Device) (fates <-chan wire.Delivery, over <-chan struct{}) {
	told, ended := make(chan wire.Delivery, len(to)), make(chan struct{})
	go func() {
		defer close(ended)
		p.Send(p.ctx, "t", json.RawMessage(`{}`), to, func(d []wire.Delivery) {
			for _, one := range d {
				told <- one
			}
		})
	}()
	return told, ended
}

func TestSlowServerDelaysNobodyElse(t *testing.T) {
	f := newFake(t)
	a, b, c := f.party("@a:x", "A"), f.party("@b:y", "B"), f.party("@c:slow", "C")
	release, hanging := f.hang("slow")
	fates, over := a.sends(c.Device, b.Device)
	if d := <-fates; d.Device != b.Device || d.Reason != "" {
		t.Fatalf("first %+v", d)
	}
	<-hanging
	b.receives(1)
	release()
	if d := <-fates; d.Device != c.Device || d.Reason != noDeviceList {
		t.Fatalf("then %+v", d)
	}
	<-over
	f.override = nil
	a.reaches("now", c.Device)
}

// However many servers hang, the devices of our own are reached and heard at once.
func TestManySlowServersDelayNobodyAtHome(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:x", "B")
	recipients := []wire.Device{b.Device}
	for i := range askingAtOnce {
		recipients = append(recipients, wire.Device{UserID: id.UserID(fmt.Sprintf("@u:slow%d", i)), DeviceID: "D"})
	}
	released, hanging := make(chan struct{}), make(chan struct{}, askingAtOnce)
	f.override = func(ctx context.Context, path string, body []byte) (wire.HTTPResponse, bool) {
		if !strings.Contains(string(body), ":slow") {
			return wire.HTTPResponse{}, false
		}
		hanging <- struct{}{}
		<-released
		return ok(map[string]any{"device_keys": struct{}{}}), true
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		a.Send(a.ctx, "t", json.RawMessage(`{}`), recipients[1:], func([]wire.Delivery) {})
	}()
	for range askingAtOnce {
		<-hanging
	}
	reached := make(chan wire.Delivery, 1)
	go a.Send(a.ctx, "t", json.RawMessage(`{}`), recipients[:1], func(d []wire.Delivery) { reached <- d[0] })
	select {
	case d := <-reached:
		if d.Device != b.Device || d.Reason != "" {
			t.Errorf("%+v", d)
		}
		b.receives(1)
	case <-time.After(2 * time.Minute):
		t.Error("waits for the others")
	}
	close(released)
	<-over
}

// A homeserver that asks to wait gets the same request again then: nothing is encrypted anew.
func TestSendingWaitsAsAsked(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:x", "B")
	a.reaches("first", b.Device)
	var bodies []string
	f.override = func(_ context.Context, path string, body []byte) (wire.HTTPResponse, bool) {
		if path != "sendToDevice" {
			return wire.HTTPResponse{}, false
		}
		bodies = append(bodies, string(body))
		return wire.HTTPResponse{Status: 429, Body: []byte(`{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":20}`)}, len(bodies) < 3
	}
	a.reaches("second", b.Device)
	if len(bodies) != 3 || bodies[0] != bodies[2] {
		t.Errorf("%d requests, the same: %v", len(bodies), bodies[0] == bodies[len(bodies)-1])
	}
	// Nobody waits for longer than a request may take.
	f.override = func(_ context.Context, path string, _ []byte) (wire.HTTPResponse, bool) {
		return wire.HTTPResponse{Status: 429, Body: []byte(`{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":3600000}`)}, path == "sendToDevice"
	}
	if fates := a.say("third", b.Device); fates[b.Device] != notSent+"HTTP 429 M_LIMIT_EXCEEDED" {
		t.Errorf("%+v", fates)
	}
}

// The same with the claim of a one-time key, which is the server's to give as well.
func TestSlowClaimDelaysNobodyElse(t *testing.T) {
	f := newFake(t)
	a, b, c := f.party("@a:x", "A"), f.party("@b:y", "B"), f.party("@c:slow", "C")
	_ = a.query(a.ctx, []id.UserID{"@c:slow"})
	release, hanging := f.hang("slow")
	fates, over := a.sends(c.Device, b.Device)
	if d := <-fates; d.Device != b.Device || d.Reason != "" {
		t.Fatalf("first %+v", d)
	}
	if path := <-hanging; path != "keys/claim" {
		t.Fatalf("%s hangs", path)
	}
	release()
	if d := <-fates; d.Device != c.Device || !strings.HasPrefix(d.Reason, claimFailed) {
		t.Fatalf("then %+v", d)
	}
	<-over
}

func TestMissingOneTimeKeyIsToldAndLaterFound(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	f.stranger("@c:z", "C", 0)
	c := wire.Device{UserID: "@c:z", DeviceID: "C"}
	nobody := wire.Device{UserID: "@b:y", DeviceID: "NOBODY"}
	fates := a.say("hello", b.Device, c, nobody)
	if fates[b.Device] != "" || fates[c] != noOneTimeKey || fates[nobody] != unknownDevice || len(fates) != 3 {
		t.Fatalf("fates %v", fates)
	}
	f.stranger("@c:z", "C", 1)
	a.DevicesChanged("@c:z")
	// It is another account under the old name now, which is refused.
	if fates = a.say("hello", c); !strings.Contains(fates[c], "has changed") && fates[c] != noOneTimeKey {
		t.Fatalf("fates %v", fates)
	}
	d := f.stranger("@d:z", "D", 0)
	device := wire.Device{UserID: "@d:z", DeviceID: "D"}
	if fates = a.say("hello", device); fates[device] != noOneTimeKey {
		t.Fatalf("fates %v", fates)
	}
	if err := d.Internal.GenOneTimeKeys(1); err != nil {
		t.Fatal(err)
	}
	keys, err := d.Internal.OneTimeKeys()
	if err != nil {
		t.Fatal(err)
	}
	for keyID, key := range keys {
		signed := map[string]any{"key": key}
		f.sign(d, device, signed)
		raw, _ := json.Marshal(signed)
		f.oneTime[device] = map[string]json.RawMessage{"signed_curve25519:" + keyID: raw}
	}
	a.reaches("now", device)
}

// What is not signed by the device is not used, whoever has put it there.
func TestTamperedKeysAreRefused(t *testing.T) {
	mallory := crypto.NewOlmAccount()
	b := wire.Device{UserID: "@b:y", DeviceID: "B"}
	for what, tamper := range map[string]func(f *fake){
		"identity key": func(f *fake) {
			f.devices["@b:y"]["B"]["keys"].(map[string]any)["curve25519:B"] = mallory.IdentityKey()
		},
		"signing key": func(f *fake) {
			f.devices["@b:y"]["B"]["keys"].(map[string]any)["ed25519:B"] = mallory.SigningKey()
		},
		"no signature": func(f *fake) { delete(f.devices["@b:y"]["B"], "signatures") },
		"signatures of a wrong type": func(f *fake) {
			f.devices["@b:y"]["B"]["signatures"] = []int{1}
		},
		"one-time key": func(f *fake) {
			for keyID := range f.oneTime[b] {
				f.oneTime[b][keyID], _ = json.Marshal(map[string]any{"key": mallory.IdentityKey(),
					"signatures": gjson.GetBytes(f.oneTime[b][keyID], "signatures").Value()})
			}
		},
		"unsigned one-time key": func(f *fake) {
			for keyID := range f.oneTime[b] {
				f.oneTime[b][keyID] = json.RawMessage(`{"key":"` + string(mallory.IdentityKey()) + `"}`)
			}
		},
		"one-time key of low order": func(f *fake) {
			for keyID := range f.oneTime[b] {
				f.oneTime[b][keyID] = json.RawMessage(`{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`)
			}
		},
		"deep": func(f *fake) {
			f.devices["@b:y"]["B"]["x"] = json.RawMessage(strings.Repeat("[", 5000) + strings.Repeat("]", 5000))
		},
		"huge": func(f *fake) { f.devices["@b:y"]["B"]["x"] = strings.Repeat("x", 1<<20) },
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake(t)
			a, c := f.party("@a:x", "A"), f.party("@c:z", "C")
			f.stranger("@b:y", "B", 1)
			tamper(f)
			fates := a.say("secret", b, c.Device)
			if fates[b] == "" || fates[c.Device] != "" {
				t.Fatalf("fates %v", fates)
			}
			if len(f.inbox[b]) != 0 {
				t.Fatal("a message was sent")
			}
		})
	}
}

func TestReplayIsRefused(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	f.oneTime[b.Device] = nil // the fallback key is used, which a replay would find again
	a.reaches("once", b.Device)
	first := f.inbox[b.Device][0]
	b.receives(1)
	b.reaches("answer", a.Device)
	a.receives(1)
	a.reaches("twice", b.Device)
	second := f.inbox[b.Device][0]
	b.receives(2)
	for range 3 {
		f.inbox[b.Device] = []json.RawMessage{first, second, first}
		b.receives(2)
	}
	b.running.Wait()
	if sends := f.count("sendToDevice"); sends != 3 {
		t.Errorf("%d sends: a replay was taken for a broken session", sends)
	}
	// Nor when the session is long forgotten, but the fallback key is not.
	if _, err := b.db.Exec("DELETE FROM crypto_olm_session"); err != nil {
		t.Fatal(err)
	}
	b.store.InitFields()
	f.inbox[b.Device] = []json.RawMessage{first}
	b.receives(2)
}

// A life that ends before the homeserver hears what has arrived is brought that again: it is not taken
// in twice, nor told as lost, nor a reason for a new session.
func TestSyncThatComesAgainAfterACrash(t *testing.T) {
	f := newFake(t)
	stored := inFile(t, "b.db")
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B", stored)
	for i := range 3 {
		a.reaches("hello", b.Device)
		again := f.inbox[b.Device]
		b.receives(1)
		b.stop()
		f.inbox[b.Device] = again
		b = f.party("@b:y", "B", stored)
		b.receives(0)
		b.until("end of waiting", func() bool {
			b.inbox.mu.Lock()
			defer b.inbox.mu.Unlock()
			return b.inbox.count == 0 || b.poke()
		})
		b.running.Wait()
		if len(b.logged) > 0 || len(b.got) > 0 {
			t.Fatalf("logged %q, got %d", b.logged, len(b.got))
		}
		if i == 0 {
			b.reaches("answer", a.Device) // from now on no message begins a session
			a.receives(1)
		}
		b.stop()
		b = f.party("@b:y", "B", stored)
	}
	if n := f.count("keys/claim"); n != 1 {
		t.Errorf("%d claims", n)
	}
}

// Somebody else's message, put under another sender's name or for another recipient, is refused.
func TestMessageOfAnotherSenderIsRefused(t *testing.T) {
	f := newFake(t)
	a, b, c := f.party("@a:x", "A"), f.party("@b:y", "B"), f.party("@c:z", "C")
	a.reaches("hello", b.Device)
	stolen := strings.ReplaceAll(string(f.inbox[b.Device][0]), `"sender":"@a:x"`, `"sender":"@c:z"`)
	f.inbox[b.Device] = []json.RawMessage{json.RawMessage(stolen)}
	if err := b.sync(); err != nil {
		t.Fatal(err)
	}
	b.until("refusal", func() bool { return len(b.logged) > 0 })
	c.reaches("hello", b.Device)
	if got := b.receives(1)[0]; got.Sender != "@c:z" || got.SenderDevice != "C" {
		t.Fatalf("got %+v", got)
	}
	if err := a.take(SyncFacts{OneTimeKeys: -1, ToDevice: []json.RawMessage{json.RawMessage(stolen)}}); err != nil {
		t.Fatal(err)
	}
	a.receives(0)
}

// A device that exists puts another's names into what it encrypts.
func TestPayloadThatIsNotItsOwnIsRefused(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.reaches("hello", b.Device)
	b.receives(1)
	mallory := crypto.NewOlmAccount()
	for what, lie := range map[string]func(a *Machine, b *device){
		"sender":        func(a *Machine, _ *device) { a.cfg.UserID = "@b:y" },
		"signing key":   func(a *Machine, _ *device) { a.signing = mallory.SigningKey() },
		"recipient":     func(_ *Machine, b *device) { b.UserID = "@c:z" },
		"recipient key": func(_ *Machine, b *device) { b.signing = mallory.SigningKey() },
	} {
		liar := &Machine{cfg: a.cfg, store: a.store, identity: a.identity, signing: a.signing, own: a.own, account: a.account}
		to := *a.lists.named(b.Device)
		lie(liar, &to)
		content, err := liar.encrypt(t.Context(), &to, wire.TypeEncryptionKeys, json.RawMessage(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(map[string]any{"type": "m.room.encrypted", "sender": "@a:x", "content": content})
		b.mu.Lock()
		logged := len(b.logged)
		b.mu.Unlock()
		f.mu.Lock()
		f.inbox[b.Device] = append(f.inbox[b.Device], raw)
		f.mu.Unlock()
		if err := b.sync(); err != nil {
			t.Fatal(err)
		}
		b.until("refusal of a wrong "+what, func() bool { return len(b.logged) > logged })
		b.receives(1)
	}
	a.reaches("the truth", b.Device)
	b.receives(2)
}

// A device keeps its signing key: the server cannot put another in its place.
func TestChangedIdentityIsRefused(t *testing.T) {
	f := newFake(t)
	store := inFile(t, "a.db")
	a := f.party("@a:x", "A", store)
	f.stranger("@b:y", "B", 2)
	b := wire.Device{UserID: "@b:y", DeviceID: "B"}
	a.reaches("hello", b)
	f.stranger("@b:y", "B", 2)
	a.DevicesChanged("@b:y")
	if fate := a.say("secret", b)[b]; !strings.Contains(fate, "has changed") {
		t.Fatalf("fate %q", fate)
	}
	a.stop()
	a = f.party("@a:x", "A", store)
	if fate := a.say("secret", b)[b]; !strings.Contains(fate, "has changed") {
		t.Fatalf("after a restart: fate %q", fate)
	}
}

// A device that is deleted and comes back under its name is a new one, if we were there to see it.
func TestDeviceThatIsDeletedAndComesBack(t *testing.T) {
	f := newFake(t)
	store := inFile(t, "a.db")
	a := f.party("@a:x", "A", store)
	b := wire.Device{UserID: "@b:y", DeviceID: "B"}
	replace := func() {
		t.Helper()
		f.mu.Lock()
		delete(f.devices["@b:y"], "B")
		f.mu.Unlock()
		queries := f.count("keys/query")
		a.DevicesChanged("@b:y")
		if err := a.sync(); err != nil { // nothing is sent
			t.Fatal(err)
		}
		a.until("query", func() bool { return f.count("keys/query") > queries && a.lists.of("@b:y") != nil || a.poke() })
		f.stranger("@b:y", "B", 2)
		a.DevicesChanged("@b:y")
	}
	f.stranger("@b:y", "B", 2)
	a.reaches("hello", b)
	replace()
	a.reaches("hello to a new one", b)
	a.stop()
	a = f.party("@a:x", "A", store)
	a.reaches("hello again", b)
	replace()
	a.reaches("hello to the third", b)
}

func inFile(t *testing.T, name string) func(*Config) {
	path := filepath.Join(t.TempDir(), name)
	return func(c *Config) { c.StorePath, c.PickleKey = path, "the pickle key" }
}

func TestRestartWithStore(t *testing.T) {
	f := newFake(t)
	stored := inFile(t, "b ?#%.db")
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B", stored)
	a.reaches("one", b.Device)
	b.receives(1)
	b.reaches("answer", a.Device)
	a.receives(1)
	for i := range 3 {
		b.stop()
		a.reaches("while it was away", b.Device)
		b = f.party("@b:y", "B", stored)
		if got := b.receives(1)[0]; text(got) != "while it was away" {
			t.Fatalf("got %q", text(got))
		}
		b.reaches("again", a.Device)
		a.receives(2 + i)
	}
	if n := f.count("keys/claim"); n != 1 {
		t.Errorf("%d claims: sessions did not survive", n)
	}
	if n := f.count("keys/upload"); n != 2 {
		t.Errorf("%d uploads", n)
	}
}

// What changed while we were away is not known from before: lists are asked for again.
func TestDeviceListsDoNotOutliveARestart(t *testing.T) {
	f := newFake(t)
	stored := inFile(t, "a.db")
	a, b := f.party("@a:x", "A", stored), f.party("@b:y", "B")
	a.reaches("hello", b.Device)
	a.stop()
	delete(f.devices["@b:y"], "B")
	a = f.party("@a:x", "A", stored)
	if fate := a.say("secret", b.Device)[b.Device]; fate != unknownDevice {
		t.Fatalf("fate %q", fate)
	}
	// And while we are here the sync tells.
	c := f.party("@c:z", "C")
	a.reaches("hello", c.Device)
	delete(f.devices["@c:z"], "C")
	a.DevicesChanged("@c:z")
	if fate := a.say("secret", c.Device)[c.Device]; fate != unknownDevice {
		t.Fatalf("fate %q", fate)
	}
}

// A list that changes while it is asked for is asked for again.
func TestListThatChangesMeanwhile(t *testing.T) {
	f := newFake(t)
	a := f.party("@a:x", "A")
	f.stranger("@b:y", "B1", 1)
	changed := false
	f.override = func(_ context.Context, path string, body []byte) (wire.HTTPResponse, bool) {
		if path != "keys/query" || changed {
			return wire.HTTPResponse{}, false
		}
		changed = true
		f.mu.Lock()
		answer := f.query(body) // of before
		f.mu.Unlock()
		f.stranger("@b:y", "B2", 1)
		a.DevicesChanged("@b:y")
		return answer, true
	}
	a.reaches("hello", wire.Device{UserID: "@b:y", DeviceID: "B1"}, wire.Device{UserID: "@b:y", DeviceID: "B2"})
}

// A new device of a user is found even before the sync has told of it.
func TestNewDeviceIsLookedFor(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.reaches("hello", b.Device)
	second := f.party("@b:y", "B2")
	a.reaches("hello", second.Device)
	third := f.party("@b:y", "B3")
	third.reaches("hello", a.Device)
	if err := a.sync(); err != nil {
		t.Fatal(err)
	}
	a.until("refusal", func() bool { return len(a.logged) > 0 }) // not asked for again within a minute
	a.DevicesChanged("@b:y")
	third.reaches("hello", a.Device)
	a.receives(1)
}

// The message of a new device may come before word of it.
func TestMessageOfADeviceThatIsListedLater(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.listedAtLast = time.Hour
	b.reaches("hello", a.Device)
	a.receives(1)
	second := f.party("@b:y", "B2")
	listed := f.devices["@b:y"]["B2"]
	delete(f.devices["@b:y"], "B2")
	second.reaches("first words", a.Device)
	queries := f.count("keys/query")
	if err := a.sync(); err != nil {
		t.Fatal(err)
	}
	a.until("query", func() bool { return f.count("keys/query") > queries && a.lists.of("@b:y") != nil || a.poke() })
	f.mu.Lock()
	f.devices["@b:y"]["B2"] = listed
	f.mu.Unlock()
	a.DevicesChanged("@b:y")
	if got := a.receives(2)[1]; text(got) != "first words" {
		t.Errorf("got %q", text(got))
	}
}

// A store that fails is told as that, and once it works again all is well.
func TestStoreThatFails(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	rename := func(from, to string) {
		if _, err := a.db.Exec("ALTER TABLE " + from + " RENAME TO " + to); err != nil {
			t.Fatal(err)
		}
	}
	rename("crypto_device", "elsewhere")
	if fate := a.say("hello", b.Device)[b.Device]; !strings.HasPrefix(fate, notEncrypted) || strings.Contains(fate, "panic") {
		t.Errorf("fate %q", fate)
	}
	rename("elsewhere", "crypto_device")
	a.reaches("hello", b.Device)
	b.receives(1)
}

// What is stored longest goes when there is too much of it.
func TestStoreIsBounded(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	if _, err := b.db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120000)
		INSERT INTO crypto_olm_message_hash (account_id, received_at, message_hash) SELECT '@b:y', 0, 'hash ' || i FROM n`); err != nil {
		t.Fatal(err)
	}
	b.written = trimEvery
	a.reaches("hello", b.Device)
	b.receives(1)
	b.reaches("answer", a.Device)
	a.receives(1)
	var rows, newest int
	if err := b.db.QueryRow("SELECT count(*), count(CASE message_hash WHEN 'hash 120000' THEN 1 END) FROM crypto_olm_message_hash").Scan(&rows, &newest); err != nil {
		t.Fatal(err)
	}
	if rows > rowsKept["crypto_olm_message_hash"]+trimEvery || newest != 1 {
		t.Errorf("%d rows, the newest of them: %d", rows, newest)
	}
}

func TestStoresThatDoNotFit(t *testing.T) {
	f := newFake(t)
	stored := inFile(t, "store.db")
	a := f.party("@a:x", "A", stored)
	refused := func(what, path, message string, err error) {
		t.Helper()
		var e *ConfigError
		if !errors.As(err, &e) || e.Path != path || !strings.Contains(e.Message, message) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := f.open("@a:x", "A", stored)
	refused("in use", "/store_path", "in use", err)
	a.stop()
	_, err = f.open("@a:x", "A", stored, func(c *Config) { c.PickleKey = "another" })
	refused("wrong pickle key", "/pickle_key", "does not open", err)
	_, err = f.open("@a:x", "A", stored, func(c *Config) { c.PickleKey = "" })
	refused("no pickle key", "/pickle_key", "expected", err)
	_, err = f.open("@a:x", "A2", stored)
	refused("other device", "/store_path", "device A of @a:x", err)
	_, err = f.open("@b:x", "A", stored)
	refused("other user", "/store_path", "device A of @a:x", err)
	_, err = f.open("@a:x", "A", func(c *Config) { c.StorePath, c.PickleKey = filepath.Join(t.TempDir(), "none", "s.db"), "p" })
	refused("no folder", "/store_path", "no such file", err)
	_, err = f.open("@a:x", "A", func(c *Config) { c.StorePath, c.PickleKey = t.TempDir(), "p" })
	refused("a folder", "/store_path", "", err)
	_, err = f.open("@a:x", "A", func(c *Config) { c.StorePath, c.PickleKey = "olm_test.go", "p" })
	refused("another file", "/store_path", "", err)

	// The device is known under other keys: those of a store that is lost, or of another program.
	b, err := f.open("@a:x", "A", inFile(t, "new.db"))
	if err != nil {
		t.Fatal(err)
	}
	refused("published before", "/store_path", "has published encryption keys", b.Start(b.ctx))
	c, err := f.open("@a:x", "A")
	if err != nil {
		t.Fatal(err)
	}
	refused("published before, without a store", "/store_path", "has published encryption keys", c.Start(c.ctx))
}

// A message of a device whose server does not answer waits; so do the later ones of its user, and
// all survive a restart: the homeserver has forgotten them.
func TestMessagesOfUnknownDevicesWait(t *testing.T) {
	f := newFake(t)
	stored := inFile(t, "b.db")
	a, b, c := f.party("@a:slow", "A"), f.party("@b:y", "B", stored), f.party("@c:z", "C")
	_ = b.query(b.ctx, []id.UserID{"@c:z"})
	for i := range 3 {
		a.reaches(fmt.Sprint("message ", i), b.Device)
	}
	c.reaches("hello", b.Device)
	release, hanging := f.hang("slow")
	if got := b.receives(1)[0]; got.Sender != "@c:z" {
		t.Fatalf("got %+v", got)
	}
	<-hanging
	b.cancel()
	release()
	b.stop()
	f.override = nil
	b = f.party("@b:y", "B", stored)
	for i, got := range b.receives(3) {
		if text(got) != fmt.Sprint("message ", i) {
			t.Errorf("message %d is %q", i, text(got))
		}
	}
	var left int
	if err := b.db.QueryRow("SELECT count(*) FROM matrixrtc_waiting").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d wait on, %v", left, err)
	}
}

// A server that answers at last: what waited is read, and in order with what came later.
func TestOrderOfOneSenderIsKept(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:slow", "A"), f.party("@b:y", "B")
	a.reaches("0", b.Device)
	release, hanging := f.hang("slow")
	if err := b.sync(); err != nil {
		t.Fatal(err)
	}
	<-hanging
	f.override = nil // but the first query hangs still
	for i := 1; i < 20; i++ {
		a.reaches(fmt.Sprint(i), b.Device)
		if i == 10 { // the devices become known, but what waits still waits
			found, err := b.fetch(b.ctx, map[id.UserID]bool{"@a:slow": true})
			if err != nil {
				t.Fatal(err)
			}
			b.lists.mu.Lock()
			b.lists.remember("@a:slow", found["@a:slow"])
			b.lists.mu.Unlock()
		}
		if err := b.sync(); err != nil {
			t.Fatal(err)
		}
	}
	b.receives(0)
	release()
	for i, got := range b.receives(20) {
		if text(got) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, text(got))
		}
	}
}

// Whatever strangers send, there are few goroutines and little is kept.
func TestFloodOfStrangers(t *testing.T) {
	f := newFake(t)
	a := f.party("@a:x", "A")
	var asking, most int // f.mu
	f.override = func(ctx context.Context, path string, body []byte) (wire.HTTPResponse, bool) {
		f.mu.Lock()
		asking++
		most = max(most, asking)
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		asking--
		f.mu.Unlock()
		return wire.HTTPResponse{NetworkError: "gone"}, true
	}
	before := runtime.NumGoroutine()
	junk := func(user string) json.RawMessage {
		raw, _ := json.Marshal(map[string]any{"type": "m.room.encrypted", "sender": user, "content": map[string]any{
			"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "c2VuZGVyIGtleSBvZiBub2JvZHkgYXQgYWxsIHh4eHg",
			"ciphertext": map[id.Curve25519]any{a.identity: map[string]any{"type": 0, "body": "AwoganVuaw"}},
		}})
		return raw
	}
	for i := range 100 {
		facts := SyncFacts{OneTimeKeys: -1}
		for j := range 100 {
			facts.ToDevice = append(facts.ToDevice, junk(fmt.Sprintf("@u%d:s%d", j, i)), junk("@flood:er"))
		}
		if err := a.take(facts); err != nil {
			t.Fatal(err)
		}
	}
	a.inbox.mu.Lock()
	count, ofOne := a.inbox.count, a.inbox.users["@flood:er"]
	a.inbox.mu.Unlock()
	if count > waitingAtMost || ofOne > waitingPerUser {
		t.Errorf("%d wait, %d of one user", count, ofOne)
	}
	if n := runtime.NumGoroutine() - before; n > 300 {
		t.Errorf("%d goroutines", n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if most > heardAtOnce {
		t.Errorf("%d queries at the same time", most)
	}
}

// One server whose users write and whose devices cannot be looked up leaves places for others.
func TestFloodOfOneServer(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	release, _ := f.hang("evil")
	defer release()
	facts := SyncFacts{OneTimeKeys: -1}
	for i := range waitingAtMost + waitingPerUser {
		raw, _ := json.Marshal(map[string]any{"type": "m.room.encrypted", "sender": fmt.Sprintf("@u%d:evil", i/waitingPerUser), "content": map[string]any{
			"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "c2VuZGVyIGtleSBvZiBub2JvZHkgYXQgYWxsIHh4eHg",
			"ciphertext": map[id.Curve25519]any{a.identity: map[string]any{"type": 0, "body": "AwoganVuaw"}},
		}})
		facts.ToDevice = append(facts.ToDevice, raw)
	}
	if err := a.take(facts); err != nil {
		t.Fatal(err)
	}
	b.reaches("hello", a.Device)
	a.receives(1)
}

// A device that exists sends what cannot be decrypted, again and again: one new session is made.
func TestBrokenSessionIsReplacedOnce(t *testing.T) {
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	a.reaches("hello", b.Device)
	b.receives(1)
	if _, err := b.db.Exec("DELETE FROM crypto_olm_session"); err != nil {
		t.Fatal(err)
	}
	b.store.InitFields()
	for range 20 {
		a.reaches("lost", b.Device)
		if err := b.sync(); err != nil {
			t.Fatal(err)
		}
	}
	a.until("dummy", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.inbox[a.Device]) > 0 || a.poke() })
	if got := a.receives(1)[0]; got.Type != "m.dummy" {
		t.Fatalf("got %+v", got)
	}
	b.mu.Lock()
	before := len(b.got)
	b.mu.Unlock()
	a.reaches("found", b.Device)
	b.receives(before + 1)
	if claims := f.count("keys/claim"); claims != 2 {
		t.Errorf("%d claims", claims)
	}
}

// poke has until look again soon.
func (p *party) poke() bool {
	time.AfterFunc(10*time.Millisecond, func() { p.note(func() {}) })
	return false
}

func TestOneTimeKeysAreReplenished(t *testing.T) {
	f := newFake(t)
	a := f.party("@a:x", "A")
	if n := len(f.oneTime[a.Device]); n != oneTimeKeysWanted || len(f.fallback[a.Device]) != 1 {
		t.Fatalf("%d one-time keys, fallback %v", n, f.fallback[a.Device])
	}
	fallback := fmt.Sprint(f.fallback[a.Device])
	for name := range f.oneTime[a.Device] {
		if len(f.oneTime[a.Device]) > 10 {
			delete(f.oneTime[a.Device], name)
		}
	}
	if err := a.take(SyncFacts{Asked: time.Now(), OneTimeKeys: 10, FallbackUsed: true}); err != nil {
		t.Fatal(err)
	}
	a.running.Wait()
	if n := len(f.oneTime[a.Device]); n != oneTimeKeysWanted {
		t.Errorf("%d one-time keys", n)
	}
	if fmt.Sprint(f.fallback[a.Device]) == fallback {
		t.Error("the fallback key was not replaced")
	}
	// What a sync says that began before that is no longer true.
	uploads := f.count("keys/upload")
	if err := a.take(SyncFacts{Asked: time.Now().Add(-time.Minute), OneTimeKeys: 10}); err != nil {
		t.Fatal(err)
	}
	a.running.Wait()
	if f.count("keys/upload") != uploads {
		t.Error("uploaded for an old count")
	}
	// A server that has other keys under these names.
	f.override = func(_ context.Context, path string, _ []byte) (wire.HTTPResponse, bool) {
		return wire.HTTPResponse{Status: 400, Body: []byte(`{"errcode":"M_UNKNOWN"}`)}, path == "keys/upload"
	}
	take := func() map[string]json.RawMessage {
		f.oneTime[a.Device] = nil
		if err := a.take(SyncFacts{Asked: time.Now(), OneTimeKeys: 0}); err != nil {
			t.Fatal(err)
		}
		a.running.Wait()
		return f.oneTime[a.Device]
	}
	if n := len(take()); n != 0 {
		t.Fatalf("%d keys", n)
	}
	f.override = nil
	if n := len(take()); n != oneTimeKeysWanted {
		t.Errorf("%d keys after a refusal", n)
	}
}

func roomEvent(room id.RoomID, from *party, eventID string, content json.RawMessage) RoomEvent {
	return RoomEvent{Room: room, Event: wire.Event{Type: "m.room.encrypted", Sender: from.UserID, EventID: id.EventID(eventID), OriginServerTS: 7, Content: content}}
}

func TestRoomEvents(t *testing.T) {
	const room = "!r:x"
	f := newFake(t)
	a, b, c := f.party("@a:x", "A"), f.party("@b:y", "B"), f.party("@c:z", "C")
	all := []id.UserID{"@a:x", "@b:y", "@c:z"}
	encrypt := func(text string, users []id.UserID, readers ...wire.Device) json.RawMessage {
		t.Helper()
		out, lacking, err := a.EncryptEvent(a.ctx, room, text, wire.TypeEncryptionKeys, json.RawMessage(`{"text":"`+text+`"}`), users, readers)
		if err != nil || len(lacking) != 0 {
			t.Fatal(err, lacking)
		}
		return out
	}
	first := roomEvent(room, a, "$1", encrypt("one", all))
	if err := b.sync(first); err != nil {
		t.Fatal(err)
	}
	got := b.receives(1)[0]
	if text(got) != "one" || got.Room != room || got.Type != wire.TypeEncryptionKeys || got.SenderDevice != "A" || got.OriginServerTS != 7 {
		t.Fatalf("got %+v", got)
	}
	// The event comes before its key.
	if err := c.take(SyncFacts{OneTimeKeys: -1, Events: []RoomEvent{first}}); err != nil {
		t.Fatal(err)
	}
	c.receives(1)
	// The same ciphertext as another event, in another room, or as somebody else's.
	again, elsewhere, forged := first, first, first
	again.EventID, elsewhere.Room, forged.Sender = "$2", "!other:x", "@c:z"
	if err := b.sync(again, elsewhere, forged); err != nil {
		t.Fatal(err)
	}
	b.receives(1)
	session := gjson.GetBytes(first.Content, "session_id").Str
	if second := encrypt("two", all); gjson.GetBytes(second, "session_id").Str != session {
		t.Error("a new session though nobody left")
	}
	// c leaves: it gets no key of what comes then.
	third := roomEvent(room, a, "$3", encrypt("three", all[:2]))
	if gjson.GetBytes(third.Content, "session_id").Str == session {
		t.Fatal("the session of a leaver goes on")
	}
	if err := b.sync(third); err != nil {
		t.Fatal(err)
	}
	if text(b.receives(2)[1]) != "three" {
		t.Error("b does not read on")
	}
	if err := c.sync(third); err != nil {
		t.Fatal(err)
	}
	c.receives(1)
	// b logs out.
	f.mu.Lock()
	delete(f.devices["@b:y"], "B")
	f.mu.Unlock()
	a.DevicesChanged("@b:y")
	if fourth := encrypt("four", all[:2]); gjson.GetBytes(fourth, "session_id").Str == gjson.GetBytes(third.Content, "session_id").Str {
		t.Error("the session of a device that is gone goes on")
	}
}

// A device that comes late, or could not be reached, is given the session of an event when that is
// sent again: it can read that one, and none of before.
func TestRoomEventIsReadableInTheEnd(t *testing.T) {
	const room = "!r:x"
	f := newFake(t)
	a, b := f.party("@a:x", "A"), f.party("@b:y", "B")
	late := wire.Device{UserID: "@c:z", DeviceID: "C"}
	all := []id.UserID{"@a:x", "@b:y", "@c:z"}
	encrypt := func(txn string) (json.RawMessage, []wire.Delivery) {
		t.Helper()
		out, lacking, err := a.EncryptEvent(a.ctx, room, txn, wire.TypeEncryptionKeys, json.RawMessage(`{"text":"`+txn+`"}`), all, []wire.Device{b.Device, late})
		if err != nil {
			t.Fatal(err)
		}
		return out, lacking
	}
	before, _ := encrypt("before")
	first, lacking := encrypt("one")
	if len(lacking) != 1 || lacking[0].Device != late || lacking[0].Reason != unknownDevice {
		t.Fatalf("lacking %+v", lacking)
	}
	c := f.party("@c:z", "C")
	a.DevicesChanged("@c:z")
	again, lacking := encrypt("one")
	if len(lacking) != 0 || string(again) != string(first) {
		t.Fatalf("lacking %+v, the same event: %t", lacking, string(again) == string(first))
	}
	if err := c.sync(roomEvent(room, a, "$0", before), roomEvent(room, a, "$1", first)); err != nil {
		t.Fatal(err)
	}
	if got := c.receives(1)[0]; text(got) != "one" {
		t.Errorf("read %q", text(got))
	}
	if _, lacking = encrypt("before"); len(lacking) != 0 {
		t.Fatalf("lacking %+v", lacking)
	}
	if err := c.sync(roomEvent(room, a, "$0", before)); err != nil {
		t.Fatal(err)
	}
	c.receives(2)
	if err := b.sync(roomEvent(room, a, "$0", before), roomEvent(room, a, "$1", first)); err != nil {
		t.Fatal(err)
	}
	b.receives(2)
}

func TestCrossSigning(t *testing.T) {
	f := newFake(t)
	plain, b := f.party("@a:x", "PLAIN"), f.party("@b:y", "B")
	// Another client of the account has set up cross-signing and secret storage.
	client, err := mautrix.NewClient("http://homeserver.invalid", "@a:x", "unused")
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = "OTHER"
	client.Client = &http.Client{Transport: transport{func(ctx context.Context, h wire.HTTPRequest) wire.HTTPResponse {
		return f.do(ctx, wire.Device{UserID: "@a:x", DeviceID: "OTHER"}, h)
	}}}
	other := crypto.NewOlmMachine(client, nil, crypto.NewMemoryStore(nil), noRooms{})
	if err := other.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	recoveryKey, _, err := other.GenerateAndUploadCrossSigningKeys(t.Context(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	stored := inFile(t, "a.db")
	withKey := func(c *Config) { stored(c); c.RecoveryKey = Secret(recoveryKey) }
	signed := f.party("@a:x", "SIGNED", withKey)
	for i, from := range []*party{plain, signed} {
		from.reaches("hello", b.Device)
		if got := b.receives(i + 1)[i]; got.CrossSigned != (from == signed) {
			t.Errorf("%s is cross-signed: %t", got.SenderDevice, got.CrossSigned)
		}
	}
	// Once is enough.
	uploads := f.count("keys/signatures/upload")
	signed.stop()
	f.party("@a:x", "SIGNED", withKey)
	if f.count("keys/signatures/upload") != uploads {
		t.Error("signed again")
	}
	for what, wrong := range map[string]Secret{"junk": "junk", "another": "EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d"} {
		p, err := f.open("@a:x", id.DeviceID("WRONG "+what), func(c *Config) { c.RecoveryKey = wrong })
		if err != nil {
			t.Fatal(err)
		}
		var e *ConfigError
		if err := p.Start(p.ctx); !errors.As(err, &e) || e.Path != "/recovery_key" {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The account has been given other signing keys since, and the secret storage has those of before.
	published := maps.Clone(f.signing["self_signing_keys"])
	f.signing["self_signing_keys"]["@a:x"] = nil
	late, err := f.open("@a:x", "LATE", func(c *Config) { c.RecoveryKey = Secret(recoveryKey) })
	if err != nil {
		t.Fatal(err)
	}
	var unsigned *ConfigError
	if err := late.Start(late.ctx); !errors.As(err, &unsigned) || unsigned.Path != "/recovery_key" || !strings.Contains(unsigned.Message, "published") {
		t.Errorf("signed by keys that are not published: %v", err)
	}
	f.signing["self_signing_keys"] = published
	p, err := f.open("@nobody:x", "NEW", func(c *Config) { c.RecoveryKey = Secret(recoveryKey) })
	if err != nil {
		t.Fatal(err)
	}
	f.account = map[string]json.RawMessage{}
	var e *ConfigError
	if err := p.Start(p.ctx); !errors.As(err, &e) || e.Path != "/recovery_key" {
		t.Errorf("no secret storage: %v", err)
	}
	// A self-signing key that the master key has not signed vouches for nobody.
	genuine := f.signing["self_signing_keys"]["@a:x"]
	for _, name := range gjson.GetBytes(genuine, "keys.@values").Array() {
		f.signing["self_signing_keys"]["@a:x"] = json.RawMessage(strings.ReplaceAll(string(genuine), name.Str, string(crypto.NewOlmAccount().SigningKey())))
	}
	b.DevicesChanged("@a:x")
	_ = b.query(b.ctx, []id.UserID{"@a:x"})
	if b.lists.of("@a:x").selfSigning != "" {
		t.Error("a self-signing key that the master key has not signed counts")
	}
	f.signing["self_signing_keys"]["@a:x"] = genuine
	f.signing["master_keys"]["@a:x"] = json.RawMessage(strings.ReplaceAll(string(f.signing["master_keys"]["@a:x"]), `"master"`, `"self_signing"`))
	b.DevicesChanged("@a:x")
	_ = b.query(b.ctx, []id.UserID{"@a:x"})
	if b.lists.of("@a:x").selfSigning != "" {
		t.Error("a self-signing key without a master key counts")
	}
}

// Whatever answers, each device is told about once, nobody panics, and afterwards all works.
func TestHostileAnswers(t *testing.T) {
	deep := strings.Repeat("[", 50_000) + strings.Repeat("]", 50_000)
	bodies := []string{
		``, `null`, `[]`, `7`, `"x"`, `{`, `{}`, `{"device_keys":7,"one_time_keys":7,"failures":7}`,
		`{"device_keys":[],"one_time_keys":[],"failures":[]}`, `{"device_keys":{"@b:y":null},"one_time_keys":{"@b:y":null}}`,
		`{"device_keys":{"@b:y":{"B":7}},"one_time_keys":{"@b:y":{"B":7}}}`,
		`{"device_keys":{"@b:y":{"B":{"keys":[1],"user_id":{},"device_id":null,"signatures":"x"}}},"one_time_keys":{"@b:y":{"B":{"signed_curve25519:A":[]}}}}`,
		`{"device_keys":{"@b:y":{"B":{"keys":{"curve25519:B":{},"ed25519:B":[]},"user_id":"@b:y","device_id":"B"}}},"one_time_keys":{"@b:y":{"B":{"":{"key":1}}}}}`,
		`{"device_keys":{"@b:y":{"":{},"C":{}},"@other:z":{"X":{}}},"master_keys":{"@b:y":7},"self_signing_keys":{"@b:y":{"keys":{"a":"b","c":"d"}}}}`,
		`{"device_keys":{"@b:y":{"B":` + deep + `}},"one_time_keys":{"@b:y":{"B":` + deep + `}}}`,
		`{"device_keys":{"@b:y":{"B":{"keys":{"curve25519:B":"` + strings.Repeat("A", 1<<20) + `","ed25519:B":"AAAA"},"user_id":"@b:y","device_id":"B","signatures":{"@b:y":{"ed25519:B":"AAAA"}}}}}}`,
		`{"errcode":"M_UNKNOWN"}`,
	}
	statuses := []wire.HTTPResponse{{NetworkError: "reset"}, {Status: 500}, {Status: 429, Body: []byte(`{"errcode":"M_LIMIT_EXCEEDED"}`)}, {Status: 413}, {Status: 302}}
	for _, b := range bodies {
		statuses = append(statuses, wire.HTTPResponse{Status: 200, Body: []byte(b)})
	}
	for _, call := range []string{"keys/query", "keys/claim", "sendToDevice", "keys/upload"} {
		t.Run(call, func(t *testing.T) {
			f := newFake(t)
			b := f.party("@b:y", "B")
			a, err := f.open("@a:x", "A")
			if err != nil {
				t.Fatal(err)
			}
			for i, hostile := range statuses {
				if call == "keys/upload" { // which the others do once
					if a, err = f.open("@a:x", id.DeviceID(fmt.Sprint("A", i))); err != nil {
						t.Fatal(err)
					}
				}
				f.override = func(_ context.Context, path string, _ []byte) (wire.HTTPResponse, bool) {
					return hostile, path == call
				}
				if err := a.Start(a.ctx); err != nil && errors.As(err, new(*ConfigError)) {
					t.Errorf("%s taken for a wrong setting: %v", hostile.Body, err)
				}
				if fates := a.say("hello", b.Device); len(fates) != 1 {
					t.Errorf("%.80s: %v", hostile.Body, fates)
				}
				f.override = nil
				if err := a.Start(a.ctx); err != nil {
					t.Errorf("%.80s, then %v", hostile.Body, err)
				}
				a.DevicesChanged("@b:y")
				a.reaches("now", b.Device)
				if _, err := a.db.Exec("DELETE FROM crypto_olm_session"); err != nil {
					t.Fatal(err)
				}
				a.store.InitFields()
				a.DevicesChanged("@b:y")
			}
		})
	}
}

// FuzzToDevice has a device that exists send anything.
func FuzzToDevice(f *testing.F) {
	server := &fake{t: &testing.T{}}
	*server = *newFake(&testing.T{})
	machine := func(user id.UserID, device id.DeviceID) *Machine {
		m, err := Open(context.Background(), Config{
			UserID: user, DeviceID: device, Go: func(g func()) { g() },
			Do: func(ctx context.Context, h wire.HTTPRequest) wire.HTTPResponse {
				return server.do(ctx, wire.Device{UserID: user, DeviceID: device}, h)
			},
		})
		if err != nil {
			f.Fatal(err)
		}
		if err := m.Start(context.Background()); err != nil {
			f.Fatal(err)
		}
		f.Cleanup(m.Close)
		return m
	}
	a, b := machine("@a:x", "A"), machine("@b:y", "B")
	b.Send(context.Background(), "t", json.RawMessage(`{}`), []wire.Device{{UserID: "@a:x", DeviceID: "A"}}, func([]wire.Delivery) {})
	_ = a.query(context.Background(), []id.UserID{"@b:y"})
	genuine := gjson.GetBytes(server.inbox[wire.Device{UserID: "@a:x", DeviceID: "A"}][0], "content.ciphertext."+string(a.identity)+".body").Str
	for _, body := range []string{genuine, "", "AwohAA", "AAAA", "A", strings.Repeat("A", 5000)} {
		f.Add(body, 0, "m.olm.v1.curve25519-aes-sha2", false)
		f.Add(body, 1, "m.megolm.v1.aes-sha2", true)
	}
	f.Fuzz(func(t *testing.T, body string, kind int, algorithm string, inRoom bool) {
		content, err := json.Marshal(map[string]any{
			"algorithm": algorithm, "sender_key": b.identity, "session_id": body,
			"ciphertext": map[id.Curve25519]any{a.identity: map[string]any{"type": kind, "body": body}},
		})
		if err != nil {
			return
		}
		raw, err := json.Marshal(map[string]any{"type": "m.room.encrypted", "sender": "@b:y", "content": json.RawMessage(content)})
		if err != nil {
			return
		}
		facts := SyncFacts{OneTimeKeys: -1, ToDevice: []json.RawMessage{raw, json.RawMessage(body)}}
		if inRoom {
			group, _ := json.Marshal(map[string]any{"algorithm": algorithm, "session_id": body, "ciphertext": body})
			facts.Events = []RoomEvent{{Room: "!r:x", Event: wire.Event{Sender: "@b:y", Content: group}}}
		}
		if err := a.Sync(context.Background(), facts, func([]Decrypted) {}); err != nil {
			t.Fatal(err)
		}
	})
}
