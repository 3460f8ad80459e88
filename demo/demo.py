"""Three programs in one encrypted call: Python, Node and C++ meet and exchange media keys, one is
killed, and the others see it go and change their keys.

Starts the embedded homeserver (or uses --homeserver URL), an encrypted room, and a participant of
each runtime as a process of its own. Keys are shown by fingerprint, 8 hex digits of their SHA-256.
Exits with 0 only if every step was seen by every participant that should have seen it.
`make demo` builds what it needs first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

LEAVE_DELAY = 5.0  # seconds after which the homeserver removes a participant that went silent
SLACK = 10.0  # for the removal to travel to the others
STEP = 60.0  # for every other step

JOIN = {
    "foci_preferred": [{"type": "livekit", "livekit_service_url": "https://sfu.example.org"}],
    "delayed_leave_delay_ms": int(LEAVE_DELAY * 1000),
    "delayed_leave_restart_ms": 2000,
}


class Failure(Exception):
    """A step that did not happen, told to the person who runs the demo."""


class Screen:
    """Lines of what happens; on a terminal with the table of who sees whom kept below them."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out
        self.live = out.isatty() and os.environ.get("TERM") != "dumb"
        self.began = time.monotonic()
        self.drawn = 0
        self.table: list[str] = []

    def paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.live and not os.environ.get("NO_COLOR") else text

    def line(self, who: str, text: str, code: str = "0") -> None:
        self._erase()
        stamp = self.paint("2", f"{time.monotonic() - self.began:6.2f} s")
        print(f"{stamp}  {who:<10}  {self.paint(code, text)}", file=self.out)
        self._draw()

    def show(self, table: list[str]) -> None:
        self._erase()
        self.table = table
        self._draw()

    def _erase(self) -> None:
        if self.drawn:
            print(f"\033[{self.drawn}A\033[J", end="", file=self.out)
            self.drawn = 0

    def _draw(self) -> None:
        if self.live:
            for row in self.table:
                print(row, file=self.out)
            self.drawn = len(self.table)
        self.out.flush()


