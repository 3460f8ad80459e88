"""Media keys between the library and LiveKit, in every order: the session is one of the test, the SFU is real."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator

from livekit import rtc

from matrixrtc import SFU, Event, MediaKey, Membership, SFUToken
from matrixrtc.events import EventSource
from matrixrtc.livekit import Call, connect
from sfu_runner import SFU as Server
from voice import Ear, Stage, in_loop, more_packets, near, speaking, until


class Session(EventSource):
    """As much of a session as a call needs: one SFU, where everybody publishes."""

    def __init__(self, server: Server, room: str, identity: str, encrypted: bool = True) -> None:
        super().__init__()
        server.create_room(room)
        self.server, self.room, self.identity = server, room, identity
        self.keys_managed, self.joined, self.status = encrypted, True, "Connected"
        self.leave_delegated = False
        self.keys: dict[tuple[str, int], MediaKey] = {}
        self.connected: list[tuple[bool, str | None]] = []
        self.memberships: list[Membership] = []
        self.own_membership = None
        self.others: list[Server] = []  # where others publish

    def _watch(self) -> None:
        pass

    def info(self) -> Session:
        return self

    @property
    def sfus(self) -> list[SFU]:
        servers = [self.server, *self.others]
        return [SFU(service_url=s.service_url, publish=s is self.server, trusted=True) for s in servers]

    def move(self, server: Server) -> None:
        """Publishes elsewhere; somebody stays where we did."""
        server.create_room(self.room)
        self.server, self.others = server, [self.server]
        self._deliver(Event("sfus_changed", {}))

    def encryption_keys(self) -> list[MediaKey]:
        return list(self.keys.values())

    async def fetch_sfu_token(self, url: str, timeout: float | None) -> SFUToken:
        server = next(s for s in [self.server, *self.others] if s.service_url == url)
        jwt, expires = server.token(self.room, self.identity), int(time.time() * 1000) + 3600_000
        return SFUToken(
            service_url=url,
            url=server.url,
            jwt=jwt,
            identity=self.identity,
            room=self.room,
            expires_ts=expires,
            generation="state",
        )

    def sfu_connected(self, connected: bool, service_url: str, error: str | None = None) -> None:
        self.connected.append((connected, error))

    def tell_key(self, identity: str, index: int, key: bytes, in_use: bool = True) -> None:
        told = MediaKey(
            user_id=identity,
            device_id="D",
            member_id=identity,
            sfu_identity=identity,
            index=index,
            key=key,
            own=identity == self.identity,
            in_use=in_use,
            fingerprint="",
        )
        self.keys[identity, index] = told
        self._deliver(Event("encryption_key_changed", vars(told) | {"key": base64.b64encode(key).decode()}))


KEYS = [bytes([n]) * 16 for n in range(8)]


class Scene:
    """A speaker and a listener."""

    def __init__(self, speaker: Call, listener: Call) -> None:
        self.speaker, self.listener = speaker, listener
        self.ears: list[Ear] = []
        listener.on("track_subscribed", lambda track: self.ears.append(Ear(track)))

    def told(self, *who: str, index: int, key: bytes, in_use: bool = True) -> None:
        """The speaker's key, as it is told to both, or to one."""
        for session in (call.session for call in (self.speaker, self.listener)):
            if session.identity in who:
                session.tell_key("speaker", index, key, in_use)

    async def heard(self, what: str, tone: float = 440) -> None:
        """From now on."""
        for ear in self.ears:
            ear.forget()
        await until(lambda: any(near(ear.tone(), tone) for ear in self.ears), what)

    async def silent(self) -> None:
        await until(lambda: not any(ear.tone() for ear in self.ears), "end of what is on its way")
        await more_packets(self.listener.room, 30)
        for ear in self.ears:
            ear.forget()
        await more_packets(self.listener.room, 100)
        assert [ear.tone() for ear in self.ears] == [None] * len(self.ears)


@contextlib.asynccontextmanager
async def scene(stage: Stage, room: str, *, encrypted: bool = True) -> AsyncIterator[Scene]:
    """The speaker speaks with its key 0; the listener has none."""
    speaker = Session(stage.sfu, room, "speaker", encrypted)
    listener = Session(stage.sfu, room, "listener", encrypted)
    if encrypted:
        speaker.tell_key("speaker", 0, KEYS[0])
    async with await connect(listener) as hears, await connect(speaker) as speaks:
        both = Scene(speaks, hears)
        async with speaking(speaks, 440):
            yield both
        for ear in both.ears:
            await ear.close()


