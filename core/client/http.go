package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

const (
	maxAnswer     = 32 << 20 // bytes of an answer that we read
	maxSyncAnswer = 128 << 20

	maxForeignAnswer = 1 << 20 // of anybody but our homeserver

	unansweredKept = 1000 // requests to the host

	defaultTimeout = 30 * time.Second
)

// perform makes a request, or hands it to the host. The lock is held.
func (c *Client) perform(r wire.Request) {
	if c.HostDriven() {
		if len(c.inflight) >= unansweredKept { // the host owes answers that nobody waits for any more
			maps.DeleteFunc(c.inflight, func(request uint64, _ wire.Request) bool { return !c.set.Awaits(request) })
		}
		kept := r
		kept.Content = nil // may hold a media key
		c.inflight[r.ID] = kept
		c.emit(Event{Name: "request", RoomID: r.Room, Session: r.Session, Data: newHostRequest(r)})
		return
	}
	switch r.Kind {
	case wire.EncryptAndSendToDevice:
		c.sendEncrypted(r)
		return
	case wire.EncryptAndSendEvent:
		c.sendEvent(r)
		return
	}
	c.spawn(func() {
		timeout := r.Timeout
		if timeout <= 0 {
			timeout = defaultTimeout
		}
		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		defer cancel()
		h := r.HTTP()
		limit := int64(maxAnswer)
		if r.Foreign() {
			limit = maxForeignAnswer
		}
		answer := c.authorized(ctx, h, !r.Anonymous && !r.Foreign(), limit)
		if c.ctx.Err() != nil {
			return
		}
		_ = c.do(func(now session.Time) error {
			if !r.Foreign() {
				c.learnDate(now, answer)
			}
			return c.set.Handle(now, session.Response{ID: r.ID, Answer: wire.ParseAnswer(r, answer)})
		})
	})
}

func (c *Client) learnDate(now session.Time, h wire.HTTPResponse) {
	if t, err := http.ParseTime(h.Headers["Date"]); err == nil {
		_ = c.set.Handle(now, session.ServerDate{UnixMS: t.UnixMilli() + 500})
	}
}

// authorized makes a request with our token. Where the homeserver rejects the token and there is
// a way to get another, it gets one and tries once more. A token that is known to be dead is not
// sent again.
func (c *Client) authorized(ctx context.Context, h wire.HTTPRequest, withToken bool, limit int64) wire.HTTPResponse {
	if !withToken {
		return c.exchange(ctx, h, "", limit)
	}
	token, dead := c.currentToken()
	if dead != nil {
		return *dead
	}
	answer := c.exchange(ctx, h, token, limit)
	if _, dead = c.currentToken(); dead != nil && answer.NetworkError != "" {
		return *dead // it was given up because of that
	}
	if !rejectsToken(answer) {
		return answer
	}
	fresh, failed := c.renew(token, answer)
	switch {
	case failed != nil:
		return wire.HTTPResponse{NetworkError: "the access token has expired and cannot be renewed now: " + answerError(*failed, "a login").Message}
	case fresh == "":
		return answer
	}
	if answer = c.exchange(ctx, h, fresh, limit); rejectsToken(answer) {
		c.reject(fresh, answer)
	}
	return answer
}

// exchange is one HTTP request and its answer as it came.
func (c *Client) exchange(ctx context.Context, h wire.HTTPRequest, token Secret, limit int64) wire.HTTPResponse {
	u := h.BaseURL + h.Path
	if h.BaseURL == "" {
		u = c.cfg.HomeserverURL + h.Path
	}
	if len(h.Query) > 0 {
		q := url.Values{}
		for k, v := range h.Query {
			q.Set(k, v)
		}
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, h.Method, u, bytes.NewReader(h.Body))
	if err != nil {
		return wire.HTTPResponse{NetworkError: err.Error()}
	}
	if h.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	if c.cfg.UserAgent != "" {
		req.Header.Set("User-Agent", c.cfg.UserAgent)
	}
	if h.Public && !c.proxied(req) {
		req = req.WithContext(context.WithValue(ctx, publicOnly{}, true))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return wire.HTTPResponse{NetworkError: networkError(err)}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return wire.HTTPResponse{NetworkError: networkError(err)}
	}
	if int64(len(body)) > limit {
		return wire.HTTPResponse{NetworkError: "the answer is longer than we read"}
	}
	if wire.DeeperThan(body, wire.MaxDepth) {
		return wire.HTTPResponse{NetworkError: "the answer nests deeper than we read"}
	}
	headers := make(map[string]string, len(resp.Header))
	for k := range resp.Header {
		headers[k] = resp.Header.Get(k)
	}
	return wire.HTTPResponse{Status: resp.StatusCode, Headers: headers, Body: body}
}

// proxied: the proxy resolves the name, in its network.
func (c *Client) proxied(req *http.Request) bool {
	t, ok := c.http.Transport.(*http.Transport)
	if !ok || t.Proxy == nil {
		return false
	}
	proxy, err := t.Proxy(req)
	return proxy != nil || err != nil
}

