"""What files there are: their commit, their removal, and the number that each of both raises.

Responsible for writing `models.File`, `FileChunk`, `Tombstone` and the commit number;
`listing.py` reads them, `holders.py` says what a commit takes. Called by `store.py`, inside
its transactions: a file is visible whole or not at all.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import peewee

from zchunk.content.manifest import Manifest, new_name_problem
from zchunk.content.manifest_outline import Outline
from zchunk.errors import InvalidUsage, ManifestInvalid
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.store.chunks import Chunks
from zchunk.tracker.store.database import MAX_NUMBER, PARAMETERS, Database
from zchunk.tracker.store.holder_columns import ColumnsBuilder, HolderColumns, Row
from zchunk.tracker.store.holders import Demand, Holders
from zchunk.tracker.store.listing import Listing, shown
from zchunk.tracker.store.stored_peers import StoredPeers

#: what is committed; of a large file the outline, which takes less
Content = Manifest | Outline


class Removals(NamedTuple):
    """`up_to_commit` is what to ask from next."""

    file_ids: list[str]
    up_to_commit: int
    more: bool


class Commits:
    """The tables of files and tombstones, to write."""

    def __init__(self, database: Database, peers: StoredPeers, chunks: Chunks, listing: Listing) -> None:
        self._database = database
        self._m = database.models
        self._peers = peers
        self._chunks = chunks
        self._listing = listing

    @property
    def number(self) -> int:
        return int(self._database.meta("commit_number"))

    def _next_number(self) -> int:
        meta = self._m.MetaValue
        number = self.number + 1
        meta.update({meta.value: str(number)}).where(meta.key == "commit_number").execute()
        return number

    # -- commit ---------------------------------------------------------------------------

    def commit(
        self, manifest: Content, demand: Demand, live: Collection[str], now_ms: int
    ) -> tuple[FileRecord, bool]:
        """See `TrackerStore.commit_file`."""
        same = self._m.File.file_id == manifest.file_id
        known = self._listing.find(same)
        if known:
            self._raise_demand(known[0], manifest, demand, live)
        else:
            self._insert_file(manifest, demand, live, now_ms)
        return self._listing.find(same)[0], bool(known)

    def _insert_file(self, manifest: Content, demand: Demand, live: Collection[str], now_ms: int) -> None:
        _check_new_name(manifest.name)
        numbers = self._chunks.numbers(manifest.hashes)
        holders, columns = self._holders(manifest, numbers, live)
        holders.check(demand)
        chunk, grave = self._m.FileChunk, self._m.Tombstone
        key = self._m.File.insert(self._file_values(manifest, demand, holders, now_ms)).execute()
        rows = ((key, index, number) for index, number in enumerate(numbers))
        self._database.insert(chunk, [chunk.file, chunk.chunk_index, chunk.chunk], rows)
        grave.delete().where(grave.file_id == manifest.file_id).execute()
        self._listing.remembered.put(manifest.file_id, columns)

    def _file_values(
        self, manifest: Content, demand: Demand, holders: Holders, now_ms: int
    ) -> dict[Any, object]:
        file = self._m.File
        return {
            file.file_id: manifest.file_id,
            file.name: manifest.name,
            file.size: manifest.size,
            file.sha256: manifest.sha256,
            file.chunk_size: manifest.chunk_size,
            file.chunks_count: len(manifest.hashes),
            file.replicas: demand.replicas,
            file.is_chunked: demand.distributed,
            file.is_distributed: holders.spread,
            file.minimum_peers_required: holders.minimum(),
            file.min_peers: demand.min_peers,
            file.created_at_ms: now_ms,
            file.commit_number: self._next_number(),
            file.manifest: manifest.canonical,
        }

    def _raise_demand(
        self, known: FileRecord, manifest: Content, demand: Demand, live: Collection[str]
    ) -> None:
        """A repeated commit succeeds whatever is up by now: the first one did."""
        file = self._m.File
        same = file.file_id == known.file_id
        file.update({file.min_peers: demand.min_peers}).where(
            same & (file.min_peers < demand.min_peers)
        ).execute()
        if demand.replicas <= known.replicas and demand.distributed <= known.is_chunked:
            return
        values = {
            file.replicas: max(demand.replicas, known.replicas),
            file.is_chunked: demand.distributed or known.is_chunked,
        }
        holders, _ = self._holders(manifest, self._chunks.numbers(manifest.hashes), live)
        if not holders.missing:  # else what was true at the first commit is the better answer
            values[file.is_distributed] = holders.spread
            values[file.minimum_peers_required] = holders.minimum()
        file.update(values).where(same).execute()

    def _holders(
        self, manifest: Content, numbers: array[int], live: Collection[str]
    ) -> tuple[Holders, HolderColumns]:
        """The live holders of each chunk, and all holders as they are located."""
        up, found = self._peers.live_ids(live), Holders(shown(manifest.name), len(numbers))
        builder = ColumnsBuilder(self._peers.ids())
        for run, rows in self._holder_runs(numbers):
            builder.add(run, rows)
            holders: dict[int, tuple[str, ...]] = dict.fromkeys(run, ())
            for index, _, peer in rows:
                if peer in up:
                    holders[index] += (up[peer],)
            found.note(holders)
        return found, builder.built()

    def _holder_runs(self, numbers: array[int]) -> Iterator[tuple[range, list[Row]]]:
        """As `Listing._holder_runs`, of a file that is not there yet."""
        holding, first = self._m.Holding, 0
        query = holding.select(holding.chunk, holding.stored_at_ms, holding.peer)
        query = query.where(holding.is_available)
        for cursor in self._database.among(query, holding.chunk, numbers):
            copies: dict[int, list[tuple[int, int]]] = {}
            for number, stored_at, peer in cursor.fetchall():
                copies.setdefault(number, []).append((stored_at, peer))
            run = range(first, min(first + PARAMETERS, len(numbers)))
            yield run, [(index, *copy) for index in run for copy in copies.get(numbers[index], ())]
            first = run.stop

    # -- removal --------------------------------------------------------------------------

    def remove(self, file_id: str, now_ms: int) -> int:
        """See `TrackerStore.remove_file`."""
        file, chunk, grave = self._m.File, self._m.FileChunk, self._m.Tombstone
        before = self._database.all(grave.select(grave.commit_number).where(grave.file_id == file_id))
        if before:
            return int(before[0][0])
        record = self._listing.file(file_id)
        number = self._next_number()
        key = file.select(file.id).where(file.file_id == file_id)
        unheld = self._unheld(key)
        chunk.delete().where(chunk.file == key).execute()
        self._chunks.forget(unheld)
        file.delete().where(file.file_id == file_id).execute()
        values = (file_id, record.name, number, now_ms)
        fields = [grave.file_id, grave.name, grave.commit_number, grave.removed_at_ms]
        self._database.insert(grave, fields, [values])
        return number

    def _unheld(self, key: Any) -> list[int]:
        """The numbers of the file's chunks that nobody holds."""
        chunk, holding = self._m.FileChunk, self._m.Holding
        query = chunk.select(chunk.chunk).distinct()
        query = query.join(holding, peewee.JOIN.LEFT_OUTER, on=(holding.chunk == chunk.chunk))
        rows = self._database.all(query.where(chunk.file == key, holding.chunk.is_null()))
        return [row[0] for row in rows]

    def removals(self, since: int, limit: int) -> Removals:
        """See `TrackerStore.removals`."""
        grave = self._m.Tombstone
        query = grave.select(grave.file_id, grave.commit_number)
        query = query.where(grave.commit_number > min(since, MAX_NUMBER)).order_by(grave.commit_number)
        rows = self._database.all(query.limit(limit + 1))
        page, more = rows[:limit], len(rows) > limit
        last = page[-1][1] if more else self.number
        return Removals([row[0] for row in page], last, more)


def _check_new_name(name: str) -> None:
    """Raises ManifestInvalid, InvalidUsage."""
    if "\0" in name:  # a name may be any text, but PostgreSQL's text has no NUL
        raise ManifestInvalid("the file's name contains a NUL character")
    if (problem := new_name_problem(name)) is not None:
        raise InvalidUsage(f"no file can be named {shown(name)}: {problem}")
