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
from .types import MembershipsChanged

if TYPE_CHECKING:
    from .session import Session

# As the queue of the library: a reader that stops reading finds one resync_required.
_MAX_BACKLOG = 16384


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened. `data` holds the fields of the event, `seq` numbers the events of
    a client, `ts` is Unix time in ms."""

    name: str
    data: dict[str, Any]
    seq: int = 0
    ts: int = 0
    room_id: str | None = None
    session: Session | None = None

    @property
    def memberships(self) -> MembershipsChanged:
        """The payload of `memberships_changed`."""
        return MembershipsChanged.parse(self.data)


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
        """The next event of this name; TimeoutError when none comes within `timeout` seconds."""
        self._watch()
        arrived: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

        def listener(event: Event) -> None:
            if not arrived.done():
                arrived.set_result(event)

        self.once(name, listener)
        try:
            return await asyncio.wait_for(arrived, timeout)
        finally:
            self.off(name, listener)

    def _deliver(self, event: Event) -> None:
        for stream in list(self._streams):
            stream.push(event)
        self.emit(event.name, event)

    def _end(self) -> None:
        self._ended = True
        for stream in list(self._streams):
            stream.end()
