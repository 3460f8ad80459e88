package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// How requests look as HTTP, and what answers mean. Hosts that have a Matrix client of their own
// pass both through unread.

const (
	v3         = "/_matrix/client/v3"
	delayedAPI = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
)

// HTTP is the request as it goes over the network, without the access token. What is to be
// encrypted has to be so already.
func (r Request) HTTP() HTTPRequest {
	if r.Ready != nil {
		return *r.Ready
	}
	room := v3 + "/rooms/" + url.PathEscape(string(r.Room))
	state := room + "/state/" + url.PathEscape(r.Type) + "/" + url.PathEscape(r.StateKey)
	delayed := func(action string) HTTPRequest {
		if r.InBody {
			body := json.RawMessage(`{"action":"` + action + `"}`)
			return HTTPRequest{Method: "POST", Path: delayedAPI + "/" + url.PathEscape(r.DelayID), Body: body}
		}
		return HTTPRequest{Method: "POST", Path: delayedAPI + "/" + url.PathEscape(r.DelayID) + "/" + action, Body: json.RawMessage("{}")}
	}
	switch r.Kind {
	case SendState:
		return HTTPRequest{Method: "PUT", Path: state, Body: r.Content}
	case ScheduleDelayed:
		q := map[string]string{"org.matrix.msc4140.delay": strconv.FormatInt(r.Delay.Milliseconds(), 10)}
		return HTTPRequest{Method: "PUT", Path: state, Query: q, Body: r.Content}
	case RestartDelayed:
		return delayed("restart")
	case SendDelayed:
		return delayed("send")
	case CancelDelayed:
		return delayed("cancel")
	case ListDelayed:
		return HTTPRequest{Method: "GET", Path: delayedAPI}
	case GetCapabilities:
		return HTTPRequest{Method: "GET", Path: v3 + "/capabilities"}
	case GetRoomMember:
		return HTTPRequest{Method: "GET", Path: room + "/state/m.room.member/" + url.PathEscape(r.StateKey)}
	case GetJoinedMembers:
		return HTTPRequest{Method: "GET", Path: room + "/joined_members"}
	case EncryptAndSendEvent:
		return HTTPRequest{Method: "PUT", Path: room + "/send/" + url.PathEscape(r.Type) + "/" + url.PathEscape(r.TxnID), Body: r.Content}
	}
	return HTTPRequest{Method: "GET", Path: "/_matrix/client/versions"}
}

// ParseAnswer reads what came back for a request. It takes anything: what is not the expected
// answer becomes an Error that says so.
func ParseAnswer(r Request, h HTTPResponse) Answer {
	if h.NetworkError != "" {
		return Answer{Err: &Error{Network: true, Message: h.NetworkError}}
	}
	valid := ValidJSON(h.Body, MaxDepth)
	body := gjson.Result{}
	if valid {
		body = gjson.ParseBytes(h.Body)
	}
	if h.Status < 200 || h.Status > 299 {
		return Answer{Err: parseError(h, body)}
	}
	unexpected := func(what string) Answer {
		whose := "the homeserver's answer"
		if r.Foreign() {
			whose = "the answer"
		}
		e := &Error{Status: h.Status, Message: whose + " has no " + what}
		if code := body.Get("errcode"); code.Type == gjson.String {
			e.Code = shorten(code.Str)
			if told := body.Get("error"); told.Type == gjson.String && told.Str != "" {
				e.Message = shorten(told.Str)
			}
		}
		return Answer{Err: e}
	}
	if !valid || !body.IsObject() {
		return unexpected("JSON object")
	}
	switch r.Kind {
	case SendState:
		if v := body.Get("event_id"); v.Type == gjson.String {
			return Answer{EventID: id.EventID(v.String())}
		}
		return unexpected("event_id")
	case ScheduleDelayed:
		if v := body.Get("delay_id"); v.Type == gjson.String && v.Str != "" {
			return Answer{DelayID: v.String()}
		}
		if body.Get("event_id").Type == gjson.String {
			// The delay was ignored and the event sent at once: no delayed events here.
			return Answer{Err: &Error{Status: h.Status, Unsupported: true, Message: "the homeserver ignores the delay"}}
		}
		return unexpected("delay_id")
	case ListDelayed:
		return parseDelayed(body, unexpected)
	case GetCapabilities:
		c := body.Get("capabilities")
		if !c.IsObject() {
			return unexpected("capabilities")
		}
		var a Answer
		if d := c.Get(`org\.matrix\.msc4140\.delayed_events`); d.IsObject() {
			a.DelayedEvents = &DelayedEventsCapability{MaxDelay: milliseconds(d.Get("max_delay_ms"))}
		}
		return a
	case GetRoomMember:
		v := body.Get("membership")
		if v.Type != gjson.String {
			return unexpected("membership")
		}
		if v.Str == "join" {
			return Answer{Joined: []id.UserID{id.UserID(r.StateKey)}}
		}
		return Answer{}
	case GetJoinedMembers:
		joined := body.Get("joined")
		if !joined.IsObject() {
			return unexpected("joined")
		}
		var a Answer
		joined.ForEach(func(k, _ gjson.Result) bool { a.Joined = append(a.Joined, id.UserID(k.String())); return true })
		return a
	}
	// What needs no field of the answer can still be told that it failed.
	if body.Get("errcode").Type == gjson.String {
		return unexpected("meaning: an error with the status of a success")
	}
	if r.Ready != nil {
		return Answer{Body: bytes.Clone(h.Body)}
	}
	return Answer{}
}

