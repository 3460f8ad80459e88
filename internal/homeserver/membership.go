package homeserver

import (
	"encoding/json"
	"strings"
)

// Who is in a room: join, leave, invite, kick, ban, unban, and who is there.

var membershipRoutes = []route{
	{"join", "POST", "/v3/join/{room}", needsToken, (*Server).joinByName},
	{"join", "POST", "/v3/rooms/{room}/join", needsToken, (*Server).join},
	{"leave", "POST", "/v3/rooms/{room}/leave", needsToken, (*Server).leave},
	{"invite", "POST", "/v3/rooms/{room}/invite", needsToken, moderate("invite")},
	{"kick", "POST", "/v3/rooms/{room}/kick", needsToken, moderate("kick")},
	{"ban", "POST", "/v3/rooms/{room}/ban", needsToken, moderate("ban")},
	{"unban", "POST", "/v3/rooms/{room}/unban", needsToken, moderate("unban")},
	{"members", "GET", "/v3/rooms/{room}/members", needsToken, (*Server).listMembers},
	{"joined_members", "GET", "/v3/rooms/{room}/joined_members", needsToken, (*Server).joinedMembers},
	{"joined_rooms", "GET", "/v3/joined_rooms", needsToken, (*Server).joinedRooms},
}

// setMember sends an m.room.member event. content may have more than the membership.
func (s *Server) setMember(by *device, r *room, target, membership string, content map[string]any) (*event, error) {
	if content == nil {
		content = map[string]any{}
	}
	content["membership"] = membership
	if u := s.users[target]; u != nil && content["displayname"] == nil && (membership == "join" || membership == "invite") {
		content["displayname"] = u.name
	}
	raw, err := checkContent(mustJSON(content))
	if err != nil {
		return nil, err
	}
	return s.send(&event{room: r, typ: "m.room.member", key: &target, sender: by.user.id, device: by, content: raw})
}

// changeMembership is a membership put as state.
func (s *Server) changeMembership(r *request, target string) (*event, error) {
	var content map[string]any
	if err := json.Unmarshal(r.body, &content); err != nil {
		return nil, fail(400, "M_BAD_JSON", "%v", err)
	}
	membership, ok := content["membership"].(string)
	if !ok {
		return nil, fail(400, "M_UNKNOWN", "membership must be a string")
	}
	if err := checkUserID(target); err != nil {
		return nil, fail(400, "M_INVALID_PARAM", "state key: %v", err)
	}
	room := s.rooms[r.PathValue("room")]
	if room == nil {
		return nil, forbidden("%s is not in room %s", r.user.id, r.PathValue("room"))
	}
	return s.setMember(r.device, room, target, membership, content)
}

type reason struct {
	Reason string `json:"reason"`
}

func (in reason) content() map[string]any {
	if in.Reason == "" {
		return nil
	}
	return map[string]any{"reason": in.Reason}
}

func (s *Server) join(r *request) (any, error) {
	return s.joinRoom(r, s.rooms[r.PathValue("room")])
}

// joinByName takes an alias too.
func (s *Server) joinByName(r *request) (any, error) {
	name := r.PathValue("room")
	switch {
	case strings.HasPrefix(name, "!"):
		return s.join(r)
	case !strings.HasPrefix(name, "#"):
		return nil, fail(400, "M_UNKNOWN", "expected a room id or alias, got %q", name)
	case s.aliases[name] == nil:
		return nil, fail(404, "M_NOT_FOUND", "no room has the alias %s", name)
	}
	return s.joinRoom(r, s.aliases[name])
}

func (s *Server) joinRoom(r *request, room *room) (any, error) {
	var in reason
	if err := r.optionalJSON(&in); err != nil {
		return nil, err
	}
	if room == nil {
		return nil, fail(404, "M_UNKNOWN", "there is no room %s", r.PathValue("room"))
	}
	if room.member(r.user.id).membership() != "join" {
		if _, err := s.setMember(r.device, room, r.user.id, "join", in.content()); err != nil {
			return nil, err
		}
	}
	return map[string]string{"room_id": room.id}, nil
}

