"""Media by LiveKit: the rooms of a call, entered and encrypted as its session says.

Needs the extra ``matrixrtc[livekit]``. Somebody who speaks in a call::

    session.join()
    async with await livekit.connect(session) as call:
        source = rtc.AudioSource(48000, 1)
        await call.publish_track(rtc.LocalAudioTrack.create_audio_track("voice", source))
        ...
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import random
import typing
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

try:
    from livekit import rtc
except ModuleNotFoundError as e:
    raise ModuleNotFoundError("matrixrtc.livekit needs the extra: pip install matrixrtc[livekit]", name=e.name) from e
from livekit.rtc._proto.e2ee_pb2 import HKDF  # the package names it nowhere else
from livekit.rtc.room import EventTypes

from .errors import InvalidArgumentError, InvalidHandleError, InvalidStateError, SFUError
from .events import Event
from .session import Session
from .types import MediaKey, Membership, SFUToken

__all__ = ["Call", "connect"]

_LONGEST_PAUSE = 30.0  # between attempts to connect, in seconds
_TAKE_BACK = 5.0  # at most, for our leave to be ours again, in seconds
_MAX_UNHEARD = 4096  # events that wait for a listener, the latest

_log = logging.getLogger(__name__)

_late: set[asyncio.Task[None]] = set()  # disconnecting rooms that nobody waits for

# What the session says where it, or this SFU of it, is no longer there.
_Over = (InvalidArgumentError, InvalidHandleError, InvalidStateError)


async def connect(session: Session, *, options: rtc.RoomOptions | None = None, timeout: float | None = None) -> Call:
    """Enters the SFUs of a session that was joined, and returns when the one that we publish to is
    entered (or when we are in the call, if we publish nowhere).

    `options` are those of every room; its encryption is set here. What stands in the way is told
    by the session's events `sfu_failed` and tried again: TimeoutError after `timeout` seconds
    (None: goes on trying), InvalidStateError when the session leaves meanwhile.
    """
    if not session.info().joined:
        raise InvalidStateError({"message": "connect: the session is not joined"})
    call = Call(session, options or rtc.RoomOptions())
    try:
        await asyncio.wait_for(call._entered.wait(), timeout)
        if call._closing:
            why = f": {call._trouble}" if call._trouble else ""
            raise InvalidStateError({"message": f"connect: the session left before an SFU was entered{why}"})
    except BaseException:
        await call.aclose()
        raise
    return call


class Call(rtc.EventEmitter[EventTypes]):
    """The media of a session: one `livekit.rtc.Room` for each SFU of the call, kept connected.

    It emits the events of all its rooms, with their arguments: ``call.on("track_subscribed", ...)``.
    What happens before the first listener is added waits for it. In an encrypted call, tracks that
    are not encrypted are told by `track_subscription_failed`, and not heard.
    After an SFU was lost, or when our media moves to another one, a new room takes the place of the
    old, with the same tracks. It ends when the session leaves or is closed, or by `aclose`, which
    does not leave. Made by `connect`; belongs to the event loop that it was made in.
    """

    def __init__(self, session: Session, options: rtc.RoomOptions) -> None:
        super().__init__()
        self.session = session
        self._options = options
        self._tracks: dict[rtc.LocalTrack, rtc.TrackPublishOptions] = {}
        self._carriers: dict[rtc.LocalTrack, _Visit] = {}  # where a track is published: at one place at a time
        self._visits: dict[str, _Visit] = {}
        self._ended: set[asyncio.Task[None]] = set()  # visits that are leaving
        self._unheard: collections.deque[tuple[EventTypes, tuple[object, ...]]] | None = collections.deque(
            maxlen=_MAX_UNHEARD
        )
        self._entered = asyncio.Event()
        self._closing = False
        self._trouble: str | None = None  # of our membership, the last that was told
        self._failure: BaseException | None = None  # a bug, or that of the client
        self._follower = asyncio.create_task(self._follow(session.events()))

    def on(self, event: EventTypes, callback: Callable[..., object] | None = None) -> Callable[..., object]:
        """Adds a listener, for the event of every room; without one, decorates it."""
        if callback is not None and self._unheard is not None:
            asyncio.get_running_loop().call_soon(self._release)
        return super().on(event, callback)

    def emit(self, event: EventTypes, *args: object) -> None:
        if self._unheard is not None:
            self._unheard.append((event, args))
            return
        try:
            super().emit(event, *args)
        except TypeError:  # the SDK tells of all others of a listener, but has this one fall upon us
            _log.exception("failed to emit event %s", event)

    def _release(self) -> None:
        waiting, self._unheard = self._unheard or (), None
        for event, args in waiting:
            self.emit(event, *args)

    @property
    def room(self) -> rtc.Room | None:
        """The room that we publish to, while it is connected."""
        return self.rooms.get(self._publish_url or "")

    @property
    def rooms(self) -> dict[str, rtc.Room]:
        """The rooms that are connected, by the URL of their authorisation service."""
        return {url: visit.room for url, visit in self._visits.items() if visit.room is not None}

    @property
    def remote_participants(self) -> list[rtc.RemoteParticipant]:
        """Those who carry the media of a member, in all rooms."""
        return [p for url, identity in self._places() if (p := self._participant(url, identity)) is not None]

    def participant_of(self, member: Membership) -> rtc.RemoteParticipant | None:
        """The participant that carries the media of a member; None while it is not there."""
        here = (url for url, identity in self._places() if identity == member.sfu_identity)
        return next((p for url in here if (p := self._participant(url, member.sfu_identity)) is not None), None)

    def member_of(self, participant: rtc.Participant) -> Membership | None:
        """The member whose media a participant carries, ours for the local one; None for who is
        connected to an SFU without publishing there, or is not in the call."""
        room = self.room
        for member in [] if self._closing else self.session.memberships:
            if member.sfu_identity == participant.identity:
                ours = room is not None and participant is room.local_participant
                return member if ours or participant is self.participant_of(member) else None
        return None

    async def publish_track(self, track: rtc.LocalTrack, options: rtc.TrackPublishOptions | None = None) -> None:
        """Publishes a track where our media goes, now and after each reconnection or move. Without
        options it is announced as a microphone or a camera. Where that fails, it is told by
        `sfu_failed` and tried again, in a new room."""
        if options is None:
            audio = track.kind == rtc.TrackKind.KIND_AUDIO
            source = rtc.TrackSource.SOURCE_MICROPHONE if audio else rtc.TrackSource.SOURCE_CAMERA
            options = rtc.TrackPublishOptions(source=source)
        self._tracks[track] = options
        await self._publish()

    async def unpublish_track(self, track: rtc.LocalTrack) -> None:
        """Ends the publication of a track."""
        self._tracks.pop(track, None)
        await self._publish()

    async def wait_closed(self) -> None:
        """Returns when the call has ended and its rooms are left. Raises what has ended it, if that was
        neither the session nor `aclose`: ClientFailedError, or a bug."""
        await asyncio.wait({self._follower})
        if not self._follower.cancelled():
            self._follower.result()
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None:
        """Leaves the rooms. The session stays as it is."""
        if not self._closing:
            self._follower.cancel()
        await self.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def _publish_url(self) -> str | None:
        return None if self._closing else next((s.service_url for s in self.session.sfus if s.publish), None)

    def _places(self) -> list[tuple[str, str]]:
        """Where the members publish, and under which identities."""
        return [] if self._closing else [(s.service_url, m.sfu_identity) for s in self.session.sfus for m in s.members]

    def _participant(self, url: str, identity: str) -> rtc.RemoteParticipant | None:
        room = self.rooms.get(url)
        return room.remote_participants.get(identity) if room else None

    async def _publish(self) -> None:
        if visit := self._visits.get(self._publish_url or ""):
            await visit.published()

    async def _follow(self, told: AsyncIterator[Event]) -> None:
        try:
            self._settle()
            async for event in told:
                match event.name:
                    case "encryption_key_changed":
                        for visit in self._visits.values():
                            visit.use(event.media_key)
                    case "leave_delegated_changed" if event.data["delegated"]:
                        if holder := self._visits.get(self._publish_url or ""):
                            holder.holds_leave = True
                    case "sfus_changed" | "status_changed":
                        self._settle()
                    case "memberships_changed" if not self._entered.is_set():
                        self._settle()
                    case "resync_required":
                        self._settle()
                        for visit in self._visits.values():
                            visit.use_all()
                    case "membership_manager_error":
                        self._trouble = event.data["message"]
                    case "join_state_changed" if not event.data["joined"]:
                        break
        except _Over:
            pass  # closed between an event and its handling
        finally:
            self._closing = True
            for url in list(self._visits):
                self._end(url)
            self._entered.set()
            await asyncio.gather(*self._ended, return_exceptions=True)

    def _settle(self) -> None:
        """Visits the SFUs of the call, and no others, and publishes where we should."""
        if self._closing:
            return
        sfus = self.session.sfus
        wanted = {s.service_url for s in sfus if s.trusted or s.publish}  # why not to publish there is told
        for url in self._visits.keys() - wanted:
            self._end(url)
        for url in wanted:
            if url not in self._visits or self._visits[url].task.done():  # it was not of the call for a moment
                self._visits[url] = visit = _Visit(self, url)
                visit.task.add_done_callback(self._visited)
        self._wake()
        info = self.session.info()
        publishes = any(s.publish for s in sfus)
        if self.room or (not publishes and info.status == "Connected" and info.own_membership):
            self._entered.set()

    def _wake(self) -> None:
        for visit in self._visits.values():
            visit.changed.set()

    def _end(self, url: str) -> None:
        task = self._visits.pop(url).task
        if not task.done():
            self._ended.add(task)
            task.cancel()

    def _visited(self, task: asyncio.Task[None]) -> None:
        self._ended.discard(task)
        if not task.cancelled() and (e := task.exception()) is not None and self._failure is None:
            self._failure = e
            if not self._closing:
                self._follower.cancel()


class _Visit:
    """Our stay at one SFU: connected again and again until it is cancelled."""

    def __init__(self, call: Call, url: str) -> None:
        self.room: rtc.Room | None = None
        self.changed = asyncio.Event()  # what we publish
        self.holds_leave = False  # the authorisation service there, or it did
        self._call, self._url = call, url
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._encrypted = False
        self._own: MediaKey | None = None
        self._told: bool | None = None  # whether we are connected
        self._waiting: set[asyncio.Future[None]] = set()  # for what should be published
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        clock, failures = asyncio.get_running_loop().time, 0
        with contextlib.suppress(*_Over):
            while True:
                token = await self._token()
                began = clock()
                try:
                    why = await self._stay(token)
                except (*_Over, asyncio.CancelledError):
                    self._tell(False)
                    raise
                except Exception as e:  # whatever the SDK raises is told, and tried again
                    why = str(e) or type(e).__name__
                if self.task.cancelling():  # it raised that in place of the cancellation
                    return self._tell(False)
                self._tell(False, why)
                failures = 0 if clock() - began > _LONGEST_PAUSE else failures + 1
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.25 * 2**failures) * random.uniform(0.5, 1))

    async def _token(self) -> SFUToken:
        while True:
            # A failure was told by the event `sfu_failed`, and is tried again by the session.
            with contextlib.suppress(SFUError):
                return await self._call.session.fetch_sfu_token(self._url, timeout=None)

    async def _stay(self, token: SFUToken) -> str:
        """Enters a room, and returns when it is gone, with the reason."""
        call, room = self._call, rtc.Room()
        self._gone = asyncio.get_running_loop().create_future()
        self._encrypted = call.session.info().keys_managed
        listeners: dict[EventTypes, Callable[..., object]] = {
            name: self._subscribed if name == "track_subscribed" else functools.partial(call.emit, name)
            for name in typing.get_args(EventTypes)
        }
        for name, listener in listeners.items():
            room.on(name, listener)
        room.on("disconnected", self._disconnected)
        room.on("local_track_published", self._use_index)
        room.on("local_track_republished", self._use_index)
        options = dataclasses.replace(call._options, encryption=_encryption() if self._encrypted else None)
        connecting = asyncio.create_task(room.connect(token.url, token.jwt, options))
        try:
            await asyncio.shield(connecting)
            self.room = room
            self.use_all()
            self._tell(True)
            call._settle()
            return await self._until_gone(room.local_participant)
        finally:
            self.room, self._own = None, None
            self._release()
            if connecting.done():
                try:
                    await self._take_back_leave(room)
                    await room.disconnect()
                finally:
                    self._put_down(*[t for t, carrier in call._carriers.items() if carrier is self])
            else:  # the SDK tries for half a minute, and cannot be told to stop
                for name, listener in listeners.items():
                    room.off(name, listener)
                connecting.add_done_callback(functools.partial(_disconnect_late, room))

    async def _take_back_leave(self, room: rtc.Room) -> None:
        """The service would send our leave once the SFU tells that we are gone."""
        session = self._call.session
        with contextlib.suppress(TimeoutError, *_Over):
            if room.isconnected() and session.info().joined:
                self._tell(False)
                here = self.holds_leave or self._call._publish_url == self._url
                async with asyncio.timeout(_TAKE_BACK):
                    while here and session.info().leave_delegated:
                        await session.wait_for("leave_delegated_changed")
        self.holds_leave = False

    async def _until_gone(self, local: rtc.LocalParticipant) -> str:
        """Publishes, and returns when the room is gone: then the SDK answers no more."""
        publishing = asyncio.create_task(self._publish(local))
        either: set[asyncio.Future[typing.Any]] = {publishing, self._gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return self._gone.result() if self._gone.done() else publishing.result()
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    def _subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        # Whoever runs the SFU could say anything in anybody's name.
        if self._encrypted and publication.encryption_type == rtc.EncryptionType.NONE:
            publication.set_subscribed(False)
            why = "not encrypted, in an encrypted call"
            self._call.emit("track_subscription_failed", participant, publication.sid, why)
        else:
            self._call.emit("track_subscribed", track, publication, participant)

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        self._leave(f"disconnected: {rtc.DisconnectReason.Name(reason)}")

    def _leave(self, why: str) -> None:
        if not self._gone.done():
            self._gone.set_result(why)

    def _tell(self, connected: bool, why: str | None = None) -> None:
        if why is None and connected is self._told:
            return
        self._told = connected
        with contextlib.suppress(*_Over):
            self._call.session.sfu_connected(connected, self._url, error=why)

    async def published(self) -> None:
        """Returns when what should be published here is, and nothing else, or the room is gone."""
        if self.room is not None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(done)
            self.changed.set()
            await done

    async def _publish(self, local: rtc.LocalParticipant) -> typing.NoReturn:
        here: dict[rtc.LocalTrack, rtc.LocalTrackPublication] = {}
        while True:
            self.changed.clear()
            wanted = dict(self._call._tracks) if self._call._publish_url == self._url else {}
            for track in [t for t in here if t not in wanted]:
                await local.unpublish_track(here.pop(track).sid)
                self._put_down(track)
            # The SDK mixes up a track that comes here before it is gone elsewhere.
            waiting = [t for t in wanted if self._call._carriers.get(t, self) is not self]
            for track in [t for t in wanted if t not in here and t not in waiting]:
                self._call._carriers[track] = self
                here[track] = await local.publish_track(track, wanted[track])
            if not self.changed.is_set():
                if not waiting:
                    self._release()
                await self.changed.wait()

    def _put_down(self, *tracks: rtc.LocalTrack) -> None:
        for track in tracks:
            self._call._carriers.pop(track, None)
        if tracks:
            self._call._wake()

    def _release(self) -> None:
        for done in self._waiting:
            if not done.done():
                done.set_result(None)
        self._waiting.clear()

    # --- keys

    def use_all(self) -> None:
        for key in self._call.session.encryption_keys():
            self.use(key)

    def use(self, key: MediaKey) -> None:
        if self.room is None or (key.own and not key.in_use):
            return
        if not self._encrypted:
            return self._leave("the call is encrypted now")
        provider = self.room.e2ee_manager.key_provider
        assert provider is not None
        if not key.own:
            provider.set_key(key.sfu_identity, key.key, key.index)
        else:
            self._own = key
        if own := self._own:
            # Messages are encrypted at the index that was set last: it must be our own.
            me = self.room.local_participant.identity
            provider.set_key(me, own.key, own.index)
            self._use_index()
            # A new track begins at index 0 until it is told otherwise: not with a key of the past.
            provider.set_key(me, own.key, 0)
            provider.set_key(me, own.key, own.index)

    def _use_index(self, *_: object) -> None:
        if self.room is None or self._own is None:
            return
        me = self.room.local_participant.identity
        for cryptor in self.room.e2ee_manager.frame_cryptors():
            if cryptor.participant_identity == me:
                cryptor.set_key_index(self._own.index)


def _disconnect_late(room: rtc.Room, connecting: asyncio.Task[None]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        leaving = asyncio.get_running_loop().create_task(room.disconnect())
        _late.add(leaving)
        leaving.add_done_callback(_late.discard)


def _encryption() -> rtc.E2EEOptions:
    """As Element Call encrypts. The SDK's own defaults are understood by nobody in a Matrix call. Keys
    are replaced, never ratcheted: trying to would put back an old key where a new one has just come."""
    return rtc.E2EEOptions(
        key_provider_options=rtc.KeyProviderOptions(
            key_derivation_function=HKDF, key_ring_size=256, ratchet_window_size=0
        )
    )
