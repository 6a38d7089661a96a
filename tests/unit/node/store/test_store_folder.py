"""The folder of a store: its marker, its lock, and a disk that is not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable

import pytest

from tests.unit.node.store.stores import (
    BIG,
    DAY,
    UPLOAD,
    Chunk,
    Stores,
    files_below,
    keep,
    manifest_of,
    oserror,
    put,
    replaced,
)
from zchunk.errors import (
    AlreadyRunning,
    StorageFailure,
    StoreOffline,
    UnsupportedVersion,
)
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.store_folder import MARKER
from zchunk.system import disk


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
        with pytest.raises(StoreOffline, match="disk connected"):
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


@pytest.mark.row("R8")
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
