"""Media keys between clients that the library connects, by Olm, in an encrypted room."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import AsyncIterator, Callable

import pytest
from conftest import DELAY_MS, Account

from matrixrtc import Client, MediaKey, Session, Transport

SFU = Transport.livekit("https://sfu.example.org")
TIMEOUT = 60

Room = tuple[list[Account], str]


@pytest.fixture
def room(register: Callable[[], Account]) -> Room:
    """Three accounts in an encrypted room."""
    accounts = [register() for _ in range(3)]
    room_id = accounts[0].create_room(encrypted=True)
    for account in accounts[1:]:
        account.join_room(room_id)
    return accounts, room_id


@dataclasses.dataclass
class Talker:
    account: Account
    client: Client
    session: Session

    @property
    def uses(self) -> MediaKey | None:
        return next((k for k in self.session.encryption_keys() if k.own and k.in_use), None)

    def hears(self, other: Talker) -> bool:
        """Whether we hold the key that the other one encrypts with."""
        used = other.uses
        held = self.session.participant_keys(other.account.user_id, other.account.device_id) or []
        return used is not None and any((k.index, k.key) == (used.index, used.key) for k in held)


class Call:
    """Clients in one call, each in a context of its own, and what any of them tells."""

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        self._news: asyncio.Queue[None] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def join(self, account: Account, **options: str) -> AsyncIterator[Talker]:
        async with Client(
            account.url, access_token=account.access_token, device_id=account.device_id, **options
        ) as client:
            session = client.session(self.room_id)
            for name in ("memberships_changed", "encryption_key_changed"):
                session.on(name, lambda _: self._news.put_nowait(None))
            session.join([SFU], delayed_leave_delay_ms=DELAY_MS)
            yield Talker(account, client, session)

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            await asyncio.wait_for(self._news.get(), TIMEOUT)

    async def until_changed(self, had: set[bytes], *talkers: Talker) -> None:
        """Until all encrypt with keys that somebody who has gone never had."""
        await self.until(lambda: all(t.uses is not None and t.uses.key not in had for t in talkers))

    async def until_all_hear(self, *talkers: Talker) -> None:
        await self.until(lambda: all(a.hears(b) for a in talkers for b in talkers if a is not b))


def test_members_hold_each_others_keys(room: Room) -> None:
    accounts, room_id = room

    async def story() -> None:
        call = Call(room_id)
        async with call.join(accounts[0]) as alice, call.join(accounts[1]) as bob:
            await call.until_all_hear(alice, bob)
            key = alice.uses
            assert key and len(key.key) == 16
            assert key.fingerprint == hashlib.sha256(key.key).hexdigest()[:8]
            assert repr(key.key) not in repr(key)
            async with call.join(accounts[2]) as carol:
                await call.until_all_hear(alice, bob, carol)
                had = {k.key for k in carol.session.encryption_keys()}
            await call.until_changed(had, alice, bob)
            await call.until_all_hear(alice, bob)

    asyncio.run(asyncio.wait_for(story(), 4 * TIMEOUT))


def test_a_device_that_comes_back_with_its_store_is_keyed_again(room: Room, tmp_path: pathlib.Path) -> None:
    accounts, room_id = room
    options = {"store_path": str(tmp_path / "bob.db"), "pickle_key": "a secret of the test"}

    async def story() -> None:
        call = Call(room_id)
        async with call.join(accounts[0]) as alice:
            for _ in range(2):
                async with call.join(accounts[1], **options) as bob:
                    await call.until_all_hear(alice, bob)
                    had = {k.key for k in bob.session.encryption_keys()}
                await call.until_changed(had, alice)

    asyncio.run(asyncio.wait_for(story(), 4 * TIMEOUT))


def test_a_room_that_is_not_encrypted_has_no_keys(pair: tuple[Account, Account, str]) -> None:
    alice, bob, room_id = pair

    async def story() -> None:
        call = Call(room_id)
        async with call.join(alice) as a, call.join(bob) as b:
            await call.until(lambda: len(a.session.memberships) == len(b.session.memberships) == 2)
            assert a.session.encryption_keys() == b.session.encryption_keys() == []

    asyncio.run(asyncio.wait_for(story(), 4 * TIMEOUT))
