package client

import (
	"encoding/json"
	"fmt"
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
	ID        uint64            `json:"id"`
	Kind      wire.Kind         `json:"kind"`
	HTTP      *wire.HTTPRequest `json:"http,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"` // to be sent without an access token

	// What the host encrypts itself: for each recipient with Olm, or for the room.
	Type       string          `json:"type,omitempty"`
	Content    json.RawMessage `json:"content,omitempty"`
	Recipients []wire.Device   `json:"recipients,omitempty"`
	TxnID      string          `json:"txn_id,omitempty"` // of a room event; the same again in a repetition
}

func newHostRequest(r wire.Request) hostRequest {
	switch r.Kind {
	case wire.EncryptAndSendToDevice:
		return hostRequest{ID: r.ID, Kind: r.Kind, Type: r.Type, Content: r.Content, Recipients: r.Recipients}
	case wire.EncryptAndSendEvent:
		return hostRequest{ID: r.ID, Kind: r.Kind, Type: r.Type, Content: r.Content, TxnID: r.TxnID}
	}
	h := r.HTTP()
	return hostRequest{ID: r.ID, Kind: r.Kind, HTTP: &h, Anonymous: r.Anonymous}
}

// FeedInput is what the host's sync received: exactly one of a raw /sync body, the state of one
// room, to-device messages and room events after their decryption.
type FeedInput struct {
	Sync     json.RawMessage `json:"sync,omitempty"`
	State    *FeedState      `json:"state,omitempty"`
	ToDevice []FeedToDevice  `json:"to_device,omitempty"`
	Timeline *FeedTimeline   `json:"timeline,omitempty"`
}

// FeedToDevice is a to-device message with the facts of its decryption.
type FeedToDevice struct {
	Type         string          `json:"type"`
	Content      json.RawMessage `json:"content"`
	Sender       string          `json:"sender"`
	SenderDevice string          `json:"sender_device,omitempty"` // of the Olm session
	SenderKey    string          `json:"sender_key,omitempty"`    // curve25519
	Encrypted    bool            `json:"encrypted"`
	CrossSigned  bool            `json:"cross_signed,omitempty"`
}

// FeedTimeline are events of one room after their decryption.
type FeedTimeline struct {
	RoomID string          `json:"room_id"`
	Events json.RawMessage `json:"events"`
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

	// To encrypt_and_send_to_device: what became of it, in as many portions as the host likes.
	Deliveries []wire.Delivery `json:"deliveries,omitempty"`
	More       bool            `json:"more,omitempty"` // other portions will follow
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
	given := 0
	for _, is := range []bool{in.Sync != nil, in.State != nil, in.ToDevice != nil, in.Timeline != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		return invalid("", "expected one of sync, state, to_device and timeline")
	}
	return c.hostDriven(func(now session.Time) error {
		switch {
		case in.Sync != nil:
			body := wire.ParseJSON(in.Sync)
			if !body.IsObject() {
				return invalid("/sync", "expected the JSON object that /sync answered")
			}
			return c.handleSync(now, body)
		case in.State != nil:
			return c.feedState(now, *in.State)
		case in.Timeline != nil:
			return c.feedTimeline(now, *in.Timeline)
		}
		for i, m := range in.ToDevice {
			if m.Type == "" || m.Sender == "" {
				return invalid(fmt.Sprintf("/to_device/%d", i), "expected type and sender")
			}
		}
		for _, m := range in.ToDevice {
			if err := c.set.Handle(now, session.ToDevice{
				Type: m.Type, Sender: id.UserID(m.Sender), SenderDevice: id.DeviceID(m.SenderDevice), SenderKey: m.SenderKey,
				Encrypted: m.Encrypted, CrossSigned: m.CrossSigned, Content: m.Content,
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Client) feedState(now session.Time, in FeedState) error {
	events, err := roomEvents("/state", in.RoomID, in.Events)
	if err != nil {
		return err
	}
	room := id.RoomID(in.RoomID)
	if in.Complete {
		c.rooms[room] = true
	}
	state := session.RoomState{Room: room, Reset: in.Complete, Complete: in.Complete}
	addEvents(&state, events)
	return c.set.Handle(now, state)
}

func (c *Client) feedTimeline(now session.Time, in FeedTimeline) error {
	events, err := roomEvents("/timeline", in.RoomID, in.Events)
	if err != nil {
		return err
	}
	events.ForEach(func(_, raw gjson.Result) bool {
		if ev, ok := wire.ParseTimelineEvent(raw); ok {
			_ = c.set.Handle(now, session.Timeline{Room: id.RoomID(in.RoomID), Event: ev})
		}
		return true
	})
	return nil
}

func roomEvents(path, roomID string, raw json.RawMessage) (gjson.Result, error) {
	events := wire.ParseJSON(raw)
	if !events.IsArray() {
		return events, invalid(path+"/events", "expected an array")
	}
	if roomID == "" || roomID[0] != '!' {
		return events, invalid(path+"/room_id", "expected a room id, which begins with !")
	}
	return events, nil
}

// Respond brings the answer to a request. An answer to a request that is no longer waited for is
// ignored.
func (c *Client) Respond(in ResponseInput) error {
	given := 0
	for _, is := range []bool{in.Status != 0, in.NetworkError != "", in.Deliveries != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		return invalid("/status", "expected one of status, network_error and deliveries")
	}
	return c.hostDriven(func(now session.Time) error {
		r, known := c.inflight[in.ID]
		if !known {
			return &Error{Status: ErrNotFound, Path: "/id", Message: "no request of this id waits for an answer"}
		}
		if in.Deliveries != nil {
			if r.Kind != wire.EncryptAndSendToDevice {
				return invalid("/deliveries", "are for encrypt_and_send_to_device, and this is %s", r.Kind)
			}
			if !in.More {
				delete(c.inflight, in.ID)
			}
			return c.set.Handle(now, session.Delivered{Request: in.ID, Deliveries: in.Deliveries, Last: !in.More})
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
		if !r.Foreign() {
			c.learnDate(now, h)
		}
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
