"""Bots that speak a tone and say which tones they hear, for the voice tests.

`python voice.py` is one in a process of its own, to be killed: it takes its settings as JSON on stdin, prints "in" when
it is in the call and its leave is handed over, and stays.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python" / "src"))

import numpy as np
from livekit import rtc

from matrixrtc import Client, Event, MediaKey
from matrixrtc.livekit import Call, connect
from matrixrtc.livekit import _encryption as encryption
from sfu_runner import SFU, running_sfu
from synapse_runner import SERVER_NAME, Account, Synapse, running

RATE = 48000
BLOCK = RATE // 100
WINDOW = RATE // 4  # what a tone is recognised by
SILENT = 300.0  # of 32767, in amplitude


@dataclasses.dataclass
class Stage:
    """A homeserver and its SFU."""

    synapse: Synapse
    sfu: SFU

    def enter(self, room_id: str, name: str) -> Account:
        """One more account that is in a room."""
        account = self.synapse.register(name)
        account.join_room(room_id)
        return account

    def cast(self, *names: str, encrypted: bool = True) -> tuple[str, list[Account]]:
        """A room, and accounts that are in it."""
        accounts = [self.synapse.register(name) for name in names]
        room_id = accounts[0].create_room(encrypted=encrypted)
        for account in accounts[1:]:
            account.join_room(room_id)
        return room_id, accounts


@contextlib.contextmanager
def staged(folder: pathlib.Path) -> Iterator[Stage]:
    with running_sfu(folder / "sfu") as sfu, running(folder / "hs", sfus=[sfu.service_url]) as synapse:
        sfu.start({SERVER_NAME: synapse.url})
        yield Stage(synapse, sfu)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], Any], what: str, timeout: float = 120) -> None:
    """Looks at a condition until it holds."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"no {what} within {timeout} s") from None


def tone_of(samples: np.ndarray) -> float | None:
    """The frequency that is loudest, in Hz; None for silence."""
    if len(samples) < WINDOW or np.abs(samples).max() < SILENT:
        return None
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE / len(samples))


@dataclasses.dataclass(frozen=True)
class Received:
    """What came of the tracks of a room: packets, and frames of 20 ms that had to be made up."""

    packets: int = 0
    concealed: float = 0

    def __sub__(self, other: Received) -> Received:
        return Received(self.packets - other.packets, self.concealed - other.concealed)


async def received(room: rtc.Room) -> Received:
    stats = await room.get_rtc_stats()
    # One peer connection may do both.
    both = [*stats.publisher_stats, *stats.subscriber_stats]
    inbound = {s.inbound_rtp.rtc.id: s.inbound_rtp for s in both if s.WhichOneof("stats") == "inbound_rtp"}.values()
    concealed = sum(i.inbound.concealed_samples for i in inbound)
    return Received(sum(i.received.packets_received for i in inbound), concealed / (RATE / 50))


async def more_packets(room: rtc.Room, count: int) -> Received:
    """Waits until that many have come; what came with them."""
    before = await received(room)
    async with asyncio.timeout(120):
        while (now := await received(room)).packets - before.packets < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return now - before


def near(heard: float | None, tone: float) -> bool:
    return heard is not None and abs(heard - tone) < 8


