package wire

import (
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"
)

// Kind says what a Request asks of the homeserver.
type Kind string

// The kinds of request. Each is one HTTP request of the Client-Server API.
const (
	SendState        Kind = "send_state"         // PUT rooms/{room}/state/{type}/{key}
	ScheduleDelayed  Kind = "schedule_delayed"   // the same with org.matrix.msc4140.delay (MSC4140)
	RestartDelayed   Kind = "restart_delayed"    // POST delayed_events/{id}/restart
	SendDelayed      Kind = "send_delayed"       // POST delayed_events/{id}/send
	CancelDelayed    Kind = "cancel_delayed"     // POST delayed_events/{id}/cancel
	ListDelayed      Kind = "list_delayed"       // GET delayed_events
	GetCapabilities  Kind = "get_capabilities"   // GET capabilities: maximum delay
	GetRoomMember    Kind = "get_room_member"    // GET rooms/{room}/state/m.room.member/{user}
	GetJoinedMembers Kind = "get_joined_members" // GET rooms/{room}/joined_members
)

// Request is one thing to ask of the homeserver. The answer quotes ID.
type Request struct {
	ID      uint64
	Kind    Kind
	Room    id.RoomID
	Session uint64 // the session that asks, 0 for none

	Type      string          // event type
	StateKey  string          // state key
	Content   json.RawMessage // event content
	Delay     time.Duration   // ScheduleDelayed
	DelayID   string          // RestartDelayed, SendDelayed, CancelDelayed: a secret
	Anonymous bool            // send it without an access token: ours is dead (MSC4140 needs none)
	Timeout   time.Duration   // a driver should abandon the request after this; 0: its own default
}

// HTTPRequest is a Request as it goes over the network. Path is escaped and begins with "/".
type HTTPRequest struct {
	Method string            `json:"method"`
	Path   string            `json:"path"`
	Query  map[string]string `json:"query,omitempty"`
	Body   json.RawMessage   `json:"body,omitempty"`
}

// HTTPResponse is an answer as it came from the network, or why none came.
type HTTPResponse struct {
	Status       int
	Headers      map[string]string // canonical or lower case names
	Body         []byte
	NetworkError string // set: no answer came, the rest is empty
}

// Answer is what a response means to the state machine.
type Answer struct {
	Err     *Error // nil: it succeeded
	DelayID string // ScheduleDelayed
	EventID id.EventID
	Delayed []DelayedEvent // ListDelayed
	Joined  []id.UserID    // GetRoomMember, GetJoinedMembers: who of those asked about is joined
	// GetCapabilities: nil where the server does not say.
	DelayedEvents *DelayedEventsCapability
}

// DelayedEvent is an entry of the list of our scheduled events.
type DelayedEvent struct {
	DelayID  string
	Room     id.RoomID
	Type     string
	StateKey string
	Content  json.RawMessage
}

// DelayedEventsCapability is org.matrix.msc4140.delayed_events of the capabilities.
type DelayedEventsCapability struct {
	MaxDelay     time.Duration // 0: not told
	MaxScheduled int           // 0: not told
}

// Error is why a request failed.
type Error struct {
	Network      bool   // no answer came; it may have taken effect all the same
	Status       int    // HTTP status
	Code         string // errcode
	Message      string
	RetryAfter   time.Duration // how long the server asks us to wait; 0: not told
	DelayTooLong bool          // the delay is over the server's maximum
	MaxDelay     time.Duration // the maximum, if told with DelayTooLong
	SoftLogout   bool          // with 401: the device still exists, log in again or refresh
	Unsupported  bool          // no such endpoint (M_UNRECOGNIZED)
}
