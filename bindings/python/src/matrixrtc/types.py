"""What the library tells, as dataclasses. Fields that a newer library adds are passed over."""

from __future__ import annotations

import dataclasses
from typing import Any, Self


class _FromJSON:
    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        assert dataclasses.is_dataclass(cls)
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


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
    transports: list[dict[str, Any]] | None = None
    call_id: str = ""
    intent: str | None = None
    focus_selection: str | None = None
    active_transport: dict[str, Any] | None = None
    scope: str | None = None


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
    active_transport: dict[str, Any] | None = None
    consensus_intent: str | None = None
    room_version: str = ""
    encrypted: bool = False

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        members = {k: Membership.parse(data[k]) for k in ("own_membership", "oldest_membership") if data.get(k)}
        return super().parse({**data, **members})


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
