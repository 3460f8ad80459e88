// Package session is the heart of the library: what MatrixRTC means, as a state machine that is
// given inputs with the time at which they happened and asked what to do next. It does no I/O,
// starts no goroutine and reads no clock.
//
// The contract: every call of Handle is followed by a complete drain of Outputs, and Handle is
// called again with Tick when Deadline has passed.
package session

import (
	"encoding/json"
	"time"

	"libmatrixrtc/core/wire"

	"maunium.net/go/mautrix/id"
)

// Time is the moment of an input, by two clocks.
type Time struct {
	Boot time.Duration // CLOCK_BOOTTIME: goes on during sleep, never jumps; all timers
	Wall int64         // Unix time in ms: what timestamps in events mean; may jump
}

// Input is something that happened. The types that implement it are listed below.
type Input interface{ input() }

// RoomState carries state events of a room in the order in which they took effect. With Reset
// they are the whole state that calls need (call members, room members, create, encryption), so
// whatever is not among them is gone. Complete says that the room's state has arrived in full,
// with this or before. Gap says that changes of room members may be missing (a limited timeline
// with lazy loading), so they are asked for again. Malformed are members' events that cannot be
// read at all, for the debug snapshot.
type RoomState struct {
	Room      id.RoomID
	Events    []wire.Event
	Reset     bool
	Complete  bool
	Gap       bool
	Malformed []RefusedMember
}

// RoomLeft says that our user is no longer joined to the room.
type RoomLeft struct{ Room id.RoomID }

// Synced says how a sync of the host went: without Err, that it has told of all its rooms. Final
// means that nothing more is tried.
type Synced struct {
	Err   *wire.Error
	Final bool
}

// Response answers a Request by its ID.
type Response struct {
	ID     uint64
	Answer wire.Answer
}

// Delivered answers an EncryptAndSendToDevice request, in as many portions as its driver likes.
// Devices that none has named when the Last one comes were not reached.
type Delivered struct {
	Request    uint64
	Deliveries []wire.Delivery
	Last       bool
}

// ToDevice is a to-device message after its decryption, with the facts of it.
type ToDevice struct {
	Type         string
	Sender       id.UserID
	SenderDevice id.DeviceID // of the Olm session; empty if not known
	SenderKey    string      // curve25519
	Encrypted    bool        // it came encrypted with Olm
	CrossSigned  bool        // the device is signed by its owner (MSC4153)
	Content      json.RawMessage
}

// Timeline is a room event that calls may care about, after its decryption, with the facts of that
// where they are known. One that came in clear counts only in a room that is not encrypted.
type Timeline struct {
	Room         id.RoomID
	Event        wire.Event
	Clear        bool
	SenderDevice id.DeviceID // of the Megolm session; empty if not known
	CrossSigned  bool        // with SenderDevice: it is signed by its owner
}

// ServerDate is the homeserver's clock, from a Date header, in Unix ms.
type ServerDate struct{ UnixMS int64 }

// Tick says that time has passed and nothing else happened.
type Tick struct{}

// Join asks a session to join its call and stay joined until Leave.
type Join struct {
	Session uint64
	Params  JoinParams
}

// Leave asks a session to leave. It is answered at once; the outcome is the event "left".
type Leave struct{ Session uint64 }

// DelegateLeave has the delayed leave of our membership handed over to the authorisation service of
// the SFU that we publish to while we are connected there (MSC4195), or kept by ourselves.
type DelegateLeave struct {
	Session  uint64
	Delegate bool
}

// UpdateIntent changes the call intent of our membership ("" removes it).
type UpdateIntent struct {
	Session uint64
	Intent  string
}

// UpdateApplicationData replaces the application data of our membership.
type UpdateApplicationData struct {
	Session uint64
	Data    map[string]json.RawMessage
}

// Recheck makes a session look at its members again (onMembershipUpdate of the reference class).
type Recheck struct{ Session uint64 }

func (RoomState) input()             {}
func (RoomLeft) input()              {}
func (Synced) input()                {}
func (Response) input()              {}
func (Delivered) input()             {}
func (ToDevice) input()              {}
func (Timeline) input()              {}
func (ServerDate) input()            {}
func (Tick) input()                  {}
func (Join) input()                  {}
func (Leave) input()                 {}
func (DelegateLeave) input()         {}
func (UpdateIntent) input()          {}
func (UpdateApplicationData) input() {}
func (Recheck) input()               {}

// Output is either a request to make or an event for the host; exactly one field is set.
type Output struct {
	Request *wire.Request
	Event   *Event
}

// Event is something to tell the host. Data is one of the payload types of events.go; its JSON
// form is the event's fields of the C ABI.
type Event struct {
	Name    string
	Room    id.RoomID
	Session uint64 // 0 for events of the client
	Data    any
}
