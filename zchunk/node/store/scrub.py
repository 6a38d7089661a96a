"""Looks at chunks on the disk: whether they are still right, and what becomes of those that are not.

May not happen here: a chunk that cannot be read taken for a damaged one.
"""

from __future__ import annotations

from pathlib import Path

from zchunk.node.store.open_store import OpenStore
from zchunk.node.store.reconcile import name_of
from zchunk.node.store.removal import Removal
from zchunk.node.store.verification import Judged, Verdict, judge


class Scrub:
    def __init__(self, opened: OpenStore, removal: Removal) -> None:
        self._open = opened
        self._removal = removal

    def verify(self, sha256: bytes) -> bool:
        """Reads the chunk from the disk, not from memory, and checks it: BLAKE3 against the
        index first, SHA-256 where that differs. False: it is damaged or gone. Raises NotFound
        for a chunk that is not held, Unreadable (retryable) for one that cannot be read now."""
        self._open.folder.check_online()
        size = self._open.held.size_of(sha256)
        with self._open.index_lock:
            self._open.folder.check_online()
            expected = self._open.index.blake3(sha256)
        judged = self._judged(sha256, expected)
        if judged.verdict is not Verdict.WHOLE:
            return False
        self._open.unread.discard(sha256)
        if judged.blake3 != expected:
            self._correct_blake3(sha256, size, judged.blake3)
        return True

    def _judged(self, sha256: bytes, blake3: bytes | None) -> Judged:
        try:
            judged = judge(self._open.files.path(sha256), sha256, blake3)
        except OSError as error:
            raise self._open.refused(sha256, error) from error
        if judged.verdict is not Verdict.WHOLE:
            self._open.folder.check_in_place()  # an unplugged disk is not a corrupt chunk
        return judged

    def _correct_blake3(self, sha256: bytes, size: int, blake3: bytes) -> None:
        # The index was wrong, not the chunk.
        with self._open.index_lock:
            self._open.folder.check_online()
            if self._open.held.has(sha256):
                self._open.index.add(sha256, size, blake3)

    def drop_corrupt(self, sha256: bytes) -> bool:
        """Looks a second time at a chunk that failed `verify`, since it may be the last copy.
        Damaged again it moves to trash/corrupt, durably; it, or one that is gone, is no longer
        held: True. Raises NotFound for a chunk that is not held, Unreadable (retryable)."""
        self._open.folder.check_online()
        with self._open.claimed(sha256):  # nobody stores it anew between the look and the move
            self._open.held.size_of(sha256)
            if self._judged(sha256, None).verdict is Verdict.WHOLE:
                return False
            with self._open.index_lock:
                self._open.folder.check_online()
                self._removal.remove(sha256, self._open.trash.corrupt_path(sha256.hex()))
                self._open.trash.sync_corrupt(self._open.files.path(sha256).parent)
            return True

    def unsettled(self) -> list[Path]:
        """What is to be looked at with `take_back`: chunks that could not be read when the store
        was opened, and what lies in trash/corrupt and was not looked at since."""
        with self._open.index_lock:
            self._open.folder.check_online()
            return self._open.reconciler.unsettled()

    def take_back(self, path: Path) -> bytes | None:
        """Looks at one of `unsettled`, which is then settled. A whole chunk that was not held is
        held again: its SHA-256, else None. Raises Unreadable (retryable: it is not settled)."""
        self._open.folder.check_online()
        with self._open.claimed(name_of(path)):
            return self._open.reconciler.take_back(path, self._open.index_lock)
