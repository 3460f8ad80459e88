package authservice

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livekit/protocol/auth"
	"github.com/livekit/protocol/livekit"
	"github.com/twitchtv/twirp"
	"google.golang.org/protobuf/encoding/protojson"
)

// world is a homeserver that knows alice, and an SFU's API, beside the service.
type world struct {
	t       *testing.T
	service *httptest.Server

	mu      sync.Mutex
	rooms   map[string]bool
	present map[participant]bool
	actions chan string // on delayed events
	livekit.RoomService
}

const key, secret = "key", "a secret of at least thirty-two bytes"

func newWorld(t *testing.T, fullAccess ...string) *world {
	w := &world{t: t, rooms: map[string]bool{}, present: map[participant]bool{}, actions: make(chan string, 100)}
	homeserver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/_matrix/federation/v1/openid/userinfo" && r.URL.Query().Get("access_token") == "alice's":
			_, _ = fmt.Fprint(rw, `{"sub":"@alice:x"}`)
		case strings.Contains(r.URL.Path, "/delayed_events/"):
			w.actions <- r.URL.Path[strings.Index(r.URL.Path, "/delayed_events/")+len("/delayed_events/"):]
			_, _ = fmt.Fprint(rw, `{}`)
		default:
			rw.WriteHeader(401)
		}
	}))
	sfu := httptest.NewServer(livekit.NewRoomServiceServer(w))
	s := New(Config{
		LiveKitURL: "ws" + strings.TrimPrefix(sfu.URL, "http"), Key: key, Secret: secret, FullAccess: fullAccess,
		Homeservers: map[string]string{"x": homeserver.URL, "down": "http://127.0.0.1:1"}, Log: t.Logf,
	})
	w.service = httptest.NewServer(s)
	t.Cleanup(func() { w.service.Close(); s.Close(); sfu.Close(); homeserver.Close() })
	return w
}

func (w *world) CreateRoom(_ context.Context, r *livekit.CreateRoomRequest) (*livekit.Room, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rooms[r.Name] = true
	return &livekit.Room{Name: r.Name}, nil
}

func (w *world) GetParticipant(_ context.Context, r *livekit.RoomParticipantIdentity) (*livekit.ParticipantInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.present[participant{r.Room, r.Identity}] {
		return nil, twirp.NotFoundError("participant does not exist")
	}
	return &livekit.ParticipantInfo{Identity: r.Identity}, nil
}

