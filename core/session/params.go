package session

import (
	"encoding/json"
	"fmt"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
)

// JoinParams is how to be in a call. A nil or absent setting takes its default. Durations are in
// milliseconds.
type JoinParams struct {
	FociPreferred   []json.RawMessage          `json:"foci_preferred"`
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
	for name := range p.ApplicationData {
		if wire.IsReservedField(name) {
			return s, &ArgumentError{"/application_data/" + name, "this field belongs to the membership itself"}
		}
	}
	s.memberID = p.MemberID
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
	if s.headroom >= min(s.expiry, refreshAtMost)/2 {
		return s, &ArgumentError{"/membership_expiry_headroom_ms", "expected less than half of the time between two refreshes"}
	}
	return s, nil
}

// foci reads where our media is. foci_active as a transport goes to the front and means
// multi_sfu; as {focus_selection} it names the selection.
func (p *JoinParams) foci(roomID string) (transports []json.RawMessage, selection string, err error) {
	selection = wire.SelectionMultiSFU
	all := p.FociPreferred
	if len(p.FociActive) > 0 && string(p.FociActive) != "null" {
		active := gjson.ParseBytes(p.FociActive)
		if !active.IsObject() {
			return nil, "", &ArgumentError{"/foci_active", "expected an object"}
		}
		switch sel := active.Get("focus_selection"); {
		case !sel.Exists():
			all = append([]json.RawMessage{p.FociActive}, all...)
		case sel.Str == wire.SelectionOldest || sel.Str == wire.SelectionMultiSFU:
			selection = sel.Str
		default:
			return nil, "", &ArgumentError{"/foci_active/focus_selection", fmt.Sprintf("expected %q or %q", wire.SelectionOldest, wire.SelectionMultiSFU)}
		}
	}
	for i, raw := range all {
		t, err := wire.OwnTransport(raw, roomID)
		if err != nil {
			return nil, "", &ArgumentError{fmt.Sprintf("/foci_preferred/%d", i), err.Error()}
		}
		transports = append(transports, t)
	}
	return transports, selection, nil
}

func ms(v int64) time.Duration { return time.Duration(v) * time.Millisecond }
