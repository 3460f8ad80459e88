package session

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/cockroachdb/datadriven"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// The scenarios in testdata are scripts of inputs with the trace of outputs that each must
// produce. They run in virtual time and are rewritten with
//
//	go test ./core/session -run TestScenarios -rewrite
//
// Commands: open, join, leave, close, intent, data (each on the session opened last); state (one
// event a line, see parseEvents); left-room; answer KIND [STATUS] [JSON body]; fail KIND (network
// error); advance DURATION; sleep DURATION (time passes unseen); jump DURATION (of the wall
// clock); date; info; members; snapshot.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newWorld()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.out.Reset()
			w.run(t, d)
			if w.out.Len() == 0 {
				return "-\n"
			}
			return w.out.String()
		})
	})
}

const epoch = 1_700_000_000_000

type world struct {
	set     *Set
	session uint64
	now     Time
	asked   []wire.Request
	out     strings.Builder
	events  int
}

func newWorld() *world {
	return &world{
		set: NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2))}),
		now: Time{Boot: time.Hour, Wall: epoch},
	}
}

func (w *world) run(t *testing.T, d *datadriven.TestData) {
	rest := strings.TrimSpace(d.Input)
	arg := func(i int) string {
		if i < len(d.CmdArgs) {
			return d.CmdArgs[i].String()
		}
		return ""
	}
	var err error
	switch d.Cmd {
	case "open":
		w.session, err = w.set.Open(w.now, "!r:x", OpenOptions{})
	case "join":
		p := JoinParams{FociPreferred: []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"https://lk"}`)}}
		if rest != "" {
			if err := json.Unmarshal([]byte(rest), &p); err != nil {
				t.Fatal(err)
			}
		}
		err = w.set.Handle(w.now, Join{w.session, p})
	case "leave":
		err = w.set.Handle(w.now, Leave{w.session})
	case "close":
		w.set.CloseSession(w.now, w.session)
	case "intent":
		err = w.set.Handle(w.now, UpdateIntent{w.session, arg(0)})
	case "data":
		var data map[string]json.RawMessage
		if err := json.Unmarshal([]byte(rest), &data); err != nil {
			t.Fatal(err)
		}
		err = w.set.Handle(w.now, UpdateApplicationData{w.session, data})
	case "state":
		in := RoomState{Room: "!r:x", Complete: true}
		in.Reset = arg(0) == "reset"
		in.Events = w.parseEvents(t, rest)
		err = w.set.Handle(w.now, in)
	case "left-room":
		err = w.set.Handle(w.now, RoomLeft{"!r:x"})
	case "answer", "fail":
		w.answer(t, d.Cmd, d.CmdArgs, rest)
	case "advance", "sleep", "jump":
		dur, e := time.ParseDuration(arg(0))
		if e != nil {
			t.Fatal(e)
		}
		w.advance(d.Cmd, dur)
	case "date":
		err = w.set.Handle(w.now, ServerDate{w.now.Wall})
	case "info":
		i, _ := w.set.Info(w.now, w.session)
		oldest := "-"
		if i.OldestMembership != nil {
			oldest = string(i.OldestMembership.UserID)
		}
		intent := "-"
		if i.ConsensusIntent != nil {
			intent = *i.ConsensusIntent
		}
		fmt.Fprintf(&w.out, "joined=%v status=%s probably_left=%v members=%d oldest=%s intent=%s own=%v transport=%s\n",
			i.Joined, i.Status, i.ProbablyLeft, i.MemberCount, oldest, intent, i.OwnMembership != nil, i.ActiveTransport)
	case "members":
		for _, m := range w.set.Memberships(w.session) {
			fmt.Fprintf(&w.out, "%s %s joined=%s\n", m.UserID, m.DeviceID, w.ago(m.JoinedTS))
		}
	case "snapshot":
		s, _ := w.set.DebugSnapshot(w.now, w.session)
		fmt.Fprintf(&w.out, "phase=%s known=%v refused=%d %v\n", s.Phase, s.RoomKnown, s.RefusedAll, s.Refused)
	default:
		t.Fatalf("no command %q", d.Cmd)
	}
	if err != nil {
		fmt.Fprintf(&w.out, "error: %v\n", err)
	}
	w.drain()
}

// parseEvents reads lines of: create VERSION | encrypted | member USER MEMBERSHIP |
// call USER DEVICE [joined=DURATION ago] [expires=DURATION] [intent=...] [id=...] |
// own ID [by=USER] (what our last write put there) | empty USER DEVICE [by=USER] [id=...] |
// raw JSON.
func (w *world) parseEvents(t *testing.T, text string) (events []wire.Event) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		opt := map[string]string{}
		for _, o := range f {
			if k, v, ok := strings.Cut(o, "="); ok {
				opt[k] = v
			}
		}
		w.events++
		ev := wire.Event{Sender: "@admin:x", EventID: id.EventID(fmt.Sprintf("$e%d", w.events)), OriginServerTS: w.now.Wall}
		if opt["id"] != "" {
			ev.EventID = id.EventID(opt["id"])
		}
		if opt["joined"] != "" {
			d, err := time.ParseDuration(opt["joined"])
			if err != nil {
				t.Fatal(err)
			}
			ev.OriginServerTS -= d.Milliseconds()
		}
		memberKey := func() string { return "_" + f[1] + "_" + f[2] + "_m.call" }
		switch f[0] {
		case "create":
			ev.Type, ev.Content = "m.room.create", json.RawMessage(fmt.Sprintf(`{"room_version":%q}`, f[1]))
		case "encrypted":
			ev.Type, ev.Content = "m.room.encryption", json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)
		case "member":
			ev.Type, ev.StateKey, ev.Content = "m.room.member", f[1], json.RawMessage(fmt.Sprintf(`{"membership":%q}`, f[2]))
		case "call":
			b := wire.StateMember{DeviceID: id.DeviceID(f[2]), MemberID: f[1] + ":" + f[2], SlotID: "m.call#ROOM", Intent: opt["intent"],
				FocusSelection: wire.SelectionMultiSFU, ExpiresMS: 4 * 3600 * 1000,
				Transports: []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"https://` + f[2] + `"}`)}}
			if opt["select"] != "" {
				b.FocusSelection = opt["select"]
			}
			if opt["expires"] != "" {
				d, err := time.ParseDuration(opt["expires"])
				if err != nil {
					t.Fatal(err)
				}
				b.ExpiresMS = d.Milliseconds()
			}
			ev.Type, ev.StateKey, ev.Sender, ev.Content = wire.TypeStateMember, memberKey(), id.UserID(f[1]), wire.BuildStateMember(b)
		case "own":
			ev.Type, ev.StateKey, ev.Sender, ev.EventID = wire.TypeStateMember, "_@me:x_DEV_m.call", "@me:x", id.EventID(f[1])
			ev.Content = wire.BuildStateMember(wire.StateMember{DeviceID: "DEV", MemberID: "@me:x:DEV", SlotID: "m.call#ROOM",
				FocusSelection: wire.SelectionMultiSFU, ExpiresMS: 4 * 3600 * 1000})
		case "empty":
			ev.Type, ev.StateKey, ev.Sender, ev.Content = wire.TypeStateMember, memberKey(), id.UserID(f[1]), json.RawMessage("{}")
		default:
			var ok bool
			if ev, ok = wire.ParseEvent(gjson.Parse(line)); !ok {
				t.Fatalf("not an event: %s", line)
			}
		}
		if opt["by"] != "" {
			ev.Sender = id.UserID(opt["by"])
		}
		events = append(events, ev)
	}
	return events
}

