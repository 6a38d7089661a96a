"""What the database knows of peers."""

from __future__ import annotations

from tests.unit.tracker.store.rows import A, B, C, D, digest, register
from zchunk.tracker.store.store import StoredPeer, TrackerStore


def test_peers_come_back_as_saved(store: TrackerStore) -> None:
    register(store, D, endpoints=("tcp://1.2.3.4:5", "tcp://[::1]:6"), left=True, incarnation=7, free=3)
    assert store.peers()[-1] == StoredPeer(
        peer_id=D,
        name="D",
        incarnation=7,
        endpoints=("tcp://1.2.3.4:5", "tcp://[::1]:6"),
        capacity=1000,
        free=3,
        inventory_count=0,
        inventory_digest=bytes(32),
        last_seen_ms=5,
        left=True,
    )
    assert [peer.peer_id for peer in store.peers()] == [A, B, C, D]


def test_saving_again_updates_and_keeps_the_inventory(store: TrackerStore) -> None:
    store.add_holdings(A, [digest(1)], 1)
    register(store, A, name="New", incarnation=2, free=1, left=True, last_seen_ms=99)
    peer = store.peers()[0]
    assert (peer.name, peer.incarnation, peer.free, peer.left, peer.last_seen_ms) == ("New", 2, 1, True, 99)
    assert (peer.inventory_count, peer.inventory_digest) == (1, digest(1))
    assert len(store.peers()) == 3


def test_name_owner(store: TrackerStore) -> None:
    assert store.name_owner("B") == B
    assert store.name_owner("b") is None
    register(store, D, name="B", last_seen_ms=6)
    assert store.name_owner("B") == D
