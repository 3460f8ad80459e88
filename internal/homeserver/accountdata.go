package homeserver

import (
	"encoding/json"
	"maps"
	"slices"
)

// What a user has the server keep for all of its devices, such as the secret storage of its keys.

type accountData struct {
	Content json.RawMessage `json:"content"`
	Type    string          `json:"type"`

	pos int64
}

type accountDataOf struct {
	Events []accountData `json:"events"`
}

var accountDataRoutes = []route{
	{"account_data", "PUT", "/v3/user/{user}/account_data/{type}", needsToken, (*Server).putAccountData},
	{"account_data", "GET", "/v3/user/{user}/account_data/{type}", needsToken, (*Server).getAccountData},
}

func (s *Server) putAccountData(r *request) (any, error) {
	typ := r.PathValue("type")
	if r.PathValue("user") != r.user.id {
		return nil, forbidden("account data is one's own")
	}
	if typ == "m.fully_read" || typ == "m.push_rules" {
		return nil, fail(405, "M_BAD_JSON", "%s is not set as account data", typ)
	}
	if err := r.json(nil); err != nil {
		return nil, err
	}
	s.pos++
	r.user.accountData[typ] = accountData{Content: r.body, Type: typ, pos: s.pos}
	r.user.wake()
	return struct{}{}, nil
}

func (s *Server) getAccountData(r *request) (any, error) {
	if r.PathValue("user") != r.user.id {
		return nil, forbidden("account data is one's own")
	}
	data, ok := r.user.accountData[r.PathValue("type")]
	if !ok {
		return nil, fail(404, "M_NOT_FOUND", "there is no account data %s", r.PathValue("type"))
	}
	return data.Content, nil
}

func (sy *syncing) accountData() *accountDataOf {
	since := sy.since
	if sy.fullState {
		since = -1
	}
	var events []accountData
	for _, typ := range slices.Sorted(maps.Keys(sy.device.user.accountData)) {
		if data := sy.device.user.accountData[typ]; data.pos > since && sy.filter.AccountData.takesType(typ) {
			events = append(events, data)
		}
	}
	if events == nil {
		return nil
	}
	return &accountDataOf{events}
}
