// Command bare is the least that a shared library written in Go can be: what calls through it and
// callbacks out of it cost is what the Go runtime costs, and our library is held against it.
package main

/*
#include <stddef.h>
#include <stdint.h>

typedef void (*listener)(uint64_t, const char *, const char *, size_t, void *);

static void call_listener(listener fn, uint64_t handle, char *event, char *json, size_t len) {
  fn(handle, event, json, len, NULL);
}
*/
import "C"

func main() {}

// bare_call takes what mrtc_listener_count takes.
//
//export bare_call
func bare_call(handle C.uint64_t, event *C.char, count *C.size_t, out **C.char) C.int32_t {
	*count = C.size_t(handle)
	return 0
}

//export bare_callbacks
func bare_callbacks(fn C.listener, n C.int64_t) {
	event, json := C.CString("event"), C.CString(`{"event":"event"}`)
	for range int64(n) {
		C.call_listener(fn, 1, event, json, 17)
	}
}
