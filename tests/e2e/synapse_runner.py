"""A Synapse of our own: in a folder, on a free port of the loopback, started, stopped and killed at will.

`python synapse_runner.py` runs one in the foreground and prints its URL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CALL_MEMBER = "org.matrix.msc3401.call.member"
SERVER_NAME = "example.test"

_LOG = """\
version: 1
formatters: {p: {format: '%(asctime)s %(name)s %(levelname)s %(message)s'}}
handlers: {f: {class: logging.FileHandler, filename: hs.log, formatter: p}}
root: {level: INFO, handlers: [f]}
disable_existing_loggers: false
"""
_FREE = {"per_second": 10000, "burst_count": 10000}
_GENEROUS = {
    "rc_message": _FREE,
    "rc_registration": _FREE,
    "rc_login": {"address": _FREE, "account": _FREE, "failed_attempts": _FREE},
    "rc_joins": {"local": _FREE, "remote": _FREE},
    "rc_joins_per_room": _FREE,
    "rc_room_creation": _FREE,
    "rc_delayed_event_mgmt": _FREE,
}


_held: list[socket.socket] = []


def own_port() -> int:
    """A port of the loopback for a server that we start, and start again: nobody else is given it, nor takes it by
    connecting there while the server is away."""
    while True:
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", random.randrange(10_000, 30_000)))  # below those that whoever connects is given
        except OSError:
            held.close()
            continue
        # A server that sets the same may bind it as well, as we do not listen.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port: int = held.getsockname()[1]
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # not on this system: then it is only free
            held.close()
        else:
            _held.append(held)
        return port


class MatrixError(Exception):
    """The homeserver answered with an error."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


def request(url: str, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
    """One request to a homeserver; the decoded answer."""
    at = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read() or b"null")
    finally:
        connection.close()
    if response.status != 200:
        raise MatrixError(response.status, answer)
    return answer


@dataclasses.dataclass(frozen=True)
class Account:
    """A user of a homeserver with one device."""

    url: str
    user_id: str
    device_id: str
    access_token: str
    password: str

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return request(self.url, method, path, body, self.access_token)

    def another_device(self) -> Account:
        """A login of the same user as a new device."""
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": self.password,
        }
        answer = request(self.url, "POST", "/_matrix/client/v3/login", body)
        return dataclasses.replace(self, device_id=answer["device_id"], access_token=answer["access_token"])

    def create_room(self, *, encrypted: bool = False) -> str:
        """A public room in which everybody may be in calls."""
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
        self.request("POST", f"/_matrix/client/v3/rooms/{urllib.parse.quote(room_id)}/join", {})

    def delayed_events(self) -> list[dict[str, Any]]:
        answer = self.request("GET", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events")
        found: list[dict[str, Any]] = answer.get("delayed_events") or answer.get("scheduled") or []
        return found

    def call_member(self, room_id: str, device_id: str | None = None) -> dict[str, Any]:
        """The content of our call membership; empty when there is none."""
        key = urllib.parse.quote(f"_{self.user_id}_{device_id or self.device_id}_m.call", safe="")
        try:
            content: dict[str, Any] = self.request(
                "GET", f"/_matrix/client/v3/rooms/{urllib.parse.quote(room_id)}/state/{CALL_MEMBER}/{key}"
            )
        except MatrixError as e:
            if e.status != 404:
                raise
            return {}
        return content


class Synapse:
    """One server. Its data outlives `stop` and `kill`, so that `start` is a restart."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        default_rate_limits: bool = False,
        sfus: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`sfus` are the authorisation services that it offers, the first of them first; `settings` go before
        ours."""
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0
        self._lock = threading.Lock()
        port = own_port()
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "server_name": SERVER_NAME,
            "pid_file": "hs.pid",
            "listeners": [
                {
                    "port": port,
                    "tls": False,
                    "type": "http",
                    "bind_addresses": ["127.0.0.1"],
                    "resources": [{"names": ["client", "openid"], "compress": False}],
                }
            ],
            "database": {"name": "sqlite3", "args": {"database": "hs.db"}},
            "log_config": "log.yaml",
            "media_store_path": "media",
            "signing_key_path": "signing.key",
            "macaroon_secret_key": "for tests",
            "form_secret": "for tests",
            "report_stats": False,
            "trusted_key_servers": [],
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "bcrypt_rounds": 4,
            "max_event_delay_duration": "24h",
            "experimental_features": {"msc4143_enabled": True, "msc4354_enabled": True, "msc4222_enabled": True},
            "matrix_rtc": {"transports": [{"type": "livekit", "livekit_service_url": url} for url in sfus]},
        }
        config |= {} if default_rate_limits else _GENEROUS
        folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        (folder / "synapse.yaml").write_text(json.dumps(config | dict(settings or {}), indent=1))
        (folder / "log.yaml").write_text(_LOG)
        if code := self._run("--generate-keys").wait(300):
            said = (folder / "stdout").read_text()[-4000:]
            raise RuntimeError(f"Synapse made no keys and ended with {code}:\n{said}")

    def _run(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "synapse.app.homeserver", "-c", "synapse.yaml", *more],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "stdout").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def start(self, timeout: float = 300) -> None:
        """Starts the server and returns when it answers."""
        process = self._process = self._run()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException, MatrixError):
                request(self.url, "GET", "/_matrix/client/versions")
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
                raise RuntimeError(f"Synapse ended with {code}:\n{(self.folder / 'stdout').read_text()[-4000:]}")
        self.kill()
        raise TimeoutError(f"Synapse did not answer within {timeout} s, see {self.folder}")

    def stop(self) -> None:
        """Ends the server in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server as a power cut does."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def register(self, name: str | None = None) -> Account:
        """A new account."""
        with self._lock:
            self._names += 1
            name = f"{name or 'user'}{self._names}"
        password = "correct horse"
        body = {"username": name, "password": password, "auth": {"type": "m.login.dummy"}}
        answer = request(self.url, "POST", "/_matrix/client/v3/register", body)
        return Account(self.url, answer["user_id"], answer["device_id"], answer["access_token"], password)

    def log(self) -> str:
        return (self.folder / "hs.log").read_text()


@contextlib.contextmanager
def running(
    folder: pathlib.Path | None = None,
    *,
    default_rate_limits: bool = False,
    sfus: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Synapse]:
    """A Synapse for as long as the block lasts, in a folder of its own unless one is named."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="synapse-")))
        synapse = Synapse(folder, default_rate_limits=default_rate_limits, sfus=sfus, settings=settings)
        stack.callback(synapse.kill)
        synapse.start()
        yield synapse
        synapse.stop()


if __name__ == "__main__":
    with running() as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
