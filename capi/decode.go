package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"libmatrixrtc/core/client"

	"github.com/tidwall/gjson"
)

// Arguments are decoded strictly: what is not known is refused by name, with a JSON pointer to the
// place, since a misspelt setting must not silently become a default.

const maxNesting = 100

func bad(path, format string, args ...any) error {
	return &client.Error{Status: client.ErrInvalidArgument, Path: path, Message: fmt.Sprintf(format, args...)}
}

// decode reads a JSON object into a struct (or map) by its json tags.
func decode(text string, into any) error {
	raw := []byte(text)
	switch {
	case !utf8.Valid(raw):
		return bad("", "expected UTF-8")
	case !json.Valid(raw):
		return bad("", "expected JSON: %s", syntaxError(raw))
	case nesting(raw) > maxNesting:
		return bad("", "expected at most %d levels of nesting", maxNesting)
	}
	if err := check("", gjson.ParseBytes(raw), reflect.TypeOf(into).Elem()); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return bad("", "%v", err)
	}
	return nil
}

func syntaxError(raw []byte) string {
	if len(bytes.TrimSpace(raw)) == 0 {
		return "the text is empty"
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err.Error()
	}
	return "invalid"
}

func nesting(raw []byte) int {
	depth, deepest, inString := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

var rawMessage = reflect.TypeOf(json.RawMessage{})

func check(path string, v gjson.Result, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		if v.Type == gjson.Null {
			return nil
		}
		t = t.Elem()
	}
	expect := func(ok bool, what string) error {
		if !ok {
			return bad(path, "expected %s", what)
		}
		return nil
	}
	switch {
	case t == rawMessage:
		return nil
	case t.Kind() == reflect.String:
		return expect(v.Type == gjson.String, "a string")
	case t.Kind() == reflect.Bool:
		return expect(v.IsBool(), "true or false")
	case t.Kind() == reflect.Int64 || t.Kind() == reflect.Int:
		_, err := strconv.ParseInt(v.Raw, 10, 64)
		return expect(v.Type == gjson.Number && err == nil && v.Num < 1<<53 && v.Num > -1<<53, "an integer")
	case t.Kind() == reflect.Uint64:
		_, err := strconv.ParseUint(v.Raw, 10, 64)
		return expect(v.Type == gjson.Number && err == nil && v.Num < 1<<53, "an integer of 0 or more")
	case t.Kind() == reflect.Slice:
		if err := expect(v.IsArray(), "an array"); err != nil {
			return err
		}
		for i, item := range v.Array() {
			if err := check(path+"/"+strconv.Itoa(i), item, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Map || t.Kind() == reflect.Struct:
		if err := expect(v.IsObject(), "an object"); err != nil {
			return err
		}
		return checkFields(path, v, t)
	}
	return bad(path, "cannot be given")
}

func checkFields(path string, v gjson.Result, t reflect.Type) (err error) {
	seen := map[string]bool{}
	v.ForEach(func(k, field gjson.Result) bool {
		name := k.String()
		at := path + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		switch ft := fieldType(t, name); {
		case seen[name]:
			err = bad(at, "this field is given twice")
		case ft == nil:
			err = bad(at, "unknown field %q", name)
		default:
			err = check(at, field, ft)
		}
		seen[name] = true
		return err == nil
	})
	return err
}

func fieldType(t reflect.Type, name string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	for i := range t.NumField() {
		if tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); tag == name {
			return t.Field(i).Type
		}
	}
	return nil
}
