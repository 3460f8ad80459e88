// Package schema_test holds what really passes the C ABI against the JSON Schemas of this folder:
// a host-driven call and a managed client run through everything that the library can tell or be
// told. A schema that nothing was held against fails the test, and so does what has no schema.
package schema_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"libmatrixrtc/core/client"
	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// elsewhere are the schemas of what core/client does not make itself: the tests of the bindings,
// which hold the same files against the library, meet them.
var elsewhere = map[string]string{
	"event.resync_required": "bindings/python/tests/test_backlog.py",
	"argument.emit":         "bindings/python/tests/test_emitter.py",
}

// open are the schemas of what the host fills as it likes.
var open = map[string]bool{
	"argument.emit": true, "argument.session_update_application_data": true, "argument.session_on_call_encryption": true,
}

var (
	schemas map[string]*jsonschema.Schema // by file name without .json
	texts   = map[string]map[string]any{}

	mu   sync.Mutex
	seen = map[string]any{} // the last of what was held against each schema
)

func TestMain(m *testing.M) {
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) == 0 {
		panic("no schemas")
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			panic(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			panic(f + ": " + err.Error())
		}
		if err := c.AddResource("mem:///"+f, v); err != nil {
			panic(err)
		}
		texts[strings.TrimSuffix(f, ".json")] = v.(map[string]any)
	}
	schemas = map[string]*jsonschema.Schema{}
	for name := range texts {
		s, err := c.Compile("mem:///" + name + ".json")
		if err != nil {
			panic(err)
		}
		schemas[name] = s
	}
	os.Exit(m.Run())
}

// check holds a value, as its JSON text, against a schema.
func check(t *testing.T, name string, value any) {
	t.Helper()
	raw, ok := value.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(value); err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	s := schemas[name]
	if s == nil {
		t.Errorf("there is no %s.json, for %s", name, raw)
		return
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%v\nin %s", err, raw)
	}
	mu.Lock()
	defer mu.Unlock()
	seen[name] = v
}

func TestEverythingThatPasses(t *testing.T) {
	t.Run("host-driven call", hostDrivenCall)
	t.Run("keys by room event", keysByRoomEvent)
	t.Run("managed client", managedClient)
	t.Run("failed client", failedClient)
	for name, what := range seen {
		if open[name] {
			continue
		}
		strange, ok := what.(map[string]any)
		if !ok {
			t.Errorf("%s is not an object", name)
			continue
		}
		strange["surprise"] = 1
		if schemas[name].Validate(strange) == nil {
			t.Errorf("%s.json lets a field pass that it does not name", name)
		}
	}
	for name := range schemas {
		if kind, _, _ := strings.Cut(name, "."); kind == name && name != "error" {
			if !referredTo(name) {
				t.Errorf("nothing refers to %s.json", name)
			}
			continue
		}
		if _, ok := seen[name]; !ok && elsewhere[name] == "" {
			t.Errorf("nothing was held against %s.json", name)
		}
	}
}

func referredTo(name string) bool {
	for other, text := range texts {
		raw, err := json.Marshal(text)
		if err == nil && other != name && bytes.Contains(raw, []byte(`"$ref":"`+name+`.json"`)) {
			return true
		}
	}
	return false
}

