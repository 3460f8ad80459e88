package wire

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

func TestRequestsAsHTTP(t *testing.T) {
	const unstable = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
	state := Request{Room: "!r/?:x", Type: "m.a b", StateKey: "_@a/%:x", Content: json.RawMessage(`{"x":1}`), Delay: 8 * time.Second, DelayID: "d/../1"}
	for kind, want := range map[Kind]HTTPRequest{
		SendState:        {"PUT", "", "/_matrix/client/v3/rooms/%21r%2F%3F:x/state/m.a%20b/_@a%2F%25:x", nil, json.RawMessage(`{"x":1}`), false},
		ScheduleDelayed:  {"PUT", "", "/_matrix/client/v3/rooms/%21r%2F%3F:x/state/m.a%20b/_@a%2F%25:x", map[string]string{"org.matrix.msc4140.delay": "8000"}, json.RawMessage(`{"x":1}`), false},
		RestartDelayed:   {"POST", "", unstable + "/d%2F..%2F1/restart", nil, json.RawMessage(`{}`), false},
		SendDelayed:      {"POST", "", unstable + "/d%2F..%2F1/send", nil, json.RawMessage(`{}`), false},
		CancelDelayed:    {"POST", "", unstable + "/d%2F..%2F1/cancel", nil, json.RawMessage(`{}`), false},
		ListDelayed:      {"GET", "", unstable, nil, nil, false},
		GetCapabilities:  {"GET", "", "/_matrix/client/v3/capabilities", nil, nil, false},
		GetRoomMember:    {"GET", "", "/_matrix/client/v3/rooms/%21r%2F%3F:x/state/m.room.member/_@a%2F%25:x", nil, nil, false},
		GetJoinedMembers: {"GET", "", "/_matrix/client/v3/rooms/%21r%2F%3F:x/joined_members", nil, nil, false},
	} {
		r := state
		r.Kind = kind
		if got := r.HTTP(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", kind, got, want)
		}
	}
	// As older servers have it.
	for kind, action := range map[Kind]string{RestartDelayed: "restart", SendDelayed: "send", CancelDelayed: "cancel"} {
		want := HTTPRequest{Method: "POST", Path: unstable + "/d%2F..%2F1", Body: json.RawMessage(`{"action":"` + action + `"}`)}
		if got := (Request{Kind: kind, DelayID: state.DelayID, InBody: true}).HTTP(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", kind, got, want)
		}
	}
}

var kinds = []Kind{SendState, ScheduleDelayed, RestartDelayed, SendDelayed, CancelDelayed, ListDelayed,
	GetCapabilities, GetRoomMember, GetJoinedMembers, EncryptAndSendToDevice, EncryptAndSendEvent}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		body string
		want Answer
	}{
		{SendState, `{"event_id":"$1","x":2}`, Answer{EventID: "$1"}},
		{ScheduleDelayed, `{"delay_id":"d"}`, Answer{DelayID: "d"}},
		{RestartDelayed, `{}`, Answer{}},
		{SendDelayed, `{}`, Answer{}},
		{CancelDelayed, `{}`, Answer{}},
		{ListDelayed, `{"delayed_events":[]}`, Answer{}},
		{ListDelayed, `{"delayed_events":[{"delay_id":"d","room_id":"!r","type":"t","state_key":"k","content":{"a":1}},{"delay_id":7},"x",null]}`,
			Answer{Delayed: []DelayedEvent{{"d", "!r", "t", "k", json.RawMessage(`{"a":1}`)}}}},
		{ListDelayed, `{"scheduled":[{"delay_id":"d"}],"finalised":[{"delay_id":"e"}]}`, Answer{Delayed: []DelayedEvent{{DelayID: "d", Content: json.RawMessage{}}}}},
		{GetCapabilities, `{"capabilities":{}}`, Answer{}},
		{GetCapabilities, `{"capabilities":{"org.matrix.msc4140.delayed_events":{"max_delay_ms":86400000,"max_scheduled":100}}}`,
			Answer{DelayedEvents: &DelayedEventsCapability{24 * time.Hour}}},
		{GetCapabilities, `{"capabilities":{"org.matrix.msc4140.delayed_events":{"max_delay_ms":"x","max_scheduled":-3}}}`, Answer{DelayedEvents: &DelayedEventsCapability{}}},
		{GetRoomMember, `{"membership":"join","errcode":"a field of the member's own"}`, Answer{Joined: []id.UserID{"@a:x"}}},
		{GetRoomMember, `{"membership":"invite"}`, Answer{}},
		{GetJoinedMembers, `{"joined":{"@a:x":{"display_name":null},"@b:x":{}}}`, Answer{Joined: []id.UserID{"@a:x", "@b:x"}}},
	} {
		got := ParseAnswer(Request{Kind: c.kind, StateKey: "@a:x"}, HTTPResponse{Status: 200, Body: []byte(c.body)})
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s:\ngot  %+v %v\nwant %+v", c.kind, c.body, got, got.Err, c.want)
		}
	}
}

