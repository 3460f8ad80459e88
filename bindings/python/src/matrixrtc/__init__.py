"""MatrixRTC, the layer under a Matrix call: who is in it, and where their media is.

A participant in a few lines::

    async with Client("https://example.org", user_id="@bot:example.org", password="...") as client:
        session = client.session("!room:example.org")
        session.join([{"type": "livekit", "livekit_service_url": "https://lk.example.org"}])
        async for event in session.events():
            print(event.name, event.data)

The native library is loaded at first use, never at import, so that a process may import, fork and
then use it.
"""

from .client import Client, Event, Session
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
    WouldDeadlockError,
)
from .types import ClientInfo, Departure, Membership, MembershipsChanged, RoomCall, SessionInfo, Update

__all__ = [
    "Client",
    "ClientFailedError",
    "ClientInfo",
    "Departure",
    "Emitter",
    "Event",
    "ForkedError",
    "HomeserverError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidHandleError",
    "InvalidStateError",
    "MatrixRTCError",
    "Membership",
    "MembershipsChanged",
    "NetworkError",
    "NotFoundError",
    "RoomCall",
    "Session",
    "SessionInfo",
    "Update",
    "WouldDeadlockError",
]
