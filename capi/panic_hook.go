//go:build mrtc_panic

// A variant of the library for the tests: it panics on demand. See tests/c/panics.c.

package main

/*
#include "abi.h"
*/
import "C"

//export mrtcgo_test_panic
func mrtcgo_test_panic(h C.uint64_t, where *C.char, out **C.char) C.int32_t {
	return withClient(h, out, func(c *host) (any, error) {
		switch place := C.GoString(where); place {
		case "export":
			panic("on demand")
		case "nil":
			var nothing *host
			return nothing.handle, nil
		case "dispatcher":
			panicInDispatcher(c)
			return nil, nil
		default:
			return nil, c.c.PanicIn(place)
		}
	})
}

// panicInDispatcher sends an event of a session whose listener is none.
func panicInDispatcher(c *host) {
	d, strange := dispatch, &call{host: c, handle: 1}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listeners[strange.handle] = []*listener{nil}
	d.backlog.push(queued{name: "e", client: c, call: strange})
	d.start()
	d.work.Signal()
}
