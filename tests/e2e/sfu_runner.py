"""An SFU of our own: LiveKit and the authorisation service in front of it, on free ports of the loopback.

`python sfu_runner.py` runs both and a Synapse in the foreground, and prints their URLs.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from synapse_runner import own_port

BUILD = pathlib.Path(__file__).resolve().parents[2] / "build"
KEY, SECRET = "devkey", "a secret of the tests, of 32 bytes or more"


class _Server:
    """A process that answers HTTP at `url`, and may be stopped and started again."""

    def __init__(self, log: pathlib.Path, command: list[str], url: str, health: str) -> None:
        self.url, self.log = url, log
        self._command, self._health = command, f"{url}{health}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 300) -> None:
        """Starts it and returns when it answers."""
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._health, timeout=5):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
                raise RuntimeError(f"{self._command[0]} ended with {code}:\n{self.log.read_text()[-4000:]}")
        self.kill()
        raise TimeoutError(f"{self._command[0]} did not answer within {timeout} s, see {self.log}")

    def kill(self) -> None:
        """Ends it as a power cut does."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()


class SFU:
    """LiveKit and its authorisation service. `service_url` is what memberships name."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        port, self._service_port, media_port = own_port(), own_port(), own_port()
        self.url = f"ws://127.0.0.1:{port}"
        self.service_url = f"http://127.0.0.1:{self._service_port}"
        config = {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "rtc": {
                "udp_port": media_port,
                "tcp_port": 0,  # it would listen on all interfaces
                "use_external_ip": False,
                "node_ip": "127.0.0.1",
                "interfaces": {"includes": ["lo"]},
                "enable_loopback_candidate": True,
            },
            "room": {"auto_create": False},  # the authorisation service does
            "keys": {KEY: SECRET},
            # Who has crashed is told to the authorisation service.
            "webhook": {"api_key": KEY, "urls": [f"{self.service_url}/sfu_webhook"]},
        }
        (folder / "livekit.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
        command = [str(BUILD / "livekit-server"), "--config", str(folder / "livekit.yaml")]
        self.livekit = _Server(folder / "livekit.log", command, f"http://127.0.0.1:{port}", "/")
        self.service: _Server | None = None

    def start(self, homeservers: Mapping[str, str], full_access: str = "*") -> None:
        """Starts both. `homeservers` are the URLs of server names; the users of those with full access may create
        rooms."""
        self.livekit.start()
        self.start_service(homeservers, full_access)

    def start_service(self, homeservers: Mapping[str, str], full_access: str = "*") -> None:
        command = [str(BUILD / "authservice"), "-listen", f"127.0.0.1:{self._service_port}", "-verbose"]
        command += ["-livekit", self.url, "-key", KEY, "-secret", SECRET, "-full-access", full_access]
        for name, url in homeservers.items():
            command += ["-homeserver", f"{name}={url}"]
        self.service = _Server(self._folder / "service.log", command, self.service_url, "/healthz")
        self.service.start()

    def token(self, room: str, identity: str, **more: bool) -> str:
        """One that the SFU takes, without anybody having been asked."""
        grants = {"roomJoin": True, "room": room} | more
        claims = {"iss": KEY, "sub": identity, "exp": int(time.time()) + 3600, "video": grants}
        parts = [base64.urlsafe_b64encode(json.dumps(p).encode()) for p in ({"alg": "HS256", "typ": "JWT"}, claims)]
        signed = b".".join(part.rstrip(b"=") for part in parts)
        mac = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).rstrip(b"=")
        return b".".join([signed, mac]).decode()

    def create_room(self, room: str) -> None:
        """As the authorisation service does for who may."""
        self._administer("CreateRoom", room, {"name": room})

    def throw_out(self, room: str, identity: str) -> None:
        self._administer("RemoveParticipant", room, {"room": room, "identity": identity})

    def participants(self, room: str) -> set[str]:
        """The identities of who is connected."""
        found = self._administer("ListParticipants", room, {"room": room})
        return {p["identity"] for p in found.get("participants", [])}

    def _administer(self, what: str, room: str, given: dict[str, str]) -> dict[str, Any]:
        token = self.token(room, "admin", roomCreate=True, roomAdmin=True)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"{self.livekit.url}/twirp/livekit.RoomService/{what}"
        request = urllib.request.Request(url, json.dumps(given).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            result: dict[str, Any] = json.load(answer)
            return result

    def kill(self) -> None:
        self.livekit.kill()
        if self.service is not None:
            self.service.kill()


def main() -> None:
    from synapse_runner import SERVER_NAME, running

    with tempfile.TemporaryDirectory(prefix="sfu-") as folder:
        sfu = SFU(pathlib.Path(folder))
        with running(sfus=[sfu.service_url]) as synapse:
            sfu.start({SERVER_NAME: synapse.url})
            try:
                print(synapse.url, sfu.service_url, sfu.url, flush=True)
                signal.pause()
            finally:
                sfu.kill()


@contextlib.contextmanager
def running_sfu(folder: pathlib.Path) -> Iterator[SFU]:
    """An SFU, not started yet, that is gone when the block ends."""
    sfu = SFU(folder)
    try:
        yield sfu
    finally:
        sfu.kill()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
