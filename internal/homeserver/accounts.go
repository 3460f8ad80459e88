package homeserver

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Users, their devices, and the tokens that prove to be one.

type user struct {
	id       string
	name     string
	password string
	devices  map[string]*device
	rooms    map[*room]struct{} // where there is a membership of this user
	filters  []*filter
	changed  chan struct{} // closed when there is something new to sync; nil: nobody waits

	accountData  map[string]accountData          // by type
	crossSigning map[string]*crossSigningKey     // by what they are for
	signatures   map[signedKey]map[string]string // made with keys of this user, by the key's id
	signed       map[string]int64                // when a key of another user was signed
	keysChanged  int64                           // when devices or their keys last did
}

type device struct {
	user *user
	id   string
	txns map[string]string      // what a transaction of this device made: an event or delay id
	seen map[lazyKey]sentMember // members that lazy loading has sent

	keys     json.RawMessage // canonical
	oneTime  []*oneTimeKey   // the oldest first
	fallback map[string]*oneTimeKey
	inbox    []toDeviceMessage // the oldest first
}

type accessToken struct {
	device  *device
	expires time.Time // zero: never
	refresh *refreshToken
}

type refreshToken struct {
	device *device
	next   *refreshToken // what it was exchanged for
	used   bool          // it, or an access token that came with it, was used
}

var accountRoutes = []route{
	{"register", "POST", "/v3/register", anyone, (*Server).register},
	{"register", "GET", "/v3/register/available", anyone, (*Server).registerAvailable},
	{"login", "GET", "/v3/login", anyone, (*Server).loginFlows},
	{"login", "POST", "/v3/login", anyone, (*Server).login},
	{"refresh", "POST", "/v3/refresh", anyone, (*Server).refreshTokens},
	{"logout", "POST", "/v3/logout", needsToken, (*Server).logout},
	{"logout", "POST", "/v3/logout/all", needsToken, (*Server).logoutAll},
	{"whoami", "GET", "/v3/account/whoami", needsToken, (*Server).whoami},
}

// authenticate finds out who asks. The lock is held.
func (s *Server) authenticate(r *request, a access) error {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		given = r.URL.Query().Get("access_token")
	}
	if a == anyone {
		return nil
	}
	if given == "" {
		if a == takesToken {
			return nil
		}
		return fail(401, "M_MISSING_TOKEN", "this endpoint needs an access token")
	}
	token, known := s.tokens[given]
	soft := known && !token.expires.IsZero() && s.clock().After(token.expires)
	if !known || soft {
		e := fail(401, "M_UNKNOWN_TOKEN", "the access token is not valid")
		e.softLogout = &soft
		return e
	}
	if token.refresh != nil {
		token.refresh.used = true
	}
	r.device, r.user = token.device, token.device.user
	return nil
}

