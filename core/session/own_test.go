package session

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"libmatrixrtc/core/wire"
)

func TestStateKeysThatDoNotFit(t *testing.T) {
	w := newWorld()
	for application, fits := range map[string]bool{strings.Repeat("a", 200): true, strings.Repeat("a", 250): false} {
		_, err := w.set.Open(w.now, "!r:x", OpenOptions{Application: application})
		if wrong := (*ArgumentError)(nil); fits != (err == nil) || !fits && (!errors.As(err, &wrong) || wrong.Path != "/application") {
			t.Errorf("%d bytes: %v", len(application), err)
		}
	}
}

// What a host may ask for is a membership that homeservers take and that everybody can read, or it is
// refused by name: another would be written, or looked for, for ever.
func TestWhatWeWriteCanBeRead(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	deep := func(n int) json.RawMessage {
		return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
	}
	transport := func(field json.RawMessage) []json.RawMessage {
		return []json.RawMessage{json.RawMessage(`{"type":"livekit","livekit_service_url":"https://lk","x":` + string(field) + `}`)}
	}
	quoted := func(s string) json.RawMessage { raw, _ := json.Marshal(s); return raw }
	data := func(name string, v json.RawMessage) map[string]json.RawMessage {
		return map[string]json.RawMessage{name: v}
	}
	for name, c := range map[string]struct {
		params JoinParams
		path   string // of the error; "": it is accepted
	}{
		"nothing":              {JoinParams{FociPreferred: []json.RawMessage{}}, ""},
		"long texts":           {JoinParams{MemberID: text(255), CallIntent: text(255), FociPreferred: transport(deep(20))}, ""},
		"long intent":          {JoinParams{CallIntent: text(256)}, "/call_intent"},
		"long member id":       {JoinParams{MemberID: text(256)}, "/member_id"},
		"much data":            {JoinParams{ApplicationData: data("x", quoted(text(45_000))), FociPreferred: transport(deep(20))}, ""},
		"too much data":        {JoinParams{ApplicationData: data("x", quoted(text(50_000)))}, "/application_data"},
		"a long name":          {JoinParams{ApplicationData: data(text(50_000), deep(1))}, "/application_data"},
		"much that is escaped": {JoinParams{ApplicationData: data("x", quoted(strings.Repeat("<", 45_000)))}, "/application_data"},
		"deep data":            {JoinParams{ApplicationData: data("x", deep(32))}, ""},
		"too deep data":        {JoinParams{ApplicationData: data("x", deep(33))}, "/application_data/x"},
		"too deep a transport": {JoinParams{FociPreferred: transport(deep(63))}, "/foci_preferred/0"},
		"many transports":      {JoinParams{FociPreferred: transport(quoted(text(20_000)))}, ""},
		"too many transports":  {JoinParams{FociPreferred: append(transport(quoted(text(30_000))), transport(quoted(text(30_000)))...)}, "/application_data"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.session, _ = w.set.Open(w.now, "!r:x", OpenOptions{})
			err := w.set.Handle(w.now, Join{w.session, c.params})
			var wrong *ArgumentError
			if errors.As(err, &wrong) && wrong.Path == c.path {
				return
			}
			if err != nil || c.path != "" {
				t.Fatalf("%v, expected an error at %q", err, c.path)
			}
			o := w.set.sessions[w.session]
			content := wire.BuildStateMember(wire.StateMember{
				DeviceID: "DEV", MemberID: "@me:x:DEV", SlotID: "m.call#ROOM", Intent: c.params.CallIntent,
				ApplicationData: c.params.ApplicationData, FocusSelection: o.focusSelection, Transports: o.transports, CreatedTS: epoch, ExpiresMS: day,
			})
			ev := wire.Event{StateKey: "_@me:x_DEV_m.call", Sender: "@me:x", OriginServerTS: epoch, Content: content}
			if m, why := wire.ParseStateMember(ev, "11", day); m == nil || len(content) > 60_000 {
				t.Errorf("%d bytes: %s", len(content), why)
			}
			if err := w.set.Handle(w.now, UpdateApplicationData{w.session, data("x", deep(33))}); !errors.As(err, &wrong) || wrong.Path != "/x" {
				t.Errorf("%v", err)
			}
			if err := w.set.Handle(w.now, UpdateIntent{w.session, text(256)}); !errors.As(err, &wrong) || wrong.Path != "/intent" {
				t.Errorf("%v", err)
			}
		})
	}
}
