package livekit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"libmatrixrtc/core/wire"
)

// The vectors of MSC4195.
func TestVectors(t *testing.T) {
	if got := Room("!roomid:example.com", "slot1234"); got != "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc" {
		t.Error("room:", got)
	}
	m := Member{"@alice:example.com", "DEVICE123", "memberABC"}
	const hashed = "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU"
	for by, want := range map[Generation]string{State: "@alice:example.com:DEVICE123", Sticky: hashed, Homeserver: hashed} {
		if got := by.Identity(m); got != want {
			t.Errorf("%s: %s", by, got)
		}
	}
	if got := Identity(&wire.Membership{UserID: m.UserID, DeviceID: m.DeviceID, MemberID: m.MemberID, Dialect: "sticky_2026"}); got != hashed {
		t.Error("sticky:", got)
	}
}

// Canonical JSON has the shortest escapes, and only those that must be.
func TestHashOfOddStrings(t *testing.T) {
	if hash("<&>\u2028") == hash(`\u003c\u0026\u003e\u2028`) || hash("a", "b") == hash("a,b") || hash("\x01\"\\") == "" {
		t.Error("strings that differ have one hash")
	}
}

func TestCheckURL(t *testing.T) {
	for _, c := range []struct {
		url     string
		private bool
		problem string
	}{
		{"https://lk.example.com", false, ""},
		{"https://lk.example.com:8443/livekit/jwt", false, ""},
		{"wss://sfu.example.com", false, ""},
		{"https://[2001:db8::1]", false, ""},
		{"http://lk.example.com", true, "without TLS"},
		{"ws://10.0.0.1", true, "without TLS"},
		{"http://127.0.0.1:8080", true, ""},
		{"http://[::1]:8080", true, ""},
		{"http://localhost:8080", true, ""},
		{"http://localhost:8080", false, "private"},
		{"https://127.0.0.1", false, "private"},
		{"https://LOCALHOST.", false, "private"},
		{"https://a.localhost", false, "private"},
		{"https://10.1.2.3", false, "private"},
		{"https://192.168.1.1", false, "private"},
		{"https://169.254.169.254", false, "private"},
		{"https://0.0.0.0", false, "private"},
		{"https://[::ffff:127.0.0.1]", false, "private"},
		{"https://[fe80::1]", false, "private"},
		{"https://[fd00::1]", false, "private"},
		{"https://224.0.0.1", false, "private"},
		{"https://100.64.0.1", false, "private"},
		{"https://[64:ff9b::7f00:1]", false, "private"},
		{"https://2130706433", false, "private"},
		{"https://127.1", false, "private"},
		{"https://0x7f.0x1", false, "private"},
		{"https://user:pass@lk.example.com", false, "scheme and host"},
		{"https://lk.example.com?x=1", false, "scheme and host"},
		{"https://lk.example.com#x", false, "scheme and host"},
		{"https://", false, "scheme and host"},
		{"file:///etc/passwd", false, "scheme and host"},
		{"ftp://lk.example.com", false, "scheme"},
		{"javascript:alert(1)", false, "scheme and host"},
		{"lk.example.com", false, "scheme and host"},
		{"", false, "scheme and host"},
		{"https://%zz", false, "scheme and host"},
	} {
		err := CheckURL(c.url, c.private)
		if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s private=%v: %v", c.url, c.private, err)
		}
	}
}

func TestSFU(t *testing.T) {
	for transport, want := range map[string]string{
		`{"type":"livekit","livekit_service_url":"https://lk/"}`: "https://lk",
		`{"type":"livekit","url":"wss://sfu"}`:                   "wss://sfu",
		`{"type":"other","livekit_service_url":"https://lk"}`:    "",
		`{"type":"livekit"}`:                                     "",
		`{"type":"livekit","livekit_service_url":7}`:             "",
		`[]`: "",
		`{"type":"livekit","url":"https://` + strings.Repeat("x", 3000) + `"}`: "",
	} {
		if got := SFU(json.RawMessage(transport)); got != want {
			t.Errorf("%.60s: %q", transport, got)
		}
	}
}

func TestTransports(t *testing.T) {
	for body, want := range map[string]int{
		`{"rtc_transports":[{"type":"livekit"},{"type":7},"x",null]}`:             1,
		`{"org.matrix.msc4143.rtc_foci":[{"type":"livekit"},{"type":"livekit"}]}`: 2,
		`{"rtc_transports":[],"org.matrix.msc4143.rtc_foci":[{"type":"a"}]}`:      1,
		`{"rtc_transports":"x"}`: 0,
		`<html>`:                 0,
		`{"rtc_transports":[` + strings.Repeat(`{"type":"a"},`, 1000) + `{"type":"a"}]}`: maxTransports,
	} {
		if got := len(Transports(json.RawMessage(body))); got != want {
			t.Errorf("%.60s: %d", body, got)
		}
	}
}

