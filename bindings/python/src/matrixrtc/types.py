"""What the library tells, as dataclasses. Fields that a newer library adds are passed over."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any, Literal, Self, TypedDict


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
    """How to be in a call; durations in ms."""

    delayed_leave_delay_ms: int
    """10000: so long after our last sign of life the homeserver removes us (MSC4140)."""
    delayed_leave_restart_ms: int
    """4000: how often we give one."""
    delayed_leave_restart_timeout_ms: int
    """2000: one that is not answered for so long is given again."""
    membership_expiry_ms: int
    """14400000: for so long our membership counts unless it is refreshed."""
    membership_expiry_headroom_ms: int
    """5000: so much earlier it is refreshed."""
    network_error_retry_ms: int
    """1000: the first pause after a failure; later ones are longer."""
    max_network_retries: int
    """10: after so many failures in a row `membership_manager_error` tells, and it goes on trying."""
    max_rate_limit_retries: int
    """10: as `max_network_retries`, of refusals for too many requests."""
    manage_media_keys: bool
    """Whether there are media keys; absent: whether the room is encrypted."""
    use_key_delay_ms: int
    """1000: between the sending of a key and its use."""
    key_rotation_grace_ms: int
    """10000: whoever comes while our key is younger is given that one; later a new one is made."""
    key_rotation_participant_limit: int
    """0 (none): where so many are in the call, keys stay."""
    max_key_lifetime_ms: int
    """5400000: a key is replaced after it."""
    key_missing_after_ms: int
    """10000: `encryption_key_missing` tells of a member that is here for so long without a key."""
    require_cross_signed: bool
    """False: whether keys of devices not known to be signed by their owner are refused (MSC4153)."""
    key_transport: Literal["to_device", "room_event"]
    """How our keys are sent: "to_device" by default."""
    delegate_leave: bool
    """False: see `Session.delegate_leave`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Membership(_FromJSON):
    """A device's membership of a call. Times are Unix times in ms. `member_id` is unique in the call,
    `sfu_identity` is who the member is on its SFU, `active_transport` where its media is,
    `transports` where it could be (preferred first), `focus_selection` how it is chosen,
    `application_data` all fields of the event that are not the membership's own."""

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
    """A member that is gone, and why: "left", "expired", "room_left" (the user left the room),
    "invalid" (its event no longer makes sense) or "rejoined" (it is among the joined again)."""

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
class MediaKey(_FromJSON):
    """A media key of a participant. One of our `own` is to encrypt with while it is `in_use`; those
    of others are to decrypt with, by `sfu_identity` and `index`. `fingerprint` may be shown."""

    user_id: str
    device_id: str
    member_id: str
    sfu_identity: str
    index: int
    key: bytes = dataclasses.field(repr=False)
    own: bool
    in_use: bool
    fingerprint: str

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        return super().parse({**data, "key": base64.b64decode(data["key"] + "==")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyMissing(_FromJSON):
    """A member is here for some time and none of its keys has come; not `missing`: one came after
    all."""

    user_id: str
    device_id: str
    member_id: str
    missing: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyUndelivered(_FromJSON):
    """Our key did not reach a device, for this reason, and is tried again; `delivered`: it did."""

    user_id: str
    device_id: str
    member_id: str
    index: int
    delivered: bool
    reason: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFUMember(_FromJSON):
    """Somebody who publishes on an SFU, and the identity there."""

    user_id: str
    device_id: str
    member_id: str
    sfu_identity: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFU(_FromJSON):
    """A place where the media of a call is, by the URL of its authorisation service. `publish`:
    ours goes there. One that is not `trusted`, for this `reason`, is not talked to."""

    service_url: str
    publish: bool
    trusted: bool
    reason: str | None = None
    members: list[SFUMember] = dataclasses.field(default_factory=list)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        return super().parse({**data, "members": [SFUMember.parse(m) for m in data.get("members", [])]})


@dataclasses.dataclass(frozen=True)
class SFUsChanged:
    """The difference that an event `sfus_changed` tells: what to connect to, and to leave. With
    `publish` our media moves, from where to where (None: nowhere)."""

    added: list[SFU]
    removed: list[str]
    updated: list[SFU]
    ignored: int
    publish: tuple[str | None, str | None] | None = None

    @classmethod
    def parse(cls, data: dict[str, Any]) -> SFUsChanged:
        move = data.get("publish")
        return cls(
            added=[SFU.parse(s) for s in data["added"]],
            removed=data["removed"],
            updated=[SFU.parse(s) for s in data["updated"]],
            ignored=data["ignored"],
            publish=(move["from"], move["to"]) if move else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFUToken(_FromJSON):
    """What lets one enter an SFU: connect to `url` with `jwt`, a credential. `expires_ts` is Unix
    time in ms."""

    service_url: str
    url: str
    jwt: str = dataclasses.field(repr=False)
    identity: str
    room: str
    expires_ts: int
    generation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFUFailed(_FromJSON):
    """An SFU could not be entered, for this reason; it is tried again after `retry_in_ms`, if that
    is not 0."""

    service_url: str
    reason: str
    message: str
    retry_in_ms: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionInfo(_FromJSON):
    """What is true of a session. `joined`: we mean to be in the call; `status`: where our membership
    stands on the homeserver ("Disconnected", "Connecting", "Connected", "Disconnecting");
    `probably_left`: it may have removed us unheard. `delay_id` is a credential: who has it can
    remove us."""

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
    keys_managed: bool = False
    key_rotation_suppressed: bool = False
    leave_delegated: bool = False

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        members = {k: Membership.parse(data[k]) for k in ("own_membership", "oldest_membership") if data.get(k)}
        return super().parse(_with_active({**data, **members}))


def _with_active(data: dict[str, Any]) -> dict[str, Any]:
    active = data.get("active_transport")
    return {**data, "active_transport": Transport.parse(active) if active else None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientInfo(_FromJSON):
    """What is true of a client. `state` is "created", "started", "stopping", "stopped" or "failed",
    `sync_state` that of the last such event, `last_error` its error. `user_id` and `device_id` are
    empty until they are known."""

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
    """A call that is going on in a room, opened or not, since `started_ts` (Unix time in ms)."""

    room_id: str
    slot_id: str
    call_id: str
    member_count: int
    started_ts: int