func (s *Server) register(r *request) (any, error) {
	var in struct {
		Username     string                 `json:"username"`
		Password     string                 `json:"password"`
		DeviceID     string                 `json:"device_id"`
		InhibitLogin bool                   `json:"inhibit_login"`
		RefreshToken bool                   `json:"refresh_token"`
		Auth         *struct{ Type string } `json:"auth"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.Username != "" {
		if err := s.usable(in.Username); err != nil {
			return nil, err
		}
	}
	if in.Auth == nil || in.Auth.Type != "m.login.dummy" {
		return &answer{status: 401, body: map[string]any{
			"session": random(24), "params": struct{}{},
			"flows": []any{map[string][]string{"stages": {"m.login.dummy"}}},
		}}, nil
	}
	if in.Username == "" {
		in.Username = strings.ToLower(letters(random(24)))
	}
	u := &user{
		id: "@" + in.Username + ":" + s.ServerName, name: in.Username, password: in.Password,
		devices: map[string]*device{}, rooms: map[*room]struct{}{}, accountData: map[string]accountData{},
		crossSigning: map[string]*crossSigningKey{}, signatures: map[signedKey]map[string]string{}, signed: map[string]int64{},
	}
	s.users[u.id] = u
	out := map[string]any{"user_id": u.id, "home_server": s.ServerName}
	if !in.InhibitLogin {
		s.newSession(u, in.DeviceID, in.RefreshToken, out)
	}
	return out, nil
}

func (s *Server) registerAvailable(r *request) (any, error) {
	if err := s.usable(r.URL.Query().Get("username")); err != nil {
		return nil, err
	}
	return map[string]bool{"available": true}, nil
}

// usable says what is wrong with a name for a new user.
func (s *Server) usable(name string) error {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._=-/+") != "" {
		return fail(400, "M_INVALID_USERNAME", "a user name has only a-z, 0-9 and ._=-/+")
	}
	if _, taken := s.users["@"+name+":"+s.ServerName]; taken {
		return fail(400, "M_USER_IN_USE", "the user name is taken")
	}
	return nil
}

func (s *Server) loginFlows(*request) (any, error) {
	return map[string]any{"flows": []any{map[string]string{"type": "m.login.password"}}}, nil
}

func (s *Server) login(r *request) (any, error) {
	var in struct {
		Type       string `json:"type"`
		Identifier *struct {
			Type string `json:"type"`
			User string `json:"user"`
		} `json:"identifier"`
		User         string  `json:"user"` // before identifiers
		Password     *string `json:"password"`
		DeviceID     string  `json:"device_id"`
		RefreshToken bool    `json:"refresh_token"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	name := in.User
	if in.Identifier != nil && in.Identifier.Type == "m.id.user" {
		name = in.Identifier.User
	}
	switch {
	case in.Type == "":
		return nil, fail(400, "M_UNKNOWN", "type is missing")
	case in.Type != "m.login.password":
		return nil, fail(400, "M_INVALID_PARAM", "only m.login.password is served")
	case name == "" || in.Password == nil:
		return nil, fail(400, "M_INVALID_PARAM", "a login needs identifier and password")
	}
	if !strings.HasPrefix(name, "@") {
		name = "@" + name + ":" + s.ServerName
	}
	u := s.users[name]
	if u == nil || u.password != *in.Password {
		return nil, fail(403, "M_FORBIDDEN", "wrong user name or password")
	}
	out := map[string]any{"user_id": u.id, "home_server": s.ServerName}
	s.newSession(u, in.DeviceID, in.RefreshToken, out)
	return out, nil
}

// newSession logs a device in.
func (s *Server) newSession(u *user, deviceID string, refreshable bool, out map[string]any) {
	if deviceID == "" {
		deviceID = strings.ToUpper(letters(random(10)))
	}
	d := u.devices[deviceID]
	if d == nil {
		d = &device{
			user: u, id: deviceID, txns: map[string]string{}, seen: map[lazyKey]sentMember{}, fallback: map[string]*oneTimeKey{},
		}
		u.devices[deviceID] = d
		s.announce(u)
	}
	out["device_id"] = deviceID
	s.newTokens(d, refreshable, out)
}

// newTokens makes an access token and, if wanted, the refresh token that goes with it.
func (s *Server) newTokens(d *device, refreshable bool, out map[string]any) *refreshToken {
	token := &accessToken{device: d}
	if refreshable {
		token.refresh = &refreshToken{device: d}
		token.expires = s.clock().Add(s.AccessTokenLife)
		secret := "syr_" + random(32)
		s.refresh[secret] = token.refresh
		out["refresh_token"] = secret
		out["expires_in_ms"] = s.AccessTokenLife.Milliseconds()
	}
	secret := "syt_" + random(32)
	s.tokens[secret] = token
	out["access_token"] = secret
	return token.refresh
}

// refreshTokens exchanges a refresh token. It may be exchanged again, should the answer have been
// lost, until what it was exchanged for is used.
func (s *Server) refreshTokens(r *request) (any, error) {
	var in struct {
		RefreshToken *string `json:"refresh_token"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.RefreshToken == nil {
		return nil, fail(400, "M_MISSING_PARAM", "refresh_token is missing")
	}
	token := s.refresh[*in.RefreshToken]
	if token == nil {
		return nil, fail(401, "M_UNKNOWN_TOKEN", "the refresh token is not known")
	}
	if token.next != nil && token.next.used {
		return nil, fail(403, "M_FORBIDDEN", "the refresh token has been exchanged and its successor used")
	}
	out := map[string]any{}
	token.used = true
	token.next = s.newTokens(token.device, true, out)
	return out, nil
}

func (s *Server) logout(r *request) (any, error) {
	s.forget(r.device)
	return struct{}{}, nil
}

func (s *Server) logoutAll(r *request) (any, error) {
	for _, d := range r.user.devices {
		s.forget(d)
	}
	return struct{}{}, nil
}

// forget deletes a device and its tokens. Its delayed events stay.
func (s *Server) forget(d *device) {
	delete(d.user.devices, d.id)
	s.revoke(func(of *device) bool { return of == d })
	s.announce(d.user)
}

func (s *Server) revoke(which func(*device) bool) {
	for secret, t := range s.tokens {
		if which(t.device) {
			delete(s.tokens, secret)
		}
	}
	for secret, t := range s.refresh {
		if which(t.device) {
			delete(s.refresh, secret)
		}
	}
}

func (s *Server) whoami(r *request) (any, error) {
	return map[string]any{"user_id": r.user.id, "device_id": r.device.id, "is_guest": false}, nil
}

// is says whether two are the same device, which may have been logged out and in again between.
func (d *device) is(other *device) bool { return d.id == other.id && d.user == other.user }

// wake tells the user's syncs that there is something new.
func (u *user) wake() {
	if u.changed != nil {
		close(u.changed)
		u.changed = nil
	}
}

// news is closed at the next wake.
func (u *user) news() <-chan struct{} {
	if u.changed == nil {
		u.changed = make(chan struct{})
	}
	return u.changed
}

// checkUserID says what is wrong with a user id.
func checkUserID(id string) error {
	name, domain, ok := strings.Cut(id, ":")
	if !ok || !strings.HasPrefix(name, "@") || domain == "" {
		return fmt.Errorf("expected @name:server, got %q", id)
	}
	return nil
}
