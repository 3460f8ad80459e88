"""Events, and the two ways to hear of them: listeners, and `async for` over `events()`."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from .emitter import Emitter
from .errors import closed
from .types import KeyMissing, KeyUndelivered, MediaKey, MembershipsChanged, SFUFailed, SFUsChanged, SFUToken

if TYPE_CHECKING:
    from .session import Session

# As the queue of the library: a reader that stops reading finds one resync_required.
_MAX_BACKLOG = 16384

# Fields that are credentials or hold one: whoever logs an event should not log these.
_SECRET = {"key", "jwt", "delay_id", "access_token", "refresh_token", "http", "content"}


@dataclasses.dataclass(frozen=True, repr=False)
class Event:
    """Something that happened. `data` holds the fields of the event, `seq` numbers the events of
    a client, `ts` is Unix time in ms."""

    name: str
    data: dict[str, Any]
    seq: int = 0
    ts: int = 0
    room_id: str | None = None
    session: Session | None = None

    def __repr__(self) -> str:
        shown = {k: "..." if k in _SECRET and v is not None else v for k, v in self.data.items()}
        return f"Event({self.name!r}, {shown!r}, seq={self.seq}, ts={self.ts}, room_id={self.room_id!r})"

    def _of(self, name: str) -> dict[str, Any]:
        if self.name != name:
            raise AttributeError(f"an event {self.name!r} has no such payload: it is that of {name!r}")
        return self.data

    @property
    def memberships(self) -> MembershipsChanged:
        """The payload of `memberships_changed`."""
        return MembershipsChanged.parse(self._of("memberships_changed"))

    @property
    def media_key(self) -> MediaKey:
        """The payload of `encryption_key_changed`."""
        return MediaKey.parse(self._of("encryption_key_changed"))

    @property
    def key_missing(self) -> KeyMissing:
        """The payload of `encryption_key_missing`."""
        return KeyMissing.parse(self._of("encryption_key_missing"))

    @property
    def key_undelivered(self) -> KeyUndelivered:
        """The payload of `encryption_key_undelivered`."""
        return KeyUndelivered.parse(self._of("encryption_key_undelivered"))

    @property
    def sfus(self) -> SFUsChanged:
        """The payload of `sfus_changed`."""
        return SFUsChanged.parse(self._of("sfus_changed"))

    @property
    def sfu_token(self) -> SFUToken:
        """The payload of `sfu_token_refreshed`."""
        return SFUToken.parse(self._of("sfu_token_refreshed"))

    @property
    def sfu_failed(self) -> SFUFailed:
        """The payload of `sfu_failed`."""
        return SFUFailed.parse(self._of("sfu_failed"))


class EventStream(AsyncIterator[Event]):
    """Events for one reader, in order, from the moment it was made."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def push(self, event: Event) -> None:
        if len(self._waiting) >= _MAX_BACKLOG:
            # Requests are bounded where they arise, and cannot be read again: they are kept.
            kept = [e for e in self._waiting if e.name == "request"]
            before = sum(e.data["lost"] for e in self._waiting if e.name == "resync_required")
            markers = sum(e.name == "resync_required" for e in self._waiting)
            lost = before + len(self._waiting) - len(kept) - markers
            self._waiting = deque([Event("resync_required", {"lost": lost}), *kept])
        self._waiting.append(event)
        self._arrived.set()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()


class EventSource(Emitter, abc.ABC):
    """What emits events: to listeners, called where the events are read, never on a thread of the
    library, and to any number of `events()` readers."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._waits: set[asyncio.Future[Any]] = set()
        self._ended = False

    @abc.abstractmethod
    def _watch(self) -> None:
        """Has the running event loop read the events."""

    def events(self) -> EventStream:
        """Every event from now on, until the session or client is closed."""
        stream = EventStream()
        if self._ended:
            stream.end()
        else:
            self._watch()
            self._streams.add(stream)
        return stream

    async def wait_for(self, name: str, timeout: float | None = None) -> Event:
        """The next event of this name; TimeoutError when none comes within `timeout` seconds (None:
        waits for ever), InvalidHandleError when the session or client is closed meanwhile."""
        self._watch()
        arrived: asyncio.Future[Event] = self._wait()

        def listener(event: Event) -> None:
            if not arrived.done():
                arrived.set_result(event)

        self.once(name, listener)
        try:
            return await asyncio.wait_for(arrived, timeout)
        finally:
            self.off(name, listener)

    def _wait(self) -> asyncio.Future[Any]:
        """A future for somebody who waits for an event: it fails when there will be none. Whoever
        no longer waits cancels it."""
        if self._ended:
            raise closed(type(self).__name__.lower())
        wait: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)
        return wait

    def _deliver(self, event: Event) -> None:
        if self._streams:
            for stream in list(self._streams):
                stream.push(event)
        self.emit(event.name, event)

    def _end(self) -> None:
        self._ended = True
        for stream in list(self._streams):
            stream.end()
        for wait in list(self._waits):
            if not wait.done():
                wait.set_exception(closed(type(self).__name__.lower()))
