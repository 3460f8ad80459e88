package homeserver

import (
	"encoding/json"
	"slices"
)

// Messages from device to device. They wait in an inbox until a sync has told of them and the next
// one says, by where it begins, that it was heard.

const (
	maxToDevice     = 65536 // bytes of a message
	toDeviceOfASync = 100
)

type toDeviceMessage struct {
	Content json.RawMessage `json:"content"`
	Sender  string          `json:"sender"`
	Type    string          `json:"type"`

	pos int64
}

var toDeviceRoutes = []route{
	{"send_to_device", "PUT", "/v3/sendToDevice/{type}/{txn}", needsToken, (*Server).sendToDevice},
}

// sendToDevice does a transaction of a device and type once, whatever is in it the next time.
// Messages for those who are not there are dropped.
func (s *Server) sendToDevice(r *request) (any, error) {
	once := "to_device " + r.PathValue("type") + " " + r.PathValue("txn")
	if _, done := r.device.txns[once]; done {
		return struct{}{}, nil
	}
	var in struct {
		Messages map[string]map[string]json.RawMessage `json:"messages"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.Messages == nil {
		return nil, fail(400, "M_MISSING_PARAM", "messages is missing")
	}
	for userID, devices := range in.Messages {
		for id, content := range devices {
			canonical, err := checkContent(content)
			if err != nil {
				return nil, err
			}
			if len(canonical) > maxToDevice {
				return nil, fail(413, "M_TOO_LARGE", "the message to %s %s is longer than %d bytes", userID, id, maxToDevice)
			}
			devices[id] = canonical
		}
	}
	s.pos++
	for userID, devices := range in.Messages {
		u := s.users[userID]
		if u == nil {
			continue
		}
		all, toAll := devices["*"]
		toAll = toAll && len(devices) == 1
		for id, d := range u.devices {
			content, named := devices[id]
			if toAll {
				content, named = all, true
			}
			if named {
				d.inbox = append(d.inbox, toDeviceMessage{Content: content, Sender: r.user.id, Type: r.PathValue("type"), pos: s.pos})
				u.wake()
			}
		}
	}
	r.device.txns[once] = ""
	return struct{}{}, nil
}

// heard deletes the messages up to a position.
func (d *device) heard(pos int64) {
	d.inbox = slices.DeleteFunc(d.inbox, func(m toDeviceMessage) bool { return m.pos <= pos })
}

// messages is the oldest ones and the position of the last of those; so far there is none else up to end.
func (d *device) messages(end int64) (*toDeviceOf, int64) {
	if len(d.inbox) == 0 {
		return nil, end
	}
	if len(d.inbox) < toDeviceOfASync {
		return &toDeviceOf{slices.Clone(d.inbox)}, end // the inbox changes while it is written
	}
	some := slices.Clone(d.inbox[:toDeviceOfASync])
	return &toDeviceOf{some}, some[len(some)-1].pos
}

type toDeviceOf struct {
	Events []toDeviceMessage `json:"events"`
}
