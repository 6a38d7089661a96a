"""What the tracker's statements cost as a cluster grows: in steps of SQLite's machine, which
depend on no clock. scripts/bench tracker has the times."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit import test_store
from tests.unit.test_store import A, B, commit, digests, make, register
from zchunk.tracker.health import Slice
from zchunk.tracker.store import TrackerStore

_STEP = 20


#: with the peers A, B and C
store = test_store.store


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


def test_locate_grows_with_the_file_and_no_faster(store: TrackerStore) -> None:
    small, large = file_of(store, 0, 1_000), file_of(store, 1_000, 10_000)
    first, second = steps(store, lambda: store.locate(small)), steps(store, lambda: store.locate(large))
    assert first < second < 20 * first


def test_a_file_located_again_costs_next_to_nothing(store: TrackerStore) -> None:
    file_id = file_of(store, 0, 1_000)
    first, again = steps(store, lambda: store.locate(file_id)), steps(store, lambda: store.locate(file_id))
    assert 10 * again < first


def test_counting_copies_costs_no_more_with_many_nodes_up(store: TrackerStore) -> None:
    """The database must not look for each chunk once for each node."""
    file_of(store, 0, 1_000)
    live = [f"{number:032x}" for number in range(1_000, 1_300)]
    for peer_id in live:
        register(store, peer_id)
    few, many = (frozenset(peers) for peers in ((A, B), (A, B, *live)))
    first = steps(store, lambda: store.count_copies(Slice(few)))
    assert first < steps(store, lambda: store.count_copies(Slice(many))) < 2 * first
