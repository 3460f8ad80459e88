package homeserver

import (
	"encoding/json"
	"time"
)

// What leads a client to the media of a call: where it is (MSC4143), and tokens by which the
// service in front of it learns who asks.

const openIDLife = time.Hour

type openIDToken struct {
	user    *user
	expires time.Time
}

var rtcRoutes = []route{
	{"transports", "GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", needsToken, (*Server).transports},
	{"openid", "POST", "/v3/user/{user}/openid/request_token", needsToken, (*Server).requestOpenID},
	{"userinfo", "GET", "/_matrix/federation/v1/openid/userinfo", anyone, (*Server).userinfo},
}

func (s *Server) transports(*request) (any, error) {
	if len(s.RTCTransports) == 0 {
		return struct{}{}, nil
	}
	return map[string][]json.RawMessage{"rtc_transports": s.RTCTransports}, nil
}

func (s *Server) requestOpenID(r *request) (any, error) {
	if r.PathValue("user") != r.user.id {
		return nil, forbidden("tokens are of oneself")
	}
	if err := r.json(nil); err != nil {
		return nil, err
	}
	secret := letters(random(24))
	s.openIDs[secret] = openIDToken{r.user, s.clock().Add(openIDLife)}
	return map[string]any{
		"access_token": secret, "token_type": "Bearer", "matrix_server_name": s.ServerName, "expires_in": int(openIDLife.Seconds()),
	}, nil
}

// userinfo says whose a token is. It is asked by the service that the user gave the token.
func (s *Server) userinfo(r *request) (any, error) {
	q := r.URL.Query()
	if !q.Has("access_token") {
		return nil, fail(401, "M_MISSING_TOKEN", "access_token is missing")
	}
	token, known := s.openIDs[q.Get("access_token")]
	if !known || s.clock().After(token.expires) {
		return nil, fail(401, "M_UNKNOWN_TOKEN", "the token is not known, or has expired")
	}
	return map[string]string{"sub": token.user.id}, nil
}
