// Package homeserver is a Matrix homeserver in memory, for the demo and the tests: as much of the
// Client-Server API as calls need, behaving as Synapse does, with faults on demand (faults.go).
//
// One lock guards everything. A handler runs with the lock held and returns what to answer, which
// is written after the lock is let go; only /sync lets go of it while it waits. All that happens
// is one stream with a position each; a sync token is a position.
package homeserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options are what a homeserver may be told at its start. The zero value is good.
type Options struct {
	ServerName      string            // the domain of its users; default "example.test"
	MaxDelay        time.Duration     // of a delayed event; default 24 h
	MaxScheduled    int               // delayed events of one user; default 100
	AccessTokenLife time.Duration     // of tokens that come with a refresh token; default 5 min
	RTCTransports   []json.RawMessage // where it offers to have the media of calls, the first of them first
}

// Server is a homeserver: an http.Handler.
type Server struct {
	Options
	mux *http.ServeMux

	mu       sync.Mutex
	skew     time.Duration // added to the machine's clock
	pos      int64         // of the newest event, message, or change of keys or account data
	users    map[string]*user
	tokens   map[string]*accessToken
	refresh  map[string]*refreshToken
	openIDs  map[string]openIDToken
	rooms    map[string]*room
	aliases  map[string]*room
	delayed  schedule
	faults   []*Fault
	faultIDs int
	down     bool
	closed   bool
	restarts int
	life     context.Context // ends when all connections are cut
	cutAll   context.CancelFunc
}

// New makes an empty homeserver.
func New(o Options) *Server {
	if o.ServerName == "" {
		o.ServerName = "example.test"
	}
	if o.MaxDelay == 0 {
		o.MaxDelay = 24 * time.Hour
	}
	if o.MaxScheduled == 0 {
		o.MaxScheduled = 100
	}
	if o.AccessTokenLife == 0 {
		o.AccessTokenLife = 5 * time.Minute
	}
	s := &Server{
		Options: o, mux: http.NewServeMux(),
		users: map[string]*user{}, tokens: map[string]*accessToken{}, refresh: map[string]*refreshToken{}, openIDs: map[string]openIDToken{},
		rooms: map[string]*room{}, aliases: map[string]*room{},
		delayed: schedule{byID: map[string]*delayedEvent{}},
	}
	s.life, s.cutAll = context.WithCancel(context.Background())
	for _, r := range routes() {
		handler := s.handler(r)
		if base, client := strings.CutPrefix(r.path, "/v3"); client {
			for _, version := range []string{"v3", "r0"} {
				s.mux.Handle(r.method+" /_matrix/client/"+version+base, handler)
			}
		} else {
			s.mux.Handle(r.method+" "+r.path, handler)
		}
	}
	s.mux.HandleFunc("/_faults", s.serveFaults)
	return s
}

// Close stops what the server does by itself. It answers no request any more.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.goDown()
}

// route is one endpoint. Its class is how faults name it.
type route struct {
	class  string
	method string
	path   string // "/v3/..." stands for /_matrix/client/v3 and r0
	access access
	handle func(*Server, *request) (any, error)
}

// access says whether an endpoint wants an access token.
type access int

const (
	needsToken access = iota
	takesToken        // a token may be absent but not wrong
	anyone
)

func routes() []route {
	var all []route
	for _, some := range [][]route{generalRoutes, accountRoutes, roomRoutes, membershipRoutes, syncRoutes, delayedRoutes, keyRoutes, toDeviceRoutes, accountDataRoutes, rtcRoutes} {
		all = append(all, some...)
	}
	return all
}

var generalRoutes = []route{
	{"versions", "GET", "/_matrix/client/versions", anyone, (*Server).versions},
	{"well_known", "GET", "/.well-known/matrix/client", anyone, (*Server).wellKnown},
	{"capabilities", "GET", "/v3/capabilities", needsToken, (*Server).capabilities},
}

func (s *Server) versions(*request) (any, error) {
	return map[string]any{
		"versions":          []string{"r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11"},
		"unstable_features": map[string]bool{"org.matrix.msc4140": true},
	}, nil
}

func (s *Server) wellKnown(r *request) (any, error) {
	out := map[string]any{"m.homeserver": map[string]string{"base_url": "http://" + r.Host}}
	if len(s.RTCTransports) > 0 {
		out["org.matrix.msc4143.rtc_foci"] = s.RTCTransports
	}
	return out, nil
}

func (s *Server) capabilities(*request) (any, error) {
	available := map[string]string{}
	for v, is := range roomVersions {
		available[v] = is.disposition
	}
	return map[string]any{"capabilities": map[string]any{
		"m.room_versions":   map[string]any{"default": defaultRoomVersion, "available": available},
		"m.change_password": map[string]bool{"enabled": false},
		"org.matrix.msc4140.delayed_events": map[string]any{
			"max_delay_ms": s.MaxDelay.Milliseconds(), "max_scheduled": s.MaxScheduled,
		},
	}}, nil
}

