"""A store that is open: its parts, and what they need of each other to stay in agreement.

Opened and closed here; what is done with it is `chunk_store.py`'s and the files' beside it, which
share this. `index_lock` is for the index, the trash, and moves that must agree with them; locks of
the parts are taken inside it and held for moments.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zchunk.clock import Clock
from zchunk.errors import StorageFailure, StoreOffline, Unreadable, ZchunkError
from zchunk.node.store.chunk_files import ChunkFiles
from zchunk.node.store.chunk_index import open_index
from zchunk.node.store.chunk_readers import ChunkReaders
from zchunk.node.store.cluster_memory import ClusterMemory
from zchunk.node.store.inventory import Inventory
from zchunk.node.store.manifest_folder import ManifestFolder
from zchunk.node.store.reconcile import Reconciler
from zchunk.node.store.store_folder import StoreFolder
from zchunk.node.store.trash import Trash
from zchunk.node.store.verification import unreadable_chunk
from zchunk.system import file_limit

log = logging.getLogger(__name__)

OPEN_READERS = 64


class OpenStore:
    def __init__(self, root: Path, *, capacity: int | None, reserve: int, clock: Clock) -> None:
        """See `ChunkStore`."""
        self.root = root
        self.capacity = capacity
        self.reserve = reserve
        #: why nothing is stored any more until the store is opened again
        self.flag: str | None = None
        #: what a person should know about how the store was found
        self.notes: list[str] = []
        self.clock = clock
        self.closing = False
        #: index and folder may differ in a way only a listing finds: `close` is not clean then
        self.in_doubt = False
        self.folder = StoreFolder(root)
        try:
            self._open()
        except BaseException:
            self.folder.release()
            raise

    def _open(self) -> None:
        self.index_lock = threading.RLock()
        self.turn = threading.Condition()
        self.writing: set[bytes] = set()  # guarded by `turn`: one put per chunk at a time
        #: held chunks whose last read was refused: stored anew when somebody sends them
        self.unread: set[bytes] = set()
        self.readers = ChunkReaders(file_limit.for_readers(OPEN_READERS))
        self.held = Inventory(self.capacity, self.reserve)
        self.uuid = self.folder.read_uuid()
        self.folder.prepare()
        self.files = ChunkFiles(self.folder.chunks, self.folder.tmp)
        self.trash = Trash(self.folder.trash, self.clock)
        closed = self.folder.take_closed()
        self.index, clean = open_index(self.folder.index, self.note, closed)
        self.manifests = ManifestFolder(self.folder, self.index, self.held, self.trash, self.note, self.clock)
        self.reconciler = self._make_reconciler()
        try:
            self._check_mounted()
            self.cluster = ClusterMemory(self.folder.cluster, self.index)
            self.index.set_clean("")
            self.reconciler.load(clean)
        except BaseException:
            self.index.close()
            raise

    def _check_mounted(self) -> None:
        """The folders that chunks lie in stay when the last chunk goes."""
        if self.files.is_new and self.index.chunks():
            text = f"the store {self.root} is offline: {self.folder.chunks} is empty; is its disk mounted?"
            lost = f"If its chunks are lost, delete {self.folder.index}"
            raise StoreOffline(f"{text} {lost}", path=str(self.root))

    def _make_reconciler(self) -> Reconciler:
        return Reconciler(
            folder=self.folder,
            files=self.files,
            manifests=self.manifests,
            index=self.index,
            held=self.held,
            trash=self.trash,
            readers=self.readers,
            clock=self.clock,
            note=self.note,
        )

    def close(self) -> None:
        """Ends all use; on return the index is durable and says that nothing was cut off
        (unless the store is flagged or offline). A second call does nothing."""
        with self.turn:
            if self.closing:
                return
            self.closing = True  # no put begins any more, and those that began may end
            self.turn.wait_for(lambda: not self.writing)
        with self.index_lock:
            self.folder.closed = True
            self.readers.close()
            try:
                if not (self.flag or self._differs()) and self.folder.has_marker():
                    self.index.set_clean(closed := uuid.uuid4().hex)
                    self.folder.say_closed(closed)
            except ZchunkError as error:  # then all is listed at the next opening
                log.warning("%s was not closed cleanly: %s", self.root, error.message)
            finally:
                self.index.close()
                self.folder.release()

    def _differs(self) -> bool:
        """Whether the next opening has to look at the folders."""
        unread = self.reconciler.unread or self.manifests.unread
        return bool(self.in_doubt or self.files.in_doubt or unread)

    def rebuild_index(self) -> None:
        """Makes the index say what the folders hold: missing chunks are verified and added,
        vanished ones and wrong sizes leave it, manifests are read again. Other work on the
        index waits. Raises StorageFailure, NoSpace; run it again then."""
        with self.index_lock:
            self.folder.check_online()
            self.reconciler.rebuild()

    def note(self, note: str) -> None:
        log.warning("%s: %s", self.root, note)
        self.notes.append(note)

    def check_writable(self) -> None:
        self.folder.check_online()
        if self.flag is not None:
            raise StorageFailure(f"the store accepts no chunks until the node is restarted: {self.flag}")

    @contextmanager
    def flagging(self) -> Iterator[None]:
        """A disk that failed once to make data durable is not asked again, and a node whose
        index fails needs a restart: neither may go on offering its space."""
        try:
            yield
        except StorageFailure as error:
            self.flag = self.flag or error.message
            log.error("the store %s accepts no more chunks: %s", self.root, error.message)
            raise

    @contextmanager
    def claimed(self, sha256: bytes) -> Iterator[None]:
        """One put per chunk at a time: a second one finds it held, or takes its turn."""
        with self.turn:
            self.turn.wait_for(lambda: sha256 not in self.writing)
            if self.closing:
                raise StoreOffline(f"the store {self.root} is closing")
            self.writing.add(sha256)
        try:
            yield
        finally:
            with self.turn:
                self.writing.discard(sha256)
                self.turn.notify_all()

    def refused(self, sha256: bytes, error: OSError | MemoryError) -> Unreadable:
        """A read was refused: unless the disk was unplugged meanwhile (StoreOffline), the chunk
        is held as before."""
        self.folder.check_online()
        self.unread.add(sha256)
        return unreadable_chunk(sha256, error)
