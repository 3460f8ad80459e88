package homeserver_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/internal/homeserver"
)

// embedded is a homeserver on a listener of its own.
type embedded struct {
	*httptest.Server
	t *testing.T
}

func newEmbedded(t *testing.T, o homeserver.Options) *embedded {
	server := homeserver.New(o)
	e := &embedded{httptest.NewServer(server), t}
	t.Cleanup(func() {
		server.Close()
		e.Close()
	})
	return e
}

// ask makes a request, once. err is set where no whole answer came.
func (e *embedded) ask(token, method, path, body string) (r *http.Response, answer string, err error) {
	e.t.Helper()
	if !strings.HasPrefix(path, "/_") && !strings.HasPrefix(path, "/.") {
		path = "/_matrix/client/v3" + path
	}
	req, err := http.NewRequest(method, e.URL+path, bytes.NewReader([]byte(body)))
	if err != nil {
		e.t.Fatal(err)
	}
	req.GetBody = nil // net/http must not try again
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	r, err = (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = r.Body.Close() }()
	raw, err := io.ReadAll(r.Body)
	return r, string(raw), err
}

// must is ask where all goes well; it decodes the answer.
func (e *embedded) must(token, method, path, body string, into any) {
	e.t.Helper()
	r, answer, err := e.ask(token, method, path, body)
	if err != nil || r.StatusCode != 200 {
		e.t.Fatalf("%s %s: %v %v %s", method, path, err, r, answer)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(answer), into); err != nil {
			e.t.Fatal(err)
		}
	}
}

func (e *embedded) fault(body string) {
	e.t.Helper()
	e.must("", "POST", "/_faults", body, nil)
}

