package homeserver

import (
	"encoding/json"
	"math"
	"strings"
)

// Who may send what into a room: the authorization rules, as far as one homeserver needs them.

// roomVersion is in what the versions differ here.
type roomVersion struct {
	disposition string
	creators    bool // creators stand above all power levels, and the room id is a hash (MSC4289, MSC4291)
	creatorKey  bool // m.room.create names the creator
	ownedKeys   bool // state keys "{user}_..." belong to the user (MSC3757)
}

const defaultRoomVersion = "12"

var roomVersions = map[string]roomVersion{
	"6":                     {disposition: "stable", creatorKey: true},
	"7":                     {disposition: "stable", creatorKey: true},
	"8":                     {disposition: "stable", creatorKey: true},
	"9":                     {disposition: "stable", creatorKey: true},
	"10":                    {disposition: "stable", creatorKey: true},
	"11":                    {disposition: "stable"},
	"12":                    {disposition: "stable", creators: true},
	"org.matrix.msc3757.10": {disposition: "unstable", creatorKey: true, ownedKeys: true},
	"org.matrix.msc3757.11": {disposition: "unstable", ownedKeys: true},
}

// powerLevels is the content of m.room.power_levels. Absent levels have the defaults of the rules.
type powerLevels struct {
	Users         map[string]int64 `json:"users"`
	UsersDefault  int64            `json:"users_default"`
	Events        map[string]int64 `json:"events"`
	EventsDefault int64            `json:"events_default"`
	StateDefault  *int64           `json:"state_default"`
	Ban           *int64           `json:"ban"`
	Kick          *int64           `json:"kick"`
	Redact        *int64           `json:"redact"`
	Invite        int64            `json:"invite"`

	Notifications map[string]int64 `json:"notifications"`
}

func level(l *int64) int64 {
	if l == nil {
		return 50
	}
	return *l
}

// flat is every level by name, to compare two events.
func (p *powerLevels) flat() map[stateKey]int64 {
	flat := map[stateKey]int64{
		{"", "users_default"}: p.UsersDefault, {"", "events_default"}: p.EventsDefault, {"", "invite"}: p.Invite,
		{"", "state_default"}: level(p.StateDefault), {"", "ban"}: level(p.Ban), {"", "kick"}: level(p.Kick), {"", "redact"}: level(p.Redact),
	}
	for group, levels := range map[string]map[string]int64{"users": p.Users, "events": p.Events, "notifications": p.Notifications} {
		for name, l := range levels {
			flat[stateKey{group, name}] = l
		}
	}
	return flat
}

func (r *room) powerLevels() *powerLevels {
	e := r.current[stateKey{"m.room.power_levels", ""}]
	if e == nil {
		zero := int64(0)
		return &powerLevels{Users: map[string]int64{r.creator: 100}, StateDefault: &zero}
	}
	if r.levelsOf != e {
		var p powerLevels
		_ = json.Unmarshal(e.content, &p) // checked when it was sent
		r.levelsOf, r.levels = e, &p
	}
	return r.levels
}

func (r *room) isCreator(user string) bool {
	if user == r.creator {
		return true
	}
	for _, c := range r.additionalCreators {
		if c == user {
			return true
		}
	}
	return false
}

func (r *room) levelOf(user string) int64 {
	if r.version.creators && r.isCreator(user) {
		return math.MaxInt64
	}
	p := r.powerLevels()
	if l, ok := p.Users[user]; ok {
		return l
	}
	return p.UsersDefault
}

func forbidden(format string, args ...any) error { return fail(403, "M_FORBIDDEN", format, args...) }

// authorize says why an event may not be sent.
func (r *room) authorize(e *event) error {
	if e.typ == "m.room.create" && e.key != nil {
		return forbidden("the room has been created")
	}
	if e.typ == "m.room.member" && e.key != nil {
		return r.authorizeMember(e)
	}
	if r.member(e.sender).membership() != "join" {
		return forbidden("%s is not in room %s", e.sender, r.id)
	}
	p := r.powerLevels()
	needed, named := p.Events[e.typ]
	if !named {
		needed = p.EventsDefault
		if e.key != nil {
			needed = level(p.StateDefault)
		}
	}
	if have := r.levelOf(e.sender); have < needed {
		return forbidden("%s has power level %d and needs %d to send %s", e.sender, have, needed, e.typ)
	}
	if e.key != nil && strings.HasPrefix(*e.key, "@") && *e.key != e.sender {
		if err := r.authorizeOwnedKey(e); err != nil {
			return err
		}
	}
	if e.typ == "m.room.power_levels" && e.key != nil {
		return r.authorizeLevels(e)
	}
	return nil
}

