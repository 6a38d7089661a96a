"""Which peer holds which chunk, in the tracker's database, and the peers' inventories.

Responsible for the rows of `models.Holding`, and for the count and digest in a peer's row,
which every change here keeps exact. Not responsible for files: whether a chunk may be
released, `store.py` asks the listing first. Called by `store.py`, inside its transactions.

`key` is the key of the peer's row, see `stored_peers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from zchunk.content import hashing
from zchunk.errors import NotFound
from zchunk.tracker.store.chunks import Chunks
from zchunk.tracker.store.database import Database


class Holdings:
    """The table, and the inventory columns of `models.Peer`."""

    def __init__(self, database: Database, chunks: Chunks) -> None:
        self._database = database
        self._chunks = chunks
        self._table = database.models.Holding
        self._chunk = database.models.Chunk
        self._peers = database.models.Peer

    def add(self, key: int, hashes: Sequence[bytes], stored_at_ms: int) -> int:
        """Returns how many are new. One that is unavailable stays so."""
        old, new = self._chunks.numbered(hashes)
        held = self._held(key, old)
        fresh = {**{chunk_hash: old[chunk_hash] for chunk_hash in old.keys() - held.keys()}, **new}
        self._insert(key, fresh.values(), stored_at_ms)
        self._count(key, added=list(fresh))
        return len(fresh)

    def drop(self, key: int, hashes: Iterable[bytes]) -> int:
        """Deletes the peer's rows of `hashes`; returns how many there were."""
        held = self._held(key, self._chunks.known(hashes))
        self._delete(key, held)
        return len(held)

    def replace(self, key: int, hashes: Sequence[bytes], now_ms: int) -> tuple[list[bytes], list[bytes]]:
        """Rows of exactly these afterwards; (added, lost), both ascending."""
        wanted = [chunk_hash for chunk_hash, _ in groupby(sorted(hashes))]
        query = self._mine(key, self._chunk.chunk_hash).order_by(self._chunk.chunk_hash)
        have = (bytes(row[0]) for row in self._database.connection.execute(query))
        added, lost = _difference(have, wanted)
        if added:
            self.add(key, added, now_ms)
        if lost:
            self.drop(key, lost)
        return added, lost

    def mark_unavailable(self, key: int, sha256: bytes) -> bool:
        """Whether it was available until now."""
        return bool(self._mark(key, [sha256], available=False))

    def mark_whole(self, key: int, hashes: Iterable[bytes]) -> list[bytes]:
        """Those of `hashes` that were unavailable and count again."""
        return self._mark(key, hashes, available=True)

    def counts_on(self, key: int, sha256: bytes) -> bool:
        """Raises NotFound."""
        query = self._mine(key, self._table.is_available)
        rows = self._database.all(query.where(self._chunk.chunk_hash == sha256))
        if not rows:
            raise NotFound(f"that peer does not hold chunk {sha256.hex()[:12]}; locate the file again")
        return bool(rows[0][0])

    def unavailable(self, key: int, limit: int) -> list[bytes]:
        """Ascending."""
        query = self._mine(key, self._chunk.chunk_hash).where(self._is(available=False))
        rows = self._database.all(query.order_by(self._chunk.chunk_hash).limit(limit))
        return [bytes(row[0]) for row in rows]

    def inventory(self, key: int) -> tuple[int, bytes]:
        """Count and digest of the peer's rows, available or not."""
        peer = self._peers
        query = peer.select(peer.inventory_count, peer.inventory_digest).where(peer.id == key)
        count, digest = self._database.all(query)[0]
        return int(count), bytes(digest)

    # -- statements ---------------------------------------------------------------------

    def _mine(self, key: int, *columns: Any) -> Any:
        """The peer's rows, beside those of their chunks."""
        holding, chunk = self._table, self._chunk
        query = holding.select(*columns).join(chunk, on=(holding.chunk == chunk.id))
        return query.where(holding.peer == key)

    def _is(self, *, available: bool) -> Any:
        return self._table.is_available == available

    def _held(self, key: int, numbers: Mapping[bytes, int], *which: Any) -> dict[bytes, int]:
        """Those of the chunks that the peer has a row of."""
        holding = self._table
        query = holding.select(holding.chunk).where(holding.peer == key, *which)
        rows = self._database.rows_among(query, holding.chunk, sorted(numbers.values()))
        held = {row[0] for row in rows}
        return {chunk_hash: number for chunk_hash, number in numbers.items() if number in held}

    def _insert(self, key: int, numbers: Iterable[int], stored_at_ms: int) -> None:
        holding = self._table
        fields = [holding.chunk, holding.peer, holding.stored_at_ms, holding.is_available]
        rows = ((number, key, stored_at_ms, True) for number in sorted(numbers))
        self._database.insert(holding, fields, rows)

    def _delete(self, key: int, held: Mapping[bytes, int]) -> None:
        holding = self._table
        mine = holding.delete().where(holding.peer == key)
        self._database.run_among(mine, holding.chunk, sorted(held.values()))
        self._count(key, removed=list(held))
        self._chunks.forget(held.values())

    def _mark(self, key: int, hashes: Iterable[bytes], *, available: bool) -> list[bytes]:
        """Those that were not so until now, ascending."""
        holding, other = self._table, self._is(available=not available)
        changed = self._held(key, self._chunks.known(hashes), other)
        update = holding.update({holding.is_available: available}).where(holding.peer == key, other)
        self._database.run_among(update, holding.chunk, sorted(changed.values()))
        return sorted(changed)

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
