"""A call whose SFU, SDK, listeners or client fail, or that is closed at a bad moment. The session is one of the test,
the SFU is real."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import pytest
from livekit import rtc

from matrixrtc import ClientFailedError
from matrixrtc.livekit import connect
from sfu_runner import running_sfu
from test_voice_keys import KEYS, Session, scene
from voice import Ear, Stage, in_loop, near, speaking, until

# Long beside what it is for, and short beside what the SDK waits for on its own.
SOON = 20


def a_track() -> rtc.LocalTrack:
    return rtc.LocalAudioTrack.create_audio_track("track", rtc.AudioSource(48000, 1))


@in_loop
async def test_a_room_that_goes_while_a_track_is_published(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK answers a request of a room that is gone never, or with an error."""
    real, asked = rtc.LocalParticipant.publish_track, asyncio.Event()

    async def never(*args: Any) -> rtc.LocalTrackPublication:
        monkeypatch.setattr(rtc.LocalParticipant, "publish_track", real)
        asked.set()
        return await asyncio.Future()

    monkeypatch.setattr(rtc.LocalParticipant, "publish_track", never)
    session = Session(stage.sfu, "goes", "us", encrypted=False)
    async with await connect(session) as call:
        publishing = asyncio.create_task(call.publish_track(a_track()))
        await asyncio.wait_for(asked.wait(), 120)
        stage.sfu.throw_out("goes", "us")
        await asyncio.wait_for(publishing, 120)
        await until(lambda: call.room and call.room.local_participant.track_publications, "track in the next room")
    assert [connected for connected, _ in session.connected] == [True, False, True, False]


