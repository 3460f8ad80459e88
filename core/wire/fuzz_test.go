package wire

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// Whatever the bytes, nothing panics, and what is taken keeps the promises of its type.

func FuzzParseStateMember(f *testing.F) {
	seed := func(key, sender string, content any) {
		raw, ok := content.(string)
		if !ok {
			text, err := json.Marshal(content)
			if err != nil {
				f.Fatal(err)
			}
			raw = string(text)
		}
		f.Add(key, sender, at, raw)
	}
	seed("_@a:x_DEV_m.call", "@a:x", valid())
	for _, content := range []string{
		`{}`, ``, `null`, `{"memberships":[]}`, `{"device_id":"D","device_id":7}`, `{"a":` + "\xff}",
		`{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"},"created_ts":-1e308,"expires":1e308}`,
		`{"application":"m.call","call_id":"","device_id":"\ud800","focus_active":{"type":""},"foci_preferred":[{"type":"\u0000"}],"\u0000":[[[[]]]]}`,
		`{"application":"m.call","call_id":"ROOM","device_id":"D","focus_active":{"type":"livekit","type":7},"constructor":{"__proto__":1}}`,
	} {
		seed("_@a:x_DEV_m.call", "@a:x", content)
		seed("@a:x", "@a:x", content)
		seed("", "", content)
	}
	f.Fuzz(func(t *testing.T, key, sender string, ts int64, content string) {
		ev, ok := ParseEvent(gjson.Parse(string(marshal(map[string]any{
			"type": TypeStateMember, "state_key": key, "sender": sender, "event_id": "$1", "origin_server_ts": ts, "content": json.RawMessage(clean(content)),
		}))))
		if !ok {
			return
		}
		ev.Content = json.RawMessage(content)
		m, reason := ParseStateMember(ev, "11", 24*time.Hour)
		if m == nil {
			return
		}
		if reason != "" || m.DeviceID == "" || m.Application == "" || m.MemberID == "" || m.UserID != ev.Sender || m.Transports == nil || m.ApplicationData == nil {
			t.Errorf("%+v %s", m, reason)
		}
		if m.JoinedTS < 0 || m.JoinedTS > ev.OriginServerTS || m.ExpiresTS < m.JoinedTS || m.ExpiresTS > ev.OriginServerTS+24*hour {
			t.Errorf("times %d %d of %d", m.JoinedTS, m.ExpiresTS, ev.OriginServerTS)
		}
		if _, err := json.Marshal(m); err != nil {
			t.Error(err)
		}
	})
}

// clean is JSON in place of what is none: the event around the content must be some.
func clean(content string) string {
	if json.Valid([]byte(content)) {
		return content
	}
	return "{}"
}

func FuzzParseAnswer(f *testing.F) {
	for _, body := range []string{
		``, `<html>`, `{"event_id":"$1"}`, `{"delay_id":"d"}`, `{"delayed_events":[{"delay_id":"d","content":{}}]}`, `{"joined":{"@a:x":{}}}`,
		`{"capabilities":{"org.matrix.msc4140.delayed_events":{"max_delay_ms":1e400,"max_scheduled":1.5}}}`,
		`{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1e18}`, `{"org.matrix.msc4140.errcode":"M_MAX_DELAY_EXCEEDED","org.matrix.msc4140.max_delay":-1}`,
	} {
		for _, status := range []int{0, 200, 400, 401, 403, 404, 429, 503, 999} {
			f.Add(status, "5", []byte(body))
		}
	}
	f.Add(429, "Thu, 09 Oct 2025 08:53:50 GMT", []byte(`{}`))
	f.Fuzz(func(t *testing.T, status int, retryAfter string, body []byte) {
		for _, kind := range kinds {
			a := ParseAnswer(Request{Kind: kind}, HTTPResponse{
				Status: status, Headers: map[string]string{"Retry-After": retryAfter, "Date": "Thu, 09 Oct 2025 08:53:20 GMT"}, Body: body,
			})
			if e := a.Err; e != nil && (e.Message == "" || e.RetryAfter < 0 || e.MaxDelay < 0) {
				t.Errorf("%s: %+v", kind, e)
			}
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	for _, content := range keyContents {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, parse := range []func(json.RawMessage) (*KeyMessage, string){ParseKeyToDevice, ParseKeyRoomEvent, parseKey2026} {
			m, reason := parse(content)
			if (m == nil) != (reason != "") {
				t.Errorf("%+v %q", m, reason)
			}
			if m == nil {
				continue
			}
			if len(m.Keys) == 0 || len(m.Keys) > maxKeysInEvent || m.SlotID == "" && m.MemberID == "" || m.SentTS < 0 {
				t.Errorf("%+v", m)
			}
			for _, k := range m.Keys {
				if k.Index < 0 || k.Index > 255 || len(k.Key) != 16 && len(k.Key) != 32 {
					t.Errorf("%+v", k)
				}
			}
		}
	})
}
