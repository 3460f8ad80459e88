"""A call through host-driven mode with nothing but http.client: all that a host must bring along."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from jspeer import JsPeer
from matrixrtc import Client, Event
from ours import TRANSPORT, Told, wait_until
from synapse_runner import Account, Synapse


class Host:
    """A Matrix client of few words: makes the requests it is asked for, syncs, and takes both home to the
    thread that calls `next_event`."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.client = Client.host_driven(account.user_id, account.device_id)
        self.client.on("request", self._on_request)
        self.arrived: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.closed = threading.Event()
        self.syncing = threading.Thread(target=self._sync, daemon=True)
        self.syncing.start()

    def _http(self, method: str, path: str, query: dict[str, Any], body: Any) -> tuple[int, dict[str, str], str]:
        at = urllib.parse.urlsplit(self.account.url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=40)
        if query:
            path += "?" + urllib.parse.urlencode(query)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Authorization": f"Bearer {self.account.access_token}", "Content-Type": "application/json"},
            )
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def _on_request(self, event: Event) -> None:
        threading.Thread(target=self._make, args=(event.data["id"], event.data["http"]), daemon=True).start()

    def _make(self, number: int, asked: dict[str, Any]) -> None:
        try:
            status, headers, body = self._http(
                asked["method"], asked["path"], asked.get("query") or {}, asked.get("body")
            )
        except (OSError, http.client.HTTPException) as e:
            error = str(e) or type(e).__name__
            self.arrived.put(lambda: self.client.respond(number, network_error=error))
        else:
            self.arrived.put(lambda: self.client.respond(number, status, headers, body))

    def _sync(self) -> None:
        since: dict[str, str] = {}
        while not self.closed.is_set():
            _, _, body = self._http("GET", "/_matrix/client/v3/sync", {"timeout": "1000", **since}, None)
            sync = json.loads(body)
            since = {"since": sync["next_batch"]}
            self.arrived.put(lambda sync=sync: self.client.feed(sync=sync))  # type: ignore[misc]

    def pump(self) -> bool:
        """Hands over what has arrived."""
        while True:
            try:
                self.arrived.get_nowait()()
            except queue.Empty:
                return True

    def wait_until(self, condition: Callable[[], Any], timeout: float = 60, what: str = "condition") -> None:
        wait_until(self.client, lambda: self.pump() and condition(), timeout, what)

    def close(self) -> None:
        self.closed.set()
        self.syncing.join(10)
        self.client.close()


def test_a_call_with_http_client_only(synapse: Synapse, js_peer: Callable[[Account], JsPeer]) -> None:
    ours, peer = synapse.register("ours"), js_peer(synapse.register("js"))
    me = (ours.user_id, ours.device_id)
    room = ours.create_room()
    peer.watch(room)
    host = Host(ours)
    try:
        session = host.client.session(room)
        session.join([TRANSPORT], call_intent="audio")
        host.wait_until(lambda: me in peer.now(), what="our join at js-sdk")
        host.wait_until(lambda: session.info().status == "Connected", what="our join")
        peer.join(room)
        host.wait_until(lambda: len(session.memberships) == 2, what="join of js-sdk")
        session.update_intent("video")
        host.wait_until(lambda: peer.now()[me]["intent"] == "video", what="our intent at js-sdk")
        assert peer.leave(room)
        host.wait_until(lambda: len(session.memberships) == 1, what="leave of js-sdk")
        told = Told(session, "left")
        session.leave_soon()
        host.wait_until(lambda: told["left"], what="our leave")
        assert told["left"][0].data["sent"]
        peer.sees_gone(*me)
    finally:
        host.close()
