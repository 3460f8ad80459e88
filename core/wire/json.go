package wire

import (
	"bytes"
	"encoding/json"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

// MaxDepth is how deep JSON may nest that is read at all: beyond any event, so that a stranger's
// cannot make a whole sync unreadable, and far from where reading it would end the process.
const MaxDepth = 100_000

// ValidJSON says whether a text is JSON that nests no deeper than depth. Whatever reads JSON here
// does so recursively, and Go ends a process whose stack has grown too far: nothing may be read
// before its depth is known.
func ValidJSON(text []byte, depth int) bool {
	return !DeeperThan(text, depth) && gjson.ValidBytes(text)
}

// ParseJSON is gjson.ParseBytes without the copy: the text must never change again, and what is
// kept of the result keeps the whole text.
func ParseJSON(text []byte) gjson.Result {
	return gjson.Parse(unsafe.String(unsafe.SliceData(text), len(text)))
}

// DeeperThan says whether a text, JSON or not, nests deeper than limit.
func DeeperThan(text []byte, limit int) bool {
	if bytes.Count(text, []byte("{"))+bytes.Count(text, []byte("[")) <= limit {
		return false // counting is many times faster than reading
	}
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > limit {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// keepName copies a name out of a text, but for those that nearly every event has.
func keepName(s string) string {
	for _, known := range common {
		if s == known {
			return known
		}
	}
	return strings.Clone(s)
}

var common = []string{TypeStateMember, "m.room.member", "m.call", "m.room", SelectionMultiSFU, SelectionOldest}

// Share is the bytes of a text, or of a piece of one that is then kept whole. Nobody may change them.
func Share(s string) json.RawMessage { return unsafe.Slice(unsafe.StringData(s), len(s)) }
