"""Makes a store's index and memory say what its folders hold, after whatever happened.

Responsible for what is believed when a store is opened or its index rebuilt: a put that was
cut off, a row without a file, a file without a row, leases lost with the index; and for what
is found whole later, of files that could not be read then, and in trash/corrupt. Not
responsible for a damaged index (`chunk_index.py`), nor for manifests (`manifest_folder.py`),
but for their turn: their references decide which chunks need a lease. Called by
`chunk_store.py`, which holds its index lock, but in `take_back`.

May not happen here: a chunk believed to be held that is not whole, or under a name that a
power cut may take; a chunk taken for damaged because its disk was unplugged, or refused to
read it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from zchunk.clock import Clock
from zchunk.node.store.chunk_files import ChunkFiles
from zchunk.node.store.chunk_index import LEASE_S, RECOVERED, ChunkIndex
from zchunk.node.store.chunk_readers import ChunkReaders
from zchunk.node.store.inventory import Inventory
from zchunk.node.store.manifest_folder import ManifestFolder
from zchunk.node.store.store_folder import StoreFolder
from zchunk.node.store.trash import MANIFEST, Trash
from zchunk.node.store.verification import Judged, Verdict, judge, unreadable_chunk


@dataclass(frozen=True, slots=True)
class Reconciler:
    """The parts of one store; `note` is told what a person should know."""

    folder: StoreFolder
    files: ChunkFiles
    manifests: ManifestFolder
    index: ChunkIndex
    held: Inventory
    trash: Trash
    readers: ChunkReaders
    clock: Clock
    note: Callable[[str], None]
    #: chunks in their place that are not held, since they could not be read yet
    unread: set[bytes] = field(default_factory=set)

    def load(self, clean: bool) -> None:
        """Once, when the store is opened: from the index alone if it was left clean."""
        self._resolve_intents()
        self.manifests.reconcile()
        if clean:
            self.held.adopt(self.index.chunks())
        else:
            self._chunks_and_leases()

    def rebuild(self) -> None:
        """From the folders alone, but that chunks with a row of the right size are not read."""
        self.manifests.reconcile(trust_index=False)
        self._chunks_and_leases()

    def _resolve_intents(self) -> None:
        """A put was cut off: its file is under the final name and whole, or does not count."""
        for sha256 in self.index.intents():
            if not self._adopt(sha256) and sha256 not in self.unread:
                self.index.remove(sha256)

    def _chunks_and_leases(self) -> None:
        self._reconcile_chunks()
        self.index.lease_unreferenced(RECOVERED, self.clock.wall() + LEASE_S)

    def _reconcile_chunks(self) -> None:
        """The listing is the truth: index and memory become equal to it."""
        rows = self.index.chunks()
        held: dict[bytes, int] = {}
        for sha256, size in self.files.listed():
            if rows.get(sha256) == size or self._adopt(sha256):
                held[sha256] = size
        for sha256 in rows.keys() - held.keys() - self.unread:
            self.index.remove(sha256)
            self.readers.drop(sha256)
        self.held.adopt(held)

    def _adopt(self, sha256: bytes) -> bool:
        """Indexes a file that has no row if it is whole. A damaged one goes to trash/corrupt; one
        that cannot be read now stays where it is, and is looked at again."""
        try:
            judged = judge(self.files.path(sha256), sha256)
        except OSError as error:
            self.folder.check_online()  # a disk unplugged just now is no news of its chunks
            self.note(unreadable_chunk(sha256, error).message)
            self.unread.add(sha256)
            return False
        return self._settle(sha256, judged)

    def _settle(self, sha256: bytes, judged: Judged) -> bool:
        if judged.verdict is not Verdict.WHOLE:
            self.folder.check_in_place()
        self.unread.discard(sha256)
        if judged.verdict is Verdict.WHOLE:
            self._index(sha256, judged)
            return True
        if judged.verdict is Verdict.DAMAGED:
            self.note(f"chunk {sha256.hex()[:12]} is damaged and was moved to trash/corrupt")
            self.trash.set_apart(self.files.path(sha256))
        return False

    def _index(self, sha256: bytes, judged: Judged) -> None:
        """Its folder is synced first: whoever renamed it here was perhaps killed before."""
        self.files.sync_folder_of(sha256)
        recovered = (RECOVERED, self.clock.wall() + LEASE_S)  # its own lease was lost with its row
        self.index.add(sha256, judged.size, judged.blake3, recovered)

    # -- later

    def unsettled(self) -> list[Path]:
        """See `ChunkStore.unsettled`."""
        return [self.files.path(sha256) for sha256 in sorted(self.unread)] + self.trash.unsettled()

    def take_back(self, path: Path, lock: AbstractContextManager[object]) -> bytes | None:
        """See `ChunkStore.take_back`. `lock` is held for what follows from the look, not for the
        look, which may take its time."""
        sha256, in_trash = name_of(path), self.trash.is_unsettled(path)
        try:
            judged = judge(path, sha256)
        except OSError as error:
            raise unreadable_chunk(sha256, error) from error
        with lock:
            self.folder.check_in_place()
            settle = self._settle_trashed if in_trash else self._settle_unread
            return sha256 if settle(path, sha256, judged) else None

    def _settle_unread(self, _: Path, sha256: bytes, judged: Judged) -> bool:
        if sha256 not in self.unread:
            return False  # stored anew meanwhile, or settled
        if not self._settle(sha256, judged):
            self.index.remove(sha256)
            return False
        self.held.add(sha256, judged.size)
        return True

    def _settle_trashed(self, path: Path, sha256: bytes, judged: Judged) -> bool:
        wanted = judged.verdict is Verdict.WHOLE and not self.held.has(sha256)
        back = wanted and not self.manifests.take_back(path, sha256.hex())
        if back:
            self._hold_again(path, sha256, judged)
        self.trash.settle(path)
        return back

    def _hold_again(self, path: Path, sha256: bytes, judged: Judged) -> None:
        self.files.prepare_folder(sha256)
        self.trash.take_out(path, self.files.path(sha256))
        self.unread.add(sha256)  # until it is indexed: then it is looked at in its place
        self._settle(sha256, judged)
        self.held.add(sha256, judged.size)
        self.note(f"chunk {sha256.hex()[:12]} was in trash/corrupt but is intact: restored")


def name_of(path: Path) -> bytes:
    """The SHA-256 that a chunk's file, or one in trash/corrupt, should have."""
    return bytes.fromhex(path.name.removesuffix(MANIFEST)[-64:])
