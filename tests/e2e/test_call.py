"""A call of our managed client and matrix-js-sdk on Synapse: they see each other come, change and go."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from jspeer import JsPeer
from matrixrtc import Client
from ours import TRANSPORT, Told, client_of, joined_elsewhere, wait_until
from synapse_runner import Account, Synapse, request

Peers = Callable[[Account], JsPeer]


def who(account: Account) -> tuple[str, str]:
    return account.user_id, account.device_id


def test_two_js_peers_see_each_other(synapse: Synapse, js_peer: Peers) -> None:
    """The peer itself, so that its failures are not taken for ours."""
    a, b = js_peer(synapse.register("js")), js_peer(synapse.register("js"))
    room = a.account.create_room()
    for peer in (a, b):
        peer.watch(room)
        peer.join(room)
    a.sees(*who(b.account))
    b.sees(*who(a.account))
    assert a.leave(room)
    b.sees_gone(*who(a.account))


def test_join_update_leave(synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    with client_of(ours) as client:
        session = client.session(room)

        def theirs() -> Any:
            return next((m for m in session.memberships if (m.user_id, m.device_id) == who(peer.account)), None)

        session.join([TRANSPORT], call_intent="audio")
        peer.sees(*who(ours), intent="audio")
        wait_until(client, lambda: session.info().status == "Connected", what="our join")

        peer.join(room, intent="video")
        wait_until(client, theirs, what="join of js-sdk")
        assert theirs().intent == "video"
        peer.sees(*who(peer.account))
        assert {(m.user_id, m.device_id) for m in session.memberships} == set(peer.now())
        assert [m.user_id for m in session.memberships] == [ours.user_id, peer.account.user_id]

        session.update_intent("video")
        peer.sees(*who(ours), intent="video")
        peer.update_intent(room, "audio")
        wait_until(client, lambda: theirs().intent == "audio", what="intent of js-sdk")

        assert peer.leave(room)
        wait_until(client, lambda: theirs() is None, what="leave of js-sdk")
        peer.join(room)
        wait_until(client, theirs, what="second join of js-sdk")

        session.leave_soon()
        left = Told(session, "left")
        wait_until(client, lambda: left["left"], what="our leave")
        assert left["left"][0].data["sent"]
        peer.sees_gone(*who(ours))
        wait_until(client, lambda: not ours.delayed_events(), what="end of our delayed leave")


def test_watching_without_joining(synapse: Synapse, js_peer: Peers) -> None:
    """A session that is only open tells who comes and goes, also when it was opened before the first sync."""
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    with client_of(ours) as client:
        session = client.session(room)
        told = Told(session, "memberships_changed")
        failed = Told(client, "client_failed")
        wait_until(client, lambda: failed["client_failed"] or client.info().sync_state == "syncing", what="sync")
        assert not failed["client_failed"], failed["client_failed"]
        peer.join(room)
        changes = told["memberships_changed"]
        wait_until(client, lambda: changes, what="join of js-sdk")
        assert len(session.memberships) == 1
        assert peer.leave(room)
        wait_until(client, lambda: changes[-1].data["left"], what="leave of js-sdk")
        assert not session.memberships
        assert [(len(e.data["joined"]), len(e.data["left"])) for e in changes] == [(1, 0), (0, 1)]
        assert not session.info().joined
        peer.sees_gone(*who(peer.account))


def test_a_killed_process_is_seen_to_leave(synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    process = joined_elsewhere(ours, room, delayed_leave_delay_ms=8_000, delayed_leave_restart_ms=3_000)
    peer.sees(*who(ours))
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    gone = peer.sees_gone(*who(ours), timeout=8 + 5)
    assert gone - killed <= 8 + 5


def test_a_leave_stale_from_a_killed_life_spares_the_new_one(synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    process = joined_elsewhere(ours, room, delayed_leave_delay_ms=12_000, delayed_leave_restart_ms=4_000)
    peer.sees(*who(ours))
    process.send_signal(signal.SIGKILL)
    process.wait()
    (stale,) = ours.delayed_events()
    with client_of(ours) as client:
        session = client.session(room)
        session.join([TRANSPORT], call_intent="second life", delayed_leave_delay_ms=60_000)
        peer.sees(*who(ours), intent="second life")
        wait_until(client, lambda: session.info().status == "Connected", what="our join")
        assert stale["delay_id"] not in {d["delay_id"] for d in ours.delayed_events()}
        peer.keeps_seeing(*who(ours), seconds=13)
        assert session.info().joined


def test_rate_limits_as_synapse_has_them(limited_synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = limited_synapse.register("ours"), js_peer(limited_synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    with client_of(ours) as client:
        session = client.session(room)
        session.join([TRANSPORT], call_intent="audio")
        peer.sees(*who(ours), timeout=120, intent="audio")
        # One by one, and more than Synapse lets pass at once (burst 10, then one in five seconds).
        for n in range(60):
            session.update_intent(f"intent {n}")
            peer.sees(*who(ours), timeout=120, intent=f"intent {n}")
            if n >= 12 and re.search(r" 429 .*PUT .*call\.member", limited_synapse.log()):
                break
        else:
            raise AssertionError("no write of ours was limited")
        assert session.info().joined
        session.leave_soon()
        left = Told(session, "left")
        wait_until(client, lambda: left["left"], 120, "our leave")
        assert left["left"][0].data["sent"]
        peer.sees_gone(*who(ours), timeout=120)


def test_wrong_token(synapse: Synapse) -> None:
    """A clear error, once, and no hammering."""
    name = f"wrong-token-{time.monotonic_ns()}"
    with Client(synapse.url, access_token="syt_wrong", user_agent=name) as client:
        told = Told(client, "sync_state")
        wait_until(client, lambda: any(e.data["state"] == "error" for e in told["sync_state"]), what="error")
        error = next(e for e in told["sync_state"] if e.data["state"] == "error").data["error"]
        assert error["status"] == "MRTC_ERR_HOMESERVER"
        assert error["errcode"] == "M_UNKNOWN_TOKEN"
        assert error["http_status"] == 401
        # What was answered before this was is in the log when this is.
        fence = f"/_matrix/client/versions?after={name}"
        request(synapse.url, "GET", fence)
        wait_until(client, lambda: fence in synapse.log(), what="end of the requests in the log")
        asked = synapse.log().count(f'"{name}"')
        assert asked > 0
        with pytest.raises(TimeoutError):
            wait_until(client, lambda: synapse.log().count(f'"{name}"') > asked, 3, "further request")


def test_wrong_password(synapse: Synapse) -> None:
    account = synapse.register("ours")
    with Client(synapse.url, user_id=account.user_id, password="wrong") as client:
        told = Told(client, "sync_state")
        wait_until(client, lambda: any(e.data["state"] == "error" for e in told["sync_state"]), what="error")
        error = next(e for e in told["sync_state"] if e.data["state"] == "error").data["error"]
        assert (error["status"], error["errcode"]) == ("MRTC_ERR_HOMESERVER", "M_FORBIDDEN")


def test_login_with_password(synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    room = ours.create_room()
    peer.watch(room)
    with Client(synapse.url, user_id=ours.user_id, password=ours.password, device_id="BOT") as client:
        session = client.session(room)
        session.join([TRANSPORT])
        peer.sees(ours.user_id, "BOT")
        assert client.info().device_id == "BOT"
    peer.sees_gone(ours.user_id, "BOT")
