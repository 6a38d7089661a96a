"""How a chunk comes into the store: verified, written, durable, indexed and leased; and its space.

May not happen here: a chunk in memory or index whose file is not verified, durable and under its
final name; a sync tried again after it failed.
"""

from __future__ import annotations

from zchunk.errors import NoSpace, ZchunkError
from zchunk.node.store.chunk_files import check_bytes
from zchunk.node.store.chunk_index import LEASE_S
from zchunk.node.store.open_store import OpenStore
from zchunk.system import disk


class Storing:
    def __init__(self, opened: OpenStore) -> None:
        self._open = opened

    def put(
        self, sha256: bytes, blake3: bytes, view: disk.Writable, upload_id: str, reserved: int = 0
    ) -> None:
        """Stores one chunk. On return it is verified, durable, indexed and leased for 24 h.

        A chunk that is there is only leased; one that could not be read the last time is
        replaced, in one step. Reserve its space before its transfer: the
        `reserved` bytes are given back here, however it ends.
        Raises ChunkCorrupt (not retryable: other bytes than promised), NoSpace
        (retryable), StoreOffline (retryable), StorageFailure: the store is then flagged
        and refuses every further chunk until it is opened again. On any error nothing
        of the chunk counts as stored.
        """
        stored = False
        try:
            stored = self._put(sha256, blake3, view, upload_id, reserved)
        finally:
            if not stored:
                self.unreserve(reserved)

    def _put(self, sha256: bytes, blake3: bytes, view: disk.Writable, upload_id: str, reserved: int) -> bool:
        """Whether it was not there before; then `reserved` is given back already."""
        self._open.check_writable()
        with self._open.claimed(sha256):
            held = self.lease_if_held(sha256, upload_id, self._open.clock.wall())
            if held and sha256 not in self._open.unread:
                return False
            check_bytes(sha256, blake3, view)
            size = memoryview(view).nbytes
            if not held:
                self._check_capacity(size)
                self._intend(sha256)
            self._store_file(sha256, view)
            self._record(sha256, size, blake3, upload_id, reserved)
            return True

    def _intend(self, sha256: bytes) -> None:
        with self._open.index_lock:
            self._open.check_writable()
            with self._open.flagging():
                self._open.index.intend(sha256)

    def _check_capacity(self, size: int) -> None:
        # The wall behind reserve_space: reached only by a caller that has not reserved.
        if not self._open.held.fits(size):
            used = f"{self._open.held.used} of {self._open.capacity} bytes are used"
            text = f"the store {self._open.root} is full: {used}"
            raise NoSpace(text, path=str(self._open.root))

    def _store_file(self, sha256: bytes, view: disk.Writable) -> None:
        """Durable under its final name on return; on an error what was there before is there."""
        unread = sha256 in self._open.unread or sha256 in self._open.reconciler.unread
        try:
            with self._open.flagging():
                self._open.files.write(sha256, view, replacing=unread)
        except ZchunkError:
            self._forget_intent(sha256)
            self._open.folder.check_online()  # an unplugged disk says "not found", or worse
            raise

    def _forget_intent(self, sha256: bytes) -> None:
        with self._open.index_lock:
            if not self._open.folder.closed:
                self._open.index.forget_intent(sha256)

    def _record(self, sha256: bytes, size: int, blake3: bytes, upload_id: str, reserved: int) -> None:
        # Failing here leaves a whole file whose intent stands: the next opening verifies and
        # adds it. Flagged meanwhile by another put: the kernel reports a failed sync once, so
        # that our own sync succeeded after it proves nothing.
        with self._open.index_lock:
            self._open.check_writable()
            with self._open.flagging():
                self._open.index.add(sha256, size, blake3, (upload_id, self._open.clock.wall() + LEASE_S))
            self._open.held.add(sha256, size, reserved)
            self._open.readers.drop(sha256)  # of a file that was there before, and could not be read
            self._open.unread.discard(sha256)
            self._open.reconciler.unread.discard(sha256)

    def lease_if_held(self, sha256: bytes, upload_id: str, now_wall: float) -> bool:
        with self._open.index_lock:  # no `trash` between the question and the lease
            if not self._open.held.has(sha256):
                return False
            self._open.folder.check_online()
            self._open.index.lease(sha256, upload_id, now_wall + LEASE_S)
            return True

    def free(self) -> int:
        """Bytes of chunks that may still come: by capacity and by the disk, less what is
        reserved; never negative. Raises why the store takes none at all: StorageFailure for a
        flagged one, NotAllowed where it may not be written to, StoreOffline (retryable)."""
        self._check_takes()
        return self._open.held.room(disk.free_bytes(self._open.root))

    def _check_takes(self) -> None:
        self._open.check_writable()
        self._open.folder.check_writable()

    def reserve_space(self, size: int) -> bool:
        """Holds `size` bytes for a transfer, to be given back by its `put`, or by `unreserve`
        where it does not come to that.

        The oldest trash is purged for it when space is short. False: there is no room.
        Raises as `free` does.
        """
        with self._open.index_lock:
            self._check_takes()
            short = self._open.held.shortfall(size, disk.free_bytes(self._open.root), self._open.trash.bytes)
            if short is None:
                return False
            if short:
                self._open.trash.purge_bytes(short)
            if self.free() < size:
                return False
            self._open.held.hold(size)
            return True

    def unreserve(self, size: int) -> None:
        self._open.held.give_back(size)
