package client

import (
	"errors"
	"fmt"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"
)

// Status is the outcome of a call, as the C ABI numbers it.
type Status int32

// The statuses of the C ABI.
const (
	OK                 Status = 0
	Timeout            Status = 1
	ErrInvalidArgument Status = -1
	ErrInvalidHandle   Status = -2
	ErrInvalidState    Status = -3
	ErrWouldDeadlock   Status = -4
	ErrHomeserver      Status = -5
	ErrNetwork         Status = -6
	ErrInternal        Status = -7
	ErrForked          Status = -8
	ErrClientFailed    Status = -9
	ErrNotFound        Status = -10
	ErrSFU             Status = -11
)

var statusNames = map[Status]string{
	OK: "MRTC_OK", Timeout: "MRTC_TIMEOUT", ErrInvalidArgument: "MRTC_ERR_INVALID_ARGUMENT",
	ErrInvalidHandle: "MRTC_ERR_INVALID_HANDLE", ErrInvalidState: "MRTC_ERR_INVALID_STATE",
	ErrWouldDeadlock: "MRTC_ERR_WOULD_DEADLOCK", ErrHomeserver: "MRTC_ERR_HOMESERVER",
	ErrNetwork: "MRTC_ERR_NETWORK", ErrInternal: "MRTC_ERR_INTERNAL", ErrForked: "MRTC_ERR_FORKED",
	ErrClientFailed: "MRTC_ERR_CLIENT_FAILED", ErrNotFound: "MRTC_ERR_NOT_FOUND",
	ErrSFU: "MRTC_ERR_SFU",
}

func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return "MRTC_ERR_UNKNOWN"
}

// MarshalText is the name, as error objects carry it.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Error is what went wrong, for a person and for a program.
type Error struct {
	Status       Status `json:"status"`
	Message      string `json:"message"`
	Path         string `json:"path,omitempty"` // JSON pointer to the offending field
	Errcode      string `json:"errcode,omitempty"`
	HTTPStatus   int    `json:"http_status,omitempty"`
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`
	Reason       string `json:"reason,omitempty"`      // with ErrSFU: one of core/livekit's
	SoftLogout   bool   `json:"soft_logout,omitempty"` // with M_UNKNOWN_TOKEN: the device still exists
}

func (e *Error) Error() string { return e.Status.String() + ": " + e.Message }

// wire is the error as sessions know it.
func (e *Error) wire() *wire.Error {
	message := e.Message
	switch {
	case e.Path != "":
		message = e.Path + ": " + message
	case e.Status == ErrNetwork:
		message = "no answer from the homeserver: " + message
	}
	return &wire.Error{Network: e.Status == ErrNetwork, Status: e.HTTPStatus, Code: e.Errcode, Message: message}
}

func invalid(path, format string, args ...any) *Error {
	return &Error{Status: ErrInvalidArgument, Path: path, Message: fmt.Sprintf(format, args...)}
}

func wrongState(format string, args ...any) *Error {
	return &Error{Status: ErrInvalidState, Message: fmt.Sprintf(format, args...)}
}

// AsError gives any error of the layers below its status.
func AsError(err error) *Error {
	var own *Error
	var arg *session.ArgumentError
	var state *session.StateError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own
	case errors.As(err, &arg):
		return &Error{Status: ErrInvalidArgument, Path: arg.Path, Message: arg.Message}
	case errors.As(err, &state):
		return &Error{Status: ErrInvalidState, Message: state.Message}
	default:
		return &Error{Status: ErrInternal, Message: err.Error()}
	}
}
