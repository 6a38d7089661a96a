"""Who holds which chunk, and who has it already (U7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.tracker.store.rows import (
    A,
    B,
    C,
    D,
    commit,
    digest,
    digests,
    found,
    holders,
    make,
    stored,
    view,
)
from zchunk.content.hashing import inventory_digest
from zchunk.errors import (
    NotFound,
)
from zchunk.tracker.store.store import TrackerStore

# -- holdings ---------------------------------------------------------------------------------


def test_holdings_are_counted_once(store: TrackerStore) -> None:
    assert store.add_holdings(A, digests([1, 2, 2]), 10) == 2
    assert store.add_holdings(A, digests([2, 3]), 11) == 1
    assert store.inventory_summary(A) == (3, inventory_digest(digests([1, 2, 3])))
    assert store.inventory_summary(B) == (0, bytes(32))


def test_adding_nothing_is_nothing(store: TrackerStore) -> None:
    assert store.add_holdings(A, [], 10) == 0
    assert store.drop_holdings(A, []) == 0
    assert store.release(A, []) == []
    assert store.files_of([]) == []


def test_repeating_a_holding_keeps_its_time(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1]), [A])
    commit(store, manifest, distributed=False)
    store.add_holdings(A, [digest(1)], 999)
    assert holders(store.locate(manifest.file_id)) == [[(A, 10)]]


def test_dropping_returns_how_many_there_were(store: TrackerStore) -> None:
    store.add_holdings(A, digests([1, 2, 3]), 10)
    store.add_holdings(B, digests([1]), 10)
    assert store.drop_holdings(A, digests([1, 1, 2, 7])) == 2
    assert store.inventory_summary(A) == (1, digest(3))
    assert store.inventory_summary(B) == (1, digest(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.add_holdings(D, [digest(1)], 1),
        lambda store: store.drop_holdings(D, [digest(1)]),
        lambda store: store.inventory_summary(D),
        lambda store: store.replace_inventory(D, [], 1),
        lambda store: store.release(D, [digest(1)]),
        lambda store: store.mark_unavailable(D, digest(1)),
        lambda store: store.files_on(D),
    ],
)
def test_an_unknown_peer_is_named(store: TrackerStore, call: Any) -> None:
    with pytest.raises(NotFound, match=D):
        call(store)


def test_replacing_an_inventory_tells_what_was_lost_and_which_files_that_touches(
    store: TrackerStore,
) -> None:
    store.add_holdings(A, digests([1, 2, 3, 4]), 10)
    touched, _ = commit(store, make("touched", [1, 2]), distributed=False)
    commit(store, make("whole", [3]), distributed=False)
    change = store.replace_inventory(A, digests([5, 3, 2, 5]), 20)
    assert (change.added, change.lost) == (1, 2)
    assert change.files_touched == {touched.file_id}
    assert store.inventory_summary(A) == (3, inventory_digest(digests([2, 3, 5])))


def test_replacing_by_the_same_changes_nothing(store: TrackerStore) -> None:
    store.add_holdings(A, digests(range(2500)), 10)
    before = store.inventory_summary(A)
    change = store.replace_inventory(A, digests(reversed(range(2500))), 20)
    assert (change.added, change.lost, change.files_touched) == (0, 0, frozenset())
    assert store.inventory_summary(A) == before


def test_an_unavailable_copy_counts_no_more_until_it_was_checked_or_stored_anew(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1]), [A])
    commit(store, manifest, distributed=False)
    assert store.mark_unavailable(A, digest(1)) is True
    assert store.mark_unavailable(A, digest(1)) is False
    assert store.mark_unavailable(A, digest(2)) is False
    assert holders(store.locate(manifest.file_id)) == [[]]
    assert store.locate(manifest.file_id).peer_ids == ()
    assert store.files_on(A) == []
    assert view(store) == {(manifest.file_id, 0, A, digest(1), 10, False)}
    # the node still holds a file of that name, so its inventory is as it says
    assert store.inventory_summary(A) == (1, digest(1))
    assert store.replace_inventory(A, [digest(1)], 15).added == 0
    assert holders(store.locate(manifest.file_id)) == [[]]
    # An upload that finds it there has not read it either.
    assert store.add_holdings(A, [digest(1)], 20) == 0
    assert holders(store.locate(manifest.file_id)) == [[]]
    assert store.mark_whole(A, [digest(1)]) == [digest(1)]
    assert holders(store.locate(manifest.file_id)) == [[(A, 10)]]
    store.mark_unavailable(A, digest(1))
    store.drop_holdings(A, [digest(1)])
    assert store.add_holdings(A, [digest(1)], 30) == 1
    assert holders(store.locate(manifest.file_id)) == [[(A, 30)]]
    assert store.inventory_summary(A) == (1, digest(1))


# -- who holds a chunk (U7) -------------------------------------------------------------------


def test_chunks_are_found_whether_a_file_names_them_or_not_earliest_holder_first(store: TrackerStore) -> None:
    store.add_holdings(C, digests([1]), 10)
    store.add_holdings(B, digests([1, 2]), 20)
    store.add_holdings(A, digests([1]), 20)
    assert found(store, [2, 1, 7, 1], [A, B, C]) == [[B], [C, A, B], [], [C, A, B]]
    assert found(store, [1], [A, B, C], limit=2) == [[C, A]]
    assert found(store, [], [A]) == []


def test_copies_that_cannot_be_read_now_are_not_found(store: TrackerStore) -> None:
    store.add_holdings(A, digests([1, 2]), 10)
    store.add_holdings(B, digests([1]), 20)
    store.mark_unavailable(A, digest(2))
    assert found(store, [1, 2], [B, C, D]) == [[B], []]


def test_more_chunks_than_a_statement_takes_are_found_in_their_order(store: TrackerStore) -> None:
    numbers = list(range(2000))
    store.add_holdings(A, digests(numbers[::2]), 10)
    assert found(store, numbers, [A]) == [[] if number % 2 else [A] for number in numbers]
