package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// account makes an account with an encrypted room in which calls are allowed, and answers them as a
// line that a shell can read.
func account(url string) (line string, err error) {
	const password = "secret"
	var user struct {
		UserID      string `json:"user_id"`
		DeviceID    string `json:"device_id"`
		AccessToken string `json:"access_token"`
	}
	err = post(url, "/register", "", map[string]any{
		"username": "you", "password": password, "auth": map[string]string{"type": "m.login.dummy"},
	}, &user)
	if err != nil {
		return "", err
	}
	var room struct {
		RoomID string `json:"room_id"`
	}
	err = post(url, "/createRoom", user.AccessToken, map[string]any{
		"preset":                       "public_chat",
		"power_level_content_override": map[string]any{"events": map[string]int{"org.matrix.msc3401.call.member": 0}},
		"initial_state": []any{map[string]any{
			"type": "m.room.encryption", "state_key": "", "content": map[string]string{"algorithm": "m.megolm.v1.aes-sha2"},
		}},
	}, &room)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("export HOMESERVER=%s USER_ID=%s PASSWORD=%s DEVICE_ID=%s TOKEN=%s ROOM_ID='%s'",
		url, user.UserID, password, user.DeviceID, user.AccessToken, room.RoomID), nil
}

func post(url, path, token string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequest("POST", url+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = a.Body.Close() }()
	if raw, err = io.ReadAll(a.Body); err != nil {
		return err
	}
	if a.StatusCode != 200 {
		return fmt.Errorf("POST %s: %d %s", path, a.StatusCode, raw)
	}
	return json.Unmarshal(raw, answer)
}
