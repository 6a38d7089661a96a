"""What leaves the store: garbage to the trash, damaged chunks apart, old trash for good.

May not happen here: a leased or referenced chunk in the trash; anything that another cluster's
tracker orders.
"""

from __future__ import annotations

from pathlib import Path

from zchunk.errors import ZchunkError
from zchunk.node.store.open_store import OpenStore
from zchunk.system import disk


class Removal:
    def __init__(self, opened: OpenStore) -> None:
        self._open = opened

    def garbage(self, now_wall: float) -> list[bytes]:
        """Chunks that no kept manifest names and no lease holds, ascending; none while a manifest
        cannot be read, which may name them."""
        with self._open.index_lock:
            self._open.folder.check_online()
            return self._open.index.garbage(now_wall) if self._open.manifests.read_again() else []

    def trash(self, hashes: list[bytes], store_id: str, now_wall: float) -> list[bytes]:
        """Moves chunks to the trash of that day and order, durably; returns the moved ones.

        One that is leased or referenced meanwhile stays, one that is not held is skipped.
        Raises ForeignStore when another cluster's tracker orders it, StorageFailure.
        """
        with self._open.index_lock:
            self._open.folder.check_online()
            self._open.cluster.check(store_id)
            wanted = [h for h in dict.fromkeys(hashes) if self._is_removable(h, now_wall)]
            if not wanted:
                return []
            folder = self._open.trash.day_folder(store_id, now_wall)
            moved = [h for h in wanted if self.remove(h, folder / h.hex())]
            with disk.storage_errors(folder, "syncing"):
                self._open.trash.sync({folder} | {self._open.files.path(h).parent for h in moved})
            return moved

    def _is_removable(self, sha256: bytes, now_wall: float) -> bool:
        return (
            self._open.held.has(sha256)
            and not self._open.index.leased(sha256, now_wall)
            and not self._open.index.referenced(sha256)
        )

    def remove(self, sha256: bytes, to: Path) -> bool:
        """Out of folder, memory and index, in this order: killed in between, the next
        opening's listing does the rest. False: the file had gone already."""
        source = self._open.files.path(sha256)
        self._open.readers.drop(sha256)  # before the move: no open handle across a rename ...
        with disk.storage_errors(source, "removing"):
            existed = self._open.trash.move(source, to)
        self._open.held.remove(sha256)
        self._open.readers.drop(sha256)  # ... and after it: a reader may have opened it meanwhile
        try:
            self._open.index.remove(sha256)
        except ZchunkError:
            self._open.in_doubt = True  # the row of a chunk that has gone must not outlive this run
            raise
        return existed

    def purge_trash(self, older_than_wall: float) -> int:
        """Deletes for good what was trashed, by date, entirely before that moment; returns
        the bytes. Forgets leases that ended before it, and what is left of failed writes, too."""
        with self._open.index_lock:
            self._open.folder.check_online()
            self._open.files.sweep()
            self._open.index.forget_leases(older_than_wall)
            return self._open.trash.purge_before(older_than_wall)
