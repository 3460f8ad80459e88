"""Errors are exceptions that say what a person needs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

import matrixrtc
from matrixrtc import Client


@pytest.fixture
def client() -> Any:
    with Client.host_driven("@a:x", "D", clock="manual") as client:
        yield client


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(matrixrtc.InvalidArgumentError) as caught:
        Client(access_token="t")
    assert caught.value.status == "MRTC_ERR_INVALID_ARGUMENT"
    assert caught.value.path == "/homeserver_url"
    assert "/homeserver_url" in str(caught.value)


def test_an_unknown_setting_is_refused_by_name(client: Client) -> None:
    session = client.session("!r:x")
    with pytest.raises(matrixrtc.InvalidArgumentError) as caught:
        session.join(delayed_leave_delay=1)  # type: ignore[call-arg]
    assert caught.value.path == "/delayed_leave_delay"


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda c: c.session("no room"), matrixrtc.InvalidArgumentError),
        (lambda c: c.session("!r:x\0y"), ValueError),
        (lambda c: c.session(7), TypeError),
        (lambda c: c.start(), matrixrtc.InvalidStateError),
        (lambda c: c.respond(1, 200, {}, {}), matrixrtc.NotFoundError),
        (lambda c: c.feed(sync="text"), matrixrtc.InvalidArgumentError),
        (lambda c: c.session("!r:x").leave_soon(), matrixrtc.InvalidStateError),
        (lambda c: c.session("!r:x").leave_wait(0), matrixrtc.WouldDeadlockError),
        (lambda c: c.session("!r:x").join([{"no": "type"}]), matrixrtc.InvalidArgumentError),
        (lambda c: c.session("!r:x").join([{"type": float("nan")}]), ValueError),
        (lambda c: c.session("!r:x").update_intent("x" * 10_000_000), matrixrtc.InvalidArgumentError),
    ],
)
def test_misuse(client: Client, call: Callable[[Any], None], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call(client)


def test_a_closed_client_and_session_are_told(client: Client) -> None:
    session = client.session("!r:x")
    session.close()
    session.close()
    with pytest.raises(matrixrtc.InvalidHandleError):
        session.info()
    client.close()
    client.close()
    for call in (client.info, client.next_event, client.start):
        with pytest.raises(matrixrtc.InvalidHandleError):
            call()


def test_the_payload_of_another_event_is_refused_by_name() -> None:
    event = matrixrtc.Event("sync_state", {"state": "syncing"})
    with pytest.raises(AttributeError, match="'sync_state' has no such payload: it is that of 'memberships_changed'"):
        _ = event.memberships
    assert not hasattr(event, "media_key")


def test_errors_travel_between_processes(client: Client) -> None:
    with pytest.raises(matrixrtc.InvalidArgumentError) as caught:
        client.session("no room")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is matrixrtc.InvalidArgumentError
    assert (str(again), again.path) == (str(caught.value), caught.value.path)


def test_a_library_that_is_not_there(run: Callable[..., CompletedProcess[str]]) -> None:
    done = run(
        "import os; os.environ['MATRIXRTC_LIBRARY'] = '/nowhere.so'\n"
        "import matrixrtc\n"
        "matrixrtc.Client.host_driven('@a:x', 'D')"
    )
    assert "set MATRIXRTC_LIBRARY to its path" in done.stderr


def test_a_library_that_is_another(run: Callable[..., CompletedProcess[str]]) -> None:
    done = run(
        "import os; os.environ['MATRIXRTC_LIBRARY'] = 'libc.so.6'\n"
        "import matrixrtc\n"
        "matrixrtc.Client.host_driven('@a:x', 'D')"
    )
    assert "libc.so.6 is not a libmatrixrtc" in done.stderr


def test_a_library_of_another_version(run: Callable[..., CompletedProcess[str]]) -> None:
    done = run("from matrixrtc import Client, library\nlibrary.ABI_VERSION = 99\nClient.host_driven('@a:x', 'D')")
    assert "has ABI version 1, this package needs 99" in done.stderr