func parseDelayed(body gjson.Result, unexpected func(string) Answer) Answer {
	list := body.Get("delayed_events")
	if !list.Exists() {
		list = body.Get("scheduled")
	}
	if !list.IsArray() {
		return unexpected("delayed_events")
	}
	var a Answer
	list.ForEach(func(_, d gjson.Result) bool {
		if v := d.Get("delay_id"); v.Type == gjson.String && v.Str != "" {
			a.Delayed = append(a.Delayed, DelayedEvent{
				DelayID: v.String(), Room: id.RoomID(d.Get("room_id").String()), Type: d.Get("type").String(),
				StateKey: d.Get("state_key").String(), Content: json.RawMessage(d.Get("content").Raw),
			})
		}
		return len(a.Delayed) < 10_000
	})
	return a
}

// parseError tells a failure in one form, whatever form it came in.
func parseError(h HTTPResponse, body gjson.Result) *Error {
	e := &Error{Status: h.Status, Code: shorten(body.Get("errcode").Str), Message: shorten(body.Get("error").Str)}
	if e.Message == "" {
		e.Message = fmt.Sprintf("HTTP %d", h.Status)
	}
	switch {
	case h.Status == 401:
		e.SoftLogout = body.Get("soft_logout").Type == gjson.True
	case (h.Status == 404 || h.Status == 405 || h.Status == 400) && e.Code == "M_UNRECOGNIZED":
		e.Unsupported = true
	case h.Status == 429:
		e.RetryAfter = retryAfter(h.Headers, body)
	case h.Status == 503:
		e.RetryAfter = retryAfter(h.Headers, gjson.Result{})
	}
	// A delay over the maximum has been told in three ways (MSC4140).
	unstable := body.Get(`org\.matrix\.msc4140\.errcode`).String()
	switch {
	case h.Status == 400 && (unstable == "M_MAX_DELAY_EXCEEDED" || e.Code == "M_MAX_DELAY_EXCEEDED"):
		e.DelayTooLong = true
		e.MaxDelay = max(milliseconds(body.Get(`org\.matrix\.msc4140\.max_delay`)), milliseconds(body.Get("max_delay")))
	case h.Status == 400 && strings.HasSuffix(e.Code, "DELAY_TOO_LARGE"):
		e.DelayTooLong = true
		e.MaxDelay = milliseconds(body.Get("max_delay"))
	case h.Status == 403 && e.Code == "M_FORBIDDEN" && strings.Contains(strings.ToLower(e.Message), "delay") && strings.Contains(strings.ToLower(e.Message), "max"):
		e.DelayTooLong = true
	}
	return e
}

// retryAfter reads both ways in which a server names the pause.
func retryAfter(headers map[string]string, body gjson.Result) time.Duration {
	pause := milliseconds(body.Get("retry_after_ms"))
	v := header(headers, "Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return max(pause, time.Duration(s)*time.Second)
	}
	// Or a date, which means something beside the server's own.
	until, err := ParseDate(v)
	if err != nil {
		return pause
	}
	if now, err := ParseDate(header(headers, "Date")); err == nil {
		pause = min(max(pause, until.Sub(now)), 1e6*time.Second)
	}
	return pause
}

