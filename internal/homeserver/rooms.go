package homeserver

import (
	"bytes"
	"encoding/json"
	"sort"
	"strconv"
	"strings"
)

// Rooms: a log of events, and the state that is its newest event of each type and key. Each state
// event knows the one that it replaced, so that the state at any earlier position can be told.

type room struct {
	id                 string
	version            roomVersion
	creator            string
	additionalCreators []string
	log                []*event
	current            map[stateKey]*event
	members            map[string]*event // the m.room.member events of current by user

	levelsOf *event // levels is the content of this event
	levels   *powerLevels
}

func (r *room) member(user string) *event { return r.members[user] }

// after is the index in the log of the first event behind a position.
func (r *room) after(pos int64) int {
	return sort.Search(len(r.log), func(i int) bool { return r.log[i].pos > pos })
}

// stateAt is the state at a position.
func (r *room) stateAt(pos int64) []*event {
	var all []*event
	for _, e := range r.current {
		if e = e.at(pos); e != nil {
			all = append(all, e)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].pos < all[j].pos })
	return all
}

// send checks an event and adds it to its room. A state event that changes nothing is not sent
// again: the answer is the one that is there.
func (s *Server) send(e *event) (*event, error) {
	if err := checkSize(e); err != nil {
		return nil, err
	}
	if err := e.room.authorize(e); err != nil {
		return nil, err
	}
	if e.key != nil {
		if now := e.room.current[e.state()]; now != nil && now.sender == e.sender && bytes.Equal(now.content, e.content) {
			return now, nil
		}
	}
	s.add(e)
	return e, nil
}

// add puts an event at the end of its room.
func (s *Server) add(e *event) {
	r := e.room
	s.pos++
	e.pos = s.pos
	if e.id == "" {
		e.id = "$" + random(43)
	}
	if e.ts == 0 {
		e.ts = s.now()
	}
	r.log = append(r.log, e)
	if e.key != nil {
		e.prev = r.current[e.state()]
		r.current[e.state()] = e
		if e.typ == "m.room.member" {
			e.member = e.membership()
			r.members[*e.key] = e
			if u := s.users[*e.key]; u != nil {
				u.rooms[r] = struct{}{}
				u.wake()
			}
		}
		s.cancelDelayedOfOthers(e)
	}
	for id, m := range r.members {
		if u := s.users[id]; u != nil && m.membership() == "join" {
			u.wake()
		}
	}
}

var roomRoutes = []route{
	{"create_room", "POST", "/v3/createRoom", needsToken, (*Server).createRoom},
	{"state", "PUT", "/v3/rooms/{room}/state/{type}", needsToken, (*Server).putState},
	{"state", "PUT", "/v3/rooms/{room}/state/{type}/{key}", needsToken, (*Server).putState},
	{"state", "PUT", "/v3/rooms/{room}/state/{type}/{$}", needsToken, (*Server).putState},
	{"get_state", "GET", "/v3/rooms/{room}/state/{type}", needsToken, (*Server).getState},
	{"get_state", "GET", "/v3/rooms/{room}/state/{type}/{key}", needsToken, (*Server).getState},
	{"get_state", "GET", "/v3/rooms/{room}/state/{type}/{$}", needsToken, (*Server).getState},
	{"get_state", "GET", "/v3/rooms/{room}/state", needsToken, (*Server).getAllState},
	{"send", "PUT", "/v3/rooms/{room}/send/{type}/{txn}", needsToken, (*Server).sendEvent},
	{"send", "POST", "/v3/rooms/{room}/send/{type}", needsToken, (*Server).sendEvent},
	{"messages", "GET", "/v3/rooms/{room}/messages", needsToken, (*Server).messages},
	{"event", "GET", "/v3/rooms/{room}/event/{event}", needsToken, (*Server).getEvent},
}

type stateEvent struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// preset is what a room created with it begins with.
type preset struct {
	joinRule     string
	guests       bool
	inviteesRule bool // the invited have the power of the creator
	invite       int  // the power level that inviting needs
}

var presets = map[string]preset{
	"private_chat":         {joinRule: "invite", guests: true},
	"trusted_private_chat": {joinRule: "invite", guests: true, inviteesRule: true},
	"public_chat":          {joinRule: "public", invite: 50},
}

