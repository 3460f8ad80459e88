"""The voice demo's Python participant: plays a chord in the call, note by note, prints what it sees as JSON lines,
leaves when its input ends.

tone.py HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS NOTES   (in Hz, with commas)
"""

import array
import asyncio
import itertools
import json
import math
import sys

from livekit import rtc
from matrixrtc import Client, livekit

RATE = 48000
NOTE = 0.5  # seconds


async def play(call: livekit.Call, notes: list[float]) -> None:
    source = rtc.AudioSource(RATE, 1)
    await call.publish_track(rtc.LocalAudioTrack.create_audio_track("chord", source))
    block = RATE // 100
    for at in itertools.count(step=block):
        note = notes[int(at / RATE / NOTE) % len(notes)]
        samples = (int(9000 * math.sin(2 * math.pi * note * (at + i) / RATE)) for i in range(block))
        await source.capture_frame(rtc.AudioFrame(array.array("h", samples).tobytes(), RATE, 1, block))


async def main(homeserver_url: str, access_token: str, room_id: str, params: str, notes: str) -> None:
    client = Client(homeserver_url, access_token=access_token)
    session = client.session(room_id)
    events = session.events()  # before the start: so who is there already is told as well
    async with client:

        async def report() -> None:
            async for event in events:
                shown = {name: value for name, value in event.data.items() if name not in ("key", "jwt")}
                print(json.dumps({"event": event.name, **shown}), flush=True)

        reporting = asyncio.create_task(report())
        session.join(**json.loads(params))
        async with await livekit.connect(session) as call:
            playing = asyncio.create_task(play(call, [float(note) for note in notes.split(",")]))
            await asyncio.to_thread(sys.stdin.read)
            playing.cancel()
        await session.leave(timeout=10)
        session.close()
        await reporting


asyncio.run(main(*sys.argv[1:]))
