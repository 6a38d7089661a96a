"""Chunks are read at any range, by descriptors that are bounded."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.descriptors import open_descriptors
from tests.unit.node.store.stores import UPLOAD, Chunk, Stores, chunk_path, files_below, put
from zchunk.errors import (
    ChunkCorrupt,
    InvalidUsage,
    NotFound,
    Unreadable,
    ZchunkError,
)
from zchunk.node.store import open_store
from zchunk.node.store.chunk_readers import ChunkReaders
from zchunk.node.store.chunk_store import ChunkStore


def test_the_space_held_for_a_chunk_is_its_own_and_counted_once(stores: Stores) -> None:
    """The last chunk that fits is never refused for a moment in which it counts twice."""
    stores.capacity = 10 * 9000
    store = stores.create()
    seen = []
    add = store.parts.held.add

    def watched(*args: Any) -> None:
        add(*args)
        seen.append(store.parts.held.room(1 << 60))

    store.parts.held.add = watched  # type: ignore[assignment, method-assign]
    for number in range(10):
        assert store.reserve_space(9000)
        chunk = Chunk(number)
        store.put(chunk.sha256, chunk.blake3, chunk.data, UPLOAD, 9000)
    assert seen == [9000 * left for left in range(9, -1, -1)]
    assert store.parts.held._reserved == 0
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
    assert store.parts.held._reserved == 0


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
    assert len(open_descriptors(stores.root)) == before + open_store.OPEN_READERS
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
