"""Runs what run.sh has built: the C and the C++ example meet in one call, and the tests of the wrapper.

The homeserver is the embedded one, or that of MRTC_TEST_SYNAPSE_URL.
"""

from __future__ import annotations

import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
from contextlib import ExitStack

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("demo", "tests")]

from checks import Checks  # noqa: E402

from demo import Homeserver, embedded_homeserver  # noqa: E402

PATIENCE = 300.0


class Program:
    """A process whose lines are read as they come."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.seen: list[str] = []
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def until(self, pattern: str) -> bool:
        """Reads to a line with this in it; the lines read stay in `seen`."""
        while True:
            try:
                line = self.lines.get(timeout=PATIENCE)
            except queue.Empty:
                return False
            if line is None:
                return False
            self.seen.append(line)
            if re.search(pattern, line):
                return True

    def finish(self) -> int:
        """Ends its input and waits for its end."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.until(r"(?!)")
        return code

    @property
    def text(self) -> str:
        return "".join(self.seen)


def left(user: str) -> str:
    return rf'"event":"memberships_changed".*"left":\[{{"membership":{{"user_id":"{user}"'


def joined(user: str) -> str:
    return rf'"event":"memberships_changed".*"joined":\[{{"user_id":"{user}"'


def examples(checks: Checks, programs: pathlib.Path, url: str) -> None:
    server = Homeserver(url)
    run = os.urandom(3).hex()
    c, cpp = server.register(f"c-{run}"), server.register(f"cpp-{run}")
    room_id = server.room(c, [cpp])

    one = Program([str(programs / "join-cpp"), url, cpp["access_token"], room_id])
    checks.check(one.until(joined(cpp["user_id"])), f"the C++ example sees itself join\n{one.text}")
    two = Program([str(programs / "join-c"), url, c["access_token"], room_id])
    checks.check(one.until(joined(c["user_id"])), f"the C++ example sees the C example join\n{one.text}")
    checks.check(one.until(left(c["user_id"])), f"the C++ example sees the C example leave\n{one.text}")
    code = two.finish()
    checks.check(code == 0, f"the C example ends with {code}\n{two.text}")
    checks.check(cpp["user_id"] in two.text, f"the C example sees the C++ example\n{two.text}")
    checks.check('{"sent":true}' in two.text, f"the C example's leave was sent\n{two.text}")
    code = one.finish()
    checks.check(code == 0, f"the C++ example ends with {code}\n{one.text}")
    checks.check('{"sent":true}' in one.text, f"the C++ example's leave was sent\n{one.text}")
    checks.check(server.call_members(room_id, c) == [], "nobody is left behind on the homeserver")

    for name in "join-c", "join-cpp":
        wrong = Program([str(programs / name), "no url", "token", room_id])
        checks.check(wrong.finish() == 1, f"{name} refuses what is no URL")
        checks.check("homeserver_url" in wrong.text, f"{name} names what is wrong\n{wrong.text}")
        usage = Program([str(programs / name)])
        checks.check(usage.finish() == 2 and "usage" in usage.text, f"{name} says how it is used")


def frames(checks: Checks, program: pathlib.Path) -> None:
    """The example of frames, on those that LiveKit's SDK has encrypted, and on what is none of them."""
    text = (ROOT / "tests/cpp/livekit_frames.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]

    def run(given: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [program], input="\n".join(given), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, said = run(lines)
    checks.check(code == 0 and f"{len(lines)} frames, 0 failed" in said, f"frames of LiveKit's SDK\n{said}")
    changed = {
        "another key": [re.sub(r" (..)(\S+ \S+)$", lambda m: f" {int(m[1], 16) ^ 1:02x}{m[2]}", x) for x in lines],
        "another index of the key": [re.sub(r" (\d+) ", lambda m: f" {int(m[1]) + 1} ", x, count=1) for x in lines],
        "half a frame": [x[: -len(x.rsplit(" ", 1)[1]) // 2] for x in lines],
        "two bytes": [x.rsplit(" ", 1)[0] + " 0c00" for x in lines],
        "nothing": [x.rsplit(" ", 1)[0] for x in lines],
    }
    for what, given in changed.items():
        code, said = run(given)
        checks.check(code == 1 and f"{len(lines)} frames, {len(lines)} failed" in said, f"frames: {what}\n{said}")


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    checks = Checks()
    for name in "wrapper", "frame_keys-address", "frame_keys-thread":
        program = Program([str(build / "tests-cpp" / name)])
        checks.program(name, program.finish(), program.text)
    frames(checks, build / "tests-cpp" / "frames")
    with ExitStack() as cleanup:
        url = os.environ.get("MRTC_TEST_SYNAPSE_URL") or cleanup.enter_context(
            embedded_homeserver(build / "homeserver")
        )
        examples(checks, build / "tests-cpp", url)
    print(checks)
    return checks.failed != 0


if __name__ == "__main__":
    sys.exit(main())