func (w *world) post(path, body string) (int, map[string]string) {
	w.t.Helper()
	a, err := http.Post(w.service.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	var out map[string]string
	if err := json.NewDecoder(a.Body).Decode(&out); err != nil {
		w.t.Fatalf("%s: %d %v", path, a.StatusCode, err)
	}
	return a.StatusCode, out
}

func grants(t *testing.T, jwt string) *auth.ClaimGrants {
	t.Helper()
	v, err := auth.ParseAPIToken(jwt)
	if err != nil {
		t.Fatal(err)
	}
	_, claims, err := v.Verify(secret)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

const (
	proofOfAlice = `"openid_token":{"access_token":"alice's","token_type":"Bearer","matrix_server_name":"x","expires_in":3600}`
	memberAlice  = `"member":{"id":"memberABC","claimed_user_id":"@alice:x","claimed_device_id":"DEV"}`
)

func TestTokens(t *testing.T) {
	w := newWorld(t, "x")
	status, out := w.post("/sfu/get", `{"room":"!roomid:example.com","device_id":"DEV",`+proofOfAlice+`}`)
	g := grants(t, out["jwt"])
	if status != 200 || g.Identity != "@alice:x:DEV" || !g.Video.RoomJoin || g.Video.RoomCreate || !strings.HasPrefix(out["url"], "ws://") {
		t.Fatalf("%d %v %+v", status, out, g)
	}
	legacy := g.Video.Room
	if !w.rooms[legacy] {
		t.Error("the room was not created")
	}
	status, out = w.post("/get_token", `{"room_id":"!roomid:example.com","slot_id":"m.call#ROOM",`+memberAlice+`,`+proofOfAlice+`}`)
	g = grants(t, out["jwt"])
	if status != 200 || g.Identity != hash("@alice:x", "DEV", "memberABC") || g.Video.Room != legacy {
		t.Fatalf("%d %v %+v", status, out, g)
	}
}

// The vectors of MSC4195.
func TestHash(t *testing.T) {
	if got := hash("!roomid:example.com", "slot1234"); got != "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc" {
		t.Error(got)
	}
	if got := hash("@alice:example.com", "DEVICE123", "memberABC"); got != "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU" {
		t.Error(got)
	}
}

func TestRestrictedUsers(t *testing.T) {
	w := newWorld(t, "elsewhere")
	ask := `{"room":"!r:x","device_id":"DEV",` + proofOfAlice
	if status, out := w.post("/sfu/get", ask+`}`); status != 200 || len(w.rooms) != 0 || grants(t, out["jwt"]).Video.RoomCreate {
		t.Errorf("a token for a room that exists: %d %v", status, w.rooms)
	}
	if status, out := w.post("/sfu/get", ask+`,"delay_id":"d","delay_timeout":3600000}`); status != 400 || out["errcode"] != "M_BAD_JSON" {
		t.Errorf("delegation: %d %v", status, out)
	}
	body := `{"room_id":"!r:x","slot_id":"m.call#ROOM",` + memberAlice + `,` + proofOfAlice + `,"delay_id":"d","delay_timeout":3600000}`
	if status, out := w.post("/delegate_delayed_leave", body); status != 403 || out["errcode"] != "M_FORBIDDEN" {
		t.Errorf("delegation: %d %v", status, out)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, "*")
	sticky := func(body string) string { return `{"room_id":"!r:x","slot_id":"s#1",` + body + `}` }
	for _, c := range []struct {
		path, body string
		status     int
		errcode    string
	}{
		{"/sfu/get", `{`, 400, "M_NOT_JSON"},
		{"/sfu/get", `{"room":"!r:x","surprise":1}`, 400, "M_NOT_JSON"},
		{"/sfu/get", `{` + proofOfAlice + `}`, 400, "M_BAD_JSON"},
		{"/sfu/get", `{"room":"!r:x"}`, 400, "M_BAD_JSON"},
		{"/sfu/get", `{"room":"!r:x","device_id":"D","delay_id":"d",` + proofOfAlice + `}`, 400, "M_BAD_JSON"},
		{"/sfu/get", `{"room":"!r:x","openid_token":{"access_token":"mallory's","matrix_server_name":"x"}}`, 401, "M_UNAUTHORIZED"},
		{"/sfu/get", `{"room":"!r:x","openid_token":{"access_token":"alice's","matrix_server_name":"down"}}`, 401, "M_UNAUTHORIZED"},
		{"/get_token", sticky(proofOfAlice), 400, "M_BAD_JSON"},
		{"/get_token", sticky(memberAlice), 400, "M_BAD_JSON"},
		{"/get_token", sticky(`"member":{"id":"m","claimed_user_id":"@bob:x","claimed_device_id":"D"},` + proofOfAlice), 401, "M_UNAUTHORIZED"},
		{"/get_token", `{"slot_id":"s#1",` + memberAlice + `,` + proofOfAlice + `}`, 400, "M_BAD_JSON"},
		{"/delegate_delayed_leave", sticky(memberAlice + `,` + proofOfAlice), 400, "M_BAD_JSON"},
	} {
		if status, out := w.post(c.path, c.body); status != c.status || out["errcode"] != c.errcode || out["error"] == "" {
			t.Errorf("%s %s: %d %v", c.path, c.body, status, out)
		}
	}
	for method, want := range map[string]int{http.MethodGet: 405, http.MethodOptions: 200} {
		r, _ := http.NewRequest(method, w.service.URL+"/sfu/get", nil)
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		if a.StatusCode != want || a.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d", method, a.StatusCode)
		}
	}
}

// hear sends what LiveKit says, signed by it.
func (w *world) hear(event string, p participant) int {
	w.t.Helper()
	body, err := protojson.Marshal(&livekit.WebhookEvent{
		Event: event, Room: &livekit.Room{Name: p.room}, Participant: &livekit.ParticipantInfo{Identity: p.identity},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	token, err := auth.NewAccessToken(key, secret).SetValidFor(time.Minute).SetSha256(base64.StdEncoding.EncodeToString(sum[:])).ToJWT()
	if err != nil {
		w.t.Fatal(err)
	}
	r, _ := http.NewRequest(http.MethodPost, w.service.URL+"/sfu_webhook", bytes.NewReader(body))
	r.Header.Set("Authorization", token)
	r.Header.Set("Content-Type", "application/webhook+json")
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = a.Body.Close()
	return a.StatusCode
}

// action is the next one on a delayed event.
func (w *world) action() (action string) {
	w.t.Helper()
	select {
	case action = <-w.actions:
	case <-time.After(time.Minute):
		w.t.Fatal("nothing is done with a delayed event")
	}
	return action
}

func (w *world) wants(action string) {
	w.t.Helper()
	if got := w.action(); got != action {
		w.t.Fatalf("expected %s, got %s", action, got)
	}
}

func TestDelegatedLeave(t *testing.T) {
	w := newWorld(t, "x")
	alice := participant{hash("!r:x", "m.call#ROOM"), "@alice:x:DEV"}
	ask := func(id string, delay int) {
		t.Helper()
		body := fmt.Sprintf(`{"room":"!r:x","device_id":"DEV",%s,"delay_id":%q,"delay_timeout":%d}`, proofOfAlice, id, delay)
		if status, out := w.post("/sfu/get", body); status != 200 {
			t.Fatalf("%d %v", status, out)
		}
	}
	// Found by asking, restarted while there, sent when gone.
	w.mu.Lock()
	w.present[alice] = true
	w.mu.Unlock()
	ask("d1", 10_000) // each step may take so long
	w.wants("d1/restart")
	w.wants("d1/restart")
	// Another takes its place: the first is no longer touched.
	ask("d2", 3_600_000)
	got := w.action()
	for got == "d1/restart" {
		got = w.action()
	}
	if got != "d2/restart" {
		t.Fatal(got)
	}
	if w.hear("participant_left", alice) != 200 {
		t.Fatal("the webhook is refused")
	}
	w.wants("d2/send")
	// Heard of from LiveKit.
	w.mu.Lock()
	w.present[alice] = false
	w.mu.Unlock()
	ask("d3", 3_600_000)
	w.hear("participant_joined", alice)
	w.wants("d3/restart")
	w.hear("participant_connection_aborted", alice)
	w.wants("d3/send")
}

func TestStrangersCannotSpeakForLiveKit(t *testing.T) {
	w := newWorld(t, "x")
	a, err := http.Post(w.service.URL+"/sfu_webhook", "application/webhook+json", strings.NewReader(`{"event":"participant_left"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close()
	if a.StatusCode != 401 {
		t.Error(a.StatusCode)
	}
}
