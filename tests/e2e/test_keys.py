"""Media keys in an encrypted room on Synapse, with real Olm on both sides: ours and matrix-js-sdk's."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import pathlib
import signal
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import matrixrtc
from jspeer import JsPeer
from matrixrtc import Client, Event, Session
from ours import TRANSPORT, KeysElsewhere, Told, client_of, joined_elsewhere, wait_until
from synapse_runner import Account, Synapse

Peers = Callable[..., JsPeer]
Device = tuple[str, str]


def who(account: Account) -> Device:
    return account.user_id, account.device_id


class Participant:
    """Our client in the call of a room, with every key that it told."""

    def __init__(self, account: Account, client: Client, room_id: str, **settings: Any) -> None:
        self.account, self.client = account, client
        self.session: Session = client.session(room_id)
        self.keys: dict[Device, dict[int, str]] = {}
        self.in_use: tuple[int, str] | None = None
        self.trouble: list[Any] = []
        self.session.on("encryption_key_changed", self._key)
        self.session.on("encryption_key_undelivered", lambda e: self.trouble.append(e.data))
        self.settings = settings
        self.join()

    def join(self) -> None:
        self.session.join([TRANSPORT], **self.settings)

    def _key(self, event: Any) -> None:
        data = event.data
        self.keys.setdefault((data["user_id"], data["device_id"]), {})[data["index"]] = data["key"]
        if data["own"] and data["in_use"]:
            self.in_use = (data["index"], data["key"])

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> None:
        wait_until(self.client, condition, timeout, f"{what}; undelivered {self.trouble}")

    def has_key(self, device: Device, index: int, key: str) -> None:
        self.until(lambda: self.keys.get(device, {}).get(index) == key, f"key {index} of {device}")


def newest(peer: JsPeer) -> tuple[int, str]:
    """The newest key of a peer's own."""
    return max(peer.keys.get(who(peer.account), {-1: ""}).items())


def agree(ours: Participant, peer: JsPeer) -> None:
    """Each comes to hold what the other encrypts with by then."""

    def agreed() -> bool:
        index, key = newest(peer)
        theirs, mine = ours.keys.get(who(peer.account), {}), peer.keys.get(who(ours.account), {})
        return theirs.get(index) == key and ours.in_use is not None and mine.get(ours.in_use[0]) == ours.in_use[1]

    ours.until(agreed, f"agreement with {peer.account.user_id}")


@contextlib.contextmanager
def together(accounts: list[Account], room: str, **settings: Any) -> Iterator[list[Participant]]:
    """Several of ours in the call of a room."""
    with contextlib.ExitStack() as stack:
        clients = []
        for account in accounts:
            account.join_room(room)
            clients.append(stack.enter_context(client_of(account)))
        yield [Participant(a, c, room, **settings) for a, c in zip(accounts, clients, strict=True)]


def ours_agree(participants: list[Participant], timeout: float = 60) -> None:
    """Everybody of ours holds what every other one encrypts with, now."""

    def agreed() -> bool:
        return all(
            p.in_use is not None and q.keys.get(who(p.account), {}).get(p.in_use[0]) == p.in_use[1]
            for p in participants
            for q in participants
            if p is not q
        )

    end = time.monotonic() + timeout
    while not agreed():
        assert time.monotonic() < end, f"ours do not agree: {[p.trouble for p in participants]}"
        for p in participants:
            p.client.next_event(0.05)


def index_of(p: Participant) -> int:
    return -1 if p.in_use is None else p.in_use[0]


# Keys of a call last for hours; in these tests everything but the order of things is quick.
QUICK = {"key_rotation_grace_ms": 0, "use_key_delay_ms": 200}
JS_QUICK = {"keyRotationGracePeriodMs": 0, "useKeyDelay": 200}
NOBODYS_RECOVERY_KEY = "EsSz ykH7 LCZx 7Cae cmKD wcmY JRXi Ybtu 8iQ3 t8Ez nRwK pUY1"


def test_keys_are_exchanged_with_js_sdk(synapse: Synapse, js_peer: Peers) -> None:
    account, peer = synapse.register("ours"), js_peer(synapse.register("js"), encrypted=True)
    room = account.create_room(encrypted=True)
    peer.watch(room)
    with client_of(account) as client:
        ours = Participant(account, client, room)
        peer.sees(*who(account))
        peer.join(room)
        ours.until(lambda: who(peer.account) in ours.keys, "a key of js-sdk")
        agree(ours, peer)


