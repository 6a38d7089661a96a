"""Batches are written whole or not at all; what the disk refuses is told in words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.tracker.store.rows import A, B, D, commit, digest, digests, make, register, stored
from zchunk.clock import ManualClock
from zchunk.errors import (
    MalformedMessage,
    NoSpace,
    NotFound,
    NotYetStored,
    StorageFailure,
)
from zchunk.tracker.store.store import Removals, TrackerStore


def test_a_batch_is_one_transaction(store: TrackerStore) -> None:
    def give_up() -> None:
        with store.batch():
            store.add_holdings(A, [digest(1)], 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert store.inventory_summary(A) == (0, bytes(32))


def test_a_refused_call_in_a_batch_undoes_only_itself(store: TrackerStore) -> None:
    with store.batch():
        store.add_holdings(A, [digest(1)], 1)
        with pytest.raises(NotYetStored):
            commit(store, make("f", [1, 2]))
        with pytest.raises(NotFound):
            store.add_holdings(D, [digest(1)], 1)
        store.add_holdings(B, [digest(2)], 1)
        commit(store, make("f", [1, 2]))
    assert store.inventory_summary(A)[0] == store.inventory_summary(B)[0] == 1
    assert store.list_files("")[0][0].name == "f"


def test_a_call_that_fails_halfway_leaves_nothing(
    store: TrackerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    stored(store, make("f", [1, 2]))
    before = store.commit_number
    with monkeypatch.context() as patch:
        patch.setattr(store._database, "insert", fail)  # the File row is written before the FileChunk rows
        with pytest.raises(ZeroDivisionError):
            commit(store, make("f", [1, 2]))
    assert store.list_files("") == ([], "")
    assert store.commit_number == before
    with monkeypatch.context() as patch:
        patch.setattr(store._holdings, "_count", fail)
        with pytest.raises(ZeroDivisionError):
            store.add_holdings(A, [digest(9)], 1)
    assert store.inventory_summary(A) == (1, digest(1))
    assert store.replace_inventory(A, [digest(1)], 2).lost == 0


def fill_disk(store: TrackerStore) -> None:
    """From now on the database may not grow: SQLite's own way to say that a disk is full."""
    connection = store._database.connection
    connection.execute_sql(f"PRAGMA max_page_count = {connection.pragma('page_count')}")


def test_a_full_disk_is_no_space_and_ends(path: str) -> None:
    store = TrackerStore.open(path, ManualClock())
    register(store, A)
    fill_disk(store)
    with pytest.raises(NoSpace, match="free some space"):
        store.add_holdings(A, digests(range(20_000)), 1)
    assert store.inventory_summary(A) == (0, bytes(32))
    store._database.connection.execute_sql("PRAGMA max_page_count = 1000000")
    assert store.add_holdings(A, digests(range(20_000)), 1) == 20_000
    store.close()


def test_a_database_failure_dooms_the_whole_batch(path: str) -> None:
    """SQLite may end the transaction by itself; nothing after that may count as done."""
    store = TrackerStore.open(path, ManualClock())
    register(store, A)
    fill_disk(store)

    def carry_on() -> None:
        with store.batch():
            store.add_holdings(A, [digest(1)], 1)
            with pytest.raises(NoSpace):
                store.add_holdings(A, digests(range(20_000)), 1)
            with pytest.raises(NoSpace):
                register(store, A, free=1)
            with pytest.raises(NoSpace):
                store.peers()

    with pytest.raises(NoSpace):
        carry_on()
    assert store.inventory_summary(A) == (0, bytes(32))
    register(store, A, free=2)
    assert store.peers()[0].free == 2
    store.close()


def test_a_lost_table_is_a_storage_failure_on_one_line(store: TrackerStore) -> None:
    store._database.connection.execute_sql('DROP TABLE "Tombstone"')
    with pytest.raises(StorageFailure, match="Tombstone") as caught:
        store.removals(0)
    assert "\n" not in str(caught.value)
    assert len(store.peers()) == 3


@pytest.mark.row("S4")
def test_numbers_beyond_the_database_are_the_senders_mistake(store: TrackerStore) -> None:
    with pytest.raises(MalformedMessage):
        register(store, A, capacity=2**64 - 1)
    assert store.peers()[0].capacity == 1000
    assert store.removals(2**64 - 1) == Removals([], 0, False)