class Homeserver:
    """The part of the Client-Server API that sets the scene."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}/_matrix/client/v3{path}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=STEP) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            raise Failure(f"the homeserver answered {method} {path} with {e.code}: {e.read().decode()}") from e
        except OSError as e:
            raise Failure(f"the homeserver did not answer {method} {path}: {e}") from e

    def register(self, username: str) -> dict[str, str]:
        user: dict[str, str] = self.request(
            "POST",
            "/register",
            {"username": username, "password": secrets.token_hex(8), "auth": {"type": "m.login.dummy"}},
        )
        return user

    def room(self, creator: dict[str, str], others: list[dict[str, str]]) -> str:
        room_id: str = self.request(
            "POST",
            "/createRoom",
            {
                "preset": "public_chat",
                "power_level_content_override": {"events": {"org.matrix.msc3401.call.member": 0}},
                "initial_state": [
                    {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
                ],
            },
            creator["access_token"],
        )["room_id"]
        for other in others:
            self.request("POST", f"/join/{room_id}", {}, other["access_token"])
        return room_id

    def call_members(self, room_id: str, reader: dict[str, str]) -> list[str]:
        state = self.request("GET", f"/rooms/{room_id}/state", token=reader["access_token"])
        return [e["sender"] for e in state if e["type"] == "org.matrix.msc3401.call.member" and e["content"]]


@dataclasses.dataclass(frozen=True)
class Key:
    """What may be shown of a media key."""

    index: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.index})"


class Participant:
    """One process in the call, and what it has said."""

    def __init__(self, name: str, command: list[str], user: dict[str, str], environment: dict[str, str]) -> None:
        self.name = name
        self.user = user
        self.sees: set[str] = set()  # user ids
        self.uses: Key | None = None  # to encrypt
        self.holds: dict[str, dict[int, Key]] = {}  # to decrypt, by user id and index
        self.status = "starting"
        self.sent_leave: bool | None = None
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment},
        )

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "memberships_changed":
            self.sees |= {m["user_id"] for m in event["joined"]}
            self.sees -= {d["membership"]["user_id"] for d in event["left"]}
            for gone in event["left"]:
                self.holds.pop(gone["membership"]["user_id"], None)
        elif event["event"] == "encryption_key_changed":
            key = Key(event["index"], event["fingerprint"])
            if not event["own"]:
                self.holds.setdefault(event["user_id"], {})[key.index] = key
            elif event["in_use"]:
                self.uses = key
        elif event["event"] == "status_changed":
            self.status = event["status"]
        elif event["event"] == "left":
            self.sent_leave = event["sent"]

    def can_hear(self, other: Participant) -> bool:
        """Whether we hold the key that the other one says it encrypts with."""
        held = self.holds.get(other.user["user_id"], {})
        return other.uses is not None and held.get(other.uses.index) == other.uses

    def gone(self, status: str) -> None:
        self.status, self.sees, self.uses, self.holds = status, set(), None, {}

    def complaint(self) -> str:
        self.errors.seek(0)
        said = self.errors.read().strip()[-1500:]
        return f"; its standard error:\n{said}" if said else ""

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                try:
                    stream.close()
                except OSError:  # what was still to be written to the dead process
                    pass


class Call:
    """The participants, and the story that they must all tell."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.people: dict[str, Participant] = {}
        self.lines: queue.Queue[tuple[Participant, str | None]] = queue.Queue()

    def add(self, participant: Participant) -> None:
        self.people[participant.user["user_id"]] = participant

        def read() -> None:
            assert participant.process.stdout
            for line in participant.process.stdout:
                self.lines.put((participant, line))
            self.lines.put((participant, None))

        threading.Thread(target=read, daemon=True).start()

    def names(self, users: set[str]) -> str:
        return ", ".join(p.name for u, p in self.people.items() if u in users) or "nobody"

    def keys_in_use(self) -> set[Key]:
        return {p.uses for p in self.people.values() if p.uses}

    def fingerprints(self) -> str:
        return ", ".join(f"{p.name} {p.uses}" for p in self.people.values() if p.uses)

    def table(self) -> list[str]:
        """Who holds whose key. Green is one that its owner uses, and bold is one's own."""
        people = list(self.people.values())
        rows = ["", f"  {'holds the key of':<18}" + "".join(f"{p.name:<15}" for p in people) + "status"]
        for p in people:
            rows.append(f"  {p.name:<18}" + "".join(self._cell(p, other) for other in people) + p.status)
        return rows

    def _cell(self, p: Participant, other: Participant) -> str:
        held = p.holds.get(other.user["user_id"], {})
        if p is other:
            return self.screen.paint("1", f"{p.uses or '-'!s:<15}")
        if p.can_hear(other):
            return self.screen.paint("32", f"{other.uses!s:<15}")
        if held:
            return self.screen.paint("33", f"{next(reversed(held.values()))!s:<15}")
        return self.screen.paint("2", f"{'no key' if other.user['user_id'] in p.sees else '-':<15}")

    def take(self, participant: Participant, line: str | None) -> None:
        if line is None:
            if participant.status == "left":
                return
            participant.gone("gone")
        else:
            try:
                event = json.loads(line)
            except ValueError as e:
                raise Failure(f"{participant.name} printed something that is not JSON: {line!r}") from e
            before, status = set(participant.sees), participant.status
            participant.take(event)
            if participant.sees != before:
                self.screen.line(participant.name, f"sees {self.names(participant.sees)}", "36")
            if participant.status != status:
                self.screen.line(participant.name, participant.status)
            if event["event"] == "encryption_key_changed":
                self._told_of_key(participant, event)
            elif event["event"] == "left":
                sent = "the homeserver has it" if event["sent"] else f"not sent: {event['reason']}"
                self.screen.line(participant.name, f"left the call ({sent})")
            elif event["event"] == "membership_manager_error":
                self.screen.line(participant.name, f"trouble: {event['message']}", "33")
            self.told(participant, event)
        self.screen.show(self.table())

    def told(self, participant: Participant, event: dict[str, Any]) -> None:
        """What only some demos tell of."""

    def _told_of_key(self, participant: Participant, event: dict[str, Any]) -> None:
        key = Key(event["index"], event["fingerprint"])
        if not event["own"]:
            self.screen.line(participant.name, f"holds {key} of {self.names({event['user_id']})}", "35")
        elif event["in_use"]:
            self.screen.line(participant.name, f"encrypts with {key}", "35")

    def until(self, what: str, timeout: float, done: Callable[[], bool], alive: list[Participant]) -> float:
        """Reads what they say until `done`; how long that took."""
        began = time.monotonic()
        while not done():
            for p in alive:
                if p.process.poll() not in (None, 0):
                    raise Failure(f"{p.name} ended with {p.process.returncode} before {what}{p.complaint()}")
            left = began + timeout - time.monotonic()
            try:
                self.take(*self.lines.get(timeout=max(0.0, min(left, 0.5))))
            except queue.Empty:
                if left <= 0:
                    saw = "; ".join(
                        f"{p.name} ({p.status}) sees {self.names(p.sees)}, encrypts with {p.uses or 'no key'} and "
                        f"can hear {', '.join(o.name for o in alive if p.can_hear(o)) or 'nobody'}{p.complaint()}"
                        for p in alive
                    )
                    raise Failure(f"within {timeout:.0f} s it did not happen that {what}: {saw}") from None
        return time.monotonic() - began

    def until_seen(self, what: str, members: list[Participant], by: list[Participant], timeout: float = STEP) -> float:
        wanted = {p.user["user_id"] for p in members}
        return self.until(what, timeout, lambda: all(p.sees == wanted for p in by), by)

    def until_keyed(self, what: str, among: list[Participant], used_before: Collection[Key] = ()) -> float:
        """Everybody encrypts with a key that was not used before and that all of the others hold."""

        def keyed() -> bool:
            return all(p.uses and p.uses not in used_before for p in among) and all(
                p.can_hear(o) for p in among for o in among if o is not p
            )

        return self.until(what, STEP, keyed, among)

    def leave(self, participant: Participant) -> None:
        assert participant.process.stdin
        participant.process.stdin.close()
        self.until(f"{participant.name} has left", STEP, lambda: participant.sent_leave is not None, [participant])
        if not participant.sent_leave:
            raise Failure(f"{participant.name} could not send its leave")
        try:
            code = participant.process.wait(STEP)
        except subprocess.TimeoutExpired:
            raise Failure(f"{participant.name} has left but its process does not end") from None
        if code != 0:
            raise Failure(f"{participant.name} ended with {code} instead of 0{participant.complaint()}")
        participant.gone("left")
        self.screen.show(self.table())


