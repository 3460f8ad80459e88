"""A client: one device of one Matrix account."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from . import library
from .errors import ClientFailedError
from .events import Event, EventSource
from .session import Session
from .types import ClientInfo, RoomCall


class Client(EventSource):
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
        self._host_driven = mode == "host_driven"
        self._sessions: dict[int, Session] = {}
        self._fds: list[int] = []  # the event fd, once there is one
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finalizer = weakref.finalize(self, _release, self._handle, self._fds)
        # From here on the queue exists, and nothing that happens is missed.
        library.raw_call("mrtc_client_next_event", self._handle, 0)

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
            _in_slices(lambda ms: library.call("mrtc_client_stop_wait", self._handle, ms), timeout)
        except (ClientFailedError, TimeoutError):
            pass
        finally:
            self._free()

    async def aclose(self, timeout: float = 12.0) -> None:
        """`close` for asyncio. Events go on being delivered until the client is stopped."""
        if not self._finalizer.alive:
            return
        try:
            if self.info().state in ("started", "stopping"):
                await self._stopped(timeout)
            self._read()
        except (ClientFailedError, TimeoutError):
            pass
        finally:
            self._free()

    async def _stopped(self, timeout: float) -> None:
        """Stops and waits for it."""
        stopped = asyncio.Event()

        def on_sync_state(event: Event) -> None:
            if event.data["state"] == "stopped":
                stopped.set()

        def on_failed(event: Event) -> None:
            stopped.set()

        self._watch()
        self.on("sync_state", on_sync_state).on("client_failed", on_failed)
        try:
            self.stop()
            if self.info().state != "stopped":
                await asyncio.wait_for(stopped.wait(), timeout)
        finally:
            self.off("sync_state", on_sync_state).off("client_failed", on_failed)

    def _free(self) -> None:
        if self._fds and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._fds[0])
        self._loop = None
        self._finalizer()
        for session in list(self._sessions.values()):
            session._end()
        self._end()

    def __enter__(self) -> Self:
        if not self._host_driven:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._watch()
        if not self._host_driven:
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
        room = library.text("room_id", room_id)
        library.call("mrtc_session_open", self._handle, room, library.encode(options), ctypes.byref(handle))
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
            raw = _in_slices(lambda ms: library.call("mrtc_client_next_event", self._handle, ms), timeout)
        except TimeoutError:
            return None
        return self._dispatch(raw)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("the events of this client are read by another event loop")
        if not self._fds:
            fd = ctypes.c_int()
            library.call("mrtc_client_event_fd", self._handle, ctypes.byref(fd))
            self._fds.append(fd.value)
        loop.add_reader(self._fds[0], self._read)
        self._loop = loop

    def _read(self) -> None:
        # A listener may raise: the descriptor stays readable, and the rest is read when asyncio
        # has reported that.
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
        # What was lost may have been anybody's.
        concerned = list(self._sessions.values()) if event.name == "resync_required" else [session] if session else []
        with contextlib.ExitStack() as deliveries:  # each of them, also when a listener raises
            for source in reversed([*concerned, self]):
                deliveries.callback(source._deliver, event)
        return event


def _release(handle: int, fds: list[int]) -> None:
    """Frees a client: when it is closed, collected, or the interpreter exits."""
    while fds:
        os.close(fds.pop())
    library.raw_call("mrtc_client_free", handle)


def _in_slices(call: Callable[[int], Any], timeout: float | None) -> Any:
    """Makes a waiting call again and again, so that Ctrl-C is answered in between."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return call(library.slice_ms(end))
        except TimeoutError:
            if end is not None and time.monotonic() >= end:
                raise
