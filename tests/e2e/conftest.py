"""Fixtures: Synapse, accounts, and an independent participant (matrix-js-sdk)."""

from __future__ import annotations

import json
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "bindings" / "python" / "src"))

from synapse import Account, Synapse  # noqa: E402

TRANSPORT = {"type": "livekit", "livekit_service_url": "https://ours.example"}


class Lines:
    """A process whose stdout is JSON lines, and whose stdin takes commands."""

    def __init__(self, command: list[str], cwd: pathlib.Path | None = None) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def until(self, wanted: Callable[[dict[str, Any]], bool], timeout: float = 40) -> dict[str, Any]:
        """The first line from now on for which `wanted` is true."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing of the kind came within {timeout} s; the last: {self.seen[-5:]}") from None
            if line is None:
                raise AssertionError(f"the process has ended; the last: {self.seen[-5:]}")
            self.seen.append(line)
            if wanted(line):
                return line

    def until_members(self, users: set[str], timeout: float = 40) -> dict[str, Any]:
        return self.until(
            lambda line: line["event"] == "members" and {m["user"] for m in line["members"]} == users, timeout
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


def js_peer(account: Account, room_id: str) -> Lines:
    folder = HERE / "jspeer"
    node = str(folder / "node_modules" / ".bin" / "node")
    server = account.server.url
    peer = Lines(
        [node, "peer.mjs", server, account.user_id, account.device_id, account.access_token, room_id], cwd=folder
    )
    peer.until(lambda line: line["event"] == "ready")
    return peer


def our_peer(account: Account, room_id: str, **settings: int) -> Lines:
    """A participant of ours in a process of its own."""
    arguments = [account.server.url, account.access_token, room_id, json.dumps(settings)]
    return Lines([sys.executable, str(HERE / "our_peer.py"), *arguments])


@pytest.fixture(scope="session")
def synapse() -> Iterator[Synapse]:
    server = Synapse()
    yield server
    server.stop()


_count = 0


@pytest.fixture
def accounts(synapse: Synapse) -> Callable[[int], list[Account]]:
    def make(n: int, server: Synapse = synapse) -> list[Account]:
        global _count
        made = []
        for _ in range(n):
            _count += 1
            made.append(server.register(f"user{_count}"))
        return made

    return make
