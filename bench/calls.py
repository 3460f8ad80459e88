"""What calls and events cost Python, beside bare ctypes: `calls.py LIBBARE`. Prints JSON lines."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from matrixrtc import Client

CALLS = 200_000
READS = 10_000
EVENTS = 10_000


def room_sync(first: int, count: int) -> dict[str, Any]:
    """A sync in which a call begins in each of many rooms: one event for each."""
    ts = int(time.time() * 1000)
    content = {
        "application": "m.call",
        "call_id": "",
        "scope": "m.room",
        "device_id": "DEV",
        "expires": 14400000,
        "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
        "foci_preferred": [{"type": "livekit", "livekit_service_url": "https://lk.example.test"}],
    }
    user = "@user:example.test"
    common = {"sender": user, "origin_server_ts": ts}
    events = [
        {"type": "m.room.member", "state_key": user, "event_id": "$u", "content": {"membership": "join"}} | common,
        {
            "type": "org.matrix.msc3401.call.member",
            "state_key": f"_{user}_DEV_m.call",
            "event_id": "$m",
            "content": content,
        }
        | common,
    ]
    rooms = {f"!r{i}:example.test": {"state": {"events": events}} for i in range(first, first + count)}
    return {"next_batch": "s", "rooms": {"join": rooms}}


def each(calls: int, f: Callable[[], Any]) -> float:
    """CPU nanoseconds of a call on its thread, in the best of five rounds: the others were disturbed."""
    rounds = []
    for _ in range(5):
        before = time.thread_time_ns()
        for _ in range(calls // 5):
            f()
        rounds.append((time.thread_time_ns() - before) / (calls // 5))
    return min(rounds)


def row(name: str, size: int, value: float, peer: float) -> None:
    print(json.dumps({"name": name, "size": size, "value": value, "peer_value": peer}), flush=True)


def main(bare_path: str) -> None:
    bare = ctypes.CDLL(bare_path)
    lib = ctypes.CDLL(os.environ["MATRIXRTC_LIBRARY"])
    u64, text, out_type = ctypes.c_uint64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
    # The same arguments on both sides, so that the difference is the library's.
    bare.bare_call.argtypes = [u64, text, ctypes.POINTER(ctypes.c_size_t), out_type]
    lib.mrtc_listener_count.argtypes = bare.bare_call.argtypes
    lib.mrtc_client_new.argtypes = [text, ctypes.POINTER(u64), out_type]
    lib.mrtc_session_open.argtypes = [u64, text, text, ctypes.POINTER(u64), out_type]
    lib.mrtc_session_info.argtypes = [u64, out_type]
    lib.mrtc_client_feed.argtypes = [u64, text, out_type]
    lib.mrtc_client_next_event.argtypes = [u64, ctypes.c_int64, out_type]
    lib.mrtc_free.argtypes = [ctypes.c_void_p]

    handle, session_handle = u64(), u64()
    config = json.dumps({"mode": "host_driven", "user_id": "@me:example.test", "device_id": "ME"}).encode()
    assert lib.mrtc_client_new(config, ctypes.byref(handle), None) == 0
    assert lib.mrtc_session_open(handle, b"!room:example.test", None, ctypes.byref(session_handle), None) == 0
    client = Client.host_driven("@me:example.test", "ME")
    session = client.session("!room:example.test")

    count = ctypes.c_size_t()
    count_ref = ctypes.byref(count)
    ours = each(CALLS, lambda: lib.mrtc_listener_count(handle, None, count_ref, None))
    row("Python: C call with a checked handle", 1, ours, each(CALLS, lambda: bare.bare_call(2, None, count_ref, None)))

    def answer(function: Callable[..., int], *args: Any) -> Any:
        out = ctypes.c_void_p()
        function(*args, ctypes.byref(out))
        if not out.value:
            return None
        try:
            return json.loads(ctypes.string_at(out.value))
        finally:
            lib.mrtc_free(out)

    row(
        "Python: session.info()",
        1,
        each(READS, session.info),
        each(READS, lambda: answer(lib.mrtc_session_info, session_handle)),
    )

    def taken(feed: Callable[[dict[str, Any]], Any], take: Callable[[], Any]) -> float:
        """CPU nanoseconds of an event that waits, on the thread that takes it, in the best of five rounds."""
        rounds = []
        take()  # the queue exists
        for first in range(0, EVENTS, EVENTS // 5):
            feed(room_sync(first, EVENTS // 5))
            before, n = time.thread_time_ns(), 0
            while take() is not None:
                n += 1
            rounds.append((time.thread_time_ns() - before) / n)
            assert n >= EVENTS // 5, n
        return min(rounds)

    row(
        "Python: event taken",
        EVENTS,
        taken(lambda sync: client.feed(sync=sync), lambda: client.next_event(0)),
        taken(
            lambda sync: lib.mrtc_client_feed(handle, json.dumps({"sync": sync}).encode(), None),
            lambda: answer(lib.mrtc_client_next_event, handle, 0),
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1])
