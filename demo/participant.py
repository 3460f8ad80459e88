"""The demo's Python participant: joins the call, prints what it sees as JSON lines, leaves when its
input ends. Of media keys it prints fingerprints only.

participant.py HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS
"""

import asyncio
import json
import sys

from matrixrtc import Client


async def main(homeserver_url: str, access_token: str, room_id: str, params: str) -> None:
    client = Client(homeserver_url, access_token=access_token)
    session = client.session(room_id)
    events = session.events()  # before the start: so who is there already is told as well
    async with client:

        async def report() -> None:
            async for event in events:
                shown = {name: value for name, value in event.data.items() if name != "key"}
                print(json.dumps({"event": event.name, **shown}), flush=True)

        reporting = asyncio.create_task(report())
        session.join(**json.loads(params))
        await asyncio.to_thread(sys.stdin.read)
        await session.leave(timeout=10)
        session.close()
        await reporting


asyncio.run(main(*sys.argv[1:]))
