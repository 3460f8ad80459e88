package livekit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Generation is a way to get a token. It decides the identity on the SFU.
type Generation string

// The generations, newest last.
const (
	State      Generation = "state"      // POST {service}/sfu/get
	Sticky     Generation = "sticky"     // POST {service}/get_token
	Homeserver Generation = "homeserver" // POST .../rtc/livekit/get_token of the homeserver
)

// Ask is all that a request for a token says. Which of it goes out depends on the generation.
type Ask struct {
	SFU    string
	Room   id.RoomID
	SlotID string
	Member Member
	OpenID json.RawMessage // of this service alone
	Server string          // homeserver generation: of the member who publishes there; "" is ours

	DelayID string // hands over the delayed leave with this id, a secret,
	Delay   time.Duration
}

const homeserverAPI = "/_matrix/client/unstable/io.element.msc4195/rtc/livekit"

// Identity is what a token of this generation must be for.
func (g Generation) Identity(m Member) string {
	if g == State {
		return m.clear()
	}
	return m.hashed()
}

// NeedsOpenID says whether the request proves who we are by an OpenID token.
func (g Generation) NeedsOpenID() bool { return g != Homeserver }

// TokenRequest asks for a token; in the state generation it can hand over the delayed leave as well.
func (g Generation) TokenRequest(a Ask) wire.HTTPRequest {
	switch g {
	case Homeserver:
		body := a.homeserverBody()
		if a.Server != "" {
			body["server_name"] = a.Server
		}
		return post("", homeserverAPI+"/get_token", body)
	case Sticky:
		return post(a.SFU, "/get_token", a.stickyBody())
	}
	body := map[string]any{"room": a.Room, "openid_token": a.OpenID, "device_id": a.Member.DeviceID}
	a.addDelay(body)
	return post(a.SFU, "/sfu/get", body)
}

// DelegationRequest hands over the delayed leave. In the state generation that is a request for a
// token, and so is its answer.
func (g Generation) DelegationRequest(a Ask) wire.HTTPRequest {
	switch g {
	case Homeserver:
		body := a.homeserverBody()
		body["delay_id"] = a.DelayID
		return post("", homeserverAPI+"/delegate_delayed_leave", body)
	case Sticky:
		body := a.stickyBody()
		a.addDelay(body)
		return post(a.SFU, "/delegate_delayed_leave", body)
	}
	return g.TokenRequest(a)
}

func (a Ask) stickyBody() map[string]any {
	return map[string]any{
		"room_id": a.Room, "slot_id": a.SlotID, "openid_token": a.OpenID,
		"member": map[string]any{"id": a.Member.MemberID, "claimed_user_id": a.Member.UserID, "claimed_device_id": a.Member.DeviceID},
	}
}

func (a Ask) homeserverBody() map[string]any {
	return map[string]any{
		"url": a.SFU, "room_id": a.Room, "slot_id": a.SlotID,
		"member": map[string]any{"id": a.Member.MemberID, "claimed_device_id": a.Member.DeviceID},
	}
}

func (a Ask) addDelay(body map[string]any) {
	if a.DelayID != "" {
		body["delay_id"], body["delay_timeout"] = a.DelayID, a.Delay.Milliseconds()
	}
}

func post(base, path string, body any) wire.HTTPRequest {
	raw, err := json.Marshal(body)
	if err != nil {
		raw = json.RawMessage("{}") // the raw parts were validated when they came in
	}
	return wire.HTTPRequest{Method: "POST", BaseURL: base, Path: path, Body: raw}
}

// OpenID reads the token that proves who we are, and how long it does.
func OpenID(body json.RawMessage) (token json.RawMessage, lifetime time.Duration, err error) {
	b := gjson.ParseBytes(body)
	access, server, expires := b.Get("access_token"), b.Get("matrix_server_name"), b.Get("expires_in")
	if access.Type != gjson.String || access.Str == "" || server.Type != gjson.String || server.Str == "" {
		return nil, 0, fmt.Errorf("the homeserver's answer has no access_token and matrix_server_name")
	}
	seconds := int64(60)
	if expires.Type == gjson.Number && expires.Num >= 1 && expires.Num < 1e9 {
		seconds = int64(expires.Num)
	}
	// Only what every service knows: some refuse other fields.
	token, err = json.Marshal(map[string]any{
		"access_token": access.Str, "token_type": "Bearer", "matrix_server_name": server.Str, "expires_in": seconds,
	})
	return token, time.Duration(seconds) * time.Second, err
}

// Token lets one enter an SFU.
type Token struct {
	URL       string // of the SFU: ws or wss
	JWT       string // a secret
	Identity  string
	Room      string // the name of the LiveKit room
	ExpiresTS int64  // Unix ms
}

// Why there is no token.
const (
	Unreachable    = "unreachable"       // the service does not answer
	Refused        = "refused"           // it does not let us in
	OpenIDRejected = "openid_rejected"   // it does not believe who we are
	Full           = "full"              // no place left, in the room or on the SFU
	NoSuchRoom     = "no_such_room"      // we may enter the LiveKit room, not create it, and nobody is there yet
	WrongIdentity  = "identity_mismatch" // the token is for somebody else
	Untrusted      = "untrusted"         // it is not to have our OpenID token
	BadAnswer      = "bad_answer"        // what it says is no token
)

// Failure is why there is no token.
type Failure struct {
	Reason  string
	Message string // for a person
}

func failed(reason, format string, args ...any) *Failure {
	return &Failure{reason, fmt.Sprintf(format, args...)}
}

