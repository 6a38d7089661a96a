"""Files are located, counted, listed; the view of it all, and how much it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peewee
import pytest

from tests.unit.tracker.store.rows import (
    A,
    B,
    C,
    D,
    commit,
    digest,
    digests,
    holders,
    make,
    put,
    register,
    stored,
    view,
)
from zchunk.errors import (
    MalformedMessage,
    NotFound,
)
from zchunk.tracker.store import listing
from zchunk.tracker.store.store import HealthCounts, TrackerStore

# -- locate, health, listing ------------------------------------------------------------------


def test_locate_gives_each_chunks_holders_earliest_first_then_lowest_peer(store: TrackerStore) -> None:
    manifest = make("f", [1, 2, 3, 4])
    store.add_holdings(B, digests([1, 2, 3]), 20)
    store.add_holdings(A, digests([1, 2]), 20)
    store.add_holdings(C, digests([1]), 10)
    store.add_holdings(A, digests([4]), 30)
    commit(store, manifest)
    store.drop_holdings(B, [digest(3)])
    located = store.locate(manifest.file_id)
    assert located.file == store.resolve("f", unique=True)
    assert located.manifest == manifest.canonical
    assert located.peer_ids == (A, B, C)
    assert holders(located) == [[(C, 10), (A, 20), (B, 20)], [(A, 20), (B, 20)], [], [(A, 30)]]


def test_a_tie_is_decided_by_peer_id_not_by_registration(store: TrackerStore) -> None:
    first = "0" * 32
    register(store, first)
    manifest = make("f", [1])
    for peer_id in (B, first):
        store.add_holdings(peer_id, [digest(1)], 20)
    commit(store, manifest, live=[first, B])
    assert holders(store.locate(manifest.file_id)) == [[(first, 20), (B, 20)]]


@pytest.mark.parametrize("call", [lambda s, f: s.locate(f), lambda s, f: s.health_counts(f, [A])])
def test_a_file_that_is_not_there_is_not_found(store: TrackerStore, call: Any) -> None:
    with pytest.raises(NotFound, match="f" * 12):
        call(store, "f" * 64)


@pytest.mark.row("R9")
def test_health_counts(store: TrackerStore) -> None:
    manifest = make("f", [1, 2, 3])
    store.add_holdings(A, digests([1, 2, 3]), 1)
    store.add_holdings(B, digests([1, 2]), 1)
    commit(store, manifest, replicas=2)
    assert store.health_counts(manifest.file_id, [A, B]) == HealthCounts(3, 3, 1)
    assert store.health_counts(manifest.file_id, [A]) == HealthCounts(3, 3, 3)
    assert store.health_counts(manifest.file_id, {B, D}) == HealthCounts(3, 2, 3)
    store.mark_unavailable(B, digest(1))
    assert store.health_counts(manifest.file_id, [B]) == HealthCounts(3, 1, 3)
    assert store.health_counts(manifest.file_id, []) == HealthCounts(3, 0, 3)


def test_a_copy_that_was_marked_and_is_whole_counts_again(store: TrackerStore) -> None:
    """SPEC D8. Only where the peer is known to hold the chunk."""
    store.add_holdings(A, digests([1, 2, 3]), 1)
    assert store.counts_on(A, digest(1))
    for number in (3, 1):
        store.mark_unavailable(A, digest(number))
    assert not store.counts_on(A, digest(1))
    assert store.unavailable_on(A, 10) == sorted(digests([1, 3]))
    assert store.unavailable_on(A, 1) == sorted(digests([1, 3]))[:1]
    assert store.unavailable_on(B, 10) == []
    before = store.inventory_summary(A)
    assert store.mark_whole(A, digests([1, 2, 9])) == [digest(1)]
    assert store.mark_whole(B, digests([3])) == []
    assert store.counts_on(A, digest(1))
    assert store.unavailable_on(A, 10) == [digest(3)]
    assert store.inventory_summary(A) == before


@pytest.mark.parametrize("peer_id", [B, D], ids=["another peer", "no peer"])
def test_a_copy_that_is_not_known_is_not_found(store: TrackerStore, peer_id: str) -> None:
    store.add_holdings(A, [digest(1)], 1)
    with pytest.raises(NotFound):
        store.counts_on(peer_id, digest(1))


def test_files_on_a_peer(store: TrackerStore) -> None:
    both, one = make("both", [1, 2]), make("one", [3])
    stored(store, both)
    stored(store, one, [A])
    commit(store, both)
    commit(store, one, distributed=False)
    assert store.files_on(A) == sorted([both.file_id, one.file_id])
    assert store.files_on(B) == [both.file_id]
    assert store.files_on(C) == []


def test_the_listing_is_newest_first_and_paged(store: TrackerStore) -> None:
    """By what was committed later; the clock was set back in between."""
    times = [10, 30, 20, 30, 5]
    records = [put(store, f"f{number}", number, time) for number, time in enumerate(times)]
    expected = records[::-1]
    assert store.list_files("") == (expected, "")
    assert store.list_files("", limit=5) == (expected, "")
    seen, page = store.list_files("", limit=2)
    while page:
        more, page = store.list_files(page, limit=2)
        seen += more
    assert seen == expected


def test_pages_do_not_shift_when_files_come_and_go(store: TrackerStore) -> None:
    records = [put(store, f"f{number}", number, number) for number in range(4)]
    first, page = store.list_files("", limit=2)
    assert first == [records[3], records[2]]
    store.remove_file(records[2].file_id, 50)
    put(store, "new", 9, 60)
    assert store.list_files(page, limit=2) == ([records[1], records[0]], "")


@pytest.mark.parametrize("page", ["x", "1-", "-1", "1-2", "1x", "9" * 20, "\u0661", "0" * 200])
def test_a_page_of_somebody_elses_making_is_refused(store: TrackerStore, page: str) -> None:
    with pytest.raises(MalformedMessage):
        store.list_files(page)


def test_a_page_beyond_all_numbers_is_harmless(store: TrackerStore) -> None:
    record = put(store, "f", 1, 30)
    assert store.list_files("9" * 19) == ([record], "")


# -- the view ---------------------------------------------------------------------------------


def test_the_view_has_the_public_names_and_ids(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    columns_of_view = store._database.connection.execute_sql('SELECT * FROM "ChunkLocation"').description
    names = [column[0] for column in columns_of_view]
    assert names == ["file_id", "chunk_index", "peer_id", "chunk_hash", "stored_at", "is_available"]
    assert view(store) == {
        (manifest.file_id, 0, A, digest(1), 10, True),
        (manifest.file_id, 1, B, digest(2), 10, True),
    }


def test_the_view_cannot_be_written(store: TrackerStore) -> None:
    location = store._database.models.ChunkLocation
    for query in (location.delete(), location.update({location.stored_at: 1})):
        with pytest.raises(peewee.OperationalError):
            query.execute()


# -- size -------------------------------------------------------------------------------------


def test_many_chunks_take_few_statements(store: TrackerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement for each row would block the writer for minutes with 1,000,000 chunks."""
    statements = 0
    run = store._database.connection.execute_sql

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += 1
        return run(*args, **kwargs)

    monkeypatch.setattr(store._database.connection, "execute_sql", counted)
    manifest = make("f", range(9000))
    spent = {}
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: [store.add_holdings(p, digests(range(9000)), 1) for p in (A, B)],
        "commit": lambda: commit(store, manifest),
        "locate": lambda: store.locate(manifest.file_id),
        "health": lambda: store.health_counts(manifest.file_id, [A, B]),
        "replace": lambda: store.replace_inventory(A, digests(range(9000)), 1),
        "release": lambda: store.release(A, digests(range(9000))),
        "remove": lambda: store.remove_file(manifest.file_id, 1),
    }
    for name, call in calls.items():
        before = statements
        call()
        spent[name] = statements - before
    assert spent["add"] <= 2 * (9000 // 225 + 9000 // 450 + 2 * (9000 // 900) + 10)
    assert spent["commit"] <= 9000 // 300 + 2 * (9000 // 900) + 20
    assert spent["release"] <= 5 * (9000 // 900) + 10
    assert max(spent["locate"], spent["health"], spent["replace"], spent["remove"]) <= 12


def test_a_file_of_several_runs_is_located_whole(
    store: TrackerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_RUN_CHUNKS", 7)
    manifest = stored(store, make("f", range(40)), [A, B, C])
    commit(store, manifest)
    store._listing.remembered.clear()
    expected = [[([A, B, C][index % 3], 10)] for index in range(40)]
    assert holders(store.locate(manifest.file_id)) == expected
    assert store.health_counts(manifest.file_id, [A, B]) == HealthCounts(40, 27, 13)


def test_the_numbers_of_chunks_may_be_long(store: TrackerStore) -> None:
    """Numbers are not used again, and a cluster may see 2**31 chunks in its time."""
    chunk = store._database.models.Chunk
    chunk.insert({chunk.id: 2**31, chunk.chunk_hash: digest(99)}).execute()
    manifest = stored(store, make("f", range(4)))
    commit(store, manifest)
    store._listing.remembered.clear()
    assert holders(store.locate(manifest.file_id)) == [[(A, 10)], [(B, 10)]] * 2
