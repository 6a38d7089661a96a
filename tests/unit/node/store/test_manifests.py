"""Manifests that a store keeps, what they take, and who may bring them."""

from __future__ import annotations

import errno
import os

import pytest

from tests.unit.node.store.stores import (
    BIG,
    DAY,
    OTHER_UPLOAD,
    UPLOAD,
    Chunk,
    Stores,
    bring,
    files_below,
    flip_a_bit,
    keep,
    manifest_of,
    oserror,
    put,
    replaced,
    seen,
)
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    ForeignStore,
    ManifestInvalid,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    ZchunkError,
)
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.system import disk

# -- manifests --------------------------------------------------------------------------------


@pytest.mark.row("R4")
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


@pytest.mark.row("D1")
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
    with store.parts.index_lock:
        assert all(store.parts.index.referenced(n.to_bytes(32, "big")) for n in (0, 4999, 5000, 12_344))
        assert not store.parts.index.referenced((12_345).to_bytes(32, "big"))


# -- what manifests take, and who may bring them ----------------------------------------------


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
    with pytest.raises(NoSpace, match="no space for a manifest"):
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
