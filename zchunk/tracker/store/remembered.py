"""Who holds the chunks of the files that were committed or located last, so that the next one who
asks waits for no join of 100,000 rows. Pure.

`listing.py` and `commits.py` put in what they read; `store.py` says of which chunks a copy
came or went, in the same transaction; whatever is undone empties it. Columns of a chunk's
holder are 12 bytes, so a file of 100,000 chunks with one holder each takes 1.4 MB.

What may not happen here: columns that are not those of the database, but for the chunks in
`changed`; memory without bound.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from zchunk.tracker.store.holder_columns import HolderColumns

_MAX_BYTES = 16_000_000
#: What a file takes besides its columns, and a changed chunk, roughly.
_ENTRY_BYTES, _CHANGED_BYTES = 500, 120
#: A file is forgotten when more than one of so many of its chunks have changed: reading all
#: anew is as soon done.
_CHANGED_SHARE = 20


@dataclass(slots=True)
class Kept:
    """A file's columns; of the chunks `changed` (some may be no chunks of it) they may be old."""

    columns: HolderColumns
    changed: set[bytes] = field(default_factory=set)

    @property
    def size(self) -> int:
        packed = sum(map(len, self.columns[1:])) + 100 * len(self.columns.peer_ids)
        return packed + _ENTRY_BYTES + _CHANGED_BYTES * len(self.changed)


class Remembered:
    """File id -> its columns; what was asked for longest ago goes first."""

    def __init__(self, most_bytes: int = _MAX_BYTES) -> None:
        self._most = most_bytes
        self._kept: dict[str, Kept] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, file_id: str) -> Kept | None:
        found = self._kept.pop(file_id, None)
        if found is not None:
            self._kept[file_id] = found  # the last to go
        return found

    def put(self, file_id: str, columns: HolderColumns) -> None:
        self._put(file_id, Kept(columns))

    def _put(self, file_id: str, kept: Kept) -> None:
        self.forget([file_id])
        self._kept[file_id] = kept
        self._size += kept.size
        while self._size > self._most:
            self.forget([next(iter(self._kept))])

    def change(self, file_ids: Iterable[str], hashes: Collection[bytes]) -> None:
        """Copies of these chunks came or went; the files are all those that name any of them."""
        for file_id in file_ids:
            kept = self._kept.get(file_id)
            if kept is None:
                continue
            changed = kept.changed.union(hashes)
            self.forget([file_id])
            if len(changed) * _CHANGED_SHARE <= kept.columns.chunks:
                self._put(file_id, Kept(kept.columns, changed))

    def forget(self, file_ids: Iterable[str]) -> None:
        for file_id in file_ids:
            gone = self._kept.pop(file_id, None)
            if gone is not None:
                self._size -= gone.size

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0
