package homeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Faults on demand: what the server does wrong when it is asked to, for tests of those who must
// bear it. POST /_faults takes them; FaultsHelp is its manual, which the command's -help prints.

// FaultsHelp is how to ask for faults.
const FaultsHelp = `POST /_faults makes the homeserver misbehave. The body is one object:

  {"kind": "latency", "delay_ms": 500}          answers come late
  {"kind": "drop", "when": "before"}            the connection is closed, the request not done
  {"kind": "drop", "when": "after"}             the request is done, the answer lost
  {"kind": "disconnect"}                        the request is done, half of the answer arrives
  {"kind": "rate_limit", "retry_after_ms": 2000, "told": "both"}
                                                429; told: "header", "body", "both" or "neither"
  {"kind": "error", "status": 502, "errcode": "M_UNKNOWN"}
                                                an error; without errcode the body is empty
  {"kind": "html", "status": 200}               a page of HTML in place of the answer
  {"kind": "truncate"}                          the request is done, the JSON ends in the middle
  {"kind": "content_type", "value": "text/plain"}
                                                the request is done, the answer called something else

These last for one request unless told otherwise, and may be narrowed:

  "count": 3            so many requests
  "duration_ms": 5000   requests of so long from now, however many (or at most count)
  "for_ever": true      until it is deleted
  "class": "sync"       one of those that GET /_faults names: sync, state, get_state, send,
                        schedule (state or send with a delay), delayed (all else of delayed
                        events), members, join, leave, login, refresh, whoami, capabilities,
                        keys_upload, keys_query, keys_claim, send_to_device, transports,
                        openid, userinfo...
  "method": "PUT", "path": "/_matrix/client/v3/rooms/*/state/*/*"
                        * stands for anything but a slash
  "user": "@a:example.test"

Of several the oldest that matches applies. And these, which happen at once, to the whole server:

  {"kind": "restart", "down_ms": 3000, "delayed_events": "keep"}
                        all connections are cut and none served for a while; then what was due
                        meanwhile is sent; "lose" forgets all delayed events
  {"kind": "clock_skew", "skew_ms": -60000}
                        the server's clock is so far off: Date, origin_server_ts, what is due
  {"kind": "expire_tokens", "soft": true, "user": "@a:example.test"}
                        access tokens end (of all users if none is named); soft: a refresh is
                        possible, else the devices are logged out

The answer to a fault has its id. GET /_faults lists those that still apply and all classes,
DELETE /_faults deletes them, and DELETE /_faults?id=1 that one.
`

