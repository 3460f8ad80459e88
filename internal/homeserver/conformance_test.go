package homeserver_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/internal/homeserver"

	"github.com/cockroachdb/datadriven"
	"github.com/tidwall/gjson"
)

// The conformance suite: testdata/*.txt is requests and their answers. It passes against the
// embedded homeserver and, where MRTC_TEST_SYNAPSE_URL names one, against Synapse; -rewrite with a
// Synapse there writes down what that answers.
//
//	register alice bob            makes these users
//	cryptography alice bob        makes keys of theirs, see cryptography_test.go
//	repeat 100                    the requests below so often, with {i} from 1; shows unequal answers
//	do                            the requests below, a line each:
//	alice PUT /rooms/{room1}/state/m.x/k {"a":1}
//	alice GET /capabilities -> capabilities.m\.room_versions    only a part, as a gjson path
//	404 alice GET /...            repeated until the status is that (2 min)
//	- GET /...                    without an access token; =dead with that one
//	alice SYNC {"room":{}}        a sync from where the last one ended, through a filter, until
//	                              there is something new in rooms (2 min, or 2 s where nothing is
//	                              expected)
//	alice NEW {"room":{}}         a first sync
//	alice SYNC -> to_device       as SYNC, until there is this part, as a gjson path; NEW also
//
// Answers are stripped of what differs by nature: texts of errors, times, tokens; ids are numbered
// in the order in which they appear and can be used as {event1}, {room1}, {delay1}.

func TestConformance(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		server := httptest.NewServer(homeserver.New(homeserver.Options{}))
		defer server.Close()
		conform(t, server.URL)
	})
	t.Run("synapse", func(t *testing.T) {
		url := os.Getenv("MRTC_TEST_SYNAPSE_URL")
		if url == "" {
			t.Skip("MRTC_TEST_SYNAPSE_URL is not set")
		}
		conform(t, url)
	})
}

func conform(t *testing.T, url string) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScript(url)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "register":
				for _, arg := range d.CmdArgs {
					s.register(t, arg.Key)
				}
				return ""
			case "cryptography":
				for _, arg := range d.CmdArgs {
					s.makeKeys(t, arg.Key)
				}
				return ""
			case "do":
				return s.lines(t, d.Input, d.Expected)
			case "repeat":
				n, err := strconv.Atoi(d.CmdArgs[0].Key)
				if err != nil {
					t.Fatal(err)
				}
				out := ""
				for i := range n {
					s.vars["i"] = strconv.Itoa(i + 1)
					if answers := s.lines(t, d.Input, ""); !strings.HasSuffix(out, answers) {
						out += answers
					}
				}
				return out
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	})
}

func (s *script) lines(t *testing.T, input, expected string) string {
	var out strings.Builder
	for _, line := range strings.Split(input, "\n") {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			rest, agrees := strings.CutPrefix(expected, out.String())
			s.nothing = !agrees || rest == "" || strings.HasPrefix(rest, "nothing\n")
			out.WriteString(s.line(t, line) + "\n")
		}
	}
	return out.String()
}

type script struct {
	url    string
	run    string            // what makes the names of this run unique
	tokens map[string]string // by user
	next   map[string]string // the last next_batch by user
	vars   map[string]string // by placeholder, without braces
	names  map[string]string // placeholder by value
	counts map[string]int
	syncs  int
	keys   map[string]signingKey // by user and use

	nothing bool // is what is expected of the line at hand, or nobody knows what
}

func newScript(url string) *script {
	s := &script{
		url: url, run: fmt.Sprintf("%x", time.Now().UnixNano()), tokens: map[string]string{"-": ""}, next: map[string]string{},
		vars: map[string]string{}, names: map[string]string{}, counts: map[string]int{},
		keys: map[string]signingKey{},
	}
	s.vars["delayed"] = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
	s.vars["run"] = s.run
	return s
}

func (s *script) register(t *testing.T, name string) {
	body := fmt.Sprintf(`{"username":"%s-%s","password":"secret","device_id":"%s","auth":{"type":"m.login.dummy"}}`,
		name, s.run, strings.ToUpper(name))
	status, _, answer := s.request(t, "", "POST", "/register", body)
	if status != 200 {
		t.Fatalf("register %s: %d %s", name, status, answer)
	}
	s.tokens[name] = gjson.GetBytes(answer, "access_token").Str
	s.name(name, gjson.GetBytes(answer, "user_id").Str)
}

func (s *script) name(placeholder, value string) {
	s.vars[placeholder], s.names[value] = value, placeholder
}

