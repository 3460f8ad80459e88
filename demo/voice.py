"""Two programs in one encrypted call with sound: a Python bot plays a chord, a Node bot records it.

Starts the embedded homeserver, LiveKit and its authorisation service, and shows who is in the call, whose key is held
by whom (by fingerprint), and how loud each note is heard. What was heard lands in build/demo: heard.wav, and heard.png,
its spectrogram. Exits with 0 only if every note was heard. `make demo-voice` builds what it needs first.
"""

from __future__ import annotations

import pathlib
import secrets
import struct
import sys
import time
import wave
import zlib
from contextlib import ExitStack
from typing import Any

import numpy as np

from demo import ROOT, STEP, Call, Failure, Homeserver, Participant, Screen, embedded_homeserver

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from sfu_runner import running_sfu

NAME = "demo.test"
RATE = 48000
NOTES = (440.0, 554.37, 659.26)
HEARD = 2000  # of 32767
LISTEN = 6.0  # seconds


class Concert(Call):
    """The call, and the notes that were heard in it."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.levels: dict[str, int] = {}
        self.loudest: dict[str, int] = {}

    def take(self, participant: Participant, line: str | None) -> None:
        if line is None or '"name":"lk-rtc"' not in line:  # LiveKit's SDK logs to standard output
            super().take(participant, line)

    def told(self, participant: Participant, event: dict[str, Any]) -> None:
        if event["event"] == "levels":
            self.levels = event["levels"]
            for note, level in self.levels.items():
                if level >= HEARD > self.loudest.get(note, 0):
                    self.screen.line(participant.name, f"hears {note} Hz", "32")
                self.loudest[note] = max(level, self.loudest.get(note, 0))
        elif event["event"] == "sfus_changed":
            for sfu in event["added"]:
                self.screen.line(participant.name, f"media at {sfu['service_url']}")
        elif event["event"] == "sfu_failed":
            self.screen.line(participant.name, f"cannot enter the SFU: {event['message']}", "33")
        elif event["event"] == "leave_delegated_changed" and event["delegated"]:
            self.screen.line(participant.name, "the authorisation service now watches over it")

    def table(self) -> list[str]:
        bars = [f"  {note:>8} Hz {'#' * (level // 250):<40}" for note, level in self.levels.items()]
        return super().table() + bars


def spectrogram(samples: np.ndarray[Any, np.dtype[np.int16]], file: pathlib.Path) -> None:
    """Time to the right, up to 2 kHz upwards, brighter is louder."""
    size, step = 4096, RATE // 100
    starts = range(0, max(len(samples) - size, 1), step)
    windows = np.array([np.resize(samples[s : s + size], size) for s in starts]) * np.hanning(size)
    bins = int(2000 * size / RATE)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(windows, axis=1))[:, :bins] + 1)
    light = np.clip((decibels - 60) / 70, 0, 1).T[::-1].repeat(2, axis=0)
    colours = np.stack([light**0.7, light**1.6, light**4 + 0.25 * (light > 0) * (1 - light)], axis=2)
    pixels = (255 * np.clip(colours, 0, 1)).astype(np.uint8)
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + image)


def keep(raw: pathlib.Path, folder: pathlib.Path) -> float:
    """Makes WAV and picture of what was recorded; its seconds."""
    data = raw.read_bytes()
    raw.unlink()
    with wave.open(str(folder / "heard.wav"), "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(data)
    samples = np.frombuffer(data, dtype=np.int16)
    spectrogram(samples, folder / "heard.png")
    return len(samples) / RATE


def play(screen: Screen, build: pathlib.Path, cleanup: ExitStack) -> None:
    folder = build / "demo"
    folder.mkdir(exist_ok=True)
    sfu = cleanup.enter_context(running_sfu(folder / "sfu"))
    url = cleanup.enter_context(embedded_homeserver(build / "homeserver", "-name", NAME, "-sfu", sfu.service_url))
    sfu.start({NAME: url})
    server = Homeserver(url)
    users = [server.register(f"{name}-{secrets.token_hex(3)}") for name in ("python", "node")]
    room_id = server.room(users[0], users[1:])
    screen.line("homeserver", f"{url}, encrypted room {room_id}")
    screen.line("livekit", f"{sfu.url}, tokens at {sfu.service_url}")

    environment = {
        "MATRIXRTC_LIBRARY": str(build / "libmatrixrtc.so"),
        "PYTHONPATH": str(ROOT / "bindings" / "python" / "src"),
    }
    notes, raw = ",".join(map(str, NOTES)), folder / "heard.raw"
    commands = [
        [sys.executable, str(ROOT / "demo" / "tone.py")],
        ["node", str(ROOT / "demo" / "record.mjs")],
    ]
    call = Concert(screen)
    for name, command, user, file in zip(("python", "node"), commands, users, ([], [str(raw)]), strict=True):
        arguments = [url, user["access_token"], room_id, '{"delegate_leave": true}', notes, *file]
        participant = Participant(name, command + arguments, user, environment)
        cleanup.callback(participant.end)
        call.add(participant)
    python, node = everybody = list(call.people.values())

    call.until_seen("both see each other", everybody, by=everybody)
    call.until_keyed("both hold the key of the other", everybody)
    screen.line("demo", f"each holds the key of the other, and the fingerprints agree: {call.fingerprints()}", "1;32")
    began = time.monotonic()
    call.until(
        "node hears every note that python plays",
        2 * STEP,
        lambda: len(call.loudest) == len(NOTES) and min(call.loudest.values()) >= HEARD,
        everybody,
    )
    screen.line("demo", f"node has heard every note, {time.monotonic() - began:.1f} s after that", "1;32")
    end = time.monotonic() + LISTEN
    call.until("some more was recorded", 2 * LISTEN, lambda: time.monotonic() > end, everybody)
    for participant in (python, node):
        call.leave(participant)
    seconds = keep(raw, folder)
    heard = ", ".join(f"{note} Hz at {level}" for note, level in call.loudest.items())
    screen.line("demo", f"heard {heard} of 32767", "1;32")
    screen.line("demo", f"{seconds:.1f} s are in {folder}/heard.wav, their spectrogram in heard.png", "1;32")


def main() -> int:
    build = ROOT / "build"
    screen = Screen(sys.stdout)
    needed = ["libmatrixrtc.so", "homeserver", "livekit-server", "authservice"]
    try:
        with ExitStack() as cleanup:
            if missing := [name for name in needed if not (build / name).exists()]:
                raise Failure(f"{build} has no {', '.join(missing)}: run `make demo-voice`")
            play(screen, build, cleanup)
    except Failure as failure:
        screen.line("demo", f"FAILED: {failure}", "1;31")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
