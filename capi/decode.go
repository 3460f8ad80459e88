package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"libmatrixrtc/core/client"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
)

// Arguments are decoded strictly: what is not known is refused by name, with a JSON pointer to the
// place, since a misspelt setting must not silently become a default.

func bad(path, format string, args ...any) error {
	return &client.Error{Status: client.ErrInvalidArgument, Path: path, Message: fmt.Sprintf(format, args...)}
}

// decode reads a JSON object into a struct (or map) by its json tags.
func decode(text string, into any) error {
	switch {
	case !utf8.ValidString(text):
		return bad("", "expected UTF-8")
	case wire.DeeperThan(wire.Share(text), wire.MaxDepth):
		return bad("", "expected at most %d levels of nesting", wire.MaxDepth)
	case !gjson.Valid(text):
		return bad("", "expected JSON: %s", syntaxError([]byte(text)))
	}
	return fill("", gjson.Parse(text), reflect.ValueOf(into).Elem())
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

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

var rawMessage = reflect.TypeOf(json.RawMessage{})

// fill checks a value against the type that it is for, and sets it.
func fill(path string, v gjson.Result, to reflect.Value) error {
	if to.Kind() == reflect.Pointer {
		if v.Type == gjson.Null {
			return nil
		}
		to.Set(reflect.New(to.Type().Elem()))
		to = to.Elem()
	}
	expected := func(what string) error { return bad(path, "expected %s", what) }
	switch {
	case to.Type() == rawMessage:
		to.SetBytes(wire.Share(v.Raw))
	case to.Kind() == reflect.String:
		if v.Type != gjson.String {
			return expected("a string")
		}
		to.SetString(strings.Clone(v.Str))
	case to.Kind() == reflect.Bool:
		if !v.IsBool() {
			return expected("true or false")
		}
		to.SetBool(v.Type == gjson.True)
	case to.Kind() == reflect.Int64 || to.Kind() == reflect.Int:
		n, err := strconv.ParseInt(v.Raw, 10, 64)
		if v.Type != gjson.Number || err != nil || n >= 1<<53 || n <= -1<<53 {
			return expected("an integer")
		}
		to.SetInt(n)
	case to.Kind() == reflect.Uint64:
		n, err := strconv.ParseUint(v.Raw, 10, 64)
		if v.Type != gjson.Number || err != nil || n >= 1<<53 {
			return expected("an integer of 0 or more")
		}
		to.SetUint(n)
	case to.Kind() == reflect.Slice:
		if !v.IsArray() {
			return expected("an array")
		}
		items := v.Array()
		to.Set(reflect.MakeSlice(to.Type(), len(items), len(items)))
		for i, item := range items {
			if err := fill(path+"/"+strconv.Itoa(i), item, to.Index(i)); err != nil {
				return err
			}
		}
	case to.Kind() == reflect.Map || to.Kind() == reflect.Struct:
		if !v.IsObject() {
			return expected("an object")
		}
		if to.Kind() == reflect.Map {
			return fillMap(path, v, to)
		}
		return fillStruct(path, v, to)
	default:
		return bad(path, "cannot be given")
	}
	return nil
}

func fillMap(path string, v gjson.Result, to reflect.Value) (err error) {
	if to.IsNil() {
		to.Set(reflect.MakeMap(to.Type()))
	}
	v.ForEach(func(k, given gjson.Result) bool {
		at, key := pointer(path, k.String()), reflect.ValueOf(strings.Clone(k.String()))
		if to.MapIndex(key).IsValid() {
			err = bad(at, "this field is given twice")
			return false
		}
		value := reflect.New(to.Type().Elem()).Elem()
		if err = fill(at, given, value); err == nil {
			to.SetMapIndex(key, value)
		}
		return err == nil
	})
	return err
}

func fillStruct(path string, v gjson.Result, to reflect.Value) (err error) {
	fields := fieldsOf(to.Type())
	seen := make([]bool, len(fields))
	v.ForEach(func(k, given gjson.Result) bool {
		name := k.String()
		at := pointer(path, name)
		switch i := slices.IndexFunc(fields, func(f field) bool { return f.name == name }); {
		case i < 0:
			err = bad(at, "unknown field %q", name)
		case seen[i]:
			err = bad(at, "this field is given twice")
		default:
			seen[i] = true
			err = fill(at, given, to.FieldByIndex(fields[i].index))
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	for i, f := range fields {
		if f.required && !seen[i] {
			return bad(pointer(path, f.name), "this field is required")
		}
	}
	return nil
}

func pointer(path, name string) string { return path + "/" + pointerEscapes.Replace(name) }

// field is one of an argument, by its tags.
type field struct {
	name     string
	index    []int
	required bool
}

var knownFields sync.Map // reflect.Type: []field

func fieldsOf(t reflect.Type) []field {
	if known, ok := knownFields.Load(t); ok {
		return known.([]field)
	}
	fields := []field{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields = append(fields, field{name, f.Index, f.Tag.Get("required") != ""})
		}
	}
	knownFields.Store(t, fields)
	return fields
}
