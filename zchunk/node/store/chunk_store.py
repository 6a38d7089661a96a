"""A node's chunks on disk: verified, durable, leased, trashed; and the manifests beside them.

Responsible for what must be true together of folder, index and memory, and for the order
in which they change. The parts know one thing each: `store_folder.py` (the layout, marker
and lock), `chunk_files.py`, `manifest_folder.py`, `trash.py`, `chunk_index.py`,
`inventory.py` (the numbers in memory), `chunk_readers.py`, `cluster_memory.py`, `verification.py`
(whether bytes are still right), and `reconcile.py` for the time after a stop that was not
`close()`, and for what was set apart. Not responsible for who may
store or order what. Callers: the chunk server, registration and upkeep of a
node, through its worker threads.

The folders are the truth, the index is their index and may be deleted. After an unclean
stop the listing is compared with it, and chunks that no manifest needs get a lease, since
their real one may be among what a power cut took from the index.

May not happen here: a chunk in memory or index whose file is not verified, durable and
under its final name; a leased or referenced chunk in the trash; anything deleted, moved
or written while the marker is missing; a sync tried again after it failed; a chunk that
cannot be read taken for a damaged one.

Thread-safe: workers call any method. `_index_lock` is for the index, the trash, and moves
that must agree with them; locks of the parts are taken inside it and held for moments, so
that `has` never waits for a disk.
"""

from __future__ import annotations

import errno
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zchunk.clock import Clock
from zchunk.content import manifest
from zchunk.content.manifest import Manifest
from zchunk.errors import (
    ForeignStore,
    InvalidUsage,
    NoSpace,
    NotAllowed,
    StorageFailure,
    StoreOffline,
    Unreadable,
    ZchunkError,
)
from zchunk.node.store import store_folder
from zchunk.node.store.chunk_files import ChunkFiles, check_bytes
from zchunk.node.store.chunk_index import LEASE_S, RECOVERED, open_index
from zchunk.node.store.chunk_readers import ChunkReaders
from zchunk.node.store.cluster_memory import ClusterMemory
from zchunk.node.store.inventory import Inventory, not_held
from zchunk.node.store.manifest_folder import ManifestFolder
from zchunk.node.store.reconcile import Reconciler, name_of
from zchunk.node.store.store_folder import MARKER, StoreFolder
from zchunk.node.store.trash import Trash
from zchunk.node.store.verification import Judged, Verdict, judge, unreadable_chunk
from zchunk.system import disk, file_limit

log = logging.getLogger(__name__)

OPEN_READERS = 64
#: Uploads of which it is known which manifest they brought.
_REMEMBERED = 10_000


