package wire

import (
	"bytes"

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
