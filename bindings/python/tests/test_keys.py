"""Media keys through the binding: a host-driven call whose host is the other side too, and calls on a
homeserver."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import CALL_MEMBER, SOURCE, TOP, Account

import matrixrtc
from matrixrtc import Client, Event, MediaKey, Session, Transport

ROOM = "!r:x"
KEYS = "io.element.call.encryption_keys"
THEIRS = bytes(range(16))
Make = Callable[..., "Call"]
Pair = tuple[Account, Account, str]
SFU = Transport.livekit("https://sfu.example.org")
TIMEOUT = 60


class Call:
    """We are @us:x; the test is the homeserver, the host's Olm, and everybody else."""

    def __init__(self, *, encrypted: bool = True, **settings: Any) -> None:
        self.client = Client.host_driven("@us:x", "US", clock="manual")
        self.session = self.client.session(ROOM)
        self.boot = 0
        self.members: dict[str, str] = {}
        self.unreachable: set[str] = set()
        self.events: list[Event] = []
        self.sent: list[tuple[list[str], dict[str, Any]]] = []
        self.seconds(0)
        state = [
            self.state("m.room.create", "@us:x", "", {"room_version": "10"}),
            self.state("m.room.member", "@us:x", "@us:x", {"membership": "join"}),
        ]
        if encrypted:
            state.append(self.state("m.room.encryption", "@us:x", "", {"algorithm": "m.megolm.v1.aes-sha2"}))
        self.client.feed(state={"room_id": ROOM, "events": state, "complete": True})
        self.session.join([], **settings)
        self.take()

    def now(self) -> int:
        return 1_700_000_000_000 + self.boot

    def state(self, kind: str, sender: str, key: str, content: dict[str, Any]) -> dict[str, Any]:
        self.boot += 1
        return {
            "type": kind,
            "sender": sender,
            "state_key": key,
            "content": content,
            "event_id": f"${self.boot}",
            "origin_server_ts": self.now(),
        }

    def seconds(self, seconds: float) -> None:
        """Lets time pass, and does all that is asked meanwhile."""
        self.boot += int(seconds * 1000)
        self.client.advance(boot_ms=self.boot, wall_ts=self.now())
        self.take()

    def take(self) -> None:
        while event := self.client.next_event(0):
            self.events.append(event)
            if event.name == "request":
                self.answer(event.data)

    def answer(self, request: dict[str, Any]) -> None:
        kind, number = request["kind"], request["id"]
        if kind == "encrypt_and_send_to_device":
            devices = request["recipients"]
            self.sent.append(
                ([d["user_id"] for d in devices if d["user_id"] not in self.unreachable], request["content"])
            )
            for i, d in enumerate(devices):
                reason = {"reason": "no_one_time_key"} if d["user_id"] in self.unreachable else {}
                self.client.respond(number, deliveries=[{**d, **reason}], more=i < len(devices) - 1)
            return
        answers = {"list_delayed": {"delayed_events": []}, "schedule_delayed": {"delay_id": "d"}}
        self.client.respond(number, 200, body=answers.get(kind, {"event_id": "$own", "capabilities": {}}))

    def comes(self, user: str) -> None:
        content = {
            "application": "m.call",
            "call_id": "",
            "device_id": "THEM",
            "focus_active": {"type": "livekit", "focus_selection": "multi_sfu"},
            "foci_preferred": [],
        }
        self.feed(
            self.state("m.room.member", user, user, {"membership": "join"}),
            self.state(CALL_MEMBER, user, f"_{user}_THEM_m.call", content),
        )

    def goes(self, user: str) -> None:
        self.feed(self.state(CALL_MEMBER, user, f"_{user}_THEM_m.call", {}))

    def feed(self, *events: dict[str, Any]) -> None:
        self.client.feed(state={"room_id": ROOM, "events": events})
        self.seconds(0)

    def key_from(self, user: str, index: int, key: bytes = THEIRS, **facts: Any) -> None:
        """A key of theirs arrives, as the host has decrypted it."""
        content = {
            "keys": {"index": index, "key": base64.b64encode(key).decode()},
            "member": {"id": f"{user}:THEM", "claimed_device_id": "THEM"},
            "room_id": ROOM,
            "session": {"application": "m.call", "call_id": "", "scope": "m.room"},
            "sent_ts": self.now(),
        }
        message = {"type": KEYS, "content": content, "sender": user, "sender_device": "THEM", "encrypted": True}
        self.client.feed(to_device=[{**message, **facts}])
        self.take()

    def named(self, name: str) -> list[Event]:
        return [e for e in self.events if e.name == name]


