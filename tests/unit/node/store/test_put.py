"""A chunk is put: checked, durable, counted once, or refused and nothing left."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.node.store.stores import (
    OTHER_UPLOAD,
    UPLOAD,
    Chunk,
    Stores,
    check,
    chunk_path,
    files_below,
    keep,
    oserror,
    put,
    replaced,
)
from zchunk.content import hashing
from zchunk.errors import (
    ChunkCorrupt,
    InvalidUsage,
    NoSpace,
    NotAllowed,
    StorageFailure,
    StorageUnavailable,
    StoreOffline,
)
from zchunk.node.store import chunk_files, chunk_index
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.system import buffers, disk


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
    spy(store.parts.index, "intend", lambda *_: "intent")
    spy(store.parts.index, "add", lambda *_: "row")
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


@pytest.mark.row("S1")
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


@pytest.mark.row("S1")
def test_the_sha256_decides(store: ChunkStore) -> None:
    chunk, other = Chunk(1), Chunk(2)
    with pytest.raises(ChunkCorrupt, match="SHA-256"):
        store.put(other.sha256, chunk.blake3, chunk.data, UPLOAD)
    assert store.count == 0
    assert store.flag is None


@pytest.mark.row("U7")
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
    store.parts.index._db.execute_sql("PRAGMA max_page_count = 1")
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
        store.parts.flag = "another put's sync failed"

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
    while not store.parts.turn._waiters and len(made) == 1:  # type: ignore[attr-defined]
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
    real = store._storing._record

    def rebuilt_before(*args: Any) -> None:
        store.rebuild_index()
        assert store.count == 1
        real(*args)

    monkeypatch.setattr(store._storing, "_record", rebuilt_before)
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
    while not store.parts.closing:
        pass
    with pytest.raises(StoreOffline):
        put(store, Chunk(2))
    go_on.set()
    putting.join()
    closing.join()
    monkeypatch.undo()
    assert stores.reopen().hashes() == [Chunk(1).sha256]