// Whatever comes with the status of a success and is no such answer is an error that says so, and
// is neither final nor a lack of the endpoint.
func TestAnswersThatAreNone(t *testing.T) {
	for _, body := range []string{
		"", "<html><body>Welcome</body></html>", `{"event_id":"$1","delay_id":"d`, `null`, `[]`, `7`, `"text"`, "\xff\xfe",
		`{"errcode":"M_UNKNOWN","error":"Internal"}`, `{"errcode":"M_FORBIDDEN"}`,
		`{"event_id":7,"delay_id":null,"delayed_events":{},"capabilities":[],"membership":1,"joined":[],"errcode":"M_UNKNOWN"}`,
	} {
		for _, kind := range kinds {
			got := ParseAnswer(Request{Kind: kind}, HTTPResponse{Status: 200, Headers: map[string]string{"Content-Type": "text/html"}, Body: []byte(body)})
			switch e := got.Err; {
			case e == nil:
				t.Errorf("%s took %q for an answer: %+v", kind, body, got)
			case e.Message == "" || e.Network || e.Unsupported || e.DelayTooLong || e.Status != 200:
				t.Errorf("%s %q: %+v", kind, body, e)
			case strings.Contains(body, "M_UNKNOWN") && e.Code != "M_UNKNOWN":
				t.Errorf("%s %q: errcode %q", kind, body, e.Code)
			}
		}
	}
	// The event was sent at once: the server knows no delays.
	if e := ParseAnswer(Request{Kind: ScheduleDelayed}, HTTPResponse{Status: 200, Body: []byte(`{"event_id":"$1"}`)}).Err; e == nil || !e.Unsupported {
		t.Errorf("%+v", e)
	}
}

