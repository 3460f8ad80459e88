package client

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/internal/homeserver"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

const v3 = "/_matrix/client/v3"

// home is the embedded homeserver, and what it was asked for.
type home struct {
	t    *testing.T
	url  string
	hook func(http.ResponseWriter, *http.Request) bool // answers first where it wants to

	mu   sync.Mutex
	asks []*http.Request
}

func newHome(t *testing.T) *home {
	h := &home{t: t}
	server := homeserver.New(homeserver.Options{ServerName: "x"})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.asks = append(h.asks, r)
		h.mu.Unlock()
		if h.hook == nil || !h.hook(w, r) {
			server.ServeHTTP(w, r)
		}
	}))
	h.url = web.URL
	t.Cleanup(func() { web.CloseClientConnections(); server.Close(); web.Close() })
	return h
}

// asked are the requests of an account whose path has a part.
func (h *home) asked(token, part string) (found []*http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.asks {
		if r.Header.Get("Authorization") == "Bearer "+token && strings.Contains(r.URL.Path, part) {
			found = append(found, r)
		}
	}
	return found
}

func (h *home) ask(token, method, path, body string) gjson.Result {
	h.t.Helper()
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	var v json.RawMessage
	if err := json.NewDecoder(a.Body).Decode(&v); err != nil || a.StatusCode != 200 {
		h.t.Fatalf("%s: %d %s %v", path, a.StatusCode, v, err)
	}
	return gjson.ParseBytes(v)
}

// account is a user with one device.
type account struct {
	user   id.UserID
	device id.DeviceID
	token  string
}

func (h *home) register(name string) account {
	h.t.Helper()
	a := h.ask("", "POST", v3+"/register", `{"username":"`+name+`","password":"p","auth":{"type":"m.login.dummy"}}`)
	return account{id.UserID(a.Get("user_id").Str), id.DeviceID(a.Get("device_id").Str), a.Get("access_token").Str}
}

func (h *home) createRoom(by account, encrypted bool) string {
	h.t.Helper()
	state := ""
	if encrypted {
		state = `,"initial_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]`
	}
	return h.ask(by.token, "POST", v3+"/createRoom",
		`{"preset":"public_chat","power_level_content_override":{"events":{"org.matrix.msc3401.call.member":0}}`+state+`}`).Get("room_id").Str
}

// caller is a client in a call.
type caller struct {
	*driver
	account
	s *Session
}

func (h *home) client(a account, set ...func(*Config)) *caller {
	h.t.Helper()
	cfg := Config{HomeserverURL: h.url, UserID: a.user, DeviceID: a.device, AccessToken: Secret(a.token)}
	for _, s := range set {
		s(&cfg)
	}
	return &caller{driver: newDriver(h.t, cfg), account: a}
}