@pytest.fixture
def call() -> Iterator[Make]:
    opened: list[Call] = []

    def make(**settings: Any) -> Call:
        opened.append(Call(**settings))
        return opened[-1]

    yield make
    for one in opened:
        one.client.close(0)


def test_the_keys_of_a_call(call: Make) -> None:
    c = call()
    (first,) = c.session.encryption_keys()
    assert (first.user_id, first.device_id, first.index, first.own, first.in_use) == ("@us:x", "US", 0, True, True)
    assert len(first.key) == 16
    assert first.fingerprint == hashlib.sha256(first.key).hexdigest()[:8]
    assert c.session.participant_keys("@them:x", "THEM") is None

    c.comes("@them:x")
    c.key_from("@them:x", 7)
    told = [e.media_key for e in c.named("encryption_key_changed")]
    assert told == c.session.encryption_keys()
    theirs = told[1]
    assert theirs == MediaKey(
        user_id="@them:x",
        device_id="THEM",
        member_id="@them:x:THEM",
        sfu_identity="@them:x:THEM",
        index=7,
        key=THEIRS,
        own=False,
        in_use=True,
        fingerprint=hashlib.sha256(THEIRS).hexdigest()[:8],
    )
    assert c.session.participant_keys("@them:x", "THEM") == [theirs]
    assert c.session.participant_keys("@us:x", "US") == [first]
    ((reached, content),) = c.sent
    assert (reached, content["keys"]["index"]) == (["@them:x"], 0)

    before = len(c.named("encryption_key_changed"))
    c.session.reemit_encryption_keys()
    c.take()
    assert [e.media_key for e in c.named("encryption_key_changed")[before:]] == told

    info = c.session.info()
    assert info.encrypted and info.keys_managed and not info.key_rotation_suppressed
    assert (info.statistics["keys_sent"], info.statistics["keys_received"]) == (1, 1)


def test_a_leaver_makes_a_new_key_that_comes_into_use_later(call: Make) -> None:
    c = call(use_key_delay_ms=2000)
    c.comes("@them:x")
    c.comes("@others:x")
    c.sent.clear()
    c.goes("@them:x")
    assert [(who, content["keys"]["index"]) for who, content in c.sent] == [(["@others:x"], 1)]
    assert [k.in_use for k in c.session.encryption_keys()] == [True, False]
    c.seconds(2)
    assert [k.in_use for k in c.session.encryption_keys()] == [False, True]
    changed = [e.media_key for e in c.named("encryption_key_changed")]
    assert [(k.index, k.in_use) for k in changed] == [(0, True), (1, False), (1, True)]


def test_a_device_that_cannot_be_reached(call: Make) -> None:
    c = call()
    c.unreachable.add("@them:x")
    c.comes("@them:x")
    (told,) = [e.key_undelivered for e in c.named("encryption_key_undelivered")]
    assert (told.user_id, told.device_id, told.index, told.reason) == ("@them:x", "THEM", 0, "no_one_time_key")
    assert not told.delivered
    c.unreachable.clear()
    c.seconds(60)
    assert [e.key_undelivered.delivered for e in c.named("encryption_key_undelivered")] == [False, True]


