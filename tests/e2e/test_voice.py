"""Voices in calls, on Synapse and LiveKit with the authorisation service between them."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Iterator

import pytest
from livekit import rtc
from livekit.rtc._proto.e2ee_pb2 import PBKDF2

import matrixrtc
from matrixrtc import livekit
from sfu_runner import SFU, running_sfu
from synapse_runner import SERVER_NAME, Account
from voice import (
    Bot,
    NodePeer,
    Spy,
    Stage,
    elsewhere,
    forget,
    hear_each_other,
    identity_of,
    in_loop,
    more_packets,
    speaking,
    until,
)


def device_of(account: Account) -> tuple[str, str]:
    return account.user_id, account.device_id


@in_loop
async def test_two_hear_each_other_encrypted(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a, Bot(bob, room, 660) as b:
        await until(hear_each_other(a, b), "tones")
        assert a.session.info().keys_managed and a.room.e2ee_manager.enabled
        (of_bob,) = a.call.remote_participants
        member = a.call.member_of(of_bob)
        assert member is not None and member.user_id == bob.user_id and a.call.participant_of(member) is of_bob
        assert a.call.member_of(a.room.local_participant) == a.session.info().own_membership


@in_loop
async def test_python_and_node(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440, use_key_delay_ms=1000) as a:
        async with NodePeer.running(bob, room, 660, key_rotation_grace_ms=500, use_key_delay_ms=1000) as b:
            await until(lambda: a.hears_tone(bob, 660) and b.hears(a), "tones")
            async with Bot(stage.enter(room, "carol"), room, 880) as c:
                await until(lambda: a.session.participant_keys(*device_of(bob))[-1].index, "rotation by Node")
                await until(lambda: c.hears_tone(bob, 660) and b.hears(c), "tones of three")
                forget(a, c)
                await until(lambda: a.hears_tone(bob, 660) and c.hears_tone(bob, 660), "tones after the rotation")
            b.forget()
            stage.sfu.livekit.kill()
            await until(lambda: a.restarts, "loss of the connection")
            stage.sfu.livekit.start()
            forget(a)
            await until(lambda: a.hears_tone(bob, 660) and b.hears(a), "tones after the restart")
        assert b.left is True


@in_loop
async def test_a_room_without_encryption(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob", encrypted=False)
    async with Bot(alice, room, 440) as a, Bot(bob, room, 660) as b:
        await until(hear_each_other(a, b), "tones")
        assert not a.session.encryption_keys()


@in_loop
async def test_another_derivation_of_keys_hears_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of the livekit SDKs: the other tests can fail."""
    room, (alice, bob, eve) = stage.cast("alice", "bob", "eve")
    async with Bot(alice, room, 440) as a, Bot(bob, room, 660) as b:
        monkeypatch.setattr(livekit, "HKDF", PBKDF2)
        async with Bot(eve, room, 880) as e:
            await until(hear_each_other(a, b), "tones")
            await until(lambda: len(e.ears) == 2, "tracks")
            await more_packets(e.room, 200)
            assert e.session.participant_keys(*device_of(alice)), "it has the keys"
            assert {ear.tone() for ear in e.ears.values()} == {None}
            await more_packets(a.room, 200)
            assert not a.hears(e)
            await until(lambda: a.hears(b), "tone of who derives them as we do")


@in_loop
async def test_a_crash_is_seen_by_the_others(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room) as a:
        async with elsewhere(bob, room, 660) as process:
            await until(lambda: bob.user_id in a.members() and a.call.remote_participants, "bob")
            noticed = asyncio.Event()
            a.call.on("participant_disconnected", lambda p: noticed.set())
            process.kill()
            await asyncio.wait_for(noticed.wait(), 120)
            # Its own delayed leave is an hour away.
            await until(lambda: bob.user_id not in a.members(), "end of bob's membership", 5)


@in_loop
async def test_who_closes_the_media_stays_in_the_call(stage: Stage) -> None:
    """The service sends the leave that it holds when the SFU tells that its owner is gone: it is taken back before."""
    room, (alice,) = stage.cast("alice")
    async with Bot(alice, room, delegate_leave=True) as a:
        await until(lambda: a.session.info().leave_delegated, "delegation")
        lost: list[matrixrtc.Event] = []
        a.session.on("membership_lost", lost.append)
        await a.call.aclose()
        assert stage.sfu.service
        log, sends = stage.sfu.service.log, f"send the delayed leave of {a.identity}: "
        await until(lambda: sends in log.read_text(), "attempt of the service")
        assert f"{sends}404" in log.read_text()
        assert a.members() == {alice.user_id} and not lost


