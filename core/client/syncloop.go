package client

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
)

const (
	longPoll     = 30 * time.Second
	syncMargin   = 30 * time.Second // a long poll that takes so much longer is given up
	firstSyncMax = 5 * time.Minute
	retryMin     = time.Second
	retryMax     = 30 * time.Second

	retryAfterMax = 10 * time.Minute // whatever longer pause a homeserver names
)

// runSync logs in and syncs until the client is stopped. Whatever fails is told by sync_state and
// tried again, but for what trying cannot mend: then it waits for a new token.
func (c *Client) runSync() {
	c.syncState("initial", nil)
	failures := 0
	loggedIn, since := false, ""
	for c.ctx.Err() == nil {
		c.mu.Lock()
		tokenSet := c.tokenSet
		c.mu.Unlock()
		if !loggedIn {
			if e := c.login(); e != nil {
				if !c.pauseAfter(e, &failures, tokenSet) {
					return
				}
				continue
			}
			loggedIn = true
		}
		began := time.Now()
		next, e := c.syncOnce(since, failures > 0)
		if e != nil {
			// Whose the next token is has to be asked again.
			loggedIn = e.HTTPStatus != 401
			if !c.pauseAfter(e, &failures, tokenSet) {
				return
			}
			continue
		}
		idle := next == since && failures == 0 && time.Since(began) < retryMin
		since, failures = next, 0
		c.syncState("syncing", nil)
		if idle && !c.pause(retryMin, nil) {
			return // a homeserver that answers a long poll at once, with nothing
		}
	}
}

func (c *Client) syncOnce(since string, quick bool) (next string, e *Error) {
	q := map[string]string{"filter": syncFilter, "timeout": strconv.FormatInt(longPoll.Milliseconds(), 10)}
	limit := longPoll + syncMargin
	if since == "" {
		q["timeout"], limit = "0", firstSyncMax
	} else {
		q["since"] = since
		if quick {
			q["timeout"] = "0" // after an outage: what happened meanwhile, at once
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	h := c.authorized(ctx, wire.HTTPRequest{Method: "GET", Path: "/_matrix/client/v3/sync", Query: q}, true, maxSyncAnswer)
	if h.Status != 200 || h.NetworkError != "" {
		return "", answerError(h, "a sync")
	}
	nextBatch := gjson.Result{}
	if gjson.ValidBytes(h.Body) {
		nextBatch = gjson.GetBytes(h.Body, "next_batch")
	}
	if nextBatch.Type != gjson.String || nextBatch.Str == "" {
		return "", answerError(h, "a sync")
	}
	err := c.do(func(now session.Time) error {
		c.learnDate(now, h)
		return c.handleSync(now, h.Body)
	})
	return nextBatch.String(), AsError(err)
}

// pauseAfter waits before the next attempt, or for a new token; false means that the client is stopping.
func (c *Client) pauseAfter(e *Error, failures *int, tokenSet <-chan struct{}) bool {
	if c.ctx.Err() != nil {
		return false
	}
	c.log(1, "sync failed", map[string]any{"status": e.Status.String(), "http_status": e.HTTPStatus, "errcode": e.Errcode, "message": e.Message})
	if final := e.Status == ErrInvalidArgument || e.HTTPStatus == 401 || e.HTTPStatus == 403 && e.Errcode != ""; final {
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
	_ = c.do(func(session.Time) error {
		if c.state == started || c.state == stopping {
			c.tellSync(s, e)
		}
		return nil
	})
}
