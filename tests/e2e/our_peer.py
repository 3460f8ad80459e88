"""A participant of ours that is driven by lines on stdin: URL, token, room, settings."""

from __future__ import annotations

import json
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python" / "src"))

from matrixrtc import Client, Event

url, token, room_id, settings = sys.argv[1:]
client = Client(url, access_token=token)
session = client.session(room_id)
lock = threading.Lock()


def say(**what: object) -> None:
    with lock:
        print(json.dumps(what), flush=True)


def members() -> None:
    found = [{"user": m.user_id, "device": m.device_id, "intent": m.intent} for m in session.memberships]
    say(event="members", members=found)


def on_event(event: Event) -> None:
    if event.name == "memberships_changed":
        members()
    else:
        say(**{**event.data, "event": event.name})


def commands() -> None:
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "intent":
            session.update_intent(argument)
        elif command == "leave":
            session.leave_soon()
        elif command == "members":
            members()
        elif command == "snapshot":
            say(event="snapshot", snapshot=session.debug_snapshot())


with client:
    session.join([{"type": "livekit", "livekit_service_url": "https://ours.example"}], **json.loads(settings))
    threading.Thread(target=commands, daemon=True).start()
    while True:
        event = client.next_event(60)
        if event is not None:
            on_event(event)
            if event.name == "left":
                break
