"""The files `manifests/<file id>`: a manifest's canonical bytes, and the references it makes.

Responsible for folder, index and memory saying the same of manifests: a chunk that a kept
one names is referenced; one that is not known to be that of a file has its upload's lease. Not
responsible for chunks, nor for when a manifest may go. Called
by `chunk_store.py`, which holds its index lock for every method that changes the index.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from zchunk.clock import Clock
from zchunk.content import manifest
from zchunk.content.manifest import Manifest
from zchunk.errors import ManifestInvalid, NotFound, StoreOffline, ZchunkError
from zchunk.node.store.chunk_index import LEASE_S, ChunkIndex
from zchunk.node.store.inventory import Inventory
from zchunk.node.store.store_folder import HEX_DIGEST, StoreFolder
from zchunk.node.store.trash import MANIFEST, Trash
from zchunk.node.store.verification import Verdict, judge, unreadable
from zchunk.system import disk


class ManifestFolder:
    """The kept manifests. Nothing is kept before `reconcile` was called."""

    def __init__(
        self,
        folder: StoreFolder,
        index: ChunkIndex,
        held: Inventory,
        trash: Trash,
        note: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`held` is told what the manifests take, and `note` what a person should know."""
        self._clock = clock
        self._store = folder
        self._folder = folder.manifests
        self._index = index
        self._held = held
        self._trash = trash
        self._note = note
        self._lock = threading.Lock()  # held for moments, inside which no other is taken
        #: the kept ones -> what each takes
        self._ids: dict[str, int] = {}
        #: kept ones that are not known to be files -> when their upload's lease ends, wall time
        self._claims: dict[str, float] = {}
        #: in their place, but not kept: they could not be read yet, so what they name is not known
        self.unread: set[str] = set()

    def has(self, file_id: str) -> bool:
        with self._lock:
            return file_id in self._ids

    def ids(self) -> list[str]:
        """Ascending."""
        with self._lock:
            return sorted(self._ids)

    def read(self, file_id: str) -> bytes:
        """See `ChunkStore.manifest`."""
        self._store.check_online()
        if not self.has(file_id):
            raise NotFound(f"no manifest of file {file_id[:12]} is kept here")
        path = self._folder / file_id
        with disk.storage_errors(path, "reading"):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != file_id:
            raise ManifestInvalid(f"the manifest {path} is damaged", file_id=file_id)
        return data

    def has_whole(self, file_id: str) -> bool:
        """Kept, and its bytes are still right. Raises StoreOffline (retryable)."""
        if not self.has(file_id):
            return False
        try:
            self.read(file_id)
        except StoreOffline:
            raise
        except ZchunkError:
            return False  # it is written anew, in one step
        return True

    def write(self, file_id: str, data: bytes) -> None:
        """Durable on return, but not kept before `add`."""
        disk.write_durable(self._folder / file_id, data)

    def add(self, file_id: str, parsed: Manifest) -> None:
        """Its file was written: it is kept, and its chunks are referenced."""
        is_new = not self.has(file_id)
        self._index.add_manifest(file_id, (row.sha256 for row in parsed.chunks))
        self.unread.discard(file_id)
        self._keep({file_id: manifest.kept_bytes(len(parsed.canonical))})
        if is_new:
            self._claim([file_id])
        else:
            self.renew(file_id)

    def _keep(self, ids: dict[str, int]) -> None:
        with self._lock:
            self._ids.update(ids)
            self._held.keep_beside(sum(self._ids.values()))

    # -- whether they are files

    def claimed(self) -> dict[str, float]:
        """Those that are not known to be files -> until when their uploads have them, wall time."""
        with self._lock:
            return dict(self._claims)

    def is_claimed(self, file_id: str) -> bool:
        with self._lock:
            return file_id in self._claims

    def renew(self, file_id: str) -> None:
        """An upload brought it once more."""
        if self.is_claimed(file_id):
            self._claim([file_id])

    def know(self, file_ids: Iterable[str]) -> None:
        """They are files."""
        if claimed := list(filter(self.is_claimed, file_ids)):
            self._index.claim(claimed, None)
            with self._lock:
                for file_id in claimed:
                    del self._claims[file_id]

    def _claim(self, file_ids: Collection[str]) -> None:
        until = self._clock.wall() + LEASE_S
        self._index.claim(file_ids, until)
        with self._lock:
            self._claims.update(dict.fromkeys(file_ids, until))

    def _load_claims(self, kept: Collection[str]) -> None:
        """What is kept and has no row (of an earlier release, or the index is new) is claimed anew."""
        rows = self._index.claims()
        self._index.disclaim(rows.keys() - set(kept))
        with self._lock:
            self._claims = {f: until for f in kept if (until := rows.get(f)) is not None}
        self._claim(sorted(set(kept) - rows.keys()))

    def forget(self, file_id: str, store_id: str, now_wall: float) -> None:
        """To the trash of that day and order, durably; it names no chunk any more."""
        source = self._folder / file_id
        folder = self._trash.day_folder(store_id, now_wall)
        with disk.storage_errors(source, "removing"):
            self._trash.move(source, folder / f"{file_id}{MANIFEST}")
            self._trash.sync({folder, self._folder})
        self._index.remove_manifest(file_id)
        self._index.disclaim([file_id])
        with self._lock:
            self._ids.pop(file_id, None)
            self._claims.pop(file_id, None)
        self._keep({})

    def reconcile(self, *, trust_index: bool = True) -> None:
        """Rows and memory become equal to the folder. Few files, so at each opening.

        Rows of a manifest are replaced in one transaction: at no moment are the chunks of
        a kept one unreferenced."""
        with disk.storage_errors(self._folder, "listing"):
            names = {n for n in os.listdir(self._folder) if HEX_DIGEST.fullmatch(n)}
        rows = set(self._index.manifests())
        kept = names & rows if trust_index else set()
        if new := sorted(names - kept):
            with disk.storage_errors(self._folder, "syncing"):
                disk.sync_folder(self._folder)  # perhaps killed between rename and sync
            kept |= {file_id for file_id in new if self._adopt(file_id)}
        for file_id in sorted(rows - kept - self.unread):
            self._index.remove_manifest(file_id)
        with self._lock:
            self._ids = {}
        self._keep({file_id: self._cost(file_id) for file_id in kept})
        self._load_claims(kept)

    def read_again(self) -> bool:
        """Whether every manifest of the folder could be read by now: else nobody knows which
        chunks they name."""
        for file_id in sorted(self.unread):
            if self._adopt(file_id):
                self._keep({file_id: self._cost(file_id)})
                self._claim([file_id])
        return not self.unread

    def _cost(self, file_id: str) -> int:
        path = self._folder / file_id
        with disk.storage_errors(path, "checking"):
            return manifest.kept_bytes(path.stat().st_size)

    def _adopt(self, file_id: str) -> bool:
        path = self._folder / file_id
        try:
            verdict = judge(path, bytes.fromhex(file_id)).verdict
            parsed = manifest.parse(path.read_bytes(), file_id) if verdict is Verdict.WHOLE else None
        except OSError as error:
            self._store.check_online()  # an unplugged disk is no news of its manifests
            if file_id not in self.unread:
                self._note(unreadable(f"the manifest of file {file_id[:12]}", error).message)
            self.unread.add(file_id)
            return False
        except ManifestInvalid:
            parsed = None
        self._store.check_in_place()
        self.unread.discard(file_id)
        if parsed is not None:
            self._index.add_manifest(file_id, (row.sha256 for row in parsed.chunks))
        elif verdict is not Verdict.GONE:
            self._note(f"the manifest of file {file_id[:12]} is damaged and was moved to trash/corrupt")
            self._trash.set_apart(path, MANIFEST)
        return parsed is not None

    def take_back(self, path: Path, file_id: str) -> bool:
        """A file of trash/corrupt with this SHA-256: whether it is a manifest, which is kept then."""
        with disk.storage_errors(path, "reading"):
            data = path.read_bytes()
        try:
            parsed = manifest.parse(data, file_id)
        except ManifestInvalid:
            return path.name.endswith(MANIFEST)
        if not self.has(file_id):
            self.write(file_id, data)
            self.add(file_id, parsed)
            self._note(f"the manifest of file {file_id[:12]} was in trash/corrupt but is intact: restored")
        return True
