"""A file is removed; chunks that no file names are let go."""

from __future__ import annotations

import pytest

from tests.unit.tracker.store.rows import A, B, commit, digest, digests, make, put, stored, view
from zchunk.content.hashing import inventory_digest
from zchunk.errors import (
    NotFound,
    NotYetStored,
)
from zchunk.tracker.store.store import Removals, TrackerStore


@pytest.mark.row("R4")
def test_a_removed_file_is_gone_and_stays_known_as_removed(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    assert store.remove_file(manifest.file_id, 50) == 2
    assert store.commit_number == 2
    assert store.list_files("") == ([], "")
    assert view(store) == set()
    assert store._database.models.FileChunk.select().count() == 0
    with pytest.raises(NotFound):
        store.resolve("f", unique=False)
    grave = store._database.models.Tombstone.get()
    assert (grave.file_id, grave.name, grave.commit_number, grave.removed_at_ms) == (
        manifest.file_id,
        "f",
        2,
        50,
    )


def test_removing_again_answers_the_same_number(store: TrackerStore) -> None:
    first = put(store, "f", 1, 1)
    second = put(store, "g", 2, 1)
    assert store.remove_file(first.file_id, 50) == 3
    assert store.remove_file(second.file_id, 51) == 4
    assert store.remove_file(first.file_id, 52) == 3
    assert store.commit_number == 4


def test_removing_what_never_was(store: TrackerStore) -> None:
    with pytest.raises(NotFound):
        store.remove_file("f" * 64, 1)
    assert store.commit_number == 0


def test_removals_are_told_in_order_and_paged(store: TrackerStore) -> None:
    records = [put(store, f"f{number}", number, number) for number in range(5)]
    numbers = [store.remove_file(record.file_id, 9) for record in records]
    ids = [record.file_id for record in records]
    assert numbers == [6, 7, 8, 9, 10]
    put(store, "last", 77, 1)
    assert store.removals(0) == Removals(ids, 11, False)
    assert store.removals(7) == Removals(ids[2:], 11, False)
    assert store.removals(0, limit=2) == Removals(ids[:2], 7, True)
    assert store.removals(7, limit=2) == Removals(ids[2:4], 9, True)
    assert store.removals(9, limit=2) == Removals(ids[4:], 11, False)
    assert store.removals(11) == Removals([], 11, False)


@pytest.mark.row("R7")
def test_release_frees_only_what_no_committed_file_names(store: TrackerStore) -> None:
    """SPEC R7."""
    one, two = make("one", [1, 2]), make("two", [2, 3])
    for peer_id in (A, B):
        store.add_holdings(peer_id, digests([1, 2, 3, 4]), 1)
    commit(store, one)
    commit(store, two)
    assert store.release(A, digests([5, 4, 1, 2, 3, 4])) == digests([5, 4])
    assert store.inventory_summary(A) == (3, inventory_digest(digests([1, 2, 3])))
    assert store.inventory_summary(B)[0] == 4
    store.remove_file(one.file_id, 5)
    assert store.release(A, digests([1, 2, 3])) == digests([1])
    store.remove_file(two.file_id, 6)
    assert store.release(A, digests([1, 2, 3])) == digests([1, 2, 3])
    assert store.inventory_summary(A) == (0, bytes(32))


def test_a_released_chunk_counts_no_more_for_a_commit(store: TrackerStore) -> None:
    """The rows vanish before the node deletes: no commit can slip in between."""
    manifest = stored(store, make("f", [1, 2]))
    assert store.release(B, [digest(2)]) == [digest(2)]
    with pytest.raises(NotYetStored):
        commit(store, manifest)
