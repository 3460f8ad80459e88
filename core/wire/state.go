package wire

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// The `state` generation: a room state event per device, which Element Call writes today.

// TypeStateMember is the type that the state generation writes, TypeStateMemberStable the one
// that it is to have; both are read.
const (
	TypeStateMember       = "org.matrix.msc3401.call.member"
	TypeStateMemberStable = "m.call.member"
)

// How a member chooses its transport.
const (
	SelectionOldest   = "oldest_membership"
	SelectionMultiSFU = "multi_sfu"
)

const (
	defaultExpiry = 4 * 60 * 60 * 1000 // of a membership that names none, ms
	maxInteger    = 1<<53 - 1
	maxIDLength   = 255
	maxTransports = 32
	maxDepth      = 64 // of what a stranger's event nests
)

// What a membership of ours may be: what is larger is refused by homeservers, for ever, and what is
// longer or deeper is not read by others, nor by ourselves.
const (
	MaxOwnContent = 48 << 10 // bytes of the whole event's content
	MaxOwnText    = maxIDLength
	MaxOwnDepth   = maxDepth / 2
)

// IsStateMember says whether an event type is one of the state generation's.
func IsStateMember(eventType string) bool {
	return eventType == TypeStateMember || eventType == TypeStateMemberStable
}

// reserved are the top-level fields of a membership event that are not application data.
var reserved = map[string]bool{
	"application": true, "call_id": true, "scope": true, "device_id": true, "membershipID": true,
	"expires": true, "created_ts": true, "foci_preferred": true, "focus_active": true,
	"m.call.intent": true, "memberships": true,
}

// IsReservedField says whether a top-level field of the membership event belongs to the
// membership itself, and so cannot be application data.
func IsReservedField(name string) bool { return reserved[name] }

const slotOfRoom = "m.call#ROOM"

// SlotID names the slot of an application's call ("" is the call of the room).
func SlotID(application, callID string) (string, error) {
	if application == "" || len(application) > maxIDLength || strings.ContainsAny(application, "#\x00") {
		return "", fmt.Errorf("expected 1 to %d bytes without #", maxIDLength)
	}
	if len(callID) > maxIDLength || strings.ContainsAny(callID, "#\x00") {
		return "", fmt.Errorf("call_id: expected at most %d bytes without #", maxIDLength)
	}
	if application == "m.call" && (callID == "" || callID == "ROOM") {
		return slotOfRoom, nil
	}
	return application + "#" + callID, nil
}

// Application and CallID are the two halves of a slot id.
func Application(slotID string) string { a, _, _ := strings.Cut(slotID, "#"); return a }

// CallID is the call of a slot id: "ROOM" for the call of the room.
func CallID(slotID string) string { _, c, _ := strings.Cut(slotID, "#"); return c }

// wireCallID is how the state generation writes a call id: that of the room's call is empty.
func wireCallID(slotID string) string {
	if slotID == slotOfRoom {
		return ""
	}
	return CallID(slotID)
}

// StateMemberKey is the state key of a device's membership. Room versions with owned state
// (MSC3757, MSC3779) need no leading underscore.
func StateMemberKey(user id.UserID, device id.DeviceID, slotID, roomVersion string) string {
	key := string(user) + "_" + string(device) + "_" + Application(slotID) + wireCallID(slotID)
	if strings.HasPrefix(roomVersion, "org.matrix.msc3757") || strings.HasPrefix(roomVersion, "org.matrix.msc3779") {
		return key
	}
	return "_" + key
}

// ownsStateKey: anyone with the power to send the type can write a key that begins with "_", so
// a key counts only where it names its sender. The rest of it is not checked.
func ownsStateKey(stateKey string, sender id.UserID) bool {
	key := strings.TrimPrefix(stateKey, "_")
	return key == string(sender) || strings.HasPrefix(key, string(sender)+"_")
}

