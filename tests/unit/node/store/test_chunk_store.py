"""node/store/chunk_store.py and its parts: never a false "have", never a lost chunk, whatever happens
when."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.descriptors import open_descriptors
from zchunk.clock import ManualClock
from zchunk.content import hashing
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    AlreadyRunning,
    ChunkCorrupt,
    ForeignStore,
    InvalidUsage,
    ManifestInvalid,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    StorageUnavailable,
    StoreOffline,
    Unreadable,
    UnsupportedVersion,
    ZchunkError,
)
from zchunk.node.store import chunk_files, chunk_index, chunk_store
from zchunk.node.store.chunk_index import LEASE_S
from zchunk.node.store.chunk_readers import ChunkReaders
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.reconcile import Reconciler
from zchunk.node.store.store_folder import MARKER
from zchunk.system import buffers, disk

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
    with store._index_lock:
        for row in made.chunks[:1]:
            store._index.lease(row.sha256, upload_id, 0.0)
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
    with store._index_lock:
        assert store._index.chunks() == {h: store.size_of(h) for h in hashes}
        assert store._trash.bytes == sum(p.stat().st_size for p, _ in store._trash.entries())


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
        store._readers.close()
        store._index.close()
        store._folder.release()

    def crash_and_reopen(self, store: ChunkStore) -> ChunkStore:
        self.crash(store)
        return self.reopen()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    opened = Stores(tmp_path / "store")
    yield opened
    for store in opened.open:
        if not store._folder.closed and (opened.root / MARKER).exists():
            check(store)
        store.close()


@pytest.fixture
def store(stores: Stores) -> ChunkStore:
    return stores.create()


# -- the folder -----------------------------------------------------------------------


def test_a_new_store_has_its_marker_and_folders(stores: Stores, store: ChunkStore) -> None:
    about = json.loads((stores.root / MARKER).read_text())
    assert about == {"version": 1, "uuid": store.uuid, "created": "2023-11-14T22:13:20.000Z"}
    names = {"chunks", "tmp", "manifests", "trash", "index.sqlite", "lock", MARKER}
    assert names <= set(os.listdir(stores.root))
    assert (store.count, store.used, store.hashes(), store.flag) == (0, 0, [], None)


def test_the_uuid_stays(stores: Stores, store: ChunkStore) -> None:
    uuid = store.uuid
    store.close()
    assert stores.create().uuid == uuid


@pytest.mark.parametrize("what", ["index.sqlite", "chunks"])
def test_a_store_without_its_marker_is_offline_and_untouched(
    stores: Stores, store: ChunkStore, what: str
) -> None:
    put(store, Chunk(1))
    store.close()
    os.unlink(stores.root / MARKER)
    if what == "chunks":
        os.unlink(stores.root / "index.sqlite")
    before = files_below(stores.root)
    for opening in (stores.create, stores.reopen):
        with pytest.raises(StoreOffline, match="plugged in"):
            opening()
    assert files_below(stores.root) == before


@pytest.mark.parametrize("clean", [True, False])
def test_a_folder_of_chunks_that_is_not_mounted_is_offline(
    stores: Stores, store: ChunkStore, clean: bool
) -> None:
    """Only `chunks` is a disk of its own: the marker and the index are there."""
    put(store, Chunk(1))
    store.close() if clean else stores.crash(store)
    (stores.root / "chunks").rename(stores.root / "away")
    (stores.root / "chunks").mkdir()
    with pytest.raises(StoreOffline, match=r"chunks is empty; is its disk mounted\?"):
        stores.reopen()
    (stores.root / "chunks").rmdir()
    (stores.root / "away").rename(stores.root / "chunks")
    again = stores.reopen()
    assert again.hashes() == [Chunk(1).sha256]
    again.end_leases(UPLOAD)
    again.trash(again.hashes(), "s", stores.clock.wall() + DAY)
    assert stores.crash_and_reopen(again).hashes() == []


def test_opening_never_makes_a_store_where_a_disk_is_missing(stores: Stores) -> None:
    with pytest.raises(StoreOffline):
        stores.reopen()
    assert not stores.root.exists()
    stores.root.mkdir()
    with pytest.raises(StoreOffline):
        stores.reopen()
    assert os.listdir(stores.root) == []


def test_a_kill_during_creation_is_no_offline_store(stores: Stores) -> None:
    stores.root.mkdir(parents=True)
    (stores.root / "lock").touch()
    (stores.root / ".zchunk-0.tmp").write_bytes(b"{")
    put(stores.create(), Chunk(1))
    assert not (stores.root / ".zchunk-0.tmp").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uuid": 3}', "\xff"])
def test_a_damaged_marker_is_said_not_replaced(stores: Stores, store: ChunkStore, text: str) -> None:
    store.close()
    (stores.root / MARKER).write_text(text)
    with pytest.raises(StorageFailure, match="damaged"):
        stores.create()
    assert (stores.root / MARKER).read_text() == text


def test_a_store_of_a_later_version_is_refused(stores: Stores, store: ChunkStore) -> None:
    store.close()
    (stores.root / MARKER).write_text(json.dumps({"version": 2, "uuid": "x"}))
    with pytest.raises(UnsupportedVersion):
        stores.reopen()


def test_one_process_per_store(stores: Stores, store: ChunkStore) -> None:
    with pytest.raises(AlreadyRunning):
        stores.reopen()
    with pytest.raises(AlreadyRunning):
        stores.create()
    store.close()
    stores.reopen()


def test_the_lock_goes_with_a_failed_opening(stores: Stores, store: ChunkStore) -> None:
    store.close()
    with replaced(disk, "sync_folder", oserror(errno.EIO)), pytest.raises(StorageFailure):
        stores.reopen()
    stores.reopen()


def offline_calls(store: ChunkStore, chunk: Chunk, file_id: str) -> list[Callable[[], object]]:
    made = manifest_of(Chunk(77))
    return [
        lambda: put(store, Chunk(99)),
        lambda: put(store, chunk),
        lambda: store.lease(chunk.sha256, UPLOAD, 0.0),
        lambda: store.leased(chunk.sha256, 0.0),
        lambda: store.end_leases(UPLOAD),
        lambda: store.read_block(chunk.sha256, 0, 1),
        lambda: store.free(),
        lambda: store.reserve_space(1),
        lambda: store.put_manifest(made.file_id, made.canonical, UPLOAD),
        lambda: store.manifest(file_id),
        lambda: store.forget_manifest(file_id),
        lambda: store.garbage(BIG),
        lambda: store.trash([chunk.sha256], "s", BIG),
        lambda: store.purge_trash(BIG),
        lambda: store.seen_store("s", 5),
        lambda: store.verify(chunk.sha256),
        lambda: store.drop_corrupt(chunk.sha256),
        lambda: store.rebuild_index(),
    ]


@pytest.mark.parametrize("call", range(18))
def test_offline_every_path_refuses_and_changes_nothing(stores: Stores, store: ChunkStore, call: int) -> None:
    chunk, trashed = Chunk(1), Chunk(2)
    put(store, chunk, trashed)
    store.end_leases(UPLOAD)
    store.trash([trashed.sha256], "s", 0.0)
    file_id = keep(store, Chunk(3))
    calls = offline_calls(store, chunk, file_id)
    assert len(calls) == 18
    os.rename(stores.root / MARKER, stores.root / "aside")
    before = files_below(stores.root)
    with pytest.raises(StoreOffline):
        calls[call]()
    assert files_below(stores.root) == before
    os.rename(stores.root / "aside", stores.root / MARKER)
    assert store.read_block(chunk.sha256, 0, 5) == chunk.data[:5]


def test_a_closed_store_refuses(store: ChunkStore) -> None:
    put(store, Chunk(1))
    store.close()
    store.close()
    for call in offline_calls(store, Chunk(1), "0" * 64):
        with pytest.raises(StoreOffline):
            call()


# -- put ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 300_000])
@pytest.mark.parametrize("kind", [bytes, memoryview, bytearray])
def test_a_stored_chunk_is_there(
    stores: Stores, store: ChunkStore, size: int, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    chunk = Chunk(size, size)
    store.put(chunk.sha256, chunk.blake3, kind(chunk.data), UPLOAD)
    assert store.has(chunk.sha256)
    assert (store.count, store.used, store.size_of(chunk.sha256)) == (1, size, size)
    assert chunk_path(stores.root, chunk).read_bytes() == chunk.data
    assert os.listdir(stores.root / "tmp") == []
    assert store.leased(chunk.sha256, stores.clock.wall())


def test_a_pooled_buffer_is_stored(store: ChunkStore) -> None:
    chunk = Chunk(1, 3 * 4096 + 5)
    buffer = buffers.BufferPool(1 << 20).try_reserve(len(chunk.data))
    assert buffer is not None
    buffer.view(len(chunk.data))[:] = chunk.data
    store.put(chunk.sha256, chunk.blake3, buffer.view(len(chunk.data)), UPLOAD)
    assert store.verify(chunk.sha256)


def test_put_is_durable_step_by_step(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """PITFALLS, write rule 1: bytes, sync, rename, folder; the parent first for a new folder."""
    calls = []

    def spy(module: object, name: str, what: Any) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (calls.append(what(*a)), real(*a))[1])

    spy(os, "pwrite", lambda *_: "write")
    spy(disk, "sync_file", lambda _fd: "sync file")
    spy(os, "replace", lambda *_: "rename")
    spy(os, "mkdir", lambda *_: "mkdir")
    spy(disk, "sync_folder", lambda path: f"sync {path.name}")
    spy(store._index, "intend", lambda *_: "intent")
    spy(store._index, "add", lambda *_: "row")
    chunk = Chunk(1, 8192)
    put(store, chunk)
    folder = chunk.hex[:2]
    seen = [call for at, call in enumerate(calls) if call != "write" or calls[at - 1] != "write"]
    assert seen == [
        *("intent", "write", "sync file", "mkdir", "sync chunks"),
        *("rename", f"sync {folder}", "row"),
    ]
    calls.clear()
    put(store, next(c for c in map(Chunk, range(2, 9999)) if c.hex[:2] == folder))
    assert "mkdir" not in calls
    assert "sync chunks" not in calls


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_refused_by_the_prefilter_alone(
    stores: Stores, store: ChunkStore, seed: int
) -> None:
    chunk, rng = Chunk(seed), random.Random(seed)
    data = bytearray(chunk.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    before = hashing.counts["sha256"]
    with pytest.raises(ChunkCorrupt, match="BLAKE3"):
        store.put(chunk.sha256, chunk.blake3, data, UPLOAD)
    assert hashing.counts["sha256"] == before
    assert files_below(stores.root / "chunks") == files_below(stores.root / "tmp") == []
    assert not store.has(chunk.sha256)


def test_the_sha256_decides(store: ChunkStore) -> None:
    chunk, other = Chunk(1), Chunk(2)
    with pytest.raises(ChunkCorrupt, match="SHA-256"):
        store.put(other.sha256, chunk.blake3, chunk.data, UPLOAD)
    assert store.count == 0
    assert store.flag is None


def test_a_chunk_that_is_there_is_only_leased(stores: Stores, store: ChunkStore) -> None:
    chunk = Chunk(1)
    put(store, chunk)
    stamp = chunk_path(stores.root, chunk).stat()
    before = hashing.counts.copy()
    put(store, chunk, upload=OTHER_UPLOAD)
    assert chunk_path(stores.root, chunk).stat().st_ino == stamp.st_ino
    assert hashing.counts == before
    store.end_leases(UPLOAD)
    assert store.leased(chunk.sha256, stores.clock.wall())
    assert store.count == 1


def test_a_chunk_too_large_is_refused(store: ChunkStore) -> None:
    with pytest.raises(InvalidUsage):
        store.put(bytes(32), bytes(32), bytes(64 * 1024 * 1024 + 70_000), UPLOAD)


def test_capacity_is_a_wall_behind_the_reservation(stores: Stores) -> None:
    stores.capacity = 10_000
    store = stores.create()
    put(store, Chunk(1, 6000))
    with pytest.raises(NoSpace):
        put(store, Chunk(2, 6000))
    assert files_below(stores.root / "tmp") == []


@pytest.mark.parametrize("step", ["pwrite", "replace", "mkdir"])
def test_a_full_disk_leaves_nothing_and_the_store_goes_on(
    stores: Stores, store: ChunkStore, step: str
) -> None:
    chunk = Chunk(1)
    with replaced(os, step, oserror(errno.ENOSPC)), pytest.raises(NoSpace, match="free some space"):
        put(store, chunk)
    assert files_below(stores.root / "chunks") == files_below(stores.root / "tmp") == []
    assert not store.has(chunk.sha256)
    assert store.flag is None
    put(store, chunk)


@pytest.mark.parametrize("next_step", ["put", "purge_trash"])
def test_what_a_failed_write_left_is_removed_later_when_it_cannot_be_at_once(
    stores: Stores, store: ChunkStore, next_step: str
) -> None:
    full = oserror(errno.ENOSPC)
    with replaced(os, "pwrite", full), replaced(os, "unlink", oserror(errno.EROFS)), pytest.raises(NoSpace):
        put(store, Chunk(1))
    assert len(files_below(stores.root / "tmp")) == 1
    if next_step == "put":
        put(store, Chunk(2))
    else:
        store.purge_trash(0.0)
    assert files_below(stores.root / "tmp") == []


def test_a_file_that_may_not_be_there_and_cannot_be_removed_is_looked_for_at_the_next_opening(
    stores: Stores, store: ChunkStore
) -> None:
    first, second = same_folder(2)
    put(store, first)
    short, stale = oserror(errno.ENOMEM), oserror(errno.ESTALE)
    with (
        replaced(disk, "sync_folder", short),
        replaced(os, "unlink", stale),
        pytest.raises(StorageUnavailable),
    ):
        put(store, second)
    assert store.hashes() == [first.sha256]
    store.close()
    assert stores.reopen().hashes() == sorted([first.sha256, second.sha256])


def test_a_full_index_is_no_space_and_no_chunk(stores: Stores, store: ChunkStore) -> None:
    store._index._db.execute_sql("PRAGMA max_page_count = 1")
    chunks = [Chunk(seed, 10) for seed in range(400)]
    with pytest.raises(NoSpace):
        put(store, *chunks)
    held = store.count
    assert held < 400
    again = stores.crash_and_reopen(store)
    assert again.count in (held, held + 1)  # one may be whole without a row


@pytest.mark.parametrize("step", ["sync_file", "sync_folder"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV])
def test_a_failed_sync_flags_the_store_until_it_is_opened_again(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    chunk, held = Chunk(1), Chunk(2)
    put(store, held)
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(disk, step, lambda it: (calls.append(it), oserror(number)()))
        with pytest.raises(StorageFailure):
            put(store, chunk)
    assert len(calls) == 1  # never tried again
    assert not store.has(chunk.sha256)
    assert files_below(stores.root / "tmp") == []
    assert not chunk_path(stores.root, chunk).exists()
    assert store.flag
    for refused in (lambda: put(store, chunk), lambda: keep(store, chunk), lambda: store.reserve_space(1)):
        with pytest.raises(StorageFailure, match="until the node is restarted"):
            refused()
    with pytest.raises(StorageFailure, match="until the node is restarted"):
        store.free()
    assert store.read_block(held.sha256, 0, 9) == held.data[:9]
    store.close()
    again = stores.reopen()
    assert again.hashes() == [held.sha256]
    put(again, chunk)


def test_a_failed_sync_of_the_folder_takes_the_renamed_chunk_away_again(
    stores: Stores, store: ChunkStore
) -> None:
    first, second = same_folder(2)
    put(store, first)
    with replaced(disk, "sync_folder", oserror(errno.EIO)), pytest.raises(StorageFailure):
        put(store, second)
    assert store.flag
    assert files_below(stores.root / "chunks") == [f"{first.hex[:2]}/{first.hex}"]
    again = stores.crash_and_reopen(store)
    assert again.hashes() == [first.sha256]


def same_folder(count: int) -> list[Chunk]:
    found: dict[str, list[Chunk]] = {}
    for seed in range(9999):
        chunk = Chunk(seed, 10)
        found.setdefault(chunk.hex[:2], []).append(chunk)
        if len(found[chunk.hex[:2]]) == count:
            return found[chunk.hex[:2]]
    raise AssertionError("no such chunks")


@pytest.mark.parametrize("step", ["intend", "add"])
def test_an_index_that_fails_flags_too(stores: Stores, store: ChunkStore, step: str) -> None:
    """Else a node whose index is broken would go on offering its space."""

    def fail(*_: Any) -> None:
        raise StorageFailure("the chunk index failed")

    with replaced(chunk_index.ChunkIndex, step, fail), pytest.raises(StorageFailure):
        put(store, Chunk(1))
    assert store.flag
    with pytest.raises(StorageFailure, match="until the node is restarted"):
        store.free()
    assert not store.has(Chunk(1).sha256)


@pytest.mark.parametrize(
    ("is_read_only", "why"),
    [
        (True, "writing to .*/tmp is not permitted: its disk is mounted read-only"),
        (False, "Permission denied"),
    ],
)
def test_a_store_that_may_not_be_written_to_says_so_and_serves_what_it_has(
    store: ChunkStore, is_read_only: bool, why: str
) -> None:
    """And takes chunks again by itself, once it may."""
    held = Chunk(1)
    put(store, held)
    with (
        replaced(os, "access", lambda path, mode, **_: False),
        replaced(disk, "is_read_only", lambda path: is_read_only),
    ):
        for refused in (store.free, lambda: store.reserve_space(1)):
            with pytest.raises(NotAllowed, match=why):
                refused()
        assert store.read_block(held.sha256, 0, 9) == held.data[:9]
    assert store.flag is None
    assert store.free() > 0
    put(store, Chunk(2))


def test_a_failed_write_flags_too(store: ChunkStore) -> None:
    with replaced(os, "pwrite", oserror(errno.EIO)), pytest.raises(StorageFailure):
        put(store, Chunk(1))
    assert store.flag


def test_a_put_beside_the_failed_sync_of_another_is_not_acknowledged(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a failed sync once: a second one's success proves nothing."""

    def flag_then_sync(fd: int) -> None:
        store.flag = "another put's sync failed"

    monkeypatch.setattr(disk, "sync_file", flag_then_sync)
    with pytest.raises(StorageFailure):
        put(store, Chunk(1))
    assert store.count == 0


