package session

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"libmatrixrtc/core/livekit"
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
// Commands: joined (a join that went well), open, join, leave, close, intent, data (each on the session opened last); state (one
// event a line, see parseEvents); left-room; synced; answer KIND [STATUS] [JSON body]; fail KIND (network
// error); drop KIND (unanswered); advance DURATION; sleep DURATION (time passes unseen); jump DURATION (of the wall
// clock); date; info; members; snapshot; sfus, token [SFU], connected JSON, delegate (scripts named sfu_*
// show what concerns SFUs, the others leave it out); auto KIND (from now on answered with success at once, unprinted); until KIND (advance to the next request of that kind).
func TestScenarios(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			w := newWorld()
			w.sfus = strings.HasPrefix(filepath.Base(path), "sfu_")
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
}

const epoch = 1_700_000_000_000

type world struct {
	set     *Set
	session uint64
	now     Time
	asked   []wire.Request
	written json.RawMessage // the last membership that was asked for
	out     strings.Builder
	events  int
	sfus    bool // show what concerns SFUs
	auto    map[wire.Kind]bool
}

func newWorld() *world {
	return &world{
		set: NewSet(SetConfig{UserID: "@me:x", DeviceID: "DEV", Rand: rand.New(rand.NewPCG(1, 2)), NewKey: countedKeys()}),
		now: Time{Boot: time.Hour, Wall: epoch},
	}
}

