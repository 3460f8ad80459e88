"""A real Synapse on loopback, in a folder of its own, that tests may stop and start again.

python tests/e2e/synapse.py COMMAND...   runs COMMAND with MRTC_TEST_SYNAPSE_URL set
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

_LIMITS = """
rc_message: {per_second: 1000, burst_count: 1000}
rc_registration: {per_second: 1000, burst_count: 1000}
rc_login:
  address: {per_second: 1000, burst_count: 1000}
  account: {per_second: 1000, burst_count: 1000}
  failed_attempts: {per_second: 1000, burst_count: 1000}
rc_joins:
  local: {per_second: 1000, burst_count: 1000}
  remote: {per_second: 1000, burst_count: 1000}
rc_delayed_event_mgmt: {per_second: 1000, burst_count: 1000}
"""

_CONFIG = """
server_name: "synapse.test"
pid_file: hs.pid
listeners:
  - {{port: {port}, tls: false, type: http, bind_addresses: ["127.0.0.1"],
     resources: [{{names: [client], compress: false}}]}}
database: {{name: sqlite3, args: {{database: hs.db}}}}
log_config: log.yaml
media_store_path: media
signing_key_path: signing.key
macaroon_secret_key: "for tests only"
form_secret: "for tests only"
report_stats: false
trusted_key_servers: []
enable_registration: true
enable_registration_without_verification: true
max_event_delay_duration: 24h
experimental_features: {{msc4143_enabled: true, msc4354_enabled: true, msc4222_enabled: true}}
{limits}
"""

_LOG = """
version: 1
formatters: {p: {format: '%(asctime)s %(name)s %(levelname)s %(message)s'}}
handlers: {f: {class: logging.FileHandler, filename: hs.log, formatter: p}}
root: {level: INFO, handlers: [f]}
disable_existing_loggers: false
"""


class Account:
    def __init__(self, server: Synapse, answer: dict[str, Any]) -> None:
        self.server = server
        self.user_id: str = answer["user_id"]
        self.device_id: str = answer["device_id"]
        self.access_token: str = answer["access_token"]

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return self.server.request(method, path, body, self.access_token)

    def create_room(self) -> str:
        room_id: str = self.request(
            "POST",
            "/_matrix/client/v3/createRoom",
            {
                "preset": "public_chat",
                "power_level_content_override": {"events": {"org.matrix.msc3401.call.member": 0}},
            },
        )["room_id"]
        return room_id

    def join_room(self, room_id: str) -> None:
        self.request("POST", f"/_matrix/client/v3/join/{room_id}", {})

    def call_members(self, room_id: str) -> list[dict[str, Any]]:
        """The call member events with content, as the server has them."""
        state = self.request("GET", f"/_matrix/client/v3/rooms/{room_id}/state")
        return [e for e in state if e["type"] == "org.matrix.msc3401.call.member" and e["content"]]


class Synapse:
    def __init__(self, default_limits: bool = False) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mrtc-synapse-"))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port: int = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        limits = "" if default_limits else _LIMITS
        (self.folder / "synapse.yaml").write_text(_CONFIG.format(port=self.port, limits=limits))
        (self.folder / "log.yaml").write_text(_LOG)
        self._run("--generate-keys")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "synapse.app.homeserver", "-c", "synapse.yaml"]

    def _run(self, *args: str) -> None:
        subprocess.run([*self._command(), *args], cwd=self.folder, check=True, capture_output=True, timeout=120)

    def start(self) -> None:
        with (self.folder / "out.log").open("ab") as out:
            self.process = subprocess.Popen(self._command(), cwd=self.folder, stdout=out, stderr=out)
        end = time.monotonic() + 60
        while True:
            try:
                self.request("GET", "/_matrix/client/versions")
                return
            except OSError as e:
                if time.monotonic() > end or self.process.poll() is not None:
                    log = (self.folder / "out.log").read_text()[-2000:]
                    raise RuntimeError(f"Synapse did not start: {e}\n{log}") from e
                time.sleep(0.1)  # between two looks at a condition

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def register(self, name: str) -> Account:
        path = "/_matrix/client/v3/register"
        return Account(
            self,
            self.request("POST", path, {"username": name, "password": "pw-" + name, "auth": {"type": "m.login.dummy"}}),
        )


def main() -> int:
    server = Synapse()
    try:
        return subprocess.call(sys.argv[1:], env={**os.environ, "MRTC_TEST_SYNAPSE_URL": server.url})
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
