"""tracker/store/copies.py: what a slice counts is what the store says of each file alone."""

from __future__ import annotations

from random import Random

import pytest

from tests.unit.tracker.store.rows import A, B, C, commit, digests, make, register
from zchunk.tracker.rules.health import FileHealth, Slice
from zchunk.tracker.store import copies
from zchunk.tracker.store.store import TrackerStore


def fill(store: TrackerStore, rng: Random, files: int) -> list[str]:
    """Files of 0 to 9 chunks, some shared, on random peers, some copies damaged."""
    for number in range(60):
        for peer_id in rng.sample([A, B, C], rng.randint(1, 3)):
            store.add_holdings(peer_id, digests([number]), 1)
    ids = []
    for number in range(files):
        chunks = [rng.randrange(60) for _ in range(rng.randrange(10))]
        manifest = make(f"f{number}", chunks)
        commit(store, manifest, replicas=rng.randint(1, 3), distributed=False)
        ids.append(manifest.file_id)
    for number in range(0, 60, 7):
        for peer_id in (A, B, C):
            store.mark_unavailable(peer_id, digests([number])[0])
            if rng.random() < 0.7:
                break
    return ids


def walk(store: TrackerStore, live: list[str]) -> tuple[dict[str, tuple[int, int, int]], int]:
    """All files by slices, as rules/health.py asks for them; and how many slices it took."""
    health, found, slices = FileHealth(0.0), {}, 0
    now = 1.0
    while (asked := health.next(live, now)) is not None:
        slices += 1
        counted = store.count_copies(asked)
        for one in counted.files:
            assert one.file_id not in found
            found[one.file_id] = (one.chunks_count, one.chunks_unavailable, one.chunks_below_replicas)
        health.counted(asked, counted, now)
        now += 1.0
    return found, slices


@pytest.mark.row("R9")
@pytest.mark.parametrize("bound", [1, 3, 12, 4000])
@pytest.mark.parametrize("live", [[A, B, C], [B], []], ids=["all", "one", "none"])
def test_the_walk_finds_for_every_file_what_the_store_says_of_it(
    store: TrackerStore, bound: int, live: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "SLICE_CHUNKS", bound)
    monkeypatch.setattr(copies, "SLICE_FILES", 4)
    ids = fill(store, Random(bound), 17)
    found, slices = walk(store, live)
    assert found.keys() == set(ids)
    for file_id in ids:
        total, readable, below = store.health_counts(file_id, live)
        assert found[file_id] == (total, total - readable, below)
    assert slices >= 5


def test_files_by_name_without_those_that_are_gone(store: TrackerStore) -> None:
    ids = fill(store, Random(1), 3)
    store.remove_file(ids[1], 5)
    counted = store.count_copies(Slice(frozenset({A}), tuple(ids)))
    assert [one.file_id for one in counted.files] == [ids[0], ids[2]]
    assert (counted.left, counted.partial, counted.after) == ((), None, None)


def test_a_slice_says_what_it_left(store: TrackerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SLICE_CHUNKS", 5)
    store.add_holdings(A, digests(range(20)), 1)
    small, large, last = make("s", [1, 2, 3]), make("l", range(12)), make("t", [4])
    for manifest in (small, large, last):
        commit(store, manifest, distributed=False)
    live = frozenset({A})
    first = store.count_copies(Slice(live, (small.file_id, large.file_id, last.file_id)))
    assert [one.file_id for one in first.files] == [small.file_id]
    assert first.left == (large.file_id, last.file_id)
    second = store.count_copies(Slice(live, first.left))
    assert second.files == ()
    assert second.left == (last.file_id,)
    assert second.partial is not None
    assert (second.partial.file_id, second.partial.next_chunk) == (large.file_id, 5)
    third = store.count_copies(Slice(live, (large.file_id,), partial=second.partial))
    assert third.partial is not None
    done = store.count_copies(Slice(live, (large.file_id,), partial=third.partial))
    assert [(one.file_id, one.chunks_unavailable) for one in done.files] == [(large.file_id, 0)]
    assert done.partial is None


def test_more_live_peers_than_a_statement_takes_parameters(store: TrackerStore) -> None:
    live = [A]
    for number in range(1200):
        live.append(f"{number:032x}"[:-1] + "f")
        register(store, live[-1])
    store.add_holdings(A, digests([1]), 1)
    manifest = make("f", [1])
    commit(store, manifest, distributed=False)
    [one] = store.count_copies(Slice(frozenset(live), (manifest.file_id,))).files
    assert one.chunks_unavailable == 0


def test_a_slice_takes_few_statements(store: TrackerStore) -> None:
    """However many files and chunks it has."""
    ids = fill(store, Random(2), 100)
    taken: list[str] = []
    store._database.connection.connection().set_trace_callback(taken.append)
    store.count_copies(Slice(frozenset({A, B}), tuple(ids)))
    store._database.connection.connection().set_trace_callback(None)
    assert len([text for text in taken if text.startswith("SELECT")]) <= 3
