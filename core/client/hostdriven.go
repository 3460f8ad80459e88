package client

import (
	"encoding/json"
	"math"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Host-driven mode: the host has a Matrix client. It is handed requests as events, brings their
// answers, and feeds what its sync receives.

// hostRequest is the event "request".
type hostRequest struct {
	ID        uint64           `json:"id"`
	Kind      wire.Kind        `json:"kind"`
	HTTP      wire.HTTPRequest `json:"http"`
	Anonymous bool             `json:"anonymous,omitempty"` // to be sent without an access token
}

// FeedInput is what the host's sync received: a raw /sync body, or the state of one room.
type FeedInput struct {
	Sync  json.RawMessage `json:"sync,omitempty"`
	State *FeedState      `json:"state,omitempty"`
}

// FeedState is state of a room. With complete it is all that calls need of it.
type FeedState struct {
	RoomID   string          `json:"room_id"`
	Events   json.RawMessage `json:"events"`
	Complete bool            `json:"complete,omitempty"`
}

// ResponseInput is the answer to a request: as it came, or that none came.
type ResponseInput struct {
	ID           uint64            `json:"id"`
	Status       int               `json:"status,omitempty"`
	Headers      map[string]string `json:"headers,omitempty"`
	Body         json.RawMessage   `json:"body,omitempty"` // JSON, or a string with the raw text
	NetworkError string            `json:"network_error,omitempty"`
}

// AdvanceInput tells the time of a manual clock.
type AdvanceInput struct {
	BootMS *int64 `json:"boot_ms,omitempty"`
	WallTS *int64 `json:"wall_ts,omitempty"`
}

// AdvanceResult says when advance is wanted next, in boot_ms.
type AdvanceResult struct {
	DeadlineMS *int64 `json:"deadline_ms"`
}

func (c *Client) hostDriven(f func(now session.Time) error) error {
	return c.do(func(now session.Time) error {
		if !c.HostDriven() {
			return wrongState("only a host-driven client takes this")
		}
		switch c.state {
		case stopped:
			return wrongState("the client is stopped")
		case created:
			c.state = started
		}
		return f(now)
	})
}

// Feed takes in what the host's sync received.
func (c *Client) Feed(in FeedInput) error {
	if (in.Sync == nil) == (in.State == nil) {
		return invalid("", "expected either sync or state")
	}
	return c.hostDriven(func(now session.Time) error {
		if in.Sync != nil {
			if !gjson.ParseBytes(in.Sync).IsObject() {
				return invalid("/sync", "expected the JSON object that /sync answered")
			}
			return c.handleSync(now, in.Sync)
		}
		events := gjson.ParseBytes(in.State.Events)
		if !events.IsArray() {
			return invalid("/state/events", "expected an array")
		}
		if in.State.RoomID == "" || in.State.RoomID[0] != '!' {
			return invalid("/state/room_id", "expected a room id, which begins with !")
		}
		room := id.RoomID(in.State.RoomID)
		if in.State.Complete {
			c.rooms[room] = true
		}
		return c.set.Handle(now, session.RoomState{
			Room: room, Events: appendEvents(nil, events), Reset: in.State.Complete, Complete: in.State.Complete,
		})
	})
}

// Respond brings the answer to a request. An answer to a request that is no longer waited for is
// ignored.
func (c *Client) Respond(in ResponseInput) error {
	if (in.Status == 0) == (in.NetworkError == "") {
		return invalid("/status", "expected either status or network_error")
	}
	return c.hostDriven(func(now session.Time) error {
		r, known := c.inflight[in.ID]
		if !known {
			return &Error{Status: ErrNotFound, Path: "/id", Message: "no request of this id waits for an answer"}
		}
		delete(c.inflight, in.ID)
		h := wire.HTTPResponse{Status: in.Status, Headers: in.Headers, Body: in.Body, NetworkError: in.NetworkError}
		if v := gjson.ParseBytes(in.Body); v.Type == gjson.String {
			h.Body = []byte(v.String())
		}
		for k, v := range in.Headers {
			if k == "date" {
				h.Headers["Date"] = v
			}
		}
		c.learnDate(now, h)
		return c.set.Handle(now, session.Response{ID: in.ID, Answer: wire.ParseAnswer(r, h)})
	})
}

// Advance tells the time of a manual clock, or just looks at the real one.
func (c *Client) Advance(in AdvanceInput) (res AdvanceResult, err error) {
	err = c.hostDriven(func(now session.Time) error {
		if c.cfg.Clock == "manual" {
			if in.BootMS != nil {
				if *in.BootMS < c.manual.Boot.Milliseconds() || *in.BootMS > math.MaxInt64/int64(2*time.Millisecond) {
					return invalid("/boot_ms", "expected a time that does not go back")
				}
				c.manual.Boot = time.Duration(*in.BootMS) * time.Millisecond
			}
			if in.WallTS != nil {
				if *in.WallTS < 0 || *in.WallTS > 1<<53 {
					return invalid("/wall_ts", "expected Unix time in milliseconds")
				}
				c.manual.Wall = *in.WallTS
			}
			now = c.manual
		} else if in.BootMS != nil || in.WallTS != nil {
			return invalid("/boot_ms", `the time can be set only with "clock": "manual"`)
		}
		return c.set.Handle(now, session.Tick{})
	})
	if err != nil {
		return res, err
	}
	err = c.do(func(session.Time) error {
		if at, ok := c.set.Deadline(); ok {
			v := (at + time.Millisecond - 1).Milliseconds()
			res.DeadlineMS = &v
		}
		return nil
	})
	return res, err
}
