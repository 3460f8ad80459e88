"""SFUs through the binding: a host-driven call whose host plays homeserver and authorisation service."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

import matrixrtc
from matrixrtc import Client, Event, Transport

ROOM = "!r:x"
SERVICE = "https://lk.x"
PROOF = "an-openid-token"


class Host:
    def __init__(self) -> None:
        self.client = Client.host_driven("@us:x", "US")
        self.client.on("request", self.answer)
        self.session = self.client.session(ROOM)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        state = [("m.room.create", "", {"room_version": "10"}), ("m.room.member", "@us:x", {"membership": "join"})]
        events = [
            {"type": t, "sender": "@us:x", "state_key": k, "content": c, "event_id": f"${t}", "origin_server_ts": 1}
            for t, k, c in state
        ]
        self.client.feed(state={"room_id": ROOM, "events": events, "complete": True})

    def answer(self, event: Event) -> None:
        kind, http = event.data["kind"], event.data["http"]
        self.asked.append(event.data)
        claims = {"sub": "@us:x:US", "video": {"room": "R"}, "exp": int(time.time()) + 3600}
        jwt = "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".sig"
        default: dict[str, Any] = {
            "get_transports": {"rtc_transports": [{"type": "livekit", "livekit_service_url": SERVICE}]},
            "get_capabilities": {"capabilities": {}},
            "list_delayed": {"delayed_events": []},
            "schedule_delayed": {"delay_id": "d1"},
            "send_state": {"event_id": "$own"},
            "get_openid": {"access_token": PROOF, "matrix_server_name": "x", "expires_in": 3600},
            "get_sfu_token": {"url": "wss://sfu.x", "jwt": jwt},
        }
        if kind == "get_sfu_token":
            assert http["base_url"] == SERVICE and event.data["anonymous"] is True
        status, body = self.answers.get(kind, (200, default.get(kind, {})))
        self.client.respond(event.data["id"], status, body=body)


@pytest.fixture
def host() -> Host:
    return Host()


def test_token_of_what_the_homeserver_offers(host: Host) -> None:
    asyncio.run(_token_of_what_the_homeserver_offers(host))


async def _token_of_what_the_homeserver_offers(host: Host) -> None:
    async with host.client as client:
        assert client.transports() is None, "not asked yet"
        changed = asyncio.create_task(host.session.wait_for("sfus_changed", 60))
        await asyncio.sleep(0)
        host.session.join(delegate_leave=True)
        change = (await changed).sfus
        assert [s.service_url for s in change.added] == [SERVICE] and change.publish == (None, SERVICE)
        assert [t.livekit_service_url for t in client.transports() or []] == [SERVICE]
        token = await host.session.fetch_sfu_token(timeout=60)
        assert (token.url, token.identity, token.room, token.generation) == ("wss://sfu.x", "@us:x:US", "R", "state")
        assert token.jwt not in repr(token), "a credential is not shown"
        assert await host.session.fetch_sfu_token(SERVICE) == token, "it is held"
        (sfu,) = host.session.sfus
        assert sfu.publish and sfu.trusted and sfu.reason is None
        assert host.session.info().leave_delegated is False


def test_a_refusal_is_told(host: Host) -> None:
    asyncio.run(_a_refusal_is_told(host))


async def _a_refusal_is_told(host: Host) -> None:
    host.answers["get_sfu_token"] = (403, {"errcode": "M_FORBIDDEN", "error": f"go away, {PROOF}"})
    async with host.client:
        host.session.join([{"type": "livekit", "livekit_service_url": SERVICE}])
        failed = asyncio.create_task(host.session.wait_for("sfu_failed", 60))
        await asyncio.sleep(0)
        with pytest.raises(matrixrtc.SFUError, match=r"go away, \[redacted\]") as e:
            await host.session.fetch_sfu_token(timeout=60)
        assert e.value.reason == "refused"
        assert (await failed).sfu_failed.reason == "refused"
        with pytest.raises(matrixrtc.InvalidArgumentError):
            await host.session.fetch_sfu_token("https://nobody.x")


@pytest.mark.parametrize(
    ("foci", "path"),
    [
        ({"foci_preferred": Transport.livekit(SERVICE)}, "/foci_preferred"),
        ({"foci_preferred": SERVICE}, "/foci_preferred"),
        ({"foci_preferred": [{}]}, "/foci_preferred/0/type"),
        ({"foci_preferred": ["https://lk.x"]}, "/foci_preferred/0"),
        ({"foci_preferred": [{"type": "m"}, {"type": "livekit"}]}, "/foci_preferred/1/livekit_service_url"),
        ({"foci_preferred": [Transport.livekit("lk.x")]}, "/foci_preferred/0/livekit_service_url"),
        ({"foci_active": {"type": "livekit"}, "foci_preferred": []}, "/foci_active/livekit_service_url"),
    ],
)
def test_a_wrong_transport_is_named_by_its_field(host: Host, foci: dict[str, Any], path: str) -> None:
    with pytest.raises(matrixrtc.InvalidArgumentError) as e:
        host.session.join(**foci)
    assert e.value.path == path


def test_what_makes_no_sense(host: Host) -> None:
    with pytest.raises(matrixrtc.WouldDeadlockError):
        host.session.sfu_token(timeout=0)
    with pytest.raises(matrixrtc.InvalidStateError):
        host.session.sfu_connected(True)  # not joined
    with pytest.raises(matrixrtc.InvalidStateError):
        host.session.delegate_leave()
    with pytest.raises(matrixrtc.InvalidArgumentError) as e:
        host.session.sfu_connected(True, "https://nobody.x")
    assert e.value.path == "/service_url"
    host.client.close()
