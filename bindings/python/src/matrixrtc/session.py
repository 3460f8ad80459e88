"""A session: one call of one room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from . import library
from .events import Event, EventSource
from .types import JoinSettings, Membership, SessionInfo, Transport

if TYPE_CHECKING:
    from .client import Client


class Session(EventSource):
    """One call of one room. Made by `Client.session`."""

    def __init__(self, client: Client, handle: int) -> None:
        super().__init__()
        self.client = client
        self._handle = handle

    def _watch(self) -> None:
        self.client._watch()

    def join(
        self,
        foci_preferred: Sequence[Transport | Mapping[str, Any]] = (),
        foci_active: Transport | Mapping[str, Any] | None = None,
        *,
        call_intent: str | None = None,
        application_data: Mapping[str, Any] | None = None,
        member_id: str | None = None,
        dialect: str | None = None,
        **settings: Unpack[JoinSettings],
    ) -> None:
        """Announces this device and keeps it announced until `leave`, in the background.

        `foci_preferred` are the transports of our media. `foci_active` is one to be put in front of
        them, or ``{"focus_selection": ...}``.
        """
        given: dict[str, Any] = {
            "foci_preferred": [_json(t) for t in foci_preferred],
            "foci_active": None if foci_active is None else _json(foci_active),
            "call_intent": call_intent,
            "application_data": application_data,
            "member_id": member_id,
            "dialect": dialect,
            **settings,
        }
        params = {k: v for k, v in given.items() if v is not None}
        library.call("mrtc_session_join", self._handle, library.encode(params))

    async def leave(self, timeout: float | None = None) -> bool:
        """Leaves; whether the leave reached the server within `timeout` seconds (None: waits for
        as long as it takes)."""
        self._watch()
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
        over = False
        while True:
            left = 0 if over else library.slice_ms(end)
            sent = bool(library.call("mrtc_session_leave_wait", self._handle, left)["sent"])
            if sent or over or (end is not None and time.monotonic() >= end):
                return sent
            # It may have gone out between the two calls: the outcome is asked for once more.
            over = self.info().status == "Disconnected" or self.client.info().state in ("created", "stopped")

    def close(self) -> None:
        """Closes the session; if it is joined, it leaves in the background."""
        if self.client._sessions.pop(self._handle, None) is not None:
            try:
                library.call("mrtc_session_close", self._handle)
            finally:
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
        text = None if intent is None else library.text("intent", intent)
        library.call("mrtc_session_update_intent", self._handle, text)

    def update_application_data(self, data: Mapping[str, Any]) -> None:
        """Replaces the application data of our membership."""
        library.call("mrtc_session_update_application_data", self._handle, library.encode(data))

    def debug_snapshot(self) -> dict[str, Any]:
        """Why the session is as it is, for a bug report; without secrets."""
        snapshot: dict[str, Any] = library.call("mrtc_session_debug_snapshot", self._handle)
        return snapshot


def _json(transport: Transport | Mapping[str, Any]) -> Any:
    return transport.json() if isinstance(transport, Transport) else transport