func (w *world) answer(t *testing.T, cmd string, args []datadriven.CmdArg, body string) {
	kind := wire.Kind(args[0].String())
	for i, r := range w.asked {
		if r.Kind != kind {
			continue
		}
		w.asked = append(w.asked[:i:i], w.asked[i+1:]...)
		h := wire.HTTPResponse{NetworkError: "connection refused"}
		if cmd == "answer" {
			h = wire.HTTPResponse{Status: 200, Body: []byte(body)}
			if len(args) > 1 {
				s, err := strconv.Atoi(args[1].String())
				if err != nil {
					t.Fatal(err)
				}
				h.Status = s
			}
			if body == "" {
				h.Body = []byte("{}")
			}
		}
		if err := w.set.Handle(w.now, Response{r.ID, wire.ParseAnswer(r, h)}); err != nil {
			t.Fatal(err)
		}
		return
	}
	fmt.Fprintf(&w.out, "nothing of kind %s was asked\n", kind)
}

func (w *world) advance(how string, d time.Duration) {
	if how == "jump" {
		w.now.Wall += d.Milliseconds()
		return
	}
	end := w.now.Boot + d
	for how == "advance" {
		at, ok := w.set.Deadline()
		if !ok || at > end {
			break
		}
		w.pass(max(at, w.now.Boot) - w.now.Boot)
		_ = w.set.Handle(w.now, Tick{})
		w.drain()
	}
	w.pass(end - w.now.Boot)
	if how == "sleep" {
		_ = w.set.Handle(w.now, Tick{})
	}
}

