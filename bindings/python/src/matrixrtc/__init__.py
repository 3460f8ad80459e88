"""MatrixRTC, the layer under a Matrix call: who is in it, and where their media is.

A participant in a few lines::

    async with Client("https://example.org", user_id="@bot:example.org", password="...") as client:
        session = client.session("!room:example.org")
        session.join([Transport.livekit("https://lk.example.org")])
        async for event in session.events():
            print(event.name, event.data)

The native library is loaded at first use, never at import, so that a process may import, fork and
then use it.
"""

from .client import Client
from .emitter import Emitter
from .errors import (
    ClientFailedError,
    ForkedError,
    HomeserverError,
    InternalError,
    InvalidArgumentError,
    InvalidHandleError,
    InvalidStateError,
    MatrixRTCError,
    NetworkError,
    NotFoundError,
    SFUError,
    WouldDeadlockError,
)
from .events import Event, EventStream
from .logs import disable_logging, enable_logging
from .session import Session
from .types import (
    SFU,
    ClientInfo,
    Departure,
    JoinSettings,
    KeyMissing,
    KeyUndelivered,
    MediaKey,
    Membership,
    MembershipsChanged,
    RoomCall,
    SessionInfo,
    SFUFailed,
    SFUMember,
    SFUsChanged,
    SFUToken,
    Transport,
    Update,
)

__all__ = [
    "SFU",
    "Client",
    "ClientFailedError",
    "ClientInfo",
    "Departure",
    "Emitter",
    "Event",
    "EventStream",
    "ForkedError",
    "HomeserverError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidHandleError",
    "InvalidStateError",
    "JoinSettings",
    "KeyMissing",
    "KeyUndelivered",
    "MatrixRTCError",
    "MediaKey",
    "Membership",
    "MembershipsChanged",
    "NetworkError",
    "NotFoundError",
    "RoomCall",
    "SFUError",
    "SFUFailed",
    "SFUMember",
    "SFUToken",
    "SFUsChanged",
    "Session",
    "SessionInfo",
    "Transport",
    "Update",
    "WouldDeadlockError",
    "disable_logging",
    "enable_logging",
]