type account struct {
	UserID       string `json:"user_id"`
	DeviceID     string `json:"device_id"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

func (e *embedded) register(name string) (a account) {
	e.t.Helper()
	e.must("", "POST", "/register", fmt.Sprintf(`{"username":%q,"password":"secret","refresh_token":true,"auth":{"type":"m.login.dummy"}}`, name), &a)
	return a
}

// room is one that all of them are in.
func (e *embedded) room(creator account, others ...account) string {
	e.t.Helper()
	var made struct {
		RoomID string `json:"room_id"`
	}
	e.must(creator.AccessToken, "POST", "/createRoom",
		`{"preset":"public_chat","power_level_content_override":{"events":{"org.matrix.msc3401.call.member":0}}}`, &made)
	for _, o := range others {
		e.must(o.AccessToken, "POST", "/join/"+made.RoomID, "{}", nil)
	}
	return made.RoomID
}

const member = "/state/org.matrix.msc3401.call.member/"

// What a request meets under each fault, and whether it was done.
func TestFaultsOfARequest(t *testing.T) {
	for name, c := range map[string]struct {
		fault  string
		status int  // 0: no whole answer
		done   bool // the state was written
		check  func(r *http.Response, body string) bool
	}{
		"drop before": {`{"kind":"drop","class":"state"}`, 0, false, nil},
		"drop after":  {`{"kind":"drop","when":"after","class":"state"}`, 0, true, nil},
		"disconnect":  {`{"kind":"disconnect","class":"state"}`, 0, true, nil},
		"429": {`{"kind":"rate_limit","retry_after_ms":1500,"class":"state"}`, 429, false, func(r *http.Response, body string) bool {
			return r.Header.Get("Retry-After") == "2" && strings.Contains(body, `"retry_after_ms":1500`)
		}},
		"429 in the header": {`{"kind":"rate_limit","retry_after_ms":1500,"told":"header"}`, 429, false, func(r *http.Response, body string) bool {
			return r.Header.Get("Retry-After") == "2" && !strings.Contains(body, "retry_after_ms")
		}},
		"429 in the body": {`{"kind":"rate_limit","retry_after_ms":1500,"told":"body"}`, 429, false, func(r *http.Response, body string) bool {
			return r.Header.Get("Retry-After") == "" && strings.Contains(body, "retry_after_ms")
		}},
		"error":         {`{"kind":"error","status":502,"errcode":"M_UNKNOWN","method":"PUT"}`, 502, false, nil},
		"error in HTML": {`{"kind":"html","status":503}`, 503, false, func(_ *http.Response, body string) bool { return strings.Contains(body, "<p>") }},
		"HTML":          {`{"kind":"html"}`, 200, false, func(_ *http.Response, body string) bool { return strings.Contains(body, "<p>") }},
		"truncate":      {`{"kind":"truncate"}`, 200, true, func(_ *http.Response, body string) bool { return !json.Valid([]byte(body)) }},
		"content type": {`{"kind":"content_type","value":"text/plain"}`, 200, true, func(r *http.Response, _ string) bool {
			return r.Header.Get("Content-Type") == "text/plain"
		}},
		"latency":        {`{"kind":"latency","delay_ms":30}`, 200, true, nil},
		"by path":        {`{"kind":"error","status":500,"path":"/_matrix/client/v3/rooms/*/state/*/k"}`, 500, false, nil},
		"by user":        {`{"kind":"error","status":500,"user":"@alice:example.test"}`, 500, false, nil},
		"another path":   {`{"kind":"error","path":"/_matrix/client/v3/rooms/*/state/*/other"}`, 200, true, nil},
		"another user":   {`{"kind":"error","user":"@bob:example.test"}`, 200, true, nil},
		"another class":  {`{"kind":"error","class":"sync"}`, 200, true, nil},
		"another method": {`{"kind":"error","method":"POST"}`, 200, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEmbedded(t, homeserver.Options{})
			alice := e.register("alice")
			room := e.room(alice)
			e.fault(c.fault)
			began := time.Now()
			r, body, err := e.ask(alice.AccessToken, "PUT", "/rooms/"+room+member+"k", `{"a":1}`)
			switch {
			case c.status == 0 && err == nil:
				t.Errorf("answered with %d %s", r.StatusCode, body)
			case c.status != 0 && (err != nil || r.StatusCode != c.status):
				t.Fatalf("%v %v, expected %d", err, r, c.status)
			case c.check != nil && !c.check(r, body):
				t.Errorf("%v %s", r.Header, body)
			case name == "latency" && time.Since(began) < 30*time.Millisecond:
				t.Error("answered early")
			}
			// A fault is for one request unless told otherwise.
			e.must("", "DELETE", "/_faults", "", nil)
			r, _, err = e.ask(alice.AccessToken, "GET", "/rooms/"+room+member+"k", "")
			if err != nil || (r.StatusCode == 200) != c.done {
				t.Errorf("done: %v %v, expected %v", err, r.StatusCode, c.done)
			}
		})
	}
}

func TestFaultsLastAsLongAsTold(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	status := func() int {
		r, _, err := e.ask("", "GET", "/_matrix/client/versions", "")
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	e.fault(`{"kind":"error","status":500}`)
	e.fault(`{"kind":"error","status":502,"count":2}`)
	for i, expected := range []int{500, 502, 502, 200} {
		if got := status(); got != expected {
			t.Errorf("request %d: %d, expected %d", i, got, expected)
		}
	}
	e.fault(`{"kind":"error","status":503,"for_ever":true,"class":"versions"}`)
	for range 5 {
		if got := status(); got != 503 {
			t.Errorf("%d", got)
		}
	}
	e.must("", "DELETE", "/_faults?id=3", "", nil)
	e.fault(`{"kind":"error","status":504,"duration_ms":50}`)
	for status() == 504 {
		time.Sleep(time.Millisecond) // until its time is over
	}
	var list struct{ Faults []any }
	if e.must("", "GET", "/_faults", "", &list); len(list.Faults) != 0 {
		t.Errorf("still there: %v", list.Faults)
	}
}

func TestFaultsThatAreNone(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	for body, names := range map[string]string{
		`{"kind":"nope"}`:                            "kind",
		`{"kind":"error","statsu":500}`:              "statsu",
		`{"kind":"error","status":99}`:               "status",
		`{"kind":"drop","delay_ms":5}`:               "delay_ms",
		`{"kind":"drop","when":"later"}`:             "when",
		`{"kind":"rate_limit","told":"twice"}`:       "told",
		`{"kind":"drop","class":"nope"}`:             "class",
		`{"kind":"drop","path":"["}`:                 "path",
		`{"kind":"drop","count":-1}`:                 "count",
		`{"kind":"restart","count":1}`:               "count",
		`{"kind":"restart","delayed_events":"some"}`: "delayed_events",
		`[]`: "", `{`: "", ``: "",
	} {
		r, answer, err := e.ask("", "POST", "/_faults", body)
		if err != nil || r.StatusCode != 400 || !strings.Contains(answer, names) {
			t.Errorf("%s: %v %v %s", body, err, r, answer)
		}
	}
}

func TestRestart(t *testing.T) {
	for _, delayed := range []string{"keep", "lose"} {
		t.Run(delayed, func(t *testing.T) {
			t.Parallel()
			e := newEmbedded(t, homeserver.Options{AccessTokenLife: 24 * time.Hour})
			alice := e.register("alice")
			room := e.room(alice)
			var scheduled struct {
				DelayID string `json:"delay_id"`
			}
			e.must(alice.AccessToken, "PUT", "/rooms/"+room+member+"k?org.matrix.msc4140.delay=600000", `{"a":1}`, &scheduled)
			waiting := make(chan error, 1)
			var synced struct {
				NextBatch string `json:"next_batch"`
			}
			e.must(alice.AccessToken, "GET", "/sync", "", &synced)
			go func() {
				_, _, err := e.ask(alice.AccessToken, "GET", "/sync?timeout=60000&since="+synced.NextBatch, "")
				waiting <- err
			}()
			e.fault(`{"kind":"restart","down_ms":3600000,"delayed_events":"` + delayed + `"}`)
			if err := <-waiting; err == nil {
				t.Error("the waiting sync was not cut")
			}
			if _, _, err := e.ask("", "GET", "/_matrix/client/versions", ""); err == nil {
				t.Error("there is an answer while it is down")
			}
			e.fault(`{"kind":"clock_skew","skew_ms":3600000}`) // what was to be sent in ten minutes is due
			e.fault(`{"kind":"restart","down_ms":1}`)
			for {
				if _, _, err := e.ask("", "GET", "/_matrix/client/versions", ""); err == nil {
					break
				}
				time.Sleep(time.Millisecond) // until it is back
			}
			r, answer, err := e.ask(alice.AccessToken, "GET", "/rooms/"+room+member+"k", "")
			if sent := r != nil && r.StatusCode == 200; err != nil || sent != (delayed == "keep") {
				t.Errorf("what was due meanwhile: %v %s", err, answer)
			}
			r, _, _ = e.ask(alice.AccessToken, "POST", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/"+scheduled.DelayID+"/restart", "{}")
			if r == nil || r.StatusCode != 404 {
				t.Errorf("restart: %v", r)
			}
		})
	}
}

func TestClockSkew(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{AccessTokenLife: 24 * time.Hour})
	alice := e.register("alice")
	room := e.room(alice)
	e.must(alice.AccessToken, "PUT", "/rooms/"+room+member+"k?org.matrix.msc4140.delay=600000", `{"a":1}`, nil)
	e.fault(`{"kind":"clock_skew","skew_ms":3600000}`)
	// What was to be sent in ten minutes is overdue.
	var sent struct {
		OriginServerTS int64 `json:"origin_server_ts"`
	}
	e.must(alice.AccessToken, "GET", "/rooms/"+room+member+"k?format=event", "", &sent)
	e.must(alice.AccessToken, "PUT", "/rooms/"+room+member+"l", `{}`, nil)
	var now struct {
		OriginServerTS int64 `json:"origin_server_ts"`
	}
	e.must(alice.AccessToken, "GET", "/rooms/"+room+member+"l?format=event", "", &now)
	if off := now.OriginServerTS - time.Now().UnixMilli(); off < 3_500_000 || off > 3_700_000 {
		t.Errorf("origin_server_ts is %d ms off", off)
	}
	if due := now.OriginServerTS - sent.OriginServerTS; due < 2_900_000 || due > 3_100_000 {
		t.Errorf("a delayed event has the time at which it was due, got %d ms ago", due)
	}
	r, _, err := e.ask("", "GET", "/_matrix/client/versions", "")
	if err != nil {
		t.Fatal(err)
	}
	date, err := http.ParseTime(r.Header.Get("Date"))
	if off := time.Until(date); err != nil || off < 58*time.Minute || off > 62*time.Minute {
		t.Errorf("Date is %v off, %v", off, err)
	}
}

func TestExpiredTokens(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	alice, bob := e.register("alice"), e.register("bob")
	whoami := func(a account) string {
		r, answer, err := e.ask(a.AccessToken, "GET", "/account/whoami", "")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(r.StatusCode, strings.Contains(answer, `"soft_logout":true`))
	}
	refresh := func(a account) int {
		r, _, err := e.ask("", "POST", "/refresh", fmt.Sprintf(`{"refresh_token":%q}`, a.RefreshToken))
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	e.fault(`{"kind":"expire_tokens","soft":true,"user":"@alice:example.test"}`)
	if a, b := whoami(alice), whoami(bob); a != "401 true" || b != "200 false" {
		t.Errorf("soft: %s, %s", a, b)
	}
	if got := refresh(alice); got != 200 {
		t.Errorf("refresh after soft: %d", got)
	}
	e.fault(`{"kind":"expire_tokens"}`)
	if b := whoami(bob); b != "401 false" {
		t.Errorf("hard: %s", b)
	}
	if got := refresh(bob); got != 401 {
		t.Errorf("refresh after hard: %d", got)
	}
}

// Of one user only so many delayed events wait; the pause told is the one until the first is due.
func TestMaxScheduled(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{MaxScheduled: 2})
	alice := e.register("alice")
	room := e.room(alice)
	for i := range 2 {
		e.must(alice.AccessToken, "PUT", fmt.Sprintf("/rooms/%s%s%d?org.matrix.msc4140.delay=%d", room, member, i, 60000+i), `{}`, nil)
	}
	r, answer, err := e.ask(alice.AccessToken, "PUT", "/rooms/"+room+member+"k?org.matrix.msc4140.delay=5", `{}`)
	if err != nil || r.StatusCode != 429 || !strings.Contains(answer, "M_LIMIT_EXCEEDED") {
		t.Fatalf("%v %v %s", err, r, answer)
	}
	if after, _ := strconv.Atoi(r.Header.Get("Retry-After")); after < 1 || after > 60 { // the first is due in 60 s at most
		t.Errorf("Retry-After %d", after)
	}
}

// A message whose answer is lost and that is sent again comes once, over a restart as well, until it is acknowledged.
func TestMessagesUnderFaults(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	alice, bob := e.register("alice"), e.register("bob")
	body := fmt.Sprintf(`{"messages":{%q:{"*":{"n":1}}}}`, bob.UserID)
	send := func() int {
		r, _, err := e.ask(alice.AccessToken, "PUT", "/sendToDevice/m.x/1", body)
		if err != nil {
			return 0
		}
		return r.StatusCode
	}
	e.fault(`{"kind":"error","status":500,"class":"send_to_device"}`)
	e.fault(`{"kind":"drop","when":"after","class":"send_to_device"}`)
	for i, expected := range []int{500, 0, 200} {
		if got := send(); got != expected {
			t.Errorf("request %d: %d, expected %d", i, got, expected)
		}
	}
	messages := func(since string) (int, string) {
		var synced struct {
			NextBatch string                      `json:"next_batch"`
			ToDevice  struct{ Events []struct{} } `json:"to_device"`
		}
		e.must(bob.AccessToken, "GET", "/sync?since="+since, "", &synced)
		return len(synced.ToDevice.Events), synced.NextBatch
	}
	n, next := messages("")
	e.fault(`{"kind":"restart"}`)
	again, _ := messages("")
	heard, _ := messages(next)
	first, _ := messages("")
	if n != 1 || again != 1 || heard != 0 || first != 0 {
		t.Errorf("%d, asked again %d, acknowledged %d and %d", n, again, heard, first)
	}
}

// Keys are claimed once, even where the answer is lost; what is slow or fails leaves them there.
func TestClaimsUnderFaults(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	alice, bob := e.register("alice"), e.register("bob")
	e.must(bob.AccessToken, "POST", "/keys/upload", `{"one_time_keys":{"a:1":"x","a:2":"y"}}`, nil)
	body := fmt.Sprintf(`{"one_time_keys":{%q:{%q:"a"}}}`, bob.UserID, bob.DeviceID)
	for _, f := range []string{
		`{"kind":"error","status":502,"class":"keys_claim"}`, `{"kind":"drop","class":"keys_claim"}`, `{"kind":"drop","when":"after","class":"keys_claim"}`,
	} {
		e.fault(f)
		if r, answer, err := e.ask(alice.AccessToken, "POST", "/keys/claim", body); err == nil && r.StatusCode == 200 {
			t.Errorf("%s: %s", f, answer)
		}
	}
	var claimed struct {
		Keys map[string]map[string]map[string]string `json:"one_time_keys"`
	}
	e.must(alice.AccessToken, "POST", "/keys/claim", body, &claimed)
	if got := claimed.Keys[bob.UserID][bob.DeviceID]; len(got) != 1 || got["a:2"] != "y" {
		t.Errorf("%v", got)
	}
}

// Whatever comes in, the answer is one of the API, and never that something broke inside.
func TestBadInput(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	alice := e.register("alice")
	room := e.room(alice)
	bodies := []string{
		``, `null`, `5`, `"a"`, `[]`, `{`, `{}`, `{"a":`, "{\"a\":\"\xff\"}", "\x00", `{"type":5}`, `{"user_id":5}`, `{"user_id":""}`,
		`{"membership":null}`, `{"membership":"join","displayname":5}`, `{"auth":5}`, `{"identifier":[]}`, `{"preset":[]}`,
		`{"initial_state":[5]}`, `{"initial_state":[{"type":"m.x"}]}`, `{"initial_state":[{"type":"m.room.member","state_key":"x","content":{}}]}`,
		`{"initial_state":[{"type":"m.room.create","content":{}}]}`, `{"power_level_content_override":{"users":5}}`, `{"invite":[""]}`,
		`{"creation_content":{"m.federate":5,"additional_creators":5}}`, `{"users":{"":5}}`, `{"users":{"@x:y":1e400}}`, `{"events":[]}`,
		`{"device_keys":null}`, `{"device_keys":{"@alice:example.test":null}}`, `{"device_keys":{"":[]}}`, `{"one_time_keys":{"@alice:example.test":{"x":5}}}`,
		`{"one_time_keys":{"a:b":null}}`, `{"fallback_keys":{"a:b":{"key":"x","signatures":{"a":{"b":"c"}}}}}`, `{"messages":{"@bob:example.test":5}}`,
		`{"messages":{"@bob:example.test":{"*":5}}}`, `{"messages":{"":{"":{}}}}`, `{"master_key":null}`, `{"master_key":5,"auth":{}}`,
		`{"master_key":{"user_id":"@alice:example.test","usage":["master"],"keys":{"ed25519:x":"x"}}}`, `{"self_signing_key":{},"auth":[]}`,
		`{"@alice:example.test":{"ed25519:x":{"signatures":{"@alice:example.test":{"ed25519:":""}}}}}`, `{"@alice:example.test":null}`,
		strings.Repeat(`{"a":`, 20_000), strings.Repeat(`{"a":`, 500) + `1` + strings.Repeat(`}`, 500), `{"a":"` + strings.Repeat("x", 1<<20) + `"}`,
	}
	requests := []string{
		"POST /register", "POST /login", "POST /refresh", "POST /createRoom", "POST /join/x", "POST /join/%21", "POST /logout/x",
		"POST /rooms/R/join", "POST /rooms/R/invite", "POST /rooms/R/kick", "POST /rooms/R/ban", "POST /rooms/R/unban",
		"PUT /rooms/R/state/m.x", "PUT /rooms/R/state/m.x/%00", "PUT /rooms/R/state/m.room.power_levels", "PUT /rooms/R/state/m.room.member/@bob:example.test",
		"PUT /rooms/R/state/m.room.member/x", "PUT /rooms/R/state/m.room.join_rules/", "PUT /rooms/R/send/m.x/1", "PUT /rooms//send/m.x/1",
		"PUT /rooms/R/state/m.room.member/@bob:example.test?org.matrix.msc4140.delay=1", "POST /user/@alice:example.test/filter",
		"POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/x", "POST /_faults", "DELETE /_faults?id=x",
		"POST /keys/upload", "POST /keys/query", "POST /keys/claim", "POST /keys/device_signing/upload", "POST /keys/signatures/upload",
		"PUT /sendToDevice/m.x/1", "PUT /user/@alice:example.test/account_data/m.x", "GET /keys/changes?from=s-1", "GET /keys/changes?from=s9_x",
		"POST /user/@alice:example.test/openid/request_token", "GET /_matrix/federation/v1/openid/userinfo?access_token=%00",
		"GET /sync?since=s1_x", "GET /sync?since=s1_99999999", "GET /sync?timeout=99999999999999999999", "GET /sync?since=s-1", "GET /sync?since=s99999999&timeout=1", "GET /sync?timeout=-5",
		`GET /sync?filter={"room":{"timeline":{"limit":-5}}}`, `GET /sync?filter={"room":{"timeline":{"limit":1e300}}}`, "GET /sync?filter=null",
		"GET /rooms/R/messages?limit=-1", "GET /rooms/R/messages?limit=99999999999&from=s9999&dir=f", "GET /rooms/R/messages?filter=[]",
		"GET /rooms/R/members?at=x", "GET /rooms/R/event/", "GET /rooms/R/state/a/b/c", "GET /user/@alice:example.test/filter/-1",
	}
	for _, request := range requests {
		method, path, _ := strings.Cut(request, " ")
		for _, body := range bodies {
			r, answer, err := e.ask(alice.AccessToken, method, strings.Replace(path, "/R/", "/"+room+"/", 1), body)
			if err != nil || r.StatusCode >= 500 || r.StatusCode != 301 && !json.Valid([]byte(answer)) {
				t.Errorf("%s with %.60q: %v %v %.200s", request, body, err, r, answer)
			}
			if method == "GET" {
				break
			}
		}
	}
}