var alice = Member{"@alice:x", "DEV", "m"}

func token(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
}

func TestTokens(t *testing.T) {
	good := token(`{"sub":"@alice:x:DEV","video":{"room":"R"},"exp":20}`)
	for _, c := range []struct{ body, sfu, reason string }{
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, good), "https://lk.x", ""},
		{fmt.Sprintf(`{"url":"https://sfu.x/a","jwt":%q}`, good), "https://lk.x", ""},
		{fmt.Sprintf(`{"url":"ws://127.0.0.1:7880","jwt":%q}`, good), "http://127.0.0.1:1", ""},
		{fmt.Sprintf(`{"url":"ws://127.0.0.1:7880","jwt":%q}`, good), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"ws://sfu.x","jwt":%q}`, good), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"file:///x","jwt":%q}`, good), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":7,"jwt":%q}`, good), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"jwt":%q}`, good), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`{"sub":"@bob:x:DEV","video":{"room":"R"},"exp":20}`)), "https://lk.x", WrongIdentity},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`{"sub":"@alice:x:DEV","video":{"room":"R"},"exp":1}`)), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`{"sub":"@alice:x:DEV","video":{"room":"R"},"exp":11}`)), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`{"sub":"@alice:x:DEV","video":{"room":"R"},"exp":"x"}`)), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`{"sub":"@alice:x:DEV","exp":20}`)), "https://lk.x", BadAnswer},
		{fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, token(`[]`)), "https://lk.x", BadAnswer},
		{`{"url":"wss://sfu.x","jwt":"a.b"}`, "https://lk.x", BadAnswer},
		{`{"url":"wss://sfu.x","jwt":"a.%%%.c"}`, "https://lk.x", BadAnswer},
		{`{"url":"wss://sfu.x","jwt":"` + strings.Repeat("x", 1<<20) + `"}`, "https://lk.x", BadAnswer},
		{`{"url":"wss://sfu.x"}`, "https://lk.x", BadAnswer},
		{`<html>`, "https://lk.x", BadAnswer},
		{``, "https://lk.x", BadAnswer},
	} {
		got, f := State.ParseToken(json.RawMessage(c.body), Ask{SFU: c.sfu, Room: "!r:x", Member: alice}, 1500)
		reason := ""
		if f != nil {
			reason = f.Reason
		}
		if reason != c.reason || f == nil && (got.Room != "R" || got.ExpiresTS != 20000 || !strings.HasPrefix(got.URL, "ws")) {
			t.Errorf("%.80s: %+v %v", c.body, got, f)
		}
		if f != nil && strings.Contains(f.Message, "e30.") {
			t.Error("the message shows the token:", f.Message)
		}
	}
}

// A token for another room is refused, as far as it can be told.
func TestRoomsOfTokens(t *testing.T) {
	for _, c := range []struct {
		by   Generation
		room string
		good bool
	}{
		{State, Room("!r:x", "m.call#ROOM"), true},
		{State, "as an older service names it", true},
		{State, "!r:x", true},
		{State, "!other:x", false},
		{Sticky, Room("!r:x", "m.call#ROOM"), true},
		{Sticky, Room("!r:x", "m.call#OTHER"), false},
		{Sticky, Room("!other:x", "m.call#ROOM"), false},
		{Sticky, "!r:x", false},
		{Homeserver, Room("!other:x", "m.call#ROOM"), false},
	} {
		ask := Ask{SFU: "https://lk.x", Room: "!r:x", SlotID: "m.call#ROOM", Member: alice}
		jwt := token(fmt.Sprintf(`{"sub":%q,"video":{"room":%q},"exp":20}`, c.by.Identity(alice), c.room))
		_, f := c.by.ParseToken(json.RawMessage(fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, jwt)), ask, 1500)
		if (f == nil) != c.good || f != nil && (f.Reason != BadAnswer || !strings.Contains(f.Message, "another room")) {
			t.Errorf("%s %s: %+v", c.by, c.room, f)
		}
	}
}