func (s *Server) leave(r *request) (any, error) {
	var in reason
	if err := r.optionalJSON(&in); err != nil {
		return nil, err
	}
	room := s.rooms[r.PathValue("room")]
	if room == nil {
		return nil, fail(404, "M_UNKNOWN", "there is no room %s", r.PathValue("room"))
	}
	if me := room.member(r.user.id); me != nil && me.membership() == "leave" && me.sender == r.user.id {
		return struct{}{}, nil
	}
	_, err := s.setMember(r.device, room, r.user.id, "leave", in.content())
	return struct{}{}, err
}

// moderate is what is done to somebody else.
func moderate(action string) func(*Server, *request) (any, error) {
	membership := map[string]string{"invite": "invite", "kick": "leave", "ban": "ban", "unban": "leave"}[action]
	return func(s *Server, r *request) (any, error) {
		var in struct {
			reason
			UserID *string `json:"user_id"`
		}
		if err := r.json(&in); err != nil {
			return nil, err
		}
		if in.UserID == nil {
			return nil, fail(400, "M_MISSING_PARAM", "user_id is missing")
		}
		if err := checkUserID(*in.UserID); err != nil {
			return nil, fail(400, "M_INVALID_PARAM", "user_id: %v", err)
		}
		room := s.rooms[r.PathValue("room")]
		if room == nil {
			return nil, forbidden("%s is not in room %s", r.user.id, r.PathValue("room"))
		}
		was := room.member(*in.UserID).membership()
		switch {
		case action == "unban" && was != "ban":
			return nil, fail(403, "M_BAD_STATE", "%s is not banned", *in.UserID)
		case action == "kick" && (was == "leave" || was == "ban"):
			return nil, forbidden("%s is not in the room", *in.UserID)
		}
		_, err := s.setMember(r.device, room, *in.UserID, membership, in.content())
		return struct{}{}, err
	}
}

func (s *Server) listMembers(r *request) (any, error) {
	room, pos, err := s.readable(r)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	if at := q.Get("at"); at != "" {
		then, err := parseToken(at)
		if err != nil {
			return nil, err
		}
		pos = min(pos, then)
	}
	chunk := []clientEvent{}
	for _, e := range room.stateAt(pos) {
		if e.typ != "m.room.member" {
			continue
		}
		is := e.membership()
		if want := q.Get("membership"); want != "" && is != want {
			continue
		}
		if not := q.Get("not_membership"); not != "" && is == not {
			continue
		}
		chunk = append(chunk, withRoom(e.asState(s.now(), r.device), room.id))
	}
	return map[string]any{"chunk": chunk}, nil
}

func (s *Server) joinedMembers(r *request) (any, error) {
	room, err := s.joined(r)
	if err != nil {
		return nil, err
	}
	type profile struct {
		DisplayName *string `json:"display_name"`
		AvatarURL   *string `json:"avatar_url"`
	}
	joined := map[string]profile{}
	for id, e := range room.members {
		var content struct {
			Membership  string  `json:"membership"`
			DisplayName *string `json:"displayname"`
			AvatarURL   *string `json:"avatar_url"`
		}
		_ = json.Unmarshal(e.content, &content) // what has another form is nothing
		if content.Membership == "join" {
			joined[id] = profile{content.DisplayName, content.AvatarURL}
		}
	}
	return map[string]any{"joined": joined}, nil
}

func (s *Server) joinedRooms(r *request) (any, error) {
	rooms := []string{}
	for room := range r.user.rooms {
		if room.member(r.user.id).membership() == "join" {
			rooms = append(rooms, room.id)
		}
	}
	return map[string]any{"joined_rooms": rooms}, nil
}