def test_unplugged_during_a_put_is_offline(stores: Stores, store: ChunkStore) -> None:
    real = disk.sync_file

    def unplug(fd: int) -> None:
        real(fd)
        os.rename(stores.root, stores.root.with_name("unplugged"))

    with replaced(disk, "sync_file", unplug), pytest.raises(StoreOffline):
        put(store, Chunk(1))
    assert store.flag is None
    os.rename(stores.root.with_name("unplugged"), stores.root)


def test_threads_store_the_same_and_other_chunks(stores: Stores, store: ChunkStore) -> None:
    chunks = [Chunk(seed, 5000) for seed in range(40)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        mine = chunks[:]
        random.Random(seed).shuffle(mine)
        try:
            for chunk in mine:
                put(store, chunk, upload=f"{seed:032x}")
                assert store.read_block(chunk.sha256, 10, 90) == chunk.data[10:100]
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.hashes() == sorted(c.sha256 for c in chunks)
    assert all(store.leased(c.sha256, stores.clock.wall()) for c in chunks)


def test_a_second_put_of_a_chunk_waits_and_writes_nothing(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on, made = threading.Event(), threading.Event(), []
    real_sync, real_write = disk.sync_file, chunk_files._write_file

    def wait(fd: int) -> None:
        inside.set()
        assert go_on.wait(30)
        real_sync(fd)

    monkeypatch.setattr(disk, "sync_file", wait)
    monkeypatch.setattr(chunk_files, "_write_file", lambda *a: (made.append(a), real_write(*a)))
    first = threading.Thread(target=put, args=(store, Chunk(1)))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=put, args=(store, Chunk(1)), kwargs={"upload": OTHER_UPLOAD})
    second.start()
    while not store._turn._waiters and len(made) == 1:  # type: ignore[attr-defined]
        pass
    go_on.set()
    first.join()
    second.join()
    assert len(made) == 1
    store.end_leases(UPLOAD)
    assert store.leased(Chunk(1).sha256, stores.clock.wall())


def test_a_rebuild_in_the_middle_of_a_put_counts_the_chunk_once(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store._record

    def rebuilt_before(*args: Any) -> None:
        store.rebuild_index()
        assert store.count == 1
        real(*args)

    monkeypatch.setattr(store, "_record", rebuilt_before)
    put(store, Chunk(1))
    check(store)


def test_close_waits_for_a_put_that_began(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    real = disk.sync_file

    def wait(fd: int) -> None:
        inside.set()
        assert go_on.wait(30)
        real(fd)

    monkeypatch.setattr(disk, "sync_file", wait)
    putting = threading.Thread(target=put, args=(store, Chunk(1)))
    putting.start()
    assert inside.wait(30)
    closing = threading.Thread(target=store.close)
    closing.start()
    while not store._closing:
        pass
    with pytest.raises(StoreOffline):
        put(store, Chunk(2))
    go_on.set()
    putting.join()
    closing.join()
    monkeypatch.undo()
    assert stores.reopen().hashes() == [Chunk(1).sha256]


# -- crashes --------------------------------------------------------------------------


def intent(stores: Stores, chunk: Chunk) -> None:
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db, db:
        db.execute("INSERT INTO _intent (sha256) VALUES (?)", (chunk.sha256,))


def intents(stores: Stores) -> int:
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM _intent").fetchone()[0])


def placed(stores: Stores, chunk: Chunk, data: bytes | None = None) -> Path:
    path = chunk_path(stores.root, chunk)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(chunk.data if data is None else data)
    return path


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("state", ["intent", "temp", "half a temp", "renamed", "renamed, no intent"])
def test_each_state_between_intent_and_row(
    stores: Stores, store: ChunkStore, state: str, clean: bool
) -> None:
    held, chunk = Chunk(1), Chunk(2)
    put(store, held)
    store.close() if clean else stores.crash(store)
    if state != "renamed, no intent":
        intent(stores, chunk)
    if "temp" in state:
        (stores.root / "tmp" / f"{chunk.hex}.0").write_bytes(chunk.data[: 100 if "half" in state else None])
    if "renamed" in state:
        placed(stores, chunk)
    again = stores.reopen()
    # A clean close has waited for every put, so there only intents are looked after.
    found = state == "renamed" or (state == "renamed, no intent" and not clean)
    assert again.has(chunk.sha256) is found
    assert again.has(held.sha256)
    assert os.listdir(stores.root / "tmp") == []
    assert intents(stores) == 0
    assert again.leased(chunk.sha256, stores.clock.wall()) is found  # its own lease was lost
    if not found:
        put(again, chunk)
    check(again)


def test_a_chunk_found_after_a_kill_is_read_from_the_disk_and_its_folder_synced(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between rename and folder sync: in the cache it is there, on the disk perhaps not."""
    stores.crash(store)
    path = placed(stores, Chunk(1))
    calls = []
    real_sync, real_drop = disk.sync_folder, disk.drop_cache
    monkeypatch.setattr(disk, "sync_folder", lambda at: (calls.append(at), real_sync(at)))
    monkeypatch.setattr(disk, "drop_cache", lambda fd: (calls.append("drop"), real_drop(fd)))
    assert stores.reopen().count == 1
    assert path.parent in calls
    assert "drop" in calls


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
@pytest.mark.parametrize("known", ["intent", "listing", "row"])
def test_a_damaged_file_under_a_final_name_is_no_chunk(
    stores: Stores, store: ChunkStore, damage: str, known: str
) -> None:
    chunk = Chunk(1)
    if known == "row":
        put(store, chunk)
    stores.crash(store)
    path = placed(stores, chunk)
    if damage == "flip":
        flip_a_bit(path, 7)
    else:
        path.write_bytes({"cut": chunk.data[:-1], "empty": b"", "longer": chunk.data + b"x"}[damage])
    if known == "intent":
        intent(stores, chunk)
    again = stores.reopen()
    if known == "row" and damage == "flip":  # same size: the scrub's work, not the opening's
        assert not again.verify(chunk.sha256)
        again.drop_corrupt(chunk.sha256)
    assert not again.has(chunk.sha256)
    assert not path.exists()
    assert files_below(stores.root / "trash") == [f"corrupt/2023-11-14-{chunk.hex}"]
    put(again, chunk)


def test_a_chunk_that_vanished_is_not_held_after_a_crash(stores: Stores, store: ChunkStore) -> None:
    gone, held = Chunk(1), Chunk(2)
    put(store, gone, held)
    stores.crash(store)
    chunk_path(stores.root, gone).unlink()
    assert stores.reopen().hashes() == [held.sha256]


def test_foreign_files_in_the_folders_stay(stores: Stores, store: ChunkStore) -> None:
    chunk = Chunk(1)
    put(store, chunk)
    stores.crash(store)
    strange = [
        stores.root / "chunks" / "notes.txt",
        stores.root / "chunks" / chunk.hex[:2] / "readme",
        stores.root / "chunks" / chunk.hex[:2] / ("ff" * 32),
        stores.root / "manifests" / "readme",
        stores.root / "trash" / "readme",
    ]
    (stores.root / "trash" / "mine").mkdir()
    strange.append(stores.root / "trash" / "mine" / "x")
    for path in strange:
        path.write_bytes(b"mine")
    again = stores.reopen()
    again.purge_trash(stores.clock.wall() + 1000 * DAY)
    assert all(path.exists() for path in strange)
    assert again.hashes() == ([chunk.sha256])


def test_after_a_clean_close_no_chunk_is_read_or_listed(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, *map(Chunk, range(20)))
    store.close()
    before = hashing.counts.copy()
    monkeypatch.setattr(Reconciler, "_reconcile_chunks", lambda self: pytest.fail("listed"))
    again = stores.reopen()
    assert again.count == 20
    assert hashing.counts == before


def test_after_a_crash_chunks_with_a_row_are_listed_but_not_read(stores: Stores, store: ChunkStore) -> None:
    put(store, *map(Chunk, range(20)))
    stores.crash(store)
    before = hashing.counts.copy()
    again = stores.reopen()
    assert hashing.counts == before
    assert again.count == 20


def test_a_power_cut_cannot_bring_the_clean_flag_of_an_earlier_run_back(
    stores: Stores, store: ChunkStore
) -> None:
    """The flag is taken off durably before the first put, not in the write-ahead log alone."""
    store.close()
    again = stores.reopen()
    copy = stores.root.with_name("without-log.sqlite")
    copy.write_bytes((stores.root / "index.sqlite").read_bytes())
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT value FROM _setting WHERE key = 'clean'").fetchone() == ("",)
    again.close()
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db:
        assert db.execute("SELECT value FROM _setting WHERE key = 'clean'").fetchone() == (
            (stores.root / "closed").read_text(),
        )


@pytest.mark.parametrize(
    "how", ["missing", "garbage", "zeros", "empty", "other schema", "cut", "broken page", "broken half"]
)
@pytest.mark.parametrize("clean", [True, False])
def test_without_a_usable_index_the_folder_tells_everything(
    stores: Stores, store: ChunkStore, how: str, clean: bool
) -> None:
    chunks = [Chunk(seed, 2000) for seed in range(60)]
    put(store, *chunks)
    file_id = keep(store, *chunks[:1])
    store.close() if clean else stores.crash(store)
    spoil(stores.root / "index.sqlite", how)
    again = stores.reopen()
    assert again.hashes() == sorted(c.sha256 for c in chunks)
    assert again.manifests() == [file_id]
    assert chunks[0].sha256 not in again.garbage(BIG)
    assert len(again.garbage(BIG)) == 59
    set_aside = [n for n in os.listdir(stores.root) if "damaged" in n and not n.endswith(("-wal", "-shm"))]
    assert len(set_aside) == len(again.notes) == (0 if how in ("missing", "empty") else 1)
    check(again)
    again.close()
    assert stores.reopen().notes == []


def spoil(path: Path, how: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:  # all of it into the one file
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if how == "other schema":
            db.execute("UPDATE _setting SET value = '99' WHERE key = 'schema'")
            db.commit()
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "broken half":
        half = len(data) // 8192 * 4096
        path.write_bytes(data[:half] + random.Random(1).randbytes(len(data) - half))
    elif how == "broken page":
        path.write_bytes(data[:4096] + random.Random(1).randbytes(len(data) - 4096))
    elif how != "other schema":
        new = {"garbage": b"garbage!" * 999, "zeros": bytes(len(data)), "empty": b"", "cut": data[:5000]}
        path.write_bytes(new[how])


def test_a_second_damaged_index_is_set_aside_beside_the_first(stores: Stores, store: ChunkStore) -> None:
    for _ in range(2):
        store.close()
        (stores.root / "index.sqlite").write_bytes(b"garbage!" * 999)
        store = stores.reopen()
    assert {"index.sqlite.damaged-1", "index.sqlite.damaged-2"} <= set(os.listdir(stores.root))


def test_an_index_that_may_not_be_opened_is_not_taken_for_damaged(stores: Stores, store: ChunkStore) -> None:
    store.close()
    os.unlink(stores.root / "index.sqlite")
    (stores.root / "index.sqlite").mkdir()
    with pytest.raises(StorageUnavailable, match="unable to open"):
        stores.reopen()
    assert (stores.root / "index.sqlite").is_dir()


#: What SQLite says -> what it is.
INDEX_ERRORS = {
    "SQLITE_FULL": NoSpace,
    "SQLITE_NOMEM": StorageUnavailable,
    "SQLITE_IOERR_NOMEM": StorageUnavailable,
    "SQLITE_CANTOPEN": StorageUnavailable,
    "SQLITE_BUSY_SNAPSHOT": StorageUnavailable,
    "SQLITE_READONLY_DBMOVED": NotAllowed,
    "SQLITE_IOERR_READ": StorageFailure,
    "SQLITE_CORRUPT": StorageFailure,
}


@pytest.mark.parametrize("name", INDEX_ERRORS)
def test_only_a_broken_index_makes_the_store_refuse_until_a_restart(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    """And peewee's rollback, which fails too then, does not cover what SQLite said first."""
    error: Exception = MemoryError()
    if name != "SQLITE_NOMEM":
        error = sqlite3.OperationalError("what SQLite says")
        error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    with replaced(store._index._db, "execute", fail), pytest.raises(INDEX_ERRORS[name]) as caught:
        put(store, Chunk(1))
    assert type(caught.value) is INDEX_ERRORS[name]
    if name == "SQLITE_NOMEM":
        assert caught.value.message.endswith("failed: no memory is left")
    assert bool(store.flag) is (INDEX_ERRORS[name] is StorageFailure)
    assert not store.has(Chunk(1).sha256)
    if not store.flag:
        put(store, Chunk(1))


@pytest.mark.parametrize("name", ["SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN"])
def test_an_index_on_a_full_disk_has_no_space_whatever_sqlite_calls_it(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    with (
        replaced(store._index._db, "execute", fail),
        replaced(disk, "free_bytes", lambda path: 4096),
        pytest.raises(NoSpace, match="free some space"),
    ):
        put(store, Chunk(1))
    assert store.flag is None
    put(store, Chunk(1))


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_CANTOPEN", "SQLITE_IOERR_NOMEM"])
def test_an_index_that_cannot_be_checked_is_not_set_aside(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    put(store, Chunk(1))
    store.close()
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(self: chunk_index.ChunkIndex) -> None:
        with chunk_index._errors(self.path):
            raise error

    with replaced(chunk_index.ChunkIndex, "is_sound", fail), pytest.raises(ZchunkError):
        stores.reopen()
    assert not list(stores.root.glob("*.damaged*"))
    assert stores.reopen().hashes() == [Chunk(1).sha256]


def test_rebuild_index_repairs_rows_while_the_store_runs(stores: Stores, store: ChunkStore) -> None:
    held, gone, new, cut = map(Chunk, range(4))
    put(store, held, gone, cut)
    file_id = keep(store, held)
    chunk_path(stores.root, gone).unlink()
    placed(stores, new)
    placed(stores, cut, cut.data[:-1])
    with store._index_lock:
        store._index.remove_manifest(file_id)
    store.rebuild_index()
    assert store.hashes() == sorted([held.sha256, new.sha256])
    assert store.manifests() == [file_id]
    assert held.sha256 not in store.garbage(BIG)


def test_unplugged_while_it_is_opened_makes_no_chunk_corrupt(stores: Stores, store: ChunkStore) -> None:
    stores.crash(store)
    path = placed(stores, Chunk(1))

    def unplug(_fd: int) -> None:
        os.rename(stores.root / MARKER, stores.root / "aside")
        oserror(errno.EIO)()

    with replaced(disk, "drop_cache", unplug), pytest.raises(StoreOffline):
        stores.reopen()
    assert path.exists()
    os.rename(stores.root / "aside", stores.root / MARKER)
    assert stores.reopen().count == 1


PATCHED = [
    "open",
    "pwrite",
    "fdatasync",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "ftruncate",
    "rmdir",
]


def run_killed(step: int, action: Callable[[Callable[[bytes], object]], None]) -> tuple[bool, bytes]:
    """Runs `action(say)` in a process that dies before its `step`-th disk call. Returns
    whether it got through, and what it said before it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(step)
            action(lambda data: os.write(writing, data))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137)
    return code == 0, said


def die_at(step: int) -> None:
    left = [step]

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return real(*args, **kwargs)

        return call

    for name in PATCHED:
        setattr(os, name, dying(getattr(os, name)))


def every_kill(action: Callable[[Callable[[bytes], object]], None], then: Callable[[bytes], None]) -> int:
    """Kills `action` before each of its disk calls in turn; `then(said)` after each."""
    for step in range(1, 1000):
        done, said = run_killed(step, action)
        then(said)
        if done:
            return step - 1
    pytest.fail("it never gets through")


def test_killed_at_any_disk_call_of_put_the_chunk_is_whole_or_absent(stores: Stores) -> None:
    """PITFALLS T2: nothing acknowledged is lost, nothing is held that is not whole."""
    chunks = iter(Chunk(seed, 9000) for seed in range(1000))
    told: list[bytes] = []
    now: list[Chunk] = []

    def action(say: Callable[[bytes], object]) -> None:
        store = stores.create()
        put(store, now[0])
        say(now[0].sha256)

    def then(said: bytes) -> None:
        told.extend([said] if said else [])
        now[:] = [next(chunks)]
        if not (stores.root / MARKER).exists():
            return
        store = stores.reopen()
        check(store)
        assert all(store.has(sha256) for sha256 in told)
        assert os.listdir(stores.root / "tmp") == []
        assert not [n for n in os.listdir(stores.root) if n.endswith(".tmp")]
        assert intents(stores) == 0
        store.close()

    now.append(next(chunks))
    assert every_kill(action, then) > 12
    assert len(told) == 1


def test_killed_at_any_disk_call_of_trash_and_manifests(stores: Stores) -> None:
    chunks = [Chunk(seed, 5000) for seed in range(4)]
    made = manifest_of(Chunk(50))
    step = [0]

    def action(say: Callable[[bytes], object]) -> None:
        store = stores.create()
        store.end_leases(UPLOAD)
        store.end_leases(chunk_index.RECOVERED)
        moved = store.trash([c.sha256 for c in chunks], "cluster", stores.clock.wall())
        say(b"".join(moved))
        bring(store, made)
        store.seen_store("cluster", step[0] + 1)
        store.forget_manifest(made.file_id)
        store.purge_trash(stores.clock.wall() + 9 * DAY)

    def then(said: bytes) -> None:
        store = stores.reopen()
        check(store)
        if said:
            assert store.count == 0
        kept = {p.name for p in (stores.root / "manifests").iterdir()}
        assert set(store.manifests()) == kept <= {made.file_id}
        step[0] = store.commit_number
        put(store, *chunks)
        store.close()

    first = stores.create()
    first.seen_store("cluster", 0)  # a node meets its tracker before it is given a manifest
    put(first, *chunks)
    first.close()
    assert every_kill(action, then) > 20


def test_a_store_that_lost_its_memory_of_the_cluster_obeys_nobody(stores: Stores) -> None:
    """Until it has been found out that the tracker knows all files that are kept here."""
    store = stores.create()
    assert not store.adopt_store("cluster", 4), "a new store has lost nothing"
    store.seen_store("cluster", 7)
    keep(store, Chunk(50))
    assert not store.adopt_store("cluster", 8)
    assert store.commit_number == 7
    store.close()
    for name in ("cluster.json", "index.sqlite"):
        (stores.root / name).unlink()
    store = stores.reopen()
    with pytest.raises(ForeignStore, match=r"cluster\.json is missing"):
        store.seen_store("cluster", 6)
    assert (store.store_id, store.commit_number) == (None, 0)
    assert store.adopt_store("cluster", 6)
    store.seen_store("cluster", 6)
    assert (store.store_id, store.commit_number) == ("cluster", 6)


# -- reading --------------------------------------------------------------------------


def test_the_space_held_for_a_chunk_is_its_own_and_counted_once(stores: Stores) -> None:
    """The last chunk that fits is never refused for a moment in which it counts twice."""
    stores.capacity = 10 * 9000
    store = stores.create()
    seen = []
    add = store._held.add

    def watched(*args: Any) -> None:
        add(*args)
        seen.append(store._held.room(1 << 60))

    store._held.add = watched  # type: ignore[assignment, method-assign]
    for number in range(10):
        assert store.reserve_space(9000)
        chunk = Chunk(number)
        store.put(chunk.sha256, chunk.blake3, chunk.data, UPLOAD, 9000)
    assert seen == [9000 * left for left in range(9, -1, -1)]
    assert store._held._reserved == 0
    assert not store.reserve_space(1)


@pytest.mark.parametrize("again", [False, True])
def test_the_space_held_for_a_chunk_that_is_not_stored_is_given_back(store: ChunkStore, again: bool) -> None:
    chunk = Chunk(1)
    if again:
        put(store, chunk)
    assert store.reserve_space(9000)
    bad = chunk.data if again else b"x" + chunk.data[1:]
    with contextlib.suppress(ChunkCorrupt):
        store.put(chunk.sha256, chunk.blake3, bad, UPLOAD, 9000)
    assert store._held._reserved == 0


def test_read_block_reads_any_range(store: ChunkStore) -> None:
    chunk = Chunk(1, 10_000)
    put(store, chunk)
    rng = random.Random(1)
    for _ in range(200):
        offset = rng.randrange(10_001)
        length = rng.randrange(10_001 - offset)
        assert store.read_block(chunk.sha256, offset, length) == chunk.data[offset : offset + length]


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 5), (0, 9001), (9000, 1), (9001, 0), (5, -1), (1 << 70, 1)]
)
def test_a_range_outside_the_chunk_is_the_callers_mistake(
    store: ChunkStore, offset: int, length: int
) -> None:
    put(store, Chunk(1))
    with pytest.raises(InvalidUsage):
        store.read_block(Chunk(1).sha256, offset, length)


def test_unknown_chunks_are_not_found(store: ChunkStore) -> None:
    for call in (store.size_of, store.verify, store.drop_corrupt, lambda h: store.read_block(h, 0, 1)):
        with pytest.raises(NotFound):
            call(bytes(32))
    with pytest.raises(NotFound):
        store.lease(bytes(32), UPLOAD, 0.0)
    assert not store.has(bytes(32))


def test_a_cut_file_and_a_lost_one_are_found_out_by_a_look(stores: Stores, store: ChunkStore) -> None:
    cut, lost = Chunk(1), Chunk(2)
    put(store, cut, lost)
    os.truncate(chunk_path(stores.root, cut), 50)
    assert store.read_block(cut.sha256, 0, 50) == cut.data[:50]
    chunk_path(stores.root, lost).unlink()
    for chunk in (cut, lost):
        with pytest.raises(Unreadable):  # a read alone proves nothing
            store.read_block(chunk.sha256, 0, 51)
        assert not store.verify(chunk.sha256)
        assert store.drop_corrupt(chunk.sha256)
    assert (store.count, store.used) == (0, 0)
    assert files_below(stores.root / "trash") == [f"corrupt/2023-11-14-{cut.hex}"]


def test_open_descriptors_are_bounded_and_all_closed_in_the_end(stores: Stores, store: ChunkStore) -> None:
    chunks = [Chunk(seed, 10) for seed in range(100)]
    put(store, *chunks)
    before = len(open_descriptors(stores.root))
    for chunk in chunks + chunks[::-1]:
        assert store.read_block(chunk.sha256, 0, 10) == chunk.data
    assert len(open_descriptors(stores.root)) == before + chunk_store.OPEN_READERS
    store.close()
    assert len(open_descriptors(stores.root)) < before


def test_no_descriptor_is_closed_during_a_read(tmp_path: Path) -> None:
    paths = {bytes([n]): tmp_path / str(n) for n in range(3)}
    for key, path in paths.items():
        path.write_bytes(key)
    readers = ChunkReaders(1)
    with contextlib.ExitStack() as reads:
        fds = {key: reads.enter_context(readers.reading(key, path)) for key, path in paths.items()}
        again = reads.enter_context(readers.reading(b"\x02", paths[b"\x02"]))
        assert again == fds[b"\x02"]  # cached
        readers.drop(b"\x02")
        readers.close()
        for key, fd in fds.items():
            assert os.pread(fd, 1, 0) == key
    for fd in fds.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_file_opened_while_its_chunk_was_dropped_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    readers = ChunkReaders(5)
    real = os.open

    def dropped_meanwhile(*args: Any) -> Any:
        fd = real(*args)
        readers.drop(b"x")
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", dropped_meanwhile)
        with readers.reading(b"x", path) as fd:
            assert os.pread(fd, 3, 0) == b"old"
    path.unlink()
    path.write_bytes(b"new")
    with readers.reading(b"x", path) as fd:
        assert os.pread(fd, 3, 0) == b"new"
    readers.close()


def test_reads_go_on_while_chunks_come_and_go(stores: Stores, store: ChunkStore) -> None:
    chunks = [Chunk(seed, 3000) for seed in range(30)]
    put(store, *chunks)
    problems: list[object] = []
    stop = threading.Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            chunk = rng.choice(chunks)
            try:
                data = store.read_block(chunk.sha256, 100, 500)
            except NotFound:
                continue
            except ZchunkError as error:
                problems.append(error)
                return
            if data != chunk.data[100:600]:
                problems.append("wrong bytes")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(150):
        chunk = random.Random(seed).choice(chunks)
        store.end_leases(UPLOAD)
        store.trash([chunk.sha256], "s", 0.0)
        put(store, chunk)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


# -- space ----------------------------------------------------------------------------


@pytest.fixture
def disk_free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk says it has."""
    free = [1_000_000]
    monkeypatch.setattr(disk, "free_bytes", lambda _path: free[0])
    return free


def test_free_is_the_tighter_of_capacity_and_disk(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity, stores.reserve = 100_000, 5_000
    store = stores.create()
    assert store.free() == 100_000
    put(store, Chunk(1, 10_000))
    assert store.free() == 90_000
    assert store.reserve_space(20_000)
    assert store.free() == 70_000
    disk_free[0] = 50_000
    assert store.free() == 50_000 - 5_000 - 20_000
    disk_free[0] = 100
    assert store.free() == 0
    store.unreserve(20_000)
    disk_free[0] = 1_000_000
    assert store.free() == 90_000


def test_without_a_capacity_the_disk_decides(stores: Stores, disk_free: list[int]) -> None:
    stores.reserve = 1000
    store = stores.create()
    assert store.free() == 999_000
    assert store.reserve_space(999_000)
    assert not store.reserve_space(1)
    assert store.free() == 0


def test_capacity_is_reserved_before_a_transfer(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 30_000
    store = stores.create()
    assert store.reserve_space(20_000)
    assert not store.reserve_space(10_001)
    assert store.reserve_space(10_000)
    store.unreserve(20_000)
    assert store.reserve_space(20_000)


def test_threads_never_reserve_more_than_there_is(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 100
    store = stores.create()
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(store.reserve_space(7))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 100 // 7


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


def test_short_space_purges_the_oldest_trash_first_and_no_more_than_needed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.reserve = 100
    store = stores.create()
    chunks = [Chunk(seed, 1000) for seed in range(4)]
    for age, chunk in enumerate(chunks):
        trashed(store, stores, chunk, days=-age)

    def free(_path: Any) -> Any:
        return 5000 - store._trash.bytes

    monkeypatch.setattr(disk, "free_bytes", free)
    assert store.reserve_space(2400)  # 900 are free: two of the oldest must go
    left = {Path(name).name for name in files_below(stores.root / "trash")}
    assert left == {chunks[0].hex, chunks[1].hex}
    assert len(os.listdir(stores.root / "trash")) == 2
    assert not store.reserve_space(3000)  # more than all trash would give: none is touched
    assert len(files_below(stores.root / "trash")) == 2


def test_capacity_holds_for_chunks_and_trash_together(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 10_000
    store = stores.create()
    for age in range(4):
        trashed(store, stores, Chunk(age, 2000), days=-age)
    assert store.free() == 10_000  # trash makes way
    assert store.reserve_space(3000)
    assert len(files_below(stores.root / "trash")) == 3
    assert not store.reserve_space(7001)
    assert len(files_below(stores.root / "trash")) == 3
    assert store.reserve_space(7000)
    assert files_below(stores.root / "trash") == []


# -- leases, references, garbage, trash ------------------------------------------------


def test_a_lease_lasts_24_hours_and_is_renewed(stores: Stores, store: ChunkStore) -> None:
    chunk, now = Chunk(1), stores.clock.wall()
    put(store, chunk)
    assert LEASE_S == DAY
    assert store.leased(chunk.sha256, now + DAY - 1)
    assert not store.leased(chunk.sha256, now + DAY)
    store.lease(chunk.sha256, UPLOAD, now + 1000)
    assert store.leased(chunk.sha256, now + DAY + 999)
    assert store.garbage(now + DAY + 999) == []
    assert store.garbage(now + DAY + 1000) == [chunk.sha256]


def test_each_upload_has_its_own_lease(stores: Stores, store: ChunkStore) -> None:
    chunk, now = Chunk(1), stores.clock.wall()
    put(store, chunk)
    store.lease(chunk.sha256, OTHER_UPLOAD, now)
    store.end_leases(UPLOAD)
    assert store.leased(chunk.sha256, now)
    store.end_leases(OTHER_UPLOAD)
    assert store.garbage(now) == [chunk.sha256]


@pytest.mark.parametrize("clean", [True, False])
def test_leases_outlive_the_process(stores: Stores, store: ChunkStore, clean: bool) -> None:
    put(store, Chunk(1))
    if clean:
        store.close()
    again = stores.reopen() if clean else stores.crash_and_reopen(store)
    assert again.leased(Chunk(1).sha256, stores.clock.wall() + DAY - 1)


def test_lost_leases_are_made_good_once_after_an_unclean_stop(stores: Stores, store: ChunkStore) -> None:
    """A power cut may take the last commits: the chunk of a running upload must not be garbage."""
    loose, named = Chunk(1), Chunk(2)
    put(store, loose, named)
    keep(store, named)
    store.end_leases(UPLOAD)
    again = stores.crash_and_reopen(store)
    now = stores.clock.wall()
    assert again.garbage(now) == []
    assert not again.leased(named.sha256, now)
    assert again.garbage(now + DAY) == [loose.sha256]
    stores.clock.advance(DAY / 2)
    third = stores.crash_and_reopen(again)
    assert third.garbage(now + DAY) == [loose.sha256]  # not prolonged by each crash
    third.purge_trash(now + 99 * DAY)
    fourth = stores.crash_and_reopen(third)
    assert fourth.garbage(now + DAY) == [loose.sha256]


def test_a_chunk_that_any_kept_manifest_names_is_no_garbage(stores: Stores, store: ChunkStore) -> None:
    now = stores.clock.wall()
    shared, only = Chunk(1, 65536), Chunk(2)
    put(store, shared, only)
    store.end_leases(UPLOAD)
    assert store.garbage(now) == sorted([shared.sha256, only.sha256])
    first = keep(store, shared, only, name="first")
    second = keep(store, shared, name="second")
    assert store.garbage(now) == []
    store.forget_manifest(first)
    assert store.garbage(now) == [only.sha256]
    store.forget_manifest(second)
    assert store.garbage(now) == sorted([shared.sha256, only.sha256])


def test_trash_moves_durably_and_the_numbers_follow(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [Chunk(1), Chunk(2), Chunk(3)]
    put(store, *chunks)
    store.end_leases(UPLOAD)
    synced = []
    real = disk.sync_folder
    monkeypatch.setattr(disk, "sync_folder", lambda path: (synced.append(path.name), real(path)))
    gone = [chunks[0].sha256, chunks[1].sha256]
    assert store.trash([*gone, bytes(32), gone[0]], "cluster-1", stores.clock.wall()) == gone
    assert store.hashes() == [chunks[2].sha256]
    folder = "2023-11-14-cluster-1"
    assert files_below(stores.root / "trash") == sorted(f"{folder}/{h.hex()}" for h in gone)
    assert {folder, "trash", gone[0].hex()[:2], gone[1].hex()[:2]} == set(synced)
    again = stores.crash_and_reopen(store)
    assert again.hashes() == [chunks[2].sha256]


def test_trash_skips_what_was_leased_or_referenced_meanwhile(stores: Stores, store: ChunkStore) -> None:
    now = stores.clock.wall()
    leased, named, loose = Chunk(1), Chunk(2), Chunk(3)
    put(store, leased, named, loose)
    store.end_leases(UPLOAD)
    wanted = store.garbage(now)
    assert len(wanted) == 3
    store.lease(leased.sha256, OTHER_UPLOAD, now)
    keep(store, named)
    assert store.trash(wanted, "s", now) == [loose.sha256]
    assert store.trash(wanted, "s", now) == []
    assert store.hashes() == sorted([leased.sha256, named.sha256])


def test_a_trashed_chunk_can_come_again(stores: Stores, store: ChunkStore) -> None:
    trashed(store, stores, Chunk(1))
    trashed(store, stores, Chunk(1))
    put(store, Chunk(1))
    assert store.verify(Chunk(1).sha256)
    assert len(files_below(stores.root / "trash")) == 1


@pytest.mark.parametrize("store_id", ["", "../../etc", "a/b", ".", "x" * 65, "a\0", "ä"])
def test_a_store_id_that_is_none_never_becomes_a_path(
    stores: Stores, store: ChunkStore, store_id: str
) -> None:
    put(store, Chunk(1))
    store.end_leases(UPLOAD)
    with pytest.raises(ForeignStore):
        store.trash([Chunk(1).sha256], store_id, 0.0)
    with pytest.raises(ForeignStore):
        store.seen_store(store_id, 1)
    assert store.count == 1


def test_purge_takes_only_whole_days_before(stores: Stores, store: ChunkStore) -> None:
    now = stores.clock.wall()
    trashed(store, stores, Chunk(1, 1000), days=-2)
    trashed(store, stores, Chunk(2, 2000), days=-1)
    dropped(store, stores, Chunk(3, 3000))
    assert store.purge_trash(now - 2 * DAY) == 0
    assert store.purge_trash(now - DAY) == 1000
    assert store.purge_trash(now) == 2000
    assert os.listdir(stores.root / "trash") == ["corrupt"]
    assert store.purge_trash(now + DAY) == 3000
    assert os.listdir(stores.root / "trash") == []


def test_trash_is_counted_again_when_opened(stores: Stores, store: ChunkStore) -> None:
    trashed(store, stores, Chunk(1, 1000))
    dropped(store, stores, Chunk(2, 2000))
    store.close()
    assert stores.reopen()._trash.bytes == 3000


def test_a_move_that_fails_keeps_the_chunk(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))
    store.end_leases(UPLOAD)
    with replaced(os, "replace", oserror(errno.EIO)), pytest.raises(StorageFailure):
        store.trash([Chunk(1).sha256], "s", 0.0)
    assert store.has(Chunk(1).sha256)


def test_a_row_that_cannot_be_removed_is_found_by_the_next_opening(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))
    store.end_leases(UPLOAD)

    def fail(_sha256: Any) -> None:
        raise StorageFailure("the index failed")

    with replaced(store._index, "remove", fail), pytest.raises(StorageFailure):
        store.trash([Chunk(1).sha256], "s", 0.0)
    assert not store.has(Chunk(1).sha256)
    store.close()
    assert stores.reopen().count == 0


def test_leases_long_ended_are_forgotten(stores: Stores, store: ChunkStore) -> None:
    now = stores.clock.wall()
    put(store, Chunk(1))
    keep(store, Chunk(1))
    store.purge_trash(now + DAY - 1)
    assert store.leased(Chunk(1).sha256, now)
    store.purge_trash(now + DAY + 1)
    assert not store.leased(Chunk(1).sha256, now)


# -- manifests ------------------------------------------------------------------------


def test_a_manifest_is_kept_durably(stores: Stores, store: ChunkStore) -> None:
    made = manifest_of(Chunk(1, 65536), Chunk(2))
    bring(store, made)
    bring(store, made)
    assert store.manifest(made.file_id) == made.canonical
    again = stores.crash_and_reopen(store)
    assert again.manifests() == [made.file_id]
    again.forget_manifest(made.file_id)
    again.forget_manifest(made.file_id)
    assert again.manifests() == []
    with pytest.raises(NotFound):
        again.manifest(made.file_id)
    assert files_below(stores.root / "trash") == [f"2023-11-14-local/{made.file_id}.manifest"]


# whose a manifest is


def seen(store: ChunkStore, number: int = 5) -> ChunkStore:
    store.seen_store("s", number)
    return store


@pytest.mark.parametrize("how", ["as it is", "reopened", "crashed", "without an index"])
def test_a_manifest_has_its_uploads_lease_until_it_is_known_to_be_a_files(
    stores: Stores, store: ChunkStore, how: str
) -> None:
    made, file = manifest_of(Chunk(1)), manifest_of(Chunk(2), name="known")
    bring(seen(store), made)
    bring(store, file)
    store.know_manifests([file.file_id, "ff" * 32])
    claimed = {made.file_id: stores.clock.wall() + DAY}
    if how == "reopened":
        store.close()
        store = stores.reopen()
    elif how == "crashed":
        store = stores.crash_and_reopen(store)
    elif how == "without an index":
        stores.crash(store)
        os.unlink(stores.root / "index.sqlite")
        stores.clock.advance(3600.0)
        store = stores.reopen()
        claimed = dict.fromkeys([made.file_id, file.file_id], stores.clock.wall() + DAY)
    assert store.claimed_manifests() == claimed
    both = [made.file_id, file.file_id]
    assert store.drop_manifests(both, "s", 5) == []
    stores.clock.advance(DAY)
    ended = sorted(claimed)
    assert sorted(store.drop_manifests(both, "s", 5)) == ended
    assert store.manifests() == sorted(set(both) - set(ended))
    assert store.claimed_manifests() == {}
    assert files_below(stores.root / "trash") == sorted(f"2023-11-15-s/{name}.manifest" for name in ended)


def test_an_upload_that_brings_its_manifest_again_has_it_for_as_long_again(
    stores: Stores, store: ChunkStore
) -> None:
    made = manifest_of(Chunk(1))
    bring(seen(store), made)
    stores.clock.advance(DAY - 1)
    bring(store, made)
    stores.clock.advance(DAY - 1)
    assert store.drop_manifests([made.file_id], "s", 5) == []
    store.know_manifests([made.file_id])
    bring(store, made)
    assert store.claimed_manifests() == {}, "it stays a file's"


@pytest.mark.parametrize(("store_id", "number"), [("other", 9), ("s", 4)])
def test_another_tracker_or_an_older_state_of_it_drops_no_manifest(
    stores: Stores, store: ChunkStore, store_id: str, number: int
) -> None:
    made = manifest_of(Chunk(1))
    bring(seen(store), made)
    stores.clock.advance(9 * DAY)
    with pytest.raises(ForeignStore):
        store.drop_manifests([made.file_id], store_id, number)
    assert store.manifests() == [made.file_id]


def test_a_removed_files_manifest_that_is_brought_again_is_an_uploads(
    stores: Stores, store: ChunkStore
) -> None:
    made = manifest_of(Chunk(1))
    bring(seen(store), made)
    store.know_manifests([made.file_id])
    store.forget_manifest(made.file_id)
    bring(store, made)
    assert store.claimed_manifests() == {made.file_id: stores.clock.wall() + DAY}


def test_an_empty_files_manifest_is_kept(store: ChunkStore) -> None:
    file_id = keep(store)
    assert store.manifests() == [file_id]


def test_a_chunk_named_twice_is_one_reference(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1, 65536))
    store.end_leases(UPLOAD)
    keep(store, Chunk(1, 65536), Chunk(1, 65536))
    assert store.garbage(BIG) == []


@pytest.mark.parametrize("file_id", ["0" * 64, "../../x", "", "index.sqlite"])
def test_a_manifest_under_a_wrong_id_is_refused(stores: Stores, store: ChunkStore, file_id: str) -> None:
    before = files_below(stores.root)
    with pytest.raises(ManifestInvalid):
        store.put_manifest(file_id, manifest_of(Chunk(1)).canonical, UPLOAD)
    with pytest.raises(NotFound):
        store.manifest(file_id)
    store.forget_manifest(file_id)
    assert files_below(stores.root) == before


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_a_manifest_is_noticed_and_mended(
    stores: Stores, store: ChunkStore, seed: int
) -> None:
    made = manifest_of(Chunk(1))
    bring(store, made)
    flip_a_bit(stores.root / "manifests" / made.file_id, seed)
    with pytest.raises(ManifestInvalid):
        store.manifest(made.file_id)
    bring(store, made)
    assert store.manifest(made.file_id) == made.canonical


@pytest.mark.parametrize("clean", [True, False])
def test_manifests_are_what_the_folder_holds(stores: Stores, store: ChunkStore, clean: bool) -> None:
    put(store, Chunk(1), Chunk(2), Chunk(3))
    gone = keep(store, Chunk(1), name="gone")
    new, bad = manifest_of(Chunk(2), name="new"), manifest_of(Chunk(3), name="bad")
    store.end_leases(UPLOAD)
    store.close() if clean else stores.crash(store)
    folder = stores.root / "manifests"
    (folder / gone).unlink()
    (folder / new.file_id).write_bytes(new.canonical)
    (folder / bad.file_id).write_bytes(new.canonical)
    (folder / ".zchunk-1.tmp").write_bytes(b"half")
    again = stores.reopen()
    assert again.manifests() == [new.file_id]
    assert again.garbage(BIG) == sorted([Chunk(1).sha256, Chunk(3).sha256])
    assert files_below(stores.root / "trash") == [f"corrupt/2023-11-14-{bad.file_id}.manifest"]
    assert len(again.notes) == 1
    assert os.listdir(folder) == [new.file_id]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, StorageFailure)])
def test_a_manifest_that_is_not_durable_is_not_kept(
    stores: Stores, store: ChunkStore, number: int, kind: type[ZchunkError]
) -> None:
    with replaced(disk, "sync_file", oserror(number)), pytest.raises(kind):
        keep(store, Chunk(1))
    assert store.manifests() == []
    assert os.listdir(stores.root / "manifests") == []
    assert bool(store.flag) is (number == errno.EIO)


def test_a_large_manifest_has_all_its_references(store: ChunkStore) -> None:
    rows = tuple(ChunkRow(65536, "identity", n.to_bytes(32, "big"), bytes(32), None) for n in range(12_345))
    made = Manifest("large", 65536 * len(rows), bytes(32), 65536, rows)
    bring(store, made)
    with store._index_lock:
        assert all(store._index.referenced(n.to_bytes(32, "big")) for n in (0, 4999, 5000, 12_344))
        assert not store._index.referenced((12_345).to_bytes(32, "big"))


# -- what manifests take, and who may bring them ------------------------------------------------


def long_manifest(chunk: Chunk, name: str = "long") -> Manifest:
    """Of 5,000 chunks, the first of which is `chunk`: some 400 KB."""
    rows = [ChunkRow(65536, "identity", n.to_bytes(32, "big"), bytes(32), None) for n in range(1, 5000)]
    first = ChunkRow(65536, "identity", chunk.sha256, chunk.blake3, None)
    return Manifest(name, 65536 * 5000, bytes(32), 65536, (first, *rows))


def test_a_manifest_of_a_file_that_nobody_puts_here_is_refused(stores: Stores, store: ChunkStore) -> None:
    made, before = long_manifest(Chunk(1)), files_below(stores.root)
    put(store, Chunk(2))
    for upload in (UPLOAD, OTHER_UPLOAD):
        with pytest.raises(NotAllowed, match="offer its chunks first"):
            store.put_manifest(made.file_id, made.canonical, upload)
    assert store.manifests() == []
    assert set(files_below(stores.root)) == {*before, f"chunks/{Chunk(2).hex[:2]}/{Chunk(2).hex}"}


def test_an_upload_brings_one_manifest(store: ChunkStore) -> None:
    made, other = long_manifest(Chunk(1)), long_manifest(Chunk(1), "other")
    put(store, Chunk(1))
    store.put_manifest(made.file_id, made.canonical, UPLOAD)
    store.put_manifest(made.file_id, made.canonical, UPLOAD)
    with pytest.raises(NotAllowed, match="another file"):
        store.put_manifest(other.file_id, other.canonical, UPLOAD)
    put(store, Chunk(1), upload=OTHER_UPLOAD)
    store.put_manifest(other.file_id, other.canonical, OTHER_UPLOAD)
    store.end_leases(UPLOAD)
    third = long_manifest(Chunk(1), "third")
    with pytest.raises(NotAllowed, match="offer its chunks first"):
        store.put_manifest(third.file_id, third.canonical, UPLOAD)
    assert store.manifests() == sorted([made.file_id, other.file_id])


def test_where_a_power_cut_took_the_leases_those_that_stand_for_them_do(
    stores: Stores, store: ChunkStore
) -> None:
    put(store, Chunk(1))
    stores.crash(store)
    os.unlink(stores.root / "index.sqlite")
    again, made = stores.reopen(), long_manifest(Chunk(1))
    again.put_manifest(made.file_id, made.canonical, OTHER_UPLOAD)
    stores.clock.advance(2 * DAY)
    late = long_manifest(Chunk(1), "late")
    with pytest.raises(NotAllowed):
        again.put_manifest(late.file_id, late.canonical, UPLOAD)


def test_manifests_count_against_capacity(stores: Stores) -> None:
    stores.capacity = 2_000_000
    store, made, other = stores.create(), long_manifest(Chunk(1)), long_manifest(Chunk(1), "other")
    put(store, Chunk(1))
    assert store.free() == 2_000_000 - 9000
    store.put_manifest(made.file_id, made.canonical, UPLOAD)
    taken = 2_000_000 - 9000 - store.free()
    assert 2 * len(made.canonical) <= taken < 2 * len(made.canonical) + 4096
    put(store, Chunk(1), upload=OTHER_UPLOAD)
    assert store.reserve_space(store.free() - 1000)
    with pytest.raises(NoSpace, match="no room for a manifest"):
        store.put_manifest(other.file_id, other.canonical, OTHER_UPLOAD)
    assert store.manifests() == [made.file_id]
    store.unreserve(2_000_000 - 9000 - taken - 1000)
    assert store.free() == 2_000_000 - 9000 - taken
    again = stores.crash_and_reopen(store)
    assert again.free() == 2_000_000 - 9000 - taken
    assert not again.reserve_space(2_000_000 - 9000 - taken + 1)
    again.forget_manifest(made.file_id)
    assert again.free() == 2_000_000 - 9000


def test_manifests_leave_the_reserve_free(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.reserve = 200_000_000
    store, made = stores.create(), long_manifest(Chunk(1))
    put(store, Chunk(1))
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 200_500_000)
    with pytest.raises(NoSpace):
        store.put_manifest(made.file_id, made.canonical, UPLOAD)
    assert store.manifests() == os.listdir(stores.root / "manifests") == []
    assert store.reserve_space(500_000)


def test_a_small_file_takes_a_block(stores: Stores) -> None:
    stores.capacity = 100_000
    store = stores.create()
    keep(store)
    assert store.free() == 100_000 - 4096


# -- scrub ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_verify_finds_any_flipped_bit(stores: Stores, store: ChunkStore, seed: int) -> None:
    chunk = Chunk(seed)
    put(store, chunk)
    assert store.verify(chunk.sha256)
    flip_a_bit(chunk_path(stores.root, chunk), seed)
    assert not store.verify(chunk.sha256)
    store.drop_corrupt(chunk.sha256)
    assert not store.has(chunk.sha256)
    assert not store.leased(chunk.sha256, 0.0)
    assert files_below(stores.root / "trash") == [f"corrupt/2023-11-14-{chunk.hex}"]
    put(store, chunk)
    assert store.read_block(chunk.sha256, 0, 9000) == chunk.data


def test_a_good_chunk_costs_the_prefilter_only(store: ChunkStore) -> None:
    put(store, Chunk(1))
    before = hashing.counts.copy()
    assert store.verify(Chunk(1).sha256)
    assert hashing.counts["blake3"] - before["blake3"] == 9000
    assert hashing.counts["sha256"] == before["sha256"]


def test_where_the_index_is_wrong_the_sha256_decides_and_the_index_is_mended(store: ChunkStore) -> None:
    put(store, Chunk(1))
    with store._index_lock:
        store._index.add(Chunk(1).sha256, 9000, bytes(32))
    before = hashing.counts["sha256"]
    assert store.verify(Chunk(1).sha256)
    assert hashing.counts["sha256"] - before == 9000
    assert store.verify(Chunk(1).sha256)
    assert hashing.counts["sha256"] - before == 9000
    assert store.leased(Chunk(1).sha256, 0.0)


def test_a_corrupt_chunk_is_not_served_from_an_open_descriptor(stores: Stores, store: ChunkStore) -> None:
    chunk = Chunk(1)
    put(store, chunk)
    flip_a_bit(chunk_path(stores.root, chunk), 1)
    assert store.read_block(chunk.sha256, 0, 9000) != chunk.data
    store.drop_corrupt(chunk.sha256)
    put(store, chunk)
    assert store.read_block(chunk.sha256, 0, 9000) == chunk.data


def test_a_corrupt_chunk_opened_while_it_is_dropped_is_not_served_later(
    stores: Stores, store: ChunkStore
) -> None:
    chunk = Chunk(1)
    put(store, chunk)
    flip_a_bit(chunk_path(stores.root, chunk), 1)
    real = os.replace

    def read_before(*args: Any) -> None:
        store.read_block(chunk.sha256, 0, 9000)
        real(*args)

    with replaced(os, "replace", read_before):
        store.drop_corrupt(chunk.sha256)
    put(store, chunk)
    assert store.read_block(chunk.sha256, 0, 9000) == chunk.data


# -- the cluster (SPEC R8) --------------------------------------------------------------


def test_the_first_store_is_remembered_with_its_highest_commit(stores: Stores, store: ChunkStore) -> None:
    assert (store.store_id, store.commit_number) == (None, 0)
    store.seen_store("cluster", 7)
    store.seen_store("cluster", 7)
    store.seen_store("cluster", 9)
    again = stores.crash_and_reopen(store)
    assert (again.store_id, again.commit_number) == ("cluster", 9)


@pytest.mark.parametrize(("store_id", "number"), [("other", 100), ("cluster", 8)])
def test_a_foreign_or_older_store_is_refused(
    stores: Stores, store: ChunkStore, store_id: str, number: int
) -> None:
    store.seen_store("cluster", 9)
    with pytest.raises(ForeignStore):
        store.seen_store(store_id, number)
    assert (store.store_id, store.commit_number) == ("cluster", 9)
    again = stores.crash_and_reopen(store)
    with pytest.raises(ForeignStore):
        again.seen_store(store_id, number)


def test_a_foreign_store_trashes_nothing(stores: Stores, store: ChunkStore) -> None:
    store.seen_store("cluster", 9)
    put(store, Chunk(1))
    store.end_leases(UPLOAD)
    with pytest.raises(ForeignStore):
        store.trash([Chunk(1).sha256], "other", 0.0)
    assert store.trash([Chunk(1).sha256], "cluster", 0.0) == [Chunk(1).sha256]


def with_index_of(stores: Stores, before: bytes) -> None:
    """The index is put back from a backup of it alone."""
    (stores.root / "index.sqlite").write_bytes(before)


@pytest.mark.parametrize("end", ["close", "crash"])
def test_an_older_index_is_not_believed_though_it_was_closed_cleanly(
    stores: Stores, store: ChunkStore, end: str
) -> None:
    kept, gone, new = Chunk(1), Chunk(2), Chunk(3)
    put(store, kept, gone)
    store.close()
    older = (stores.root / "index.sqlite").read_bytes()
    again = stores.reopen()
    put(again, new)
    again.end_leases(UPLOAD)
    again.trash([gone.sha256], "s", stores.clock.wall() + 2 * DAY)
    again.close() if end == "close" else stores.crash(again)
    for suffix in ("-wal", "-shm"):
        (stores.root / f"index.sqlite{suffix}").unlink(missing_ok=True)
    with_index_of(stores, older)
    assert stores.reopen().hashes() == sorted([kept.sha256, new.sha256])


def test_an_index_of_an_earlier_release_is_compared_with_the_folder_once(
    stores: Stores, store: ChunkStore
) -> None:
    put(store, Chunk(1))
    store.close()
    (stores.root / "closed").unlink()
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db, db:
        db.execute("UPDATE _setting SET value = '1' WHERE key = 'clean'")
    placed(stores, Chunk(2))
    assert stores.reopen().hashes() == sorted([Chunk(1).sha256, Chunk(2).sha256])


def test_a_clean_close_is_believed_without_a_listing(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))
    store.close()
    placed(stores, Chunk(2))
    assert stores.reopen().hashes() == [Chunk(1).sha256], "nothing was listed"
    assert not (stores.root / "closed").exists(), "in use it is not closed"


def test_a_token_that_cannot_be_read_means_a_listing(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))
    store.close()
    placed(stores, Chunk(2))
    with replaced(Path, "read_text", oserror(errno.EIO)):
        assert stores.reopen().count == 2


def test_a_close_that_fails_at_its_last_step_is_not_a_clean_one(
    stores: Stores, store: ChunkStore, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, Chunk(1))
    with replaced(disk, "sync_file", oserror(errno.EIO)):
        store.close()
    assert "was not closed cleanly" in caplog.text
    placed(stores, Chunk(2))
    assert stores.reopen().count == 2


@pytest.mark.parametrize("what", ["deleted", "older"])
def test_the_number_of_commits_is_not_forgotten_with_its_file(
    stores: Stores, store: ChunkStore, what: str
) -> None:
    store.seen_store("cluster", 5)
    path = stores.root / "cluster.json"
    older = path.read_bytes()
    store.seen_store("cluster", 9)
    store.close()
    path.unlink() if what == "deleted" else path.write_bytes(older)
    again = stores.reopen()
    assert (again.store_id, again.commit_number) == ("cluster", 9)
    with pytest.raises(ForeignStore, match="older"):
        again.seen_store("cluster", 8)
    with pytest.raises(ForeignStore):
        again.seen_store("other", 100)


def test_another_clusters_file_wins_over_the_index(stores: Stores, store: ChunkStore) -> None:
    """Whoever writes it means it."""
    store.seen_store("cluster", 9)
    store.close()
    (stores.root / "cluster.json").write_text('{"store_id": "other", "commit_number": 2}')
    assert stores.reopen().store_id == "other"


def test_the_cluster_is_remembered_without_the_index(stores: Stores, store: ChunkStore) -> None:
    store.seen_store("cluster", 9)
    stores.crash(store)
    os.unlink(stores.root / "index.sqlite")
    assert stores.reopen().store_id == "cluster"


def test_what_could_not_be_remembered_is_not_believed(stores: Stores, store: ChunkStore) -> None:
    with replaced(disk, "sync_file", oserror(errno.EIO)), pytest.raises(StorageFailure):
        store.seen_store("cluster", 9)
    assert store.store_id is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"store_id": "x", "commit_number": "many"}'])
def test_a_damaged_memory_of_the_cluster_is_said(stores: Stores, store: ChunkStore, text: str) -> None:
    store.close()
    (stores.root / "cluster.json").write_text(text)
    with pytest.raises(StorageFailure, match="damaged"):
        stores.reopen()


# -- everything together -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_history_leaves_a_store_that_is_right(stores: Stores, seed: int) -> None:
    """Random operations with crashes in between against a model in memory."""
    rng = random.Random(seed)
    chunks = [Chunk(n, rng.randrange(1, 6000)) for n in range(12)]
    store = stores.create()
    held: set[int] = set()
    named: dict[str, int] = {}
    for _ in range(120):
        n = rng.randrange(len(chunks))
        action = rng.choice(["put", "put", "keep", "forget", "trash", "crash", "close", "rebuild", "rot"])
        if action == "put":
            put(store, chunks[n])
            held.add(n)
        elif action == "keep":
            named[keep(store, chunks[n], name=f"{n}")] = n
        elif action == "forget" and named:
            file_id = rng.choice(sorted(named))
            store.forget_manifest(file_id)
            del named[file_id]
        elif action == "trash":
            now = stores.clock.wall() + 2 * DAY
            moved = store.trash(store.garbage(now), "s", now)
            gone = held - set(named.values())
            assert sorted(moved) == sorted(chunks[g].sha256 for g in gone)
            held -= gone
        elif action == "rot" and n in held:
            flip_a_bit(chunk_path(stores.root, chunks[n]), seed)
            assert not store.verify(chunks[n].sha256)
            store.drop_corrupt(chunks[n].sha256)
            held.discard(n)
        elif action == "rebuild":
            store.rebuild_index()
        elif action in ("crash", "close"):
            store.close() if action == "close" else stores.crash(store)
            store = stores.reopen()
        assert store.hashes() == sorted(chunks[h].sha256 for h in held)
        assert store.manifests() == sorted(named)
    check(store)
