"""The files `chunks/ab/<sha256>`: checked and written durably, listed.

Responsible for bytes on the disk; whether they are still right is `verification.py`'s to say. Whether
a chunk counts as held, what index and leases say of it, and what a failure means to the store
is the matter of `chunk_store.py`, the one caller. Thread-safe, as long as a chunk has one
writer at a time.

May not happen here: a file under its final name whose bytes are not durable.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from pathlib import Path

from zchunk.content import hashing, manifest
from zchunk.errors import ChunkCorrupt, InvalidUsage, ZchunkError
from zchunk.node.store.store_folder import HEX_DIGEST
from zchunk.system import disk

_SHARD = re.compile(r"[0-9a-f]{2}")
#: The largest chunk, and what encryption or compression may add to it.
_MAX_STORED = manifest.MAX_CHUNK_SIZE + 64 * 1024


class ChunkFiles:
    """Chunks by name; what has no chunk's name and place is not ours."""

    def __init__(self, chunks: Path, tmp: Path) -> None:
        """Both folders exist, durably, and so do those in `chunks`."""
        self._chunks, self._tmp = chunks, tmp
        self._serial = itertools.count()
        self._lock = threading.Lock()
        #: a chunk that is not held may have its file: only a listing finds it
        self.in_doubt = False
        #: temporary files that could not be removed
        self._stray: set[Path] = set()
        with disk.storage_errors(chunks, "listing"):
            #: names of the folders in `chunks` that are durable; guarded by _lock
            self._ready = set(os.listdir(chunks))

    @property
    def is_new(self) -> bool:
        """Whether no chunk was ever stored here."""
        with self._lock:
            return not any(_SHARD.fullmatch(name) for name in self._ready)

    def path(self, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._chunks / name[:2] / name

    def write(self, sha256: bytes, view: disk.Writable, *, replacing: bool = False) -> None:
        """Durable under its final name on return. On an error neither name is left, but what was
        there before: with `replacing` a file under the final name, also once it was replaced."""
        temp = self._tmp / f"{sha256.hex()}.{next(self._serial)}"
        path, written = self.path(sha256), temp
        try:
            _write_file(temp, view)
            self.prepare_folder(sha256)
            with disk.storage_errors(path, "storing"):
                os.replace(temp, path)
                written = path
                disk.sync_folder(path.parent)
        except ZchunkError:
            self._undo(written, temp, replacing)
            raise
        self.sweep()

    def _undo(self, written: Path, temp: Path, replacing: bool) -> None:
        if written is temp:
            if not disk.discard(temp):
                self._stray.add(temp)
        elif not replacing and not disk.discard(written):
            self.in_doubt = True

    def sweep(self) -> None:
        """Removes temporary files of writes that failed, where even that was refused then."""
        for path in list(self._stray):
            if disk.discard(path):
                self._stray.discard(path)

    def prepare_folder(self, sha256: bytes) -> None:
        """Makes `chunks/ab` durably, once: a chunk is not durable in a folder that is not."""
        folder = self.path(sha256).parent
        with self._lock:
            if folder.name in self._ready:
                return
            with disk.storage_errors(folder, "making"):
                folder.mkdir(exist_ok=True)
                disk.sync_folder(self._chunks)
            self._ready.add(folder.name)

    def sync_folder_of(self, sha256: bytes) -> None:
        """The chunk's name is durable on return. Raises StorageFailure."""
        folder = self.path(sha256).parent
        with disk.storage_errors(folder, "syncing"):
            disk.sync_folder(folder)

    def listed(self) -> list[tuple[bytes, int]]:
        """All chunk files by name and size, unread."""
        found = []
        with disk.storage_errors(self._chunks, "listing"):
            for folder in sorted(self._chunks.iterdir()):
                if folder.is_dir():
                    found += _chunk_files(folder)
        return found


def check_bytes(sha256: bytes, blake3: bytes, view: disk.Writable) -> None:
    """SPEC S1: what is stored is what was promised, by the cheap digest first.

    Raises ChunkCorrupt, InvalidUsage (too large); neither is retryable."""
    if memoryview(view).nbytes > _MAX_STORED:
        raise InvalidUsage(f"a chunk of {memoryview(view).nbytes} bytes is too large to store")
    if hashing.blake3(view) != blake3:
        raise ChunkCorrupt(f"chunk {sha256.hex()[:12]} does not match its BLAKE3", chunk=sha256.hex())
    if hashing.sha256(view) != sha256:
        raise ChunkCorrupt(f"chunk {sha256.hex()[:12]} does not match its SHA-256", chunk=sha256.hex())


def _write_file(path: Path, view: disk.Writable) -> None:
    """A new file with these bytes: durable on return, its name not."""
    writer = disk.DirectWriter(path)
    try:
        writer.write_at(view, 0)
        writer.sync()
    finally:
        writer.close()


def _chunk_files(folder: Path) -> list[tuple[bytes, int]]:
    """Raises OSError."""
    with os.scandir(folder) as entries:
        return [
            (bytes.fromhex(entry.name), entry.stat(follow_symlinks=False).st_size)
            for entry in entries
            if HEX_DIGEST.fullmatch(entry.name) and entry.name[:2] == folder.name
        ]
