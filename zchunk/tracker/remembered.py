"""Who holds the chunks of the files that were located last, so that the next one who asks waits
for no join of 100,000 rows. Pure.

`store.py` puts in what it read, and takes out every file of which a copy came or went, in
the same transaction; whatever is undone empties it. Columns of a chunk's holder are 12
bytes, so a file of 100,000 chunks with one holder each takes 1.4 MB.

What may not happen here: columns that are not those of the database; memory without bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_MAX_BYTES = 16_000_000
#: What a file takes besides its columns, roughly.
_ENTRY_BYTES = 500


class HolderColumns(NamedTuple):
    """As in `listing.LocatedRows`."""

    peer_ids: tuple[str, ...]
    holder_counts: bytes
    holder_peers: bytes
    holder_times: bytes

    @property
    def size(self) -> int:
        columns = len(self.holder_counts) + len(self.holder_peers) + len(self.holder_times)
        return columns + _ENTRY_BYTES + 100 * len(self.peer_ids)


class Remembered:
    """File id -> its columns; what was asked for longest ago goes first."""

    def __init__(self, most_bytes: int = _MAX_BYTES) -> None:
        self._most = most_bytes
        self._columns: dict[str, HolderColumns] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._columns)

    def get(self, file_id: str) -> HolderColumns | None:
        found = self._columns.pop(file_id, None)
        if found is not None:
            self._columns[file_id] = found  # the last to go
        return found

    def put(self, file_id: str, columns: HolderColumns) -> None:
        self.forget([file_id])
        self._columns[file_id] = columns
        self._size += columns.size
        while self._size > self._most:
            self.forget([next(iter(self._columns))])

    def forget(self, file_ids: Iterable[str]) -> None:
        for file_id in file_ids:
            gone = self._columns.pop(file_id, None)
            if gone is not None:
                self._size -= gone.size

    def clear(self) -> None:
        self._columns.clear()
        self._size = 0