def _fresh(length: int) -> memoryview:
    return memoryview(bytearray(length))


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
        #: why nothing is stored any more until the store is opened again
        self.flag: str | None = None
        #: what a person should know about how the store was found
        self.notes: list[str] = []
        self._clock = clock
        self._closing = False
        #: index and folder may differ in a way only a listing finds: `close` is not clean then
        self._in_doubt = False
        self._folder = StoreFolder(root)
        try:
            self._open()
        except BaseException:
            self._folder.release()
            raise

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

    def _open(self) -> None:
        self._index_lock = threading.RLock()
        self._turn = threading.Condition()
        self._writing: set[bytes] = set()  # guarded by _turn: one put per chunk at a time
        #: held chunks whose last read was refused: stored anew when somebody sends them
        self._unread: set[bytes] = set()
        #: upload id -> the file whose manifest it brought, of the latest uploads
        self._brought: dict[str, str] = {}
        self._readers = ChunkReaders(file_limit.for_readers(OPEN_READERS))
        self._held = Inventory(self.capacity, self.reserve)
        self.uuid = self._folder.read_uuid()
        self._folder.prepare()
        self._files = ChunkFiles(self._folder.chunks, self._folder.tmp)
        self._trash = Trash(self._folder.trash, self._clock)
        closed = self._folder.take_closed()
        self._index, clean = open_index(self._folder.index, self._note, closed)
        self._manifests = ManifestFolder(
            self._folder, self._index, self._held, self._trash, self._note, self._clock
        )
        self._reconciler = self._make_reconciler()
        try:
            self._check_mounted()
            self._cluster = ClusterMemory(self._folder.cluster, self._index)
            self._index.set_clean("")
            self._reconciler.load(clean)
        except BaseException:
            self._index.close()
            raise

    def _check_mounted(self) -> None:
        """The folders that chunks lie in stay when the last chunk goes."""
        if self._files.is_new and self._index.chunks():
            text = f"the store {self.root} is offline: {self._folder.chunks} is empty; is its disk mounted?"
            lost = f"If its chunks are lost, delete {self._folder.index}"
            raise StoreOffline(f"{text} {lost}", path=str(self.root))

    def _make_reconciler(self) -> Reconciler:
        return Reconciler(
            folder=self._folder,
            files=self._files,
            manifests=self._manifests,
            index=self._index,
            held=self._held,
            trash=self._trash,
            readers=self._readers,
            clock=self._clock,
            note=self._note,
        )

    def close(self) -> None:
        """Ends all use; on return the index is durable and says that nothing was cut off
        (unless the store is flagged or offline). A second call does nothing."""
        with self._turn:
            if self._closing:
                return
            self._closing = True  # no put begins any more, and those that began may end
            self._turn.wait_for(lambda: not self._writing)
        with self._index_lock:
            self._folder.closed = True
            self._readers.close()
            try:
                if not (self.flag or self._differs()) and self._folder.has_marker():
                    self._index.set_clean(closed := uuid.uuid4().hex)
                    self._folder.say_closed(closed)
            except ZchunkError as error:  # then all is listed at the next opening
                log.warning("%s was not closed cleanly: %s", self.root, error.message)
            finally:
                self._index.close()
                self._folder.release()

    def _differs(self) -> bool:
        """Whether the next opening has to look at the folders."""
        unread = self._reconciler.unread or self._manifests.unread
        return bool(self._in_doubt or self._files.in_doubt or unread)

    def rebuild_index(self) -> None:
        """Makes the index say what the folders hold: missing chunks are verified and added,
        vanished ones and wrong sizes leave it, manifests are read again. Other work on the
        index waits. Raises StorageFailure, NoSpace; run it again then."""
        with self._index_lock:
            self._folder.check_online()
            self._reconciler.rebuild()

    def _note(self, note: str) -> None:
        log.warning("%s: %s", self.root, note)
        self.notes.append(note)

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
        stored = False
        try:
            stored = self._put(sha256, blake3, view, upload_id, reserved)
        finally:
            if not stored:
                self.unreserve(reserved)

    def _put(self, sha256: bytes, blake3: bytes, view: disk.Writable, upload_id: str, reserved: int) -> bool:
        """Whether it was not there before; then `reserved` is given back already."""
        self._check_writable()
        with self._claimed(sha256):
            held = self._lease_if_held(sha256, upload_id, self._clock.wall())
            if held and sha256 not in self._unread:
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
        with self._index_lock:
            self._check_writable()
            with self._flagging():
                self._index.intend(sha256)

    def _check_writable(self) -> None:
        self._folder.check_online()
        if self.flag is not None:
            raise StorageFailure(f"the store accepts no chunks until the node is restarted: {self.flag}")

    @contextmanager
    def _flagging(self) -> Iterator[None]:
        """A disk that failed once to make data durable is not asked again, and a node whose
        index fails needs a restart: neither may go on offering its space."""
        try:
            yield
        except StorageFailure as error:
            self.flag = self.flag or error.message
            log.error("the store %s accepts no more chunks: %s", self.root, error.message)
            raise

    @contextmanager
    def _claimed(self, sha256: bytes) -> Iterator[None]:
        """One put per chunk at a time: a second one finds it held, or takes its turn."""
        with self._turn:
            self._turn.wait_for(lambda: sha256 not in self._writing)
            if self._closing:
                raise StoreOffline(f"the store {self.root} is closing")
            self._writing.add(sha256)
        try:
            yield
        finally:
            with self._turn:
                self._writing.discard(sha256)
                self._turn.notify_all()

    def _check_capacity(self, size: int) -> None:
        # The wall behind reserve_space: reached only by a caller that has not reserved.
        if not self._held.fits(size):
            text = f"the store {self.root} is full: {self.used} of {self.capacity} bytes are used"
            raise NoSpace(text, path=str(self.root))

    def _store_file(self, sha256: bytes, view: disk.Writable) -> None:
        """Durable under its final name on return; on an error what was there before is there."""
        unread = sha256 in self._unread or sha256 in self._reconciler.unread
        try:
            with self._flagging():
                self._files.write(sha256, view, replacing=unread)
        except ZchunkError:
            self._forget_intent(sha256)
            self._folder.check_online()  # an unplugged disk says "not found", or worse
            raise

    def _forget_intent(self, sha256: bytes) -> None:
        with self._index_lock:
            if not self._folder.closed:
                self._index.forget_intent(sha256)

    def _record(self, sha256: bytes, size: int, blake3: bytes, upload_id: str, reserved: int) -> None:
        # Failing here leaves a whole file whose intent stands: the next opening verifies and
        # adds it. Flagged meanwhile by another put: the kernel reports a failed sync once, so
        # that our own sync succeeded after it proves nothing.
        with self._index_lock:
            self._check_writable()
            with self._flagging():
                self._index.add(sha256, size, blake3, (upload_id, self._clock.wall() + LEASE_S))
            self._held.add(sha256, size, reserved)
            self._readers.drop(sha256)  # of a file that was there before, and could not be read
            self._unread.discard(sha256)
            self._reconciler.unread.discard(sha256)

    # -- leases

    def lease(self, sha256: bytes, upload_id: str, now_wall: float) -> None:
        """Keeps the chunk from the trash for 24 h more. Raises NotFound when it is not held:
        only a lease that was taken makes a "have" true. Not durable before the next clean
        close, see the module."""
        self._folder.check_online()
        if not self._lease_if_held(sha256, upload_id, now_wall):
            raise not_held(sha256)

    def _lease_if_held(self, sha256: bytes, upload_id: str, now_wall: float) -> bool:
        with self._index_lock:  # no `trash` between the question and the lease
            if not self.has(sha256):
                return False
            self._folder.check_online()
            self._index.lease(sha256, upload_id, now_wall + LEASE_S)
            return True

    def leased(self, sha256: bytes, now_wall: float) -> bool:
        with self._index_lock:
            self._folder.check_online()
            return self._index.leased(sha256, now_wall)

    def end_leases(self, upload_id: str) -> None:
        """The upload ended, well or not: its chunks live on only by manifests."""
        with self._index_lock:
            self._folder.check_online()
            self._brought.pop(upload_id, None)
            self._index.end_leases(upload_id)

    # -- reading

    @property
    def online(self) -> bool:
        """Whether its disk is there."""
        return self._folder.has_marker()

    def has(self, sha256: bytes) -> bool:
        return self._held.has(sha256)

    def size_of(self, sha256: bytes) -> int:
        """Raises NotFound."""
        return self._held.size_of(sha256)

    def read_block(
        self, sha256: bytes, offset: int, length: int, memory: Callable[[int], memoryview] = _fresh
    ) -> memoryview:
        """`length` bytes of the chunk, not verified: the receiver does. They lie in
        `memory(length)`, which is asked only once the range is known to be one.

        Raises NotFound, InvalidUsage (a range outside the chunk), Unreadable (retryable:
        what is wrong with it, if anything, `verify` finds out), StoreOffline (retryable).
        """
        self._folder.check_online()
        size = self.size_of(sha256)
        if offset < 0 or length < 0 or offset + length > size:
            raise InvalidUsage(
                f"chunk {sha256.hex()[:12]} has {size} bytes; {length} bytes from {offset} are beyond its end"
            )
        try:
            view = memory(length)
            if self._pread(sha256, offset, view) != length:
                raise OSError(errno.EIO, "it is shorter than its size says")
        except (OSError, MemoryError) as error:
            raise self._refused(sha256, error) from error
        return view

    def _pread(self, sha256: bytes, offset: int, view: memoryview) -> int:
        try:
            return self._read(sha256, offset, view)
        except FileNotFoundError:
            with self._index_lock:  # it was on its way to the trash, and is perhaps back by now
                self.size_of(sha256)
                return self._read(sha256, offset, view)

    def _read(self, sha256: bytes, offset: int, view: memoryview) -> int:
        with self._readers.reading(sha256, self._files.path(sha256)) as fd:
            return disk.read_into(fd, view, offset)

    def _refused(self, sha256: bytes, error: OSError | MemoryError) -> Unreadable:
        """A read was refused: unless the disk was unplugged meanwhile (StoreOffline), the chunk
        is held as before."""
        self._folder.check_online()
        self._unread.add(sha256)
        return unreadable_chunk(sha256, error)

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
        self._check_takes()
        return self._held.room(disk.free_bytes(self.root))

    def _check_takes(self) -> None:
        self._check_writable()
        self._folder.check_writable()

    def reserve_space(self, size: int) -> bool:
        """Holds `size` bytes for a transfer, to be given back by its `put`, or by `unreserve`
        where it does not come to that.

        The oldest trash is purged for it when space is short. False: there is no room.
        Raises as `free` does.
        """
        with self._index_lock:
            self._check_takes()
            short = self._held.shortfall(size, disk.free_bytes(self.root), self._trash.bytes)
            if short is None:
                return False
            if short:
                self._trash.purge_bytes(short)
            if self.free() < size:
                return False
            self._held.hold(size)
            return True

    def unreserve(self, size: int) -> None:
        self._held.give_back(size)

    # -- manifests

    def put_manifest(self, file_id: str, data: bytes, upload_id: str) -> None:
        """Keeps a file's manifest: durable on return, and its chunks are referenced. One for each
        upload that has a chunk of the file leased here. Until it is known to be a file's it has
        that upload's lease, 24 h from now.

        Raises ManifestInvalid, NotAllowed (no such upload, or it brought another one; neither
        is retryable), NoSpace, StoreOffline (retryable), StorageFailure (the store is then
        flagged).
        """
        self._check_writable()
        parsed = manifest.parse(data, file_id)
        if self._manifests.has_whole(file_id):
            with self._index_lock:
                self._manifests.renew(file_id)
            return
        with self._index_lock:
            self._admit_manifest(file_id, parsed, upload_id)
        taken = manifest.kept_bytes(len(data))
        if not self.reserve_space(taken):
            raise NoSpace(f"this node has no space for a manifest of {len(data)} bytes")
        try:
            self._keep_manifest(file_id, data, parsed)
        finally:
            self.unreserve(taken)

    def _admit_manifest(self, file_id: str, parsed: Manifest, upload_id: str) -> None:
        """Else who may upload could fill the disk with manifests of files that nobody puts."""
        named = {row.sha256 for row in parsed.chunks}
        lost = self._index.leased_by(RECOVERED, self._clock.wall())  # perhaps with the one of this upload
        leased = self._index.leased_by(upload_id) + lost
        if named and named.isdisjoint(leased):
            raise NotAllowed(
                "this upload has sent no chunk of that file to this node: offer its chunks first"
            )
        if self._brought.setdefault(upload_id, file_id) != file_id:
            raise NotAllowed("this upload has already sent the manifest of another file to this node")
        while len(self._brought) > _REMEMBERED:
            del self._brought[next(iter(self._brought))]

    def _keep_manifest(self, file_id: str, data: bytes, parsed: Manifest) -> None:
        with self._flagging():
            self._manifests.write(file_id, data)
        with self._index_lock:
            self._folder.check_online()
            self._manifests.add(file_id, parsed)

    def manifest(self, file_id: str) -> bytes:
        """The canonical bytes, checked against `file_id`. Raises NotFound, ManifestInvalid
        (the disk changed them), StorageFailure."""
        return self._manifests.read(file_id)

    def manifests(self) -> list[str]:
        """File ids, ascending."""
        return self._manifests.ids()

    def claimed_manifests(self) -> dict[str, float]:
        """Kept manifests that are not known to be those of files -> the wall time to which the
        uploads that brought them have them."""
        return self._manifests.claimed()

    def is_claimed(self, file_id: str) -> bool:
        """Whether it is one of `claimed_manifests`."""
        return self._manifests.is_claimed(file_id)

    def know_manifests(self, file_ids: Iterable[str]) -> None:
        """They are those of files: from now on they go only when these are removed."""
        with self._index_lock:
            self._folder.check_online()
            self._manifests.know(file_ids)

    def drop_manifests(self, file_ids: Iterable[str], store_id: str, commit_number: int) -> list[str]:
        """To the trash, durably, with those of `file_ids`, no files in that state of the tracker's
        store, that are not known to be and whose lease has ended; which these were.

        Raises ForeignStore as `seen_store`: nothing is moved then."""
        with self._index_lock:
            self.seen_store(store_id, commit_number)
            now_wall, claimed = self._clock.wall(), self._manifests.claimed()
            ended = [file_id for file_id in file_ids if claimed.get(file_id, now_wall + 1) <= now_wall]
            for file_id in ended:
                self._manifests.forget(file_id, store_id, now_wall)
            return ended

    def forget_manifest(self, file_id: str) -> None:
        """The file was removed: its manifest goes to the trash and names no chunk any more.
        Durable on return; one that is not kept is no error."""
        with self._index_lock:
            self._folder.check_online()
            if self._manifests.has(file_id):
                self._manifests.forget(file_id, self.store_id or "local", self._clock.wall())

    # -- garbage and trash

    def garbage(self, now_wall: float) -> list[bytes]:
        """Chunks that no kept manifest names and no lease holds, ascending; none while a manifest
        cannot be read, which may name them."""
        with self._index_lock:
            self._folder.check_online()
            return self._index.garbage(now_wall) if self._manifests.read_again() else []

    def trash(self, hashes: list[bytes], store_id: str, now_wall: float) -> list[bytes]:
        """Moves chunks to the trash of that day and order, durably; returns the moved ones.

        One that is leased or referenced meanwhile stays, one that is not held is skipped.
        Raises ForeignStore when another cluster's tracker orders it, StorageFailure.
        """
        with self._index_lock:
            self._folder.check_online()
            self._cluster.check(store_id)
            wanted = [h for h in dict.fromkeys(hashes) if self._is_removable(h, now_wall)]
            if not wanted:
                return []
            folder = self._trash.day_folder(store_id, now_wall)
            moved = [h for h in wanted if self._remove(h, folder / h.hex())]
            with disk.storage_errors(folder, "syncing"):
                self._trash.sync({folder} | {self._files.path(h).parent for h in moved})
            return moved

    def _is_removable(self, sha256: bytes, now_wall: float) -> bool:
        return (
            self.has(sha256)
            and not self._index.leased(sha256, now_wall)
            and not self._index.referenced(sha256)
        )

    def _remove(self, sha256: bytes, to: Path) -> bool:
        """Out of folder, memory and index, in this order: killed in between, the next
        opening's listing does the rest. False: the file had gone already."""
        source = self._files.path(sha256)
        self._readers.drop(sha256)  # before the move: no open handle across a rename ...
        with disk.storage_errors(source, "removing"):
            existed = self._trash.move(source, to)
        self._held.remove(sha256)
        self._readers.drop(sha256)  # ... and after it: a reader may have opened it meanwhile
        try:
            self._index.remove(sha256)
        except ZchunkError:
            self._in_doubt = True  # the row of a chunk that has gone must not outlive this run
            raise
        return existed

    def purge_trash(self, older_than_wall: float) -> int:
        """Deletes for good what was trashed, by date, entirely before that moment; returns
        the bytes. Forgets leases that ended before it, and what is left of failed writes, too."""
        with self._index_lock:
            self._folder.check_online()
            self._files.sweep()
            self._index.forget_leases(older_than_wall)
            return self._trash.purge_before(older_than_wall)

    # -- scrub

    def verify(self, sha256: bytes) -> bool:
        """Reads the chunk from the disk, not from memory, and checks it: BLAKE3 against the
        index first, SHA-256 where that differs. False: it is damaged or gone. Raises NotFound
        for a chunk that is not held, Unreadable (retryable) for one that cannot be read now."""
        self._folder.check_online()
        size = self.size_of(sha256)
        with self._index_lock:
            self._folder.check_online()
            expected = self._index.blake3(sha256)
        judged = self._judged(sha256, expected)
        if judged.verdict is not Verdict.WHOLE:
            return False
        self._unread.discard(sha256)
        if judged.blake3 != expected:
            self._correct_blake3(sha256, size, judged.blake3)
        return True

    def _judged(self, sha256: bytes, blake3: bytes | None) -> Judged:
        try:
            judged = judge(self._files.path(sha256), sha256, blake3)
        except OSError as error:
            raise self._refused(sha256, error) from error
        if judged.verdict is not Verdict.WHOLE:
            self._folder.check_in_place()  # an unplugged disk is not a corrupt chunk
        return judged

    def _correct_blake3(self, sha256: bytes, size: int, blake3: bytes) -> None:
        # The index was wrong, not the chunk.
        with self._index_lock:
            self._folder.check_online()
            if self.has(sha256):
                self._index.add(sha256, size, blake3)

    def drop_corrupt(self, sha256: bytes) -> bool:
        """Looks a second time at a chunk that failed `verify`, since it may be the last copy.
        Damaged again it moves to trash/corrupt, durably; it, or one that is gone, is no longer
        held: True. Raises NotFound for a chunk that is not held, Unreadable (retryable)."""
        self._folder.check_online()
        with self._claimed(sha256):  # nobody stores it anew between the look and the move
            self.size_of(sha256)
            if self._judged(sha256, None).verdict is Verdict.WHOLE:
                return False
            with self._index_lock:
                self._folder.check_online()
                self._remove(sha256, self._trash.corrupt_path(sha256.hex()))
                self._trash.sync_corrupt(self._files.path(sha256).parent)
            return True

    def unsettled(self) -> list[Path]:
        """What is to be looked at with `take_back`: chunks that could not be read when the store
        was opened, and what lies in trash/corrupt and was not looked at since."""
        with self._index_lock:
            self._folder.check_online()
            return self._reconciler.unsettled()

    def take_back(self, path: Path) -> bytes | None:
        """Looks at one of `unsettled`, which is then settled. A whole chunk that was not held is
        held again: its SHA-256, else None. Raises Unreadable (retryable: it is not settled)."""
        self._folder.check_online()
        with self._claimed(name_of(path)):
            return self._reconciler.take_back(path, self._index_lock)

    # -- the cluster this store belongs to

    @property
    def store_id(self) -> str | None:
        """The tracker store this node first joined."""
        return self._cluster.store_id

    @property
    def commit_number(self) -> int:
        """The highest commit number seen; 0 before the first."""
        return self._cluster.commit_number

    def seen_store(self, store_id: str, commit_number: int) -> None:
        """Remembers, durably on return, the cluster's store and its highest commit number.

        Raises ForeignStore for another store than the first one, for an older state of
        it (a backup put back), and where `cluster.json` is lost, so that neither can be told:
        their deletions must not be obeyed. Nothing changes then.
        """
        with self._index_lock:
            self._folder.check_online()
            if self._has_lost_its_cluster():
                raise ForeignStore(
                    f"{self._folder.cluster} is missing: this node cannot tell whether the tracker's database"
                    " is an older copy. It deletes nothing unless the tracker knows the files of all its"
                    " chunks"
                )
            self._cluster.remember(store_id, commit_number)

    def adopt_store(self, store_id: str, commit_number: int) -> bool:
        """As `seen_store` where `cluster.json` is lost, and that store knows all files that are kept
        here. Whether that was so; else nothing changes."""
        with self._index_lock:
            self._folder.check_online()
            if not self._has_lost_its_cluster():
                return False
            self._cluster.remember(store_id, commit_number)
            return True

    def _has_lost_its_cluster(self) -> bool:
        """Manifests come only after a tracker was met."""
        return self.store_id is None and bool(self._manifests.ids())
