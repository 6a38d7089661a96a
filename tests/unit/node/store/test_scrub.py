"""A store that verifies its chunks finds every flipped bit."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.unit.node.store.stores import Chunk, Stores, chunk_path, files_below, flip_a_bit, put, replaced
from zchunk.content import hashing
from zchunk.node.store.chunk_store import ChunkStore


@pytest.mark.row("R2")
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
    with store.parts.index_lock:
        store.parts.index.add(Chunk(1).sha256, 9000, bytes(32))
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
