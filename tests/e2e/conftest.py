"""The real parts: a Synapse per worker, matrix-js-sdk peers, and our own participants."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest

_HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1] / "bindings" / "python" / "src")]

import synapse_runner  # noqa: E402
from jspeer import JsPeer  # noqa: E402
from synapse_runner import Account, Synapse  # noqa: E402
from voice import Stage, staged  # noqa: E402


@pytest.fixture(scope="session")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """The server that the tests share."""
    with synapse_runner.running(tmp_path_factory.mktemp("synapse")) as server:
        yield server


@pytest.fixture
def own_synapse(tmp_path: pathlib.Path) -> Iterator[Synapse]:
    """A server that the test may stop."""
    with synapse_runner.running(tmp_path / "synapse") as server:
        yield server


@pytest.fixture
def limited_synapse(tmp_path: pathlib.Path) -> Iterator[Synapse]:
    """A server with Synapse's own rate limits."""
    with synapse_runner.running(tmp_path / "synapse", default_rate_limits=True) as server:
        yield server


@pytest.fixture
def js_peer(tmp_path: pathlib.Path) -> Iterator[Callable[..., JsPeer]]:
    """Starts matrix-js-sdk peers."""
    peers: list[JsPeer] = []

    def start(account: Account, *, encrypted: bool = False) -> JsPeer:
        peers.append(JsPeer(account, tmp_path / f"peer{len(peers)}.log", encrypted=encrypted))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to tell beside that they passed."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "told" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A homeserver with an SFU, for the tests that have a voice."""
    with staged(tmp_path_factory.mktemp("stage")) as stage:
        yield stage