func (w *world) pass(d time.Duration) {
	w.now.Boot += d
	w.now.Wall += d.Milliseconds()
}

func (w *world) ago(ts int64) string { return (time.Duration(ts-epoch) * time.Millisecond).String() }

// drain prints what came out, with the time since the start.
func (w *world) drain() {
	at := (w.now.Boot - time.Hour).Round(time.Millisecond)
	for _, o := range w.set.Outputs() {
		if o.Event != nil {
			fmt.Fprintf(&w.out, "%v  event %s %s\n", at, o.Event.Name, w.payload(o.Event.Data))
			continue
		}
		r := *o.Request
		w.asked = append(w.asked, r)
		fmt.Fprintf(&w.out, "%v  ask   %s", at, r.Kind)
		if r.Delay > 0 {
			fmt.Fprintf(&w.out, " delay=%v", r.Delay)
		}
		if r.DelayID != "" {
			fmt.Fprintf(&w.out, " id=%s", r.DelayID)
		}
		if r.Anonymous {
			fmt.Fprint(&w.out, " anonymous")
		}
		if r.Kind == wire.SendState {
			c := gjson.ParseBytes(r.Content)
			if !c.Get("expires").Exists() {
				fmt.Fprint(&w.out, " leave")
			} else {
				fmt.Fprintf(&w.out, " expires=%v", ms(c.Get("expires").Int()))
			}
			if c.Get("created_ts").Exists() {
				fmt.Fprintf(&w.out, " created=%v", w.ago(c.Get("created_ts").Int()))
			}
			if v := c.Get(`m\.call\.intent`); v.Exists() {
				fmt.Fprintf(&w.out, " intent=%s", v.Str)
			}
		}
		if r.Kind == wire.GetRoomMember {
			fmt.Fprintf(&w.out, " %s", r.StateKey)
		}
		fmt.Fprintln(&w.out)
	}
}

func (w *world) payload(data any) string {
	switch d := data.(type) {
	case MembershipsChanged:
		var parts []string
		for _, m := range d.Joined {
			parts = append(parts, fmt.Sprintf("+%s/%s", m.UserID, m.DeviceID))
		}
		for _, l := range d.Left {
			parts = append(parts, fmt.Sprintf("-%s/%s(%s)", l.Membership.UserID, l.Membership.DeviceID, l.Reason))
		}
		for _, u := range d.Updated {
			parts = append(parts, fmt.Sprintf("~%s/%s", u.After.UserID, u.After.DeviceID))
		}
		sort.Strings(parts)
		return fmt.Sprintf("%s count=%d", strings.Join(parts, " "), d.Count)
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
