package session

import (
	"encoding/json"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// The names of the events. Their payloads are the types below; the JSON tags are the contract
// with the host.
const (
	EventMembershipsChanged     = "memberships_changed"
	EventJoinStateChanged       = "join_state_changed"
	EventStatusChanged          = "status_changed"
	EventProbablyLeft           = "probably_left"
	EventDelayIDChanged         = "delay_id_changed"
	EventMembershipManagerError = "membership_manager_error"
	EventMembershipLost         = "membership_lost"
	EventRejoined               = "rejoined"
	EventLeft                   = "left"
	EventSessionStarted         = "session_started"
	EventSessionEnded           = "session_ended"
)

// Status is where our own membership stands, as the server knows it.
type Status string

// The statuses of matrix-js-sdk.
const (
	Disconnected  Status = "Disconnected"
	Connecting    Status = "Connecting"
	Connected     Status = "Connected"
	Disconnecting Status = "Disconnecting"
)

// Member is a membership as the host sees it.
type Member struct {
	UserID          id.UserID                  `json:"user_id"`
	DeviceID        id.DeviceID                `json:"device_id"`
	MemberID        string                     `json:"member_id"`
	SlotID          string                     `json:"slot_id"`
	Application     string                     `json:"application"`
	CallID          string                     `json:"call_id,omitempty"`
	Dialect         wire.Dialect               `json:"dialect"`
	EventID         id.EventID                 `json:"event_id"`
	JoinedTS        int64                      `json:"joined_ts"`
	ExpiresTS       int64                      `json:"expires_ts"`
	Intent          string                     `json:"intent,omitempty"`
	ApplicationData map[string]json.RawMessage `json:"application_data"`
	FocusSelection  string                     `json:"focus_selection,omitempty"`
	Transports      []json.RawMessage          `json:"transports"`
	ActiveTransport json.RawMessage            `json:"active_transport,omitempty"`
	SFUIdentity     string                     `json:"sfu_identity"`
	Scope           string                     `json:"scope,omitempty"`
}

// MembershipsChanged carries what changed since the last one, never the whole list.
type MembershipsChanged struct {
	Joined  []Member    `json:"joined"`
	Left    []Departure `json:"left"`
	Updated []Update    `json:"updated"`
	Count   int         `json:"count"`
}

// Departure is a member that is gone, and why.
type Departure struct {
	Membership Member `json:"membership"`
	Reason     string `json:"reason"`
}

// Update is a member that changed.
type Update struct {
	Before Member `json:"before"`
	After  Member `json:"after"`
}

// JoinStateChanged says whether we mean to be in the call: true from join until leave.
type JoinStateChanged struct {
	Joined bool `json:"joined"`
}

// StatusChanged says where our membership stands.
type StatusChanged struct {
	Status   Status `json:"status"`
	Previous Status `json:"previous"`
}

// ProbablyLeft says that the server may have removed us: our delayed leave is past its due time,
// or our membership past its expiry, without word from the server.
type ProbablyLeft struct {
	ProbablyLeft bool `json:"probably_left"`
}

// DelayIDChanged tells the id of our delayed leave, null for none. Whoever knows it can remove us.
type DelayIDChanged struct {
	DelayID *Secret `json:"delay_id"`
}

// MembershipManagerError is trouble with our own membership. Recoverable means that the library
// goes on trying by itself.
type MembershipManagerError struct {
	Message     string `json:"message"`
	Recoverable bool   `json:"recoverable"`
	Errcode     string `json:"errcode,omitempty"`
	HTTPStatus  int    `json:"http_status,omitempty"`
}

// MembershipLost says that the server no longer has our membership; a rejoin is under way.
type MembershipLost struct {
	Reason string `json:"reason"`
}

// Rejoined ends what MembershipLost began.
type Rejoined struct{}

// Left says that we are out: Sent, whether the homeserver has taken in the leave.
type Left struct {
	Sent   bool   `json:"sent"`
	Reason string `json:"reason"`
}

// CallChanged is a call that started or ended in a room, opened by the host or not.
type CallChanged struct {
	SlotID string `json:"slot_id"`
	CallID string `json:"call_id"`
}

// RoomCall is a live call of a room.
type RoomCall struct {
	RoomID      id.RoomID `json:"room_id"`
	SlotID      string    `json:"slot_id"`
	CallID      string    `json:"call_id"`
	MemberCount int       `json:"member_count"`
	StartedTS   int64     `json:"started_ts"`
}

// Info is what is true of a session now.
type Info struct {
	RoomID           id.RoomID       `json:"room_id"`
	CallID           *string         `json:"call_id"`
	SlotID           string          `json:"slot_id"`
	Joined           bool            `json:"joined"`
	Status           Status          `json:"status"`
	ProbablyLeft     bool            `json:"probably_left"`
	DelayID          *Secret         `json:"delay_id"`
	OwnMembership    *Member         `json:"own_membership"`
	OldestMembership *Member         `json:"oldest_membership"`
	ActiveTransport  json.RawMessage `json:"active_transport"`
	ConsensusIntent  *string         `json:"consensus_intent"`
	RoomVersion      string          `json:"room_version"`
	Encrypted        bool            `json:"encrypted"`
	MemberCount      int             `json:"member_count"`
	Statistics       Statistics      `json:"statistics"`
}

// Statistics counts what our own membership cost and survived.
type Statistics struct {
	Requests int `json:"requests"` // asked of the homeserver for this session
	Failures int `json:"failures"` // of these, failed or unanswered
	Restarts int `json:"restarts"` // of the delayed leave, taken by the server
	Rejoins  int `json:"rejoins"`  // after the server had removed us
}

// Secret is a string that formats as a placeholder, so that no log carries it. Its JSON form,
// meant for the host alone, is the value.
type Secret string

func (Secret) String() string   { return "[redacted]" }
func (Secret) GoString() string { return "[redacted]" }
