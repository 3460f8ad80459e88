//go:build mrtc_panic

package client

import (
	"fmt"
	"time"

	"libmatrixrtc/core/session"
)

// PanicIn panics where the tests want it: under the lock, in a goroutine, in the timer.
func (c *Client) PanicIn(place string) error {
	panics := func(session.Time) error { panic("on demand") }
	switch place {
	case "lock":
		return c.do(panics)
	case "goroutine":
		return c.do(func(session.Time) error { c.spawn(func() { panic("on demand") }); return nil })
	case "locked goroutine":
		return c.do(func(session.Time) error { c.spawn(func() { _ = c.do(panics) }); return nil })
	case "timer":
		time.AfterFunc(0, func() { _ = c.do(panics) })
		return nil
	}
	return fmt.Errorf("no place %q", place)
}
