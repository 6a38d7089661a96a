"""How many copies of each chunk live peers have, file by file, a bounded slice at a time.

Responsible for the statements behind `rules/health.py`, which says what is counted and what is
made of it. Changes nothing. Called by `store.py`, inside its transactions.

Whoever waits for the store waits for a slice at most, so it has at most `SLICE_CHUNKS`
chunks: of many small files, or of a part of a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import peewee

from zchunk.tracker.rules.health import SLICE_FILES, Copies, Counted, Partial, Slice
from zchunk.tracker.store.database import Database
from zchunk.tracker.store.stored_peers import StoredPeers

SLICE_CHUNKS = 4_000


class _Head(NamedTuple):
    """What is read of a file's row."""

    key: int
    file_id: str
    name: str
    replicas: int
    chunks_count: int


class _Lack(NamedTuple):
    unavailable: int = 0
    below_replicas: int = 0


class CopyCounter:
    def __init__(self, database: Database, peers: StoredPeers) -> None:
        self._database = database
        self._m = database.models
        self._peers = peers

    def count(self, asked: Slice) -> Counted:
        heads = self._heads(asked)
        large = bool(heads) and heads[0].chunks_count > SLICE_CHUNKS
        taken = heads[:1] if large else _within(heads)
        left = tuple(head.file_id for head in heads[len(taken) :]) if asked.file_ids else ()
        after = None if asked.file_ids or not heads else taken[-1].key
        if large:
            return self._part(asked, heads[0], left, after)
        lacks = self._lacks(asked, taken)
        files = tuple(_copies(head, lacks.get(head.key, _Lack())) for head in taken)
        return Counted(files, left=left, after=after)

    def _part(self, asked: Slice, head: _Head, left: tuple[str, ...], after: int | None) -> Counted:
        so_far = asked.partial or Partial(head.file_id, asked.live)
        to = so_far.next_chunk + SLICE_CHUNKS
        chunk_index = self._m.FileChunk.chunk_index
        lacks = self._lacks(asked, [head], chunk_index.between(so_far.next_chunk, to - 1))
        lack = lacks.get(head.key, _Lack())
        unavailable = so_far.chunks_unavailable + lack.unavailable
        below = so_far.chunks_below_replicas + lack.below_replicas
        if to >= head.chunks_count:
            return Counted((_copies(head, _Lack(unavailable, below)),), left=left, after=after)
        return Counted(
            (), left=left, partial=Partial(head.file_id, asked.live, to, unavailable, below), after=after
        )

    def _heads(self, asked: Slice) -> list[_Head]:
        file = self._m.File
        which = file.file_id.in_(asked.file_ids) if asked.file_ids else file.id > asked.after
        query = file.select(*(getattr(file, name) for name in ("id", *_Head._fields[1:])))
        rows = self._database.all(query.where(which).order_by(file.id).limit(SLICE_FILES))
        return [_Head(*row) for row in rows]

    def _lacks(self, asked: Slice, heads: Sequence[_Head], *more: Any) -> dict[int, _Lack]:
        """By the key of the file. The database counts: a row for each chunk would keep the
        interpreter, and so the control loop, busy."""
        chunk, holding = self._m.FileChunk, self._m.Holding
        # As text, since peers may be more than the parameters of a statement.
        up = [peewee.SQL(str(key)) for key in sorted(self._peers.live_ids(asked.live))]
        same = holding.chunk == chunk.chunk
        # Who is up is asked of a row that was found: as a condition of the join it makes SQLite
        # look for each chunk once for each peer.
        live = peewee.Case(None, [(holding.peer.in_(up), 1)])
        counts = chunk.select(chunk.file, peewee.fn.COUNT(live).alias("copies")).join(
            holding, peewee.JOIN.LEFT_OUTER, on=same & holding.is_available
        )
        counts = counts.where(chunk.file.in_([head.key for head in heads]), *more)
        counts = counts.group_by(chunk.file, chunk.chunk_index).alias("counts")
        file, copies = counts.c.file, counts.c.copies
        query = chunk.select(file, copies, peewee.fn.COUNT(copies)).from_(counts).group_by(file, copies)
        asked_for = {head.key: head.replicas for head in heads}
        lacks: dict[int, _Lack] = {}
        for key, live_copies, chunks in self._database.all(query):
            before = lacks.get(key, _Lack())
            lacks[key] = _Lack(
                before.unavailable + chunks * (live_copies == 0),
                before.below_replicas + chunks * (live_copies < asked_for[key]),
            )
        return lacks


def _within(heads: Sequence[_Head]) -> Sequence[_Head]:
    """The first ones that together have no more chunks than a slice may."""
    chunks = 0
    for at, head in enumerate(heads):
        chunks += head.chunks_count
        if chunks > SLICE_CHUNKS:
            return heads[:at]
    return heads


def _copies(head: _Head, lack: _Lack) -> Copies:
    return Copies(
        file_id=head.file_id,
        name=head.name,
        replicas=head.replicas,
        chunks_count=head.chunks_count,
        chunks_unavailable=lack.unavailable,
        chunks_below_replicas=lack.below_replicas,
    )
