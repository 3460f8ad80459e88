package wire

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

const (
	hour  = int64(3_600_000)
	at    = int64(1_760_000_000_000) // origin_server_ts of the events here
	limit = 24 * time.Hour
)

// valid is a member event with every field.
func valid() map[string]any {
	return map[string]any{
		"application": "m.call", "call_id": "", "scope": "m.room", "device_id": "DEV", "membershipID": "m1",
		"expires": 2 * hour, "created_ts": at - hour, "m.call.intent": "video",
		"foci_preferred": []any{
			map[string]any{"type": "livekit", "livekit_service_url": "https://sfu.x", "livekit_alias": "!r:x"},
			map[string]any{"type": "other"},
		},
		"focus_active": map[string]any{"type": "livekit", "focus_selection": "multi_sfu"},
		"io.other":     map[string]any{"deep": []any{1, "two"}}, "": "an empty name",
	}
}

func event(t testing.TB, content any) Event {
	t.Helper()
	raw, ok := content.(string)
	if !ok {
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		raw = string(text)
	}
	return Event{
		Type: TypeStateMember, StateKey: "_@a:x_DEV_m.call", Sender: "@a:x", EventID: "$1",
		OriginServerTS: at, Content: json.RawMessage(raw),
	}
}

func TestParseStateMember(t *testing.T) {
	m, reason := ParseStateMember(event(t, valid()), "11", limit)
	if m == nil {
		t.Fatal(reason)
	}
	want := &Membership{
		UserID: "@a:x", DeviceID: "DEV", MemberID: "m1", SlotID: "m.call#ROOM", Application: "m.call", CallID: "ROOM",
		Dialect: DialectState, EventID: "$1", StateKey: "_@a:x_DEV_m.call", OriginServerTS: at,
		JoinedTS: at - hour, ExpiresTS: at + hour, Intent: "video", Scope: "m.room", FocusSelection: "multi_sfu",
		ApplicationData: map[string]json.RawMessage{"io.other": json.RawMessage(`{"deep":[1,"two"]}`), "": json.RawMessage(`"an empty name"`)},
		Transports: []json.RawMessage{
			json.RawMessage(`{"livekit_alias":"!r:x","livekit_service_url":"https://sfu.x","type":"livekit"}`), json.RawMessage(`{"type":"other"}`),
		},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
}

// What is there without the optional fields.
func TestDefaultsOfAMember(t *testing.T) {
	m, reason := ParseStateMember(event(t, `{"application":"m.call","call_id":"","device_id":"DEV","focus_active":{"type":"livekit"}}`), "11", limit)
	if m == nil {
		t.Fatal(reason)
	}
	if m.JoinedTS != at || m.ExpiresTS != at+4*hour || m.MemberID != "@a:x:DEV" || m.Transports == nil || m.ApplicationData == nil {
		t.Errorf("%+v", m)
	}
}

// Every field absent, null, of every wrong type, absurdly long, or deeply nested: refused with a
// reason that names it, or allowed because it is optional.
func TestFieldsOfStrangers(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	deep := json.RawMessage(strings.Repeat("[", 2000) + strings.Repeat("]", 2000))
	type kinds = map[string]any
	all := kinds{
		"null": nil, "string": "text", "number": 7, "negative": -7, "fraction": 1.5, "huge": json.RawMessage("1e300"), "beyond": json.RawMessage("9007199254740993"),
		"true": true, "array": []any{}, "object": kinds{}, "long": long,
	}
	optional := "absent"
	for field, accepted := range map[string][]string{
		"application":    {"string"},
		"call_id":        {"string"},
		"device_id":      {"string"},
		"focus_active":   {},
		"scope":          {optional, "string"},
		"membershipID":   {optional, "string"},
		"m.call.intent":  {optional, "string"},
		"expires":        {optional, "number", "negative"},
		"created_ts":     {optional, "number", "negative"},
		"foci_preferred": {optional, "array"},
		"io.other":       append([]string{optional}, slices.Collect(maps.Keys(all))...),
	} {
		for kind, value := range all {
			c := valid()
			c[field] = value
			expectMember(t, field+" "+kind, c, slices.Contains(accepted, kind), field)
		}
		c := valid()
		delete(c, field)
		expectMember(t, field+" absent", c, slices.Contains(accepted, optional), field)
		c[field] = deep
		expectMember(t, field+" deep", c, false, "")
	}
	for what, c := range map[string]struct {
		field, path string
		value       any
	}{
		"selection of another type": {"focus_active", "", kinds{"type": "x", "focus_selection": 7}},
		"no type":                   {"focus_active", "focus_active.type", kinds{"focus_selection": "multi_sfu"}},
		"a type that is none":       {"focus_active", "focus_active.type", kinds{"type": 7}},
		"focus without type":        {"foci_preferred", "foci_preferred[1]", []any{kinds{"type": "a"}, kinds{}}},
		"focus of another type":     {"foci_preferred", "foci_preferred[0]", []any{kinds{"type": 7}}},
		"focus that is none":        {"foci_preferred", "foci_preferred[0]", []any{"livekit"}},
		"empty application":         {"application", "application", ""},
		"application with #":        {"application", "application", "a#b"},
		"call_id with #":            {"call_id", "call_id", "a#b"},
		"empty device":              {"device_id", "device_id", ""},
	} {
		content := valid()
		content[c.field] = c.value
		expectMember(t, what, content, c.path == "", c.path)
	}
	for _, content := range []string{"", "null", "7", `"x"`, "[]", "{", `{"a":`, "{\"a\":\"\xff", "\x00"} {
		if m, reason := ParseStateMember(event(t, content), "11", limit); m != nil || reason == "" {
			t.Errorf("content %q: %v %q", content, m, reason)
		}
	}
}

func expectMember(t *testing.T, what string, content map[string]any, accepted bool, names string) {
	t.Helper()
	m, reason := ParseStateMember(event(t, content), "11", limit)
	switch {
	case accepted && m == nil:
		t.Errorf("%s: refused: %s", what, reason)
	case !accepted && m != nil:
		t.Errorf("%s: accepted as %+v", what, m)
	case !accepted && !strings.Contains(reason, names):
		t.Errorf("%s: the reason does not name %s: %s", what, names, reason)
	case len(reason) > 300:
		t.Errorf("%s: a reason of %d bytes", what, len(reason))
	}
}

func TestLeftAndExtinctAreSilent(t *testing.T) {
	for _, content := range []string{`{}`, ` { } `, `{"memberships":[]}`, `{"memberships":[{"application":"m.call"}]}`, `{"memberships":null}`} {
		ev := event(t, content)
		ev.StateKey, ev.Sender = "_@somebody:x_DEV_m.call", "@else:x" // whoever says it
		if m, reason := ParseStateMember(ev, "11", limit); m != nil || reason != "" {
			t.Errorf("%s: %v %q", content, m, reason)
		}
	}
}

func TestStateKeyBelongsToTheSender(t *testing.T) {
	for key, ok := range map[string]bool{
		"_@a:x_DEV_m.call": true, "@a:x_DEV_m.call": true, "@a:x": true, "_@a:x": true, "_@a:x_whatever": true,
		"": false, "_": false, "__@a:x_DEV": false, "@a:xy_DEV": false, "_@a:x.org_DEV": false, "_@b:x_DEV_m.call": false, "DEV": false,
	} {
		ev := event(t, valid())
		ev.StateKey = key
		if m, reason := ParseStateMember(ev, "11", limit); (m != nil) != ok || m == nil && !strings.Contains(reason, "state_key") {
			t.Errorf("%q: %v %q", key, m, reason)
		}
	}
}

func TestSlotOfAMember(t *testing.T) {
	for _, c := range []struct{ application, callID, slot, key string }{
		{"m.call", "", "m.call#ROOM", "_@a:x_DEV_m.call"},
		{"m.call", "ROOM", "m.call#ROOM", "_@a:x_DEV_m.call"},
		{"m.call", "other", "m.call#other", "_@a:x_DEV_m.callother"},
		{"m.board", "", "m.board#", "_@a:x_DEV_m.board"},
		{"m.board", "ROOM", "m.board#ROOM", "_@a:x_DEV_m.boardROOM"},
	} {
		content := valid()
		content["application"], content["call_id"] = c.application, c.callID
		m, reason := ParseStateMember(event(t, content), "11", limit)
		if m == nil || m.SlotID != c.slot {
			t.Errorf("%v: %+v %s", c, m, reason)
		}
		for version, key := range map[string]string{
			"": c.key, "1": c.key, "12": c.key, "org.matrix.msc3757": c.key[1:], "org.matrix.msc3757.11": c.key[1:], "org.matrix.msc3779.v9": c.key[1:],
		} {
			if got := StateMemberKey("@a:x", "DEV", c.slot, version); got != key {
				t.Errorf("%s in version %q: key %q, expected %q", c.slot, version, got, key)
			}
		}
	}
}

// Numbers of strangers: joined-since is never after the event, expiry never far after it.
func TestTimesOfAMember(t *testing.T) {
	for _, c := range []struct {
		created, expires any
		joined, ends     int64
	}{
		{at - hour, 2 * hour, at - hour, at + hour},
		{at + hour, 2 * hour, at, at + 2*hour},             // created after the event
		{-5, 2 * hour, 0, 2 * hour},                        // long over
		{at - hour, 1 << 52, at - hour, at + 24*hour},      // for ever
		{at - 48*hour, 49 * hour, at - 48*hour, at + hour}, // a call of two days, refreshed
		{at, 0, at, at},
		{at, -hour, at, at},
	} {
		content := valid()
		content["created_ts"], content["expires"] = c.created, c.expires
		m, reason := ParseStateMember(event(t, content), "11", limit)
		if m == nil || m.JoinedTS != c.joined || m.ExpiresTS != c.ends {
			t.Errorf("%+v: %+v %s", c, m, reason)
		}
	}
}

func TestTransportsAreBounded(t *testing.T) {
	content := valid()
	var many []any
	for range 10_000 {
		many = append(many, map[string]any{"type": "x"})
	}
	content["foci_preferred"] = many
	if m, reason := ParseStateMember(event(t, content), "11", limit); m == nil || len(m.Transports) != maxTransports {
		t.Errorf("%v %s", m, reason)
	}
}

// What we build parses to what it was built from.
func TestBuildAndParse(t *testing.T) {
	text := rapid.StringMatching(`[^#\x00]{1,40}`)
	rapid.Check(t, func(t *rapid.T) {
		slot, err := SlotID(text.Draw(t, "application"), rapid.StringMatching(`[^#\x00]{0,40}`).Draw(t, "call_id"))
		if err != nil {
			t.Skip(err)
		}
		created := rapid.Int64Range(0, at).Draw(t, "created")
		b := StateMember{
			DeviceID: id.DeviceID(text.Draw(t, "device")), MemberID: text.Draw(t, "member_id"), SlotID: slot,
			Intent:         rapid.StringN(0, 20, 40).Draw(t, "intent"),
			FocusSelection: rapid.SampledFrom([]string{SelectionMultiSFU, SelectionOldest}).Draw(t, "selection"),
			CreatedTS:      created, ExpiresMS: rapid.Int64Range(0, 1<<40).Draw(t, "expires"),
			ApplicationData: map[string]json.RawMessage{}, Transports: []json.RawMessage{},
		}
		for _, name := range rapid.SliceOfN(rapid.StringN(0, 10, 20), 0, 5).Draw(t, "fields") {
			if !IsReservedField(name) {
				raw, _ := json.Marshal(rapid.String().Draw(t, "value"))
				b.ApplicationData[name] = raw
			}
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "transports") {
			b.Transports = append(b.Transports, json.RawMessage(fmt.Sprintf(`{"n":%d,"type":"livekit"}`, i)))
		}
		user := id.UserID("@" + rapid.StringMatching(`[a-z_]{1,8}`).Draw(t, "user") + ":x")
		version := rapid.SampledFrom([]string{"11", "org.matrix.msc3757.11"}).Draw(t, "version")
		ev := Event{
			Type: TypeStateMember, StateKey: StateMemberKey(user, b.DeviceID, slot, version),
			Sender: user, EventID: "$e", OriginServerTS: at, Content: BuildStateMember(b),
		}
		m, reason := ParseStateMember(ev, version, limit)
		if m == nil {
			t.Fatalf("refused: %s: %s", reason, ev.Content)
		}
		joined := created
		if created == 0 {
			joined = at
		}
		want := &Membership{
			UserID: user, DeviceID: b.DeviceID, MemberID: b.MemberID, SlotID: slot, Application: Application(slot), CallID: CallID(slot),
			Dialect: DialectState, EventID: "$e", StateKey: ev.StateKey, OriginServerTS: at, JoinedTS: joined,
			ExpiresTS: min(joined+b.ExpiresMS, at+limit.Milliseconds()), Intent: b.Intent, Scope: "m.room",
			ApplicationData: b.ApplicationData, FocusSelection: b.FocusSelection, Transports: b.Transports,
		}
		// JSON may be written in more than one way.
		got, _ := json.Marshal(m)
		expected, _ := json.Marshal(want)
		if string(got) != string(expected) {
			t.Fatalf("got  %s\nwant %s", got, expected)
		}
	})
}

func TestReservedFieldsAreOurs(t *testing.T) {
	data := map[string]json.RawMessage{"x": json.RawMessage("1")}
	for name := range reserved {
		data[name] = json.RawMessage(`"overwritten"`)
	}
	content := BuildStateMember(StateMember{DeviceID: "D", MemberID: "m", SlotID: "m.call#ROOM", ApplicationData: data, FocusSelection: SelectionMultiSFU, ExpiresMS: 1})
	if strings.Contains(string(content), "overwritten") || !strings.Contains(string(content), `"x":1`) {
		t.Errorf("%s", content)
	}
}

func TestOwnTransport(t *testing.T) {
	for raw, want := range map[string]string{
		`{"type":"livekit","livekit_service_url":"https://s"}`:                        `{"livekit_alias":"!r:x","livekit_service_url":"https://s","type":"livekit"}`,
		`{"type":"livekit","livekit_service_url":"https://s","livekit_alias":"mine"}`: `{"type":"livekit","livekit_service_url":"https://s","livekit_alias":"mine"}`,
		`{"type":"other","x":1}`: `{"type":"other","x":1}`,
		``:                       "", `null`: "", `[]`: "", `{}`: "", `{"type":7}`: "", `{"type":""}`: "",
		`{"type":"livekit"}`: "", `{"type":"livekit","livekit_service_url":7}`: "",
		`{"type":"livekit","livekit_service_url":""}`: "", `{"type":"livekit","livekit_service_url":"sfu.example.org"}`: "",
	} {
		got, err := OwnTransport(json.RawMessage(raw), "!r:x")
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %s %v", raw, got, err)
		}
	}
}
