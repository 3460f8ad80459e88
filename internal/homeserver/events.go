package homeserver

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// Events as they are kept, and as clients see them.

type event struct {
	id      string
	pos     int64 // in the stream of the whole server
	room    *room
	typ     string
	key     *string // nil: no state event
	sender  string
	ts      int64
	content json.RawMessage // canonical
	prev    *event          // what this state event replaced
	member  string          // of an m.room.member event in a room: its membership

	// Who sent it learns more of it.
	device  *device
	txn     string
	delayID string
}

type stateKey struct{ typ, key string }

func (e *event) state() stateKey { return stateKey{e.typ, *e.key} }

// membership is that of an m.room.member event; of none it is "leave".
func (e *event) membership() string {
	if e == nil {
		return "leave"
	}
	if e.member != "" {
		return e.member
	}
	var content struct {
		Membership string `json:"membership"`
	}
	_ = json.Unmarshal(e.content, &content) // checked when it was sent
	return content.Membership
}

// at is the event that was in this one's place at a position; nil if there was none.
func (e *event) at(pos int64) *event {
	for e != nil && e.pos > pos {
		e = e.prev
	}
	return e
}

// clientEvent is an event of an answer.
type clientEvent struct {
	Content        json.RawMessage `json:"content"`
	EventID        string          `json:"event_id,omitempty"`
	OriginServerTS int64           `json:"origin_server_ts,omitempty"`
	RoomID         string          `json:"room_id,omitempty"`
	Sender         string          `json:"sender"`
	StateKey       *string         `json:"state_key,omitempty"`
	Type           string          `json:"type"`
	Unsigned       *unsigned       `json:"unsigned,omitempty"`
}

type unsigned struct {
	Age           int64           `json:"age"`
	Membership    string          `json:"membership,omitempty"`
	PrevContent   json.RawMessage `json:"prev_content,omitempty"`
	PrevSender    string          `json:"prev_sender,omitempty"`
	ReplacesState string          `json:"replaces_state,omitempty"`
	TransactionID string          `json:"transaction_id,omitempty"`
	DelayID       string          `json:"org.matrix.msc4140.delay_id,omitempty"`
}

// asState is how an event looks in a list of state.
func (e *event) asState(now int64, to *device) clientEvent {
	c := clientEvent{
		Content: e.content, EventID: e.id, OriginServerTS: e.ts, Sender: e.sender, StateKey: e.key, Type: e.typ,
		Unsigned: &unsigned{Age: now - e.ts},
	}
	if e.prev != nil {
		c.Unsigned.ReplacesState = e.prev.id
	}
	if e.device.is(to) {
		c.Unsigned.TransactionID, c.Unsigned.DelayID = e.txn, e.delayID
	}
	return c
}

// inTimeline is how an event looks in a timeline.
func (e *event) inTimeline(now int64, to *device) clientEvent {
	c := e.asState(now, to)
	c.Unsigned.Membership = e.room.member(to.user.id).at(e.pos).membership()
	if e.prev != nil {
		c.Unsigned.PrevContent, c.Unsigned.PrevSender = e.prev.content, e.prev.sender
	}
	return c
}

// stripped is how an event looks to somebody who is invited.
func (e *event) stripped() clientEvent {
	return clientEvent{Content: e.content, Sender: e.sender, StateKey: e.key, Type: e.typ}
}

func withRoom(c clientEvent, id string) clientEvent {
	c.RoomID = id
	return c
}

const (
	maxEvent   = 65536
	maxIDBytes = 255
)

// checkContent is content in one canonical form, or what is wrong with it.
func checkContent(raw []byte) (json.RawMessage, error) {
	var content any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&content); err != nil {
		return nil, fail(400, "M_NOT_JSON", "the content is not JSON")
	}
	if _, object := content.(map[string]any); !object {
		return nil, fail(400, "M_BAD_JSON", "the content must be a JSON object")
	}
	if err := checkNumbers(content); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(content); err != nil {
		return nil, fail(400, "M_BAD_JSON", "%v", err)
	}
	return bytes.TrimSpace(out.Bytes()), nil
}

// checkNumbers refuses what canonical JSON has not: fractions and large integers.
func checkNumbers(v any) error {
	switch v := v.(type) {
	case map[string]any:
		for _, member := range v {
			if err := checkNumbers(member); err != nil {
				return err
			}
		}
	case []any:
		for _, element := range v {
			if err := checkNumbers(element); err != nil {
				return err
			}
		}
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return fail(400, "M_BAD_JSON", "events have no fractions, got %s", v)
		}
		if n, err := strconv.ParseInt(v.String(), 10, 64); err != nil || n >= 1<<53 || n <= -(1<<53) {
			return fail(400, "M_BAD_JSON", "integer out of range: %s", v)
		}
	}
	return nil
}

func checkSize(e *event) error {
	size := len(e.content) + len(e.typ) + len(e.sender) + len(e.room.id)
	if e.key != nil {
		if len(*e.key) > maxIDBytes {
			return fail(413, "M_TOO_LARGE", "the state key is longer than %d bytes", maxIDBytes)
		}
		size += len(*e.key)
	}
	if len(e.typ) > maxIDBytes {
		return fail(413, "M_TOO_LARGE", "the type is longer than %d bytes", maxIDBytes)
	}
	if size+400 > maxEvent { // what is added to the parts: hashes, signatures, previous events
		return fail(413, "M_TOO_LARGE", "the event is longer than %d bytes", maxEvent)
	}
	return nil
}
