"""Media keys between the library and LiveKit on Node, in every order: as test_voice_keys.py, with one side on Node."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any, Self

from matrixrtc.livekit import connect
from sfu_runner import SFU
from test_voice_keys import KEYS, Session
from voice import Ear, Stage, in_loop, near, speaking, until


class Node:
    """A call on Node, and what it hears."""

    def __init__(self, process: asyncio.subprocess.Process, identity: str) -> None:
        self._process, self.identity = process, identity
        self.entered = False
        self.connected: list[bool] = []
        self.listeners: list[int] = []  # of the SDK's events, whenever a connection has come or gone
        self.tones: list[float | None] = []
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, sfu: SFU, room: str, identity: str) -> AsyncIterator[Self]:
        sfu.create_room(room)
        pipe, script = asyncio.subprocess.PIPE, pathlib.Path(__file__).with_name("keys_peer.mjs")
        node = cls(await asyncio.create_subprocess_exec("node", str(script), stdin=pipe, stdout=pipe), identity)
        try:
            node._write({"url": sfu.url, "jwt": sfu.token(room, identity)})
            yield node
            assert node._process.stdin
            node._process.stdin.close()
            async with asyncio.timeout(120):
                assert await node._process.wait() == 0
        finally:
            if node._process.returncode is None:
                node._process.kill()
            await node._process.wait()
            await node._reader

    def _write(self, told: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(told).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            told = json.loads(line)
            self.entered |= told.get("in", False)
            if "connected" in told:
                self.connected.append(told["connected"])
                self.listeners.append(told["listeners"])
            if "tone" in told:
                self.tones.append(told["tone"])

    async def enter(self) -> None:
        self._write({"enter": True})
        await until(lambda: self.entered, "entry of Node", 180)

    def speak(self, tone: float) -> None:
        self._write({"speak": tone})

    def tell_key(self, identity: str, index: int, key: bytes, in_use: bool = True) -> None:
        told = {
            "sfu_identity": identity,
            "index": index,
            "key": base64.b64encode(key).decode().rstrip("="),
            "own": identity == self.identity,
            "in_use": in_use,
        }
        self._write({"key": told})

    async def heard(self, what: str, tone: float = 440) -> None:
        """From now on."""
        self.tones.clear()
        await until(lambda: self.tones and near(self.tones[-1], tone), what)

    async def silent(self) -> None:
        self.tones.clear()
        await until(lambda: len(self.tones) > 3 and not any(self.tones[-3:]), "end of what is on its way")
        self.tones.clear()
        await until(lambda: len(self.tones) > 5, "windows of silence")
        assert not any(self.tones)


@in_loop
async def test_node_hears(stage: Stage) -> None:
    """A participant before its key, a key before its participant, two keys in flight, and the end of the ring."""
    speaker = Session(stage.sfu, "node hears", "speaker")
    speaker.tell_key("speaker", 0, KEYS[0])
    async with Node.running(stage.sfu, "node hears", "listener") as node:
        await node.enter()
        async with await connect(speaker) as call, speaking(call, 440):
            await node.silent()
            node.tell_key("speaker", 0, KEYS[0])
            await node.heard("tone")
            for n, index in enumerate([254, 255, 0, 1], 1):
                for session in speaker, node:
                    session.tell_key("speaker", index, KEYS[n], in_use=False)
                await node.heard(f"tone while key {index} waits") if index else await node.silent()
                speaker.tell_key("speaker", index, KEYS[n])
                # The SDK has no place for it.
                await node.heard(f"tone with key {index}") if index != 255 else await node.silent()
            node.tell_key("speaker", 1, KEYS[7])
            await node.silent()
        node.tell_key("speaker", 2, KEYS[2])
        speaker.tell_key("speaker", 2, KEYS[2])
        async with await connect(speaker) as call, speaking(call, 660):
            await node.heard("tone of who came after its key", 660)


@in_loop
async def test_node_speaks(stage: Stage) -> None:
    """With the key that is in use, round the end of the ring, after reconnections too; and no room is left behind."""
    listener = Session(stage.sfu, "node speaks", "listener")
    async with Node.running(stage.sfu, "node speaks", "speaker") as node, await connect(listener) as call:
        ears: list[Ear] = []
        call.on("track_subscribed", lambda track: ears.append(Ear(track)))

        async def heard(what: str) -> None:
            for ear in ears:
                ear.forget()
            await until(lambda: any(near(ear.tone(), 440) for ear in ears), what)

        for session in listener, node:
            session.tell_key("speaker", 253, KEYS[0])  # even before Node has entered the room
        await node.enter()
        node.speak(440)
        await heard("tone")
        for n, index in enumerate([254, 255, 0, 1], 1):
            for session in listener, node:
                session.tell_key("speaker", index, KEYS[n], in_use=False)
            await heard(f"tone while key {index} waits")
            node.tell_key("speaker", index, KEYS[n])
            await heard(f"tone with key {index}")
        for times in range(1, 5):
            stage.sfu.throw_out("node speaks", "speaker")
            await until(lambda n=times: node.connected == [True, False] * n + [True], "another room")
            await heard("tone from the next room")
        for ear in ears:
            await ear.close()
        # Three rooms have gone between these, and a frame that is on its way has a listener too.
        assert node.listeners[-1] - node.listeners[2] < 2, node.listeners
