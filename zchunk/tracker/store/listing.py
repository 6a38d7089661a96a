"""Committed files, to read: by name or id, page by page, by their chunks, with their holders.

Changes nothing. `commits.py` writes what is read here; who is up, callers say. Called by
`store.py`, and by `commits.py` for the files it changes, inside transactions of the store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import peewee

from zchunk.content.manifest import MIN_ID_PREFIX, is_file_id
from zchunk.errors import AmbiguousName, MalformedMessage, NotFound
from zchunk.protocol import columns
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.store.database import MAX_NUMBER, Database
from zchunk.tracker.store.holder_columns import ColumnsBuilder, HolderColumns, Row, mended
from zchunk.tracker.store.remembered import Kept, Remembered
from zchunk.tracker.store.stored_peers import StoredPeers

_RUN_CHUNKS = 10_000
_MAX_CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class LocatedRows:
    """What `messages.Located` needs. `holder_*` are its columns: chunk i has
    `holder_counts[i]` (u16) entries, earliest first, then lowest peer id, in
    `holder_peers` (u16 indexes into `peer_ids`) and `holder_times` (u64)."""

    file: FileRecord
    manifest: bytes
    peer_ids: tuple[str, ...]
    holder_counts: bytes
    holder_peers: bytes
    holder_times: bytes


class FoundRows(NamedTuple):
    """What `messages.ChunksFound` needs: its columns, and the peers they name."""

    peer_ids: tuple[str, ...]
    holder_counts: bytes
    holder_peers: bytes


class HealthCounts(NamedTuple):
    """`below_replicas` counts the unreadable chunks too."""

    chunks_total: int
    chunks_readable: int
    chunks_below_replicas: int


class Listing:
    """The files; what its methods answer, those of the same name of TrackerStore say."""

    def __init__(self, database: Database, peers: StoredPeers) -> None:
        self._database = database
        self._m = database.models
        self._peers = peers
        #: of the files located last; whoever changes who holds what takes them out
        self.remembered = Remembered()

    # -- one file -------------------------------------------------------------------------

    def file(self, file_id: str) -> FileRecord:
        """Raises NotFound."""
        found = self.find(self._m.File.file_id == file_id)
        if not found:
            raise NotFound(f"no file has the id {file_id[:12]}; it was removed, or never committed")
        return found[0]

    def find(self, condition: Any, limit: int = 1) -> list[FileRecord]:
        """Newest first."""
        return [_record(row) for row in self._database.all(self._query(condition).limit(limit))]

    def resolve(self, name_or_id: str, unique: bool) -> FileRecord:
        file = self._m.File
        # 64 hex digits are an id, also where an earlier file has them for a name. A NUL: see
        # `Commits._insert_file`; PostgreSQL fails to ask for one.
        possible = not is_file_id(name_or_id) and "\0" not in name_or_id
        if possible and (named := self.find(file.name == name_or_id, _MAX_CANDIDATES)):
            return _only(named, name_or_id, "name") if unique else named[0]
        prefix = name_or_id.lower()
        found: list[FileRecord] = []
        if MIN_ID_PREFIX <= len(prefix) <= 64 and set(prefix) <= set("0123456789abcdef"):
            # "g" sorts behind every hex digit: a range, which every database can index
            found = self.find(file.file_id.between(prefix, prefix + "g"), _MAX_CANDIDATES)
        if not found:
            raise NotFound(f"no file has the name or id {shown(name_or_id)}; `zchunk ls` lists the files")
        return _only(found, name_or_id, "id")

    def files_among(self, file_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """See `TrackerStore.files_among`."""
        files, removed = (self._among(table, file_ids) for table in (self._m.File, self._m.Tombstone))
        return sorted(files), sorted(removed - files)

    def _among(self, table: Any, file_ids: Sequence[str]) -> set[str]:
        rows = self._database.rows_among(table.select(table.file_id), table.file_id, file_ids)
        return {row[0] for row in rows}

    def _query(self, condition: Any) -> Any:
        """Newest first, which the commit number tells: a clock may be set back. What `_record`
        takes, and commit_number; not the manifest, which is big."""
        file = self._m.File
        fields = [getattr(file, name) for name in FileRecord.__struct_fields__]
        query = file.select(*fields, file.commit_number).where(condition)
        return query.order_by(file.commit_number.desc())

    # -- many -----------------------------------------------------------------------------

    def page(self, page: str, limit: int) -> tuple[list[FileRecord], str]:
        """See `TrackerStore.list_files`."""
        file = self._m.File
        after: Any = file.id.is_null(False)
        if page:
            after = file.commit_number < _parse_page(page)
        rows = self._database.all(self._query(after).limit(limit + 1))
        more = str(rows[limit - 1][-1]) if len(rows) > limit else ""
        return [_record(row) for row in rows[:limit]], more

    def files_of(self, hashes: Iterable[bytes]) -> list[str]:
        named, file, chunk = self._m.FileChunk, self._m.File, self._m.Chunk
        query = named.select(file.file_id).distinct().join(file, on=(named.file == file.id))
        query = query.join_from(named, chunk, on=(named.chunk == chunk.id))
        rows = self._database.rows_among(query, chunk.chunk_hash, sorted(set(hashes)))
        return sorted({row[0] for row in rows})

    def files_on(self, peer_id: str) -> list[str]:
        chunk, file, holding = self._m.FileChunk, self._m.File, self._m.Holding
        mine = chunk.select(chunk.chunk_index).join(holding, on=(holding.chunk == chunk.chunk))
        mine = mine.where(
            chunk.file == file.id, holding.peer == self._peers.key(peer_id), holding.is_available
        )
        rows = self._database.all(file.select(file.file_id).where(peewee.fn.EXISTS(mine)))
        return sorted(row[0] for row in rows)

    def named(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of `hashes` that a file names."""
        chunk, named = self._m.Chunk, self._m.FileChunk
        names = named.select(peewee.Value(1)).where(named.chunk == chunk.id)
        query = chunk.select(chunk.chunk_hash).where(peewee.fn.EXISTS(names))
        return {bytes(row[0]) for row in self._database.rows_among(query, chunk.chunk_hash, hashes)}

    # -- holders --------------------------------------------------------------------------

    def locate(self, file_id: str) -> LocatedRows:
        file = self._m.File
        record = self.file(file_id)
        query = file.select(file.id, file.manifest).where(file.file_id == file_id)
        key, manifest = self._database.all(query)[0]
        return LocatedRows(record, bytes(manifest), *self._columns(file_id, int(key), record.chunks_count))

    def _columns(self, file_id: str, key: int, chunks_count: int) -> HolderColumns:
        kept = self.remembered.get(file_id)
        if kept is not None and not kept.changed:
            return kept.columns
        if kept is None:
            builder = ColumnsBuilder(self._peers.ids())
            for run, rows in self._holder_runs(key, chunks_count):
                builder.add(run, rows)
            found = builder.built()
        else:
            found = self._mended(key, kept)
        self.remembered.put(file_id, found)
        return found

    def _mended(self, key: int, kept: Kept) -> HolderColumns:
        named, chunk, holding = self._m.FileChunk, self._m.Chunk, self._m.Holding
        query = named.select(named.chunk_index, holding.stored_at_ms, holding.peer)
        query = query.join(chunk, on=(named.chunk == chunk.id))
        same = (holding.chunk == named.chunk) & holding.is_available
        query = query.join_from(named, holding, peewee.JOIN.LEFT_OUTER, on=same)
        # The sum hides the file from SQLite, which would go through all of its chunks else.
        query = query.where(named.file + 0 == key)
        rows = list(self._database.rows_among(query, chunk.chunk_hash, sorted(kept.changed)))
        changed = sorted({index for index, _, _ in rows})
        held = [row for row in rows if row[2] is not None]
        return mended(kept.columns, changed, held, self._peers.ids())

    def find_chunks(self, hashes: Sequence[bytes], live: Collection[str], limit: int) -> FoundRows:
        """See `TrackerStore.find_chunks`."""
        chunk, holding, up = self._m.Chunk, self._m.Holding, self._peers.live_ids(live)
        query = chunk.select(chunk.chunk_hash, holding.stored_at_ms, holding.peer)
        query = query.join(holding, on=(holding.chunk == chunk.id)).where(holding.is_available)
        rows = self._database.rows_among(query, chunk.chunk_hash, sorted(set(hashes)))
        found: dict[bytes, list[tuple[int, str]]] = {}
        for chunk_hash, stored_at, peer in rows:
            if peer in up:
                found.setdefault(bytes(chunk_hash), []).append((stored_at, up[peer]))
        first = {chunk_hash: sorted(copies)[:limit] for chunk_hash, copies in found.items()}
        peer_ids = tuple(sorted({peer_id for copies in first.values() for _, peer_id in copies}))
        place = {peer_id: at for at, peer_id in enumerate(peer_ids)}
        listed = [first.get(chunk_hash, []) for chunk_hash in hashes]
        return FoundRows(
            peer_ids,
            columns.pack(2, map(len, listed)),
            columns.pack(2, (place[peer_id] for copies in listed for _, peer_id in copies)),
        )

    def health_counts(self, file_id: str, live: Collection[str]) -> HealthCounts:
        file = self._m.File
        record = self.file(file_id)
        up = self._peers.live_ids(live)
        key = self._database.all(file.select(file.id).where(file.file_id == file_id))[0][0]
        copies = [0] * record.chunks_count
        for _, rows in self._holder_runs(int(key), record.chunks_count):
            for index, _, peer in rows:
                copies[index] += peer in up
        low = sum(count < record.replicas for count in copies)
        return HealthCounts(record.chunks_count, record.chunks_count - copies.count(0), low)

    def _holder_runs(self, key: int, chunks_count: int) -> Iterator[tuple[range, list[Row]]]:
        """Some thousand chunks at a time, and each available copy of them, in no order: a million
        rows at once would be 200 MB of objects."""
        chunk, holding = self._m.FileChunk, self._m.Holding
        query = chunk.select(chunk.chunk_index, holding.stored_at_ms, holding.peer)
        query = query.join(holding, on=(holding.chunk == chunk.chunk))
        query = query.where(chunk.file == key, holding.is_available)
        for first in range(0, chunks_count, _RUN_CHUNKS):
            run = range(first, min(first + _RUN_CHUNKS, chunks_count))
            yield run, self._database.all(query.where(chunk.chunk_index.between(first, run.stop - 1)))


