package wire

import (
	"encoding/json"
	"fmt"
	"net/http"
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

// HTTP is the request as it goes over the network, without the access token.
func (r Request) HTTP() HTTPRequest {
	room := v3 + "/rooms/" + url.PathEscape(string(r.Room))
	state := room + "/state/" + url.PathEscape(r.Type) + "/" + url.PathEscape(r.StateKey)
	delayed := func(action string) HTTPRequest {
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
	}
	return HTTPRequest{Method: "GET", Path: "/_matrix/client/versions"}
}

// ParseAnswer reads what came back for a request. It takes anything: what is not the expected
// answer becomes an Error that says so.
func ParseAnswer(r Request, h HTTPResponse) Answer {
	if h.NetworkError != "" {
		return Answer{Err: &Error{Network: true, Message: h.NetworkError}}
	}
	valid := gjson.ValidBytes(h.Body)
	body := gjson.Result{}
	if valid {
		body = gjson.ParseBytes(h.Body)
	}
	if h.Status < 200 || h.Status > 299 {
		return Answer{Err: parseError(h, body)}
	}
	unexpected := func(what string) Answer {
		e := &Error{Status: h.Status, Message: "the homeserver's answer has no " + what}
		if code := body.Get("errcode"); code.Type == gjson.String {
			e.Code, e.Message = code.String(), body.Get("error").String()
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
		if body.Get("event_id").Exists() {
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
			a.DelayedEvents = &DelayedEventsCapability{
				MaxDelay:     milliseconds(d.Get("max_delay_ms")),
				MaxScheduled: int(wholeNumber(d.Get("max_scheduled"))),
			}
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
	e := &Error{Status: h.Status, Code: shorten(body.Get("errcode").String()), Message: shorten(body.Get("error").String())}
	if e.Message == "" {
		e.Message = fmt.Sprintf("HTTP %d %s", h.Status, http.StatusText(h.Status))
	}
	switch {
	case h.Status == 401:
		e.SoftLogout = body.Get("soft_logout").Bool()
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
	for name, v := range headers {
		if !strings.EqualFold(name, "Retry-After") {
			continue
		}
		if s, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31); err == nil {
			pause = max(pause, time.Duration(s)*time.Second)
		}
	}
	return pause
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

// ParseEvent reads one room event of a sync or state answer. It is refused where a field that
// every event has is absent or absurd.
func ParseEvent(raw gjson.Result) (Event, bool) {
	t, sender, key := raw.Get("type"), raw.Get("sender"), raw.Get("state_key")
	if t.Type != gjson.String || sender.Type != gjson.String || key.Type != gjson.String || !raw.Get("content").IsObject() {
		return Event{}, false
	}
	if len(t.Str) > maxIDLength || len(sender.Str) > maxIDLength || len(key.Str) > 2*maxIDLength {
		return Event{}, false
	}
	return Event{
		Type: strings.Clone(t.Str), StateKey: strings.Clone(key.Str), Sender: id.UserID(strings.Clone(sender.Str)),
		EventID:        id.EventID(strings.Clone(raw.Get("event_id").Str)),
		OriginServerTS: wholeNumber(raw.Get("origin_server_ts")),
		AgeMS:          wholeNumber(raw.Get("unsigned.age")),
		Content:        json.RawMessage(raw.Get("content").Raw),
	}, true
}
