"""Calls on a homeserver."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from conftest import CALL_MEMBER, DELAY_MS, SHORT_DELAY_MS, SOURCE, TOP, Account

from matrixrtc import Client, Event, InvalidHandleError, Session, Transport

Pair = tuple[Account, Account, str]
SFU = Transport.livekit("https://sfu.example.org")
TIMEOUT = 60


async def seen(session: Session, *users: str) -> None:
    """Waits until these and no others are in the call. The getters are ahead of the events: those
    that tell of it may still come."""
    changes = session.events()
    while {m.user_id for m in session.memberships} != set(users):
        await asyncio.wait_for(anext(changes), TIMEOUT)


def test_two_clients_see_each_other_join_update_and_leave(pair: Pair) -> None:
    alice, bob, room_id = pair

    async def call() -> None:
        async with (
            Client(alice.url, access_token=alice.access_token) as a,
            Client(bob.url, user_id=bob.user_id, password=bob.password) as b,
        ):
            ours, theirs = a.session(room_id), b.session(room_id)
            changes = theirs.events()
            ours.join([SFU], call_intent="audio", delayed_leave_delay_ms=DELAY_MS)
            joined = await anext(e async for e in changes if e.name == "memberships_changed")
            (member,) = joined.memberships.joined
            assert (member.user_id, member.intent, member.transports[0].type) == (alice.user_id, "audio", "livekit")
            assert member.transports[0].livekit_service_url == "https://sfu.example.org"
            assert joined.memberships.count == 1
            assert (joined.room_id, joined.session) == (room_id, theirs)

            theirs.join([SFU], delayed_leave_delay_ms=DELAY_MS)
            await seen(ours, alice.user_id, bob.user_id)
            info = ours.info()
            assert info.joined and info.own_membership and info.own_membership.user_id == alice.user_id
            assert [c.member_count for c in a.sessions()] == [2]

            ours.update_intent("video")
            async for event in changes:
                if event.name == "memberships_changed" and event.memberships.updated:
                    assert [(u.before.intent, u.after.intent) for u in event.memberships.updated] == [
                        ("audio", "video")
                    ]
                    break
            assert await ours.leave(TIMEOUT) is True
            await seen(theirs, bob.user_id)
            assert await theirs.leave(TIMEOUT) is True
            await seen(ours)

    asyncio.run(asyncio.wait_for(call(), 4 * TIMEOUT))


def test_the_same_without_asyncio(pair: Pair) -> None:
    alice, bob, room_id = pair
    with Client(alice.url, access_token=alice.access_token) as a, Client(bob.url, access_token=bob.access_token) as b:
        ours, theirs = a.session(room_id), b.session(room_id)
        heard: list[Event] = []
        theirs.on("memberships_changed", heard.append)
        ours.join([SFU], delayed_leave_delay_ms=DELAY_MS)
        while not heard:
            assert b.next_event(TIMEOUT), "alice was not seen to join"
        assert [m.user_id for m in heard[0].memberships.joined] == [alice.user_id]
        assert [m.user_id for m in theirs.memberships] == [alice.user_id]
        while ours.info().status != "Connected":
            assert a.next_event(TIMEOUT), "alice did not connect"
        assert ours.leave_wait(TIMEOUT) is True
        assert ours.leave_wait(0) is True, "the outcome can be asked for again"
        while not heard[-1].memberships.left:
            assert b.next_event(TIMEOUT), "alice was not seen to leave"
        assert heard[-1].memberships.left[0].membership.user_id == alice.user_id
        assert theirs.memberships == []


def test_closing_a_client_leaves_the_call(pair: Pair) -> None:
    alice, bob, room_id = pair

    async def call() -> None:
        async with Client(bob.url, access_token=bob.access_token) as b:
            theirs = b.session(room_id)
            async with Client(alice.url, access_token=alice.access_token) as a:
                ours = a.session(room_id)
                left = ours.events()
                ours.join([SFU], delayed_leave_delay_ms=DELAY_MS)
                await seen(theirs, alice.user_id)
            assert [e.data["sent"] async for e in left if e.name == "left"] == [True]
            await seen(theirs)

    asyncio.run(asyncio.wait_for(call(), 4 * TIMEOUT))


def test_a_killed_process_is_seen_to_leave(pair: Pair) -> None:
    alice, bob, room_id = pair
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(SOURCE)!r})\n"
        "import matrixrtc\n"
        "c = matrixrtc.Client(sys.argv[1], access_token=sys.argv[2]); c.start()\n"
        f"c.session(sys.argv[3]).join([], delayed_leave_delay_ms={SHORT_DELAY_MS})\n"
        "while True: c.next_event()\n"
    )

    async def call() -> None:
        async with Client(bob.url, access_token=bob.access_token) as b:
            theirs = b.session(room_id)
            command = [sys.executable, "-c", script, alice.url, alice.access_token, room_id]
            with subprocess.Popen(command) as process:
                try:
                    await seen(theirs, alice.user_id)
                finally:
                    process.kill()
            await seen(theirs)

    asyncio.run(asyncio.wait_for(call(), 4 * TIMEOUT))


def test_a_wrong_token_is_told(homeserver: str) -> None:
    with Client(homeserver, access_token="wrong") as client:
        while True:
            event = client.next_event(TIMEOUT)
            assert event is not None
            if event.name == "sync_state" and event.data["state"] == "error":
                break
        assert event.data["error"]["errcode"] == "M_UNKNOWN_TOKEN"
        error = client.info().last_error
        assert error and error["status"] == "MRTC_ERR_HOMESERVER"


def test_a_client_may_be_closed_while_another_thread_waits(register: Callable[[], Account]) -> None:
    account = register()
    client = Client(account.url, access_token=account.access_token)
    client.start()
    waiting = threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.set()
            while True:
                client.next_event()
        except Exception as e:
            ended.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    client.close()
    thread.join(TIMEOUT)
    assert [type(e).__name__ for e in ended] == ["InvalidHandleError"]


def test_the_example_of_the_readme(pair: Pair) -> None:
    alice, bob, room_id = pair
    command = [sys.executable, str(TOP / "examples" / "join.py"), alice.url, alice.user_id, alice.password, room_id]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process,
        contextlib.ExitStack() as cleanup,
        Client(bob.url, access_token=bob.access_token) as b,
    ):
        cleanup.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == f"+ {alice.user_id}\n"
        theirs = b.session(room_id)
        theirs.join([SFU])
        assert process.stdout.readline() == f"+ {bob.user_id}\n"
        while theirs.info().status != "Connected":
            assert b.next_event(TIMEOUT)
        assert theirs.leave_wait(TIMEOUT)
        assert process.stdout.readline() == f"- {bob.user_id}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == -signal.SIGINT
        state = bob.request("GET", f"/_matrix/client/v3/rooms/{room_id}/state")
        left = [e["content"] for e in state if e["type"] == CALL_MEMBER and e["sender"] == alice.user_id]
        assert left == [{}], "Ctrl-C did not leave the call"


@pytest.mark.parametrize("reader", ["events", "wait_for"])
def test_events_need_no_context_manager(reader: str) -> None:
    async def call() -> None:
        client = Client.host_driven("@a:x", "D")
        session = client.session("!r:x")
        stream = session.events() if reader == "events" else None
        asyncio.get_running_loop().call_soon(session.join)
        if stream:
            assert (await anext(stream)).name == "join_state_changed"
        else:
            assert (await session.wait_for("join_state_changed", TIMEOUT)).data == {"joined": True}
            with pytest.raises(TimeoutError):
                await session.wait_for("nothing", 0.01)
        await client.aclose(0.1)
        assert [e async for e in client.events()] == []

    asyncio.run(call())


def test_two_loops_one_after_the_other() -> None:
    client = Client.host_driven("@a:x", "D")
    session = client.session("!r:x")

    async def first() -> None:
        session.on("join_state_changed", print)
        await asyncio.gather(session.wait_for("join_state_changed", TIMEOUT), asyncio.to_thread(session.join))

    async def second() -> None:
        waiting = asyncio.ensure_future(session.wait_for("own", TIMEOUT))
        await asyncio.sleep(0)
        assert session.emit("own", Event("own", {}))
        await waiting
        assert session.events() is not None

    asyncio.run(first())
    asyncio.run(second())
    client.close(0.1)


def test_whoever_waits_for_an_event_hears_that_there_will_be_none() -> None:
    async def main() -> None:
        client = Client.host_driven("@a:x", "D")
        session = client.session("!r:x")
        session.join([SFU])
        waiting = [
            asyncio.create_task(session.wait_for("left")),
            asyncio.create_task(session.fetch_sfu_token(timeout=None)),
            asyncio.create_task(client.wait_for("sync_state")),
        ]
        leaving = asyncio.create_task(session.leave())
        await asyncio.sleep(0)
        session.close()
        with pytest.raises(InvalidHandleError, match="the session is closed"):
            await session.wait_for("left")
        await client.aclose()
        for task in waiting:
            with pytest.raises(InvalidHandleError, match="is closed"):
                await task
        assert await leaving is False

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_asyncio_without_a_loop_is_told_what_there_is_instead() -> None:
    with Client.host_driven("@a:x", "D") as client, pytest.raises(RuntimeError, match="next_event"):
        client.session("!r:x").events()


def test_a_loop_that_runs_nested_in_a_listener_reads_on() -> None:
    """As in a notebook. What a loop calls for a descriptor it cannot call again before that returns."""

    async def main() -> None:
        entered: list[bool] = []
        async with Client.host_driven("@a:x", "D") as client:

            def nested(_: Event) -> None:
                reader, _ = asyncio.get_running_loop()._selector.get_key(client._fds[0]).data  # type: ignore[attr-defined]
                entered.append(reader._context.run(lambda: True))

            session = client.session("!r:x").on("join_state_changed", nested)
            session.join([SFU])
            await session.wait_for("status_changed", TIMEOUT)
        assert entered == [True]

    asyncio.run(main())
