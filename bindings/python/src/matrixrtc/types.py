"""What the library tells, as dataclasses. Fields that a newer library adds are passed over."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, TypedDict


class _FromJSON:
    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        assert dataclasses.is_dataclass(cls)
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


@dataclasses.dataclass(frozen=True)
class Transport:
    """Where media is: a type, and what else that type says."""

    type: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def livekit(cls, service_url: str, **fields: Any) -> Self:
        """A LiveKit SFU, by the URL of its authorisation service."""
        return cls("livekit", {"livekit_service_url": service_url, **fields})

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        return cls(data.get("type", ""), {k: v for k, v in data.items() if k != "type"})

    def json(self) -> dict[str, Any]:
        return {"type": self.type, **self.fields}

    @property
    def livekit_service_url(self) -> str | None:
        return self.fields.get("livekit_service_url")


class JoinSettings(TypedDict, total=False):
    """How to be in a call; durations in ms. What is not given has the default that the header
    names at mrtc_session_join."""

    delayed_leave_delay_ms: int
    delayed_leave_restart_ms: int
    delayed_leave_restart_timeout_ms: int
    membership_expiry_ms: int
    membership_expiry_headroom_ms: int
    network_error_retry_ms: int
    max_network_retries: int
    max_rate_limit_retries: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Membership(_FromJSON):
    """A device's membership of a call. Times are Unix times in ms."""

    user_id: str
    device_id: str
    member_id: str
    slot_id: str
    application: str
    dialect: str
    event_id: str
    joined_ts: int
    expires_ts: int
    sfu_identity: str
    application_data: dict[str, Any]
    transports: list[Transport] = dataclasses.field(default_factory=list)
    call_id: str = ""
    intent: str | None = None
    focus_selection: str | None = None
    active_transport: Transport | None = None
    scope: str | None = None

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        given = {**data, "transports": [Transport.parse(t) for t in data.get("transports") or []]}
        return super().parse(_with_active(given))


@dataclasses.dataclass(frozen=True)
class Departure:
    """A member that is gone, and why."""

    membership: Membership
    reason: str


@dataclasses.dataclass(frozen=True)
class Update:
    """A member that changed."""

    before: Membership
    after: Membership


@dataclasses.dataclass(frozen=True)
class MembershipsChanged:
    """The difference that an event `memberships_changed` tells."""

    joined: list[Membership]
    left: list[Departure]
    updated: list[Update]
    count: int

    @classmethod
    def parse(cls, data: dict[str, Any]) -> MembershipsChanged:
        return cls(
            joined=[Membership.parse(m) for m in data["joined"]],
            left=[Departure(Membership.parse(d["membership"]), d["reason"]) for d in data["left"]],
            updated=[Update(Membership.parse(u["before"]), Membership.parse(u["after"])) for u in data["updated"]],
            count=data["count"],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionInfo(_FromJSON):
    """What is true of a session. `delay_id` is a credential: who has it can remove us."""

    room_id: str
    slot_id: str
    joined: bool
    status: str
    probably_left: bool
    member_count: int
    statistics: dict[str, int]
    call_id: str | None = None
    delay_id: str | None = dataclasses.field(default=None, repr=False)
    own_membership: Membership | None = None
    oldest_membership: Membership | None = None
    active_transport: Transport | None = None
    consensus_intent: str | None = None
    room_version: str = ""
    encrypted: bool = False

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        members = {k: Membership.parse(data[k]) for k in ("own_membership", "oldest_membership") if data.get(k)}
        return super().parse(_with_active({**data, **members}))


def _with_active(data: dict[str, Any]) -> dict[str, Any]:
    active = data.get("active_transport")
    return {**data, "active_transport": Transport.parse(active) if active else None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientInfo(_FromJSON):
    """What is true of a client."""

    mode: str
    state: str
    sync_state: str
    user_id: str
    device_id: str
    room_count: int
    homeserver_url: str = ""
    last_error: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomCall(_FromJSON):
    """A call that is going on in a room, opened or not."""

    room_id: str
    slot_id: str
    call_id: str
    member_count: int
    started_ts: int
