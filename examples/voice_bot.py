"""A voice for the calls of a room: joins when one starts, plays a WAV file over and over, leaves when it is alone.

pip install matrixrtc[livekit]; voice_bot.py URL USER PASSWORD ROOM FILE.wav
"""

import asyncio
import sys
import wave

from livekit import rtc
from matrixrtc import Client, enable_logging, livekit


async def play(call: livekit.Call, file: str) -> None:
    with wave.open(file) as wav:
        if wav.getsampwidth() != 2:
            raise ValueError(f"{file}: expected samples of 16 bits, got {8 * wav.getsampwidth()}")
        rate, channels = wav.getframerate(), wav.getnchannels()
        source = rtc.AudioSource(rate, channels)
        await call.publish_track(rtc.LocalAudioTrack.create_audio_track("voice", source))
        while True:
            while data := wav.readframes(rate // 50):  # 20 ms at a time
                await source.capture_frame(rtc.AudioFrame(data, rate, channels, len(data) // 2 // channels))
            wav.rewind()


async def main(url: str, user: str, password: str, room: str, file: str) -> None:
    enable_logging()  # warnings go to stderr: a wrong password, no homeserver, an SFU that refuses us
    # Each start is a new device. One that is used again needs a store for its encryption keys: store_path.
    async with Client(url, user_id=user, password=password) as client:
        session = client.session(room)

        async def until(others_are_there: bool) -> None:
            while True:
                me = client.info()
                others = [m for m in session.memberships if (m.user_id, m.device_id) != (me.user_id, me.device_id)]
                if bool(others) == others_are_there:
                    return
                await session.wait_for("memberships_changed")

        while True:
            await until(others_are_there=True)
            # Where the media goes the homeserver says, and in an encrypted room it is encrypted. Should this
            # process crash, the SFU sees it, and the authorisation service takes us out of the call.
            session.join(delegate_leave=True)
            async with await livekit.connect(session) as call, asyncio.TaskGroup() as tasks:
                print("playing", flush=True)
                playing = tasks.create_task(play(call, file))
                await until(others_are_there=False)
                playing.cancel()
            await session.leave(timeout=10)
            print("left", flush=True)


if len(sys.argv) != 6:
    sys.exit(__doc__)
asyncio.run(main(*sys.argv[1:]))
