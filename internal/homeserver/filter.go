package homeserver

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Filters: what of rooms and events a client wants to see.

type filter struct {
	Room        roomFilter   `json:"room"`
	AccountData *eventFilter `json:"account_data"`

	raw json.RawMessage
}

type roomFilter struct {
	Rooms        *[]string    `json:"rooms"`
	NotRooms     []string     `json:"not_rooms"`
	IncludeLeave bool         `json:"include_leave"`
	State        *eventFilter `json:"state"`
	Timeline     *eventFilter `json:"timeline"`
}

// eventFilter with an absent list takes everything, with an empty one nothing.
type eventFilter struct {
	Limit      *float64  `json:"limit"`
	Types      *[]string `json:"types"`
	NotTypes   []string  `json:"not_types"`
	Senders    *[]string `json:"senders"`
	NotSenders []string  `json:"not_senders"`
	Rooms      *[]string `json:"rooms"`
	NotRooms   []string  `json:"not_rooms"`

	LazyLoadMembers         bool `json:"lazy_load_members"`
	IncludeRedundantMembers bool `json:"include_redundant_members"`
}

func (f *filter) takes(r *room) bool {
	return !slices.Contains(f.Room.NotRooms, r.id) && (f.Room.Rooms == nil || slices.Contains(*f.Room.Rooms, r.id))
}

func (f *filter) lazy() bool { return f.Room.State != nil && f.Room.State.LazyLoadMembers }

const (
	defaultTimeline = 10
	maxTimeline     = 100
)

// limit is how many events of a timeline a sync has at most.
func (f *eventFilter) limit() int {
	if f == nil || f.Limit == nil {
		return defaultTimeline
	}
	return int(min(max(*f.Limit, 1), maxTimeline))
}

// nothing says that no event can match.
func (f *eventFilter) nothing() bool {
	empty := func(list *[]string) bool { return list != nil && len(*list) == 0 }
	return f != nil && (empty(f.Types) || empty(f.Senders) || empty(f.Rooms) || slices.Contains(f.NotTypes, "*"))
}

func (f *eventFilter) matches(e *event) bool {
	if f == nil {
		return true
	}
	return !slices.ContainsFunc(f.NotTypes, e.hasType) && !slices.Contains(f.NotSenders, e.sender) && !slices.Contains(f.NotRooms, e.room.id) &&
		(f.Types == nil || slices.ContainsFunc(*f.Types, e.hasType)) &&
		(f.Senders == nil || slices.Contains(*f.Senders, e.sender)) &&
		(f.Rooms == nil || slices.Contains(*f.Rooms, e.room.id))
}

func (e *event) hasType(pattern string) bool { return fits(e.typ, pattern) }

// fits compares a type with one that may end with "*".
func fits(typ, pattern string) bool {
	if prefix, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(typ, prefix)
	}
	return typ == pattern
}

// takesType is matches for what has no more than a type.
func (f *eventFilter) takesType(typ string) bool {
	fitting := func(pattern string) bool { return fits(typ, pattern) }
	return f == nil || !slices.ContainsFunc(f.NotTypes, fitting) && (f.Types == nil || slices.ContainsFunc(*f.Types, fitting))
}

// filterOf reads the parameter of a sync: a filter, or the id of one.
func (u *user) filterOf(parameter string) (*filter, error) {
	if parameter == "" {
		return &filter{}, nil
	}
	if strings.HasPrefix(parameter, "{") {
		return parseFilter([]byte(parameter))
	}
	i, err := strconv.Atoi(parameter)
	if err != nil || i < 0 || i >= len(u.filters) {
		return nil, fail(400, "M_INVALID_PARAM", "there is no filter %q", parameter)
	}
	return u.filters[i], nil
}

func parseFilter(raw []byte) (*filter, error) {
	if !json.Valid(raw) {
		return nil, fail(400, "M_NOT_JSON", "the filter is not JSON")
	}
	f := &filter{raw: raw}
	if err := json.Unmarshal(raw, f); err != nil {
		return nil, fail(400, "M_UNKNOWN", "the filter: %v", err)
	}
	return f, nil
}

func parseEventFilter(raw string) (*eventFilter, error) {
	if raw == "" {
		return nil, nil
	}
	f := &eventFilter{}
	if err := json.Unmarshal([]byte(raw), f); err != nil {
		return nil, fail(400, "M_NOT_JSON", "the filter: %v", err)
	}
	return f, nil
}

func (s *Server) createFilter(r *request) (any, error) {
	if r.PathValue("user") != r.user.id {
		return nil, forbidden("filters are made for oneself")
	}
	if err := r.json(nil); err != nil {
		return nil, err
	}
	f, err := parseFilter(r.body)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(r.user.filters, func(other *filter) bool { return string(other.raw) == string(f.raw) })
	if i < 0 {
		i = len(r.user.filters)
		r.user.filters = append(r.user.filters, f)
	}
	return map[string]string{"filter_id": strconv.Itoa(i)}, nil
}

func (s *Server) getFilter(r *request) (any, error) {
	if r.PathValue("user") != r.user.id {
		return nil, forbidden("filters are for oneself")
	}
	i, err := strconv.Atoi(r.PathValue("filter"))
	if err != nil {
		return nil, fail(400, "M_UNKNOWN", "a filter id is a number")
	}
	if i < 0 || i >= len(r.user.filters) {
		return nil, fail(404, "M_NOT_FOUND", "there is no filter %d", i)
	}
	return r.user.filters[i].raw, nil
}
