"""A call through host-driven mode, with nothing but http.client for a Matrix client."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from conftest import DELAY_MS, Account

from matrixrtc import Client, Event

CALL_MEMBER = "org.matrix.msc3401.call.member"


class Host:
    """What a host with its own Matrix client does: it syncs, and makes the requests it is asked to."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.client = Client.host_driven(account.user_id, account.device_id)
        self.client.on("request", self.perform)
        self.since: str | None = None
        self.kinds: list[str] = []

    def http(self, method: str, path: str, query: dict[str, str] | None = None, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.account.url).netloc, timeout=60)
        target = path + ("?" + urllib.parse.urlencode(query) if query else "")
        headers = {"Authorization": f"Bearer {self.account.access_token}", "Content-Type": "application/json"}
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.headers), text

    def perform(self, event: Event) -> None:
        made = event.data["http"]
        self.kinds.append(event.data["kind"])
        answer = self.http(made["method"], made["path"], made.get("query"), made.get("body"))
        self.client.respond(event.data["id"], *answer)

    def until(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            query = {"timeout": "100"} | ({"since": self.since} if self.since else {})
            _, _, text = self.http("GET", "/_matrix/client/v3/sync", query)
            sync = json.loads(text)
            self.since = sync["next_batch"]
            self.client.feed(sync=sync)
            while self.client.next_event(0):
                pass


def test_a_call_with_http_client(pair: tuple[Account, Account, str]) -> None:
    alice, bob, room_id = pair
    host, other = Host(alice), Host(bob)
    ours, theirs = host.client.session(room_id), other.client.session(room_id)
    ours.join([{"type": "livekit", "livekit_service_url": "https://x.example"}], delayed_leave_delay_ms=DELAY_MS)
    host.until(lambda: ours.info().status == "Connected")
    assert ours.info().delay_id, "a delayed leave guards us"
    other.until(lambda: [m.user_id for m in theirs.memberships] == [alice.user_id])
    ours.update_intent("video")
    host.until(lambda: [m.intent for m in ours.memberships] == ["video"])
    ours.leave_soon()
    host.until(lambda: ours.info().status == "Disconnected")
    other.until(lambda: theirs.memberships == [])
    host.client.close(0)
    other.client.close(0)


def test_what_a_homeserver_may_not_answer() -> None:
    """HTML, truncated JSON and silence are answers too: nothing breaks, and it is tried again."""
    client = Client.host_driven("@a:x", "D", clock="manual")
    client.advance(boot_ms=0, wall_ts=1_700_000_000_000)
    session = client.session("!r:x")
    member = {
        "type": "m.room.member",
        "state_key": "@a:x",
        "sender": "@a:x",
        "event_id": "$m",
        "origin_server_ts": 1,
        "content": {"membership": "join"},
    }
    create = {**member, "type": "m.room.create", "state_key": "", "event_id": "$c", "content": {"room_version": "10"}}
    client.feed(state={"room_id": "!r:x", "events": [create, member], "complete": True})
    session.join([], delayed_leave_delay_ms=DELAY_MS)
    answers: list[dict[str, Any]] = [
        {"status": 502, "headers": {"Content-Type": "text/html"}, "body": "<html>bad gateway</html>"},
        {"status": 200, "body": '{"delay_id": '},
        {"status": 200, "body": {"errcode": "M_UNKNOWN", "error": "no"}},
        {"network_error": "connection reset"},
    ]
    now: int | None = 0
    for answer in answers:
        requests: list[Event] = []
        while not requests:
            while event := client.next_event(0):
                if event.name == "request":
                    requests.append(event)
            if not requests:
                assert now is not None, "nothing is tried again"
                now = client.advance(boot_ms=now)
        for request in requests:
            client.respond(request.data["id"], **answer)
        now = client.advance()
    assert session.info().joined
    client.close(0)
