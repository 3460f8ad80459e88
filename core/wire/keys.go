package wire

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// TypeEncryptionKeys carries media keys, in a to-device message encrypted with Olm or, before
// 2025, in a room event.
const TypeEncryptionKeys = "io.element.call.encryption_keys"

// The to-device messages of 2026, which name a membership and not its call (MSC4143).
const (
	TypeEncryptionKey2026       = "org.matrix.msc4143.rtc.encryption_key"
	TypeEncryptionKey2026Stable = "m.rtc.encryption_key"
)

// TypeDummy is what a device sends that replaces an Olm session by which it could not decrypt.
const TypeDummy = "m.dummy"

// KeyLength is the length of a media key of the state generation, in bytes.
const KeyLength = 16

// maxKeysInEvent bounds how many keys one room event is read for.
const maxKeysInEvent = 16

// IndexedKey is a media key at its index of the ring.
type IndexedKey struct {
	Index int
	Key   []byte
}

// KeyMessage is what a to-device message or a room event says about media keys. Which user and
// device it is from is for the caller to establish.
type KeyMessage struct {
	Room          id.RoomID   // empty in room events
	SlotID        string      // the call that the keys are for; empty: that of the member
	ClaimedDevice id.DeviceID // what the content says, not what was proven; empty in those of 2026
	MemberID      string      // empty in room events
	SentTS        int64       // 0: not told
	Keys          []IndexedKey
}

// BuildKeyToDevice is the content of a to-device message that carries one key.
func BuildKeyToDevice(k KeyMessage) json.RawMessage {
	key := k.Keys[0]
	return marshal(map[string]any{
		"keys":    map[string]any{"index": key.Index, "key": base64.RawStdEncoding.EncodeToString(key.Key)},
		"member":  map[string]any{"id": k.MemberID, "claimed_device_id": k.ClaimedDevice},
		"room_id": k.Room,
		"session": map[string]any{"application": Application(k.SlotID), "call_id": wireCallID(k.SlotID), "scope": "m.room"},
		"sent_ts": k.SentTS,
	})
}

// BuildKeyRoomEvent is the content of a room event that carries keys, as it was before 2025.
func BuildKeyRoomEvent(k KeyMessage) json.RawMessage {
	keys := make([]map[string]any, 0, len(k.Keys))
	for _, key := range k.Keys {
		keys = append(keys, map[string]any{"index": key.Index, "key": base64.RawStdEncoding.EncodeToString(key.Key)})
	}
	return marshal(map[string]any{"keys": keys, "device_id": k.ClaimedDevice, "call_id": wireCallID(k.SlotID), "sent_ts": k.SentTS})
}

func marshal(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers of our own
	}
	return raw
}

// ParseKeyToDevice reads the decrypted content of a to-device message; the reason says why not.
func ParseKeyToDevice(content json.RawMessage) (*KeyMessage, string) {
	root, reason := keyContent(content)
	if reason != "" {
		return nil, reason
	}
	p := fieldsAt(root, "room_id", "member.id", "member.claimed_device_id", "session.application", "session.call_id", "sent_ts")
	m := &KeyMessage{
		Room: id.RoomID(p.text("room_id", true)), MemberID: p.text("member.id", false),
		ClaimedDevice: id.DeviceID(p.text("member.claimed_device_id", true)), SentTS: max(p.integer("sent_ts", 0), 0),
	}
	application := "m.call"
	if _, named := p.get("session.application"); named {
		application = p.text("session.application", true)
	}
	if m.SlotID, reason = slotOf(application, p.text("session.call_id", false)); reason != "" {
		p.refuse(reason)
	}
	if keys := root.Get("keys"); keys.IsObject() {
		m.readKey(&p, keys)
	} else {
		p.refuse("keys: expected an object")
	}
	if p.reason != "" {
		return nil, p.reason
	}
	return m, ""
}

// ParseToDevice reads the decrypted content of a to-device message of any generation. It answers
// nothing at all where the type is none that carries media keys.
func ParseToDevice(eventType string, content json.RawMessage) (m *KeyMessage, reason string) {
	switch eventType {
	case TypeEncryptionKeys:
		return ParseKeyToDevice(content)
	case TypeEncryptionKey2026, TypeEncryptionKey2026Stable:
		return parseKey2026(content)
	}
	return nil, ""
}

func parseKey2026(content json.RawMessage) (*KeyMessage, string) {
	root, reason := keyContent(content)
	if reason != "" {
		return nil, reason
	}
	p := fieldsAt(root, "room_id", "member_id", "format")
	m := &KeyMessage{Room: id.RoomID(p.text("room_id", true)), MemberID: p.text("member_id", true)}
	if m.MemberID == "" {
		p.refuse("member_id: expected the id of a member")
	}
	if p.integer("format", 0) != 0 {
		p.refuse("format: expected 0")
	}
	if key := root.Get("media_key"); key.IsObject() {
		m.readKey(&p, key)
	} else {
		p.refuse("media_key: expected an object")
	}
	if p.reason != "" {
		return nil, p.reason
	}
	return m, ""
}

// ParseKeyRoomEvent reads the content of a room event with keys; the reason says why not.
func ParseKeyRoomEvent(content json.RawMessage) (*KeyMessage, string) {
	root, reason := keyContent(content)
	if reason != "" {
		return nil, reason
	}
	p := fieldsAt(root, "device_id", "call_id", "sent_ts")
	m := &KeyMessage{ClaimedDevice: id.DeviceID(p.text("device_id", true)), SentTS: max(p.integer("sent_ts", 0), 0)}
	if m.SlotID, reason = slotOf("m.call", p.text("call_id", true)); reason != "" {
		p.refuse(reason)
	}
	keys := root.Get("keys")
	if !keys.IsArray() {
		p.refuse("keys: expected an array")
	}
	keys.ForEach(func(_, k gjson.Result) bool {
		m.readKey(&p, k)
		return p.reason == "" && len(m.Keys) < maxKeysInEvent
	})
	if p.reason == "" && len(m.Keys) == 0 {
		p.refuse("keys: expected at least one")
	}
	if p.reason != "" {
		return nil, p.reason
	}
	return m, ""
}

func keyContent(content json.RawMessage) (gjson.Result, string) {
	if !ValidJSON(content, maxDepth) || !gjson.ParseBytes(content).IsObject() {
		return gjson.Result{}, "content: expected a JSON object"
	}
	return gjson.ParseBytes(content), ""
}

func (m *KeyMessage) readKey(p *fieldReader, k gjson.Result) {
	index, key := k.Get("index"), k.Get("key")
	switch n := index.Num; {
	case index.Type != gjson.Number || n != float64(int(n)) || n < 0 || n > 255:
		p.refuse("keys.index: expected an integer from 0 to 255")
		return
	case key.Type != gjson.String:
		p.refuse("keys.key: expected a string")
		return
	}
	raw, err := DecodeBase64(key.Str)
	if err != nil {
		p.refuse("keys.key: expected base64")
		return
	}
	if len(raw) != KeyLength && len(raw) != 2*KeyLength {
		p.refuse(fmt.Sprintf("keys.key: expected %d or %d bytes, got %d", KeyLength, 2*KeyLength, len(raw)))
		return
	}
	m.Keys = append(m.Keys, IndexedKey{int(index.Num), raw})
}

// DecodeBase64 reads what peers write: the standard or the URL-safe alphabet, padded or not.
func DecodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "-_") {
		return base64.RawURLEncoding.DecodeString(s)
	}
	return base64.RawStdEncoding.DecodeString(s)
}