// The fields of what is marshalled and decoded, and which of them are always there, are those of
// the schemas.
func TestStructsAgree(t *testing.T) {
	for name, types := range map[string][]any{
		"membership":                            {session.Member{}},
		"media_key":                             {session.MediaKey{}},
		"device":                                {wire.Device{}},
		"statistics":                            {session.Statistics{}},
		"session_info":                          {session.Info{}},
		"error":                                 {client.Error{}},
		"event.memberships_changed":             {session.MembershipsChanged{}},
		"event.join_state_changed":              {session.JoinStateChanged{}},
		"event.status_changed":                  {session.StatusChanged{}},
		"event.probably_left":                   {session.ProbablyLeft{}},
		"event.delay_id_changed":                {session.DelayIDChanged{}},
		"event.membership_manager_error":        {session.MembershipManagerError{}},
		"event.membership_lost":                 {session.MembershipLost{}},
		"event.rejoined":                        {session.Rejoined{}},
		"event.left":                            {session.Left{}},
		"event.encryption_key_missing":          {session.KeyMissing{}},
		"event.encryption_key_undelivered":      {session.KeyUndelivered{}},
		"event.key_rotation_suppressed_changed": {session.KeyRotationSuppressedChanged{}},
		"event.transports_changed":              {session.TransportsChanged{}},
		"event.sfus_changed":                    {session.SFUsChanged{}},
		"event.sfu_failed":                      {session.SFUFailed{}},
		"event.leave_delegated_changed":         {session.LeaveDelegated{}},
		"sfu":                                   {session.SFU{}},
		"sfu_member":                            {session.SFUMember{}},
		"sfu_token":                             {session.SFUToken{}},
		"argument.session_sfu_connected":        {session.SFUConnection{}},
		"event.session_started":                 {session.CallChanged{}},
		"event.session_ended":                   {session.CallChanged{}},
		"result.client_info":                    {client.Info{}},
		"result.client_advance":                 {client.AdvanceResult{}},
		"result.session_debug_snapshot":         {session.Snapshot{}},
		"argument.client_new":                   {client.Config{}},
		"argument.client_advance":               {client.AdvanceInput{}},
		"argument.client_feed":                  {client.FeedInput{}},
		"argument.client_respond":               {client.ResponseInput{}},
		"argument.session_open":                 {session.OpenOptions{}},
		"argument.session_join":                 {session.JoinParams{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range types {
				fields, always := tags(reflect.TypeOf(v))
				named, required := properties(texts[name])
				slices.Sort(fields)
				slices.Sort(named)
				if !slices.Equal(fields, named) {
					t.Errorf("%T has %v, %s.json %v", v, fields, name, named)
				}
				if strings.HasPrefix(name, "argument.") {
					continue // what must be given is checked by the library, not by the decoder
				}
				slices.Sort(always)
				slices.Sort(required)
				if !slices.Equal(always, required) {
					t.Errorf("always in %T: %v, required by %s.json: %v", v, always, name, required)
				}
			}
		})
	}
}

// tags are the JSON fields of a struct, and those of them that are never left out.
func tags(t reflect.Type) (fields, always []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			a, b := tags(f.Type)
			fields, always = append(fields, a...), append(always, b...)
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		fields = append(fields, name)
		if !strings.Contains(rest, "omit") {
			always = append(always, name)
		}
	}
	return fields, always
}

// properties are the fields that a schema names, wherever in it, but for those of the envelope.
func properties(schema map[string]any) (named, required []string) {
	all, must := map[string]bool{}, map[string]bool{}
	var collect func(s map[string]any)
	collect = func(s map[string]any) {
		if ref, ok := s["$ref"].(string); ok && ref != "envelope.json" {
			collect(texts[strings.TrimSuffix(ref, ".json")])
		}
		for name, v := range object(s["properties"]) {
			if v != false {
				all[name] = true
			}
		}
		list, _ := s["required"].([]any)
		for _, name := range list {
			must[name.(string)] = true
		}
		for _, key := range []string{"allOf", "oneOf"} {
			parts, _ := s[key].([]any)
			for _, p := range parts {
				collect(p.(map[string]any))
			}
		}
	}
	collect(schema)
	ofEvents := object(texts["envelope"]["properties"])
	isEvent := object(schema["properties"])["event"] != nil
	for _, set := range []map[string]bool{all, must} {
		for name := range set {
			if _, ok := ofEvents[name]; ok && isEvent {
				delete(set, name)
			}
		}
	}
	for name := range all {
		named = append(named, name)
	}
	for name := range must {
		required = append(required, name)
	}
	return named, required
}

func object(v any) map[string]any { m, _ := v.(map[string]any); return m }
