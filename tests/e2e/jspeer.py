"""A matrix-js-sdk participant in a process of its own, see jspeer/peer.mjs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from synapse_runner import Account

_HERE = pathlib.Path(__file__).parent / "jspeer"


class JsPeer:
    """Commands as methods; what the peer has seen as `seen`, and waits for it."""

    def __init__(self, account: Account, log: pathlib.Path, *, encrypted: bool = False) -> None:
        self.account = account
        self.encrypted = encrypted
        self._process = subprocess.Popen(
            [_HERE / "node_modules/.bin/node", _HERE / "peer.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
        )
        self._arrived = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self._ended = False
        # Every membership list that the peer told, oldest first, as {(user, device): membership}.
        self.seen: list[dict[tuple[str, str], dict[str, Any]]] = []
        self.errors: list[str] = []
        # The media keys that the peer told, by (user, device) and index; its own among them.
        self.keys: dict[tuple[str, str], dict[int, str]] = {}
        # What came to its device, decrypted, in a call or not; and the decrypted key events of its rooms.
        self.to_device: list[dict[str, Any]] = []
        self.room_keys: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.command(
            "start",
            base_url=account.url,
            user_id=account.user_id,
            device_id=account.device_id,
            access_token=account.access_token,
            encrypted=encrypted,
        )

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            with self._arrived:
                if "id" in told:
                    self._answers[told["id"]] = told
                elif told["event"] == "memberships":
                    self.seen.append({(m["user_id"], m["device_id"]): m for m in told["memberships"]})
                elif told["event"] == "key":
                    self.keys.setdefault((told["user_id"], told["device_id"]), {})[told["index"]] = told["key"]
                elif told["event"] == "to_device":
                    self.to_device.append(told)
                elif told["event"] == "room_key_event":
                    self.room_keys.append(told)
                elif told["event"] == "error":
                    self.errors.append(told["message"])
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def command(self, command: str, timeout: float = 120, **arguments: Any) -> dict[str, Any]:
        with self._arrived:
            self._last_id += 1
            number = self._last_id
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"id": number, "command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        self._wait(lambda: number in self._answers, timeout, f"an answer to {command}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        with self._arrived:
            if not self._arrived.wait_for(lambda: condition() or self._ended, timeout):
                raise TimeoutError(f"js-sdk: no {what} within {timeout} s; saw {self.seen[-3:]}, errors {self.errors}")
            if not condition():
                raise RuntimeError(f"js-sdk: ended before {what}")

    def sees(self, user_id: str, device_id: str, timeout: float = 60, *, intent: str | None = None) -> dict[str, Any]:
        """Waits until the peer sees the member (with that intent, if one is given)."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            member = self.now().get((user_id, device_id))
            if member is None or intent not in (None, member["intent"]):
                return False
            found.append(member)
            return True

        self._wait(there, timeout, f"member {user_id} {device_id} {intent or ''}")
        return found[-1]

    def sees_gone(self, user_id: str, device_id: str, timeout: float = 60) -> float:
        """Waits until the peer does not see the member; when that was, on the monotonic clock."""
        self._wait(lambda: (user_id, device_id) not in self.now(), timeout, f"end of member {user_id} {device_id}")
        return time.monotonic()

    def has_key(self, user_id: str, device_id: str, index: int, key: str, timeout: float = 60) -> None:
        """Waits until the peer holds that media key of a member."""

        def held() -> bool:
            return self.keys.get((user_id, device_id), {}).get(index) == key

        self._wait(held, timeout, f"key {index} of {user_id} {device_id}")

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> None:
        """Waits for something of what the peer has told."""
        self._wait(lambda: bool(condition()), timeout, what)

    def keeps_seeing(self, user_id: str, device_id: str, seconds: float) -> None:
        """Fails as soon as the peer loses sight of the member within this time."""
        try:
            self.sees_gone(user_id, device_id, seconds)
        except TimeoutError:
            return
        raise AssertionError(f"js-sdk: lost {user_id} {device_id}")

    def now(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self.seen[-1] if self.seen else {}

    def watch(self, room_id: str) -> None:
        """Joins the room and tells the members of its call from now on."""
        self.command("join_room", room_id=room_id)

    def join(self, room_id: str, intent: str = "video", delay_ms: int = 60_000, **settings: int) -> None:
        """`settings` are more of matrix-js-sdk's, as it names them."""
        transports = [{"type": "livekit", "livekit_service_url": "https://js.example", "livekit_alias": room_id}]
        settings["delayedLeaveEventDelayMs"] = delay_ms
        self.command(
            "join", room_id=room_id, transports=transports, intent=intent, settings=settings, media_keys=self.encrypted
        )

    def update_intent(self, room_id: str, intent: str) -> None:
        self.command("update_intent", room_id=room_id, intent=intent)

    def leave(self, room_id: str) -> bool:
        return bool(self.command("leave", room_id=room_id, timeout_ms=60_000)["left"])

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