@in_loop
async def test_an_sdk_that_fails_to_publish(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rtc.LocalParticipant.publish_track

    async def fails(*args: Any) -> rtc.LocalTrackPublication:
        monkeypatch.setattr(rtc.LocalParticipant, "publish_track", real)
        raise RuntimeError("no answer")

    monkeypatch.setattr(rtc.LocalParticipant, "publish_track", fails)
    session = Session(stage.sfu, "fails", "us", encrypted=False)
    async with await connect(session) as call:
        await call.publish_track(a_track())
        await until(lambda: call.room and call.room.local_participant.track_publications, "track in the next room")
        assert session.connected == [(True, None), (False, None), (False, "no answer"), (True, None)]


@in_loop
async def test_a_track_is_withdrawn_after_a_reconnection(stage: Stage) -> None:
    """In which the SDK has given it another sid."""
    async with scene(stage, "withdrawn", encrypted=False) as both:
        track = a_track()
        await both.speaker.publish_track(track)
        reconnected = asyncio.Event()
        both.speaker.on("reconnected", reconnected.set)

        def published() -> int:
            return sum(len(p.track_publications) for p in both.listener.room.remote_participants.values())

        await until(lambda: published() == 2, "tracks")
        await both.speaker.room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
        await asyncio.wait_for(reconnected.wait(), 120)
        await until(lambda: published() == 2, "tracks after a reconnection")
        await both.speaker.unpublish_track(track)
        await until(lambda: published() == 1, "end of the track")
        await both.heard("tone")


@in_loop
async def test_media_moves_and_somebody_stays(stage: Stage, tmp_path: pathlib.Path) -> None:
    """What is published moves as it is, there and back; both rooms go on."""
    with running_sfu(tmp_path / "sfu") as other:
        other.livekit.start()
        async with scene(stage, "moves") as both:
            both.told("listener", index=0, key=KEYS[0])
            await both.heard("tone")
            elsewhere = Session(other, "moves", "listener")
            elsewhere.tell_key("speaker", 0, KEYS[0])
            async with await connect(elsewhere) as there:
                ears: list[Ear] = []
                there.on("track_subscribed", lambda track: ears.append(Ear(track)))
                both.speaker.session.move(other)
                await until(lambda: ears and near(ears[0].tone(), 440), "tone at the other SFU")
                (of_speaker,) = both.listener.room.remote_participants.values()
                await until(lambda: not of_speaker.track_publications, "end at the first")
                both.speaker.session.move(stage.sfu)
                await both.heard("tone back at the first")
                await until(lambda: not there.room.remote_participants["speaker"].track_publications, "end")
                for ear in ears:
                    await ear.close()


@in_loop
async def test_a_track_is_at_one_place_at_a_time(
    stage: Stage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK mixes up a track that is published here before it is gone there."""
    asked, go = asyncio.Event(), asyncio.Event()
    unpublish = rtc.LocalParticipant.unpublish_track

    async def slow(*args: Any) -> None:
        asked.set()
        await go.wait()
        await unpublish(*args)

    monkeypatch.setattr(rtc.LocalParticipant, "unpublish_track", slow)
    with running_sfu(tmp_path / "sfu") as other:
        other.livekit.start()
        session = Session(stage.sfu, "one place", "us", encrypted=False)
        async with await connect(session) as call:
            track = a_track()
            await call.publish_track(track)
            session.move(other)
            await until(lambda: asked.is_set() and len(call.rooms) == 2, "both rooms")
            publishing = asyncio.create_task(call.publish_track(track))
            for _ in range(10):
                await asyncio.sleep(0)
            assert call.room and not call.room.local_participant.track_publications and not publishing.done()
            go.set()
            await asyncio.wait_for(publishing, 120)
            assert call.room.local_participant.track_publications


@in_loop
async def test_closed_while_it_connects(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK cannot be told to stop: nobody waits for it, and what it still enters is left."""
    real, asked, go = rtc.Room.connect, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> None:
        asked.set()
        await go.wait()
        await real(*args)

    monkeypatch.setattr(rtc.Room, "connect", slow)
    session = Session(stage.sfu, "slow", "us")
    connecting = asyncio.create_task(connect(session))
    await asyncio.wait_for(asked.wait(), 120)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(connecting, SOON)
    assert session.connected == [(False, None)]
    entered: list[rtc.Room] = []
    go.set()
    monkeypatch.setattr(rtc.Room, "disconnect", _noting(rtc.Room.disconnect, entered))
    await until(lambda: entered, "end of the room")
    await until(lambda: "us" not in stage.sfu.participants("slow"), "end on the SFU")


def _noting(real: Any, rooms: list[rtc.Room]) -> Any:
    async def disconnect(room: rtc.Room) -> None:
        assert room.isconnected()
        await real(room)
        rooms.append(room)

    return disconnect


@in_loop
async def test_listeners_that_fail(stage: Stage) -> None:
    """The SDK has a TypeError fall upon whoever emits."""

    def wrong(*args: object) -> None:
        raise TypeError("a bug of the application")

    session = Session(stage.sfu, "listeners", "us", encrypted=False)
    async with asyncio.timeout(120), await connect(session) as call:
        for waiting in "reconnecting", "reconnected":  # for the first listener
            call.emit(waiting)
        later, came = asyncio.Event(), asyncio.Event()
        for event in "reconnecting", "participant_connected", "local_track_published", "disconnected":
            call.on(event, wrong)
        call.on("reconnected", later.set)
        call.on("participant_active", came.set)
        await later.wait()
        async with speaking(call, 440), await connect(Session(stage.sfu, "listeners", "other", encrypted=False)):
            await came.wait()
    assert session.connected == [(True, None), (False, None)]


@in_loop
async def test_a_client_that_fails(stage: Stage) -> None:
    session = Session(stage.sfu, "client", "us", encrypted=False)
    call = await connect(session)

    async def failed(*args: Any, **kwargs: Any) -> None:
        raise ClientFailedError({"message": "a bug of the library"})

    session.fetch_sfu_token = failed  # type: ignore[method-assign]
    stage.sfu.throw_out("client", "us")
    async with asyncio.timeout(120):
        with pytest.raises(ClientFailedError):
            await call.wait_closed()
        with pytest.raises(ClientFailedError):
            await connect(session)
