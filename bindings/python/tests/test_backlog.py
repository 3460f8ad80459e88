"""Whoever stops reading is told how much was lost, and never finds a gap in silence."""

from __future__ import annotations

import asyncio
import ctypes

from matrixrtc import Client, Event, Session, library

BOUND = 16384


def emit(session: Session, times: int) -> None:
    """Has the library send an event of the host's own to its queue."""
    function = library.load().mrtc_emit
    for _ in range(times):
        assert function(ctypes.c_uint64(session._handle), b"own", None, None, None) == 0


def test_the_queue_of_the_library() -> None:
    with Client.host_driven("@a:x", "D", clock="manual") as client:
        session = client.session("!r:x")
        told: list[Event] = []
        session.on("resync_required", told.append)
        client.on("resync_required", told.append)
        emit(session, BOUND + 10)
        event = client.next_event(0)
        assert event is not None and event.name == "resync_required"
        assert told == [event, event], "the session is told as well"
        left = 0
        while client.next_event(0):
            left += 1
        assert event.data["lost"] + left == BOUND + 10


def test_a_stream_that_nobody_reads() -> None:
    async def call() -> None:
        async with Client.host_driven("@a:x", "D", clock="manual") as client:
            session = client.session("!r:x")
            stream = client.events()
            for _ in range(5):
                emit(session, 10_000)
                client._read()
            first = await anext(stream)
            assert first.name == "resync_required"
            session.close()
            rest = 0
            while stream._waiting:
                assert (await anext(stream)).name == "own"
                rest += 1
            assert first.data["lost"] + rest == 50_000

    asyncio.run(call())