def test_a_member_without_a_key(call: Make) -> None:
    c = call(key_missing_after_ms=3000)
    c.comes("@them:x")
    c.seconds(3)
    c.key_from("@them:x", 0)
    told = [e.key_missing for e in c.named("encryption_key_missing")]
    assert [(m.user_id, m.member_id, m.missing) for m in told] == [
        ("@them:x", "@them:x:THEM", True),
        ("@them:x", "@them:x:THEM", False),
    ]


def test_rotation_stops_at_the_limit(call: Make) -> None:
    c = call(key_rotation_participant_limit=2)
    c.comes("@them:x")
    c.comes("@others:x")
    assert c.session.info().key_rotation_suppressed
    c.goes("@them:x")
    c.goes("@others:x")
    told = [e.data["suppressed"] for e in c.named("key_rotation_suppressed_changed")]
    assert told[0] is True and told[-1] is (not told[-2])
    assert told[-1] is c.session.info().key_rotation_suppressed


def test_what_is_not_taken_in(call: Make) -> None:
    c = call(require_cross_signed=True)
    c.comes("@them:x")
    c.key_from("@them:x", 0, encrypted=False)
    c.key_from("@them:x", 0, sender_device="ANOTHER")
    c.key_from("@them:x", 0, key=b"short")
    c.key_from("@them:x", 256)
    c.key_from("@them:x", 0)
    assert c.session.participant_keys("@them:x", "THEM") is None
    refused = c.session.debug_snapshot()["keys"]["refused"]
    assert sum(refused.values()) == 5 and "came in clear" in refused
    c.key_from("@them:x", 0, cross_signed=True)
    assert c.session.participant_keys("@them:x", "THEM")


@pytest.mark.parametrize("by", ["feed", "on_call_encryption"])
def test_keys_by_room_event(call: Make, by: str) -> None:
    c = call(encrypted=False, manage_media_keys=True, key_transport="room_event")
    c.comes("@them:x")
    (request,) = [e for e in c.named("request") if e.data["kind"] == "encrypt_and_send_event"]
    assert request.data["content"]["keys"][0]["index"] == 0
    content = {"keys": [{"index": 3, "key": "AAECAwQFBgcICQoLDA0ODw"}], "device_id": "THEM", "call_id": ""}
    event = {
        "type": KEYS,
        "sender": "@them:x",
        "content": {**content, "sent_ts": c.now() - 40},
        "event_id": "$k",
        "origin_server_ts": c.now(),
    }
    if by == "feed":
        c.client.feed(timeline={"room_id": ROOM, "events": [event, {"type": KEYS}]})
    else:
        c.session.on_call_encryption({"type": KEYS, "content": {"keys": "none"}})
        c.session.on_call_encryption(event)
    keys = c.session.participant_keys("@them:x", "THEM")
    assert keys and [(k.index, k.key) for k in keys] == [(3, THEIRS)]
    statistics = c.session.info().statistics
    assert (statistics["room_event_keys_sent"], statistics["room_event_keys_received"]) == (1, 1)
    assert statistics["room_event_keys_received_total_age_ms"] == 40


def test_unmanaged_keys_are_neither_sent_nor_taken_in(call: Make) -> None:
    c = call(manage_media_keys=False)
    c.comes("@them:x")
    c.key_from("@them:x", 0)
    assert (c.sent, c.session.encryption_keys()) == ([], [])
    assert not c.session.info().keys_managed


def test_keys_are_not_shown(call: Make) -> None:
    c = call()
    c.comes("@them:x")
    c.key_from("@them:x", 0)
    shown = repr(c.events) + repr(c.session.encryption_keys()) + json.dumps(c.session.debug_snapshot())
    for key in c.session.encryption_keys():
        assert key.fingerprint in shown
        for form in (repr(key.key), key.key.hex(), base64.b64encode(key.key).decode().rstrip("=")):
            assert form not in shown