// statusOnly is a ResponseWriter that nobody reads but for the status.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// request is what a handler gets.
type request struct {
	*http.Request
	body   []byte
	user   *user   // nil: there was no access token
	device *device // that of the access token
}

// json decodes the body, which must be an object; into may be nil.
func (r *request) json(into any) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(r.body, &object); err != nil || object == nil {
		if json.Valid(r.body) {
			return fail(400, "M_BAD_JSON", "the body must be a JSON object")
		}
		return fail(400, "M_NOT_JSON", "the body is not JSON")
	}
	if into != nil {
		if err := json.Unmarshal(r.body, into); err != nil {
			return fail(400, "M_BAD_JSON", "%v", err)
		}
	}
	return nil
}

// optionalJSON is json for endpoints whose body may be absent.
func (r *request) optionalJSON(into any) error {
	if len(r.body) == 0 {
		return nil
	}
	return r.json(into)
}

// integer is a whole number of the query; ok is false where there is none.
func (r *request) integer(name string) (n int64, ok bool, err error) {
	values, ok := r.URL.Query()[name]
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(values[0], 10, 64)
	if err != nil {
		return 0, false, fail(400, "M_INVALID_PARAM", "query parameter %s must be an integer", name)
	}
	return n, true, nil
}

// apiError is an error as the Client-Server API tells it.
type apiError struct {
	status     int
	code       string
	message    string
	softLogout *bool
	retryAfter time.Duration
	more       map[string]any
}

func fail(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.status, e.code, e.message) }

func (e *apiError) answer() *answer {
	body := map[string]any{}
	if e.code != "" {
		body["errcode"], body["error"] = e.code, e.message
	}
	a := &answer{status: e.status, body: body, header: http.Header{}}
	if e.softLogout != nil {
		body["soft_logout"] = *e.softLogout
	}
	if e.retryAfter > 0 {
		body["retry_after_ms"] = e.retryAfter.Milliseconds()
		a.header.Set("Retry-After", strconv.FormatInt(int64((e.retryAfter+time.Second-1)/time.Second), 10))
	}
	for k, v := range e.more {
		body[k] = v
	}
	return a
}

// answer is what goes back to the client. A handler may return one in place of a body for 200.
type answer struct {
	status int
	header http.Header
	body   any
}

func answerOf(result any, err error) *answer {
	if err != nil {
		if e, ok := err.(*apiError); ok {
			return e.answer()
		}
		return fail(500, "M_UNKNOWN", "%v", err).answer()
	}
	if a, ok := result.(*answer); ok {
		return a
	}
	return &answer{status: 200, body: result}
}

const maxBody = 10 << 20

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization, Date")
	if r.Method == http.MethodOptions {
		w.WriteHeader(204)
		return
	}
	if r.URL.Path != "/_faults" {
		s.mu.Lock()
		down := s.down
		s.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
	}
	// Read whatever the endpoint does with it: a connection closed before has no answer.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.write(w, fail(413, "M_TOO_LARGE", "the body is too long").answer())
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if _, pattern := s.mux.Handler(r); pattern == "" {
		// The mux tells what is not found from what is found with another method.
		told := statusOnly{header: http.Header{}}
		s.mux.ServeHTTP(&told, r)
		s.write(w, fail(told.status, "M_UNRECOGNIZED", "no such endpoint").answer())
		return
	}
	s.mux.ServeHTTP(w, r)
}

// handler wraps an endpoint in what all have in common: the body, the token, faults, the lock.
func (s *Server) handler(route route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		body, _ := io.ReadAll(hr.Body) // it is in memory
		s.mu.Lock()
		life := s.life
		s.mu.Unlock()
		ctx, cancel := context.WithCancel(hr.Context())
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		r := &request{Request: hr.WithContext(ctx), body: body}

		s.mu.Lock()
		authError := s.authenticate(r, route.access)
		fault := s.takeFault(route, r)
		s.mu.Unlock()

		do := func() *answer {
			if authError != nil {
				return answerOf(nil, authError)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return answerOf(route.handle(s, r))
		}
		if fault != nil {
			fault.apply(s, w, r, do)
			return
		}
		a := do()
		r.mustNotBeCut()
		s.write(w, a)
	})
}

// mustNotBeCut aborts the connection where it was cut meanwhile.
func (r *request) mustNotBeCut() {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) write(w http.ResponseWriter, a *answer) {
	body, err := json.Marshal(a.body)
	if err != nil {
		panic(err) // our own types
	}
	for k, v := range a.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/json")
	s.mu.Lock()
	w.Header().Set("Date", s.clock().UTC().Format(http.TimeFormat))
	s.mu.Unlock()
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the client may have gone
}

// clock is the server's, which a fault may set wrong.
func (s *Server) clock() time.Time { return time.Now().Add(s.skew) }

func (s *Server) now() int64 { return s.clock().UnixMilli() }

// letters puts a letter in place of everything in a random string that is none.
func letters(random string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			return c
		}
		return 'a' + c%26
	}, random)
}

// random is a string that nobody guesses.
func random(length int) string {
	b := make([]byte, length)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)[:length]
}
