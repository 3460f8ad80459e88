"""Joins the call of a room and tells who comes and goes: join.py URL USER PASSWORD ROOM"""

import asyncio
import sys

from matrixrtc import Client, Transport


async def main(url: str, user: str, password: str, room: str) -> None:
    async with Client(url, user_id=user, password=password) as client:
        session = client.session(room)
        session.join([Transport.livekit("https://sfu.example.org")], call_intent="audio")
        async for event in session.events():
            if event.name == "memberships_changed":
                for member in event.memberships.joined:
                    print("+", member.user_id)
                for gone in event.memberships.left:
                    print("-", gone.membership.user_id)
            elif event.name == "membership_manager_error":
                print("!", event.data["message"])


if len(sys.argv) != 5:
    sys.exit(__doc__)
asyncio.run(main(*sys.argv[1:]))
