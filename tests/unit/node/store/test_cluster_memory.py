"""A store remembers its cluster, and obeys no other and no older one (SPEC R8)."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import pytest

from tests.unit.node.store.stores import DAY, UPLOAD, Chunk, Stores, oserror, placed, put, replaced
from zchunk.errors import (
    ForeignStore,
    StorageFailure,
)
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.system import disk


def test_the_first_store_is_remembered_with_its_highest_commit(stores: Stores, store: ChunkStore) -> None:
    assert (store.store_id, store.commit_number) == (None, 0)
    store.seen_store("cluster", 7)
    store.seen_store("cluster", 7)
    store.seen_store("cluster", 9)
    again = stores.crash_and_reopen(store)
    assert (again.store_id, again.commit_number) == ("cluster", 9)


@pytest.mark.row("R8")
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


@pytest.mark.row("R8")
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
    with pytest.raises(ForeignStore, match="restored from a backup"):
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
