"""The demo's Python participant: joins the call, prints what it sees as JSON lines, leaves when its input ends.

participant.py HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS
"""

import asyncio
import json
import sys

from matrixrtc import Client


async def main(homeserver_url: str, access_token: str, room_id: str, params: str) -> None:
    async with Client(homeserver_url, access_token=access_token) as client:
        session = client.session(room_id)
        events = session.events()

        async def report() -> None:
            async for event in events:
                print(json.dumps({"event": event.name, **event.data}), flush=True)

        reporting = asyncio.create_task(report())
        session.join(**json.loads(params))
        await asyncio.to_thread(sys.stdin.read)
        await session.leave(timeout=10)
        session.close()
        await reporting


asyncio.run(main(*sys.argv[1:]))