func TestRequests(t *testing.T) {
	a := Ask{SFU: "https://lk.x", Room: "!r:x", SlotID: "m.call#ROOM", Member: alice, OpenID: json.RawMessage(`{"access_token":"o"}`)}
	for by, want := range map[Generation][2]string{
		State:      {"https://lk.x/sfu/get", `{"device_id":"DEV","openid_token":{"access_token":"o"},"room":"!r:x"}`},
		Sticky:     {"https://lk.x/get_token", `{"member":{"claimed_device_id":"DEV","claimed_user_id":"@alice:x","id":"m"},"openid_token":{"access_token":"o"},"room_id":"!r:x","slot_id":"m.call#ROOM"}`},
		Homeserver: {homeserverAPI + "/get_token", `{"member":{"claimed_device_id":"DEV","id":"m"},"room_id":"!r:x","slot_id":"m.call#ROOM","url":"https://lk.x"}`},
	} {
		r := by.TokenRequest(a)
		if r.Method != "POST" || r.BaseURL+r.Path != want[0] || string(r.Body) != want[1] {
			t.Errorf("%s: %s%s %s", by, r.BaseURL, r.Path, r.Body)
		}
	}
	a.DelayID, a.Delay = "d", delayForTest
	for by, want := range map[Generation][2]string{
		State:      {"https://lk.x/sfu/get", `{"delay_id":"d","delay_timeout":3600000,"device_id":"DEV","openid_token":{"access_token":"o"},"room":"!r:x"}`},
		Sticky:     {"https://lk.x/delegate_delayed_leave", `{"delay_id":"d","delay_timeout":3600000,"member":{"claimed_device_id":"DEV","claimed_user_id":"@alice:x","id":"m"},"openid_token":{"access_token":"o"},"room_id":"!r:x","slot_id":"m.call#ROOM"}`},
		Homeserver: {homeserverAPI + "/delegate_delayed_leave", `{"delay_id":"d","member":{"claimed_device_id":"DEV","id":"m"},"room_id":"!r:x","slot_id":"m.call#ROOM","url":"https://lk.x"}`},
	} {
		r := by.DelegationRequest(a)
		if r.BaseURL+r.Path != want[0] || string(r.Body) != want[1] {
			t.Errorf("%s: %s%s %s", by, r.BaseURL, r.Path, r.Body)
		}
	}
}

const delayForTest = 3600e9

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		e      wire.Error
		reason string
	}{
		{wire.Error{Network: true}, Unreachable},
		{wire.Error{Status: 401, Code: "M_UNAUTHORIZED"}, OpenIDRejected},
		{wire.Error{Status: 403}, Refused},
		{wire.Error{Status: 400, Code: "M_BAD_JSON"}, Refused},
		{wire.Error{Status: 404}, Refused},
		{wire.Error{Status: 404, Code: "M_NOT_FOUND"}, NoSuchRoom},
		{wire.Error{Status: 429}, Unreachable},
		{wire.Error{Status: 500}, Refused},
		{wire.Error{Status: 503}, Unreachable},
		{wire.Error{Status: 507}, Full},
		{wire.Error{Status: 403, Code: "M_RESOURCE_LIMIT_EXCEEDED"}, Full},
		{wire.Error{Status: 302}, BadAnswer},
		{wire.Error{Status: 200}, BadAnswer},
	} {
		if got := TokenError(&c.e).Reason; got != c.reason {
			t.Errorf("%+v: %s", c.e, got)
		}
	}
	for said, reason := range map[string]string{
		"engine: signal failure: 404 requested room does not exist": NoSuchRoom,
		"could not establish signal connection: invalid token":      Refused,
		"participant exceeds limits":                                Full,
		"connection refused":                                        Unreachable,
		"the room is full":                                          Full,
		"was not closed successfully, needs a full reconnect":       Unreachable,
	} {
		if got := ConnectError(0, said).Reason; got != reason {
			t.Errorf("%s: %s", said, got)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"url":"wss://sfu.x","jwt":"` + token(`{"sub":"@alice:x:DEV","video":{"room":"R"},"exp":20}`) + `"}`))
	f.Add([]byte(`{"access_token":"a","matrix_server_name":"x","expires_in":1e308}`))
	f.Add([]byte(`{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://[::1"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return // they are refused before
		}
		if got, failure := State.ParseToken(body, Ask{SFU: "https://lk.x", Room: "!r:x", Member: alice}, 1500); failure == nil && (got.Identity != "@alice:x:DEV" || got.ExpiresTS <= 1500) {
			t.Errorf("%+v", got)
		}
		if raw, lifetime, err := OpenID(body); err == nil && (!json.Valid(raw) || lifetime <= 0) {
			t.Errorf("%s for %v", raw, lifetime)
		}
		for _, x := range Transports(body) {
			if err := CheckURL(SFU(x), true); err == nil && SFU(x) == "" {
				t.Errorf("%s", x)
			}
		}
	})
}
