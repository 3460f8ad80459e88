package homeserver

import (
	"container/heap"
	"encoding/json"
	"sort"
	"time"
)

// Delayed events (MSC4140), as Synapse 1.163 serves them. Scheduling checks neither membership nor
// power; whoever knows a delay id may restart, send or cancel; a state event of another user
// cancels what is scheduled for that state; what cannot be sent when it is due is dropped.

const (
	delayParameter = "org.matrix.msc4140.delay"
	delayedPath    = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
)

var delayedRoutes = []route{
	{"delayed", "GET", delayedPath, needsToken, (*Server).listDelayed},
	{"delayed", "GET", delayedPath + "/{id}", needsToken, (*Server).getDelayed},
	{"delayed", "POST", delayedPath + "/{id}", takesToken, (*Server).actOnDelayed},
	{"delayed", "POST", delayedPath + "/{id}/restart", takesToken, onDelayed("restart")},
	{"delayed", "POST", delayedPath + "/{id}/send", takesToken, onDelayed("send")},
	{"delayed", "POST", delayedPath + "/{id}/cancel", takesToken, onDelayed("cancel")},
}

type delayedEvent struct {
	id      string
	device  *device
	room    *room
	typ     string
	key     *string
	content json.RawMessage
	delay   time.Duration
	due     int64 // server time
	index   int   // in the schedule
}

// schedule is the delayed events, those due first in front, and the timer for the first.
type schedule struct {
	byID  map[string]*delayedEvent
	order []*delayedEvent
	timer *time.Timer
}

func (q *schedule) Len() int           { return len(q.order) }
func (q *schedule) Less(i, j int) bool { return q.order[i].due < q.order[j].due }
func (q *schedule) Swap(i, j int) {
	q.order[i], q.order[j] = q.order[j], q.order[i]
	q.order[i].index, q.order[j].index = i, j
}

func (q *schedule) Push(x any) {
	d := x.(*delayedEvent)
	d.index = len(q.order)
	q.order = append(q.order, d)
	q.byID[d.id] = d
}

func (q *schedule) Pop() any {
	d := q.order[len(q.order)-1]
	q.order = q.order[:len(q.order)-1]
	delete(q.byID, d.id)
	return d
}

func (q *schedule) remove(d *delayedEvent) { heap.Remove(q, d.index) }

// of is the delayed events of a user, those due first in front.
func (q *schedule) of(u *user) []*delayedEvent {
	var own []*delayedEvent
	for _, d := range q.order {
		if d.device.user == u {
			own = append(own, d)
		}
	}
	sort.Slice(own, func(i, j int) bool { return own[i].due < own[j].due })
	return own
}

// arm sets the timer to when the next event is due.
func (s *Server) arm() {
	q := &s.delayed
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	if len(q.order) > 0 && !s.down {
		wait := time.Duration(q.order[0].due-s.now()) * time.Millisecond
		q.timer = time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.sendDue()
		})
	}
}

// sendDue sends what is due. Of those due together for one state, the first that can be sent is.
func (s *Server) sendDue() {
	if s.down {
		return
	}
	type place struct {
		room *room
		stateKey
	}
	done := map[place]bool{}
	for now := s.now(); len(s.delayed.order) > 0 && s.delayed.order[0].due <= now; {
		d := heap.Pop(&s.delayed).(*delayedEvent)
		if d.key == nil {
			_ = s.sendDelayed(d, d.due)
			continue
		}
		at := place{d.room, stateKey{d.typ, *d.key}}
		if !done[at] {
			done[at] = s.sendDelayed(d, d.due) == nil
		}
	}
	s.arm()
}

func (s *Server) sendDelayed(d *delayedEvent, ts int64) error {
	_, err := s.send(&event{
		room: d.room, typ: d.typ, key: d.key, sender: d.device.user.id, content: d.content, ts: ts,
		device: d.device, delayID: d.id,
	})
	return err
}