// ParseStateMember reads a membership of the state generation. It is nil where there is none,
// with a reason for a person, or with no reason where the event just says that the device has
// left (or speaks the extinct format of MSC3401). maxExpiry bounds how long after its event a
// membership may count.
func ParseStateMember(ev Event, roomVersion string, maxExpiry time.Duration) (*Membership, string) {
	if !ValidJSON(ev.Content, maxDepth) {
		return nil, "content: expected a JSON object"
	}
	content := ParseJSON(ev.Content)
	if !content.IsObject() {
		return nil, "content: expected a JSON object"
	}
	p := fieldReader{fields: make([]field, 0, 12)}
	content.ForEach(func(k, v gjson.Result) bool { p.fields = append(p.fields, field{k.Str, v}); return true })
	if _, extinct := p.get("memberships"); extinct || len(p.fields) == 0 {
		return nil, ""
	}
	if !ownsStateKey(ev.StateKey, ev.Sender) {
		return nil, "state_key: does not belong to the sender"
	}
	device := p.text("device_id", true)
	callID := p.text("call_id", true)
	application := p.text("application", true)
	m := &Membership{
		UserID: ev.Sender, DeviceID: id.DeviceID(device), Application: application,
		Dialect: DialectState, EventID: ev.EventID, StateKey: ev.StateKey, OriginServerTS: ev.OriginServerTS,
		Scope: p.text("scope", false), Intent: p.text("m.call.intent", false),
		MemberID: p.text("membershipID", false), Transports: []json.RawMessage{},
	}
	switch focus, ok := p.get("focus_active"); {
	case !ok || !focus.IsObject():
		p.refuse("focus_active: expected an object")
	case focus.Get("type").Type != gjson.String:
		p.refuse("focus_active.type: expected a string")
	default:
		m.FocusSelection = keepName(focus.Get("focus_selection").Str)
	}
	if foci, ok := p.get("foci_preferred"); ok {
		if !foci.IsArray() {
			p.refuse("foci_preferred: expected an array")
		}
		foci.ForEach(func(i, f gjson.Result) bool {
			if !f.IsObject() || f.Get("type").Type != gjson.String {
				p.refuse(fmt.Sprintf("foci_preferred[%d]: expected an object with a string type", len(m.Transports)))
				return false
			}
			if len(m.Transports) < maxTransports {
				m.Transports = append(m.Transports, Share(f.Raw))
			}
			return true
		})
	}
	created := p.integer("created_ts", ev.OriginServerTS)
	expires := p.integer("expires", defaultExpiry)
	if p.reason == "" {
		if m.SlotID, p.reason = slotOf(application, callID); p.reason == "" && device == "" {
			p.refuse("device_id: expected at least one byte")
		}
	}
	if p.reason != "" {
		return nil, strings.Clone(p.reason) // a copy keeps the fields on the stack
	}
	m.CallID = CallID(m.SlotID)
	if m.MemberID == "" {
		m.MemberID = string(ev.Sender) + ":" + device
	}
	m.JoinedTS = min(max(created, 0), ev.OriginServerTS)
	m.ExpiresTS = min(m.JoinedTS+max(expires, 0), ev.OriginServerTS+maxExpiry.Milliseconds())
	m.ApplicationData = noApplicationData
	for _, f := range p.fields {
		if !reserved[f.name] {
			if len(m.ApplicationData) == 0 {
				m.ApplicationData = map[string]json.RawMessage{}
			}
			m.ApplicationData[strings.Clone(f.name)] = Share(f.value.Raw)
		}
	}
	return m, ""
}

// noApplicationData is that of nearly every membership; nobody writes to a membership.
var noApplicationData = map[string]json.RawMessage{}

func slotOf(application, callID string) (slotID, reason string) {
	slotID, err := SlotID(application, callID)
	if err != nil {
		return "", "application or call_id: " + err.Error()
	}
	return slotID, ""
}

// fieldReader reads typed fields and keeps the first reason to refuse them.
type fieldReader struct {
	fields []field
	reason string
}

type field struct {
	name  string
	value gjson.Result
}

// fieldsAt are the fields at some paths.
func fieldsAt(root gjson.Result, paths ...string) (p fieldReader) {
	for _, path := range paths {
		if v := root.Get(path); v.Exists() {
			p.fields = append(p.fields, field{path, v})
		}
	}
	return p
}

// get is the last field of that name, as JSON readers have it.
func (p *fieldReader) get(name string) (gjson.Result, bool) {
	for i := len(p.fields) - 1; i >= 0; i-- {
		if p.fields[i].name == name {
			return p.fields[i].value, true
		}
	}
	return gjson.Result{}, false
}

func (p *fieldReader) refuse(reason string) {
	if p.reason == "" {
		p.reason = reason
	}
}

