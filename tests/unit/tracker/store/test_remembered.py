"""tracker/store/remembered.py, and that store/store.py keeps it true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest

from tests.unit.tracker.store.rows import A, B, C, commit, digests, make, register
from zchunk.clock import ManualClock
from zchunk.errors import ZchunkError
from zchunk.tracker.store import remembered as memory
from zchunk.tracker.store import store as stores
from zchunk.tracker.store.holder_columns import HolderColumns
from zchunk.tracker.store.remembered import Kept, Remembered
from zchunk.tracker.store.store import TrackerStore


def columns_of(size: int) -> HolderColumns:
    return HolderColumns((), b"", b"", bytes(size))


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    remembered = Remembered(most_bytes=3 * Kept(columns_of(1000)).size)
    for name in "abc":
        remembered.put(name, columns_of(1000))
    assert remembered.get("a") is not None
    remembered.put("d", columns_of(1000))
    assert [name for name in "abcd" if remembered.get(name)] == ["a", "c", "d"]


def test_a_file_that_is_too_large_is_not_kept_and_others_go_for_it() -> None:
    remembered = Remembered(most_bytes=5000)
    remembered.put("a", columns_of(1000))
    remembered.put("b", columns_of(6000))
    assert len(remembered) == 0
    remembered.put("a", columns_of(1000))
    assert remembered.get("a") == Kept(columns_of(1000))


def test_put_again_counts_once() -> None:
    remembered = Remembered(most_bytes=3 * Kept(columns_of(1000)).size)
    for _ in range(10):
        remembered.put("a", columns_of(1000))
    remembered.put("b", columns_of(1000))
    assert len(remembered) == 2
    remembered.clear()
    assert remembered.get("a") is None


def of_chunks(count: int) -> HolderColumns:
    return HolderColumns((), bytes(2 * count), b"", b"")


def test_what_changed_is_noted_for_the_files_that_are_kept() -> None:
    remembered, some = Remembered(), digests(range(5))
    for name in "ab":
        remembered.put(name, of_chunks(100))
    remembered.change(["a", "c"], some[:3])
    remembered.change(["a"], some[2:])
    assert remembered.get("a") == Kept(of_chunks(100), set(some))
    assert remembered.get("b") == Kept(of_chunks(100))
    assert remembered.get("c") is None
    remembered.put("a", of_chunks(100))
    assert remembered.get("a") == Kept(of_chunks(100))


def test_a_file_of_which_much_has_changed_is_forgotten() -> None:
    remembered = Remembered()
    remembered.put("a", of_chunks(100))
    remembered.put("b", of_chunks(120))
    remembered.change(["a", "b"], digests(range(6)))
    assert remembered.get("a") is None
    assert remembered.get("b") is not None


def test_what_changed_takes_room_too() -> None:
    remembered = Remembered(most_bytes=Kept(of_chunks(10_000)).size + 20_000)
    remembered.put("a", of_chunks(10_000))
    remembered.change(["a"], digests(range(100)))
    assert remembered.get("a") is not None
    remembered.change(["a"], digests(range(300)))
    assert len(remembered) == 0


# -- in the store ------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[TrackerStore]:
    opened = TrackerStore.open(":memory:", ManualClock())
    for peer_id in (A, B, C):
        register(opened, peer_id)
        opened.add_holdings(peer_id, digests(range(20)), 1)
    yield opened
    opened.close()


def change(store: TrackerStore, rng: Random, clock: int) -> None:
    peer_id, some = rng.choice([A, B, C]), digests(rng.sample(range(30), rng.randint(1, 6)))
    kind = rng.randrange(6)
    if kind == 0:
        store.add_holdings(peer_id, some, clock)
    elif kind == 1:
        store.drop_holdings(peer_id, some)
    elif kind == 2:
        store.mark_unavailable(peer_id, some[0])
    elif kind == 3:
        store.mark_whole(peer_id, some)
    elif kind == 4:
        store.replace_inventory(peer_id, some + digests(range(15)), clock)
    else:
        store.release(peer_id, some)


class _Undone(Exception):
    pass


@pytest.mark.parametrize("seed", range(20))
def test_a_file_is_located_as_if_nothing_were_remembered(
    store: TrackerStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever changes, and whatever of it is undone."""
    rng, used, mended = Random(seed), 0, 0
    if seed % 2:
        monkeypatch.setattr(stores, "_MANY", 3)
    monkeypatch.setattr(memory, "_CHANGED_SHARE", 1)
    ids = [commit(store, make(f"f{n}", range(n, n + 9)))[0].file_id for n in range(4)]
    for clock in range(60):
        with suppress(ZchunkError, _Undone), store.batch():
            with suppress(ZchunkError):
                change(store, rng, clock)
            for file_id in rng.sample(ids, 2):
                store.locate(file_id)
            if rng.random() < 0.3:
                raise _Undone
        kept = [store._listing.remembered.get(file_id) for file_id in ids]
        used += sum(entry is not None for entry in kept)
        mended += sum(entry is not None and bool(entry.changed) for entry in kept)
        found = [store.locate(file_id) for file_id in ids]
        store._listing.remembered.clear()
        assert found == [store.locate(file_id) for file_id in ids]
    assert used
    assert mended


def test_who_changes_copies_is_told_the_files_that_name_them(store: TrackerStore) -> None:
    """As `tracker/core.py` asks: of the same list, in the same work."""
    file_id = commit(store, make("f", range(5)))[0].file_id
    store.locate(file_id)
    some = digests([1, 29])
    store.drop_holdings(A, some)
    assert store.files_of(some) == [file_id]
    store.remove_file(file_id, 5)
    assert store.files_of(some) == []


def test_a_removed_file_put_again_is_located_anew(store: TrackerStore) -> None:
    manifest = make("f", range(5))
    file_id = commit(store, manifest)[0].file_id
    store.locate(file_id)
    store.remove_file(file_id, 5)
    store.drop_holdings(A, digests(range(5)))
    commit(store, manifest)
    assert A not in store.locate(file_id).peer_ids
