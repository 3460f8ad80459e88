"""Synapse goes away and comes back during a call."""

from __future__ import annotations

from collections.abc import Callable

from jspeer import JsPeer
from ours import TRANSPORT, Told, client_of, wait_until
from synapse_runner import Account, Synapse

Peers = Callable[[Account], JsPeer]


def test_an_outage_within_the_delay_loses_nobody(own_synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = own_synapse.register("ours"), js_peer(own_synapse.register("js"))
    me, them = (ours.user_id, ours.device_id), (peer.account.user_id, peer.account.device_id)
    room = ours.create_room()
    peer.watch(room)
    with client_of(ours) as client:
        session = client.session(room)
        told = Told(session, "memberships_changed", "membership_lost", "probably_left")
        synced = Told(client, "sync_state")
        session.join([TRANSPORT], delayed_leave_delay_ms=300_000, delayed_leave_restart_ms=3_000)
        peer.join(room, delay_ms=300_000)
        peer.sees(*me)
        wait_until(client, lambda: len(session.memberships) == 2, what="both members")
        joined_ts = peer.sees(*me)["created_ts"]
        told["memberships_changed"].clear()
        seen_before = len(peer.seen)

        own_synapse.stop()
        wait_until(client, lambda: any(e.data["state"] == "reconnecting" for e in synced["sync_state"]), what="outage")
        synced["sync_state"].clear()
        own_synapse.start()
        up = ours.delayed_events()
        wait_until(client, lambda: any(e.data["state"] == "syncing" for e in synced["sync_state"]), what="reconnect")
        # Its switch runs again from after the outage: the outage is over for it.
        before = {d["delay_id"]: d["running_since"] for d in up}
        wait_until(
            client,
            lambda: any(d["running_since"] > before.get(d["delay_id"], 0) for d in ours.delayed_events()),
            what="restart of the delayed leave",
        )
        assert not told["membership_lost"]
        assert not [e for e in told["memberships_changed"] if e.data["left"]]
        assert {(m.user_id, m.device_id) for m in session.memberships} == {me, them}
        assert all({me, them} <= set(members) for members in peer.seen[seen_before:])
        assert peer.sees(*me)["created_ts"] == joined_ts, "the same membership goes on"


def test_an_outage_beyond_the_delay_is_noticed_and_mended(own_synapse: Synapse, js_peer: Peers) -> None:
    ours, peer = own_synapse.register("ours"), js_peer(own_synapse.register("js"))
    me = (ours.user_id, ours.device_id)
    room = ours.create_room()
    peer.watch(room)
    with client_of(ours) as client:
        session = client.session(room)
        told = Told(session, "membership_lost", "rejoined", "probably_left")
        session.join([TRANSPORT], delayed_leave_delay_ms=10_000, delayed_leave_restart_ms=4_000)
        first = peer.sees(*me)["created_ts"]
        wait_until(client, lambda: session.info().status == "Connected", what="our join")

        own_synapse.stop()
        # It says itself when its switch has passed.
        wait_until(client, lambda: any(e.data["probably_left"] for e in told["probably_left"]), what="probably_left")
        own_synapse.start()

        wait_until(client, lambda: told["rejoined"], 120, "rejoin")
        assert told["membership_lost"]
        wait_until(client, lambda: peer.now().get(me, {}).get("created_ts", first) > first, 120, "rejoin at js-sdk")
        wait_until(client, lambda: not session.info().probably_left, what="end of probably_left")
        assert session.info().joined