@in_loop
async def test_a_participant_before_its_key(stage: Stage) -> None:
    async with scene(stage, "participant first") as both:
        await until(lambda: both.ears, "track")
        await both.silent()
        both.told("listener", index=0, key=KEYS[0])
        await both.heard("tone")


@in_loop
async def test_a_key_before_its_participant(stage: Stage) -> None:
    session = Session(stage.sfu, "key first", "listener")
    session.tell_key("speaker", 0, KEYS[0])  # even before the room is entered
    async with await connect(session) as call:
        session.tell_key("speaker", 1, KEYS[1])
        ears: list[Ear] = []
        call.on("track_subscribed", lambda track: ears.append(Ear(track)))
        other = Session(stage.sfu, "key first", "speaker")
        other.tell_key("speaker", 1, KEYS[1])
        async with await connect(other) as speaks, speaking(speaks, 440):
            await until(lambda: ears and near(ears[0].tone(), 440), "tone")
        await ears[0].close()


@in_loop
async def test_two_keys_in_flight_and_the_end_of_the_ring(stage: Stage) -> None:
    async with scene(stage, "ring") as both:
        both.told("listener", index=0, key=KEYS[0])
        await both.heard("tone")
        for n, index in enumerate([254, 255, 0, 1], 1):
            both.told("speaker", "listener", index=index, key=KEYS[n], in_use=False)
            await both.heard(f"tone while key {index} waits")
            both.told("speaker", index=index, key=KEYS[n])
            await both.heard(f"tone with key {index}")
        both.told("listener", index=1, key=KEYS[7])
        await both.silent()


@in_loop
async def test_a_new_track_has_the_key_that_is_in_use(stage: Stage) -> None:
    async with scene(stage, "new track") as both:
        both.told("listener", index=0, key=KEYS[0])
        both.told("speaker", "listener", index=3, key=KEYS[3])
        async with speaking(both.speaker, 660):
            await both.heard("second tone", 660)
            await both.heard("first tone")


@in_loop
async def test_messages_are_encrypted_with_our_own_key(stage: Stage) -> None:
    async with scene(stage, "messages") as both:
        both.told("speaker", "listener", index=3, key=KEYS[3])
        both.speaker.session.tell_key("listener", 7, KEYS[7])  # the SDK would use the index that was set last
        heard: list[bytes] = []
        both.listener.on("data_received", lambda packet: heard.append(packet.data))
        await both.heard("tone")
        await both.speaker.room.local_participant.publish_data(b"hello")
        await until(lambda: heard == [b"hello"], "message")


@in_loop
async def test_the_sdk_reconnects(stage: Stage) -> None:
    async with scene(stage, "reconnects") as both:
        for index in 0, 3:
            both.told("speaker", "listener", index=index, key=KEYS[index])
        await both.heard("tone")
        for call in both.speaker, both.listener:
            reconnected = asyncio.Event()
            call.on("reconnected", reconnected.set)
            await call.room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
            await asyncio.wait_for(reconnected.wait(), 120)
            await both.heard("tone after a reconnection")


@in_loop
async def test_a_room_that_becomes_encrypted(stage: Stage) -> None:
    async with scene(stage, "becomes encrypted", encrypted=False) as both:
        await both.heard("tone in clear")
        for call in both.speaker, both.listener:
            call.session.keys_managed = True
        both.told("speaker", "listener", index=0, key=KEYS[0])
        await until(lambda: (False, "the call is encrypted now") in both.speaker.session.connected, "reconnection")
        await both.heard("tone")
        both.told("listener", index=0, key=KEYS[7])
        await both.silent()


@in_loop
async def test_what_is_not_encrypted_is_not_heard_in_an_encrypted_call(stage: Stage) -> None:
    listener = Session(stage.sfu, "in clear", "listener")
    async with await connect(listener) as hears:
        heard: list[rtc.Track] = []
        refused: list[tuple[str, str]] = []
        hears.on("track_subscribed", heard.append)
        hears.on("track_subscription_failed", lambda who, sid, why: refused.append((who.identity, why)))
        async with await connect(Session(stage.sfu, "in clear", "speaker", encrypted=False)) as speaks:
            async with speaking(speaks, 440):
                await until(lambda: refused, "refusal")
                assert refused == [("speaker", "not encrypted, in an encrypted call")]
                (of_speaker,) = hears.room.remote_participants.values()
                await until(lambda: all(not p.subscribed for p in of_speaker.track_publications.values()), "end")
                assert not heard
