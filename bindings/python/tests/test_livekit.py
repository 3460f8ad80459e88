"""Entering the SFUs of a call, where that cannot be done. Media is tested end to end: tests/e2e/test_voice.py."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import matrixrtc
from matrixrtc import Client, Session, livekit

ROOM = "!r:x"
ELSEWHERE = "https://elsewhere.x"


def silent(**config: Any) -> Session:
    """A session whose host answers nothing. Somebody has been in the call for long."""
    session = Client.host_driven("@us:x", "US", **config).session(ROOM)
    oldest = {"type": "livekit", "focus_selection": "oldest_membership"}
    membership = {
        "application": "m.call",
        "call_id": "",
        "scope": "m.room",
        "device_id": "A",
        "expires": 14_400_000,
        "focus_active": oldest,
        "foci_preferred": [{"type": "livekit", "livekit_service_url": ELSEWHERE}],
    }
    state = [
        ("m.room.create", "", "@us:x", {"room_version": "10"}),
        ("m.room.member", "@us:x", "@us:x", {"membership": "join"}),
        ("m.room.member", "@a:x", "@a:x", {"membership": "join"}),
        ("org.matrix.msc3401.call.member", "_@a:x_A_m.call", "@a:x", membership),
    ]
    now = int(time.time() * 1000)
    events = [
        {"type": t, "state_key": k, "sender": s, "content": c, "event_id": f"${i}", "origin_server_ts": now}
        for i, (t, k, s, c) in enumerate(state)
    ]
    session.client.feed(state={"room_id": ROOM, "events": events, "complete": True})
    return session


def test_a_session_that_is_not_joined() -> None:
    async def main() -> None:
        session = silent()
        async with session.client:
            with pytest.raises(matrixrtc.InvalidStateError, match="not joined"):
                await livekit.connect(session)

    asyncio.run(main())


def test_an_sfu_that_is_not_entered_in_time() -> None:
    async def main() -> None:
        session = silent()
        async with session.client:
            session.join(foci_active={"focus_selection": "oldest_membership"})
            with pytest.raises(TimeoutError):
                await livekit.connect(session, timeout=0.01)
            assert session.info().joined, "it stays joined"

    asyncio.run(main())


@pytest.mark.parametrize("end", [Session.leave_soon, Session.close])
def test_a_session_that_ends_before_an_sfu_is_entered(end: Any) -> None:
    async def main() -> None:
        session = silent()
        async with session.client:
            session.join(foci_active={"focus_selection": "oldest_membership"})
            connecting = asyncio.create_task(livekit.connect(session))
            await asyncio.sleep(0)
            end(session)
            with pytest.raises(matrixrtc.InvalidStateError, match="left before"):
                await asyncio.wait_for(connecting, 60)

    asyncio.run(main())


def test_a_session_that_cannot_join_says_why() -> None:
    async def main() -> None:
        session = silent()
        refused = {"errcode": "M_UNKNOWN_TOKEN", "error": "no such token"}
        session.client.on("request", lambda event: session.client.respond(event.data["id"], 401, {}, refused))
        async with session.client:
            session.join([matrixrtc.Transport.livekit(ELSEWHERE)])
            with pytest.raises(matrixrtc.InvalidStateError, match=r"left before .*no such token"):
                await livekit.connect(session, timeout=60)

    asyncio.run(main())


def test_why_not_to_publish_where_we_should_is_told() -> None:
    async def main() -> None:
        session = silent(sfu_trust="homeserver")
        async with session.client:
            failed = asyncio.create_task(session.wait_for("sfu_failed", 60))
            await asyncio.sleep(0)
            session.join([], foci_active={"focus_selection": "oldest_membership"})
            connecting = asyncio.create_task(livekit.connect(session))
            told = (await failed).sfu_failed
            assert (told.service_url, told.reason) == (ELSEWHERE, "untrusted")
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(connecting, 60)

    asyncio.run(main())