func (s *script) request(t *testing.T, token, method, path, body string) (int, http.Header, []byte) {
	t.Helper()
	if !strings.HasPrefix(path, "/_") && !strings.HasPrefix(path, "/.") {
		path = "/_matrix/client/v3" + path
	}
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, s.url+path, content)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	answer, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, a.Header, answer
}

var (
	lineForm    = regexp.MustCompile(`^(?:(\d{3}) )?(\S+) (GET|PUT|POST|DELETE|SYNC|NEW)(?: ((?:/|\{delayed\})\S*))?(?: (.*?))??(?: -> (.*))?$`)
	placeholder = regexp.MustCompile(`\{[a-z]+\d*(?:\.[a-z]+)?(?:\+[a-z]+\.[a-z]+)?\}`)
)

func (s *script) line(t *testing.T, line string) string {
	t.Helper()
	m := lineForm.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("cannot read %q", line)
	}
	wanted, who, method, path, body, pick := m[1], m[2], m[3], s.fill(m[4], url.PathEscape), s.fill(m[5], nil), m[6]
	token, user := s.tokens[who]
	if dead, given := strings.CutPrefix(who, "="); given {
		token = s.fill(dead, nil)
	} else if !user {
		t.Fatalf("who is %s?", who)
	}
	end := time.Now().Add(patience)
	if method == "SYNC" && s.nothing { // one that finds nothing takes all of its time
		end = time.Now().Add(2 * time.Second)
	}
	for {
		switch method {
		case "SYNC", "NEW":
			answer := s.sync(t, who, body, method == "NEW")
			found := gjson.GetBytes(answer, cmp.Or(pick, "rooms"))
			switch {
			case method == "SYNC" && !found.Exists() && time.Now().Before(end):
				continue
			case pick == "":
				return s.showSync(answer)
			case found.Exists():
				return s.json([]byte(found.Raw))
			}
			return "nothing"
		}
		status, header, answer := s.request(t, token, method, path, body)
		if wanted == "" || wanted == fmt.Sprint(status) || time.Now().After(end) {
			return s.show(status, header, answer, pick)
		}
		time.Sleep(20 * time.Millisecond) // until the server has done what it does by itself
	}
}

// fill puts in what placeholders stand for. {x.next} is a sync token of x.
func (s *script) fill(text string, escape func(string) string) string {
	return placeholder.ReplaceAllStringFunc(text, func(p string) string {
		name := strings.Trim(p, "{}")
		if object, signer, signed := strings.Cut(name, "+"); signed {
			return s.signed(object, signer)
		}
		value, ok := s.vars[name]
		if user, isToken := strings.CutSuffix(name, ".next"); isToken {
			value, ok = s.next[user], true
		}
		if !ok {
			return p
		}
		if escape != nil && name != "delayed" {
			return escape(value)
		}
		return value
	})
}

func (s *script) sync(t *testing.T, who, filter string, fresh bool) []byte {
	t.Helper()
	s.syncs++ // Synapse answers from its cache what it has been asked word for word
	q := url.Values{"timeout": {strconv.Itoa(1000 + s.syncs)}}
	if filter != "" {
		q.Set("filter", filter)
	}
	if since := s.next[who]; since != "" && !fresh {
		q.Set("since", since)
	}
	status, _, answer := s.request(t, s.tokens[who], "GET", "/sync?"+q.Encode(), "")
	if status != 200 {
		t.Fatalf("sync: %d %s", status, answer)
	}
	s.next[who] = gjson.GetBytes(answer, "next_batch").Str
	return answer
}

var ids = []struct {
	name string
	form *regexp.Regexp
}{
	{"event", regexp.MustCompile(`^\$[\w-]{43}$`)},
	{"room", regexp.MustCompile(`^![\w-]{43}$|^![A-Za-z]+:`)},
	{"delay", regexp.MustCompile(`^syd_`)},
	{"access", regexp.MustCompile(`^syt_`)},
	{"refresh", regexp.MustCompile(`^syr_`)},
	{"openid", regexp.MustCompile(`^[A-Za-z]{24}$`)},
	{"signature", regexp.MustCompile(`^[A-Za-z0-9+/]{86}$`)},
}

// show is an answer in the form in which all servers' are equal.
func (s *script) show(status int, header http.Header, answer []byte, pick string) string {
	if pick != "" {
		answer = []byte(gjson.GetBytes(answer, pick).Raw)
	}
	out := fmt.Sprint(status)
	if after := header.Get("Retry-After"); after != "" {
		out += " Retry-After"
	}
	if len(answer) > 0 {
		out += " " + s.json(answer)
	}
	return out
}

