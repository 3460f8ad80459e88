package schema_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"libmatrixrtc/core/client"
	"libmatrixrtc/core/session"
	"libmatrixrtc/internal/homeserver"

	"github.com/tidwall/gjson"
)

// What passes: the same calls as the shims of capi make, with every argument, result, error and
// event held against its schema.

// host is a program that uses the library.
type host struct {
	t  *testing.T
	c  *client.Client
	s  *client.Session
	mu sync.Mutex

	seq      uint64
	events   []gjson.Result
	requests []gjson.Result
	changed  chan struct{}
	sabotage string // an event at which the sink panics
}

// decode checks an argument and reads it as strictly as the ABI does.
func decode[T any](t *testing.T, function, text string) (v T) {
	t.Helper()
	check(t, "argument."+function, []byte(text))
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func newHost(t *testing.T, config string) *host {
	t.Helper()
	h := &host{t: t, changed: make(chan struct{})}
	c, err := client.New(decode[client.Config](t, "client_new", config), h.sink, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	h.c = c
	return h
}

// sink puts the envelope around an event, as capi does.
func (h *host) sink(e client.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Name == h.sabotage {
		h.sabotage = ""
		panic("sabotage")
	}
	h.seq++
	whole := map[string]any{}
	raw, err := json.Marshal(e.Data)
	if err == nil {
		err = json.Unmarshal(raw, &whole)
	}
	if err != nil {
		h.t.Errorf("%s: %v", e.Name, err)
		return
	}
	for name, v := range map[string]any{"event": e.Name, "client": 1, "seq": h.seq, "ts": e.TS, "room_id": e.RoomID, "session": e.Session} {
		if _, taken := whole[name]; taken {
			h.t.Errorf("%s has a field %s of its own", e.Name, name)
		}
		if v != uint64(0) && fmt.Sprint(v) != "" {
			whole[name] = v
		}
	}
	check(h.t, "event."+e.Name, whole)
	text, _ := json.Marshal(whole)
	v := gjson.ParseBytes(text)
	h.events = append(h.events, v)
	if e.Name == "request" {
		h.requests = append(h.requests, v)
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// ok checks a result; fails checks an error.
func (h *host) ok(function string, result any, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %v", function, err)
	}
	if result != nil {
		check(h.t, "result."+function, result)
	}
}

func (h *host) fails(status client.Status, err error) {
	h.t.Helper()
	e := client.AsError(err)
	if e == nil || e.Status != status {
		h.t.Fatalf("expected %v, got %v", status, err)
	}
	check(h.t, "error", e)
}

// wait answers the first event from now on, or among those not waited for yet, that fits.
func (h *host) wait(name, fits string) gjson.Result {
	h.t.Helper()
	const patience = 2 * time.Minute
	expired := time.After(patience)
	for {
		h.mu.Lock()
		changed := h.changed
		for i, e := range h.events {
			if e.Get("event").Str == name && (fits == "" || says(e.Get(fits))) {
				h.events = h.events[i+1:]
				h.mu.Unlock()
				return e
			}
		}
		h.mu.Unlock()
		select {
		case <-changed:
		case <-expired:
			h.t.Fatalf("no %s %s within %v, but %v", name, fits, patience, h.events)
		}
	}
}

// says: the field is there, and neither false nor null nor 0.
func says(v gjson.Result) bool {
	return v.Exists() && v.Raw != "false" && v.Raw != "null" && v.Raw != "0"
}

func (h *host) getters() {
	h.t.Helper()
	info, err := h.c.Info()
	h.ok("client_info", info, err)
	transports, known, err := h.c.Transports()
	h.ok("client_transports", map[string]any{"transports": transports, "known": known}, err)
	calls, err := h.c.Sessions()
	h.ok("client_sessions", map[string]any{"sessions": calls}, err)
	if h.s == nil {
		return
	}
	i, err := h.s.Info()
	h.ok("session_info", i, err)
	list, err := h.s.Memberships()
	h.ok("session_memberships", map[string]any{"memberships": list}, err)
	keys, err := h.s.EncryptionKeys()
	h.ok("session_encryption_keys", map[string]any{"keys": keys}, err)
	for _, m := range list {
		keys, err := h.s.ParticipantKeys(m.UserID, m.DeviceID)
		h.ok("session_participant_keys", map[string]any{"keys": keys}, err)
	}
	sfus, ignored, err := h.s.SFUs()
	h.ok("session_sfus", map[string]any{"sfus": sfus, "ignored": ignored}, err)
	snap, err := h.s.DebugSnapshot()
	h.ok("session_debug_snapshot", snap, err)
}

// --- host-driven, on a clock that stands still unless it is told

type manual struct {
	*host
	boot, wall int64
	answers    map[string]string // by kind: the answer to mrtc_client_respond without its id
	sent       map[string]string // the body of the last request of a kind
	event      int
}

const room = "!r:x"

var sfuToken = fmt.Sprintf(`"status":200,"body":{"url":"wss://sfu.x","jwt":"e30.%s.sig"}`, base64.RawURLEncoding.EncodeToString(
	[]byte(`{"sub":"@me:x:DEV","video":{"room":"R"},"exp":1770000000}`)))

func newManual(t *testing.T) *manual {
	h := &manual{
		host: newHost(t, `{"mode":"host_driven","clock":"manual","user_id":"@me:x","device_id":"DEV"}`),
		wall: 1_760_000_000_000, sent: map[string]string{},
		answers: map[string]string{
			"get_capabilities":   `"status":200,"body":{"capabilities":{}}`,
			"list_delayed":       `"status":200,"body":{"delayed_events":[{"delay_id":"old","room_id":"!r:x","type":"org.matrix.msc3401.call.member","state_key":"_@me:x_DEV_m.call","content":{}}]}`,
			"schedule_delayed":   `"status":200,"headers":{"Date":"Thu, 09 Oct 2025 08:53:20 GMT"},"body":{"delay_id":"d1"}`,
			"send_state":         `"status":200,"body":"{\"event_id\":\"$own\"}"`,
			"get_transports":     `"status":200,"body":{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://sfu.x"}]}`,
			"get_openid":         `"status":200,"body":{"access_token":"o","token_type":"Bearer","matrix_server_name":"x","expires_in":3600}`,
			"get_sfu_token":      sfuToken,
			"delegate_leave":     sfuToken,
			"get_room_member":    `"status":200,"body":{"membership":"join"}`,
			"get_joined_members": `"status":200,"body":{"joined":{"@b:x":{},"@c:x":{}}}`,
		},
	}
	h.advance(1000)
	return h
}

// advance tells the time in small steps, answering what is asked at each.
func (h *manual) advance(ms int64) {
	h.t.Helper()
	for end := h.boot + ms; h.boot < end; {
		step := min(end-h.boot, 500)
		h.boot, h.wall = h.boot+step, h.wall+step
		res, err := h.c.Advance(decode[client.AdvanceInput](h.t, "client_advance", fmt.Sprintf(`{"boot_ms":%d,"wall_ts":%d}`, h.boot, h.wall)))
		h.ok("client_advance", res, err)
		h.respond()
	}
}

// respond answers every request that waits.
func (h *manual) respond() {
	h.t.Helper()
	for {
		h.mu.Lock()
		if len(h.requests) == 0 {
			h.mu.Unlock()
			return
		}
		r := h.requests[0]
		h.requests = h.requests[1:]
		h.mu.Unlock()
		kind := r.Get("kind").Str
		h.sent[kind] = r.Get("http.body").Raw
		answer := h.answers[kind]
		if answer == "" {
			answer = `"status":200,"body":{}`
		}
		text := fmt.Sprintf(`{"id":%d,%s}`, r.Get("id").Uint(), answer)
		h.ok("client_respond", nil, h.c.Respond(decode[client.ResponseInput](h.t, "client_respond", text)))
	}
}

func (h *manual) feed(text string) {
	h.t.Helper()
	h.ok("client_feed", nil, h.c.Feed(decode[client.FeedInput](h.t, "client_feed", text)))
	h.respond()
}

// state is a state event.
func (h *manual) state(sender, typ, key, content string) string {
	h.event++
	return fmt.Sprintf(`{"type":%q,"sender":%q,"state_key":%q,"event_id":"$%d","origin_server_ts":%d,"content":%s}`,
		typ, sender, key, h.event, h.wall, content)
}

func (h *manual) member(user, device, content string) string {
	if content == "" {
		content = fmt.Sprintf(`{"application":"m.call","call_id":"","device_id":%q,"focus_active":{"type":"livekit"}}`, device)
	}
	return h.state(user, "org.matrix.msc3401.call.member", "_"+user+"_"+device+"_m.call", content)
}

func (h *manual) feedState(events ...string) {
	h.t.Helper()
	h.feed(fmt.Sprintf(`{"state":{"room_id":%q,"events":[%s]}}`, room, strings.Join(events, ",")))
}

// join opens the call of a room and joins it, seen by the homeserver.
func (h *manual) join(params string, encrypted bool) {
	h.t.Helper()
	s, err := h.c.OpenSession(room, decode[session.OpenOptions](h.t, "session_open", `{"application":"m.call","call_id":""}`))
	h.ok("session_open", nil, err)
	h.s = s
	h.getters()
	h.ok("session_join", nil, s.Join(decode[session.JoinParams](h.t, "session_join", params)))
	events := []string{h.state("@me:x", "m.room.create", "", `{"room_version":"11"}`), h.state("@me:x", "m.room.member", "@me:x", `{"membership":"join"}`)}
	if encrypted {
		events = append(events, h.state("@me:x", "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`))
	}
	h.feed(fmt.Sprintf(`{"sync":{"next_batch":"s1","rooms":{"join":{%q:{"state":{"events":[%s]}}}}}}`, room, strings.Join(events, ",")))
	h.wait("delay_id_changed", "delay_id")
	h.echo()
	h.wait("memberships_changed", "count")
	h.advance(1000)
}

// echo shows the membership that was sent last as the sync does.
func (h *manual) echo() {
	h.t.Helper()
	h.feedState(h.member("@me:x", "DEV", h.sent["send_state"]))
}

func hostDrivenCall(t *testing.T) {
	h := newManual(t)
	h.answers["encrypt_and_send_to_device"] = `"deliveries":[{"user_id":"@b:x","device_id":"B2","reason":"no_one_time_key"}],"more":false`
	h.join(`{"foci_preferred":[{"type":"livekit","livekit_service_url":"https://sfu.x"}],"foci_active":{"focus_selection":"oldest_membership"},
		"call_intent":"audio","application_data":{"x":1},"member_id":"m1","max_network_retries":1,"key_rotation_participant_limit":4}`, true)
	h.getters()

	// Others come, by state and by a sync with a gap; keys fail to reach one, and another's is missing.
	h.feed(fmt.Sprintf(`{"sync":{"next_batch":"s2","rooms":{"join":{%q:{"state":{"events":[%s]},"timeline":{"limited":true,"events":[]}}}}}}`, room, h.member("@b:x", "B1", "")))
	h.wait("memberships_changed", "joined.0")
	since := h.wall
	h.feedState(h.member("@b:x", "B2", ""), h.member("@c:x", "C1", `{"application":"m.call","call_id":"","device_id":7}`))
	h.wait("encryption_key_undelivered", "reason")
	h.advance(11_000)
	h.wait("encryption_key_missing", "missing")
	h.getters()
	h.answers["encrypt_and_send_to_device"] = `"deliveries":[{"user_id":"@b:x","device_id":"B1"},{"user_id":"@b:x","device_id":"B2"}]`
	h.advance(30_000)
	h.wait("encryption_key_undelivered", "delivered")
	h.feed(`{"to_device":[{"type":"io.element.call.encryption_keys","sender":"@b:x","sender_device":"B1","sender_key":"c","encrypted":true,"cross_signed":true,
		"content":{"keys":{"index":0,"key":"AAAAAAAAAAAAAAAAAAAAAA"},"member":{"id":"@b:x:B1","claimed_device_id":"B1"},"room_id":"!r:x","session":{"application":"m.call","call_id":"","scope":"m.room"},"sent_ts":1}}]}`)
	h.wait("encryption_key_changed", "key")
	h.feedState(h.member("@b:x", "B2", fmt.Sprintf(`{"application":"m.call","call_id":"","device_id":"B2","focus_active":{"type":"livekit","focus_selection":"multi_sfu"},
		"scope":"m.room","m.call.intent":"video","foci_preferred":[{"type":"livekit","livekit_service_url":"https://b.x"}],"io.other":[1],"created_ts":%d}`, since)))
	h.wait("memberships_changed", "updated.0")
	h.wait("sfus_changed", "added.0")
	h.enterSFUs()
	h.feedState(h.member("@b:x", "B3", ""))
	h.wait("key_rotation_suppressed_changed", "suppressed")
	h.feedState(h.member("@b:x", "B3", `{}`))
	h.wait("memberships_changed", "left.0")
	h.getters()
	h.ok("session_reemit_encryption_keys", nil, h.s.ReemitEncryptionKeys())
	h.ok("session_update_intent", nil, h.s.UpdateIntent(""))
	h.ok("session_update_application_data", nil, h.s.UpdateApplicationData(decode[map[string]json.RawMessage](t, "session_update_application_data", `{"y":2}`)))
	h.respond()
	h.echo()

	// The homeserver falls silent, then answers again; somebody removes us.
	restart := h.answers["restart_delayed"]
	h.answers["restart_delayed"] = `"network_error":"no route to host"`
	h.advance(20_000)
	h.wait("membership_manager_error", "recoverable")
	h.wait("probably_left", "probably_left")
	h.answers["restart_delayed"] = restart
	h.advance(20_000)
	h.feedState(h.state("@other:x", "org.matrix.msc3401.call.member", "_@me:x_DEV_m.call", `{}`))
	h.wait("membership_lost", "reason")
	h.advance(5000)
	h.echo()
	h.wait("rejoined", "")
	h.getters()

	h.ok("session_leave", nil, h.s.Leave())
	h.respond()
	h.wait("left", "sent")
	h.feedState(h.member("@me:x", "DEV", `{}`), h.member("@b:x", "B1", `{}`), h.member("@b:x", "B2", `{}`))
	h.wait("session_ended", "")
	h.getters()
	h.fails(client.ErrInvalidState, h.s.Leave())
	h.fails(client.ErrWouldDeadlock, func() error { _, err := h.s.LeaveWait(0); return err }())
	h.fails(client.ErrNotFound, h.c.Respond(client.ResponseInput{ID: 1 << 40, Status: 200}))
	h.fails(client.ErrInvalidArgument, h.s.Join(session.JoinParams{Dialect: "klingon"}))
	h.ok("client_stop", nil, h.c.Stop())
	h.getters()
}

// enterSFUs gets tokens, is refused one, and hands over the delayed leave.
func (h *manual) enterSFUs() {
	h.t.Helper()
	type which struct {
		ServiceURL string `json:"service_url"`
	}
	own := decode[which](h.t, "session_sfu_token", `{}`)
	if token, err := h.s.SFUToken(own.ServiceURL); token != nil || err != nil {
		h.t.Fatalf("a token at once: %v", err)
	}
	h.respond()
	refreshed := h.wait("sfu_token_refreshed", "jwt")
	token, err := h.s.SFUToken(own.ServiceURL)
	h.ok("session_sfu_token", token, err)
	check(h.t, "result.session_sfu_token_wait", token)
	if refreshed.Get("jwt").Str != string(token.JWT) {
		h.t.Error("the token held is not the one told")
	}
	h.answers["get_sfu_token"] = `"status":403,"body":{"errcode":"M_FORBIDDEN","error":"no"}`
	other := decode[which](h.t, "session_sfu_token_wait", `{"service_url":"https://b.x"}`)
	if _, err := h.s.SFUToken(other.ServiceURL); err != nil {
		h.t.Fatal(err)
	}
	h.respond()
	h.wait("sfu_failed", "reason")
	h.answers["get_sfu_token"] = `"network_error":"no route to host"`
	h.fails(client.ErrWouldDeadlock, func() error { _, err := h.s.SFUTokenWait("", 0); return err }())
	h.fails(client.ErrInvalidArgument, func() error { _, err := h.s.SFUToken("https://nobody.x"); return err }())
	h.ok("session_delegate_leave", nil, h.s.DelegateLeave(true))
	h.ok("session_sfu_connected", nil, h.s.SFUConnected(decode[session.SFUConnection](h.t, "session_sfu_connected", `{"connected":true}`)))
	h.respond()
	h.advance(11_000)
	h.wait("leave_delegated_changed", "delegated")
	h.ok("session_sfu_connected", nil, h.s.SFUConnected(decode[session.SFUConnection](h.t, "session_sfu_connected", `{"connected":false,"error":"room does not exist","http_status":404}`)))
	h.wait("leave_delegated_changed", "")
	h.respond()
}

func keysByRoomEvent(t *testing.T) {
	h := newManual(t)
	h.answers["encrypt_and_send_event"] = `"status":200,"body":{"event_id":"$k"}`
	h.join(`{"foci_preferred":[],"key_transport":"room_event","manage_media_keys":true}`, false)
	h.feedState(h.state("@b:x", "m.room.member", "@b:x", `{"membership":"join"}`), h.member("@b:x", "B1", ""))
	h.wait("request", `content`)
	key := func(index int) string {
		return fmt.Sprintf(`{"type":"io.element.call.encryption_keys","sender":"@b:x","event_id":"$k%d","origin_server_ts":%d,
			"content":{"keys":[{"index":%d,"key":"AAAAAAAAAAAAAAAAAAAAAA"}],"device_id":"B1","call_id":"","sent_ts":%d}}`, index, h.wall, index, h.wall)
	}
	h.feed(fmt.Sprintf(`{"timeline":{"room_id":%q,"events":[%s]}}`, room, key(0)))
	h.wait("encryption_key_changed", "key")
	h.ok("session_on_call_encryption", nil, h.s.OnCallEncryption(decode[json.RawMessage](t, "session_on_call_encryption", key(1))))
	h.wait("encryption_key_changed", "index")
	keys, err := h.s.ParticipantKeys("@nobody:x", "D")
	h.ok("session_participant_keys", map[string]any{"keys": keys}, err)
	h.getters()
}

// --- managed, on a homeserver

func managedClient(t *testing.T) {
	server := homeserver.New(homeserver.Options{ServerName: "x"})
	web := httptest.NewServer(server)
	t.Cleanup(func() { server.Close(); web.Close() })
	ask := func(token, method, path, body string) gjson.Result {
		t.Helper()
		r, err := http.NewRequest(method, web.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = a.Body.Close() }()
		var v json.RawMessage
		if err := json.NewDecoder(a.Body).Decode(&v); err != nil || a.StatusCode != 200 {
			t.Fatalf("%s: %d %s %v", path, a.StatusCode, v, err)
		}
		return gjson.ParseBytes(v)
	}
	const v3 = "/_matrix/client/v3"
	account := ask("", "POST", v3+"/register", `{"username":"a","password":"p","auth":{"type":"m.login.dummy"}}`)
	token := account.Get("access_token").Str
	call := ask(token, "POST", v3+"/createRoom", `{"power_level_content_override":{"events":{"org.matrix.msc3401.call.member":0}}}`).Get("room_id").Str

	wrong := newHost(t, fmt.Sprintf(`{"homeserver_url":%q,"user_id":"@a:x","password":"wrong"}`, web.URL))
	wrong.ok("client_start", nil, wrong.c.Start())
	wrong.wait("sync_state", "error")
	wrong.getters()

	h := newHost(t, fmt.Sprintf(`{"mode":"managed","homeserver_url":%q,"user_id":"@a:x","password":"p","initial_device_display_name":"test","user_agent":"test"}`, web.URL))
	h.ok("client_start", nil, h.c.Start())
	s, err := h.c.OpenSession(call, session.OpenOptions{})
	h.ok("session_open", nil, err)
	h.s = s
	h.ok("session_join", nil, s.Join(decode[session.JoinParams](t, "session_join", `{"foci_preferred":[]}`)))
	h.wait("memberships_changed", "count")
	h.getters()
	ask(token, "POST", "/_faults", `{"kind":"expire_tokens","soft":true,"user":"@a:x"}`)
	ask(token, "POST", "/_faults", `{"kind":"drop","when":"before","class":"sync"}`)
	h.wait("token_refreshed", "")
	sent, err := s.LeaveWait(time.Minute)
	h.ok("session_leave_wait", map[string]bool{"sent": sent}, err)
	in := decode[struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}](t, "client_set_access_token", fmt.Sprintf(`{"access_token":%q,"refresh_token":""}`, token))
	h.ok("client_set_access_token", nil, h.c.SetAccessToken(in.AccessToken, in.RefreshToken))
	h.ok("client_stop_wait", nil, h.c.StopWait(time.Minute))
	h.getters()
}

// A host's event queue that panics stands for a bug of ours.
func failedClient(t *testing.T) {
	h := newManual(t)
	s, err := h.c.OpenSession(room, session.OpenOptions{})
	h.ok("session_open", nil, err)
	h.sabotage = "join_state_changed"
	h.fails(client.ErrInternal, s.Join(session.JoinParams{}))
	h.wait("client_failed", "")
	h.fails(client.ErrClientFailed, s.Leave())
	info, err := h.c.Info()
	h.ok("client_info", info, err)
}