def test_everybody_rotates_when_a_third_joins_and_when_one_leaves(synapse: Synapse, js_peer: Peers) -> None:
    account, peer, third = synapse.register("ours"), js_peer(synapse.register("js"), encrypted=True), None
    room = account.create_room(encrypted=True)
    peer.watch(room)
    with client_of(account) as client:
        ours = Participant(account, client, room, **QUICK)
        peer.sees(*who(account))
        peer.join(room, **JS_QUICK)
        ours.until(lambda: who(peer.account) in ours.keys, "a key of js-sdk")
        agree(ours, peer)

        # A third, after the grace period.
        before, their_before = index_of(ours), newest(peer)[0]
        third = js_peer(synapse.register("third"), encrypted=True)
        third.watch(room)
        third.join(room, **JS_QUICK)
        ours.until(lambda: index_of(ours) > before, "a rotation of ours")
        peer.until(lambda: newest(peer)[0] > their_before, "a rotation of js-sdk's")
        ours.until(lambda: who(third.account) in ours.keys, "a key of the third")
        for other in (peer, third):
            agree(ours, other)
        for one, another in ((peer, third), (third, peer)):
            one.until(
                lambda a=one, b=another: newest(b) in a.keys.get(who(b.account), {}).items(), "a key of the other"
            )

        # It leaves: a new key of everybody, which never comes to it.
        before, their_before = index_of(ours), newest(peer)[0]
        assert third.leave(room)
        ours.until(lambda: index_of(ours) > before, "a rotation of ours")
        peer.until(lambda: newest(peer)[0] > their_before, "a rotation of js-sdk's")
        agree(ours, peer)
        assert ours.in_use
        fence(account, third)
        got = {m["content"]["keys"]["key"].rstrip("=") for m in third.to_device if "keys" in m["content"]}
        assert len(got) >= 2, "it had keys of both before"
        assert ours.in_use[1] not in got
        assert newest(peer)[1] not in got


def fence(sender: Account, peer: JsPeer) -> None:
    """Waits until what was sent to the device of a peer before has arrived."""
    fences = len([m for m in peer.to_device if m["type"] == "test.fence"])
    user, device = who(peer.account)
    body = {"messages": {user: {device: {}}}}
    sender.request("PUT", f"/_matrix/client/v3/sendToDevice/test.fence/{time.monotonic_ns()}", body)
    peer.until(lambda: len([m for m in peer.to_device if m["type"] == "test.fence"]) > fences, "fence")


def test_a_killed_process_with_its_store_is_keyed_again(
    synapse: Synapse, js_peer: Peers, tmp_path: pathlib.Path
) -> None:
    account, peer = synapse.register("ours"), js_peer(synapse.register("js"), encrypted=True)
    room = account.create_room(encrypted=True)
    peer.watch(room)
    peer.join(room, delay_ms=60_000, **JS_QUICK)

    def live() -> tuple[int, str]:
        """A life, until it and js-sdk hold each other's keys; what it encrypted with."""
        process = joined_elsewhere(account, room, str(tmp_path / "store.db"), delayed_leave_delay_ms=60_000, **QUICK)
        try:
            ours, theirs = KeysElsewhere(process), peer.keys[who(peer.account)]
            ours.until(lambda: ours.in_use and ours.keys.get(who(peer.account)), "keys")
            assert ours.in_use
            peer.has_key(*who(account), *ours.in_use)
            ours.until(lambda: ours.keys[who(peer.account)].get(max(theirs)) == theirs[max(theirs)], "key of js-sdk")
            return ours.in_use
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdin
            process.stdin.close()

    assert live() != live(), "a new life has a new key"


def test_a_second_device_of_a_participant_joins(synapse: Synapse, js_peer: Peers) -> None:
    account, peer = synapse.register("ours"), js_peer(synapse.register("js"), encrypted=True)
    room = account.create_room(encrypted=True)
    peer.watch(room)
    with client_of(account) as client:
        ours = Participant(account, client, room, **QUICK)
        peer.sees(*who(account))
        peer.join(room, **JS_QUICK)
        ours.until(lambda: who(peer.account) in ours.keys, "a key of js-sdk")
        agree(ours, peer)
        second = js_peer(peer.account.another_device(), encrypted=True)
        second.watch(room)
        second.join(room, **JS_QUICK)
        ours.until(lambda: who(second.account) in ours.keys, "a key of the second device")
        agree(ours, second)
        agree(ours, peer)


def test_twenty_of_ours_join_within_ten_seconds(
    synapse: Synapse, record_property: Callable[[str, object], None]
) -> None:
    accounts = [synapse.register("many") for _ in range(20)]
    room = accounts[0].create_room(encrypted=True)
    began = time.monotonic()
    with together(accounts, room) as participants:
        joined = time.monotonic() - began
        ours_agree(participants, 240)
        sent = sum(p.session.info().statistics["keys_sent"] for p in participants)
        floor = len(accounts) * (len(accounts) - 1)
        record_property(
            "told",
            f"{len(accounts)} joined within {joined:.1f} s and agreed after {time.monotonic() - began:.1f} s: "
            f"{sent} key messages, the floor n(n-1) is {floor}",
        )
        assert sent >= floor
        assert [p.trouble for p in participants if p.trouble] == []


