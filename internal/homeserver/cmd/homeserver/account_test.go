package main

import (
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"libmatrixrtc/internal/homeserver"
)

func TestAccountIsReadByAShell(t *testing.T) {
	h := homeserver.New(homeserver.Options{})
	defer h.Close()
	server := httptest.NewServer(h)
	defer server.Close()
	line, err := account(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	script := line + `; test "$HOMESERVER" && test "$PASSWORD" && test "$DEVICE_ID" && test "$TOKEN" && echo "$USER_ID $ROOM_ID"`
	said, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(said), "@you:") || !strings.Contains(string(said), " !") {
		t.Fatalf("%s: %s %v", script, said, err)
	}
}