func TestErrors(t *testing.T) {
	date := map[string]string{"Date": "Thu, 09 Oct 2025 08:53:20 GMT"}
	with := func(name, value string) map[string]string {
		return map[string]string{"date": date["Date"], name: value}
	}
	for _, c := range []struct {
		status  int
		headers map[string]string
		body    string
		want    Error
	}{
		{500, nil, `<html>Internal</html>`, Error{Message: "HTTP 500"}},
		{502, nil, ``, Error{Message: "HTTP 502"}},
		{500, nil, `{"errcode":"M_UNKNOWN","error":"Internal`, Error{Message: "HTTP 500"}},
		{400, nil, `["errcode"]`, Error{Message: "HTTP 400"}},
		{400, nil, `{"errcode":7,"error":{"a":1}}`, Error{Message: "HTTP 400"}},
		{302, map[string]string{"Location": "https://elsewhere"}, ``, Error{Message: "HTTP 302"}},
		{401, nil, `{"errcode":"M_UNKNOWN_TOKEN","error":"gone","soft_logout":true}`, Error{Code: "M_UNKNOWN_TOKEN", Message: "gone", SoftLogout: true}},
		{401, nil, `{"errcode":"M_UNKNOWN_TOKEN","error":"gone","soft_logout":"yes"}`, Error{Code: "M_UNKNOWN_TOKEN", Message: "gone"}},
		{403, nil, `{"errcode":"M_FORBIDDEN","error":"You don't have permission"}`, Error{Code: "M_FORBIDDEN", Message: "You don't have permission"}},
		{404, nil, `{"errcode":"M_NOT_FOUND","error":"gone"}`, Error{Code: "M_NOT_FOUND", Message: "gone"}},
		{404, nil, `{"errcode":"M_UNRECOGNIZED","error":"?"}`, Error{Code: "M_UNRECOGNIZED", Message: "?", Unsupported: true}},
		{405, nil, `{"errcode":"M_UNRECOGNIZED","error":"?"}`, Error{Code: "M_UNRECOGNIZED", Message: "?", Unsupported: true}},
		{404, nil, `<html>no such page</html>`, Error{Message: "HTTP 404"}},
		// The pause, told in the body, in the header, in seconds or as a date, or not at all.
		{429, nil, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":1500}`, Error{Code: "M_LIMIT_EXCEEDED", Message: "slow", RetryAfter: 1500 * time.Millisecond}},
		{429, map[string]string{"Retry-After": "7"}, `slow`, Error{Message: "HTTP 429", RetryAfter: 7 * time.Second}},
		{429, map[string]string{"retry-after": " 7 "}, `{"retry_after_ms":9000}`, Error{Message: "HTTP 429", RetryAfter: 9 * time.Second}},
		{429, with("Retry-After", "Thu, 09 Oct 2025 08:53:50 GMT"), ``, Error{Message: "HTTP 429", RetryAfter: 30 * time.Second}},
		{429, with("Retry-After", "Thu, 09 Oct 2025 08:50:00 GMT"), ``, Error{Message: "HTTP 429"}},
		{429, map[string]string{"Retry-After": "Thu, 09 Oct 2025 08:53:50 GMT"}, ``, Error{Message: "HTTP 429"}},
		{429, map[string]string{"Retry-After": "soon"}, `{"retry_after_ms":"soon"}`, Error{Message: "HTTP 429"}},
		{429, map[string]string{"Retry-After": "-5"}, `{"retry_after_ms":-5}`, Error{Message: "HTTP 429"}},
		{429, map[string]string{"Retry-After": "99999999999999999999"}, `{"retry_after_ms":1e300}`, Error{Message: "HTTP 429", RetryAfter: 1e12 * time.Millisecond}},
		{503, map[string]string{"Retry-After": "3"}, ``, Error{Message: "HTTP 503", RetryAfter: 3 * time.Second}},
		// The delay is too long, in all the ways in which that has been told.
		{400, nil, `{"errcode":"M_UNKNOWN","error":"long","org.matrix.msc4140.errcode":"M_MAX_DELAY_EXCEEDED","org.matrix.msc4140.max_delay":5000}`,
			Error{Code: "M_UNKNOWN", Message: "long", DelayTooLong: true, MaxDelay: 5 * time.Second}},
		{400, nil, `{"errcode":"M_MAX_DELAY_EXCEEDED","error":"long","max_delay":5000}`,
			Error{Code: "M_MAX_DELAY_EXCEEDED", Message: "long", DelayTooLong: true, MaxDelay: 5 * time.Second}},
		{400, nil, `{"errcode":"ORG.MATRIX.MSC4140_DELAY_TOO_LARGE","error":"long"}`,
			Error{Code: "ORG.MATRIX.MSC4140_DELAY_TOO_LARGE", Message: "long", DelayTooLong: true}},
		{403, nil, `{"errcode":"M_FORBIDDEN","error":"The requested delay exceeds the allowed maximum."}`,
			Error{Code: "M_FORBIDDEN", Message: "The requested delay exceeds the allowed maximum.", DelayTooLong: true}},
		{400, nil, `{"errcode":"M_UNKNOWN","error":"long","org.matrix.msc4140.errcode":"M_MAX_DELAY_EXCEEDED","org.matrix.msc4140.max_delay":"x"}`,
			Error{Code: "M_UNKNOWN", Message: "long", DelayTooLong: true}},
	} {
		c.want.Status = c.status
		got := ParseAnswer(Request{Kind: ScheduleDelayed}, HTTPResponse{Status: c.status, Headers: c.headers, Body: []byte(c.body)})
		if got.Err == nil || *got.Err != c.want {
			t.Errorf("%d %v %s:\ngot  %+v\nwant %+v", c.status, c.headers, c.body, got.Err, c.want)
		}
	}
	if e := ParseAnswer(Request{}, HTTPResponse{Status: 200, NetworkError: "no route"}).Err; e == nil || !e.Network || e.Message != "no route" {
		t.Errorf("%+v", e)
	}
}

func TestWordsOfStrangersAreShortened(t *testing.T) {
	long := strings.Repeat("ü", 100_000)
	e := ParseAnswer(Request{}, HTTPResponse{Status: 500, Body: []byte(`{"errcode":"` + long + `","error":"` + long + `"}`)}).Err
	f := ParseAnswer(Request{}, HTTPResponse{Status: 200, Body: []byte(`{"errcode":"` + long + `","error":"` + long + `"}`)}).Err
	for _, e := range []*Error{e, f} {
		if len(e.Code) > 510 || len(e.Message) > 510 || !json.Valid([]byte(`"`+e.Message+`"`)) {
			t.Errorf("%d, %d bytes", len(e.Code), len(e.Message))
		}
	}
}

func TestParseEvent(t *testing.T) {
	const good = `{"type":"t","sender":"@a:x","state_key":"k","event_id":"$1","origin_server_ts":5,"unsigned":{"age":6},"content":{"a":1}}`
	want := Event{Type: "t", StateKey: "k", Sender: "@a:x", EventID: "$1", OriginServerTS: 5, AgeMS: 6, Content: json.RawMessage(`{"a":1}`)}
	if ev, ok := ParseEvent(gjson.Parse(good)); !ok || !reflect.DeepEqual(ev, want) {
		t.Errorf("%+v %v", ev, ok)
	}
	long := `"` + strings.Repeat("x", 600) + `"`
	for field, refused := range map[string][]string{
		`"t"`: {"7", "null", "{}", long}, `"@a:x"`: {"7", "null", `"a"`, `""`, long}, `"k"`: {"7", "null", "[]", long},
		`"$1"`: {long}, `{"a":1}`: {"7", "null", "[]", `"x"`},
	} {
		for _, value := range refused {
			raw := strings.Replace(good, field, value, 1)
			if ev, ok := ParseEvent(gjson.Parse(raw)); ok {
				t.Errorf("%s for %s: taken as %+v", value, field, ev)
			}
		}
	}
	for field, values := range map[string][]string{`5`: {"-5", "1e300", `"x"`, "null"}, `6`: {"-1", "true"}, `{"age":6}`: {"null", "7"}} {
		for _, value := range values {
			ev, ok := ParseEvent(gjson.Parse(strings.Replace(good, field, value, 1)))
			if !ok || ev.OriginServerTS < 0 || ev.OriginServerTS > maxInteger || ev.AgeMS < 0 {
				t.Errorf("%s for %s: %+v %v", value, field, ev, ok)
			}
		}
	}
	for _, raw := range []string{"", "null", "[]", "7", `"x"`, "{", `{"type":"t"`} {
		if _, ok := ParseEvent(gjson.Parse(raw)); ok {
			t.Errorf("%q is taken", raw)
		}
	}
}

// What nests without end is refused before anything reads it: Go ends a process whose stack has
// grown too far.
func TestBottomlessJSON(t *testing.T) {
	for _, open := range []string{"[", `{"a":`} {
		deep := []byte(strings.Repeat(open, 16<<20/len(open)))
		if a := ParseAnswer(Request{Kind: ListDelayed}, HTTPResponse{Status: 200, Body: deep}); a.Err == nil {
			t.Error("an answer without a bottom is taken in")
		}
		if m, reason := ParseStateMember(Event{Sender: "@a:x", StateKey: "_@a:x", Content: deep}, "11", time.Hour); m != nil || reason == "" {
			t.Error("a membership without a bottom is taken in")
		}
		if _, reason := ParseKeyToDevice(deep); reason == "" {
			t.Error("keys without a bottom are taken in")
		}
	}
}