// ParseToken reads a token, and holds it against what was asked for.
func (g Generation) ParseToken(body json.RawMessage, a Ask, nowTS int64) (t Token, f *Failure) {
	b := gjson.ParseBytes(body)
	jwt, at := b.Get("jwt"), b.Get("url")
	if jwt.Type != gjson.String || jwt.Str == "" || len(jwt.Str) > maxJWT {
		return t, failed(BadAnswer, "the answer has no jwt")
	}
	t.URL, t.JWT = strings.Clone(at.Str), strings.Clone(jwt.Str)
	if g == Homeserver && t.URL == "" {
		t.URL = a.SFU // the SFU itself was asked for
	}
	if t.URL, f = websocketURL(t.URL, Private(a.SFU)); f != nil {
		return t, f
	}
	claims, ok := jwtClaims(t.JWT)
	if !ok {
		return t, failed(BadAnswer, "the jwt is not one")
	}
	t.Identity, t.Room = strings.Clone(claims.Get("sub").Str), strings.Clone(claims.Get("video.room").Str)
	if expected := g.Identity(a.Member); t.Identity != expected {
		return t, failed(WrongIdentity, "the token is for the identity %q, expected %q: our media would belong to nobody", t.Identity, expected)
	}
	switch {
	case t.Room == "":
		return t, failed(BadAnswer, "the token is for no room")
	case !g.mayBeRoom(t.Room, a):
		return t, failed(BadAnswer, "the token is for another room: we would meet nobody of this call there")
	}
	if exp := claims.Get("exp"); exp.Type == gjson.Number && exp.Num > 0 && exp.Num < 1e12 {
		t.ExpiresTS = int64(exp.Num) * 1000
	}
	switch {
	case t.ExpiresTS <= nowTS:
		return t, failed(BadAnswer, "the token has expired")
	case t.ExpiresTS < nowTS+minLife:
		return t, failed(BadAnswer, "the token expires within seconds")
	}
	return t, nil
}

// mayBeRoom: in the state generation each release of the service has named its rooms in another way,
// after the Matrix room at first.
func (g Generation) mayBeRoom(name string, a Ask) bool {
	if g == State {
		return name == string(a.Room) || !strings.HasPrefix(name, "!")
	}
	return name == Room(a.Room, a.SlotID)
}

const (
	maxJWT   = 16 << 10
	minLife  = 10_000 // ms, or one would be asked for after the other
	maxDepth = 64
)

func websocketURL(s string, private bool) (string, *Failure) {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL {
		return "", failed(BadAnswer, "url: expected the URL of an SFU")
	}
	scheme, ok := map[string]string{"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}[u.Scheme]
	if !ok {
		return "", failed(BadAnswer, "url: expected ws, wss, http or https, got scheme %q", u.Scheme)
	}
	u.Scheme = scheme
	if err := CheckURL(u.String(), private); err != nil {
		return "", failed(BadAnswer, "url: %v", err)
	}
	return u.String(), nil
}

// jwtClaims reads what a JWT says. Only the SFU, whose secret it is signed with, can verify it.
func jwtClaims(jwt string) (gjson.Result, bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return gjson.Result{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || !wire.ValidJSON(raw, maxDepth) {
		return gjson.Result{}, false
	}
	claims := gjson.ParseBytes(raw)
	return claims, claims.IsObject()
}

// TokenError tells apart why a token was not given.
func TokenError(e *wire.Error) *Failure {
	switch {
	case e.Network:
		return failed(Unreachable, "the authorisation service cannot be reached: %s", e.Message)
	case e.Status == 401:
		return failed(OpenIDRejected, "the authorisation service does not accept our OpenID token: %s", e.Message)
	case e.Status == 429 || e.Status == 502 || e.Status == 503 || e.Status == 504:
		return failed(Unreachable, "the authorisation service is busy or down: %s", e.Message)
	case e.Status == 507 || e.Code == "M_RESOURCE_LIMIT_EXCEEDED":
		return failed(Full, "the SFU takes no more participants: %s", e.Message)
	case e.Status == 404 && e.Code == "M_NOT_FOUND":
		return failed(NoSuchRoom, "the call has no room on this SFU yet, and we may not create it: %s", e.Message)
	case e.Status >= 400:
		return failed(Refused, "the authorisation service refuses: %s", e.Message)
	default: // also redirects, which are not followed to another origin
		return failed(BadAnswer, "the authorisation service does not answer as one: %s", e.Message)
	}
}

var jwts = regexp.MustCompile(`\bey[\w-]+\.[\w-]+\.[\w-]*`)

// WithoutTokens leaves out what looks like a JWT: SDKs tell of URLs that carry one.
func WithoutTokens(said string) string { return jwts.ReplaceAllString(said, "[redacted]") }

// NoEndpoint says that a service does not have the endpoint of a generation.
func NoEndpoint(e *wire.Error) bool {
	return (e.Status == 404 || e.Status == 405) && e.Code != "M_NOT_FOUND"
}

// ConnectError tells apart why an SFU did not let us in with a token, by what it or its SDK said.
func ConnectError(status int, message string) *Failure {
	said := strings.ToLower(message)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
				return true
			}
		}
		return false
	}
	switch {
	case status == 404 || has("room does not exist", "room not found"):
		return failed(NoSuchRoom, "the call has no room on this SFU yet, and we may not create it: %s", message)
	case status == 401 || status == 403 || has("unauthorized", "invalid token", "not allowed"):
		return failed(Refused, "the SFU does not accept the token: %s", message)
	case status == 429 || status == 507 || has("exceeds limits", "max participants", "limit exceeded", "is full"):
		return failed(Full, "the SFU takes no more participants: %s", message)
	default:
		return failed(Unreachable, "the SFU cannot be reached: %s", message)
	}
}