func header(headers map[string]string, name string) string {
	for k, v := range headers {
		if strings.EqualFold(k, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// ParseDate reads the date of an HTTP header.
func ParseDate(s string) (time.Time, error) {
	return time.Parse("Mon, 02 Jan 2006 15:04:05 GMT", s)
}

func milliseconds(v gjson.Result) time.Duration {
	return time.Duration(min(wholeNumber(v), 1e12)) * time.Millisecond
}

// wholeNumber is a number of a stranger's, within bounds in which arithmetic is safe.
func wholeNumber(v gjson.Result) int64 {
	if v.Type != gjson.Number || !(v.Num >= 0) {
		return 0
	}
	return int64(min(v.Num, maxInteger))
}

func shorten(s string) string {
	if len(s) > 500 {
		return strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}

// ParseEvent reads one state event of a sync or state answer. It is refused where a field that
// every such event has is absent or absurd.
func ParseEvent(raw gjson.Result) (Event, bool) {
	ev, isState, ok := parseEvent(raw)
	return ev, ok && isState
}

// MalformedMember says of an event that ParseEvent refuses why, if it is one of a call's member.
func MalformedMember(raw gjson.Result) (sender id.UserID, stateKey, reason string) {
	fields := fieldsAt(raw, "type", "sender", "state_key", "event_id", "content")
	kind, _ := fields.get("type")
	if kind.Type != gjson.String || !IsStateMember(kind.Str) {
		return "", "", ""
	}
	from, known := fields.get("sender")
	key, keyed := fields.get("state_key")
	content, filled := fields.get("content")
	eventID, _ := fields.get("event_id")
	switch {
	case from.Type != gjson.String || !strings.HasPrefix(from.Str, "@") || len(from.Str) > maxIDLength:
		reason = fmt.Sprintf("sender: expected a user id, got %s", kindOf(from, known))
	case key.Type != gjson.String || len(key.Str) > 2*maxIDLength:
		reason = fmt.Sprintf("state_key: expected a string of at most %d bytes, got %s", 2*maxIDLength, kindOf(key, keyed))
	case len(eventID.Str) > maxIDLength:
		reason = fmt.Sprintf("event_id: expected at most %d bytes", maxIDLength)
	default:
		reason = fmt.Sprintf("content: expected a JSON object, got %s", kindOf(content, filled))
	}
	return id.UserID(shorten(from.Str)), shorten(key.Str), reason
}

// ParseTimelineEvent reads any room event, with or without a state key.
func ParseTimelineEvent(raw gjson.Result) (Event, bool) {
	ev, _, ok := parseEvent(raw)
	return ev, ok
}

func parseEvent(raw gjson.Result) (ev Event, isState, ok bool) {
	var kind, sender, key, eventID, ts, unsigned, content gjson.Result
	raw.ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "type":
			kind = v
		case "sender":
			sender = v
		case "state_key":
			key = v
		case "event_id":
			eventID = v
		case "origin_server_ts":
			ts = v
		case "unsigned":
			unsigned = v
		case "content":
			content = v
		}
		return true
	})
	if kind.Type != gjson.String || sender.Type != gjson.String || !content.IsObject() {
		return Event{}, false, false
	}
	if len(kind.Str) > maxIDLength || len(sender.Str) > maxIDLength || len(key.Str) > 2*maxIDLength || len(eventID.Str) > maxIDLength {
		return Event{}, false, false
	}
	if !strings.HasPrefix(sender.Str, "@") {
		return Event{}, false, false
	}
	return Event{
		Type: keepName(kind.Str), StateKey: strings.Clone(key.Str), Sender: id.UserID(strings.Clone(sender.Str)),
		EventID:        id.EventID(strings.Clone(eventID.Str)),
		OriginServerTS: wholeNumber(ts),
		AgeMS:          wholeNumber(unsigned.Get("age")),
		Content:        json.RawMessage(content.Raw),
	}, key.Type == gjson.String, true
}