// countedKeys makes keys that a reader can tell apart: the first is all ones.
func countedKeys() func(int) []byte {
	var n byte
	return func(length int) []byte {
		n++
		return bytes.Repeat([]byte{n}, length)
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
	case "joined": // all of join_and_leave.txt up to the echo, unprinted
		w.joined(t, rest)
	case "open":
		w.session, err = w.set.Open(w.now, "!r:x", OpenOptions{})
	case "join":
		p := JoinParams{FociPreferred: []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"https://lk"}`)}}
		if arg(0) == "anywhere" {
			p.FociPreferred = nil
		}
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
		in.Reset, in.Gap = arg(0) == "reset", arg(0) == "gap"
		in.Events = w.parseEvents(t, rest)
		err = w.set.Handle(w.now, in)
	case "left-room":
		err = w.set.Handle(w.now, RoomLeft{"!r:x"})
	case "synced": // [STATUS [CODE]] [final]: a sync that told of its rooms, or an error (0: of the network)
		in := Synced{Final: slices.ContainsFunc(d.CmdArgs, func(a datadriven.CmdArg) bool { return a.Key == "final" })}
		if arg(0) != "" {
			status, e := strconv.Atoi(arg(0))
			if e != nil {
				t.Fatal(e)
			}
			in.Err = &wire.Error{Network: status == 0, Status: status, Code: arg(1), Message: rest}
		}
		err = w.set.Handle(w.now, in)
	case "drop": // no answer will come
		for i, r := range w.asked {
			if r.Kind == wire.Kind(arg(0)) {
				w.asked = append(w.asked[:i:i], w.asked[i+1:]...)
				break
			}
		}
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
	case "delivered":
		w.delivered(t, rest, arg(0) == "more")
	case "key", "room-key":
		w.giveKey(t, d.Cmd, rest)
	case "dummy": // USER DEVICE: it could not decrypt what we sent
		err = w.set.Handle(w.now, ToDevice{Type: wire.TypeDummy, Sender: id.UserID(arg(0)), SenderDevice: id.DeviceID(arg(1)), Encrypted: true, Content: json.RawMessage("{}")})
	case "flood": // that many keys of a device
		n, e := strconv.Atoi(arg(0))
		if e != nil {
			t.Fatal(e)
		}
		for i := range n {
			w.giveKey(t, "key", fmt.Sprintf("%s index=%d n=%d", rest, i%256, i%256))
		}
	case "auto":
		w.auto = map[wire.Kind]bool{wire.Kind(arg(0)): true}
		w.answer(t, "answer", d.CmdArgs, "")
		w.out.Reset()
	case "until":
		kind := wire.Kind(arg(0))
		w.asked = slices.DeleteFunc(w.asked, func(r wire.Request) bool { return r.Kind == kind })
		for end := w.now.Boot + 24*time.Hour; w.now.Boot < end && !slices.ContainsFunc(w.asked, func(r wire.Request) bool { return r.Kind == kind }); {
			at, ok := w.set.Deadline()
			if !ok {
				break
			}
			w.advance("advance", max(at-w.now.Boot, 0))
		}
	case "trust": // MODE [URL...]
		w.set.cfg.SFUTrust.Mode = arg(0)
		for i := 1; arg(i) != ""; i++ {
			w.set.cfg.SFUTrust.Allowed = append(w.set.cfg.SFUTrust.Allowed, arg(i))
		}
	case "transports":
		list, known := w.set.Transports(w.now)
		fmt.Fprintf(&w.out, "known=%v %s\n", known, list)
	case "sfus":
		list, ignored, _ := w.set.SFUs(w.session)
		for _, x := range list {
			fmt.Fprintf(&w.out, "%s publish=%v trusted=%v", x.ServiceURL, x.Publish, x.Trusted)
			for _, m := range x.Members {
				fmt.Fprintf(&w.out, " %s", m.SFUIdentity)
			}
			fmt.Fprintln(&w.out)
		}
		fmt.Fprintf(&w.out, "ignored=%d\n", ignored)
	case "token":
		token, failure, attempts, e := w.set.SFUToken(w.now, w.session, arg(0))
		switch err = e; {
		case e != nil:
		case token != nil:
			fmt.Fprintln(&w.out, w.payload(*token))
		case failure != nil:
			fmt.Fprintf(&w.out, "failed %d times: %s: %s\n", attempts, failure.Reason, failure.Message)
		default:
			fmt.Fprintln(&w.out, "pending")
		}
	case "give-token": // [for=IDENTITY] [url=URL] [ends=DURATION | exp=SECONDS]: answers a request for a token
		opt := map[string]string{"for": "@me:x:DEV", "url": "wss://sfu.x", "ends": "1h"}
		for _, a := range d.CmdArgs {
			opt[a.Key] = strings.Join(a.Vals, "")
		}
		kind := "get_sfu_token"
		if opt["kind"] != "" {
			kind = opt["kind"]
		}
		ends, e := time.ParseDuration(opt["ends"])
		if e != nil {
			t.Fatal(e)
		}
		room := "R"
		if !strings.HasPrefix(opt["for"], "@") {
			room = livekit.Room("!r:x", "m.call#ROOM")
		}
		claims := fmt.Sprintf(`{"sub":%q,"video":{"room":%q},"exp":%d}`, opt["for"], room, (w.now.Wall+ends.Milliseconds())/1000)
		if opt["exp"] != "" {
			claims = strings.Replace(claims, `"exp":`, `"exp":`+opt["exp"]+`,"was":`, 1)
		}
		jwt := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
		w.answer(t, "answer", []datadriven.CmdArg{{Key: kind}}, fmt.Sprintf(`{"url":%q,"jwt":%q}`, opt["url"], jwt))
	case "connected":
		var c SFUConnection
		if e := json.Unmarshal([]byte(rest), &c); e != nil {
			t.Fatal(e)
		}
		err = w.set.SFUConnected(w.now, w.session, c)
	case "delegate":
		err = w.set.Handle(w.now, DelegateLeave{w.session, arg(0) != "no"})
	case "quiet": // as advance, but only what happens after it is printed
		dur, e := time.ParseDuration(arg(0))
		if e != nil {
			t.Fatal(e)
		}
		w.advance("advance", dur)
		w.out.Reset()
	case "keys":
		keys, _ := w.set.EncryptionKeys(w.session)
		if arg(0) != "" {
			keys, _ = w.set.ParticipantKeys(w.session, id.UserID(arg(0)), id.DeviceID(arg(1)))
		}
		for _, k := range keys {
			fmt.Fprintln(&w.out, w.payload(k))
		}
	case "reemit":
		err = w.set.ReemitEncryptionKeys(w.session)
	case "statistics":
		i, _ := w.set.Info(w.now, w.session)
		st := i.Statistics
		fmt.Fprintf(&w.out, "sent=%d received=%d age=%dms, by room event %d %d %dms\n", st.KeysSent, st.KeysReceived, st.KeysReceivedTotalAgeMS,
			st.RoomEventKeysSent, st.RoomEventKeysReceived, st.RoomEventKeysReceivedTotalAgeMS)
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
		if s.Keys.Held > 0 || len(s.Keys.Refused) > 0 {
			fmt.Fprintf(&w.out, "keys held=%d refused=%v\n", s.Keys.Held, s.Keys.Refused)
		}
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
			if opt["sfu"] != "" {
				b.Transports[0] = json.RawMessage(fmt.Sprintf(`{"type":"livekit","livekit_service_url":%q}`, opt["sfu"]))
			}
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
			ev.Content = w.written
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

func (w *world) joined(t *testing.T, params string) {
	for _, script := range []struct{ cmd, input string }{
		{"open", ""}, {"join", params}, {"state reset", "create 11\nmember @me:x join"},
		{"answer get_capabilities", `{"capabilities":{}}`}, {"answer list_delayed", `{"delayed_events":[]}`},
		{"answer schedule_delayed", `{"delay_id":"d1"}`}, {"answer send_state", `{"event_id":"$m1"}`},
		{"answer restart_delayed", ""}, {"state", "own $m1"},
	} {
		cmd, args, _ := strings.Cut(script.cmd, " ")
		d := &datadriven.TestData{Cmd: cmd, Input: script.input}
		for _, a := range strings.Fields(args) {
			d.CmdArgs = append(d.CmdArgs, datadriven.CmdArg{Key: a})
		}
		w.run(t, d)
	}
	w.out.Reset()
}

// delivered answers the oldest request for keys to be sent.
func (w *world) delivered(t *testing.T, text string, more bool) {
	for i, r := range w.asked {
		if r.Kind != wire.EncryptAndSendToDevice {
			continue
		}
		in := Delivered{Request: r.ID, Last: !more}
		for _, line := range strings.Split(text, "\n") {
			if f := strings.SplitN(line, " ", 3); len(f) >= 2 {
				in.Deliveries = append(in.Deliveries, wire.Delivery{
					Device: wire.Device{UserID: id.UserID(f[0]), DeviceID: id.DeviceID(f[1])}, Reason: strings.Join(f[2:], ""),
				})
			}
		}
		if text == "" {
			for _, to := range r.Recipients {
				in.Deliveries = append(in.Deliveries, wire.Delivery{Device: to})
			}
		}
		if !more {
			w.asked = append(w.asked[:i:i], w.asked[i+1:]...)
		}
		if err := w.set.Handle(w.now, in); err != nil {
			t.Fatal(err)
		}
		return
	}
	fmt.Fprintln(&w.out, "no keys were to be sent")
}

// giveKey reads lines of: USER DEVICE index=N n=BYTE [ago=DURATION] [member=ID] [claims=DEVICE] [room=ROOM]
// [call=ID] [clear] [unsigned], or, after USER DEVICE, raw content.
func (w *world) giveKey(t *testing.T, cmd, text string) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.SplitN(line, " ", 3)
		in := ToDevice{
			Type: wire.TypeEncryptionKeys, Sender: id.UserID(f[0]), SenderDevice: id.DeviceID(f[1]), SenderKey: "curve", Encrypted: true, CrossSigned: true,
		}
		if strings.HasPrefix(f[2], "{") {
			in.Content = json.RawMessage(f[2])
			if gjson.GetBytes(in.Content, "media_key").Exists() {
				in.Type = wire.TypeEncryptionKey2026
			}
		} else {
			opt := map[string]string{"member": f[0] + ":" + f[1], "claims": f[1], "room": "!r:x"}
			for _, o := range strings.Fields(f[2]) {
				k, v, _ := strings.Cut(o, "=")
				opt[k] = v
			}
			number := func(name string) int {
				n, err := strconv.Atoi(opt[name])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			sent := w.now.Wall
			if opt["ago"] != "" {
				d, err := time.ParseDuration(opt["ago"])
				if err != nil {
					t.Fatal(err)
				}
				sent -= d.Milliseconds()
			}
			slot, err := wire.SlotID("m.call", opt["call"])
			if err != nil {
				t.Fatal(err)
			}
			msg := wire.KeyMessage{
				Room: id.RoomID(opt["room"]), SlotID: slot, ClaimedDevice: id.DeviceID(opt["claims"]), MemberID: opt["member"], SentTS: sent,
				Keys: []wire.IndexedKey{{Index: number("index"), Key: bytes.Repeat([]byte{byte(number("n"))}, wire.KeyLength)}},
			}
			in.Content = wire.BuildKeyToDevice(msg)
			if cmd == "room-key" {
				in.Content = wire.BuildKeyRoomEvent(msg)
			}
			_, clear := opt["clear"]
			_, unsigned := opt["unsigned"]
			in.Encrypted, in.CrossSigned = !clear, !unsigned
		}
		if cmd == "key" {
			if err := w.set.Handle(w.now, in); err != nil {
				t.Fatal(err)
			}
			continue
		}
		ignored, err := w.set.CallEncryption(w.now, w.session, wire.Event{Type: in.Type, Sender: in.Sender, Content: in.Content, OriginServerTS: w.now.Wall})
		if err != nil {
			t.Fatal(err)
		}
		if ignored != "" {
			fmt.Fprintf(&w.out, "ignored: %s\n", ignored)
		}
	}
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
			if _, sfus := o.Event.Data.(SFUsChanged); sfus && !w.sfus {
				continue
			}
			fmt.Fprintf(&w.out, "%v  event %s %s\n", at, o.Event.Name, w.payload(o.Event.Data))
			continue
		}
		r := *o.Request
		if w.auto[r.Kind] {
			_ = w.set.Handle(w.now, Response{r.ID, wire.Answer{}})
			w.drain()
			continue
		}
		w.asked = append(w.asked, r)
		fmt.Fprintf(&w.out, "%v  ask   %s", at, r.Kind)
		if r.Delay > 0 {
			fmt.Fprintf(&w.out, " delay=%v", r.Delay)
		}
		if r.DelayID != "" {
			fmt.Fprintf(&w.out, " id=%s", r.DelayID)
		}
		if r.InBody {
			fmt.Fprint(&w.out, " in_body")
		}
		if r.Anonymous {
			fmt.Fprint(&w.out, " anonymous")
		}
		if r.Ready != nil {
			fmt.Fprintf(&w.out, " %s %s%s %s", r.Ready.Method, r.Ready.BaseURL, r.Ready.Path, r.Ready.Body)
		}
		if r.Kind == wire.SendState {
			c := gjson.ParseBytes(r.Content)
			if !c.Get("expires").Exists() {
				fmt.Fprint(&w.out, " leave")
			} else {
				w.written = r.Content
				fmt.Fprintf(&w.out, " expires=%v", ms(c.Get("expires").Int()))
			}
			if c.Get("created_ts").Exists() {
				fmt.Fprintf(&w.out, " created=%v", w.ago(c.Get("created_ts").Int()))
			}
			if v := c.Get(`m\.call\.intent`); v.Exists() {
				fmt.Fprintf(&w.out, " intent=%s", v.Str)
			}
		}
		if r.Type == wire.TypeEncryptionKeys {
			c := gjson.ParseBytes(r.Content)
			fmt.Fprintf(&w.out, " index=%d", c.Get("keys.index").Int()+c.Get("keys.0.index").Int())
			for _, to := range r.Recipients {
				fmt.Fprintf(&w.out, " %s/%s", to.UserID, to.DeviceID)
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
	case SFUToken:
		return fmt.Sprintf("%s url=%s identity=%s room=%s generation=%s ends=%s", d.ServiceURL, d.URL, d.Identity, d.Room, d.Generation, w.ago(d.ExpiresTS))
	case MediaKey:
		raw, err := wire.DecodeBase64(string(d.Key))
		if err != nil {
			return err.Error()
		}
		s := fmt.Sprintf("%s/%s index=%d n=%d", d.UserID, d.DeviceID, d.Index, raw[0])
		if d.Own {
			s += " own"
		}
		if d.InUse {
			s += " in_use"
		}
		return s
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
