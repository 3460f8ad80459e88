"""A session: one call of one room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from . import library
from .errors import InvalidHandleError, SFUError
from .events import Event, EventSource
from .types import SFU, JoinSettings, MediaKey, Membership, SessionInfo, SFUToken, Transport

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
        foci_preferred: Sequence[Transport | Mapping[str, Any]] | None = None,
        foci_active: Transport | Mapping[str, Any] | None = None,
        *,
        call_intent: str | None = None,
        application_data: Mapping[str, Any] | None = None,
        member_id: str | None = None,
        dialect: str | None = None,
        **settings: Unpack[JoinSettings],
    ) -> None:
        """Announces this device and keeps it announced until `leave`, in the background.

        `foci_preferred` are the transports of our media; without them it is the first that the
        homeserver offers, and where it offers none the join ends with the events
        `membership_manager_error` and `left`. `foci_active` is one to be put in front of
        them, or ``{"focus_selection": "multi_sfu" | "oldest_membership"}``. `call_intent` is "audio",
        "video", ...; `application_data` are further fields of our membership; `member_id` is made of
        user and device by default; `dialect` is the generation of the event ("state"). For
        `settings` see JoinSettings.

        Returns at once: `status_changed` tells how far it is, and `membership_manager_error` why it
        is no further (a refused login, a room that we are not in, a missing permission, ...).
        InvalidArgumentError names the field, InvalidStateError: joined already.
        """
        given: dict[str, Any] = {
            "foci_preferred": _json(foci_preferred),
            "foci_active": _json(foci_active),
            "call_intent": call_intent,
            "application_data": application_data,
            "member_id": member_id,
            "dialect": dialect,
            **settings,
        }
        params = {k: v for k, v in given.items() if v is not None}
        library.call("mrtc_session_join", self._handle, library.encode(params))

    async def leave(self, timeout: float | None = None) -> bool:
        """Leaves (InvalidStateError where the session is not joined); whether the leave reached the
        server within `timeout` seconds (None: waits for as long as it takes)."""
        self._watch()
        left: asyncio.Future[bool] = self._wait()

        def listener(event: Event) -> None:
            if not left.done():
                left.set_result(bool(event.data["sent"]))

        self.once("left", listener)
        try:
            self.leave_soon()
            return await asyncio.wait_for(left, timeout)
        except (TimeoutError, InvalidHandleError):
            return False
        finally:
            self.off("left", listener)
            left.cancel()

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
        """What is true of the session now. As all that follow: raises InvalidHandleError once it or
        its client is closed."""
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

    def encryption_keys(self) -> list[MediaKey]:
        """The media keys that are held: our own first, then by member, oldest first, and by index."""
        keys = library.call("mrtc_session_encryption_keys", self._handle)["keys"]
        return [MediaKey.parse(k) for k in keys]

    def participant_keys(self, user_id: str, device_id: str) -> list[MediaKey] | None:
        """The media keys of one device, by index; None where none is known."""
        who = library.text("user_id", user_id), library.text("device_id", device_id)
        keys = library.call("mrtc_session_participant_keys", self._handle, *who)["keys"]
        return None if keys is None else [MediaKey.parse(k) for k in keys]

    def reemit_encryption_keys(self) -> None:
        """Tells every key that is held once more, as events `encryption_key_changed`."""
        library.call("mrtc_session_reemit_encryption_keys", self._handle)

    def on_call_encryption(self, event: Mapping[str, Any]) -> None:
        """Takes in a room event `io.element.call.encryption_keys`, plain or already decrypted; one
        that is malformed is logged and ignored. Not needed where the library syncs."""
        library.call("mrtc_session_on_call_encryption", self._handle, library.encode(event))

    @property
    def sfus(self) -> list[SFU]:
        """What to connect to: the SFUs where the members publish, and where we do. Changes are told
        by the event `sfus_changed`."""
        return [SFU.parse(s) for s in library.call("mrtc_session_sfus", self._handle)["sfus"]]

    def sfu_token(self, service_url: str | None = None, timeout: float | None = 30.0) -> SFUToken:
        """The token for an SFU (None: where we publish), waiting up to `timeout` seconds for it:
        TimeoutError when none came, SFUError when an attempt failed. From now on it is kept fresh:
        `sfu_token_refreshed` and `sfu_failed` tell."""
        which = _which(service_url)
        wait = lambda ms: library.call("mrtc_session_sfu_token_wait", self._handle, which, ms)  # noqa: E731
        return SFUToken.parse(library.in_slices(wait, timeout))

    async def fetch_sfu_token(self, service_url: str | None = None, timeout: float | None = 30.0) -> SFUToken:
        """`sfu_token` for asyncio."""
        self._watch()
        outcome: asyncio.Future[SFUToken] = self._wait()
        which = _which(service_url)

        def held() -> SFUToken | None:
            try:
                return SFUToken.parse(library.call("mrtc_session_sfu_token", self._handle, which))
            except TimeoutError:
                return None

        def refreshed(event: Event) -> None:
            if not outcome.done() and (token := held()):
                outcome.set_result(token)

        def failed(event: Event) -> None:
            named = service_url or next((s.service_url for s in self.sfus if s.publish), None)
            if not outcome.done() and event.data["service_url"] == named:
                outcome.set_exception(SFUError({"status": "MRTC_ERR_SFU", **event.data}))

        self.on("sfu_token_refreshed", refreshed).on("sfu_failed", failed)
        try:
            token = held()
            return await asyncio.wait_for(outcome, timeout) if token is None else token
        finally:
            self.off("sfu_token_refreshed", refreshed).off("sfu_failed", failed)
            outcome.cancel()

    def sfu_connected(
        self,
        connected: bool,
        service_url: str | None = None,
        *,
        error: str | None = None,
        http_status: int | None = None,
    ) -> None:
        """Tells of the media connection to an SFU (None: where we publish), and, with `connected`
        false, what the SFU or its SDK said."""
        given = {"service_url": service_url, "connected": connected, "error": error, "http_status": http_status}
        params = {k: v for k, v in given.items() if v is not None}
        library.call("mrtc_session_sfu_connected", self._handle, library.encode(params))

    def delegate_leave(self, delegate: bool = True) -> None:
        """Has our delayed leave handed over to the authorisation service while we are connected to
        the SFU that we publish to, or keeps it ours; `leave_delegated_changed` tells."""
        library.call("mrtc_session_delegate_leave", self._handle, int(delegate))

    def debug_snapshot(self) -> dict[str, Any]:
        """Why the session is as it is, for a bug report; without secrets."""
        snapshot: dict[str, Any] = library.call("mrtc_session_debug_snapshot", self._handle)
        return snapshot


def _which(service_url: str | None) -> bytes:
    return library.encode({} if service_url is None else {"service_url": service_url})


def _json(given: object) -> object:
    """A transport or several; the library refuses what is neither, by name."""
    if isinstance(given, Transport):
        return given.json()
    return [_json(t) for t in given] if isinstance(given, Sequence) and not isinstance(given, str) else given
