package client

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"
)

// An authorisation service that a test answers for, and a homeserver that offers it.
func newService(t *testing.T, answer http.HandlerFunc) (f *fake, service *httptest.Server) {
	service = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s was sent our access token", r.URL.Path)
		}
		answer(w, r)
	}))
	t.Cleanup(service.Close)
	f = newFake(t)
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/rtc/transports"):
			_, _ = fmt.Fprintf(w, `{"rtc_transports":[{"type":"livekit","livekit_service_url":%q}]}`, service.URL)
		case strings.HasSuffix(r.URL.Path, "/openid/request_token"):
			_, _ = fmt.Fprint(w, `{"access_token":"openid-secret","token_type":"Bearer","matrix_server_name":"x","expires_in":3600}`)
		default:
			return false
		}
		return true
	}
	return f, service
}

// joinOffered joins with what the homeserver offers.
func joinOffered(t *testing.T, f *fake) (*driver, *Session) {
	t.Helper()
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Join(session.JoinParams{}); err != nil {
		t.Fatal(err)
	}
	d.waitCount(1)
	return d, s
}

func jwtFor(user, device string) string {
	claims := fmt.Sprintf(`{"sub":"%s:%s","video":{"room":"R"},"exp":%d}`, user, device, time.Now().Add(time.Hour).Unix())
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
}

func TestTokenOfTheOfferedSFU(t *testing.T) {
	var asked atomic.Int32
	f, service := newService(t, func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			DeviceID string `json:"device_id"`
			OpenID   struct {
				AccessToken string `json:"access_token"`
			} `json:"openid_token"`
		}
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.OpenID.AccessToken != "openid-secret" || r.URL.Path != "/sfu/get" {
			w.WriteHeader(400)
			return
		}
		asked.Add(1)
		_, _ = fmt.Fprintf(w, `{"url":"ws://127.0.0.1:7880","jwt":%q}`, jwtFor("@a:x", in.DeviceID))
	})
	_, s := joinOffered(t, f)
	token, err := s.SFUTokenWait("", patience)
	if err != nil || token.URL != "ws://127.0.0.1:7880" || token.ServiceURL != service.URL || token.Generation != "state" {
		t.Fatalf("%+v %v", token, err)
	}
	if again, err := s.SFUTokenWait(service.URL+"/", 0); err != nil || again.JWT != token.JWT || asked.Load() != 1 {
		t.Fatalf("a token that is held is answered: %v, asked %d times", err, asked.Load())
	}
	list, _, err := s.SFUs()
	if err != nil || len(list) != 1 || !list[0].Publish || len(list[0].Members) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
}

// Whatever a service does, it is told, and costs neither the call nor a secret.
func TestStrangeAuthorisationServices(t *testing.T) {
	var elsewhere atomic.Int32
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(stranger.Close)
	for _, c := range []struct {
		name, reason string
		answer       http.HandlerFunc
	}{
		{"html", "bad_answer", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>") }},
		{"truncated", "unreachable", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = fmt.Fprint(w, `{"url":`)
		}},
		{"huge", "unreachable", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"url":"%s"}`, strings.Repeat("x", 2<<20))
		}},
		{"redirect", "bad_answer", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, stranger.URL, http.StatusTemporaryRedirect)
		}},
		{"refusal", "refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }},
		{"disbelief", "openid_rejected", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }},
		{"down", "unreachable", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		{"somebody else's", "identity_mismatch", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"url":"ws://127.0.0.1:7880","jwt":%q}`, jwtFor("@b:x", "DEV"))
		}},
		{"a file", "bad_answer", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"url":"file:///etc/passwd","jwt":%q}`, jwtFor("@a:x", "DEV"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, _ := newService(t, c.answer)
			d, s := joinOffered(t, f)
			_, err := s.SFUTokenWait("", patience)
			if e := AsError(err); e == nil || e.Status != ErrSFU || e.Reason != c.reason || strings.Contains(e.Message, "openid-secret") {
				t.Fatalf("expected %s, got %+v", c.reason, err)
			}
			d.wait("sfu_failed", func(e Event) bool { f, ok := e.Data.(session.SFUFailed); return ok && f.Reason == c.reason })
			if i, err := s.Info(); err != nil || i.Status != session.Connected {
				t.Fatalf("the membership: %s %v", i.Status, err)
			}
		})
	}
	t.Cleanup(func() {
		if n := elsewhere.Load(); n > 0 {
			t.Errorf("an OpenID token was sent along to another origin %d times", n)
		}
	})
}

func TestSFUTrustSetting(t *testing.T) {
	for given, path := range map[string]string{
		`"members"`: "", `"homeserver"`: "", `["https://lk.x/"]`: "", `[]`: "",
		`"everybody"`: "/sfu_trust", `7`: "/sfu_trust", `["lk.x"]`: "/sfu_trust/0", `["https://lk.x",7]`: "/sfu_trust/1",
	} {
		_, err := New(Config{HomeserverURL: "http://127.0.0.1:1", AccessToken: "a", SFUTrust: json.RawMessage(given)}, func(Event) {}, nil)
		if e := AsError(err); (e == nil) != (path == "") || e != nil && e.Path != path {
			t.Errorf("%s: %v", given, err)
		}
	}
}

// Who waits for the token of where we publish, and we publish elsewhere meanwhile, gets that one.
func TestWaitForTokenOfAMovedSFU(t *testing.T) {
	t.Parallel()
	asked, over := make(chan struct{}, 1), make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-over:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(over) })
	f, service := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"url":"ws://127.0.0.1:7880","jwt":%q}`, jwtFor("@a:x", "DEV"))
	})
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	s, err := d.OpenSession(room, session.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Join(session.JoinParams{
		FociPreferred: []json.RawMessage{json.RawMessage(fmt.Sprintf(`{"type":"livekit","livekit_service_url":%q}`, silent.URL))},
		FociActive:    json.RawMessage(`{"focus_selection":"oldest_membership"}`),
	}); err != nil {
		t.Fatal(err)
	}
	d.waitCount(1)
	go func() {
		<-asked
		f.put("@b:x", "org.matrix.msc3401.call.member", "_@b:x_B_m.call", fmt.Sprintf(`{"application":"m.call","call_id":"","device_id":"B",
			"created_ts":1000,"expires":%d,"focus_active":{"type":"livekit","focus_selection":"oldest_membership"},
			"foci_preferred":[{"type":"livekit","livekit_service_url":%q}]}`, time.Now().Add(time.Hour).UnixMilli(), service.URL))
	}()
	token, err := s.SFUTokenWait("", patience)
	if err != nil || token.ServiceURL != service.URL {
		t.Fatalf("%+v %v", token, err)
	}
}

// A member's service whose name resolves to an address of our own network is not talked to.
func TestNamesOfPrivateAddresses(t *testing.T) {
	var reached atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(inside.Close)
	d := newDriver(t, Config{HomeserverURL: inside.URL, AccessToken: "a"})
	h := wire.HTTPRequest{Method: "POST", BaseURL: strings.Replace(inside.URL, "127.0.0.1", "localhost", 1), Path: "/sfu/get", Public: true}
	if a := d.exchange(t.Context(), h, "", maxForeignAnswer); !strings.Contains(a.NetworkError, "private") || reached.Load() != 0 {
		t.Errorf("%+v, reached %d times", a, reached.Load())
	}
	h.Public = false
	if a := d.exchange(t.Context(), h, "", maxForeignAnswer); a.Status != 200 || reached.Load() != 1 {
		t.Errorf("%+v, reached %d times", a, reached.Load())
	}
}