// join enters the call of a room.
func (c *caller) join(room, params string) *caller {
	c.t.Helper()
	var err error
	if c.s, err = c.OpenSession(room, session.OpenOptions{}); err != nil {
		c.t.Fatal(err)
	}
	if i, err := c.Info(); err != nil || i.State == string(created) {
		c.start()
	}
	p := session.JoinParams{FociPreferred: []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"https://lk"}`)}}
	if err := json.Unmarshal([]byte(params), &p); err != nil {
		c.t.Fatal(err)
	}
	if err := c.s.Join(p); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// holdsKeyOf waits until a caller holds the key that another encrypts with.
func (c *caller) holdsKeyOf(other *caller) {
	c.t.Helper()
	held := func() bool {
		ours, err := other.s.ParticipantKeys(other.user, other.device)
		if err != nil {
			c.t.Fatal(err)
		}
		theirs, err := c.s.ParticipantKeys(other.user, other.device)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, k := range ours {
			for _, l := range theirs {
				if k.InUse && k.Index == l.Index && k.Key == l.Key {
					return true
				}
			}
		}
		return false
	}
	for !held() { // it may arrive before the other begins to use it
		c.waitEither(other.driver, "key of "+string(other.user), func(e Event) bool { return e.Name == session.EventEncryptionKeyChanged })
	}
}

func inStore(t *testing.T) func(*Config) {
	path := filepath.Join(t.TempDir(), "store.db")
	return func(c *Config) { c.StorePath, c.PickleKey = path, "p" }
}

func TestKeysOfAnEncryptedCall(t *testing.T) {
	h := newHome(t)
	a, b := h.register("a"), h.register("b")
	room := h.createRoom(a, true)
	h.ask(b.token, "POST", v3+"/join/"+room, "{}")
	stored := inStore(t)
	first := h.client(a).join(room, `{"use_key_delay_ms":0}`) // a new key is in use when it arrives
	second := h.client(b, stored).join(room, `{}`)
	first.holdsKeyOf(second)
	second.holdsKeyOf(first)
	for range 2 {
		if err := second.StopWait(patience); err != nil {
			t.Fatal(err)
		}
		first.waitCount(1)
		second = h.client(b, stored).join(room, `{}`)
		first.holdsKeyOf(second)
		second.holdsKeyOf(first)
	}
	if n := len(h.asked(b.token, "/keys/upload")); n > 2 {
		t.Errorf("%d uploads of one device", n)
	}
}

// A key that cannot be decrypted is sent once more: its recipient begins a new Olm session, and
// whoever holds the other end knows by that.
func TestKeyThatCannotBeDecryptedComesAgain(t *testing.T) {
	h := newHome(t)
	a, b := h.register("a"), h.register("b")
	room := h.createRoom(a, true)
	h.ask(b.token, "POST", v3+"/join/"+room, "{}")
	var garbled atomic.Bool
	h.hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer "+a.token && strings.Contains(r.URL.Path, "/sendToDevice/") && !garbled.Swap(true) {
			body, _ := io.ReadAll(r.Body)
			middle := len(body) / 2 // of the ciphertext, which is nearly all
			body[middle] = 'A' + (body[middle]-'A'+1)%26
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		return false
	}
	first, second := h.client(a).join(room, `{}`), h.client(b).join(room, `{}`)
	first.holdsKeyOf(second)
	second.holdsKeyOf(first)
	if !garbled.Load() {
		t.Error("nothing was garbled")
	}
}

// The device is logged out, with which its homeserver forgets it, and logged in again under its name.
func TestKeysAfterTheDeviceWasLoggedOut(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*Config){"store": inStore(t), "memory": func(*Config) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			a, b := h.register("a"), h.register("b")
			room := h.createRoom(a, true)
			h.ask(b.token, "POST", v3+"/join/"+room, "{}")
			soon := `{"use_key_delay_ms":0}` // a new key is in use when it arrives
			first, second := h.client(a).join(room, soon), h.client(b, set).join(room, `{}`)
			first.holdsKeyOf(second)
			second.holdsKeyOf(first)
			h.ask(b.token, "POST", v3+"/logout", "{}")
			second.wait("end of the call", func(e Event) bool { _, ok := e.Data.(session.Left); return ok })
			in := h.ask("", "POST", v3+"/login", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"b"},"password":"p","device_id":"`+string(b.device)+`"}`)
			if err := second.SetAccessToken(in.Get("access_token").Str, ""); err != nil {
				t.Fatal(err)
			}
			if err := second.s.Join(session.JoinParams{FociPreferred: []json.RawMessage{}}); err != nil {
				t.Fatal(err)
			}
			second.holdsKeyOf(first)
			first.holdsKeyOf(second)
		})
	}
}

