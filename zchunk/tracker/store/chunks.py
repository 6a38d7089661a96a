"""The number of each chunk that a node holds or a file names, in the tracker's database.

Responsible for the rows of `models.Chunk`: a digest has one from when it is first reported
until no file names it and nobody holds it. Everything else goes by the number, so that the
trees of files and holders are narrow, and what was reported together lies together in
them. Called by `holdings.py` and `commits.py`, inside transactions of the store.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence

import peewee

from zchunk.tracker.store.database import PARAMETERS, Database, batches

#: What `numbers` has for a chunk that there is no number of.
UNKNOWN = 0
#: Numbers that are read at once.
_RUN = 2_000


class Chunks:
    """The table of digests and numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._m = database.models

    def known(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        """Those of `hashes` that have a number, with it."""
        chunk = self._m.Chunk
        query = chunk.select(chunk.chunk_hash, chunk.id)
        rows = self._database.rows_among(query, chunk.chunk_hash, sorted(set(hashes)))
        return {bytes(chunk_hash): number for chunk_hash, number in rows}

    def numbered(self, hashes: Sequence[bytes]) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """(those that had a number, those that have one from now on)."""
        chunk = self._m.Chunk
        old = self.known(hashes)
        first = 1 + (self._database.all(chunk.select(peewee.fn.MAX(chunk.id)))[0][0] or UNKNOWN)
        fresh = (chunk_hash for chunk_hash in dict.fromkeys(hashes) if chunk_hash not in old)
        new = {chunk_hash: number for number, chunk_hash in enumerate(fresh, first)}
        self._database.insert(chunk, [chunk.chunk_hash, chunk.id], new.items())
        return old, new

    def numbers(self, hashes: Sequence[bytes]) -> array[int]:
        """The number of each, or UNKNOWN.

        What was reported together has numbers in a row, and a row is read in a quarter of the
        time that it takes to look for each digest in a tree of millions.
        """
        found = dict.fromkeys(hashes, UNKNOWN)
        for unknown in batches((h for h in hashes if found[h] == UNKNOWN), PARAMETERS):
            known = self.known(unknown)
            found.update(known)
            if known:
                self._follow(found, max(known.values()))
        return array("q", map(found.__getitem__, hashes))

    def _follow(self, found: dict[bytes, int], number: int) -> None:
        """Note the numbers behind that one, as long as most of them are asked for."""
        chunk, asked_for = self._m.Chunk, _RUN
        query = chunk.select(chunk.chunk_hash, chunk.id)
        while 2 * asked_for >= _RUN:
            run = query.where(chunk.id.between(number + 1, number + _RUN))
            rows = [(bytes(chunk_hash), follows) for chunk_hash, follows in self._database.all(run)]
            fresh = [row for row in rows if found.get(row[0]) == UNKNOWN]
            found.update(fresh)
            number, asked_for = number + _RUN, len(fresh)

    def forget(self, numbers: Collection[int]) -> None:
        """Those of them that no file names and nobody holds."""
        chunk, named, holding = self._m.Chunk, self._m.FileChunk, self._m.Holding
        unused = ~peewee.fn.EXISTS(named.select(peewee.Value(1)).where(named.chunk == chunk.id))
        unused &= ~peewee.fn.EXISTS(holding.select(peewee.Value(1)).where(holding.chunk == chunk.id))
        self._database.run_among(chunk.delete().where(unused), chunk.id, sorted(numbers))
