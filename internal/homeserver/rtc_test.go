package homeserver_test

import (
	"encoding/json"
	"net/url"
	"testing"

	"libmatrixrtc/internal/homeserver"

	"github.com/tidwall/gjson"
)

func TestTransportsAsTold(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{RTCTransports: []json.RawMessage{
		json.RawMessage(`{"type":"livekit","livekit_service_url":"https://a.test"}`), json.RawMessage(`{"type":"x"}`),
	}})
	alice := e.register("alice")
	for path, part := range map[string]string{
		"/_matrix/client/unstable/org.matrix.msc4143/rtc/transports": "rtc_transports",
		"/.well-known/matrix/client":                                 `org\.matrix\.msc4143\.rtc_foci`,
	} {
		r, body, err := e.ask(alice.AccessToken, "GET", path, "")
		list := gjson.Get(body, part).Array()
		if err != nil || r.StatusCode != 200 || len(list) != 2 || list[0].Get("livekit_service_url").Str != "https://a.test" {
			t.Errorf("%s: %v %s", path, err, body)
		}
	}
}

func TestOpenIDTokensEnd(t *testing.T) {
	e := newEmbedded(t, homeserver.Options{})
	alice := e.register("alice")
	var token struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	e.must(alice.AccessToken, "POST", "/user/"+alice.UserID+"/openid/request_token", "{}", &token)
	for skew, status := range map[string]int{"3500000": 200, "3610000": 401} {
		e.fault(`{"kind":"clock_skew","skew_ms":` + skew + `}`)
		r, body, err := e.ask("", "GET", "/_matrix/federation/v1/openid/userinfo?access_token="+url.QueryEscape(token.AccessToken), "")
		if err != nil || r.StatusCode != status || token.ExpiresIn != 3600 {
			t.Errorf("after %s ms of %d s: %v %v %s", skew, token.ExpiresIn, err, r, body)
		}
	}
}
