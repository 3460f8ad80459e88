package wire

import (
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"
)

// Kind says what a Request asks of the homeserver.
type Kind string

// The kinds of request. But for the last two each is one HTTP request, of the Client-Server API
// where no other is named.
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
	GetTransports    Kind = "get_transports"     // where calls may have their media (MSC4143), asked in several places
	GetOpenID        Kind = "get_openid"         // POST user/{user}/openid/request_token
	GetSFUToken      Kind = "get_sfu_token"      // of an authorisation service or the homeserver (MSC4195)
	DelegateLeave    Kind = "delegate_leave"     // hands over the delayed leave (MSC4195); likewise

	// Encrypt with Olm for each of the recipients and PUT sendToDevice. Not HTTP-shaped: whoever
	// has the Olm sessions does it.
	EncryptAndSendToDevice Kind = "encrypt_and_send_to_device"
	// Encrypt for the room if it is encrypted, and PUT rooms/{room}/send. Likewise.
	EncryptAndSendEvent Kind = "encrypt_and_send_event"
)

// Request is one thing to ask of the homeserver. The answer quotes ID.
type Request struct {
	ID      uint64
	Kind    Kind
	Room    id.RoomID
	Session uint64 // the session that asks, 0 for none

	Type       string          // event type
	StateKey   string          // state key
	Content    json.RawMessage // event content
	Delay      time.Duration   // ScheduleDelayed
	DelayID    string          // RestartDelayed, SendDelayed, CancelDelayed: a secret
	InBody     bool            // of these three: the action is in the body, as older servers have it (MSC4140)
	Recipients []Device        // of what is encrypted: who must be able to read it
	TxnID      string          // EncryptAndSendEvent: the same where a request repeats an earlier one
	Anonymous  bool            // send it without an access token: ours is dead (MSC4140 needs none)
	Timeout    time.Duration   // a driver should abandon the request after this; 0: its own default
	Ready      *HTTPRequest    // the request itself, where whoever asks has written it
}

// Foreign says that the request goes to somebody else than our homeserver.
func (r Request) Foreign() bool { return r.Ready != nil && r.Ready.BaseURL != "" }

// HTTPRequest is a Request as it goes over the network. Path is escaped and begins with "/". One
// with a BaseURL is not for our homeserver and must not carry our access token.
type HTTPRequest struct {
	Method  string            `json:"method"`
	BaseURL string            `json:"base_url,omitempty"`
	Path    string            `json:"path"`
	Query   map[string]string `json:"query,omitempty"`
	Body    json.RawMessage   `json:"body,omitempty"`
	Public  bool              `json:"-"` // not to a private address, whatever the name resolves to
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
	Body          json.RawMessage // the JSON object that answers a Ready request
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
	MaxDelay time.Duration // 0: not told
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