func (s *script) json(raw []byte) string {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "not JSON"
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(s.clean("", v)); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out.String())
}

func (s *script) clean(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if _, isEvent := v["event_id"]; isEvent && v["sender"] != nil {
			// How events looked before v3, which Synapse goes on serving.
			for _, old := range []string{"age", "user_id", "prev_content", "replaces_state"} {
				delete(v, old)
			}
		}
		out := map[string]any{}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if k != "error" && k != "message" || v["errcode"] == nil {
				out[s.clean("", k).(string)] = s.clean(k, v[k])
			}
		}
		return out
	case []any:
		sortState(v)
		for i := range v {
			v[i] = s.clean("", v[i])
		}
		if key == "joined_rooms" || key == "changed" || key == "left" {
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
		return v
	case json.Number:
		if strings.HasSuffix(key, "_ts") || slices.Contains([]string{"age", "retry_after_ms", "expires_in_ms", "running_since"}, key) {
			return "<n>"
		}
	case string:
		switch key {
		case "next_batch", "prev_batch", "start", "end", "session":
			return "<token>"
		}
		return s.text(v)
	}
	return v
}

// text names what a string is or has in it.
func (s *script) text(v string) string {
	if name, known := s.names[v]; known {
		return "{" + name + "}"
	}
	for _, id := range ids {
		if id.form.MatchString(v) {
			s.counts[id.name]++
			name := fmt.Sprintf("%s%d", id.name, s.counts[id.name])
			s.name(name, v)
			return "{" + name + "}"
		}
	}
	for value, name := range s.names {
		if len(value) > 1 && strings.Contains(v, value) {
			v = strings.ReplaceAll(v, value, "{"+name+"}")
		}
	}
	return strings.ReplaceAll(v, "-"+s.run, "")
}

// sortState brings a list of state, whose order says nothing, in one.
func sortState(list []any) {
	for _, e := range list {
		if m, ok := e.(map[string]any); !ok || m["state_key"] == nil {
			return
		}
	}
	key := func(e any) string { m := e.(map[string]any); return fmt.Sprint(m["type"], " ", m["state_key"]) }
	slices.SortStableFunc(list, func(a, b any) int { return strings.Compare(key(a), key(b)) })
}

// showSync is what a sync says of rooms, a line an event.
func (s *script) showSync(answer []byte) string {
	var out strings.Builder
	rooms := gjson.GetBytes(answer, "rooms")
	for _, section := range []string{"join", "invite", "leave"} {
		var lines []string
		rooms.Get(section).ForEach(func(id, room gjson.Result) bool {
			line := section + " " + s.text(id.Str)
			if room.Get("timeline.limited").Bool() {
				line += " limited"
			}
			if n := room.Get(`summary.m\.joined_member_count`); n.Exists() {
				line += fmt.Sprintf(" (%d joined, %d invited)", n.Int(), room.Get(`summary.m\.invited_member_count`).Int())
			}
			if heroes := room.Get(`summary.m\.heroes`); heroes.Exists() {
				line += " heroes " + s.json([]byte(heroes.Raw))
			}
			line += "\n"
			for _, part := range []string{"state", "timeline", "invite_state"} {
				events := room.Get(part + ".events").Array()
				if part != "timeline" {
					key := func(e gjson.Result) string { return e.Get("type").Str + " " + e.Get("state_key").Str }
					slices.SortFunc(events, func(a, b gjson.Result) int { return strings.Compare(key(a), key(b)) })
				}
				for _, e := range events {
					line += "  " + part + " " + s.showEvent(part, e) + "\n"
				}
			}
			lines = append(lines, line)
			return true
		})
		slices.Sort(lines)
		out.WriteString(strings.Join(lines, ""))
	}
	if out.Len() == 0 {
		return "nothing"
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func (s *script) showEvent(part string, e gjson.Result) string {
	out := e.Get("type").Str
	if k := e.Get("state_key"); k.Exists() {
		out += " " + fmt.Sprintf("%q", s.text(k.Str))
	}
	out += " " + s.text(e.Get("sender").Str) + " " + s.json([]byte(e.Get("content").Raw))
	if u := e.Get("unsigned"); u.Exists() {
		var unsigned map[string]any
		_ = json.Unmarshal([]byte(u.Raw), &unsigned) // valid, or gjson had not found it
		delete(unsigned, "age")
		if part == "state" { // whether Synapse tells it depends on its caches
			delete(unsigned, "prev_content")
			delete(unsigned, "prev_sender")
		}
		if len(unsigned) > 0 {
			raw, _ := json.Marshal(unsigned)
			out += " " + s.json(raw)
		}
	}
	return out
}
