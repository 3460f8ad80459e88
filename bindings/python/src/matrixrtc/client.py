"""Clients and sessions."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import os
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from . import library
from .emitter import Emitter
from .types import ClientInfo, Membership, MembershipsChanged, RoomCall, SessionInfo

# Waiting calls run in slices, so that Ctrl-C is answered.
_SLICE_MS = 100


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


class _Stream:
    """Events for one reader, in order."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.arrived = asyncio.Event()
        self.closed = False

    def push(self, event: Event) -> None:
        self.events.append(event)
        self.arrived.set()

    def close(self) -> None:
        self.closed = True
        self.arrived.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self.events:
                yield self.events.popleft()
            if self.closed:
                return
            self.arrived.clear()
            await self.arrived.wait()


class _Source(Emitter):
    """What emits events: to listeners, called on the thread or loop that reads the events, and to
    any number of `events()` readers."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._ended = False

    async def events(self) -> AsyncIterator[Event]:
        """Every event from now on, until the session or client is closed."""
        stream = _Stream()
        self._streams.add(stream)
        if self._ended:
            stream.close()
        async for event in stream:
            yield event

    async def wait_for(self, name: str, timeout: float | None = None) -> Event:
        """The next event of this name; TimeoutError when none comes within `timeout` seconds."""
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
            stream.close()


class Client(_Source):
    """One device of one Matrix account.

    With asyncio: ``async with Client(...) as client``. Without: ``with Client(...) as client`` and
    ``client.next_event(timeout)``, which also calls the listeners.

    Managed mode needs `homeserver_url` and either `user_id` and `password`, or `access_token`.
    `Client.host_driven` makes a client whose requests the host makes.
    """

    def __init__(
        self,
        homeserver_url: str | None = None,
        *,
        user_id: str | None = None,
        password: str | None = None,
        access_token: str | None = None,
        refresh_token: str | None = None,
        device_id: str | None = None,
        initial_device_display_name: str | None = None,
        proxy_url: str | None = None,
        ca_file: str | None = None,
        user_agent: str | None = None,
        mode: str | None = None,
        clock: str | None = None,
    ) -> None:
        super().__init__()
        given = {
            "homeserver_url": homeserver_url,
            "user_id": user_id,
            "password": password,
            "access_token": access_token,
            "refresh_token": refresh_token,
            "device_id": device_id,
            "initial_device_display_name": initial_device_display_name,
            "proxy_url": proxy_url,
            "ca_file": ca_file,
            "user_agent": user_agent,
            "mode": mode,
            "clock": clock,
        }
        handle = ctypes.c_uint64()
        config = {k: v for k, v in given.items() if v is not None}
        library.call("mrtc_client_new", library.encode(config), ctypes.byref(handle))
        self._handle = handle.value
        self._sessions: dict[int, Session] = {}
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # From here on the queue exists, and nothing that happens is missed.
        library.raw_call("mrtc_client_next_event", self._handle, 0)
        self._finalizer = weakref.finalize(self, library.raw_call, "mrtc_client_free", self._handle)

    @classmethod
    def host_driven(cls, user_id: str, device_id: str, *, clock: str = "real") -> Self:
        """A client that makes no connection: its events `request` are answered by `respond`, and
        what the host's sync receives goes to `feed`."""
        return cls(mode="host_driven", user_id=user_id, device_id=device_id, clock=clock)

    def start(self) -> None:
        """Begins to log in and sync, in the background; `sync_state` tells what comes of it."""
        library.call("mrtc_client_start", self._handle)

    def stop(self) -> None:
        """Begins to leave what is joined and then to end sync and requests."""
        library.call("mrtc_client_stop", self._handle)

    def close(self, timeout: float = 12.0) -> None:
        """Leaves what is joined, for at most `timeout` seconds, and frees the client."""
        if not self._finalizer.alive:
            return
        try:
            self.stop()
            self._wait(lambda ms: library.call("mrtc_client_stop_wait", self._handle, ms), timeout)
        except TimeoutError:
            pass
        finally:
            self._free()

    async def aclose(self, timeout: float = 12.0) -> None:
        """`close` for asyncio. Events go on being delivered until the client is stopped."""
        if not self._finalizer.alive:
            return
        try:
            if self.info().state in ("started", "stopping"):
                stopped = asyncio.Event()
                self.on("sync_state", lambda e: stopped.set() if e.data["state"] == "stopped" else None)
                self.on("client_failed", lambda e: stopped.set())
                self._watch()
                self.stop()
                if self.info().state != "stopped":
                    await asyncio.wait_for(stopped.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            self._read()
            self._free()

    def _free(self) -> None:
        if self._fd is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        self._finalizer()
        for session in list(self._sessions.values()):
            session._end()
        self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._watch()
        if self.info().mode == "managed":
            self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def session(self, room_id: str, *, application: str | None = None, call_id: str | None = None) -> Session:
        """Opens the call of a room."""
        options = {k: v for k, v in {"application": application, "call_id": call_id}.items() if v is not None}
        handle = ctypes.c_uint64()
        library.call(
            "mrtc_session_open", self._handle, room_id.encode(), library.encode(options), ctypes.byref(handle)
        )
        session = Session(self, handle.value)
        self._sessions[handle.value] = session
        return session

    def info(self) -> ClientInfo:
        return ClientInfo.parse(library.call("mrtc_client_info", self._handle))

    def sessions(self) -> list[RoomCall]:
        """Every call that is going on in the rooms of the account."""
        return [RoomCall.parse(c) for c in library.call("mrtc_client_sessions", self._handle)["sessions"]]

    def set_access_token(self, access_token: str, refresh_token: str | None = None) -> None:
        """A new token of the same device, after sync_state "error"."""
        given = {"access_token": access_token} | ({"refresh_token": refresh_token} if refresh_token else {})
        library.call("mrtc_client_set_access_token", self._handle, library.encode(given))

    # --- host-driven

    def feed(self, *, sync: Any = None, state: Mapping[str, Any] | None = None) -> None:
        """What the host has received: the body of a /sync answer, or the state of a room."""
        given = {"sync": sync} if sync is not None else {"state": state}
        library.call("mrtc_client_feed", self._handle, library.encode(given))

    def respond(
        self,
        request_id: int,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        network_error: str | None = None,
    ) -> None:
        """The answer to a request as it came (body: decoded JSON, or text), or that none came."""
        given: dict[str, Any] = {"id": request_id}
        if network_error is not None:
            given["network_error"] = network_error
        else:
            given |= {"status": status, "headers": dict(headers or {}), "body": body}
        library.call("mrtc_client_respond", self._handle, library.encode(given))

    def advance(self, *, boot_ms: int | None = None, wall_ts: int | None = None) -> int | None:
        """Tells the time of a manual clock; when to call again, in boot_ms."""
        given = {k: v for k, v in {"boot_ms": boot_ms, "wall_ts": wall_ts}.items() if v is not None}
        deadline: int | None = library.call("mrtc_client_advance", self._handle, library.encode(given))["deadline_ms"]
        return deadline

    # --- events

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event of this client or its sessions, after its listeners were called; None
        when none came within `timeout` seconds (None: waits for ever)."""
        try:
            raw = self._wait(lambda ms: library.call("mrtc_client_next_event", self._handle, ms), timeout)
        except TimeoutError:
            return None
        return self._dispatch(raw)

    @staticmethod
    def _wait(call: Any, timeout: float | None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE_MS if end is None else max(0, min(_SLICE_MS, int((end - time.monotonic()) * 1000)))
            try:
                return call(left)
            except TimeoutError:
                if end is not None and time.monotonic() >= end:
                    raise

    def _watch(self) -> None:
        if self._fd is None:
            fd = ctypes.c_int()
            library.call("mrtc_client_event_fd", self._handle, ctypes.byref(fd))
            self._fd = fd.value
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        while self._finalizer.alive:
            status, text = library.raw_call("mrtc_client_next_event", self._handle, 0)
            if status != 0 or text is None:
                return
            self._dispatch(json.loads(text))

    def _dispatch(self, raw: dict[str, Any]) -> Event:
        session = self._sessions.get(raw.pop("session", 0))
        raw.pop("client", None)
        event = Event(
            name=raw.pop("event"),
            seq=raw.pop("seq", 0),
            ts=raw.pop("ts", 0),
            room_id=raw.pop("room_id", None),
            session=session,
            data=raw,
        )
        if session is not None:
            session._deliver(event)
        self._deliver(event)
        return event


class Session(_Source):
    """One call of one room. Made by `Client.session`."""

    def __init__(self, client: Client, handle: int) -> None:
        super().__init__()
        self.client = client
        self._handle = handle

    def join(
        self,
        foci_preferred: Sequence[Mapping[str, Any]] = (),
        foci_active: Mapping[str, Any] | None = None,
        *,
        call_intent: str | None = None,
        application_data: Mapping[str, Any] | None = None,
        member_id: str | None = None,
        **settings: int,
    ) -> None:
        """Announces this device and keeps it announced until `leave`, in the background. The
        settings are those of mrtc_session_join, such as `delayed_leave_delay_ms`."""
        given: dict[str, Any] = {
            "foci_preferred": list(foci_preferred),
            "foci_active": foci_active,
            "call_intent": call_intent,
            "application_data": application_data,
            "member_id": member_id,
            **settings,
        }
        params = {k: v for k, v in given.items() if v is not None}
        library.call("mrtc_session_join", self._handle, library.encode(params))

    async def leave(self, timeout: float | None = None) -> bool:
        """Leaves; whether the leave reached the server within `timeout` seconds (None: waits for
        as long as it takes)."""
        self.client._watch()
        left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def listener(event: Event) -> None:
            if not left.done():
                left.set_result(bool(event.data["sent"]))

        self.once("left", listener)
        try:
            self.leave_soon()
            return await asyncio.wait_for(left, timeout)
        except TimeoutError:
            return False
        finally:
            self.off("left", listener)

    def leave_soon(self) -> None:
        """Begins to leave; the event `left` tells the outcome."""
        library.call("mrtc_session_leave", self._handle)

    def leave_wait(self, timeout: float | None = None) -> bool:
        """`leave` without asyncio."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE_MS if end is None else max(0, min(_SLICE_MS, int((end - time.monotonic()) * 1000)))
            sent = library.call("mrtc_session_leave_wait", self._handle, left)["sent"]
            if sent or self.info().status == "Disconnected" or (end is not None and time.monotonic() >= end):
                return bool(sent)

    def close(self) -> None:
        """Closes the session; if it is joined, it leaves in the background."""
        if self.client._sessions.pop(self._handle, None) is not None:
            library.call("mrtc_session_close", self._handle)
            self._end()

    def info(self) -> SessionInfo:
        return SessionInfo.parse(library.call("mrtc_session_info", self._handle))

    @property
    def memberships(self) -> list[Membership]:
        """The members of the call, oldest first."""
        found = library.call("mrtc_session_memberships", self._handle)["memberships"]
        return [Membership.parse(m) for m in found]

    def on_membership_update(self) -> None:
        """Looks at the members again. Not needed where the library syncs."""
        library.call("mrtc_session_on_membership_update", self._handle)

    def update_intent(self, intent: str | None) -> None:
        """Changes the call intent of our membership; None removes it."""
        library.call("mrtc_session_update_intent", self._handle, (intent or "").encode())

    def update_application_data(self, data: Mapping[str, Any]) -> None:
        """Replaces the application data of our membership."""
        library.call("mrtc_session_update_application_data", self._handle, library.encode(data))

    def debug_snapshot(self) -> dict[str, Any]:
        """Why the session is as it is, for a bug report; without secrets."""
        snapshot: dict[str, Any] = library.call("mrtc_session_debug_snapshot", self._handle)
        return snapshot
