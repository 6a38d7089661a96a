"""What the tracker's statements cost as a cluster grows: in steps of SQLite's machine, which
depend on no clock. scripts/bench tracker has the times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.tracker.store.rows import A, B, C, commit, digests, make, register
from zchunk.tracker.rules.health import Slice
from zchunk.tracker.store.store import TrackerStore

_STEP = 20


def steps(store: TrackerStore, call: Callable[[], object]) -> int:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    connection = store._database.connection.connection()
    connection.set_progress_handler(step, _STEP)
    call()
    connection.set_progress_handler(None, 0)
    return count


def file_of(store: TrackerStore, first: int, chunks: int) -> str:
    numbers = range(first, first + chunks)
    store.add_holdings(A, digests(numbers), 1)
    store.add_holdings(B, digests(numbers), 1)
    return commit(store, make(f"f{first}", numbers))[0].file_id


def cold(store: TrackerStore, file_id: str) -> int:
    store._listing.remembered.clear()
    return steps(store, lambda: store.locate(file_id))


def test_locate_grows_with_the_file_and_no_faster(store: TrackerStore) -> None:
    small, large = file_of(store, 0, 1_000), file_of(store, 1_000, 10_000)
    first, second = cold(store, small), cold(store, large)
    assert first < second < 20 * first


@pytest.mark.parametrize("when", ["committed", "located", "a copy came", "a copy went"])
def test_a_file_that_is_remembered_is_located_for_next_to_nothing(store: TrackerStore, when: str) -> None:
    file_id = file_of(store, 0, 10_000)
    if when == "located":
        cold(store, file_id)
    elif when == "a copy came":
        store.add_holdings(C, digests([5_000]), 1)
    elif when == "a copy went":
        store.drop_holdings(A, digests([5_000]))
    again = steps(store, lambda: store.locate(file_id))
    assert 100 * again < cold(store, file_id)


def test_the_numbers_of_what_was_reported_together_are_read_in_a_row(store: TrackerStore) -> None:
    """And not by looking for each digest."""
    hashes = digests(range(10_000))
    store.add_holdings(A, hashes, 1)
    read = steps(store, lambda: store._chunks.numbers(hashes))
    assert 3 * read < 2 * steps(store, lambda: store._chunks.known(hashes))


def test_counting_copies_costs_no_more_with_many_nodes_up(store: TrackerStore) -> None:
    """The database must not look for each chunk once for each node."""
    file_of(store, 0, 1_000)
    live = [f"{number:032x}" for number in range(1_000, 1_300)]
    for peer_id in live:
        register(store, peer_id)
    few, many = (frozenset(peers) for peers in ((A, B), (A, B, *live)))
    first = steps(store, lambda: store.count_copies(Slice(few)))
    assert first < steps(store, lambda: store.count_copies(Slice(many))) < 2 * first