// cancelDelayedOfOthers: somebody who writes a state ends what others have scheduled for it.
func (s *Server) cancelDelayedOfOthers(e *event) {
	var ended []*delayedEvent
	for _, d := range s.delayed.order {
		if d.room == e.room && d.typ == e.typ && d.key != nil && *d.key == *e.key && d.device.user.id != e.sender {
			ended = append(ended, d)
		}
	}
	for _, d := range ended {
		s.delayed.remove(d)
	}
}

// scheduleFrom schedules the event of a request that names a delay.
func (s *Server) scheduleFrom(r *request, typ string, key *string) (delayID string, delayed bool, err error) {
	ms, delayed, err := r.integer(delayParameter)
	if err != nil || !delayed {
		return "", err != nil, err
	}
	if ms < 0 {
		return "", true, fail(400, "M_INVALID_PARAM", "%s must not be negative", delayParameter)
	}
	if most := s.MaxDelay.Milliseconds(); ms > most {
		return "", true, fail(400, "ORG.MATRIX.MSC4140_DELAY_TOO_LARGE", "a delay of %d ms is over the maximum of %d ms", ms, most)
	}
	room := s.rooms[r.PathValue("room")]
	if room == nil {
		return "", true, fail(404, "M_NOT_FOUND", "there is no room %s", r.PathValue("room"))
	}
	content, err := checkContent(r.body)
	if err != nil {
		return "", true, err
	}
	if own := s.delayed.of(r.user); len(own) >= s.MaxScheduled {
		e := fail(429, "M_LIMIT_EXCEEDED", "at most %d delayed events wait", s.MaxScheduled)
		e.retryAfter = time.Duration(own[0].due-s.now()) * time.Millisecond
		return "", true, e
	}
	d := &delayedEvent{
		id: "syd_" + random(20), device: r.device, room: room, typ: typ, key: key, content: content,
		delay: time.Duration(ms) * time.Millisecond, due: s.now() + ms,
	}
	heap.Push(&s.delayed, d)
	s.arm()
	return d.id, true, nil
}

func (s *Server) actOnDelayed(r *request) (any, error) {
	var in struct {
		Action *string `json:"action"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.Action == nil {
		return nil, fail(400, "M_MISSING_PARAM", "action is missing")
	}
	return onDelayed(*in.Action)(s, r)
}

func onDelayed(action string) func(*Server, *request) (any, error) {
	return func(s *Server, r *request) (any, error) {
		d := s.delayed.byID[r.PathValue("id")]
		if action != "restart" && action != "send" && action != "cancel" {
			return nil, fail(400, "M_INVALID_PARAM", "action must be restart, send or cancel")
		}
		if d == nil {
			return nil, errNoDelayed
		}
		defer s.arm()
		switch action {
		case "restart":
			d.due = s.now() + d.delay.Milliseconds()
			heap.Fix(&s.delayed, d.index)
		case "cancel":
			s.delayed.remove(d)
		case "send":
			s.delayed.remove(d)
			if err := s.sendDelayed(d, 0); err != nil {
				return nil, err
			}
		}
		return struct{}{}, nil
	}
}

var errNoDelayed = fail(404, "M_NOT_FOUND", "there is no such delayed event")

// client is how a delayed event looks to its user.
func (d *delayedEvent) client() map[string]any {
	c := map[string]any{
		"delay_id": d.id, "room_id": d.room.id, "type": d.typ, "content": d.content,
		"delay_ms": d.delay.Milliseconds(), "delayed_since_ts": d.due - d.delay.Milliseconds(),
	}
	if d.key != nil {
		c["state_key"] = *d.key
	}
	return c
}

func (s *Server) getDelayed(r *request) (any, error) {
	d := s.delayed.byID[r.PathValue("id")]
	if d == nil || d.device.user != r.user {
		return nil, errNoDelayed
	}
	return d.client(), nil
}

// listDelayed has the names of earlier drafts too.
func (s *Server) listDelayed(r *request) (any, error) {
	all := []any{}
	for _, d := range s.delayed.of(r.user) {
		c := d.client()
		c["delay"], c["running_since"] = c["delay_ms"], c["delayed_since_ts"]
		all = append(all, c)
	}
	return map[string]any{"delayed_events": all}, nil
}
