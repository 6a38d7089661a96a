"""A node's chunks on disk: verified, durable, leased, trashed; and the manifests beside them.

The store as others see it. What it does is in files of a subject each: `storing.py` (a chunk comes
in; space), `block_reader.py`, `removal.py` (garbage and trash), `scrub.py` (whether chunks are still
right), `kept_manifests.py`; all of them share `open_store.py`, which opens and closes the parts:
`store_folder.py` (the layout, marker and lock), `chunk_files.py`, `manifest_folder.py`, `trash.py`,
`chunk_index.py`, `inventory.py` (the numbers in memory), `chunk_readers.py`, `cluster_memory.py`,
`verification.py`, and `reconcile.py` for the time after a stop that was not `close()`. Not responsible
for who may store or order what. Callers: the chunk server, registration and upkeep of a node, through
its worker threads.

The folders are the truth, the index is their index and may be deleted. After an unclean
stop the listing is compared with it, and chunks that no manifest needs get a lease, since
their real one may be among what a power cut took from the index.

May not happen here: a chunk in memory or index whose file is not verified, durable and
under its final name; a leased or referenced chunk in the trash; anything deleted, moved
or written while the marker is missing; a sync tried again after it failed; a chunk that
cannot be read taken for a damaged one.

Thread-safe: workers call any method, and `has` never waits for a disk (open_store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from zchunk.clock import Clock
from zchunk.node.store import store_folder
from zchunk.node.store.block_reader import BlockReader, fresh
from zchunk.node.store.inventory import not_held
from zchunk.node.store.kept_manifests import KeptManifests
from zchunk.node.store.open_store import OpenStore
from zchunk.node.store.removal import Removal
from zchunk.node.store.scrub import Scrub
from zchunk.node.store.store_folder import MARKER
from zchunk.node.store.storing import Storing
from zchunk.system import disk


class ChunkStore:
    """The chunks, leases and manifests under one folder.

    Every method that touches the disk raises StoreOffline (retryable, once the disk is
    back and the store opened again) when the marker is missing, and changes nothing then.
    """

    def __init__(self, root: Path, *, capacity: int | None, reserve: int, clock: Clock) -> None:
        """Opens an existing store. `capacity` bounds the bytes of all chunks, None leaves it
        to the disk; `reserve` bytes of the disk are left free.

        After an unclean stop this lists all chunks; without an index it reads them all.
        Raises StoreOffline (no marker), AlreadyRunning (another process has it),
        StorageFailure, NoSpace, NotAllowed.
        """
        self.root = root
        self.capacity = capacity
        self.reserve = reserve
        #: its parts, for the files beside this one
        self.parts = OpenStore(root, capacity=capacity, reserve=reserve, clock=clock)
        self.uuid = self.parts.uuid
        self._held = self.parts.held
        self._storing = Storing(self.parts)
        self._blocks = BlockReader(self.parts)
        self._removal = Removal(self.parts)
        self._scrub = Scrub(self.parts, self._removal)
        self._kept = KeptManifests(self.parts, self._storing)

    @classmethod
    def create_or_open(cls, root: Path, *, capacity: int | None, reserve: int, clock: Clock) -> ChunkStore:
        """Opens the store; makes one where there is nothing yet. Never makes one beside an
        index or chunks without a marker: that is StoreOffline."""
        with disk.storage_errors(root, "checking"):
            is_new = not disk.is_there(root / MARKER)
        if is_new:
            store_folder.create(root, clock)
        return cls(root, capacity=capacity, reserve=reserve, clock=clock)

    # -- opening and closing

    @property
    def flag(self) -> str | None:
        """Why nothing is stored any more until the store is opened again."""
        return self.parts.flag

    @property
    def notes(self) -> list[str]:
        """What a person should know about how the store was found."""
        return self.parts.notes

    def close(self) -> None:
        """Ends all use; on return the index is durable and says that nothing was cut off
        (unless the store is flagged or offline). A second call does nothing."""
        self.parts.close()

    def rebuild_index(self) -> None:
        """Makes the index say what the folders hold: missing chunks are verified and added,
        vanished ones and wrong sizes leave it, manifests are read again. Other work on the
        index waits. Raises StorageFailure, NoSpace; run it again then."""
        self.parts.rebuild_index()

    # -- storing

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
        self._storing.put(sha256, blake3, view, upload_id, reserved)

    # -- leases

    def lease(self, sha256: bytes, upload_id: str, now_wall: float) -> None:
        """Keeps the chunk from the trash for 24 h more. Raises NotFound when it is not held:
        only a lease that was taken makes a "have" true. Not durable before the next clean
        close, see the module."""
        self.parts.folder.check_online()
        if not self._storing.lease_if_held(sha256, upload_id, now_wall):
            raise not_held(sha256)

    def leased(self, sha256: bytes, now_wall: float) -> bool:
        with self.parts.index_lock:
            self.parts.folder.check_online()
            return self.parts.index.leased(sha256, now_wall)

    def end_leases(self, upload_id: str) -> None:
        """The upload ended, well or not: its chunks live on only by manifests."""
        with self.parts.index_lock:
            self.parts.folder.check_online()
            self._kept.upload_ended(upload_id)
            self.parts.index.end_leases(upload_id)

    # -- reading

    @property
    def online(self) -> bool:
        """Whether its disk is there."""
        return self.parts.folder.has_marker()

    def has(self, sha256: bytes) -> bool:
        return self._held.has(sha256)

    def size_of(self, sha256: bytes) -> int:
        """Raises NotFound."""
        return self._held.size_of(sha256)

    def read_block(
        self, sha256: bytes, offset: int, length: int, memory: Callable[[int], memoryview] = fresh
    ) -> memoryview:
        """`length` bytes of the chunk, not verified: the receiver does. They lie in
        `memory(length)`, which is asked only once the range is known to be one.

        Raises NotFound, InvalidUsage (a range outside the chunk), Unreadable (retryable:
        what is wrong with it, if anything, `verify` finds out), StoreOffline (retryable).
        """
        return self._blocks.read_block(sha256, offset, length, memory)

    def hashes(self) -> list[bytes]:
        """All held chunks, ascending."""
        return self._held.hashes()

    @property
    def count(self) -> int:
        return self._held.count

    @property
    def used(self) -> int:
        """Bytes of all held chunks."""
        return self._held.used

    @property
    def digest(self) -> bytes:
        """`hashing.inventory_digest` of `hashes()`."""
        return self._held.digest

    # -- space

    def free(self) -> int:
        """Bytes of chunks that may still come: by capacity and by the disk, less what is
        reserved; never negative. Raises why the store takes none at all: StorageFailure for a
        flagged one, NotAllowed where it may not be written to, StoreOffline (retryable)."""
        return self._storing.free()

    def reserve_space(self, size: int) -> bool:
        """Holds `size` bytes for a transfer, to be given back by its `put`, or by `unreserve`
        where it does not come to that.

        The oldest trash is purged for it when space is short. False: there is no room.
        Raises as `free` does.
        """
        return self._storing.reserve_space(size)

    def unreserve(self, size: int) -> None:
        self._storing.unreserve(size)

    # -- manifests

    def put_manifest(self, file_id: str, data: bytes, upload_id: str) -> None:
        """Keeps a file's manifest: durable on return, and its chunks are referenced. One for each
        upload that has a chunk of the file leased here. Until it is known to be a file's it has
        that upload's lease, 24 h from now.

        Raises ManifestInvalid, NotAllowed (no such upload, or it brought another one; neither
        is retryable), NoSpace, StoreOffline (retryable), StorageFailure (the store is then
        flagged).
        """
        self._kept.put(file_id, data, upload_id)

    def manifest(self, file_id: str) -> bytes:
        """The canonical bytes, checked against `file_id`. Raises NotFound, ManifestInvalid
        (the disk changed them), StorageFailure."""
        return self.parts.manifests.read(file_id)

    def manifests(self) -> list[str]:
        """File ids, ascending."""
        return self.parts.manifests.ids()

    def claimed_manifests(self) -> dict[str, float]:
        """Kept manifests that are not known to be those of files -> the wall time to which the
        uploads that brought them have them."""
        return self.parts.manifests.claimed()

    def is_claimed(self, file_id: str) -> bool:
        """Whether it is one of `claimed_manifests`."""
        return self.parts.manifests.is_claimed(file_id)

    def know_manifests(self, file_ids: Iterable[str]) -> None:
        """They are those of files: from now on they go only when these are removed."""
        self._kept.know(file_ids)

    def drop_manifests(self, file_ids: Iterable[str], store_id: str, commit_number: int) -> list[str]:
        """To the trash, durably, with those of `file_ids`, no files in that state of the tracker's
        store, that are not known to be and whose lease has ended; which these were.

        Raises ForeignStore as `seen_store`: nothing is moved then."""
        return self._kept.drop(file_ids, store_id, commit_number)

    def forget_manifest(self, file_id: str) -> None:
        """The file was removed: its manifest goes to the trash and names no chunk any more.
        Durable on return; one that is not kept is no error."""
        self._kept.forget(file_id)

    # -- garbage and trash

    def garbage(self, now_wall: float) -> list[bytes]:
        """Chunks that no kept manifest names and no lease holds, ascending; none while a manifest
        cannot be read, which may name them."""
        return self._removal.garbage(now_wall)

    def trash(self, hashes: list[bytes], store_id: str, now_wall: float) -> list[bytes]:
        """Moves chunks to the trash of that day and order, durably; returns the moved ones.

        One that is leased or referenced meanwhile stays, one that is not held is skipped.
        Raises ForeignStore when another cluster's tracker orders it, StorageFailure.
        """
        return self._removal.trash(hashes, store_id, now_wall)

    def purge_trash(self, older_than_wall: float) -> int:
        """Deletes for good what was trashed, by date, entirely before that moment; returns
        the bytes. Forgets leases that ended before it, and what is left of failed writes, too."""
        return self._removal.purge_trash(older_than_wall)

    # -- scrub

    def verify(self, sha256: bytes) -> bool:
        """Reads the chunk from the disk, not from memory, and checks it: BLAKE3 against the
        index first, SHA-256 where that differs. False: it is damaged or gone. Raises NotFound
        for a chunk that is not held, Unreadable (retryable) for one that cannot be read now."""
        return self._scrub.verify(sha256)

    def drop_corrupt(self, sha256: bytes) -> bool:
        """Looks a second time at a chunk that failed `verify`, since it may be the last copy.
        Damaged again it moves to trash/corrupt, durably; it, or one that is gone, is no longer
        held: True. Raises NotFound for a chunk that is not held, Unreadable (retryable)."""
        return self._scrub.drop_corrupt(sha256)

    def unsettled(self) -> list[Path]:
        """What is to be looked at with `take_back`: chunks that could not be read when the store
        was opened, and what lies in trash/corrupt and was not looked at since."""
        return self._scrub.unsettled()

    def take_back(self, path: Path) -> bytes | None:
        """Looks at one of `unsettled`, which is then settled. A whole chunk that was not held is
        held again: its SHA-256, else None. Raises Unreadable (retryable: it is not settled)."""
        return self._scrub.take_back(path)

    # -- the cluster this store belongs to

    @property
    def store_id(self) -> str | None:
        """The tracker store this node first joined."""
        return self.parts.cluster.store_id

    @property
    def commit_number(self) -> int:
        """The highest commit number seen; 0 before the first."""
        return self.parts.cluster.commit_number

    def seen_store(self, store_id: str, commit_number: int) -> None:
        """Remembers, durably on return, the cluster's store and its highest commit number.

        Raises ForeignStore for another store than the first one, for an older state of
        it (a backup put back), and where `cluster.json` is lost, so that neither can be told:
        their deletions must not be obeyed. Nothing changes then.
        """
        self._kept.seen_store(store_id, commit_number)

    def adopt_store(self, store_id: str, commit_number: int) -> bool:
        """As `seen_store` where `cluster.json` is lost, and that store knows all files that are kept
        here. Whether that was so; else nothing changes."""
        return self._kept.adopt_store(store_id, commit_number)
