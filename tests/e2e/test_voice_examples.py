"""The examples that have a voice, as a reader would start them."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import pathlib
import sys
import wave
from collections.abc import AsyncIterator

import numpy as np

from synapse_runner import Account
from voice import RATE, Bot, Stage, in_loop, near, tone_of, until

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Example:
    """A running example, with what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.said += line.decode()

    async def says(self, what: str) -> None:
        try:
            await until(lambda: what in self.said or self.process.returncode is not None, f"{what!r}", 180)
        finally:
            print(self.said)
        assert what in self.said

    async def ends(self) -> int:
        async with asyncio.timeout(120):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[Example]:
    program = "node" if name.endswith(".mjs") else sys.executable
    env = os.environ | {"PYTHONPATH": str(ROOT / "bindings/python/src")}
    pipe = asyncio.subprocess.PIPE
    command = [program, str(ROOT / "examples" / name), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=env)
    try:
        yield Example(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def by_password(account: Account) -> tuple[str, str, str]:
    return account.url, account.user_id, account.password


@in_loop
async def test_voice_bot(stage: Stage, tmp_path: pathlib.Path) -> None:
    assert len((ROOT / "examples/voice_bot.py").read_text().splitlines()) < 60
    wave_of(523, tmp_path / "tone.wav")
    room, (bot, *others) = stage.cast("bot", "alice", "carol")
    async with example("voice_bot.py", *by_password(bot), room, str(tmp_path / "tone.wav")) as running:
        for times, account in enumerate(others, 1):
            async with Bot(account, room) as a:
                await until(lambda a=a: [e for e in a.ears.values() if near(e.tone(), 523)], "tone of the file", 180)
                (participant,) = a.call.remote_participants
                assert a.call.member_of(participant).user_id == bot.user_id
            await running.says("playing\nleft\n" * times)
        assert running.process.returncode is None, "it waits for the next call"


@in_loop
async def test_recorder(stage: Stage, tmp_path: pathlib.Path) -> None:
    room, (recorder, alice, bob) = stage.cast("recorder", "alice", "bob")
    async with Bot(alice, room, 440) as a:
        async with example("recorder.py", *by_password(recorder), room, str(tmp_path)) as running:
            async with Bot(bob, room, 660):
                for account in alice, bob:
                    await running.says(f"recording {account.user_id} ")

                def recorded() -> bool:
                    tones = [tone_of(samples[samples != 0]) for samples in map(samples_of, tmp_path.glob("*.wav"))]
                    return all(any(near(heard, tone) for heard in tones) for tone in (440, 660))

                await until(recorded, "tones in the files")
            await a.session.leave(120)
            assert await running.ends() == 0
    times = list(csv.reader((tmp_path / "times.csv").open()))
    assert {row[1] for row in times} == {alice.user_id, bob.user_id}
    for file, user, _, began, ended in times:
        assert began < ended
        with wave.open(str(tmp_path / file)) as wav:
            samples = np.frombuffer(wav.readframes(wav.getnframes()), dtype=np.int16)
        heard = tone_of(samples[samples != 0])
        assert near(heard, 440 if user == alice.user_id else 660), (user, heard)


@in_loop
async def test_echo(stage: Stage) -> None:
    room, (alice, echo) = stage.cast("alice", "echo")
    async with Bot(alice, room, 440) as a:
        async with example("echo.mjs", echo.url, echo.access_token, room) as running:
            await running.says("hearing")
            await until(lambda: a.hears_tone(echo, 440), "echo")
            await a.session.leave(120)
            await running.says("leave sent: true")
            assert await running.ends() == 0


def samples_of(file: pathlib.Path) -> np.ndarray:
    """What a WAV file has so far, while it is still written."""
    data = file.read_bytes()[44:]
    return np.frombuffer(data[: len(data) // 2 * 2], dtype=np.int16)


def wave_of(tone: float, file: pathlib.Path) -> None:
    with wave.open(str(file), "wb") as wav:
        wav.setparams((1, 2, RATE, 0, "NONE", ""))
        wav.writeframes((10000 * np.sin(2 * np.pi * tone * np.arange(RATE) / RATE)).astype(np.int16).tobytes())
