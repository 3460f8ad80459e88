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
    """Nanoseconds of a call, in the best of five rounds: the others were disturbed."""
    rounds = []
    for _ in range(5):
        before = time.perf_counter_ns()
        for _ in range(calls // 5):
            f()
        rounds.append((time.perf_counter_ns() - before) / (calls // 5))
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

    client.feed(sync=room_sync(0, EVENTS))
    before, n = time.perf_counter_ns(), 0
    while client.next_event(0) is not None:
        n += 1
    ours = (time.perf_counter_ns() - before) / n
    assert n >= EVENTS, n
    answer(lib.mrtc_client_next_event, handle, 0)
    lib.mrtc_client_feed(handle, json.dumps({"sync": room_sync(0, EVENTS)}).encode(), None)
    before, n = time.perf_counter_ns(), 0
    while answer(lib.mrtc_client_next_event, handle, 0) is not None:
        n += 1
    assert n >= EVENTS, n
    row("Python: event taken", EVENTS, ours, (time.perf_counter_ns() - before) / n)


if __name__ == "__main__":
    main(sys.argv[1])
