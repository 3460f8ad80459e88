"""Our own participant, for tests that wait: the binding's synchronous use with bounded conditions.

`python ours.py` is one in a process of its own, to be killed: it takes its settings as JSON on stdin, prints
"joined" and stays; then every media key that it is told of, as JSON.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python" / "src"))

from matrixrtc import Client, Event, Session
from synapse_runner import Account

TRANSPORT = {"type": "livekit", "livekit_service_url": "https://ours.example"}


def client_of(account: Account, store: str | None = None, **more: Any) -> Client:
    given: dict[str, Any] = {
        "user_id": account.user_id,
        "device_id": account.device_id,
        "access_token": account.access_token,
        "store_path": store,
        "pickle_key": None if store is None else "of the tests",
    }
    return Client(account.url, **given | more)


def wait_until(client: Client, condition: Callable[[], Any], timeout: float = 60, what: str = "condition") -> None:
    """Takes events until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"ours: no {what} within {timeout} s")
        # A condition may lie outside of the client's events.
        client.next_event(min(left, 0.25))


class Told:
    """The events of a client or session, by name."""

    def __init__(self, source: Client | Session, *names: str) -> None:
        self.events: dict[str, list[Event]] = {name: [] for name in names}
        for name in names:
            source.on(name, self.events[name].append)

    def __getitem__(self, name: str) -> list[Event]:
        return self.events[name]


def joined_elsewhere(
    account: Account, room_id: str, store: str | None = None, **settings: int
) -> subprocess.Popen[str]:
    """Our participant in a process of its own, after it has joined."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    given = {"account": vars(account), "room_id": room_id, "store": store, "settings": settings}
    process.stdin.write(json.dumps(given) + "\n")
    process.stdin.flush()
    if (line := process.stdout.readline()) != "joined\n":
        process.kill()
        process.wait()
        raise RuntimeError(f"ours: did not join, said {line!r}")
    return process


class KeysElsewhere:
    """The media keys that a participant in a process of its own tells, by (user, device) and index."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._arrived = threading.Condition()
        self.keys: dict[tuple[str, str], dict[int, str]] = {}
        self.in_use: tuple[int, str] | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            key = json.loads(line)
            with self._arrived:
                self.keys.setdefault((key["user_id"], key["device_id"]), {})[key["index"]] = key["key"]
                if key["own"] and key["in_use"]:
                    self.in_use = (key["index"], key["key"])
                self._arrived.notify_all()

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        with self._arrived:
            # A condition may lie outside of what this tells.
            while not condition():
                if time.monotonic() >= end:
                    raise TimeoutError(f"ours elsewhere: no {what} within {timeout} s")
                self._arrived.wait(0.25)


def main() -> None:
    given = json.loads(sys.stdin.readline())
    with client_of(Account(**given["account"]), given["store"]) as client:
        session = client.session(given["room_id"])
        keys: list[Event] = []
        session.on("encryption_key_changed", keys.append)
        session.join([TRANSPORT], **given["settings"])
        wait_until(client, lambda: session.info().status == "Connected", what="join")
        print("joined", flush=True)
        while True:
            for event in keys:
                print(json.dumps(event.data), flush=True)
            keys.clear()
            client.next_event()


if __name__ == "__main__":
    main()
