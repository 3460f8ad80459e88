"""The library's log lines, passed on to Python's logging when asked to."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
from typing import Any

from . import library
from .errors import MatrixRTCError

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

# The function that the library calls now: it must outlive its use.
_callback: Any = None


def enable_logging(logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
    """Passes log lines of at least `level` to `logger` ("matrixrtc"), with their fields behind the
    message and as `record.fields`. No line holds a secret. The logger is called on a thread of the library:
    this is the one thing here that is, so it is off unless asked for."""
    global _callback
    target = logger if logger is not None else logging.getLogger("matrixrtc")

    def receive(at: int, text: bytes, length: int, _: Any) -> None:
        line = json.loads(text[:length])
        message = line.pop("message", "")
        shown = ", ".join(f"{name}={value}" for name, value in line.items() if value not in (None, "", 0))
        shown = f"{message}: {shown}" if shown else message
        target.log(_LEVELS[min(max(at, 0), len(_LEVELS) - 1)], "%s", shown, extra={"fields": line})

    wanted = sum(level > known for known in _LEVELS)
    callback = library.LOG_FUNCTION(receive)
    library.set_log_callback(callback, wanted)
    # The one before is not called again once the call above has returned.
    _callback = callback


def disable_logging() -> None:
    """Ends what `enable_logging` began; no line is passed on after it returns."""
    global _callback
    if _callback is not None:
        library.set_log_callback(library.LOG_FUNCTION(), 0)
        _callback = None


def _at_exit() -> None:
    # In a forked child the library refuses, and calls nobody.
    with contextlib.suppress(MatrixRTCError):
        disable_logging()


atexit.register(_at_exit)
