"""Makes a store's index and memory say what its folders hold, after whatever happened.

Responsible for what is believed when a store is opened or its index rebuilt: a put that was
cut off, a row without a file, a file without a row, leases lost with the index. Not
responsible for a damaged index (`chunkindex.py`), nor for manifests (`manifestfolder.py`),
but for their turn: their references decide which chunks need a lease. Called by
`chunkstore.py`, which holds its index lock.

May not happen here: a chunk believed to be held that is not whole, or under a name that a
power cut may take; a chunk taken for damaged because its disk was unplugged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zchunk import hashing
from zchunk.clock import Clock
from zchunk.node.store.chunkfiles import ChunkFiles
from zchunk.node.store.chunkindex import LEASE_S, RECOVERED, ChunkIndex
from zchunk.node.store.chunkreaders import ChunkReaders
from zchunk.node.store.inventory import Inventory
from zchunk.node.store.manifestfolder import ManifestFolder
from zchunk.node.store.storefolder import StoreFolder
from zchunk.node.store.trash import Trash


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
            if not (self.files.path(sha256).exists() and self._adopt(sha256)):
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
        for sha256 in rows.keys() - held.keys():
            self.index.remove(sha256)
            self.readers.drop(sha256)
        self.held.adopt(held)

    def _adopt(self, sha256: bytes) -> bool:
        """Indexes a file that has no row if it is whole; else it goes to trash/corrupt.

        Its folder is synced first: whoever renamed it here was perhaps killed before."""
        found = self.files.digest(sha256, hashing.both_of)
        if found is None or found.sha256 != sha256:
            self.folder.check_online()  # a disk unplugged just now makes no chunk corrupt
            self.note(f"chunk {sha256.hex()[:12]} is damaged and went to trash/corrupt")
            self.trash.set_apart(self.files.path(sha256))
            return False
        self.files.sync_folder_of(sha256)
        recovered = (RECOVERED, self.clock.wall() + LEASE_S)  # its own lease was lost with its row
        self.index.add(sha256, found.size, found.blake3, recovered)
        return True
