"""What the library refuses, as exceptions: one class for each status of the C interface."""

from __future__ import annotations

from typing import Any


class MatrixRTCError(Exception):
    """Something failed. `status` is the name in the C interface, `path` a JSON pointer to the
    offending field, `errcode` and `http_status` what the homeserver said."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.status: str = error.get("status", "MRTC_ERR_INTERNAL")
        self.message: str = error.get("message", "")
        self.path: str | None = error.get("path")
        self.errcode: str | None = error.get("errcode")
        self.http_status: int | None = error.get("http_status")
        self.retry_after_ms: int | None = error.get("retry_after_ms")
        where = f"{self.path}: " if self.path else ""
        super().__init__(f"{where}{self.message or self.status}")


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


BY_STATUS: dict[int, type[MatrixRTCError]] = {
    -1: InvalidArgumentError,
    -2: InvalidHandleError,
    -3: InvalidStateError,
    -4: WouldDeadlockError,
    -5: HomeserverError,
    -6: NetworkError,
    -7: InternalError,
    -8: ForkedError,
    -9: ClientFailedError,
    -10: NotFoundError,
}