// Fault is one misbehaviour, as POST /_faults takes it; FaultsHelp says what the fields mean.
type Fault struct {
	Kind string `json:"kind"`

	DelayMS      int64  `json:"delay_ms,omitempty"`
	When         string `json:"when,omitempty"`
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`
	Told         string `json:"told,omitempty"`
	Status       int    `json:"status,omitempty"`
	Errcode      string `json:"errcode,omitempty"`
	Value        string `json:"value,omitempty"`

	Count      int    `json:"count,omitempty"`
	DurationMS int64  `json:"duration_ms,omitempty"`
	ForEver    bool   `json:"for_ever,omitempty"`
	Class      string `json:"class,omitempty"`
	Method     string `json:"method,omitempty"`
	Path       string `json:"path,omitempty"`
	User       string `json:"user,omitempty"`

	DownMS        int64  `json:"down_ms,omitempty"`
	DelayedEvents string `json:"delayed_events,omitempty"`
	SkewMS        int64  `json:"skew_ms,omitempty"`
	Soft          bool   `json:"soft,omitempty"`

	ID    int `json:"id,omitempty"`
	until time.Time
}

// faultKinds says of each kind which fields it takes; of those of a request it says what it does
// with one, and of the others what they do at once.
var faultKinds = map[string]struct {
	fields  string
	request func(f *Fault, w http.ResponseWriter, r *request, do func() *answer) *answer // nil: it has answered
	server  func(s *Server, f *Fault)
}{
	"latency":       {fields: "delay_ms", request: (*Fault).latency},
	"drop":          {fields: "when", request: (*Fault).drop},
	"disconnect":    {request: (*Fault).disconnect},
	"rate_limit":    {fields: "retry_after_ms told", request: (*Fault).rateLimit},
	"error":         {fields: "status errcode", request: (*Fault).fail},
	"html":          {fields: "status", request: (*Fault).html},
	"truncate":      {request: (*Fault).truncate},
	"content_type":  {fields: "value", request: (*Fault).contentType},
	"restart":       {fields: "down_ms delayed_events", server: (*Server).restart},
	"clock_skew":    {fields: "skew_ms", server: (*Server).setClock},
	"expire_tokens": {fields: "soft user", server: (*Server).expireTokens},
}

const longestFault = 1 << 40 // ms, 34 years

const whichRequests = "count duration_ms for_ever class method path user"

// check says which field is wrong.
func (f *Fault) check() error {
	kind, known := faultKinds[f.Kind]
	if !known {
		return fmt.Errorf("kind: there is no fault %q", f.Kind)
	}
	takes := strings.Fields("kind " + kind.fields)
	if kind.request != nil {
		takes = append(takes, strings.Fields(whichRequests)...)
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(mustJSON(f), &given); err != nil {
		return err
	}
	for name := range given {
		if !slices.Contains(takes, name) {
			return fmt.Errorf("%s: is not for a fault of kind %s, which takes %s", name, f.Kind, strings.Join(takes[1:], ", "))
		}
	}
	oneOf := func(field, value string, allowed ...string) error {
		if value != "" && !slices.Contains(allowed, value) {
			return fmt.Errorf("%s: expected one of %s, got %q", field, strings.Join(allowed, ", "), value)
		}
		return nil
	}
	for _, err := range []error{
		oneOf("when", f.When, "before", "after"),
		oneOf("told", f.Told, "header", "body", "both", "neither"),
		oneOf("delayed_events", f.DelayedEvents, "keep", "lose"),
		oneOf("class", f.Class, classes()...),
	} {
		if err != nil {
			return err
		}
	}
	if _, err := path.Match(f.Path, ""); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		return fmt.Errorf("status: expected 200 to 599, got %d", f.Status)
	}
	for name, n := range map[string]int64{
		"delay_ms": f.DelayMS, "retry_after_ms": f.RetryAfterMS, "count": int64(f.Count), "duration_ms": f.DurationMS, "down_ms": f.DownMS,
	} {
		if n < 0 || n > longestFault {
			return fmt.Errorf("%s: expected 0 to %d, got %d", name, longestFault, n)
		}
	}
	if f.SkewMS < -longestFault || f.SkewMS > longestFault {
		return fmt.Errorf("skew_ms: expected %d to %d, got %d", -longestFault, longestFault, f.SkewMS)
	}
	return nil
}

// scheduleClass is that of a request that would be of class state or send but for its delay.
const scheduleClass = "schedule"

func classes() []string {
	all := []string{scheduleClass}
	for _, r := range routes() {
		if !slices.Contains(all, r.class) {
			all = append(all, r.class)
		}
	}
	return all
}

// serveFaults is /_faults.
func (s *Server) serveFaults(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		var f Fault
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&f)
		if err == nil {
			f.ID, err = s.AddFault(f)
		}
		if err != nil {
			s.write(w, fail(400, "M_INVALID_PARAM", "%v", err).answer())
			return
		}
		s.write(w, &answer{status: 200, body: map[string]int{"id": f.ID}})
	case http.MethodGet:
		s.mu.Lock()
		s.dropStaleFaults()
		list := make([]Fault, 0, len(s.faults))
		for _, f := range s.faults {
			list = append(list, *f)
		}
		s.mu.Unlock()
		s.write(w, &answer{status: 200, body: map[string]any{"faults": list, "classes": classes()}})
	case http.MethodDelete:
		id, err := strconv.Atoi(r.URL.Query().Get("id"))
		s.mu.Lock()
		s.faults = slices.DeleteFunc(s.faults, func(f *Fault) bool { return err != nil || f.ID == id })
		s.mu.Unlock()
		s.write(w, &answer{status: 200, body: struct{}{}})
	default:
		s.write(w, fail(405, "M_UNRECOGNIZED", "expected POST, GET or DELETE").answer())
	}
}

// AddFault is POST /_faults for those in the same process.
func (s *Server) AddFault(f Fault) (id int, err error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	if f.Count == 0 && f.DurationMS == 0 && !f.ForEver {
		f.Count = 1
	}
	if f.DurationMS > 0 {
		f.until = time.Now().Add(time.Duration(f.DurationMS) * time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faultIDs++
	f.ID = s.faultIDs
	if now := faultKinds[f.Kind].server; now != nil {
		now(s, &f)
	} else {
		s.faults = append(s.faults, &f)
	}
	return f.ID, nil
}

func (s *Server) dropStaleFaults() {
	s.faults = slices.DeleteFunc(s.faults, func(f *Fault) bool { return !f.until.IsZero() && time.Now().After(f.until) })
}

// takeFault is the fault that a request meets, if any. The lock is held.
func (s *Server) takeFault(route route, r *request) *Fault {
	s.dropStaleFaults()
	class := route.class
	if r.URL.Query().Has(delayParameter) {
		class = scheduleClass
	}
	for i, f := range s.faults {
		if f.Class != "" && f.Class != class || f.Method != "" && f.Method != r.Method ||
			f.User != "" && (r.user == nil || r.user.id != f.User) {
			continue
		}
		if f.Path != "" {
			if match, _ := path.Match(f.Path, r.URL.EscapedPath()); !match {
				continue
			}
		}
		if f.Count > 0 {
			if f.Count--; f.Count == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return f
	}
	return nil
}

// apply does a request in the way of the fault.
func (f *Fault) apply(s *Server, w http.ResponseWriter, r *request, do func() *answer) {
	a := faultKinds[f.Kind].request(f, w, r, do)
	r.mustNotBeCut()
	if a != nil {
		s.write(w, a)
	}
}

func (f *Fault) latency(_ http.ResponseWriter, r *request, do func() *answer) *answer {
	select {
	case <-time.After(time.Duration(f.DelayMS) * time.Millisecond):
	case <-r.Context().Done():
		r.mustNotBeCut()
	}
	return do()
}

func (f *Fault) drop(_ http.ResponseWriter, _ *request, do func() *answer) *answer {
	if f.When == "after" {
		do()
	}
	panic(http.ErrAbortHandler)
}

func (f *Fault) disconnect(w http.ResponseWriter, _ *request, do func() *answer) *answer {
	body := rawAnswer(do())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func (f *Fault) rateLimit(http.ResponseWriter, *request, func() *answer) *answer {
	e := fail(429, "M_LIMIT_EXCEEDED", "too many requests")
	e.retryAfter = time.Duration(f.RetryAfterMS) * time.Millisecond
	a := e.answer()
	if f.Told == "body" || f.Told == "neither" {
		a.header.Del("Retry-After")
	}
	if f.Told == "header" || f.Told == "neither" {
		delete(a.body.(map[string]any), "retry_after_ms")
	}
	return a
}

func (f *Fault) fail(w http.ResponseWriter, _ *request, _ func() *answer) *answer {
	status := f.Status
	if status == 0 {
		status = 500
	}
	if f.Errcode == "" {
		w.WriteHeader(status)
		return nil
	}
	return fail(status, f.Errcode, "a fault").answer()
}

func (f *Fault) html(w http.ResponseWriter, _ *request, _ func() *answer) *answer {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if f.Status != 0 {
		w.WriteHeader(f.Status)
	}
	_, _ = w.Write([]byte("<!doctype html><title>Sorry</title><p>Something else answers here.\n"))
	return nil
}

func (f *Fault) truncate(w http.ResponseWriter, _ *request, do func() *answer) *answer {
	body := rawAnswer(do())
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body[:len(body)/2])
	return nil
}

func (f *Fault) contentType(w http.ResponseWriter, _ *request, do func() *answer) *answer {
	a := do()
	w.Header().Set("Content-Type", f.Value)
	w.WriteHeader(a.status)
	_, _ = w.Write(rawAnswer(a))
	return nil
}

func rawAnswer(a *answer) []byte { return mustJSON(a.body) }

// goDown cuts all connections and serves none. The lock is held.
func (s *Server) goDown() {
	s.down = true
	s.cutAll()
	s.arm()
}

func (s *Server) restart(f *Fault) {
	s.goDown()
	if f.DelayedEvents == "lose" {
		s.delayed = schedule{byID: map[string]*delayedEvent{}}
	}
	for _, u := range s.users {
		for _, d := range u.devices {
			clear(d.seen)
		}
	}
	up := func() {
		s.down = false
		s.life, s.cutAll = context.WithCancel(context.Background())
		s.sendDue()
	}
	if f.DownMS == 0 {
		up()
		return
	}
	s.restarts++
	this := s.restarts
	time.AfterFunc(time.Duration(f.DownMS)*time.Millisecond, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.restarts == this && !s.closed { // not restarted again meanwhile
			up()
		}
	})
}

func (s *Server) setClock(f *Fault) {
	s.skew = time.Duration(f.SkewMS) * time.Millisecond
	s.sendDue()
}

func (s *Server) expireTokens(f *Fault) {
	ended := func(d *device) bool { return f.User == "" || d.user.id == f.User }
	if !f.Soft {
		for _, u := range s.users {
			for _, d := range u.devices {
				if ended(d) {
					s.forget(d)
				}
			}
		}
	}
	for _, t := range s.tokens {
		if ended(t.device) {
			t.expires = s.clock().Add(-time.Second)
		}
	}
	for _, u := range s.users {
		u.wake() // a sync that waits notices
	}
}
