package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

const (
	goodToDevice = `{"keys":{"index":7,"key":"AAECAwQFBgcICQoLDA0ODw"},"member":{"id":"m1","claimed_device_id":"DEV"},"room_id":"!r:x","session":{"application":"m.call","call_id":"","scope":"m.room"},"sent_ts":5}`
	goodInRoom   = `{"keys":[{"index":7,"key":"AAECAwQFBgcICQoLDA0ODw"}],"device_id":"DEV","call_id":"","sent_ts":5}`
)

var keyContents = []string{
	goodToDevice, goodInRoom, ``, `{}`, `null`, `{"keys":[]}`, `{"keys":{"index":1e400,"key":""}}`, `{"keys":[{"index":-1,"key":"="}],"device_id":"D","call_id":""}`,
	strings.Repeat(`{"keys":`, 100) + strings.Repeat(`}`, 100),
}

func TestKeyMessages(t *testing.T) {
	key := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	m, reason := ParseKeyToDevice(json.RawMessage(goodToDevice))
	if want := (&KeyMessage{"!r:x", "m.call#ROOM", "DEV", "m1", 5, []IndexedKey{{7, key}}}); !reflect.DeepEqual(m, want) {
		t.Errorf("%+v %s", m, reason)
	}
	m, reason = ParseKeyRoomEvent(json.RawMessage(goodInRoom))
	if want := (&KeyMessage{"", "m.call#ROOM", "DEV", "", 5, []IndexedKey{{7, key}}}); !reflect.DeepEqual(m, want) {
		t.Errorf("%+v %s", m, reason)
	}
}

// The messages of 2026 name a membership, and neither a device nor a time.
func TestKeysOf2026(t *testing.T) {
	const good = `{"room_id":"!r:x","member_id":"m1","media_key":{"index":255,"key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"},"format":0}`
	for _, eventType := range []string{TypeEncryptionKey2026, TypeEncryptionKey2026Stable} {
		m, reason := ParseToDevice(eventType, json.RawMessage(good))
		if m == nil || m.Room != "!r:x" || m.MemberID != "m1" || m.SlotID != "" || m.ClaimedDevice != "" || m.Keys[0].Index != 255 || len(m.Keys[0].Key) != 32 {
			t.Errorf("%+v %s", m, reason)
		}
		for what, values := range map[string][]string{
			`"format":0`:       {`"format":1`, `"format":"0"`, `"format":0.5`},
			`"member_id":"m1"`: {`"member_id":""`, `"member_id":7`, `"m":1`},
			`"room_id":"!r:x"`: {`"room_id":7`, `"r":1`},
			`"index":255`:      {`"index":256`, `"index":1.5`},
			`"media_key":{`:    {`"media":{`, `"media_key":[],"x":{`},
		} {
			for _, value := range values {
				raw := strings.Replace(good, what, value, 1)
				if m, reason := ParseToDevice(eventType, json.RawMessage(raw)); m != nil || reason == "" {
					t.Errorf("%s: %+v", raw, m)
				}
			}
		}
	}
	if m, reason := ParseToDevice("m.other", json.RawMessage(good)); m != nil || reason != "" {
		t.Errorf("%+v %s", m, reason)
	}
}

// Fields that are wrong are refused with a reason that names them.
func TestKeysOfStrangers(t *testing.T) {
	long := `"` + strings.Repeat("x", 10_000) + `"`
	for _, good := range []string{goodToDevice, goodInRoom} {
		parse := ParseKeyToDevice
		if good == goodInRoom {
			parse = ParseKeyRoomEvent
		}
		for what, values := range map[string][]string{
			`"index":7`:                      {`"index":-1`, `"index":256`, `"index":1.5`, `"index":"7"`, `"index":null`, `"index":1e300`, `"i":7`},
			`"key":"AAECAwQFBgcICQoLDA0ODw"`: {`"key":""`, `"key":"AAEC"`, `"key":7`, `"key":null`, `"key":"!!!!!!!!!!!!!!!!!!!!!!"`, `"key":` + long, `"k":1`},
			`device_id":"DEV"`:               {`device_id":7`, `device_id":null`, `device_id":` + long, `device":"x"`},
			`"call_id":""`:                   {`"call_id":7`, `"call_id":"a#b"`, `"call_id":` + long},
			`"sent_ts":5`:                    {`"sent_ts":"5"`, `"sent_ts":1e300`, `"sent_ts":1.5`},
			`"room_id":"!r:x"`:               {`"room_id":7`, `"room_id":` + long, `"room":1`},
		} {
			if !strings.Contains(good, what) {
				continue
			}
			for _, value := range values {
				raw := strings.Replace(good, what, value, 1)
				if m, reason := parse(json.RawMessage(raw)); m != nil || reason == "" || len(reason) > 300 {
					t.Errorf("%.80s: %+v %q", value, m, reason)
				}
			}
		}
	}
	for _, raw := range []string{``, `null`, `[]`, `7`, `{`, `{}`, `{"keys":null}`, `{"keys":7}`, strings.Repeat("[", 1000) + strings.Repeat("]", 1000)} {
		for _, parse := range []func(json.RawMessage) (*KeyMessage, string){ParseKeyToDevice, ParseKeyRoomEvent} {
			if m, reason := parse(json.RawMessage(raw)); m != nil || reason == "" {
				t.Errorf("%.80s: %+v %q", raw, m, reason)
			}
		}
	}
}

func TestBase64OfPeers(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xff}, 8)
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if got, err := DecodeBase64(e.EncodeToString(key)); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: %x %v", e.EncodeToString(key), got, err)
		}
	}
}

func TestBuildAndParseKeys(t *testing.T) {
	text := rapid.StringMatching(`[^#\x00]{1,40}`)
	rapid.Check(t, func(t *rapid.T) {
		key := func() IndexedKey {
			return IndexedKey{rapid.IntRange(0, 255).Draw(t, "index"), rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key")}
		}
		k := KeyMessage{
			Room: "!r:x", SlotID: "m.call#ROOM", ClaimedDevice: id.DeviceID(text.Draw(t, "device")), MemberID: text.Draw(t, "member"),
			SentTS: rapid.Int64Range(0, maxInteger).Draw(t, "sent"), Keys: []IndexedKey{key()},
		}
		if got, reason := ParseKeyToDevice(BuildKeyToDevice(k)); !reflect.DeepEqual(got, &k) {
			t.Fatalf("%+v %s", got, reason)
		}
		k.Room, k.MemberID = "", ""
		for range rapid.IntRange(0, maxKeysInEvent-1).Draw(t, "more") {
			k.Keys = append(k.Keys, key())
		}
		if got, reason := ParseKeyRoomEvent(BuildKeyRoomEvent(k)); !reflect.DeepEqual(got, &k) {
			t.Fatalf("%+v %s", got, reason)
		}
	})
}