func (p *fieldReader) text(name string, required bool) string {
	v, ok := p.get(name)
	if !ok && !required {
		return ""
	}
	if v.Type != gjson.String {
		p.refuse(fmt.Sprintf("%s: expected a string, got %s", name, kindOf(v, ok)))
		return ""
	}
	if len(v.Str) > maxIDLength {
		p.refuse(fmt.Sprintf("%s: expected at most %d bytes", name, maxIDLength))
		return ""
	}
	return keepName(v.Str)
}

// integer reads a number that a stranger wrote: a whole one below 2^53, or nothing.
func (p *fieldReader) integer(name string, absent int64) int64 {
	v, ok := p.get(name)
	if !ok {
		return absent
	}
	if v.Type != gjson.Number || v.Num != float64(int64(v.Num)) || v.Num > maxInteger || v.Num < -maxInteger {
		p.refuse(fmt.Sprintf("%s: expected an integer below 2^53, got %s", name, kindOf(v, ok)))
		return absent
	}
	return int64(v.Num)
}

func kindOf(v gjson.Result, exists bool) string {
	switch {
	case !exists:
		return "nothing"
	case v.IsObject():
		return "an object"
	case v.IsArray():
		return "an array"
	case v.Type == gjson.Number && len(v.Raw) < 32:
		return v.Raw
	default:
		return map[gjson.Type]string{
			gjson.String: "a string", gjson.Number: "a number", gjson.Null: "null", gjson.True: "true", gjson.False: "false",
		}[v.Type]
	}
}

// StateMember describes the membership event to write.
type StateMember struct {
	DeviceID        id.DeviceID
	MemberID        string
	SlotID          string
	Intent          string
	ApplicationData map[string]json.RawMessage
	FocusSelection  string
	Transports      []json.RawMessage
	CreatedTS       int64 // joined-since of an update; 0 on the first event
	ExpiresMS       int64 // after joined-since
}

// BuildStateMember is the content of the event.
func BuildStateMember(b StateMember) json.RawMessage {
	c := make(map[string]any, len(b.ApplicationData)+10)
	for name, v := range b.ApplicationData {
		if !reserved[name] {
			c[name] = v
		}
	}
	transports := b.Transports
	if transports == nil {
		transports = []json.RawMessage{}
	}
	c["application"] = Application(b.SlotID)
	c["call_id"] = wireCallID(b.SlotID)
	c["scope"] = "m.room"
	c["device_id"] = b.DeviceID
	c["membershipID"] = b.MemberID
	c["expires"] = b.ExpiresMS
	c["foci_preferred"] = transports
	c["focus_active"] = map[string]string{"type": "livekit", "focus_selection": b.FocusSelection}
	if b.CreatedTS > 0 {
		c["created_ts"] = b.CreatedTS
	}
	if b.Intent != "" {
		c["m.call.intent"] = b.Intent
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return json.RawMessage("{}") // the raw parts were validated when they came in
	}
	return raw
}

// TransportError is a transport that cannot be ours; Field is empty where it is none at all.
type TransportError struct{ Field, Message string }

func (e *TransportError) Error() string { return strings.TrimPrefix(e.Field+": "+e.Message, ": ") }

// OwnTransport checks a transport that the host names as ours: the error is a *TransportError. A
// LiveKit one without an alias gets the room id, as Element Call writes it.
func OwnTransport(raw json.RawMessage, roomID string) (json.RawMessage, error) {
	t := gjson.ParseBytes(raw)
	if !ValidJSON(raw, MaxOwnDepth) || !t.IsObject() {
		return nil, &TransportError{"", "expected an object"}
	}
	if t.Get("type").Type != gjson.String || t.Get("type").Str == "" {
		return nil, &TransportError{"type", "expected a string"}
	}
	if t.Get("type").Str != "livekit" {
		return raw, nil
	}
	service := t.Get("livekit_service_url")
	if service.Type != gjson.String {
		return nil, &TransportError{"livekit_service_url", "expected a string"}
	}
	if u, err := url.Parse(service.Str); err != nil || u.Scheme == "" || u.Host == "" {
		return nil, &TransportError{"livekit_service_url", fmt.Sprintf("expected an https URL, got %q", service.Str)}
	}
	if t.Get("livekit_alias").Exists() {
		return raw, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	alias, err := json.Marshal(roomID)
	if err != nil {
		return nil, err
	}
	fields["livekit_alias"] = alias
	return json.Marshal(fields)
}
