"""Our participant and matrix-js-sdk in one call on a real Synapse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from conftest import js_peer, our_peer
from synapse import Account, Synapse

from matrixrtc import Client

Accounts = Callable[..., list[Account]]


def room_of(*accounts: Account) -> str:
    room_id = accounts[0].create_room()
    for other in accounts[1:]:
        other.join_room(room_id)
    return room_id


def connected(line: dict[str, object]) -> bool:
    return line["event"] == "status_changed" and line["status"] == "Connected"


def test_both_see_each_other_come_update_and_go(accounts: Accounts) -> None:
    alice, bob = accounts(2)
    room_id = room_of(alice, bob)
    js = js_peer(bob, room_id)
    ours = our_peer(alice, room_id)
    ours.until(connected)
    js.until_members({alice.user_id})
    js.tell("join")
    ours.until_members({alice.user_id, bob.user_id})
    js.until_members({alice.user_id, bob.user_id})
    ours.tell("intent video")
    js.until(
        lambda line: line["event"] == "members"
        and any(m["user"] == alice.user_id and m["intent"] == "video" for m in line["members"])
    )
    js.tell("leave")
    ours.until_members({alice.user_id})
    ours.tell("leave")
    assert ours.until(lambda line: line["event"] == "left")["sent"] is True
    js.until_members(set())
    assert ours.process.wait(30) == 0
    js.tell("exit")


def test_a_killed_process_is_seen_to_leave(accounts: Accounts) -> None:
    alice, bob = accounts(2)
    room_id = room_of(alice, bob)
    js = js_peer(bob, room_id)
    ours = our_peer(alice, room_id)
    ours.until(connected)
    js.until_members({alice.user_id})
    ours.kill()
    killed = time.monotonic()
    js.until_members(set(), timeout=10 + 5)
    print(f"gone for the others {time.monotonic() - killed:.1f} s after SIGKILL")
    js.tell("exit")


def test_a_stale_leave_does_not_remove_the_next_life(accounts: Accounts) -> None:
    alice, bob = accounts(2)
    room_id = room_of(alice, bob)
    first = our_peer(alice, room_id, delayed_leave_delay_ms=8000)
    first.until(connected)
    first.kill()
    second = our_peer(alice, room_id, delayed_leave_delay_ms=60000)
    second.until(connected)
    path = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
    waiting = alice.request("GET", path)["delayed_events"]
    assert len(waiting) == 1, "the leave of the first life is still scheduled"
    assert alice.call_members(room_id)
    second.tell("leave")
    second.until(lambda line: line["event"] == "left")


@pytest.fixture
def own_synapse() -> Iterator[Synapse]:
    server = Synapse()
    yield server
    server.stop()


def test_a_restart_of_the_server_within_the_delay_loses_nobody(own_synapse: Synapse, accounts: Accounts) -> None:
    alice, bob = accounts(2, own_synapse)
    room_id = room_of(alice, bob)
    peers = [our_peer(a, room_id, delayed_leave_delay_ms=60000) for a in (alice, bob)]
    for p in peers:
        p.until_members({alice.user_id, bob.user_id})
    before = {e["event_id"] for e in alice.call_members(room_id)}
    own_synapse.stop()
    peers[0].until(lambda line: line["event"] == "sync_state" and line["state"] == "reconnecting")
    own_synapse.start()
    for p in peers:
        p.until(lambda line: line["event"] == "sync_state" and line["state"] == "syncing", timeout=60)
    assert {e["event_id"] for e in alice.call_members(room_id)} == before
    for p in peers:
        p.tell("leave")
        assert p.until(lambda line: line["event"] == "left")["sent"] is True


def test_an_outage_beyond_the_delay_is_noticed_and_mended(own_synapse: Synapse, accounts: Accounts) -> None:
    alice, bob = accounts(2, own_synapse)
    room_id = room_of(alice, bob)
    ours = our_peer(alice, room_id, delayed_leave_delay_ms=3000)
    ours.until(connected)
    own_synapse.stop()
    ours.until(lambda line: line["event"] == "probably_left" and line["probably_left"] is True)
    own_synapse.start()
    ours.until(lambda line: line["event"] == "membership_lost", timeout=60)
    ours.until(lambda line: line["event"] == "rejoined", timeout=60)
    assert [e["sender"] for e in bob.call_members(room_id)] == [alice.user_id]
    ours.tell("leave")
    assert ours.until(lambda line: line["event"] == "left")["sent"] is True
    assert bob.call_members(room_id) == []


def test_the_default_rate_limits_of_the_server_are_lived_with() -> None:
    server = Synapse(default_limits=True)
    try:
        alice = server.register("alice")
        room_id = alice.create_room()
        ours = our_peer(alice, room_id)
        ours.until(connected, timeout=60)
        assert alice.call_members(room_id)
        ours.tell("leave")
        assert ours.until(lambda line: line["event"] == "left", timeout=60)["sent"] is True
        assert alice.call_members(room_id) == []
    finally:
        server.stop()


def test_a_wrong_token_is_a_clear_error_and_no_hammering(synapse: Synapse) -> None:
    with Client(synapse.url, access_token="no such token") as client:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            event = client.next_event(5)
            if event and event.name == "sync_state" and event.data["state"] == "error":
                assert event.data["error"]["errcode"] == "M_UNKNOWN_TOKEN"
                assert event.data["error"]["status"] == "MRTC_ERR_HOMESERVER"
                assert client.next_event(2) is None, "it goes on trying"
                return
    raise AssertionError("no error was told")


