"""Runs the code of README.md and docs/*.md: `run.py BUILD [PAGE...]`.

A fence of a page says in its first line what becomes of its code:

    ```python file=host.py     written to a file
    ```sh run                  run by sh -eu, after the fences above it
    ```sh run sfu              the same, and the homeserver of the page is a Synapse that offers an SFU

Each page has a folder of its own that looks like a checkout, so that commands stand in the page as a reader
types them. HOMESERVER, USER_ID, DEVICE_ID, TOKEN, PASSWORD and ROOM_ID are those of an account on the embedded
homeserver, or, for a page with a file homeserver.yaml, on a Synapse with those settings. A command that needs
longer than PATIENCE has failed. The last line is "N passed, N failed".
"""

from __future__ import annotations

import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/e2e", "demo", "bindings/python/src")]

from demo import Homeserver, embedded_homeserver  # noqa: E402

PATIENCE = 300.0
RUN = "run", "run sfu"
FENCE = re.compile(r"^```(\w+)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


class Broken(Exception):
    """What a page says is not so."""


def scene(page: pathlib.Path, folder: pathlib.Path, build: pathlib.Path, cleanup: ExitStack) -> dict[str, str]:
    """The homeserver of a page, with an account and a room."""
    settings = re.search(r"^```yaml file=homeserver.yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    if re.search(r"^```sh run sfu$", page.read_text(), re.MULTILINE):
        from voice import staged

        url = cleanup.enter_context(staged(folder / "stage")).synapse.url
    elif settings:
        import yaml
        from synapse_runner import running

        synapse = running(folder / "synapse", settings=yaml.safe_load(settings[1]))
        url = cleanup.enter_context(synapse).url
    else:
        url = cleanup.enter_context(embedded_homeserver(build / "homeserver"))
    server = Homeserver(url)
    password = secrets.token_hex(8)
    user = server.request(
        "POST",
        "/register",
        {"username": f"docs-{secrets.token_hex(3)}", "password": password, "auth": {"type": "m.login.dummy"}},
    )
    return {
        "HOMESERVER": url,
        "USER_ID": user["user_id"],
        "DEVICE_ID": user["device_id"],
        "TOKEN": user["access_token"],
        "PASSWORD": password,
        "ROOM_ID": server.room(user, []),
    }


def execute(code: str, folder: pathlib.Path, env: dict[str, str]) -> None:
    process = subprocess.Popen(
        ["sh", "-euc", code],
        cwd=folder,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        raise Broken(f"did not end within {PATIENCE:g} s:\n{code}\n{said}") from None
    if process.returncode != 0:
        raise Broken(f"ended with {process.returncode}:\n{code}\n{said}")


def run(page: pathlib.Path, build: pathlib.Path) -> int:
    """Runs a page; how many commands it has."""
    text = page.read_text()
    for link in LINK.findall(text):
        if ":" not in link and not (page.parent / link).exists():
            raise Broken(f"a link to {link}, which is not there")
    fences = FENCE.findall(text)
    for language, how, _ in fences:
        if how and not (re.fullmatch(r"file=[\w.-]+", how) or (language == "sh" and how in RUN)):
            raise Broken(f"a fence of {language} with {how!r}: expected file=NAME, or run or run sfu for sh")
    count = sum(how in RUN for _, how, _ in fences)
    if count == 0:
        if any(how for _, how, _ in fences):
            raise Broken("files, and no command that uses them")
        return 0
    with ExitStack() as cleanup:
        folder = pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"{page.stem}-")))
        for entry in ROOT.iterdir():
            if entry.name not in ("build", ".git"):
                (folder / entry.name).symlink_to(entry)
        (folder / "build").symlink_to(build)
        env = scene(page, folder, build, cleanup) | {
            "MATRIXRTC_LIBRARY": str(build / "libmatrixrtc.so"),
            "PYTHONPATH": str(ROOT / "bindings/python/src"),
            "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for _, how, code in fences:
            if how in RUN:
                execute(code, folder, env)
            elif how:
                (folder / how.removeprefix("file=")).write_text(code)
    return count


def main() -> int:
    build = pathlib.Path(sys.argv[1]).resolve()
    named = [pathlib.Path(name).resolve() for name in sys.argv[2:]]
    passed, failed = 0, 0
    for page in named or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        try:
            passed += run(page, build)
        except Broken as broken:
            failed += 1
            print(f"FAILED: {page.relative_to(ROOT)}: {broken}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