// A key that is still on its way when we leave, because a server is slow, is not sent after that.
func TestNoKeyIsSentAfterLeave(t *testing.T) {
	h := newHome(t)
	a, b := h.register("a"), h.register("b")
	room := h.createRoom(a, true)
	h.ask(b.token, "POST", v3+"/join/"+room, "{}")
	claiming, over := make(chan struct{}, 10), make(chan struct{}, 10)
	h.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/sendToDevice/") && r.Header.Get("Authorization") == "Bearer "+b.token {
			answer(w, 502, map[string]any{}) // or a could use the session that b has begun, and claim nothing
			return true
		}
		if r.Header.Get("Authorization") != "Bearer "+a.token || !strings.HasSuffix(r.URL.Path, "/keys/claim") {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		claiming <- struct{}{}
		<-r.Context().Done()
		over <- struct{}{}
		return true
	}
	h.client(b).join(room, `{}`)
	c := h.client(a).join(room, `{}`)
	gets(t, claiming, "claim")
	if err := c.s.Leave(); err != nil {
		t.Fatal(err)
	}
	c.wait("left", func(e Event) bool { _, ok := e.Data.(session.Left); return ok })
	c.mu.Lock()
	sending := len(c.sending)
	c.mu.Unlock()
	if sending != 0 {
		t.Errorf("%d requests go on after leave", sending)
	}
	gets(t, over, "end of the claim")
	if sent := h.asked(a.token, "/sendToDevice/"); len(sent) != 0 {
		t.Errorf("%d messages were sent", len(sent))
	}
}

// What does not fit is told where the host looks: with a store before anything else happens.
func TestEncryptionThatCannotBe(t *testing.T) {
	h := newHome(t)
	a, b := h.register("a"), h.register("b")
	room := h.createRoom(a, true)
	h.ask(b.token, "POST", v3+"/join/"+room, "{}")
	other := h.client(b).join(room, `{}`)
	other.waitCount(1)
	before := h.client(a).join(room, `{}`)
	other.holdsKeyOf(before)
	if err := before.StopWait(patience); err != nil {
		t.Fatal(err)
	}
	// The keys that this device has published were those of the process before.
	again := h.client(a).join(room, `{}`)
	e := again.wait("error of encryption", func(e Event) bool {
		data, _ := e.Data.(map[string]any)
		return e.Name == "sync_state" && data["error"] != nil
	}).Data.(map[string]any)["error"].(*Error)
	if e.Path != "/store_path" || e.Status != ErrInvalidArgument {
		t.Errorf("error %+v", e)
	}
	u := again.wait("undelivered", func(e Event) bool { return e.Name == session.EventEncryptionKeyUndelivered }).Data.(session.KeyUndelivered)
	if !strings.Contains(u.Reason, "has published") {
		t.Errorf("reason %q", u.Reason)
	}
	with := h.client(a, inStore(t)).start()
	if e := with.waitSync("error"); e == nil || e.Path != "/store_path" {
		t.Errorf("error %+v", e)
	}
	if n := len(h.asked(a.token, "/sync")); n == 0 {
		t.Error("no sync was asked for at all")
	}
}

// Room events are asked for while they are needed; with keys they arrive, in clear in a room that
// is not encrypted.
func TestKeysByRoomEvents(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		h := newHome(t)
		a, b := h.register("a"), h.register("b")
		room := h.createRoom(a, encrypted)
		h.ask(b.token, "POST", v3+"/join/"+room, "{}")
		first := h.client(a)
		first.start()
		first.waitSync("syncing")
		filters := func() (with int) {
			for _, r := range h.asked(a.token, "/sync") {
				if strings.Contains(r.URL.Query().Get("filter"), `"m.room.encrypted"`) {
					with++
				}
			}
			return with
		}
		if filters() != 0 {
			t.Error("room events are asked for without a call")
		}
		// The first answer to a key is lost: it is sent again under its name.
		h.ask("", "POST", "/_faults", `{"kind":"drop","when":"after","class":"send","user":"`+string(a.user)+`"}`)
		// However long the other takes to come, and whenever we are heard of, there is one key.
		const params = `{"key_transport":"room_event","manage_media_keys":true,"network_error_retry_ms":100,"key_rotation_grace_ms":600000,"delayed_leave_delay_ms":600000}`
		first.join(room, params)
		second := h.client(b).join(room, params)
		first.wait("delivery", func(e Event) bool {
			u, ok := e.Data.(session.KeyUndelivered)
			return ok && u.Delivered
		})
		second.holdsKeyOf(first)
		first.holdsKeyOf(second)
		if filters() == 0 {
			t.Error("room events are not asked for in a call")
		}
		names := map[string]bool{}
		sends := h.asked(a.token, "/send/")
		for _, r := range sends {
			names[r.URL.Path] = true
			if strings.Contains(r.URL.Path, "m.room.encrypted") != encrypted {
				t.Errorf("sent as %s", r.URL.Path)
			}
		}
		if len(sends) < 2 || len(names) != 1 {
			t.Errorf("%d sends under %d names", len(sends), len(names))
		}
	}
}