def test_keys_as_room_events(synapse: Synapse, js_peer: Peers) -> None:
    """The transport of before 2025: ours among themselves, and Megolm with js-sdk both ways."""
    peer = js_peer(synapse.register("js"), encrypted=True)
    accounts = [synapse.register("ours") for _ in range(2)]
    room = accounts[0].create_room(encrypted=True)
    peer.watch(room)
    with together(accounts, room, key_transport="room_event", **QUICK) as participants:
        ours_agree(participants)
        for p in participants:
            assert p.in_use
            key = p.in_use[1]
            peer.until(
                lambda key=key: any(k["key"].rstrip("=") == key for e in peer.room_keys for k in e["content"]["keys"]),
                "key in a room event",
            )
        stats = participants[0].session.info().statistics
        assert stats["room_event_keys_sent"] >= 1 and stats["room_event_keys_received"] >= 1
        # js-sdk is a member that sends its key so.
        peer.join(room, **JS_QUICK)
        key = base64.b64encode(bytes(range(16))).decode().rstrip("=")
        content = {
            "keys": [{"index": 7, "key": key}],
            "device_id": peer.account.device_id,
            "call_id": "",
            "sent_ts": int(time.time() * 1000),
        }
        peer.command("send_event", room_id=room, type="io.element.call.encryption_keys", content=content)
        for p in participants:
            p.has_key(who(peer.account), 7, key)
        # In clear, whoever may have sent it, it is not taken in.
        content["keys"] = [{"index": 8, "key": key}]
        path = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/send/io.element.call.encryption_keys/clear"
        peer.account.request("PUT", path, content)
        content["keys"] = [{"index": 9, "key": key}]
        peer.command("send_event", room_id=room, type="io.element.call.encryption_keys", content=content)
        for p in participants:
            p.has_key(who(peer.account), 9, key)
            assert 8 not in p.keys[who(peer.account)]


def test_recovery_key_makes_the_device_a_verified_one(synapse: Synapse, js_peer: Peers, tmp_path: pathlib.Path) -> None:
    owner = js_peer(synapse.register("owner"), encrypted=True)
    recovery_key = owner.command("secure", password=owner.account.password)["recovery_key"]
    observer = js_peer(synapse.register("js"), encrypted=True)
    room = owner.account.create_room(encrypted=True)
    observer.watch(room)
    strict = synapse.register("strict")
    signed, unsigned = owner.account.another_device(), owner.account.another_device()
    strict.join_room(room)
    with (
        client_of(strict) as strict_client,
        client_of(signed, str(tmp_path / "store.db"), recovery_key=recovery_key) as signed_client,
        client_of(unsigned) as unsigned_client,
    ):
        ours = Participant(strict, strict_client, room, require_cross_signed=True)
        for account, client in ((unsigned, unsigned_client), (signed, signed_client)):
            participant = Participant(account, client, room)
            participant.until(lambda p=participant: who(strict) in p.keys, "the key of the strict one")
        ours.until(lambda: who(signed) in ours.keys, "the key of the signed device")

        def refused() -> Any:
            return ours.session.debug_snapshot()["keys"]["refused"].get("from a device that its owner has not signed")

        ours.until(refused, "a refusal")
        assert who(unsigned) not in ours.keys

        def seen(account: Account, **expected: bool) -> None:
            user, device = who(account)
            wait_until(
                strict_client,
                lambda: observer.command("device_status", user_id=user, device_id=device) == expected,
                what=f"{expected} of {device} at js-sdk",
            )

        seen(signed, known=True, signed_by_owner=True)
        seen(unsigned, known=True, signed_by_owner=False)


