"""A client: one device of one Matrix account."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from . import library
from .errors import ClientFailedError
from .events import Event, EventSource
from .session import Session
from .types import ClientInfo, RoomCall, Transport


class Client(EventSource):
    """One device of one Matrix account.

    With asyncio: ``async with Client(...) as client``. Without: ``with Client(...) as client`` and
    ``client.next_event(timeout)``, which also calls the listeners. Methods may be called from any
    thread; listeners are called where the events are read, by the event loop or by `next_event`.

    Managed mode needs `homeserver_url` and either `user_id` and `password`, or `access_token`.
    `Client.host_driven` makes a client whose requests the host makes.

    In encrypted rooms the device has encryption keys of its own. With `store_path`, a SQLite file,
    they outlive the process, and a device that is used again needs that file: without it, log in as
    a new device each time. `pickle_key` encrypts the file; one file belongs to one device, and to
    one client at a time. `recovery_key` is that of the account's secret storage: with it the device
    signs itself, so that the others see a verified one. What does not fit is told by a `sync_state`
    whose ``error`` has the argument in its ``path``.
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
        sfu_trust: str | Sequence[str] | None = None,
        max_membership_expiry_ms: int | None = None,
        store_path: str | None = None,
        pickle_key: str | None = None,
        recovery_key: str | None = None,
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
            "sfu_trust": sfu_trust if sfu_trust is None or isinstance(sfu_trust, str) else list(sfu_trust),
            "max_membership_expiry_ms": max_membership_expiry_ms,
            "store_path": store_path,
            "pickle_key": pickle_key,
            "recovery_key": recovery_key,
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
        self._will_read = False
        self._finalizer = weakref.finalize(self, _release, self._handle, self._fds)
        # From here on the queue exists, and nothing that happens is missed.
        library.raw_call("mrtc_client_next_event", self._handle, 0)

    @classmethod
    def host_driven(
        cls, user_id: str, device_id: str, *, clock: str = "real", sfu_trust: str | Sequence[str] | None = None
    ) -> Self:
        """A client that makes no connection: its events `request` are answered by `respond`, and
        what the host's sync receives goes to `feed`."""
        return cls(mode="host_driven", user_id=user_id, device_id=device_id, clock=clock, sfu_trust=sfu_trust)

    def start(self) -> None:
        """Begins to log in and sync, in the background; `sync_state` tells what comes of it."""
        library.call("mrtc_client_start", self._handle)

    def stop(self) -> None:
        """Begins to leave what is joined and then to end sync and requests."""
        library.call("mrtc_client_stop", self._handle)

    def close(self, timeout: float = 12.0) -> None:
        """Leaves what is joined, for at most `timeout` seconds, and frees the client; for whoever does
        not: it is freed when it is collected, and its delayed leave takes it out of its calls."""
        if not self._finalizer.alive:
            return
        try:
            library.in_slices(lambda ms: library.call("mrtc_client_stop_wait", self._handle, ms), timeout)
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
        """Opens the call of a room, by its id ("!..."), which need not be synced yet; `call_id` is for
        another call than that of the room. InvalidStateError where it is open already. Its events
        tell what changes from now on: who is there already is in `Session.memberships` (all are told
        where the session is opened before `start`)."""
        options = {k: v for k, v in {"application": application, "call_id": call_id}.items() if v is not None}
        handle = ctypes.c_uint64()
        room = library.text("room_id", room_id)
        library.call("mrtc_session_open", self._handle, room, library.encode(options), ctypes.byref(handle))
        session = Session(self, handle.value)
        self._sessions[handle.value] = session
        return session

    def info(self) -> ClientInfo:
        """What is true of the client now. As all that follow: raises InvalidHandleError once it is
        closed."""
        return ClientInfo.parse(library.call("mrtc_client_info", self._handle))

    def sessions(self) -> list[RoomCall]:
        """Every call that is going on in the rooms of the account."""
        return [RoomCall.parse(c) for c in library.call("mrtc_client_sessions", self._handle)["sessions"]]

    def transports(self) -> list[Transport] | None:
        """Where the homeserver offers to have the media of calls; None while that is not known.
        What changes is told by the event `transports_changed`."""
        answer = library.call("mrtc_client_transports", self._handle)
        return [Transport.parse(t) for t in answer["transports"]] if answer["known"] else None

    def set_access_token(self, access_token: str, refresh_token: str | None = None) -> None:
        """A new token of the same device, after `sync_state` "error" with M_UNKNOWN_TOKEN."""
        given = {"access_token": access_token} | ({"refresh_token": refresh_token} if refresh_token else {})
        library.call("mrtc_client_set_access_token", self._handle, library.encode(given))

    # --- host-driven

    def feed(
        self,
        *,
        sync: Any = None,
        state: Mapping[str, Any] | None = None,
        to_device: Sequence[Mapping[str, Any]] | None = None,
        timeline: Mapping[str, Any] | None = None,
    ) -> None:
        """What the host has received, one of: the body of a /sync answer; the state of a room,
        ``{"room_id", "events", "complete"?}``; to-device messages after their decryption,
        ``[{"type", "content", "sender", "sender_device", "encrypted", "cross_signed"?}]``; events
        of a room after their decryption, ``{"room_id", "events"}``."""
        given = {"sync": sync, "state": state, "to_device": to_device, "timeline": timeline}
        library.call(
            "mrtc_client_feed", self._handle, library.encode({k: v for k, v in given.items() if v is not None})
        )

    def respond(
        self,
        request_id: int,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        network_error: str | None = None,
        deliveries: Sequence[Mapping[str, Any]] | None = None,
        more: bool = False,
    ) -> None:
        """The answer to a request as it came (body: decoded JSON, or text), or that none came. To
        `encrypt_and_send_to_device`: what became of it for each device, ``[{"user_id",
        "device_id", "reason"? (absent: sent)}]``; with `more`, others will follow."""
        given = {
            "id": request_id,
            "status": status,
            "headers": None if headers is None else dict(headers),
            "body": body,
            "network_error": network_error,
            "deliveries": deliveries,
            "more": more or None,
        }
        library.call(
            "mrtc_client_respond", self._handle, library.encode({k: v for k, v in given.items() if v is not None})
        )

    def advance(self, *, boot_ms: int | None = None, wall_ts: int | None = None) -> int | None:
        """Tells the time of a manual clock; when to call again, in boot_ms."""
        given = {k: v for k, v in {"boot_ms": boot_ms, "wall_ts": wall_ts}.items() if v is not None}
        deadline: int | None = library.call("mrtc_client_advance", self._handle, library.encode(given))["deadline_ms"]
        return deadline

    # --- events

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event of this client or its sessions, after its listeners were called (what one
        of them raises is raised here); None when none came within `timeout` seconds (None: waits
        for ever)."""
        try:
            raw = library.in_slices(lambda ms: library.call("mrtc_client_next_event", self._handle, ms), timeout)
        except TimeoutError:
            return None
        return self._dispatch(raw)

    def _watch(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "no event loop is running: this is for asyncio; without it there are next_event and leave_wait"
            ) from None
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("the events of this client are read by another event loop")
        if not self._fds:
            fd = ctypes.c_int()
            library.call("mrtc_client_event_fd", self._handle, ctypes.byref(fd))
            self._fds.append(fd.value)
        # What a reader calls cannot be entered again by a loop that runs nested inside it, as notebooks
        # have them: that must not be our listeners.
        loop.add_reader(self._fds[0], self._readable, loop)
        self._loop = loop

    def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._will_read:
            self._will_read = True
            loop.call_soon(self._read)

    def _read(self) -> None:
        # A listener may raise: the descriptor stays readable, and the rest is read when asyncio
        # has reported that.
        self._will_read = False
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
        # Everybody hears of it, also when a listener raises.
        try:
            if event.name == "resync_required":  # what was lost may have been anybody's
                with contextlib.ExitStack() as deliveries:
                    for concerned in self._sessions.values():
                        deliveries.callback(concerned._deliver, event)
            elif session:
                session._deliver(event)
        finally:
            self._deliver(event)
        return event


def _release(handle: int, fds: list[int]) -> None:
    """Frees a client: when it is closed, collected, or the interpreter exits."""
    while fds:
        os.close(fds.pop())
    library.raw_call("mrtc_client_free", handle)