# -- helpers --------------------------------------------------------------------------


def _record(row: Sequence[Any]) -> FileRecord:
    """From a row of `Listing._query`."""
    values = dict(zip(FileRecord.__struct_fields__, row, strict=False))
    values["sha256"] = None if values["sha256"] is None else bytes(values["sha256"])
    for flag in ("is_chunked", "is_distributed"):
        values[flag] = bool(values[flag])
    return FileRecord(**values)


def _only(found: Sequence[FileRecord], asked: str, what: str) -> FileRecord:
    if len(found) == 1:
        return found[0]
    count = "many" if len(found) == _MAX_CANDIDATES else str(len(found))
    candidates = [record.file_id for record in found]
    raise AmbiguousName(
        f"{shown(asked)} is the {what} of {count} files ({', '.join(c[:12] for c in candidates)}); "
        "give more digits of the id",
        candidates=candidates,
    )


def _parse_page(page: str) -> int:
    """The commit number of the last file of the page before."""
    if not (page.isascii() and page.isdecimal() and len(page) <= 19):
        raise MalformedMessage(f"{shown(page)} is not a page of the listing; start again with the first")
    return min(int(page), MAX_NUMBER)


def shown(text: str) -> str:
    """A name in a message: quoted, on one line, not too long."""
    return repr(text if len(text) <= 100 else text[:100] + "...")