def test_stores_and_keys_that_do_not_fit_are_told(synapse: Synapse, js_peer: Peers, tmp_path: pathlib.Path) -> None:
    account, other = synapse.register("ours"), synapse.register("other")
    store = str(tmp_path / "store.db")

    def error(account: Account, store: str | None, **more: Any) -> tuple[str, str]:
        with client_of(account, store, **more) as client:
            told = Told(client, "sync_state")
            wait_until(client, lambda: any(e.data["state"] == "error" for e in told["sync_state"]), what="error")
            errors = [e.data["error"] for e in told["sync_state"] if e.data["state"] == "error"]
            return errors[0]["path"], errors[0]["message"]

    def works(account: Account, store: str | None) -> None:
        with client_of(account, store) as client:
            wait_until(client, lambda: client.info().sync_state == "syncing", what="sync")

    works(account, store)
    works(account, store)
    with client_of(account, store) as client:
        wait_until(client, lambda: client.info().sync_state == "syncing", what="sync")
        path, message = error(account, store)
        assert path == "/store_path" and "in use" in message
    process = joined_elsewhere(account, account.create_room(encrypted=True), store)
    try:
        path, message = error(account, store)
        assert path == "/store_path" and "in use by another process" in message
    finally:
        process.kill()
        process.communicate()
    assert error(account, store, pickle_key="another")[0] == "/pickle_key"
    path, message = error(other, store)
    assert path == "/store_path" and account.device_id in message and other.device_id in message
    path, message = error(account, str(tmp_path / "new.db"))
    assert path == "/store_path" and "published" in message
    assert error(other, str(tmp_path / "other.db"), recovery_key=NOBODYS_RECOVERY_KEY)[0] == "/recovery_key"
    works(account, store)


def test_no_secret_is_told(
    own_synapse: Synapse, js_peer: Peers, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole call at the most verbose level, an outage in it: no secret in log, errors and snapshots, nor in events
    but the two that are there to tell one."""
    owner = js_peer(own_synapse.register("owner"), encrypted=True)
    recovery_key = owner.command("secure", password=owner.account.password)["recovery_key"]
    account = owner.account.another_device()
    room = account.create_room(encrypted=True)
    told: list[str] = []
    secrets = {
        "access token": {account.access_token},
        "password": {account.password},
        "pickle key": {"pickles in a jar"},
        "recovery key": {recovery_key, recovery_key.replace(" ", "")},
        "delay id": set(),
        "media key": set(),
    }

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append("log: " + record.getMessage() + json.dumps(getattr(record, "fields", None)))

    logger = logging.Logger("matrixrtc.test", logging.DEBUG)
    logger.addHandler(Lines())
    matrixrtc.enable_logging(logger, logging.DEBUG)
    events: list[Event] = []
    client = client_of(account, str(tmp_path / "store.db"), recovery_key=recovery_key, pickle_key="pickles in a jar")
    read = client.next_event

    def next_event(timeout: float | None = None) -> Event | None:
        if event := read(timeout):
            events.append(event)
        return event

    monkeypatch.setattr(client, "next_event", next_event)
    try:
        with client:
            owner.watch(room)
            ours = Participant(account, client, room, delayed_leave_delay_ms=300_000, **QUICK)

            def look() -> None:
                told.append(f"snapshot: {json.dumps(ours.session.debug_snapshot())}")
                told.append(f"client: {client!r} {client.info()!r} {ours.session!r}")

            look()
            owner.sees(*who(account))
            owner.join(room, delay_ms=300_000, **JS_QUICK)
            ours.until(lambda: who(owner.account) in ours.keys, "a key of js-sdk")
            agree(ours, owner)
            look()
            secrets["delay id"] |= {d["delay_id"] for d in account.delayed_events()}
            with pytest.raises(matrixrtc.MatrixRTCError) as refused:
                ours.join()
            told.append(f"error: {refused.value!r} {refused.value}")

            synced = Told(client, "sync_state")
            own_synapse.kill()
            ours.until(lambda: any(e.data["state"] == "reconnecting" for e in synced["sync_state"]), "outage")
            ours.session.update_intent("audio")
            look()
            own_synapse.start()
            ours.until(lambda: any(e.data["state"] == "syncing" for e in synced["sync_state"]), "reconnect", 120)
            owner.sees(*who(account), timeout=120, intent="audio")

            before = index_of(ours)
            assert owner.leave(room)
            ours.until(lambda: index_of(ours) > before, "a rotation")
            look()
            assert ours.session.leave_wait(120)
            look()
    finally:
        matrixrtc.disable_logging()
    for event in events:
        fields = dict(event.data)
        if event.name == "encryption_key_changed":
            key = base64.b64decode(fields.pop("key") + "==")
            secrets["media key"] |= {base64.b64encode(key).decode().rstrip("="), key.hex()}
            secrets["media key"].add(base64.urlsafe_b64encode(key).decode().rstrip("="))
        if event.name == "delay_id_changed" and (delay := fields.pop("delay_id")):
            secrets["delay id"].add(delay)
        told.append(f"event: {event.name} {json.dumps(fields)} {event!r}")
    assert len(secrets["media key"]) > 4 and len(secrets["delay id"]) > 0
    assert any(line.startswith("log:") for line in told) and any("sync_state" in line for line in told)
    for what, values in secrets.items():
        assert [line for line in told if any(value in line for value in values)] == [], what