// networkError leaves out the URL, which may hold a delay id.
func networkError(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

func (c *Client) currentToken() (token Secret, dead *wire.HTTPResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token, c.rejection
}

// rejectsToken says whether the homeserver, and not something before it, refuses our token.
func rejectsToken(h wire.HTTPResponse) bool {
	e := wire.ParseAnswer(wire.Request{}, h).Err
	return e != nil && e.Status == 401 && (e.Code == "M_UNKNOWN_TOKEN" || e.Code == "M_MISSING_TOKEN")
}

// reject notes that a token is dead: nothing more is sent with it, and the sync hears of it at once.
func (c *Client) reject(token Secret, answer wire.HTTPResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != token {
		return
	}
	c.rejection = &answer
	if c.cancelSync != nil {
		c.cancelSync()
	}
}

// renew gets another token in place of one that was rejected: whatever somebody else has got
// meanwhile, by the refresh token, or, where the device still exists (a soft logout), by the
// password. Where there is none, the failure is nil if that is final, and else says why it could
// not be found out now.
func (c *Client) renew(rejected Secret, answer wire.HTTPResponse) (Secret, *wire.HTTPResponse) {
	c.renewing.Lock()
	defer c.renewing.Unlock()
	c.mu.Lock()
	token, refresh, password, dead := c.token, c.refresh, c.password, c.rejection
	c.mu.Unlock()
	switch {
	case token != rejected:
		return token, nil
	case dead != nil:
		return "", nil
	case c.renewFailed != nil && time.Now().Before(c.renewAgain):
		return "", c.renewFailed
	}
	// Not in the time of the request that needs it: an answer that is lost is a lost token.
	ctx, cancel := context.WithTimeout(c.ctx, defaultTimeout)
	defer cancel()
	soft := wire.ParseAnswer(wire.Request{}, answer).Err.SoftLogout
	for _, way := range []struct {
		possible bool
		attempt  func(context.Context) (tokens, wire.HTTPResponse)
		forget   *Secret
	}{
		{refresh != "", c.refreshToken, &c.refresh},
		{soft && password != "", c.loginAgain, &c.password},
	} {
		if !way.possible {
			continue
		}
		got, a := way.attempt(ctx)
		switch {
		case got.AccessToken != "":
			return c.renewed(rejected, got), nil
		case refuses(a):
			c.mu.Lock()
			*way.forget = ""
			c.mu.Unlock()
			continue
		case a.Status == 200:
			a = wire.HTTPResponse{NetworkError: "the homeserver's answer has no access_token"}
		}
		pause := max(answerError(a, "a login").RetryAfterMS, retryMin.Milliseconds())
		c.renewFailed, c.renewAgain = &a, time.Now().Add(min(time.Duration(pause)*time.Millisecond, retryAfterMax))
		return "", &a
	}
	c.reject(rejected, answer)
	return "", nil
}

// refuses says whether an answer is a refusal by the homeserver that asking again will not change.
func refuses(h wire.HTTPResponse) bool {
	e := wire.ParseAnswer(wire.Request{}, h).Err
	return e != nil && e.Code != "" && (e.Status == 400 || e.Status == 401 || e.Status == 403 || e.Status == 404)
}

// tokens are what a login or a refresh answers.
type tokens struct {
	AccessToken  string      `json:"access_token"`
	RefreshToken string      `json:"refresh_token"`
	ExpiresInMS  int64       `json:"expires_in_ms"`
	UserID       id.UserID   `json:"user_id"`
	DeviceID     id.DeviceID `json:"device_id"`
}

func (c *Client) askTokens(ctx context.Context, path string, body any) (got tokens, a wire.HTTPResponse) {
	raw, err := json.Marshal(body)
	if err != nil {
		return got, wire.HTTPResponse{NetworkError: err.Error()}
	}
	a = c.exchange(ctx, wire.HTTPRequest{Method: "POST", Path: path, Body: raw}, "", maxAnswer)
	if a.Status != 200 || a.NetworkError != "" || json.Unmarshal(a.Body, &got) != nil {
		return tokens{}, a
	}
	return got, a
}

func (c *Client) refreshToken(ctx context.Context) (tokens, wire.HTTPResponse) {
	c.mu.Lock()
	refresh := c.refresh
	c.mu.Unlock()
	return c.askTokens(ctx, "/_matrix/client/v3/refresh", map[string]string{"refresh_token": string(refresh)})
}

// loginAgain logs in as the device that we are.
func (c *Client) loginAgain(ctx context.Context) (tokens, wire.HTTPResponse) {
	c.mu.Lock()
	user, device := c.info.UserID, c.info.DeviceID
	c.mu.Unlock()
	notOurs := wire.HTTPResponse{Status: 403, Body: []byte(`{"errcode":"M_FORBIDDEN","error":"not our device"}`)}
	if user == "" || device == "" {
		return tokens{}, notOurs
	}
	got, a := c.passwordLogin(ctx, user, device)
	if got.AccessToken != "" && (got.UserID != user || got.DeviceID != device) {
		return tokens{}, notOurs
	}
	return got, a
}

// renewed takes in tokens that replace a rejected one, and tells the host, who may store them.
func (c *Client) renewed(rejected Secret, got tokens) (token Secret) {
	_ = c.do(func(session.Time) error {
		if c.token != rejected {
			token = c.token // the host was faster
			return nil
		}
		token = Secret(got.AccessToken)
		c.token, c.renewFailed = token, nil
		if got.RefreshToken != "" {
			c.refresh = Secret(got.RefreshToken)
		}
		data := map[string]any{"access_token": got.AccessToken}
		if c.refresh != "" {
			data["refresh_token"] = string(c.refresh)
		}
		if got.ExpiresInMS > 0 {
			data["expires_in_ms"] = got.ExpiresInMS
		}
		c.emit(Event{Name: "token_refreshed", Data: data})
		return nil
	})
	return token
}

// SetAccessToken gives the client a new token of the same device; what waited for one goes on.
func (c *Client) SetAccessToken(token, refresh string) error {
	if token == "" {
		return invalid("/access_token", "expected a token")
	}
	return c.do(func(session.Time) error {
		if c.HostDriven() {
			return wrongState("a host-driven client has no access token")
		}
		c.token, c.refresh, c.rejection = Secret(token), Secret(refresh), nil
		close(c.tokenSet)
		c.tokenSet = make(chan struct{})
		return nil
	})
}

// login finds out who we are: by password, or by asking whose the token is.
func (c *Client) login() *Error {
	ctx, cancel := context.WithTimeout(c.ctx, defaultTimeout)
	defer cancel()
	c.mu.Lock()
	token, user, device := c.token, c.info.UserID, c.info.DeviceID
	c.mu.Unlock()
	if token == "" {
		return c.loginByPassword(ctx, device)
	}
	h := c.authorized(ctx, wire.HTTPRequest{Method: "GET", Path: "/_matrix/client/v3/account/whoami"}, true, maxAnswer)
	var got mautrix.RespWhoami
	if h.Status != 200 || json.Unmarshal(h.Body, &got) != nil || got.UserID == "" {
		return answerError(h, "a whoami")
	}
	switch {
	case user != "" && got.UserID != user:
		return invalid("/user_id", "the access token belongs to %s, not to %s", got.UserID, user)
	case got.DeviceID == "":
		return invalid("/access_token", "the access token belongs to no device: calls need one")
	case device != "" && got.DeviceID != device:
		return invalid("/device_id", "the access token belongs to device %s, not to %s", got.DeviceID, device)
	}
	return c.loggedIn("", "", got.UserID, got.DeviceID)
}

func (c *Client) loginByPassword(ctx context.Context, device id.DeviceID) *Error {
	got, h := c.passwordLogin(ctx, c.cfg.UserID, device)
	if got.AccessToken == "" || got.UserID == "" || got.DeviceID == "" {
		return answerError(h, "a login")
	}
	return c.loggedIn(Secret(got.AccessToken), Secret(got.RefreshToken), got.UserID, got.DeviceID)
}

func (c *Client) passwordLogin(ctx context.Context, user id.UserID, device id.DeviceID) (tokens, wire.HTTPResponse) {
	return c.askTokens(ctx, "/_matrix/client/v3/login", mautrix.ReqLogin{
		Type:       mautrix.AuthTypePassword,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: string(user)},
		Password:   string(c.cfg.Password), DeviceID: device, InitialDeviceDisplayName: c.cfg.DeviceName,
		RefreshToken: true,
	})
}

// loggedIn takes in who we are, and the tokens of a new login.
func (c *Client) loggedIn(token, refresh Secret, user id.UserID, device id.DeviceID) *Error {
	return AsError(c.do(func(now session.Time) error {
		if token != "" {
			c.token, c.refresh, c.rejection = token, refresh, nil
		}
		c.info.UserID, c.info.DeviceID = user, device
		c.set.SetIdentity(now, user, device)
		return nil
	}))
}

// answerError tells a failed answer in our form; what is the answer that was expected.
func answerError(h wire.HTTPResponse, what string) *Error {
	e := wire.ParseAnswer(wire.Request{}, h).Err
	if e == nil {
		return &Error{Status: ErrHomeserver, HTTPStatus: h.Status, Message: "the homeserver's answer is not that of " + what}
	}
	status, message := ErrHomeserver, e.Message
	switch {
	case e.Network:
		status = ErrNetwork
	case e.Code == "" && e.Status/100 == 4:
		message += ", and not in the way of Matrix: is this the URL of a homeserver?"
	}
	return &Error{Status: status, HTTPStatus: e.Status, Errcode: e.Code, Message: message, RetryAfterMS: e.RetryAfter.Milliseconds(), SoftLogout: e.SoftLogout}
}
