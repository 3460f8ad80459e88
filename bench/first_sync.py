"""The first sync of an account with 200 rooms and 10,000 members, all of them in calls: from `start` to the
state "syncing", on a server that answers at once. And what an idle client that syncs keeps in memory."""

from __future__ import annotations

import http.server
import json
import os
import resource
import sys
import threading
import time
from typing import Any

from matrixrtc import Client

ROOMS, MEMBERS = 200, 10_000


def room(n: int, ts: int) -> dict[str, Any]:
    events: list[dict[str, Any]] = [
        {
            "type": "m.room.create",
            "state_key": "",
            "sender": "@a:x",
            "event_id": f"$c{n}",
            "content": {"room_version": "11"},
        }
    ]
    for i in range(MEMBERS // ROOMS):
        user = f"@user{n}x{i}:example.test"
        common = {"sender": user, "origin_server_ts": ts}
        transport = {"type": "livekit", "livekit_service_url": "https://lk.example.test", "livekit_alias": f"!r{n}:x"}
        content = {
            "application": "m.call",
            "call_id": "",
            "scope": "m.room",
            "device_id": "DEV",
            "expires": 14400000,
            "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
            "foci_preferred": [transport],
        }
        events += [
            {"type": "m.room.member", "state_key": user, "event_id": f"$u{n}x{i}", "content": {"membership": "join"}}
            | common,
            {
                "type": "org.matrix.msc3401.call.member",
                "state_key": f"_{user}_DEV_m.call",
                "event_id": f"$m{n}x{i}",
                "content": content,
            }
            | common,
        ]
    return {"state": {"events": events}, "timeline": {"events": [], "limited": False, "prev_batch": "p"}}


class Server(http.server.BaseHTTPRequestHandler):
    """As much of a homeserver as a first sync needs."""

    protocol_version = "HTTP/1.1"
    first: bytes
    ended = threading.Event()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.endswith("/sync"):
            if "since=" in self.path:
                self.ended.wait(60)
                self.answer(b'{"next_batch":"s2"}')
            else:
                self.answer(self.first)
        elif path.endswith("/whoami"):
            self.answer(b'{"user_id":"@me:example.test","device_id":"ME"}')
        elif path.endswith("/versions"):
            self.answer(b'{"versions":["v1.11"],"unstable_features":{"org.matrix.msc4140":true}}')
        else:
            self.answer(b'{"capabilities":{}}')

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve() -> None:
    ts = int(time.time() * 1000)
    rooms = {f"!r{n}:example.test": room(n, ts) for n in range(ROOMS)}
    Server.first = json.dumps({"next_batch": "s1", "rooms": {"join": rooms}}).encode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        print(server.server_address[1], flush=True)
        server.serve_forever()


def measure(port: str) -> None:
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return (used.ru_utime + used.ru_stime) * 1000

    client = Client(f"http://127.0.0.1:{port}", access_token="t")
    before, cpu_before = time.perf_counter(), cpu()
    client.start()
    while client.info().sync_state != "syncing":
        if client.next_event(60) is None:
            sys.exit("the first sync did not come to its end within 60 s")
    print(json.dumps({"name": "first sync: time", "size": MEMBERS, "value": (time.perf_counter() - before) * 1000}))
    print(json.dumps({"name": "first sync: CPU", "size": MEMBERS, "value": cpu() - cpu_before}))
    found = sum(c.member_count for c in client.sessions())
    if found != MEMBERS:
        sys.exit(f"{found} members of {MEMBERS} are there")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else measure(sys.argv[1])
