// Package core_test keeps core/wire and core/session pure: no I/O, no clock, no goroutine, no
// randomness of their own.
package core_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// allowed are the packages that pure code may use; those with a list, of it only that.
var allowed = map[string][]string{
	"bytes": nil, "cmp": nil, "container/heap": nil, "crypto/sha256": nil, "encoding/base64": nil,
	"encoding/hex": nil, "encoding/json": nil, "errors": nil, "fmt": {"Errorf", "Sprintf", "Sprint", "Stringer"},
	"iter": nil, "maps": nil, "math": nil, "math/rand/v2": {"Rand"}, "net/url": nil, "reflect": {"DeepEqual"},
	"regexp": {"MustCompile"}, "slices": nil, "sort": nil,
	"strconv": nil, "strings": nil, "unicode/utf8": nil, "unsafe": {"String", "StringData", "Slice", "SliceData"},
	"time":                     {"Duration", "Nanosecond", "Millisecond", "Second", "Minute", "Hour", "Parse", "Time", "UnixMilli", "Month", "UTC"},
	"github.com/tidwall/btree": nil, "github.com/tidwall/gjson": nil,
	"maunium.net/go/mautrix/id":                   {"UserID", "DeviceID", "RoomID", "EventID", "ServerName"},
	"maunium.net/go/mautrix/crypto/canonicaljson": nil, "net/netip": nil,
	"libmatrixrtc/core/wire": nil, "libmatrixrtc/core/livekit": nil,
}

func TestPurity(t *testing.T) {
	for _, folder := range []string{"wire", "livekit", "session"} {
		files := 0
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files++
			checkFile(t, path)
			return nil
		})
		if err != nil || files == 0 {
			t.Fatalf("%s: %d files, %v", folder, files, err)
		}
	}
}

func checkFile(t *testing.T, path string) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	bad := func(n ast.Node, format string) { t.Errorf("%s: %s", set.Position(n.Pos()), format) }
	imported := map[string]string{} // path by name
	for _, i := range file.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := allowed[name]; !ok || strings.HasPrefix(name, "libmatrixrtc/") && !strings.HasPrefix(path, "session") && !(name == "libmatrixrtc/core/wire" && strings.HasPrefix(path, "livekit")) {
			bad(i, "imports "+name)
		}
		local := name[strings.LastIndex(name, "/")+1:]
		if local == "v2" {
			local = "rand"
		}
		if i.Name != nil {
			local = i.Name.Name
		}
		imported[local] = name
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			bad(n, "starts a goroutine")
		case *ast.ChanType:
			bad(n, "has a channel")
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok || x.Obj != nil { // a variable of that name
				break
			}
			if only := allowed[imported[x.Name]]; only != nil {
				found := false
				for _, name := range only {
					found = found || name == n.Sel.Name
				}
				if !found {
					bad(n, "uses "+x.Name+"."+n.Sel.Name)
				}
			}
		}
		return true
	})
}
