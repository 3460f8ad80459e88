// Package wire holds the event formats of every MatrixRTC generation as pure functions: what
// arrives becomes one Membership whatever wrote it, and what we write is built from one
// description. It does no I/O, reads no clock, and trusts nothing that it parses.
package wire

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"
)

// Dialect names a generation of the membership event.
type Dialect string

// DialectState is the room state generation (MSC3401 events, as MSC4143 calls legacy).
const DialectState Dialect = "state"

// Event is a room event as it came, reduced to what MatrixRTC reads. Content is untrusted.
type Event struct {
	Type           string
	StateKey       string
	Sender         id.UserID
	EventID        id.EventID
	OriginServerTS int64 // Unix time, ms, by the sender's server
	AgeMS          int64 // unsigned.age when received, 0 if absent
	Content        json.RawMessage
}

// Membership is one device's membership of a call, from any generation.
type Membership struct {
	UserID          id.UserID
	DeviceID        id.DeviceID
	MemberID        string
	SlotID          string // "m.call#ROOM"
	Application     string // "m.call"
	CallID          string // "ROOM" for the slot of a room
	Dialect         Dialect
	EventID         id.EventID
	StateKey        string
	OriginServerTS  int64
	JoinedTS        int64 // Unix time, ms
	ExpiresTS       int64 // Unix time, ms
	Intent          string
	ApplicationData map[string]json.RawMessage // every other top-level field, as it came
	FocusSelection  string                     // "oldest_membership", "multi_sfu", or what a stranger wrote
	Transports      []json.RawMessage          // objects with a string "type", preferred first
	Scope           string
}