def test_misuse_of_keys(call: Make) -> None:
    c = call()
    with pytest.raises(TypeError, match="user_id"):
        c.session.participant_keys(None, "D")  # type: ignore[arg-type]
    for call_of in (
        lambda: c.client.feed(),
        lambda: c.client.feed(to_device=[{"type": KEYS}]),
        lambda: c.client.feed(timeline={"room_id": "r", "events": []}),
        lambda: c.client.feed(sync={}, timeline={"room_id": ROOM, "events": []}),
    ):
        with pytest.raises(matrixrtc.InvalidArgumentError):
            call_of()
    with pytest.raises(matrixrtc.NotFoundError):
        c.client.respond(4711, deliveries=[])
    c.session.close()
    for ended in (c.session.encryption_keys, c.session.reemit_encryption_keys):
        with pytest.raises(matrixrtc.InvalidHandleError):
            ended()


async def keys_of(session: Session, account: Account, held: Callable[[list[MediaKey]], bool]) -> list[MediaKey]:
    """The keys of a participant, once they are as wished."""
    events = session.events()
    while not held(keys := session.participant_keys(account.user_id, account.device_id) or []):
        event = await asyncio.wait_for(anext(events), TIMEOUT)
        assert event.name != "client_failed"
    return keys


def test_two_clients_share_their_keys_and_make_new_ones(encrypted_pair: Pair) -> None:
    alice, bob, room_id = encrypted_pair

    def in_use(session: Session) -> MediaKey:
        (key,) = [k for k in session.encryption_keys() if k.own and k.in_use]
        return key

    def has(key: MediaKey) -> Callable[[list[MediaKey]], bool]:
        return lambda keys: key.key in [k.key for k in keys if k.index == key.index]

    async def call() -> None:
        async with (
            Client(alice.url, access_token=alice.access_token) as a,
            Client(bob.url, access_token=bob.access_token) as b,
        ):
            ours, theirs = a.session(room_id), b.session(room_id)
            rotated = ours.events()
            ours.join([SFU])
            theirs.join([SFU])
            await keys_of(ours, bob, bool)
            await keys_of(theirs, alice, has(in_use(ours)))
            await keys_of(ours, bob, has(in_use(theirs)))
            first = in_use(ours)
            assert await theirs.leave(TIMEOUT) is True
            assert theirs.encryption_keys() == []
            async for event in rotated:
                if event.name == "encryption_key_changed" and event.media_key.own and event.media_key.in_use:
                    if event.media_key.index > first.index:
                        break
            assert in_use(ours).key != first.key

    asyncio.run(asyncio.wait_for(call(), 4 * TIMEOUT))


def test_the_readme_holds_the_keys_of_a_call(encrypted_pair: Pair) -> None:
    alice, bob, room_id = encrypted_pair
    blocks = re.findall(r"^```python\n(.*?)^```", (TOP / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (script,) = [block for block in blocks if "media_key" in block]
    command = [sys.executable, "-c", script, alice.url, alice.user_id, alice.password, room_id]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process,
        contextlib.ExitStack() as cleanup,
        Client(bob.url, access_token=bob.access_token) as b,
    ):
        cleanup.callback(process.kill)
        lines: list[list[str]] = []  # identity, index and fingerprint

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.split())

        threading.Thread(target=read, daemon=True).start()

        def until(condition: Callable[[], bool]) -> None:
            end = time.monotonic() + TIMEOUT
            while not condition():
                assert time.monotonic() < end, f"alice said {lines}, bob has {theirs.encryption_keys()}"
                b.next_event(0.25)

        theirs = b.session(room_id)
        until(lambda: len(lines) > 0)
        identity, index, fingerprint = lines[0]
        assert (identity.startswith(f"{alice.user_id}:"), index) == (True, "0")
        assert re.fullmatch("[0-9a-f]{8}", fingerprint)
        theirs.join([SFU])

        def alice_has_ours() -> bool:
            own = [k for k in theirs.encryption_keys() if k.own]
            return any([k.sfu_identity, str(k.index), k.fingerprint] in lines for k in own)

        def we_have_hers() -> bool:
            in_use = [line[2] for line in lines if line[0] == identity][-1]
            return in_use in [k.fingerprint for k in theirs.encryption_keys()]

        until(alice_has_ours)
        until(we_have_hers)
