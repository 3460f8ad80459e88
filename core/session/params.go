package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
)

// JoinParams is how to be in a call. A nil or absent setting takes its default. Durations are in
// milliseconds.
type JoinParams struct {
	FociPreferred   []json.RawMessage          `json:"foci_preferred,omitempty"` // absent: the first that the homeserver offers
	FociActive      json.RawMessage            `json:"foci_active,omitempty"`
	Dialect         wire.Dialect               `json:"dialect,omitempty"`
	MemberID        string                     `json:"member_id,omitempty"`
	CallIntent      string                     `json:"call_intent,omitempty"`
	ApplicationData map[string]json.RawMessage `json:"application_data,omitempty"`

	DelayedLeaveDelayMS          *int64 `json:"delayed_leave_delay_ms,omitempty"`
	DelayedLeaveRestartMS        *int64 `json:"delayed_leave_restart_ms,omitempty"`
	DelayedLeaveRestartTimeoutMS *int64 `json:"delayed_leave_restart_timeout_ms,omitempty"`
	MembershipExpiryMS           *int64 `json:"membership_expiry_ms,omitempty"`
	MembershipExpiryHeadroomMS   *int64 `json:"membership_expiry_headroom_ms,omitempty"`
	NetworkErrorRetryMS          *int64 `json:"network_error_retry_ms,omitempty"`
	MaxNetworkRetries            *int64 `json:"max_network_retries,omitempty"`
	MaxRateLimitRetries          *int64 `json:"max_rate_limit_retries,omitempty"`
	DelegateLeave                bool   `json:"delegate_leave,omitempty"` // to the authorisation service (MSC4195)

	ManageMediaKeys             *bool  `json:"manage_media_keys,omitempty"` // default: whether the room is encrypted
	UseKeyDelayMS               *int64 `json:"use_key_delay_ms,omitempty"`
	KeyRotationGraceMS          *int64 `json:"key_rotation_grace_ms,omitempty"`
	KeyRotationParticipantLimit *int64 `json:"key_rotation_participant_limit,omitempty"` // 0: none
	MaxKeyLifetimeMS            *int64 `json:"max_key_lifetime_ms,omitempty"`
	KeyMissingAfterMS           *int64 `json:"key_missing_after_ms,omitempty"`
	RequireCrossSigned          bool   `json:"require_cross_signed,omitempty"` // of the senders of keys (MSC4153)
	KeyTransport                string `json:"key_transport,omitempty"`        // "to_device" or "room_event"
}

// ArgumentError is a command that cannot be obeyed as it stands. Path is a JSON pointer to the
// offending field.
type ArgumentError struct{ Path, Message string }

func (e *ArgumentError) Error() string { return e.Path + ": " + e.Message }

// StateError is a command that makes no sense at this moment.
type StateError struct{ Message string }

func (e *StateError) Error() string { return e.Message }

const day = 24 * 60 * 60 * 1000

// settings are the join parameters with their defaults filled in, in the form the machine uses.
type settings struct {
	transports     []json.RawMessage
	sfu            string // of the first that is LiveKit's
	offered        bool   // the transport is to be the first that the homeserver offers
	focusSelection string
	memberID       string
	delay          time.Duration // of the delayed leave
	restart        time.Duration // how often it is pushed back
	restartTimeout time.Duration // a restart unanswered for so long is tried again
	expiry         time.Duration // of the membership
	headroom       time.Duration
	retry          time.Duration // first pause after a failure
	maxFailures    int
	maxLimits      int

	useKeyDelay        time.Duration // between sending a key and using it
	keyGrace           time.Duration // a joiner is given a key younger than this
	keyRotationLimit   int           // at this size keys are not rotated; 0: none
	maxKeyLifetime     time.Duration
	keyMissingAfter    time.Duration
	requireCrossSigned bool
	keysByRoomEvent    bool
}