@contextmanager
def embedded_homeserver(binary: pathlib.Path, *arguments: str) -> Iterator[str]:
    """Runs the homeserver; its first line is its URL."""
    with subprocess.Popen([binary, "-listen", "127.0.0.1:0", *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            first: queue.Queue[str] = queue.Queue()
            assert process.stdout
            threading.Thread(target=lambda out: first.put(out.readline()), args=[process.stdout], daemon=True).start()
            try:
                url = first.get(timeout=STEP).strip()
            except queue.Empty:
                url = ""
            if not url.startswith("http"):
                raise Failure(f"{binary} did not print its URL")
            yield url
        finally:
            process.kill()


def play(screen: Screen, server: Homeserver, build: pathlib.Path, cleanup: ExitStack) -> None:
    run = secrets.token_hex(3)  # a homeserver that goes on running has the users of earlier runs
    names = ["python", "node", "c++"]
    users = [server.register(f"{name.replace('+', 'p')}-{run}") for name in names]
    room_id = server.room(users[0], users[1:])
    screen.line("homeserver", f"{server.url}, encrypted room {room_id}")

    environment = {
        "MATRIXRTC_LIBRARY": str(build / "libmatrixrtc.so"),
        "LD_LIBRARY_PATH": str(build),
        "PYTHONPATH": str(ROOT / "bindings" / "python" / "src"),
    }
    commands = [
        [sys.executable, str(ROOT / "demo" / "participant.py")],
        ["node", str(ROOT / "demo" / "participant.mjs")],
        [str(build / "demo-participant")],
    ]
    call = Call(screen)
    for name, command, user in zip(names, commands, users, strict=True):
        arguments = [server.url, user["access_token"], room_id, json.dumps(JOIN)]
        try:
            participant = Participant(name, command + arguments, user, environment)
        except OSError as e:
            raise Failure(f"{name} did not start: {e}") from e
        cleanup.callback(participant.end)
        call.add(participant)
    everybody = list(call.people.values())
    python, node, cpp = everybody
    rest = [python, cpp]

    took = call.until_seen("everybody sees everybody", everybody, by=everybody)
    call.until("everybody is connected", STEP, lambda: all(p.status == "Connected" for p in everybody), everybody)
    screen.line("demo", f"everybody sees everybody, {took:.1f} s after the start", "1;32")
    call.until_keyed("everybody holds the key that each of the others encrypts with", everybody)
    screen.line("demo", f"each holds the keys of the others, and the fingerprints agree: {call.fingerprints()}", "1;32")
    before = call.keys_in_use()

    node.process.kill()
    screen.line("demo", "node was killed (SIGKILL): nobody can say goodbye for it", "1;31")
    took = call.until_seen("node is gone for the others", rest, by=rest, timeout=LEAVE_DELAY + SLACK)
    screen.line("demo", f"node's delayed leave ({LEAVE_DELAY:.0f} s) removed it, {took:.1f} s after the kill", "1;32")
    took = call.until_keyed("python and c++ have changed to keys that node never had", rest, used_before=before)
    screen.line(
        "demo", f"python and c++ use new keys {took:.1f} s later, which node never had: {call.fingerprints()}", "1;32"
    )

    call.leave(python)
    call.until_seen("python is gone for c++", [cpp], by=[cpp])
    screen.line("demo", "python left, and c++ saw it leave", "1;32")

    call.leave(cpp)
    if ghosts := server.call_members(room_id, users[0]):
        raise Failure(f"the room still has members in the call: {', '.join(ghosts)}")
    screen.line("demo", "c++ left, the call is over", "1;32")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--homeserver", metavar="URL", help="use this one, which lets anybody register")
    parser.add_argument("--build", metavar="DIR", type=pathlib.Path, default=ROOT / "build", help="where things are")
    options = parser.parse_args()
    build = options.build.resolve()
    screen = Screen(sys.stdout)
    try:
        with ExitStack() as cleanup:
            needed = ["libmatrixrtc.so", "demo-participant"] + ([] if options.homeserver else ["homeserver"])
            if missing := [name for name in needed if not (build / name).exists()]:
                raise Failure(f"{build} has no {', '.join(missing)}: run `make demo`")
            url = options.homeserver or cleanup.enter_context(embedded_homeserver(build / "homeserver"))
            play(screen, Homeserver(url.rstrip("/")), build, cleanup)
    except Failure as failure:
        screen.line("demo", f"FAILED: {failure}", "1;31")
        return 1
    except KeyboardInterrupt:
        return 130
    screen.line("demo", "every step was seen by everybody who should have seen it", "1;32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