@in_loop
async def test_the_sfu_is_restarted(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a, Bot(bob, room, 660) as b:
        await until(hear_each_other(a, b), "tones")
        stage.sfu.livekit.kill()
        await until(lambda: a.restarts and b.restarts, "loss of the connection")
        stage.sfu.livekit.start()
        forget(a, b)
        await until(hear_each_other(a, b), "tones after the restart")
        assert a.members() == b.members() == {alice.user_id, bob.user_id}


@in_loop
async def test_a_third_joins_and_nothing_is_lost(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rotate, and whoever should hear a frame can decrypt it: one that cannot be silences its track for good."""
    strict = livekit._encryption()
    strict.key_provider_options.failure_tolerance = 0
    monkeypatch.setattr(livekit, "_encryption", lambda: strict)
    room, (alice, bob, carol) = stage.cast("alice", "bob", "carol")
    quick = {"key_rotation_grace_ms": 500, "use_key_delay_ms": 3000}
    async with Bot(alice, room, 440, **quick) as a, Bot(bob, room, 660, **quick) as b:
        await until(hear_each_other(a, b), "tones")
        await until(lambda: not a.changes_key and not b.changes_key, "keys in use")
        quiet = [await more_packets(bot.room, 150) for bot in (a, b)]
        before = a.key_index, b.key_index
        told = len(a.encryption), len(b.encryption)
        counts = [asyncio.create_task(more_packets(bot.room, 400)) for bot in (a, b)]
        async with Bot(carol, room, 880, **quick) as c:
            await until(lambda: a.key_index > before[0] and b.key_index > before[1], "rotations")
            await until(hear_each_other(a, b, c), "tones of three")
            rotating = [await count for count in counts]
            forget(a, b, c)
            await until(hear_each_other(a, b, c), "tones after the rotation")
            assert (a.key_index, b.key_index) == (before[0] + 1, before[1] + 1)
            assert "DECRYPTION_FAILED" not in {state for bot in (a, b, c) for _, state in bot.encryption}
            others = [a.encryption[told[0] :], b.encryption[told[1] :]]
            assert all(who == c.identity for told in others for who, _ in told), "alice and bob never missed a key"
            print(f"frames made up of 150 without, of 400 packets with a rotation: {quiet}, {rotating}")


@in_loop
async def test_who_left_cannot_listen_on(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a:
        async with Bot(bob, room) as b:
            await until(lambda: b.hears(a), "tone")
            known = b.session.participant_keys(*device_of(alice))
            spy = await Spy.enter(stage.sfu, a.room.name, known)
            await until(lambda: spy.tone(), "tone for the spy")
            index = a.key_index
        await until(lambda: a.key_index != index, "rotation")
        for key in known:  # by what it might have guessed as well
            spy.try_key(a.identity, key.key, a.key_index)
        await more_packets(spy.room, 50)  # what was on its way
        spy.forget()
        await more_packets(spy.room, 200)
        assert spy.tone() is None
        await spy.close()


@in_loop
async def test_an_sfu_that_speaks_itself_is_not_heard(stage: Stage) -> None:
    """It can do so in anybody's name, but not with their key."""
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a, NodePeer.running(bob, room, 660) as b:
        await until(lambda: a.hears_tone(bob, 660) and b.hears(a), "tones")
        refused: list[str] = []
        a.call.on("track_subscription_failed", lambda who, sid, why: refused.append(why))
        sfu = rtc.Room()
        await sfu.connect(stage.sfu.url, stage.sfu.token(a.room.name, "anybody"))
        async with speaking(sfu.local_participant, 880):
            await until(lambda: refused and b.refused, "refusals")
        await sfu.disconnect()
        assert refused == b.refused == ["not encrypted, in an encrypted call"]
        assert a.ears.keys() == {identity_of(bob)} and b.tones.keys() == {alice.user_id}


@in_loop
async def test_the_authorisation_service_is_down_at_join(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a:
        stage.sfu.service.kill()
        b = Bot(bob, room, 660)
        entering = asyncio.create_task(b.enter())
        try:
            await until(lambda: bob.user_id in a.members(), "bob's membership")
            await until(lambda: b.failures, "failure")
            assert b.failures[0].sfu_failed.reason == "unreachable"
            assert b.session.info().status == "Connected" and not entering.done()
            with pytest.raises(TimeoutError):
                await livekit.connect(b.session, timeout=0.5)
            assert b.session.info().joined
            stage.sfu.service.start()
            await entering
            await until(hear_each_other(a, b), "tones")
        finally:
            entering.cancel()
            await b.__aexit__()


@in_loop
async def test_a_user_who_may_not_create_rooms(stage: Stage, tmp_path: pathlib.Path) -> None:
    """Enters as soon as there is one. Nor may it hand over its leave, which stays ours."""
    room, (alice,) = stage.cast("alice")
    with running_sfu(tmp_path / "sfu") as sfu:
        sfu.start({SERVER_NAME: stage.synapse.url}, full_access="elsewhere.example")
        there = [{"type": "livekit", "livekit_service_url": sfu.service_url}]
        a = Bot(alice, room, 440, foci_preferred=there, delegate_leave=True)
        told: list[matrixrtc.Event] = []
        a.session.on("leave_delegated_changed", told.append)
        entering = asyncio.create_task(a.enter())
        try:
            reason = "no_such_room"
            await until(lambda: entering.done() or reason in [f.sfu_failed.reason for f in a.failures], reason)
            assert not entering.done() and a.members() == {alice.user_id}
            sfu.create_room((await a.session.fetch_sfu_token()).room)
            await asyncio.wait_for(entering, 120)
            await until(lambda: told, "refusal of the leave")
            assert told[0].data["delegated"] is False and "refuses to take it" in told[0].data["reason"]
            assert a.session.info().delay_id
        finally:
            entering.cancel()
            await a.__aexit__()


@pytest.fixture
def other_sfu(stage: Stage, tmp_path: pathlib.Path) -> Iterator[SFU]:
    with running_sfu(tmp_path / "sfu") as sfu:
        sfu.start({SERVER_NAME: stage.synapse.url})
        yield sfu


@in_loop
async def test_two_sfus(stage: Stage, other_sfu: SFU) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    here, there = ([{"type": "livekit", "livekit_service_url": s.service_url}] for s in (stage.sfu, other_sfu))
    async with Bot(alice, room, 440, foci_preferred=here) as a, Bot(bob, room, 660, foci_preferred=there) as b:
        await until(hear_each_other(a, b), "tones")
        assert a.call.rooms.keys() == b.call.rooms.keys() == {stage.sfu.service_url, other_sfu.service_url}
        for bot, other in (a, b), (b, a):
            (participant,) = bot.call.remote_participants
            assert bot.call.member_of(participant).user_id == other.account.user_id


@in_loop
async def test_two_sfus_and_node(stage: Stage, other_sfu: SFU) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    here, there = ([{"type": "livekit", "livekit_service_url": s.service_url}] for s in (stage.sfu, other_sfu))
    async with Bot(alice, room, 440, foci_preferred=here) as a:
        async with NodePeer.running(bob, room, 660, foci_preferred=there) as b:
            await until(lambda: a.hears_tone(bob, 660) and b.hears(a), "tones")
        assert b.left is True
        await until(lambda: a.call.rooms.keys() == {stage.sfu.service_url}, "end of the visit to bob's SFU")


@in_loop
async def test_the_transport_moves(stage: Stage, other_sfu: SFU) -> None:
    """With oldest_membership, when the oldest leaves."""
    room, (alice, bob, carol) = stage.cast("alice", "bob", "carol")
    here, there = ([{"type": "livekit", "livekit_service_url": s.service_url}] for s in (stage.sfu, other_sfu))
    oldest = {"foci_active": {"focus_selection": "oldest_membership"}}
    async with Bot(alice, room, foci_preferred=here, **oldest) as a:
        async with (
            Bot(bob, room, 440, foci_preferred=there, **oldest) as b,
            Bot(carol, room, 660, foci_preferred=there, **oldest) as c,
        ):
            await until(hear_each_other(b, c), "tones")
            assert b.call.rooms.keys() == {stage.sfu.service_url}
            await a.session.leave(120)
            await until(lambda: b.call.rooms.keys() == c.call.rooms.keys() == {other_sfu.service_url}, "move")
            forget(b, c)
            await until(hear_each_other(b, c), "tones at the other SFU")


@in_loop
async def test_either_side_may_be_closed(stage: Stage) -> None:
    room, (alice, bob) = stage.cast("alice", "bob")
    async with Bot(alice, room, 440) as a, Bot(bob, room, 660) as b:
        await until(hear_each_other(a, b), "tones")
        await b.call.aclose()
        assert b.session.info().joined and not b.call.rooms
        await until(lambda: not a.call.remote_participants, "bob's end on the SFU")
        b.use(await livekit.connect(b.session, timeout=180))
        await b.speak()
        forget(a, b)
        await until(hear_each_other(a, b), "tones again")
        a.session.leave_soon()
        await asyncio.wait_for(a.call.wait_closed(), 120)
        assert a.call.room is None and a.call.remote_participants == []
        with pytest.raises(matrixrtc.InvalidStateError):
            await livekit.connect(a.session)
        b.session.close()
        await asyncio.wait_for(b.call.wait_closed(), 120)