func (p *JoinParams) settings(roomID string) (s settings, err error) {
	if p.Dialect != "" && p.Dialect != wire.DialectState {
		return s, &ArgumentError{"/dialect", fmt.Sprintf("expected %q, got %q", wire.DialectState, p.Dialect)}
	}
	if len(p.MemberID) > 255 {
		return s, &ArgumentError{"/member_id", "expected at most 255 bytes"}
	}
	if s.transports, s.focusSelection, err = p.foci(roomID); err != nil {
		return s, err
	}
	s.sfu, s.offered = sfuOf(s.transports), p.FociPreferred == nil && len(s.transports) == 0
	if err := checkIntent("/call_intent", p.CallIntent); err != nil {
		return s, err
	}
	if err := p.checkData("/application_data", s.transports); err != nil {
		return s, err
	}
	s.memberID, s.requireCrossSigned = p.MemberID, p.RequireCrossSigned
	switch p.KeyTransport {
	case "", "to_device":
	case "room_event":
		s.keysByRoomEvent = true
	default:
		return s, &ArgumentError{"/key_transport", fmt.Sprintf(`expected "to_device" or "room_event", got %q`, p.KeyTransport)}
	}
	for _, f := range []struct {
		name          string
		value         *int64
		def, min, max int64
		set           func(int64)
	}{
		{"delayed_leave_delay_ms", p.DelayedLeaveDelayMS, 10_000, 1_000, day, func(v int64) { s.delay = ms(v) }},
		{"delayed_leave_restart_ms", p.DelayedLeaveRestartMS, 4_000, 100, day, func(v int64) { s.restart = ms(v) }},
		{"delayed_leave_restart_timeout_ms", p.DelayedLeaveRestartTimeoutMS, 2_000, 100, day, func(v int64) { s.restartTimeout = ms(v) }},
		{"membership_expiry_ms", p.MembershipExpiryMS, 14_400_000, 10_000, day, func(v int64) { s.expiry = ms(v) }},
		{"membership_expiry_headroom_ms", p.MembershipExpiryHeadroomMS, 5_000, 0, day, func(v int64) { s.headroom = ms(v) }},
		{"network_error_retry_ms", p.NetworkErrorRetryMS, 1_000, 100, 30_000, func(v int64) { s.retry = ms(v) }},
		{"max_network_retries", p.MaxNetworkRetries, 10, 1, 1 << 20, func(v int64) { s.maxFailures = int(v) }},
		{"max_rate_limit_retries", p.MaxRateLimitRetries, 10, 1, 1 << 20, func(v int64) { s.maxLimits = int(v) }},
		{"use_key_delay_ms", p.UseKeyDelayMS, 1_000, 0, 600_000, func(v int64) { s.useKeyDelay = ms(v) }},
		{"key_rotation_grace_ms", p.KeyRotationGraceMS, 10_000, 0, day, func(v int64) { s.keyGrace = ms(v) }},
		{"key_rotation_participant_limit", p.KeyRotationParticipantLimit, 0, 0, 1 << 30, func(v int64) { s.keyRotationLimit = int(v) }},
		{"max_key_lifetime_ms", p.MaxKeyLifetimeMS, 5_400_000, 10_000, day, func(v int64) { s.maxKeyLifetime = ms(v) }},
		{"key_missing_after_ms", p.KeyMissingAfterMS, 10_000, 100, day, func(v int64) { s.keyMissingAfter = ms(v) }},
	} {
		v := f.def
		if f.value != nil {
			v = *f.value
		}
		if v < f.min || v > f.max {
			return s, &ArgumentError{"/" + f.name, fmt.Sprintf("expected %d to %d, got %d", f.min, f.max, v)}
		}
		f.set(v)
	}
	if p.DelayedLeaveDelayMS != nil && p.DelayedLeaveRestartMS == nil {
		s.restart = min(s.restart, s.delay*2/5)
	}
	if s.restart >= s.delay {
		return s, &ArgumentError{"/delayed_leave_restart_ms", "expected less than delayed_leave_delay_ms"}
	}
	if s.maxKeyLifetime <= s.useKeyDelay {
		return s, &ArgumentError{"/max_key_lifetime_ms", "expected more than use_key_delay_ms"}
	}
	if s.headroom >= min(s.expiry, refreshAtMost)/2 {
		return s, &ArgumentError{"/membership_expiry_headroom_ms", "expected less than half of the time between two refreshes"}
	}
	return s, nil
}

func checkIntent(path, intent string) error {
	if len(intent) > wire.MaxOwnText {
		return &ArgumentError{path, fmt.Sprintf("expected at most %d bytes", wire.MaxOwnText)}
	}
	return nil
}

// checkData says whether a membership can carry the application data.
func (p *JoinParams) checkData(path string, transports []json.RawMessage) error {
	for name, v := range p.ApplicationData {
		switch {
		case wire.IsReservedField(name):
			return &ArgumentError{path + "/" + name, "this field belongs to the membership itself"}
		case wire.DeeperThan(v, wire.MaxOwnDepth):
			return &ArgumentError{path + "/" + name, fmt.Sprintf("expected at most %d levels", wire.MaxOwnDepth)}
		}
	}
	content := wire.BuildStateMember(wire.StateMember{ApplicationData: p.ApplicationData, Transports: transports})
	if len(content) > wire.MaxOwnContent {
		return &ArgumentError{path, fmt.Sprintf("expected at most %d bytes with the transports, got %d: homeservers take no larger event", wire.MaxOwnContent, len(content))}
	}
	return nil
}

// foci reads where our media is. foci_active as a transport goes to the front and means
// multi_sfu; as {focus_selection} it names the selection.
func (p *JoinParams) foci(roomID string) (transports []json.RawMessage, selection string, err error) {
	selection = wire.SelectionMultiSFU
	add := func(path string, raw json.RawMessage) error {
		t, err := wire.OwnTransport(raw, roomID)
		var wrong *wire.TransportError
		switch {
		case errors.As(err, &wrong) && wrong.Field != "":
			return &ArgumentError{path + "/" + wrong.Field, wrong.Message}
		case err != nil:
			return &ArgumentError{path, err.Error()}
		}
		transports = append(transports, t)
		return nil
	}
	if len(p.FociActive) > 0 && string(p.FociActive) != "null" {
		active := gjson.ParseBytes(p.FociActive)
		if !active.IsObject() {
			return nil, "", &ArgumentError{"/foci_active", "expected an object"}
		}
		switch sel := active.Get("focus_selection"); {
		case !sel.Exists():
			if err := add("/foci_active", p.FociActive); err != nil {
				return nil, "", err
			}
		case sel.Str == wire.SelectionOldest || sel.Str == wire.SelectionMultiSFU:
			selection = sel.Str
		default:
			return nil, "", &ArgumentError{"/foci_active/focus_selection", fmt.Sprintf("expected %q or %q", wire.SelectionOldest, wire.SelectionMultiSFU)}
		}
	}
	for i, raw := range p.FociPreferred {
		if err := add(fmt.Sprintf("/foci_preferred/%d", i), raw); err != nil {
			return nil, "", err
		}
	}
	return transports, selection, nil
}

// sfuOf is where media goes whose transports these are, "" nowhere that we know of.
func sfuOf(transports []json.RawMessage) string {
	for _, t := range transports {
		if name := livekit.SFU(t); name != "" {
			return name
		}
	}
	return ""
}

// ms is a number of milliseconds, which may be a stranger's: no more than a century.
func ms(v int64) time.Duration {
	const most = 100 * 365 * day
	return time.Duration(min(max(v, -most), most)) * time.Millisecond
}