// authorizeOwnedKey: a state key that begins with @ belongs to that user; MSC3757 lets more follow
// after an underscore, and those of higher power write it too.
func (r *room) authorizeOwnedKey(e *event) error {
	if r.version.ownedKeys {
		owner := *e.key
		colon := strings.Index(owner, ":")
		if colon < 0 {
			return fail(400, "M_BAD_JSON", "a state key that begins with @ must begin with a user id")
		}
		if end := strings.Index(owner[colon:], "_"); end >= 0 {
			owner = owner[:colon+end]
		}
		if err := checkUserID(owner); err != nil {
			return fail(400, "M_BAD_JSON", "a state key that begins with @ must begin with a user id")
		}
		if owner == e.sender || r.levelOf(e.sender) > r.levelOf(owner) {
			return nil
		}
	}
	return forbidden("the state key belongs to another user")
}

func (r *room) authorizeLevels(e *event) error {
	var p powerLevels
	if err := json.Unmarshal(e.content, &p); err != nil {
		return fail(400, "M_BAD_JSON", "power levels: %v", err)
	}
	for user := range p.Users {
		if err := checkUserID(user); err != nil {
			return fail(400, "M_UNKNOWN", "power levels: %v", err)
		}
		if r.version.creators && r.isCreator(user) {
			return fail(400, "M_UNKNOWN", "power levels: the creator %s must not be in users", user)
		}
	}
	if r.current[e.state()] == nil {
		return nil
	}
	mine := r.levelOf(e.sender)
	before, after := r.powerLevels().flat(), p.flat()
	for name, old := range before {
		now, still := after[name]
		if still && now == old {
			continue
		}
		if old > mine || name.typ == "users" && name.key != e.sender && old == mine {
			return forbidden("%s has power level %d and cannot change %s, which is %d", e.sender, mine, name.key, old)
		}
	}
	for name, now := range after {
		if old, was := before[name]; (!was || old != now) && now > mine {
			return forbidden("%s has power level %d and cannot set %s to %d", e.sender, mine, name.key, now)
		}
	}
	return nil
}

func (r *room) authorizeMember(e *event) error {
	target := *e.key
	is, was := e.membership(), r.member(target).membership()
	sender := r.member(e.sender).membership()
	mine, theirs, p := r.levelOf(e.sender), r.levelOf(target), r.powerLevels()

	if is == "join" {
		switch {
		case e.sender != target:
			return forbidden("nobody joins for another user")
		case was == "ban":
			return fail(403, "M_BAD_STATE", "%s is banned from this room", target)
		case r.joinRule() == "public" || was == "join" || was == "invite" || len(r.log) == 1 && target == r.creator:
			return nil
		}
		return forbidden("%s is not invited to this room", target)
	}
	if is == "leave" && e.sender == target && was == "invite" {
		return nil
	}
	if sender != "join" {
		return forbidden("%s is not in room %s", e.sender, r.id)
	}
	switch is {
	case "invite":
		switch {
		case was == "ban":
			return fail(403, "M_BAD_STATE", "%s is banned from this room", target)
		case was == "join":
			return forbidden("%s is in the room already", target)
		case mine < p.Invite:
			return forbidden("inviting needs power level %d", p.Invite)
		}
	case "leave":
		switch {
		case was == "ban" && mine < level(p.Ban):
			return forbidden("unbanning needs power level %d", level(p.Ban))
		case e.sender != target && (mine < level(p.Kick) || mine <= theirs):
			return forbidden("%s cannot be kicked by %s", target, e.sender)
		}
	case "ban":
		if mine < level(p.Ban) || mine <= theirs {
			return forbidden("%s cannot be banned by %s", target, e.sender)
		}
	default:
		return fail(400, "M_UNKNOWN", "unknown membership %q", is)
	}
	return nil
}

func (r *room) joinRule() string {
	var content struct {
		JoinRule string `json:"join_rule"`
	}
	if e := r.current[stateKey{"m.room.join_rules", ""}]; e != nil {
		_ = json.Unmarshal(e.content, &content)
	}
	return content.JoinRule
}
