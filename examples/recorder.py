"""Records the call of a room, each participant to a WAV file of their own, until all have left, or Ctrl-C or SIGTERM.
times.csv in the folder says who is in which file, and when it begins and ends.

pip install matrixrtc[livekit]; recorder.py URL USER PASSWORD ROOM FOLDER
"""

import asyncio
import contextlib
import csv
import datetime
import pathlib
import re
import signal
import sys
import wave

from livekit import rtc
from matrixrtc import Client, enable_logging, livekit

RATE = 48000


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


async def record(
    call: livekit.Call, track: rtc.Track, participant: rtc.RemoteParticipant, folder: pathlib.Path
) -> None:
    stream, began = rtc.AudioStream(track, sample_rate=RATE, num_channels=1), now()
    while (member := call.member_of(participant)) is None:  # heard before it is seen to be in the call
        await call.session.wait_for("memberships_changed")
    who = re.sub(r"[^\w.-]", "_", f"{member.user_id} {member.device_id}")
    file = next(f for n in range(10000) if not (f := folder / f"{who}_{n}.wav").exists())
    print("recording", member.user_id, "to", file, flush=True)
    with wave.open(str(file), "wb") as wav:
        wav.setparams((1, 2, RATE, 0, "NONE", ""))
        try:
            async for event in stream:  # goes on through silence, so that the time in the file is that of the call
                wav.writeframes(event.frame.data)
        finally:  # the participant has left, or the recording ends
            with (folder / "times.csv").open("a", newline="") as times:
                csv.writer(times).writerow([file.name, member.user_id, member.device_id, began, now()])


async def main(url: str, user: str, password: str, room: str, directory: str) -> None:
    enable_logging()  # warnings go to stderr: a wrong password, no homeserver, an SFU that refuses us
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = asyncio.current_task()
    assert recorder
    for ends in signal.SIGINT, signal.SIGTERM:  # files are closed and the call is left all the same
        asyncio.get_running_loop().add_signal_handler(ends, recorder.cancel)
    async with Client(url, user_id=user, password=password) as client:
        session = client.session(room)
        session.join(delegate_leave=True)  # a member like the others: they see it, and send it their keys
        async with await livekit.connect(session) as call, asyncio.TaskGroup() as recordings:
            running: list[asyncio.Task[None]] = []

            def heard(track: rtc.Track, _: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
                if track.kind == rtc.TrackKind.KIND_AUDIO:
                    running.append(recordings.create_task(record(call, track, participant, folder)))

            call.on("track_subscribed", heard)
            async for event in session.events():
                if event.name == "memberships_changed" and event.memberships.left and event.memberships.count == 1:
                    break
            for recording in running:
                recording.cancel()


if len(sys.argv) != 6:
    sys.exit(__doc__)
with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(main(*sys.argv[1:]))