func (s *Server) createRoom(r *request) (any, error) {
	var in struct {
		Preset                    string                     `json:"preset"`
		Visibility                string                     `json:"visibility"`
		Name                      *string                    `json:"name"`
		Topic                     *string                    `json:"topic"`
		RoomAliasName             string                     `json:"room_alias_name"`
		RoomVersion               string                     `json:"room_version"`
		Invite                    []string                   `json:"invite"`
		IsDirect                  bool                       `json:"is_direct"`
		CreationContent           map[string]json.RawMessage `json:"creation_content"`
		InitialState              []stateEvent               `json:"initial_state"`
		PowerLevelContentOverride map[string]json.RawMessage `json:"power_level_content_override"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.RoomVersion == "" {
		in.RoomVersion = defaultRoomVersion
	}
	version, known := roomVersions[in.RoomVersion]
	if !known {
		return nil, fail(400, "M_UNSUPPORTED_ROOM_VERSION", "room version %q is not served", in.RoomVersion)
	}
	if in.Preset == "" {
		in.Preset = "private_chat"
		if in.Visibility == "public" {
			in.Preset = "public_chat"
		}
	}
	preset, known := presets[in.Preset]
	if !known {
		return nil, fail(400, "M_BAD_JSON", "unknown preset %q", in.Preset)
	}
	for _, invited := range in.Invite {
		if err := checkUserID(invited); err != nil {
			return nil, fail(400, "M_UNKNOWN", "invite: %v", err)
		}
	}
	creator := r.user.id
	if users, ok := in.PowerLevelContentOverride["users"]; ok && !version.creators {
		var levels map[string]json.RawMessage
		if err := json.Unmarshal(users, &levels); err != nil || levels[creator] == nil {
			return nil, fail(400, "M_UNKNOWN", "power_level_content_override: users must have %s", creator)
		}
	}
	alias := ""
	if in.RoomAliasName != "" {
		alias = "#" + in.RoomAliasName + ":" + s.ServerName
		if s.aliases[alias] != nil {
			return nil, fail(400, "M_ROOM_IN_USE", "the alias %s is taken", alias)
		}
	}

	hash := random(43)
	room := &room{
		id: "!" + hash, version: version, creator: creator,
		current: map[stateKey]*event{}, members: map[string]*event{},
	}
	if !version.creators {
		room.id = "!" + letters(random(18)) + ":" + s.ServerName
	}
	if in.CreationContent == nil {
		in.CreationContent = map[string]json.RawMessage{}
	}
	set := func(name string, v any) { in.CreationContent[name] = mustJSON(v) }
	set("room_version", in.RoomVersion)
	if version.creatorKey {
		set("creator", creator)
	}
	if version.creators && preset.inviteesRule && len(in.Invite) > 0 {
		room.additionalCreators = in.Invite
		set("additional_creators", in.Invite)
	}

	// All or nothing: what fails on the way takes the room with it.
	failed := error(nil)
	put := func(typ, key string, content any) {
		if failed != nil {
			return
		}
		raw, err := checkContent(mustJSON(content))
		if err == nil {
			_, err = s.send(&event{room: room, typ: typ, key: &key, sender: creator, content: raw, device: r.device})
		}
		failed = err
	}
	create, err := checkContent(mustJSON(in.CreationContent))
	if err != nil {
		return nil, err
	}
	s.add(&event{id: "$" + hash, room: room, typ: "m.room.create", key: new(string), sender: creator, content: create, device: r.device})
	put("m.room.member", creator, map[string]string{"membership": "join", "displayname": r.user.name})

	initial := map[stateKey]bool{}
	for _, e := range in.InitialState {
		initial[stateKey{e.Type, e.StateKey}] = true
		if e.Type == "m.room.power_levels" && e.StateKey == "" {
			put(e.Type, "", e.Content)
		}
	}
	if !initial[stateKey{"m.room.power_levels", ""}] {
		put("m.room.power_levels", "", initialLevels(version, preset, creator, in.Invite, in.PowerLevelContentOverride))
	}
	defaults := func(typ string, content any) {
		if !initial[stateKey{typ, ""}] {
			put(typ, "", content)
		}
	}
	if alias != "" {
		defaults("m.room.canonical_alias", map[string]string{"alias": alias})
	}
	defaults("m.room.join_rules", map[string]string{"join_rule": preset.joinRule})
	defaults("m.room.history_visibility", map[string]string{"history_visibility": "shared"})
	if preset.guests {
		defaults("m.room.guest_access", map[string]string{"guest_access": "can_join"})
	}
	for _, e := range in.InitialState {
		if e.Type != "m.room.power_levels" || e.StateKey != "" {
			put(e.Type, e.StateKey, e.Content)
		}
	}
	if in.Name != nil {
		put("m.room.name", "", map[string]string{"name": *in.Name})
	}
	if in.Topic != nil {
		put("m.room.topic", "", map[string]any{
			"topic": *in.Topic, "m.topic": map[string]any{"m.text": []any{map[string]string{"body": *in.Topic}}},
		})
	}
	for _, invited := range in.Invite {
		content := map[string]any{"membership": "invite"}
		if u := s.users[invited]; u != nil {
			content["displayname"] = u.name
		}
		if in.IsDirect {
			content["is_direct"] = true
		}
		put("m.room.member", invited, content)
	}
	if failed != nil {
		for id := range room.members {
			if u := s.users[id]; u != nil {
				delete(u.rooms, room)
			}
		}
		return nil, failed
	}
	s.rooms[room.id] = room
	if alias != "" {
		s.aliases[alias] = room
	}
	return map[string]string{"room_id": room.id}, nil
}

// initialLevels is the power levels of a new room. The override replaces what it names whole.
func initialLevels(v roomVersion, p preset, creator string, invited []string, override map[string]json.RawMessage) map[string]any {
	users := map[string]int{}
	tombstone := 150
	if !v.creators {
		tombstone = 100
		users[creator] = 100
		if p.inviteesRule {
			for _, u := range invited {
				users[u] = 100
			}
		}
	}
	events := map[string]int{
		"m.room.name": 50, "m.room.canonical_alias": 50, "m.room.avatar": 50, "m.room.power_levels": 100,
		"m.room.history_visibility": 100, "m.room.tombstone": tombstone, "m.room.server_acl": 100, "m.room.encryption": 100,
	}
	if p.joinRule == "public" {
		events["m.call.invite"] = 50
	}
	levels := map[string]any{
		"users": users, "users_default": 0, "events": events, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": p.invite, "historical": 100,
	}
	for name, l := range override {
		levels[name] = l
	}
	return levels
}

func mustJSON(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	return raw
}

// readable finds the room of a request for somebody who is or was in it, and up to which position
// it may be read. A room that does not exist looks like one that one is not in.
func (s *Server) readable(r *request) (*room, int64, error) {
	id := r.PathValue("room")
	if room := s.rooms[id]; room != nil {
		for m := room.member(r.user.id); m != nil; m = m.prev {
			if m.membership() == "join" {
				return room, s.pos, nil
			}
			if m.prev.membership() == "join" {
				return room, m.pos, nil
			}
		}
	}
	return nil, 0, forbidden("%s is not in room %s", r.user.id, id)
}

// joined finds the room of a request for somebody who is in it.
func (s *Server) joined(r *request) (*room, error) {
	id := r.PathValue("room")
	if room := s.rooms[id]; room != nil && room.member(r.user.id).membership() == "join" {
		return room, nil
	}
	return nil, forbidden("%s is not in room %s", r.user.id, id)
}

func (s *Server) putState(r *request) (any, error) {
	typ, key := r.PathValue("type"), r.PathValue("key")
	if err := r.json(nil); err != nil {
		return nil, err
	}
	if id, delayed, err := s.scheduleFrom(r, typ, &key); delayed {
		return map[string]string{"delay_id": id}, err
	}
	if typ == "m.room.member" {
		e, err := s.changeMembership(r, key)
		if err != nil {
			return nil, err
		}
		return map[string]string{"event_id": e.id}, nil
	}
	e, err := s.sendFrom(r, &event{typ: typ, key: &key})
	if err != nil {
		return nil, err
	}
	return map[string]string{"event_id": e.id}, nil
}

// sendFrom sends an event with the body of the request as content.
func (s *Server) sendFrom(r *request, e *event) (*event, error) {
	content, err := checkContent(r.body)
	if err != nil {
		return nil, err
	}
	room, err := s.joined(r)
	if err != nil {
		return nil, err
	}
	e.room, e.content, e.sender, e.device = room, content, r.user.id, r.device
	return s.send(e)
}

// sendEvent sends a timeline event, once per transaction id, room and device, whatever its type.
func (s *Server) sendEvent(r *request) (any, error) {
	typ, txn := r.PathValue("type"), r.PathValue("txn")
	if err := r.json(nil); err != nil {
		return nil, err
	}
	once := r.PathValue("room") + " " + txn
	delayedOnce := "delayed " + once
	_, delayed := r.URL.Query()[delayParameter]
	if delayed {
		once = delayedOnce
	}
	if done, ok := r.device.txns[once]; ok && txn != "" {
		if delayed {
			return map[string]string{"delay_id": done}, nil
		}
		return map[string]string{"event_id": done}, nil
	}
	if id, delayed, err := s.scheduleFrom(r, typ, nil); delayed {
		if err == nil {
			r.device.txns[once] = id
		}
		return map[string]string{"delay_id": id}, err
	}
	e, err := s.sendFrom(r, &event{typ: typ, txn: txn})
	if err != nil {
		return nil, err
	}
	r.device.txns[once] = e.id
	return map[string]string{"event_id": e.id}, nil
}

func (s *Server) getState(r *request) (any, error) {
	format := r.URL.Query().Get("format")
	if format != "" && format != "content" && format != "event" {
		return nil, fail(400, "M_INVALID_PARAM", "format must be content or event")
	}
	room, pos, err := s.readable(r)
	if err != nil {
		return nil, err
	}
	e := room.current[stateKey{r.PathValue("type"), r.PathValue("key")}].at(pos)
	if e == nil {
		return nil, fail(404, "M_NOT_FOUND", "no such state")
	}
	if format == "event" {
		return withRoom(e.asState(s.now(), r.device), room.id), nil
	}
	return e.content, nil
}

func (s *Server) getAllState(r *request) (any, error) {
	room, pos, err := s.readable(r)
	if err != nil {
		return nil, err
	}
	all := []clientEvent{}
	for _, e := range room.stateAt(pos) {
		all = append(all, withRoom(e.asState(s.now(), r.device), room.id))
	}
	return all, nil
}

func (s *Server) getEvent(r *request) (any, error) {
	room, pos, err := s.readable(r)
	if err != nil {
		return nil, err
	}
	for _, e := range room.log[:room.after(pos)] {
		if e.id == r.PathValue("event") {
			return withRoom(e.inTimeline(s.now(), r.device), room.id), nil
		}
	}
	return nil, fail(404, "M_NOT_FOUND", "no such event")
}

// messages pages through the timeline. A token is a position between two events.
func (s *Server) messages(r *request) (any, error) {
	q := r.URL.Query()
	back := q.Get("dir") == "b"
	if dir := q.Get("dir"); dir != "" && dir != "b" && dir != "f" {
		return nil, fail(400, "M_INVALID_PARAM", "dir must be b or f")
	}
	limit, given, err := r.integer("limit")
	if err != nil {
		return nil, err
	}
	if !given {
		limit = 10
	}
	if limit < 0 {
		return nil, fail(400, "M_INVALID_PARAM", "limit must not be negative")
	}
	limit = min(limit, 1000)
	f, err := parseEventFilter(q.Get("filter"))
	if err != nil {
		return nil, err
	}
	room, last, err := s.readable(r)
	if err != nil {
		return nil, err
	}
	from := int64(0)
	if back {
		from = last
	}
	if token := q.Get("from"); token != "" {
		if from, err = parseToken(token); err != nil {
			return nil, fail(400, "M_UNKNOWN", "from is not a token of this server")
		}
	}
	to := int64(-1)
	if token := q.Get("to"); token != "" {
		if to, err = parseToken(token); err != nil {
			return nil, fail(400, "M_UNKNOWN", "to is not a token of this server")
		}
	}

	out := struct {
		Chunk []clientEvent `json:"chunk"`
		Start string        `json:"start"`
		End   string        `json:"end,omitempty"`
	}{Chunk: []clientEvent{}, Start: formatToken(from)}
	end := from
	i, step := room.after(from), 1
	if back {
		i, step = i-1, -1
	}
	for ; i >= 0 && i < len(room.log) && room.log[i].pos <= last; i += step {
		e := room.log[i]
		if to >= 0 && (back && e.pos <= to || !back && e.pos > to) {
			break
		}
		if int64(len(out.Chunk)) == limit {
			break
		}
		end = e.pos
		if back {
			end--
		}
		if f.matches(e) {
			out.Chunk = append(out.Chunk, withRoom(e.inTimeline(s.now(), r.device), room.id))
		}
	}
	if len(out.Chunk) > 0 {
		out.End = formatToken(end)
	}
	return out, nil
}

// A token is a position in the stream.
func formatToken(pos int64) string { return "s" + strconv.FormatInt(pos, 10) }

// A sync token has another for messages where not all have been sent.
func formatSyncToken(pos, toDevice int64) string {
	if toDevice == pos {
		return formatToken(pos)
	}
	return formatToken(pos) + "_" + strconv.FormatInt(toDevice, 10)
}

func parseSyncToken(token string) (pos, toDevice int64, err error) {
	if pos, err = parseToken(token); err != nil {
		return 0, 0, err
	}
	_, rest, more := strings.Cut(token, "_")
	if !more {
		return pos, pos, nil
	}
	if toDevice, err = strconv.ParseInt(rest, 10, 64); err != nil {
		return 0, 0, fail(400, "M_UNKNOWN", "%q is not a token of this server", token)
	}
	return pos, toDevice, nil
}

func parseToken(token string) (int64, error) {
	number, _, _ := strings.Cut(strings.TrimPrefix(token, "s"), "_")
	pos, err := strconv.ParseInt(number, 10, 64)
	if err != nil || pos < 0 || !strings.HasPrefix(token, "s") {
		return 0, fail(400, "M_UNKNOWN", "%q is not a token of this server", token)
	}
	return pos, nil
}
