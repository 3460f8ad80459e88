package client

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

const (
	longPoll     = 30 * time.Second
	syncMargin   = 30 * time.Second // a long poll that takes so much longer is given up
	firstSyncMax = 5 * time.Minute
	retryMin     = time.Second
	retryMax     = 30 * time.Second

	refusals = 2 // of a sync, before it is one from the beginning

	rapidSync  = 250 * time.Millisecond // quicker answers than this,
	rapidSyncs = 40                     // so many of them in a row, and there is a pause before each

	retryAfterMax = 10 * time.Minute // whatever longer pause a homeserver names
)

// runSync logs in and syncs until the client is stopped. Whatever fails is told by sync_state and
// tried again, but for what trying cannot mend: then it waits for a new token.
func (c *Client) runSync() {
	c.syncState("initial", nil)
	failures, rapid := 0, 0
	loggedIn, since := false, ""
	var loginOf <-chan struct{} // the token of the host's that was there at the last login
	for c.ctx.Err() == nil {
		c.mu.Lock()
		tokenSet := c.tokenSet
		c.mu.Unlock()
		if !loggedIn || loginOf != tokenSet {
			e := c.login()
			if e == nil {
				e = c.publishAgain()
			}
			if e != nil {
				if !c.pauseAfter(e, &failures, tokenSet) {
					return
				}
				continue
			}
			loggedIn, loginOf = true, tokenSet
		}
		if c.cfg.StorePath != "" {
			if e := c.openEncryption(); e != nil {
				loggedIn = e.HTTPStatus != 401
				if !c.pauseAfter(e, &failures, tokenSet) {
					return
				}
				continue
			}
		}
		began := time.Now()
		next, e := c.syncOnce(since, failures > 0)
		if e != nil {
			// Whose the next token is has to be asked again.
			loggedIn = e.HTTPStatus != 401
			if e.HTTPStatus == 400 && e.Errcode != "" && failures >= refusals {
				since = "" // it may not know any more what that was: from the beginning
			}
			if !c.pauseAfter(e, &failures, tokenSet) {
				return
			}
			continue
		}
		// A homeserver that answers every long poll at once must not keep us busy.
		if rapid++; time.Since(began) >= rapidSync {
			rapid = 0
		}
		stuck := next == since && failures == 0 && time.Since(began) < retryMin
		since, failures = next, 0
		c.syncState("syncing", nil)
		switch {
		case stuck && !c.pause(retryMin, nil):
			return
		case rapid > rapidSyncs && !c.pause(rapidSync, nil):
			return
		}
	}
}

func (c *Client) syncOnce(since string, quick bool) (next string, e *Error) {
	q := map[string]string{"timeout": strconv.FormatInt(longPoll.Milliseconds(), 10)}
	limit := longPoll + syncMargin
	if since == "" {
		q["timeout"], limit = "0", firstSyncMax
	} else {
		q["since"] = since
		if quick {
			q["timeout"] = "0" // after an outage: what happened meanwhile, at once
		}
	}
	asked := time.Now()
	h := c.askSync(q, limit)
	if h.Status != 200 || h.NetworkError != "" {
		return "", answerError(h, "a sync")
	}
	nextBatch := gjson.Result{}
	if wire.ValidJSON(h.Body, wire.MaxDepth) {
		nextBatch = gjson.GetBytes(h.Body, "next_batch")
	}
	if nextBatch.Type != gjson.String || nextBatch.Str == "" {
		return "", answerError(h, "a sync")
	}
	c.devicesChanged(h.Body, since == "")
	err := c.do(func(now session.Time) error {
		if c.over() { // the answer came too late: "stopped" is the last that is told
			return nil
		}
		c.learnDate(now, h)
		var before map[id.RoomID]bool
		if since == "" {
			before, c.rooms = c.rooms, map[id.RoomID]bool{}
		}
		if err := c.handleSync(now, wire.ParseJSON(h.Body)); err != nil {
			return err
		}
		for room := range before { // it says all: what it does not name is over
			if !c.rooms[room] {
				_ = c.set.Handle(now, session.RoomLeft{Room: room})
			}
		}
		return c.set.Handle(now, session.Synced{})
	})
	if err != nil {
		return "", AsError(err)
	}
	// The next sync tells the homeserver that it may forget the to-device messages of this one.
	if e := c.decryptSync(h.Body, asked); e != nil {
		return "", e
	}
	return nextBatch.String(), nil
}

// askSync asks once more where the filter has changed meanwhile.
func (c *Client) askSync(q map[string]string, limit time.Duration) wire.HTTPResponse {
	for {
		ctx, cancel := context.WithTimeout(c.ctx, limit)
		c.mu.Lock()
		c.cancelSync = cancel
		keyEvents := c.keyEvents
		c.mu.Unlock()
		q["filter"] = syncFilter
		if keyEvents {
			q["filter"] = syncFilterWithKeys
		}
		h := c.authorized(ctx, wire.HTTPRequest{Method: "GET", Path: "/_matrix/client/v3/sync", Query: q}, true, maxSyncAnswer)
		cancel()
		c.mu.Lock()
		again := h.NetworkError != "" && c.keyEvents && !keyEvents && c.rejection == nil
		c.mu.Unlock()
		if !again || c.ctx.Err() != nil {
			return h
		}
	}
}

// pauseAfter waits before the next attempt, or for a new token; false means that the client is stopping.
func (c *Client) pauseAfter(e *Error, failures *int, tokenSet <-chan struct{}) bool {
	if c.ctx.Err() != nil {
		return false
	}
	final := e.Status == ErrInvalidArgument || (e.HTTPStatus == 401 || e.HTTPStatus == 403) && e.Errcode != ""
	level := 2
	if final {
		level = 3
	}
	c.log(level, "sync failed", map[string]any{"status": e.Status.String(), "http_status": e.HTTPStatus, "errcode": e.Errcode, "error": e.Message, "path": e.Path})
	if final {
		c.syncState("error", e)
		select {
		case <-c.ctx.Done():
			return false
		case <-tokenSet:
			*failures = 0
			return true
		}
	}
	*failures++
	c.syncState("reconnecting", e)
	pause := min(retryMin<<min(*failures-1, 10), retryMax)
	pause = pause/2 + time.Duration(rand.Float64()*float64(pause/2))
	return c.pause(max(pause, min(time.Duration(e.RetryAfterMS)*time.Millisecond, retryAfterMax)), tokenSet)
}

// pause waits, but not beyond wake; false means that the client is stopping.
func (c *Client) pause(d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.ctx.Done():
		return false
	case <-wake:
	case <-t.C:
	}
	return true
}

func (c *Client) syncState(s string, e *Error) {
	_ = c.do(func(now session.Time) error {
		if c.state == started || c.state == stopping {
			c.tellSync(s, e)
		}
		if e == nil {
			return nil
		}
		return c.set.Handle(now, session.Synced{Err: e.wire(), Final: s == "error" && !e.SoftLogout})
	})
}