// A store that fails must not lose messages: the homeserver is not told that they have arrived.
func TestMessagesAreNotAcknowledgedBeforeTheyAreStored(t *testing.T) {
	h := newHome(t)
	a := h.register("a")
	polling := make(chan struct{}, 100)
	h.hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("since") != "" {
			polling <- struct{}{}
		}
		return false
	}
	c := h.client(a, inStore(t)).start()
	gets(t, polling, "long poll")
	c.mu.Lock()
	c.crypt.machine.Close()
	c.mu.Unlock()
	before := len(h.asked(a.token, "/sync"))
	h.ask(a.token, "PUT", v3+"/sendToDevice/m.test/1", `{"messages":{"`+string(a.user)+`":{"`+string(a.device)+`":{"x":1}}}}`)
	for range 2 {
		e := c.wait("error of the store", func(e Event) bool {
			data, _ := e.Data.(map[string]any)
			return e.Name == "sync_state" && data["error"] != nil
		}).Data.(map[string]any)["error"].(*Error)
		if !strings.Contains(e.Message, "store") {
			t.Errorf("error %+v", e)
		}
	}
	since := map[string]bool{}
	for _, r := range h.asked(a.token, "/sync")[before-1:] {
		since[r.URL.Query().Get("since")] = true
	}
	if len(since) != 1 {
		t.Errorf("synced on since %v", since)
	}
}

// A client that is freed in the middle of a call leaves nothing running: neither its own goroutines
// nor those of the store.
func TestNothingRunsOnAfterFree(t *testing.T) {
	h := newHome(t)
	a, b := h.register("a"), h.register("b")
	room := h.createRoom(a, true)
	h.ask(b.token, "POST", v3+"/join/"+room, "{}")
	first, second := h.client(a, inStore(t)).join(room, `{}`), h.client(b).join(room, `{}`)
	first.holdsKeyOf(second)
	second.holdsKeyOf(first)
	first.Close()
	second.Close()
	stacks := func() string {
		var all strings.Builder
		_ = pprof.Lookup("goroutine").WriteTo(&all, 2)
		return all.String()
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		all := stacks()
		left := slices.DeleteFunc(strings.Split(all, "\n\n"), func(stack string) bool {
			return strings.Contains(stack, "TestNothingRunsOnAfterFree") || !strings.Contains(stack, "core/client.(*Client)") &&
				!strings.Contains(stack, "mautrix") && !strings.Contains(stack, "database/sql")
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
		}
	}
}

// JSON that nests deeper than the stack is high ends a request, not the process.
func TestDeepAnswersAreRefused(t *testing.T) {
	h := newHome(t)
	a := h.register("a")
	deep := strings.Repeat("[", 20<<20)
	var where atomic.Value // what one client asks may arrive after its end
	h.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, where.Load().(string)) {
			return false
		}
		_, _ = w.Write([]byte(deep))
		return true
	}
	for _, path := range []string{"/sync", "/keys/query", "/whoami"} {
		where.Store(path)
		c := h.client(a, inStore(t)).start()
		if e := c.waitSync("reconnecting"); e == nil || !strings.Contains(e.Message, "deeper") {
			t.Errorf("%s: error %+v", path, e)
		}
		c.Close()
	}
}
