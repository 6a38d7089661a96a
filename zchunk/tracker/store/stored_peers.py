"""The storing nodes in the tracker's database, as they last said of themselves.

Responsible for the rows of `models.Peer`, but for their inventory columns (`holdings.py`);
not for who is up: callers pass the live peers in. Called by `store.py`, and by the modules
beside it that need a row's key, each inside a transaction of the store.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from zchunk.errors import NotFound
from zchunk.tracker.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredPeer:
    """A storing node as of its last `save_peer`; the inventory is always up to date."""

    peer_id: str
    name: str
    incarnation: int
    endpoints: tuple[str, ...]
    capacity: int
    free: int
    inventory_count: int
    inventory_digest: bytes
    last_seen_ms: int
    left: bool


class StoredPeers:
    """The table; a key is the `id` of a row, a peer id the public one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._table = database.models.Peer

    def save(
        self,
        peer_id: str,
        name: str,
        incarnation: int,
        endpoints: Sequence[str],
        capacity: int,
        free: int,
        last_seen_ms: int,
        left: bool,
    ) -> None:
        """A new row has an empty inventory, one that is there keeps its own."""
        peer = self._table
        values = {
            peer.name: name,
            peer.incarnation: incarnation,
            peer.endpoints: json.dumps(list(endpoints)),
            peer.capacity: capacity,
            peer.free: free,
            peer.last_seen_ms: last_seen_ms,
            peer.left: left,
        }
        if peer.update(values).where(peer.peer_id == peer_id).execute() == 0:
            empty = {peer.peer_id: peer_id, peer.inventory_count: 0, peer.inventory_digest: bytes(32)}
            peer.insert({**values, **empty}).execute()

    def all(self) -> list[StoredPeer]:
        """In order of registration."""
        peer = self._table
        fields = [getattr(peer, name) for name in StoredPeer.__dataclass_fields__]
        return [_stored_peer(row) for row in self._database.all(peer.select(*fields).order_by(peer.id))]

    def name_owner(self, name: str) -> str | None:
        """Should several have had the name, the one seen last."""
        peer = self._table
        query = peer.select(peer.peer_id).where(peer.name == name)
        rows = self._database.all(query.order_by(peer.last_seen_ms.desc(), peer.id.desc()).limit(1))
        return str(rows[0][0]) if rows else None

    def key(self, peer_id: str) -> int:
        """Raises NotFound."""
        peer = self._table
        rows = self._database.all(peer.select(peer.id).where(peer.peer_id == peer_id))
        if not rows:
            raise NotFound(f"peer {peer_id} has never registered with this tracker", peer_id=peer_id)
        return int(rows[0][0])

    def ids(self) -> dict[int, str]:
        """Peer ids by key."""
        peer = self._table
        return dict(self._database.all(peer.select(peer.id, peer.peer_id)))

    def live_ids(self, live: Collection[str]) -> dict[int, str]:
        """As `ids`, of those in `live` alone."""
        up = frozenset(live)
        return {key: peer_id for key, peer_id in self.ids().items() if peer_id in up}


def _stored_peer(row: Sequence[Any]) -> StoredPeer:
    peer_id, name, incarnation, endpoints, capacity, free, count, digest, seen, left = row
    addresses = tuple(json.loads(endpoints))
    return StoredPeer(
        peer_id, name, incarnation, addresses, capacity, free, count, bytes(digest), seen, bool(left)
    )
