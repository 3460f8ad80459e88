"""What the library refuses, as exceptions: one class for each status of the C interface."""

from __future__ import annotations

import json
from typing import Any


class MatrixRTCError(Exception):
    """Something failed. `status` is the name in the C interface, `message` is for a person, `path` a
    JSON pointer to the offending field, `errcode`, `http_status` and `retry_after_ms` what the
    homeserver said, `reason` why an SFU cannot be entered."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.status: str = error.get("status", "MRTC_ERR_INTERNAL")
        self.message: str = error.get("message", "")
        self.path: str | None = error.get("path")
        self.errcode: str | None = error.get("errcode")
        self.http_status: int | None = error.get("http_status")
        self.retry_after_ms: int | None = error.get("retry_after_ms")
        self.reason: str | None = error.get("reason")
        self._error = error
        where = f"{self.path}: " if self.path else ""
        super().__init__(f"{where}{self.message or self.status}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions travel between processes."""
        return type(self), (self._error,)


class InvalidArgumentError(MatrixRTCError):
    """An argument is not what was expected."""


class InvalidHandleError(MatrixRTCError):
    """The client or session is closed."""


class InvalidStateError(MatrixRTCError):
    """Not now: not joined, already started, and the like."""


class WouldDeadlockError(MatrixRTCError):
    """A waiting function was called where it can never return."""


class HomeserverError(MatrixRTCError):
    """The homeserver refused."""


class NetworkError(MatrixRTCError):
    """The homeserver did not answer."""


class InternalError(MatrixRTCError):
    """A bug of the library."""


class ForkedError(MatrixRTCError):
    """The library was loaded before this process was forked."""


class ClientFailedError(MatrixRTCError):
    """An internal error has ended this client."""


class NotFoundError(MatrixRTCError):
    """There is no such thing."""


class SFUError(MatrixRTCError):
    """An SFU cannot be entered; `reason` says why."""


def closed(what: str) -> InvalidHandleError:
    """What is raised where somebody waits for the events of a session or client that is closed."""
    return InvalidHandleError({"status": "MRTC_ERR_INVALID_HANDLE", "message": f"the {what} is closed"})


_CLASSES: dict[int, tuple[str, type[MatrixRTCError]]] = {
    -1: ("MRTC_ERR_INVALID_ARGUMENT", InvalidArgumentError),
    -2: ("MRTC_ERR_INVALID_HANDLE", InvalidHandleError),
    -3: ("MRTC_ERR_INVALID_STATE", InvalidStateError),
    -4: ("MRTC_ERR_WOULD_DEADLOCK", WouldDeadlockError),
    -5: ("MRTC_ERR_HOMESERVER", HomeserverError),
    -6: ("MRTC_ERR_NETWORK", NetworkError),
    -7: ("MRTC_ERR_INTERNAL", InternalError),
    -8: ("MRTC_ERR_FORKED", ForkedError),
    -9: ("MRTC_ERR_CLIENT_FAILED", ClientFailedError),
    -10: ("MRTC_ERR_NOT_FOUND", NotFoundError),
    -11: ("MRTC_ERR_SFU", SFUError),
}


def error_of(status: int, text: bytes | None) -> MatrixRTCError:
    """The exception for a status and the error object that came with it."""
    name, kind = _CLASSES.get(status, (f"MRTC_ERR_UNKNOWN ({status})", MatrixRTCError))
    return kind({"status": name, "message": kind.__doc__, **(json.loads(text) if text else {})})
