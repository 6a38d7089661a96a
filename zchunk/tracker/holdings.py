"""Which peer holds which chunk, in the tracker's database, and the peers' inventories.

Responsible for the rows of `models.Holding`, and for the count and digest in a peer's row,
which every change here keeps exact. Not responsible for files: whether a chunk may be
released, `store.py` asks the listing first. Called by `store.py`, inside its transactions.

`key` is the key of the peer's row, see `storedpeers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from zchunk import hashing
from zchunk.errors import NotFound
from zchunk.tracker.database import Database


class Holdings:
    """The table, and the inventory columns of `models.Peer`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._table = database.models.Holding
        self._peers = database.models.Peer

    def add(self, key: int, hashes: Sequence[bytes], stored_at_ms: int) -> int:
        """Returns how many are new. One that is unavailable stays so."""
        holding = self._table
        query = holding.select(holding.chunk_hash).where(holding.peer == key)
        rows = self._database.rows_among(query, holding.chunk_hash, sorted(set(hashes)))
        fresh = sorted(set(hashes) - {bytes(row[0]) for row in rows})
        self._insert(key, fresh, stored_at_ms)
        self._count(key, added=fresh)
        return len(fresh)

    def drop(self, key: int, hashes: Iterable[bytes]) -> int:
        """Deletes the peer's rows of `hashes`; returns how many there were."""
        holding = self._table
        query = holding.select(holding.chunk_hash).where(holding.peer == key)
        rows = self._database.rows_among(query, holding.chunk_hash, sorted(set(hashes)))
        held = [bytes(row[0]) for row in rows]
        self._delete(key, held)
        self._count(key, removed=held)
        return len(held)

    def replace(self, key: int, hashes: Sequence[bytes], now_ms: int) -> tuple[list[bytes], list[bytes]]:
        """Rows of exactly these afterwards; (added, lost), both ascending."""
        holding = self._table
        held = holding.select(holding.chunk_hash).where(holding.peer == key).order_by(holding.chunk_hash)
        wanted = [chunk_hash for chunk_hash, _ in groupby(sorted(hashes))]
        have = (bytes(row[0]) for row in self._database.connection.execute(held))
        added, lost = _difference(have, wanted)
        self._insert(key, added, now_ms)
        self._delete(key, lost)
        self._count(key, added=added, removed=lost)
        return added, lost

    def mark_unavailable(self, key: int, sha256: bytes) -> bool:
        """Whether it was available until now."""
        holding = self._table
        which = (holding.peer == key) & (holding.chunk_hash == sha256) & holding.is_available
        return bool(holding.update({holding.is_available: False}).where(which).execute())

    def mark_whole(self, key: int, hashes: Iterable[bytes]) -> list[bytes]:
        """Those of `hashes` that were unavailable and count again."""
        holding = self._table
        mine = (holding.peer == key) & (holding.is_available == False)  # noqa: E712 - peewee's
        query = holding.select(holding.chunk_hash).where(mine)
        rows = self._database.rows_among(query, holding.chunk_hash, sorted(set(hashes)))
        again = [bytes(row[0]) for row in rows]
        update = holding.update({holding.is_available: True}).where(mine)
        self._database.run_among(update, holding.chunk_hash, again)
        return again

    def counts_on(self, key: int, sha256: bytes) -> bool:
        """Raises NotFound."""
        holding = self._table
        which = (holding.peer == key) & (holding.chunk_hash == sha256)
        rows = self._database.all(holding.select(holding.is_available).where(which))
        if not rows:
            raise NotFound(f"that peer is not known to hold chunk {sha256.hex()[:12]}; locate the file again")
        return bool(rows[0][0])

    def unavailable(self, key: int, limit: int) -> list[bytes]:
        """Ascending."""
        holding = self._table
        mine = (holding.peer == key) & (holding.is_available == False)  # noqa: E712 - peewee's
        query = holding.select(holding.chunk_hash).where(mine).order_by(holding.chunk_hash)
        return [bytes(row[0]) for row in self._database.all(query.limit(limit))]

    def inventory(self, key: int) -> tuple[int, bytes]:
        """Count and digest of the peer's rows, available or not."""
        peer = self._peers
        query = peer.select(peer.inventory_count, peer.inventory_digest).where(peer.id == key)
        count, digest = self._database.all(query)[0]
        return int(count), bytes(digest)

    def _insert(self, key: int, hashes: Iterable[bytes], stored_at_ms: int) -> None:
        holding = self._table
        fields = [holding.chunk_hash, holding.peer, holding.stored_at_ms, holding.is_available]
        rows = ((chunk_hash, key, stored_at_ms, True) for chunk_hash in hashes)
        self._database.insert(holding, fields, rows)

    def _delete(self, key: int, hashes: Sequence[bytes]) -> None:
        holding = self._table
        self._database.run_among(holding.delete().where(holding.peer == key), holding.chunk_hash, hashes)

    def _count(self, key: int, added: Sequence[bytes] = (), removed: Sequence[bytes] = ()) -> None:
        peer = self._peers
        count, digest = self.inventory(key)
        values = {
            peer.inventory_count: count + len(added) - len(removed),
            peer.inventory_digest: hashing.add_to_inventory(digest, list(added), list(removed)),
        }
        peer.update(values).where(peer.id == key).execute()


def _difference(have: Iterable[bytes], want: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(in `want` alone, in `have` alone); both ascending, without duplicates. One pass, so
    that an inventory of a million chunks is not in memory twice."""
    added: list[bytes] = []
    lost: list[bytes] = []
    at = 0
    for chunk_hash in have:
        while at < len(want) and want[at] < chunk_hash:
            added.append(want[at])
            at += 1
        if at < len(want) and want[at] == chunk_hash:
            at += 1
        else:
            lost.append(chunk_hash)
    return added + list(want[at:]), lost
