"""Leases and references keep chunks; what nobody names goes to the trash, and then for good."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.unit.node.store.stores import (
    DAY,
    OTHER_UPLOAD,
    UPLOAD,
    Chunk,
    Stores,
    dropped,
    files_below,
    keep,
    oserror,
    put,
    replaced,
    trashed,
)
from zchunk.errors import (
    ForeignStore,
    StorageFailure,
)
from zchunk.node.store.chunk_index import LEASE_S
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.system import disk


@pytest.mark.row("R7")
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


@pytest.mark.row("R7")
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


@pytest.mark.row("S4")
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


@pytest.mark.row("R7")
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
    assert stores.reopen().parts.trash.bytes == 3000


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

    with replaced(store.parts.index, "remove", fail), pytest.raises(StorageFailure):
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
