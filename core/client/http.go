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

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
)

const (
	maxAnswer     = 64 << 20 // bytes of an answer that we read
	maxSyncAnswer = 512 << 20
)

// perform makes a request, or hands it to the host. The lock is held.
func (c *Client) perform(r wire.Request) {
	if c.HostDriven() {
		c.inflight[r.ID] = r
		c.emit(Event{Name: "request", RoomID: r.Room, Session: r.Session, Data: hostRequest{r.ID, r.Kind, r.HTTP(), r.Anonymous}})
		return
	}
	c.spawn(func() {
		ctx, cancel := context.WithTimeout(c.ctx, r.Timeout)
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
		if fresh, ok := c.renew(ctx, token); ok {
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
// somebody else has got meanwhile.
func (c *Client) renew(ctx context.Context, rejected Secret) (Secret, bool) {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	c.mu.Lock()
	token, refresh := c.token, c.refresh
	c.mu.Unlock()
	if token != rejected {
		return token, true
	}
	if refresh == "" {
		return "", false
	}
	body, err := json.Marshal(map[string]string{"refresh_token": string(refresh)})
	if err != nil {
		return "", false
	}
	a := c.exchange(ctx, wire.HTTPRequest{Method: "POST", Path: "/_matrix/client/v3/refresh", Body: body}, "", maxAnswer)
	var got struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresInMS  int64  `json:"expires_in_ms"`
	}
	if a.Status != 200 || json.Unmarshal(a.Body, &got) != nil || got.AccessToken == "" {
		if a.Status == 401 || a.Status == 403 {
			c.mu.Lock()
			c.refresh = ""
			c.mu.Unlock()
		}
		return "", false
	}
	_ = c.do(func(session.Time) error {
		c.token = Secret(got.AccessToken)
		data := map[string]any{"access_token": got.AccessToken}
		if got.RefreshToken != "" {
			c.refresh = Secret(got.RefreshToken)
		}
		data["refresh_token"] = string(c.refresh)
		if got.ExpiresInMS > 0 {
			data["expires_in_ms"] = got.ExpiresInMS
		}
		c.emit(Event{Name: "token_refreshed", Data: data})
		return nil
	})
	return Secret(got.AccessToken), true
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
func (c *Client) login(ctx context.Context) *Error {
	cli, err := mautrix.NewClient(c.cfg.HomeserverURL, c.cfg.UserID, string(c.token))
	if err != nil {
		return invalid("/homeserver_url", "%v", err)
	}
	cli.Client, cli.Log, cli.DefaultHTTPRetries, cli.IgnoreRateLimit = c.http, zerolog.Nop(), 0, true
	cli.ResponseSizeLimit = maxAnswer
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if c.token == "" {
		got, err := cli.Login(ctx, &mautrix.ReqLogin{
			Type:       mautrix.AuthTypePassword,
			Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: string(c.cfg.UserID)},
			Password:   string(c.cfg.Password), DeviceID: c.cfg.DeviceID, InitialDeviceDisplayName: c.cfg.DeviceName,
			RefreshToken: true,
		})
		if err != nil {
			return homeserverError(err)
		}
		_ = c.do(func(session.Time) error {
			c.token, c.refresh = Secret(got.AccessToken), Secret(got.RefreshToken)
			c.makeSet(got.UserID, got.DeviceID)
			return nil
		})
		return nil
	}
	got, err := cli.Whoami(ctx)
	if err != nil {
		e := homeserverError(err)
		if e.HTTPStatus == 401 {
			if _, ok := c.renew(ctx, c.token); ok {
				return c.login(ctx)
			}
		}
		return e
	}
	if c.cfg.UserID != "" && got.UserID != c.cfg.UserID {
		return invalid("/user_id", "the access token belongs to %s, not to %s", got.UserID, c.cfg.UserID)
	}
	if c.cfg.DeviceID != "" && got.DeviceID != c.cfg.DeviceID {
		return invalid("/device_id", "the access token belongs to device %s, not to %s", got.DeviceID, c.cfg.DeviceID)
	}
	if got.DeviceID == "" {
		return invalid("/access_token", "the access token belongs to no device: calls need one")
	}
	_ = c.do(func(session.Time) error { c.makeSet(got.UserID, got.DeviceID); return nil })
	return nil
}

// homeserverError tells mautrix's errors in our form.
func homeserverError(err error) *Error {
	var h mautrix.HTTPError
	if errors.As(err, &h) && h.Response != nil {
		e := &Error{Status: ErrHomeserver, HTTPStatus: h.Response.StatusCode, Message: h.Response.Status}
		if h.RespError != nil {
			e.Errcode, e.Message = h.RespError.ErrCode, h.RespError.Err
		}
		return e
	}
	return &Error{Status: ErrNetwork, Message: networkError(err)}
}

// answerError tells a failed answer in our form.
func answerError(h wire.HTTPResponse) *Error {
	e := wire.ParseAnswer(wire.Request{}, h).Err
	if e == nil {
		return &Error{Status: ErrHomeserver, HTTPStatus: h.Status, Message: "the homeserver's answer is not a sync"}
	}
	status := ErrHomeserver
	if e.Network {
		status = ErrNetwork
	}
	return &Error{Status: status, HTTPStatus: e.Status, Errcode: e.Code, Message: e.Message, RetryAfterMS: e.RetryAfter.Milliseconds()}
}
