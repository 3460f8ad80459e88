package session

import (
	"encoding/json"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// The names of the events. Their payloads are the types below; the JSON tags are the contract
// with the host.
const (
	EventMembershipsChanged           = "memberships_changed"
	EventJoinStateChanged             = "join_state_changed"
	EventStatusChanged                = "status_changed"
	EventProbablyLeft                 = "probably_left"
	EventDelayIDChanged               = "delay_id_changed"
	EventMembershipManagerError       = "membership_manager_error"
	EventMembershipLost               = "membership_lost"
	EventRejoined                     = "rejoined"
	EventLeft                         = "left"
	EventEncryptionKeyChanged         = "encryption_key_changed"
	EventEncryptionKeyMissing         = "encryption_key_missing"
	EventEncryptionKeyUndelivered     = "encryption_key_undelivered"
	EventKeyRotationSuppressedChanged = "key_rotation_suppressed_changed"
	EventTransportsChanged            = "transports_changed"
	EventSFUsChanged                  = "sfus_changed"
	EventSFUTokenRefreshed            = "sfu_token_refreshed"
	EventSFUFailed                    = "sfu_failed"
	EventLeaveDelegated               = "leave_delegated_changed"
	EventSessionStarted               = "session_started"
	EventSessionEnded                 = "session_ended"
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

// MediaKey is a key of one participant's media. A key of our own is told twice: when it is made,
// and with InUse when frames are to be encrypted with it. Keys of others are in use as they come.
type MediaKey struct {
	UserID      id.UserID   `json:"user_id"`
	DeviceID    id.DeviceID `json:"device_id"`
	MemberID    string      `json:"member_id"`
	SFUIdentity string      `json:"sfu_identity"`
	Index       int         `json:"index"`
	Key         Secret      `json:"key"` // unpadded base64
	Own         bool        `json:"own"`
	InUse       bool        `json:"in_use"`
	Fingerprint string      `json:"fingerprint"` // the first 8 hex digits of the key's SHA-256
}

// KeyMissing says that a member has been here for some time and none of its keys has come, or,
// with Missing false, that one came after all.
type KeyMissing struct {
	UserID   id.UserID   `json:"user_id"`
	DeviceID id.DeviceID `json:"device_id"`
	MemberID string      `json:"member_id"`
	Missing  bool        `json:"missing"`
}

// KeyUndelivered says that our key did not reach a device, and why; it is tried again. Delivered
// ends it.
type KeyUndelivered struct {
	UserID    id.UserID   `json:"user_id"`
	DeviceID  id.DeviceID `json:"device_id"`
	MemberID  string      `json:"member_id"`
	Index     int         `json:"index"`
	Reason    string      `json:"reason,omitempty"`
	Delivered bool        `json:"delivered"`
}

// KeyRotationSuppressedChanged says whether so many are in the call that keys are not rotated.
type KeyRotationSuppressedChanged struct {
	Suppressed bool `json:"suppressed"`
}

// SFU is a place where the media of a call is.
type SFU struct {
	ServiceURL string      `json:"service_url"`
	Publish    bool        `json:"publish"` // ours goes there
	Trusted    bool        `json:"trusted"`
	Reason     string      `json:"reason,omitempty"` // why not
	Members    []SFUMember `json:"members,omitzero"` // who publishes there; only where asked for
}

// SFUMember is somebody who publishes on an SFU.
type SFUMember struct {
	UserID      id.UserID   `json:"user_id"`
	DeviceID    id.DeviceID `json:"device_id"`
	MemberID    string      `json:"member_id"`
	SFUIdentity string      `json:"sfu_identity"`
}

// SFUsChanged carries what changed in where a client must connect. Publish tells that our media
// moves, as when the oldest member leaves.
type SFUsChanged struct {
	Added   []SFU    `json:"added"`
	Removed []string `json:"removed"`
	Updated []SFU    `json:"updated"` // we have come to trust it, or no longer do
	Publish *SFUMove `json:"publish,omitempty"`
	Ignored int      `json:"ignored"` // named by members beyond those that are looked at
}

// SFUMove is from where to where; null is nowhere.
type SFUMove struct {
	From *string `json:"from"`
	To   *string `json:"to"`
}

// SFUToken lets one enter an SFU.
type SFUToken struct {
	ServiceURL string `json:"service_url"`
	URL        string `json:"url"` // ws or wss, of the SFU
	JWT        Secret `json:"jwt"`
	Identity   string `json:"identity"`
	Room       string `json:"room"` // the name of the LiveKit room
	ExpiresTS  int64  `json:"expires_ts"`
	Generation string `json:"generation"`
}

// SFUFailed says that an SFU could not be entered, and why. It is tried again after RetryInMS, if
// that is not 0.
type SFUFailed struct {
	ServiceURL string `json:"service_url"`
	Reason     string `json:"reason"`
	Message    string `json:"message"`
	RetryInMS  int64  `json:"retry_in_ms"`
}

// TransportsChanged tells what the homeserver offers by now.
type TransportsChanged struct {
	Transports []json.RawMessage `json:"transports"`
}

// LeaveDelegated says whether the authorisation service of the SFU holds a delayed leave of ours,
// which it sends when we are gone from there. Delegated is false again once that leave is cancelled
// and ours is armed; Reason is why it is not taken, where that is not of our choice.
type LeaveDelegated struct {
	Delegated bool   `json:"delegated"`
	Reason    string `json:"reason,omitempty"`
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
	RoomID                id.RoomID       `json:"room_id"`
	CallID                *string         `json:"call_id"`
	SlotID                string          `json:"slot_id"`
	Joined                bool            `json:"joined"`
	Status                Status          `json:"status"`
	ProbablyLeft          bool            `json:"probably_left"`
	DelayID               *Secret         `json:"delay_id"`
	OwnMembership         *Member         `json:"own_membership"`
	OldestMembership      *Member         `json:"oldest_membership"`
	ActiveTransport       json.RawMessage `json:"active_transport"`
	ConsensusIntent       *string         `json:"consensus_intent"`
	RoomVersion           string          `json:"room_version"`
	Encrypted             bool            `json:"encrypted"`
	MemberCount           int             `json:"member_count"`
	KeysManaged           bool            `json:"keys_managed"` // media keys are sent and taken in
	KeyRotationSuppressed bool            `json:"key_rotation_suppressed"`
	LeaveDelegated        bool            `json:"leave_delegated"` // the authorisation service may send a delayed leave of ours
	Statistics            Statistics      `json:"statistics"`
}

// Statistics counts what our own membership cost and survived, and the media keys: sent, one for
// each key and device that it was really sent to (a room event counts once); received, one for each
// that was taken in, with the sum of their ages on arrival. The totals are of both transports.
type Statistics struct {
	Requests int `json:"requests"` // asked of the homeserver for this session
	Failures int `json:"failures"` // of these, failed or unanswered
	Restarts int `json:"restarts"` // of the delayed leave, taken by the server
	Rejoins  int `json:"rejoins"`  // after the server had removed us

	KeysSent                        int   `json:"keys_sent"`
	KeysReceived                    int   `json:"keys_received"`
	KeysReceivedTotalAgeMS          int64 `json:"keys_received_total_age_ms"`
	RoomEventKeysSent               int   `json:"room_event_keys_sent"`
	RoomEventKeysReceived           int   `json:"room_event_keys_received"`
	RoomEventKeysReceivedTotalAgeMS int64 `json:"room_event_keys_received_total_age_ms"`
}

// Secret is a string that formats as a placeholder, so that no log carries it. Its JSON form,
// meant for the host alone, is the value.
type Secret string

func (Secret) String() string   { return "[redacted]" }
func (Secret) GoString() string { return "[redacted]" }
