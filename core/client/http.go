package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

const (
	maxAnswer     = 64 << 20 // bytes of an answer that we read
	maxSyncAnswer = 512 << 20

	defaultTimeout = 30 * time.Second
)

// perform makes a request, or hands it to the host. The lock is held.
func (c *Client) perform(r wire.Request) {
	if c.HostDriven() {
		c.inflight[r.ID] = r
		c.emit(Event{Name: "request", RoomID: r.Room, Session: r.Session, Data: hostRequest{r.ID, r.Kind, r.HTTP(), r.Anonymous}})
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
		answer := c.authorized(ctx, h, !r.Anonymous, maxAnswer)
		if c.ctx.Err() != nil {
			return
		}
		_ = c.do(func(now session.Time) error {
			c.learnDate(now, answer)
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
// a way to get another, it gets one and tries once more.
func (c *Client) authorized(ctx context.Context, h wire.HTTPRequest, withToken bool, limit int64) wire.HTTPResponse {
	token := Secret("")
	if withToken {
		c.mu.Lock()
		token = c.token
		c.mu.Unlock()
	}
	answer := c.exchange(ctx, h, token, limit)
	if answer.Status == 401 && withToken {
		switch fresh, failed := c.renew(token); {
		case failed != nil:
			return wire.HTTPResponse{NetworkError: "the access token has expired and cannot be refreshed now: " + answerError(*failed, "a refresh").Message}
		case fresh != "":
			answer = c.exchange(ctx, h, fresh, limit)
		}
	}
	return answer
}

// exchange is one HTTP request and its answer as it came.
func (c *Client) exchange(ctx context.Context, h wire.HTTPRequest, token Secret, limit int64) wire.HTTPResponse {
	u := c.cfg.HomeserverURL + h.Path
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
	headers := make(map[string]string, len(resp.Header))
	for k := range resp.Header {
		headers[k] = resp.Header.Get(k)
	}
	return wire.HTTPResponse{Status: resp.StatusCode, Headers: headers, Body: body}
}

// networkError leaves out the URL, which may hold a delay id.
func networkError(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// renew gets another token in place of one that was rejected: by the refresh token, or whatever
// somebody else has got meanwhile. Where there is none, the error is nil if that is final, and
// else says why it could not be found out now.
func (c *Client) renew(rejected Secret) (Secret, *wire.HTTPResponse) {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	c.mu.Lock()
	token, refresh := c.token, c.refresh
	c.mu.Unlock()
	if token != rejected {
		return token, nil
	}
	if refresh == "" {
		return "", nil
	}
	body, err := json.Marshal(map[string]string{"refresh_token": string(refresh)})
	if err != nil {
		return "", nil
	}
	// Not in the time of the request that needs it: an answer that is lost is a lost token.
	ctx, cancel := context.WithTimeout(c.ctx, defaultTimeout)
	defer cancel()
	a := c.exchange(ctx, wire.HTTPRequest{Method: "POST", Path: "/_matrix/client/v3/refresh", Body: body}, "", maxAnswer)
	var got struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresInMS  int64  `json:"expires_in_ms"`
	}
	switch {
	case a.Status == 401 || a.Status == 403 || a.Status == 404:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refresh == refresh {
			c.refresh = ""
		}
		return "", nil
	case a.Status != 200 || json.Unmarshal(a.Body, &got) != nil || got.AccessToken == "":
		if a.Status == 200 {
			a = wire.HTTPResponse{NetworkError: "the homeserver's answer has no access_token"}
		}
		return "", &a
	}
	_ = c.do(func(session.Time) error {
		if c.token != rejected {
			got.AccessToken = string(c.token) // the host was faster
			return nil
		}
		c.token = Secret(got.AccessToken)
		if got.RefreshToken != "" {
			c.refresh = Secret(got.RefreshToken)
		}
		data := map[string]any{"access_token": got.AccessToken, "refresh_token": string(c.refresh)}
		if got.ExpiresInMS > 0 {
			data["expires_in_ms"] = got.ExpiresInMS
		}
		c.emit(Event{Name: "token_refreshed", Data: data})
		return nil
	})
	return Secret(got.AccessToken), nil
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
		c.token, c.refresh = Secret(token), Secret(refresh)
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
	body, err := json.Marshal(mautrix.ReqLogin{
		Type:       mautrix.AuthTypePassword,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: string(c.cfg.UserID)},
		Password:   string(c.cfg.Password), DeviceID: device, InitialDeviceDisplayName: c.cfg.DeviceName,
		RefreshToken: true,
	})
	if err != nil {
		return AsError(err)
	}
	h := c.exchange(ctx, wire.HTTPRequest{Method: "POST", Path: "/_matrix/client/v3/login", Body: body}, "", maxAnswer)
	var got mautrix.RespLogin
	if h.Status != 200 || json.Unmarshal(h.Body, &got) != nil || got.AccessToken == "" || got.UserID == "" || got.DeviceID == "" {
		return answerError(h, "a login")
	}
	return c.loggedIn(Secret(got.AccessToken), Secret(got.RefreshToken), got.UserID, got.DeviceID)
}

// loggedIn takes in who we are, and the tokens of a new login.
func (c *Client) loggedIn(token, refresh Secret, user id.UserID, device id.DeviceID) *Error {
	return AsError(c.do(func(session.Time) error {
		if token != "" {
			c.token, c.refresh = token, refresh
		}
		c.makeSet(user, device)
		return nil
	}))
}

// answerError tells a failed answer in our form; what is the answer that was expected.
func answerError(h wire.HTTPResponse, what string) *Error {
	e := wire.ParseAnswer(wire.Request{}, h).Err
	if e == nil {
		return &Error{Status: ErrHomeserver, HTTPStatus: h.Status, Message: "the homeserver's answer is not that of " + what}
	}
	status := ErrHomeserver
	if e.Network {
		status = ErrNetwork
	}
	return &Error{Status: status, HTTPStatus: e.Status, Errcode: e.Code, Message: e.Message, RetryAfterMS: e.RetryAfter.Milliseconds(), SoftLogout: e.SoftLogout}
}
