"""What tests of a store share: chunks, a store that is opened again and again, what must hold of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from zchunk.clock import ManualClock
from zchunk.content import hashing
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.node.store.chunk_store import ChunkStore

UPLOAD, OTHER_UPLOAD = "a" * 32, "b" * 32

DAY = 24 * 3600.0

BIG = 1 << 60


class Chunk:
    """Random bytes and their digests."""

    def __init__(self, seed: int, size: int = 9000) -> None:
        self.data = random.Random(seed).randbytes(size)
        self.sha256 = hashlib.sha256(self.data).digest()  # not through `hashing`: that one counts
        self.blake3 = blake3(self.data).digest()

    @property
    def hex(self) -> str:
        return self.sha256.hex()


def chunk_path(root: Path, chunk: Chunk) -> Path:
    return root / "chunks" / chunk.hex[:2] / chunk.hex


def put(store: ChunkStore, *chunks: Chunk, upload: str = UPLOAD) -> None:
    for chunk in chunks:
        store.put(chunk.sha256, chunk.blake3, memoryview(chunk.data), upload)


def manifest_of(*chunks: Chunk, name: str = "file") -> Manifest:
    """A file that consists of chunks: all but the last have the size of the first."""
    rows = tuple(ChunkRow(len(c.data), "identity", c.sha256, c.blake3, None) for c in chunks)
    content = b"".join(c.data for c in chunks)
    return Manifest(name, len(content), hashlib.sha256(content).digest(), 65536, rows)


def keep(store: ChunkStore, *chunks: Chunk, name: str = "file") -> str:
    return bring(store, manifest_of(*chunks, name=name))


def bring(store: ChunkStore, made: Manifest) -> str:
    """By an upload that had a chunk of it here, which is no longer leased."""
    upload_id = made.file_id[:32]
    with store.parts.index_lock:
        for row in made.chunks[:1]:
            store.parts.index.lease(row.sha256, upload_id, 0.0)
    store.put_manifest(made.file_id, made.canonical, upload_id)
    return made.file_id


def flip_a_bit(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def oserror(number: int) -> Callable[..., None]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextlib.contextmanager
def replaced(module: object, name: str, new: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, new)
        yield


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def check(store: ChunkStore) -> None:
    """What must hold of any open store: its numbers, its folder, its index and its bytes agree."""
    hashes = store.hashes()
    assert hashes == sorted(set(hashes))
    assert store.count == len(hashes)
    assert store.used == sum(store.size_of(h) for h in hashes)
    assert store.digest == hashing.inventory_digest(hashes)
    listed = {p.name for p in (store.root / "chunks").rglob("*") if p.is_file()}
    assert {h.hex() for h in hashes} <= listed
    for h in hashes:
        data = store.read_block(h, 0, store.size_of(h))
        assert hashing.sha256(data) == h
        assert store.verify(h)
    with store.parts.index_lock:
        assert store.parts.index.chunks() == {h: store.size_of(h) for h in hashes}
        assert store.parts.trash.bytes == sum(p.stat().st_size for p, _ in store.parts.trash.entries())


class Stores:
    """Opens one folder again and again; `crash` leaves everything as a kill would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock()
        self.capacity: int | None = None
        self.reserve = 0
        self.open: list[ChunkStore] = []

    def create(self) -> ChunkStore:
        made = ChunkStore.create_or_open(
            self.root, capacity=self.capacity, reserve=self.reserve, clock=self.clock
        )
        self.open.append(made)
        return made

    def reopen(self) -> ChunkStore:
        made = ChunkStore(self.root, capacity=self.capacity, reserve=self.reserve, clock=self.clock)
        self.open.append(made)
        return made

    def crash(self, store: ChunkStore) -> None:
        """The process is gone: its locks and descriptors with it, nothing else done."""
        self.open.remove(store)
        store.parts.readers.close()
        store.parts.index.close()
        store.parts.folder.release()

    def crash_and_reopen(self, store: ChunkStore) -> ChunkStore:
        self.crash(store)
        return self.reopen()


def placed(stores: Stores, chunk: Chunk, data: bytes | None = None) -> Path:
    path = chunk_path(stores.root, chunk)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(chunk.data if data is None else data)
    return path


def trashed(store: ChunkStore, stores: Stores, *chunks: Chunk, days: float = 0) -> None:
    put(store, *chunks)
    store.end_leases(UPLOAD)
    when = stores.clock.wall() + days * DAY
    assert store.trash([c.sha256 for c in chunks], "cluster", when) == [c.sha256 for c in chunks]


def dropped(store: ChunkStore, stores: Stores, chunk: Chunk) -> None:
    """To trash/corrupt."""
    put(store, chunk)
    flip_a_bit(chunk_path(stores.root, chunk), 3)
    assert store.drop_corrupt(chunk.sha256)


# whose a manifest is
def seen(store: ChunkStore, number: int = 5) -> ChunkStore:
    store.seen_store("s", number)
    return store