class Ear:
    """What came last of one audio track."""

    def __init__(self, track: rtc.Track) -> None:
        self._last: collections.deque[np.ndarray] = collections.deque(maxlen=WINDOW // BLOCK)
        self._stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self._stream:
            self._last.append(np.frombuffer(event.frame.data, dtype=np.int16))

    def tone(self) -> float | None:
        return tone_of(np.concatenate(self._last)) if self._last else None

    def forget(self) -> None:
        self._last.clear()

    async def close(self) -> None:
        self._task.cancel()
        await self._stream.aclose()


@contextlib.asynccontextmanager
async def speaking(where: Call | rtc.LocalParticipant, tone: float) -> AsyncIterator[None]:
    """Has a tone published, for as long as the block lasts."""
    source = rtc.AudioSource(RATE, 1, queue_size_ms=100)

    async def hum() -> None:
        at = 0
        while True:
            wave = 10000 * np.sin(2 * np.pi * tone * (np.arange(BLOCK) + at) / RATE)
            at += BLOCK
            await source.capture_frame(rtc.AudioFrame(wave.astype(np.int16).tobytes(), RATE, 1, BLOCK))

    task = asyncio.create_task(hum())
    try:
        await where.publish_track(rtc.LocalAudioTrack.create_audio_track("tone", source))
        yield
    finally:
        task.cancel()


def identity_of(account: Account) -> str:
    """On the SFU where it publishes."""
    return f"{account.user_id}:{account.device_id}"


class Bot:
    """A participant that speaks a tone and hears, within `async with`."""

    def __init__(self, account: Account, room_id: str, tone: float | None = None, **settings: Any) -> None:
        self.account, self.tone = account, tone
        self.client = Client(
            account.url,
            user_id=account.user_id,
            device_id=account.device_id,
            access_token=account.access_token,
        )
        self.session = self.client.session(room_id)
        self.settings = settings
        self.failures: list[Event] = []
        self.encryption: list[tuple[str, str]] = []  # who, and the state that a frame cryptor told
        self.restarts = 0
        self.ears: dict[str, Ear] = {}  # by identity, the latest track of each
        self._ears: list[Ear] = []
        self.call: Call | None = None
        self._speaking = contextlib.AsyncExitStack()

    @property
    def identity(self) -> str:
        return identity_of(self.account)

    async def __aenter__(self) -> Self:
        try:
            await self.enter()
        except BaseException:
            await self.client.aclose()
            raise
        return self

    async def enter(self) -> None:
        self.client.on("sfu_failed", self.failures.append)
        self.client._watch()
        self.client.start()
        self.session.join(**self.settings)
        self.use(await connect(self.session, timeout=180))
        await self.speak()

    @property
    def room(self) -> rtc.Room:
        assert self.call and self.call.room
        return self.call.room

    @property
    def key_index(self) -> int | None:
        """The index of the key that we encrypt with."""
        return next((k.index for k in self.session.encryption_keys() if k.own and k.in_use), None)

    @property
    def changes_key(self) -> bool:
        """Whether there is a key that we shall encrypt with, and do not yet."""
        return max(k.index for k in self.session.encryption_keys() if k.own) != self.key_index

    def use(self, call: Call) -> None:
        self.call = call
        call.on("track_subscribed", self._subscribed)
        call.on("reconnecting", self._reconnecting)
        call.on("e2ee_state_changed", self._encryption)

    def members(self) -> set[str]:
        return {m.user_id for m in self.session.memberships}

    def _subscribed(self, track: rtc.Track, _: Any, participant: rtc.RemoteParticipant) -> None:
        self.ears[participant.identity] = ear = Ear(track)
        self._ears.append(ear)

    def _reconnecting(self) -> None:
        self.restarts += 1

    def _encryption(self, participant: rtc.Participant | None, state: rtc.EncryptionState.ValueType) -> None:
        if participant is not None:
            self.encryption.append((participant.identity, rtc.EncryptionState.Name(state)))

    async def speak(self) -> None:
        if self.tone is None:
            return
        assert self.call
        await self._speaking.enter_async_context(speaking(self.call, self.tone))

    def hears(self, other: Bot) -> bool:
        return other.tone is not None and self.hears_tone(other.account, other.tone)

    def hears_tone(self, account: Account, tone: float) -> bool:
        return near(self.tone_from(account), tone)

    def tone_from(self, account: Account) -> float | None:
        """What is heard of a participant that has one track."""
        ear = self.ears.get(identity_of(account))
        return ear.tone() if ear else None

    async def __aexit__(self, *_: Any) -> None:
        await self._speaking.aclose()
        for ear in self._ears:
            await ear.close()
        await self.client.aclose()
        if self.call:
            await self.call.wait_closed()


class Spy:
    """Somebody on the SFU who is not in the call, with keys that it should not have any more."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.room.on("track_subscribed", self._subscribed)
        self._ear: Ear | None = None

    @classmethod
    async def enter(cls, sfu: SFU, room: str, keys: Sequence[MediaKey]) -> Self:
        spy = cls()
        await spy.room.connect(sfu.url, sfu.token(room, "spy"), rtc.RoomOptions(encryption=encryption()))
        for key in keys:
            spy.try_key(key.sfu_identity, key.key, key.index)
        return spy

    def try_key(self, identity: str, key: bytes, index: int) -> None:
        provider = self.room.e2ee_manager.key_provider
        assert provider
        provider.set_key(identity, key, index)

    def _subscribed(self, track: rtc.Track) -> None:
        self._ear = Ear(track)

    def tone(self) -> float | None:
        return self._ear.tone() if self._ear else None

    def forget(self) -> None:
        assert self._ear
        self._ear.forget()

    async def close(self) -> None:
        if self._ear:
            await self._ear.close()
        await self.room.disconnect()


def hear_each_other(*bots: Bot) -> Callable[[], bool]:
    return lambda: all(a.hears(b) for a in bots for b in bots if a is not b and b.tone)


def forget(*bots: Bot) -> None:
    for bot in bots:
        for ear in bot.ears.values():
            ear.forget()


@contextlib.asynccontextmanager
async def elsewhere(account: Account, room_id: str, tone: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A bot in a process of its own, with its leave handed over."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, stdin=pipe, stdout=pipe)
    assert process.stdin and process.stdout
    try:
        process.stdin.write(json.dumps({"account": vars(account), "room_id": room_id, "tone": tone}).encode() + b"\n")
        async with asyncio.timeout(180):
            said = await process.stdout.readline()
        if said != b"in\n":
            raise RuntimeError(f"the bot elsewhere said {said!r}")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class NodePeer:
    """A bot on Node, with what it says that it hears."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.entered = False
        self.refused: list[str] = []  # why tracks are not heard
        self.left: bool | None = None
        self.tones: dict[str | None, list[float | None]] = {}  # by user id, the latest last
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, account: Account, room_id: str, tone: float, **join: Any) -> AsyncIterator[Self]:
        pipe, script = asyncio.subprocess.PIPE, pathlib.Path(__file__).with_name("voice_peer.mjs")
        peer = cls(await asyncio.create_subprocess_exec("node", str(script), stdin=pipe, stdout=pipe))
        config = {
            "homeserver_url": account.url,
            "user_id": account.user_id,
            "device_id": account.device_id,
            "access_token": account.access_token,
        }
        try:
            peer._write({"config": config, "room": room_id, "tone": tone, "join": join})
            await until(lambda: peer.entered, "entry of the Node bot", 180)
            yield peer
            await peer.leave()
        finally:
            if peer._process.returncode is None:
                peer._process.kill()
            await peer._process.wait()
            await peer._reader

    def _write(self, settings: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            told = json.loads(line)
            if "tone" in told:
                self.tones.setdefault(told["from"], []).append(told["tone"])
            if "refused" in told:
                self.refused.append(told["refused"])
            self.entered |= told.get("in", False)
            self.left = told.get("left", self.left)

    def hears(self, bot: Bot) -> bool:
        tones = self.tones.get(bot.account.user_id)
        return bool(tones and bot.tone and near(tones[-1], bot.tone))

    def forget(self) -> None:
        self.tones.clear()

    async def leave(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        async with asyncio.timeout(120):
            await self._process.wait()


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    async with Bot(Account(**given["account"]), given["room_id"], given["tone"], delegate_leave=True) as bot:
        await until(lambda: bot.session.info().leave_delegated, "delegation")
        print("in", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
