"""Fixtures: the homeserver that the tests talk to, and accounts on it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TOP = pathlib.Path(__file__).resolve().parents[3]
SOURCE = TOP / "bindings" / "python" / "src"
sys.path.insert(0, str(SOURCE))

import schemas  # noqa: E402

# A shell that runs us in the background has Ctrl-C ignored, and our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Short, for tests which wait for a delayed leave; in others one that is late would take us out of the call.
SHORT_DELAY_MS = 2000
DELAY_MS = 60_000

CALL_MEMBER = "org.matrix.msc3401.call.member"


@dataclasses.dataclass(frozen=True)
class Account:
    url: str
    user_id: str
    device_id: str
    access_token: str
    password: str

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return request(self.url, method, path, body, self.access_token)

    def create_room(self, *, encrypted: bool = False) -> str:
        content: dict[str, Any] = {
            "preset": "public_chat",
            "power_level_content_override": {"events": {CALL_MEMBER: 0}},
        }
        if encrypted:
            algorithm = {"algorithm": "m.megolm.v1.aes-sha2"}
            content["initial_state"] = [{"type": "m.room.encryption", "state_key": "", "content": algorithm}]
        room_id: str = self.request("POST", "/_matrix/client/v3/createRoom", content)["room_id"]
        return room_id

    def join_room(self, room_id: str) -> None:
        self.request("POST", f"/_matrix/client/v3/join/{room_id}", {})


def request(url: str, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
    made = urllib.request.Request(url + path, method=method)
    if body is not None:
        made.data = json.dumps(body).encode()
        made.add_header("Content-Type", "application/json")
    if token:
        made.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(made, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def homeserver() -> Iterator[str]:
    """The homeserver at MRTC_TEST_SYNAPSE_URL, or else the one built into build/homeserver."""
    if given := os.environ.get("MRTC_TEST_SYNAPSE_URL"):
        yield given
        return
    if not (TOP / "build" / "homeserver").exists():
        pytest.fail("these tests want a homeserver: set MRTC_TEST_SYNAPSE_URL, or build build/homeserver")
    with subprocess.Popen([TOP / "build" / "homeserver"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def register(homeserver: str) -> Callable[[], Account]:
    def one() -> Account:
        name = f"user-{uuid.uuid4().hex[:12]}"
        password = f"pw-{name}"
        content = {"username": name, "password": password, "auth": {"type": "m.login.dummy"}}
        made = request(homeserver, "POST", "/_matrix/client/v3/register", content)
        return Account(homeserver, made["user_id"], made["device_id"], made["access_token"], password)

    return one


@pytest.fixture
def pair(register: Callable[[], Account]) -> tuple[Account, Account, str]:
    """Two accounts in one room."""
    alice, bob = register(), register()
    room_id = alice.create_room()
    bob.join_room(room_id)
    return alice, bob, room_id


@pytest.fixture
def encrypted_pair(register: Callable[[], Account]) -> tuple[Account, Account, str]:
    """Two accounts in one encrypted room."""
    alice, bob = register(), register()
    room_id = alice.create_room(encrypted=True)
    bob.join_room(room_id)
    return alice, bob, room_id


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a Python script in a process of its own."""

    def one(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )

    return one


@pytest.fixture(autouse=True)
def hold_against_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    schemas.watch(monkeypatch)
