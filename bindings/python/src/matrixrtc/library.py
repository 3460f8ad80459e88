"""The native library: found and loaded at first use, and called."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import error_of

ABI_VERSION = 1
TIMEOUT = 1

# Waiting calls run in slices, so that Ctrl-C is answered.
_SLICE_MS = 100

_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None

_u64, _i64, _text, _out = ctypes.c_uint64, ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
# A log line: level, JSON, its length, and what was given with the function.
LOG_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int, _text, ctypes.c_size_t, ctypes.c_void_p)
_SIGNATURES: dict[str, list[Any]] = {
    "mrtc_set_log_callback": [LOG_FUNCTION, ctypes.c_void_p, ctypes.c_int],
    "mrtc_client_new": [_text, ctypes.POINTER(_u64), _out],
    "mrtc_client_start": [_u64, _out],
    "mrtc_client_stop": [_u64, _out],
    "mrtc_client_stop_wait": [_u64, _i64, _out],
    "mrtc_client_free": [_u64, _out],
    "mrtc_client_info": [_u64, _out],
    "mrtc_client_next_event": [_u64, _i64, _out],
    "mrtc_client_event_fd": [_u64, ctypes.POINTER(ctypes.c_int), _out],
    "mrtc_client_set_access_token": [_u64, _text, _out],
    "mrtc_client_sessions": [_u64, _out],
    "mrtc_client_transports": [_u64, _out],
    "mrtc_client_feed": [_u64, _text, _out],
    "mrtc_client_respond": [_u64, _text, _out],
    "mrtc_client_advance": [_u64, _text, _out],
    "mrtc_session_open": [_u64, _text, _text, ctypes.POINTER(_u64), _out],
    "mrtc_session_close": [_u64, _out],
    "mrtc_session_join": [_u64, _text, _out],
    "mrtc_session_leave": [_u64, _out],
    "mrtc_session_leave_wait": [_u64, _i64, _out],
    "mrtc_session_info": [_u64, _out],
    "mrtc_session_memberships": [_u64, _out],
    "mrtc_session_on_membership_update": [_u64, _out],
    "mrtc_session_update_intent": [_u64, _text, _out],
    "mrtc_session_update_application_data": [_u64, _text, _out],
    "mrtc_session_encryption_keys": [_u64, _out],
    "mrtc_session_participant_keys": [_u64, _text, _text, _out],
    "mrtc_session_reemit_encryption_keys": [_u64, _out],
    "mrtc_session_on_call_encryption": [_u64, _text, _out],
    "mrtc_session_sfus": [_u64, _out],
    "mrtc_session_sfu_token": [_u64, _text, _out],
    "mrtc_session_sfu_token_wait": [_u64, _text, _i64, _out],
    "mrtc_session_sfu_connected": [_u64, _text, _out],
    "mrtc_session_delegate_leave": [_u64, ctypes.c_int, _out],
    "mrtc_session_debug_snapshot": [_u64, _out],
}


def _candidates() -> list[str]:
    if named := os.environ.get("MATRIXRTC_LIBRARY"):
        return [named]
    here = pathlib.Path(__file__).resolve().parent
    beside = [here / "libmatrixrtc.so"]
    if len(here.parents) > 3:  # a source checkout: bindings/python/src/matrixrtc
        beside.append(here.parents[3] / "build" / "libmatrixrtc.so")
    return [str(p) for p in beside if p.exists()] + ["libmatrixrtc.so.1"]


def load() -> ctypes.CDLL:
    """The library, loaded by the first call."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _open()
    return _loaded


def _open() -> ctypes.CDLL:
    failures = []
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
            break
        except OSError as e:
            failures.append(str(e))
    else:
        raise OSError("libmatrixrtc was not found; set MATRIXRTC_LIBRARY to its path. " + "; ".join(failures))
    try:
        lib.mrtc_abi_version.restype = ctypes.c_int
        version = lib.mrtc_abi_version()
        if version != ABI_VERSION:
            raise OSError(f"{path} has ABI version {version}, this package needs {ABI_VERSION}")
        lib.mrtc_free.argtypes, lib.mrtc_free.restype = [ctypes.c_void_p], None
        for name, arguments in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, ctypes.c_int32
    except AttributeError as e:
        raise OSError(f"{path} is not a libmatrixrtc that this package can use: {e}") from e
    return lib


def raw_call(name: str, *args: Any) -> tuple[int, bytes | None]:
    """Calls a function; its status and what `out` received."""
    lib = load()
    out = ctypes.c_void_p()
    status: int = getattr(lib, name)(*args, ctypes.byref(out))
    if not out.value:
        return status, None
    try:
        return status, ctypes.string_at(out.value)
    finally:
        lib.mrtc_free(out)


def call(name: str, *args: Any) -> Any:
    """Calls a function and raises its error; the result, decoded."""
    status, text = raw_call(name, *args)
    if status == TIMEOUT:
        raise TimeoutError
    if status < 0:
        raise error_of(status, text)
    return json.loads(text) if text else None


def set_log_callback(function: Any, level: int) -> None:
    """The one function without `out`."""
    status: int = load().mrtc_set_log_callback(function, None, level)
    if status < 0:
        raise error_of(status, None)


def slice_ms(end: float | None) -> int:
    """How long one waiting call may take, for a wait that ends at `end` (monotonic)."""
    return _SLICE_MS if end is None else max(0, min(_SLICE_MS, int((end - time.monotonic()) * 1000)))


def in_slices(wait: Callable[[int], Any], timeout: float | None) -> Any:
    """Makes a waiting call again and again, so that Ctrl-C is answered in between."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return wait(slice_ms(end))
        except TimeoutError:
            if end is not None and time.monotonic() >= end:
                raise


def encode(value: Any) -> bytes:
    """JSON, as an argument."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def text(name: str, value: str) -> bytes:
    """A string, as an argument."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{name}: expected a string without NUL")
    return value.encode()
