"""tracker/store/database_errors.py, and what store/database.py does with it: the cause is told, not what
follows."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.unit.tracker.store.rows import A, digests, register
from zchunk.clock import ManualClock
from zchunk.errors import Busy, NoSpace, NotAllowed, StorageFailure, ZchunkError
from zchunk.system import disk
from zchunk.tracker.actions import is_own, told_abroad
from zchunk.tracker.store import database
from zchunk.tracker.store.database_errors import failure
from zchunk.tracker.store.store import TrackerStore

WHERE = "/srv/zchunk/tracker.sqlite"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tracker.sqlite"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackerStore]:
    monkeypatch.setattr(database, "_PAUSE_S", 0.001)
    opened = TrackerStore.open(str(path), ManualClock())
    register(opened, A)
    yield opened
    opened.close()


def sql(store: TrackerStore, text: str) -> Any:
    return store._database.connection.execute_sql(text)


def make_full(store: TrackerStore) -> None:
    """No page more than there are now."""
    (pages,) = sql(store, "PRAGMA page_count").fetchone()
    sql(store, f"PRAGMA max_page_count = {pages}")


MANY = digests(range(5000))


# -- the cause, in a transaction that SQLite has undone by itself -----------------------------


def test_a_full_disk_is_no_space_in_one_change(store: TrackerStore, path: Path) -> None:
    make_full(store)
    with pytest.raises(NoSpace, match="no space on the disk of the tracker's database") as caught:
        store.add_holdings(A, MANY, 1)
    assert caught.value.details == {"path": str(path)}
    assert store.inventory_summary(A)[0] == 0
    sql(store, "PRAGMA max_page_count = 1000000")
    assert store.add_holdings(A, MANY, 1) == len(MANY)


def test_a_full_disk_is_no_space_in_a_batch_whichever_change_meets_it(store: TrackerStore) -> None:
    make_full(store)
    errors = []

    def attempts() -> None:
        for hashes in (MANY[:1], MANY, MANY[:2]):
            try:
                store.add_holdings(A, hashes, 1)
            except ZchunkError as error:
                errors.append(error)

    with pytest.raises(NoSpace, match="no space on the disk"):
        store.together(attempts)
    assert [type(error) for error in errors] == [NoSpace, NoSpace], "the first, and all that follow"
    assert store.inventory_summary(A)[0] == 0, "nothing of the batch is there"
    assert store.peers()[0].peer_id == A


# -- locked by another program -----------------------------------------------------------------


def other(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


def test_a_lock_that_goes_is_waited_for(
    store: TrackerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other(path) as holder:
        pauses = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                holder.execute("ROLLBACK")

        monkeypatch.setattr(time, "sleep", pause)
        assert store.add_holdings(A, MANY[:1], 1) == 1
        assert len(pauses) == 3


@pytest.mark.parametrize("batch", [False, True])
def test_a_lock_that_stays_is_busy_and_nobody_waits_for_it_twice(
    store: TrackerStore, path: Path, batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def change() -> None:
        if batch:
            store.together(lambda: store.add_holdings(A, MANY[:1], 1))
        else:
            store.add_holdings(A, MANY[:1], 1)

    with other(path) as holder:
        for waited in (59, 0, 0):
            pauses.clear()
            with pytest.raises(Busy, match="another program has the tracker's database"):
                change()
            assert len(pauses) == waited
            assert store.inventory_summary(A)[0] == 0, "what only reads is answered"
        holder.execute("ROLLBACK")
    change()
    pauses.clear()
    with other(path), pytest.raises(Busy):
        change()
    assert len(pauses) == 59, "a change got through: the next lock is another one"


# -- other causes ---------------------------------------------------------------------------------


def test_a_database_that_may_only_be_read_is_not_allowed(store: TrackerStore) -> None:
    sql(store, "PRAGMA query_only = 1")
    with pytest.raises(NotAllowed, match="cannot be written"):
        store.check_writable()


@pytest.mark.parametrize("damage", [b"no database at all" * 1000, None])
def test_a_damaged_database_says_what_to_do(path: Path, damage: bytes | None) -> None:
    TrackerStore.open(str(path), ManualClock()).close()
    if damage is None:
        data = bytearray(path.read_bytes())
        data[100:200] = bytes(100)  # its tables' names
        damage = bytes(data)
    path.write_bytes(damage)
    with pytest.raises(StorageFailure, match=r"damaged.*restore a backup.*--new-database"):
        TrackerStore.open(str(path), ManualClock())
    assert path.read_bytes() == damage


def sqlite_error(code: int, text: str) -> peewee.OperationalError:
    first = sqlite3.OperationalError(text)
    first.sqlite_errorcode = code
    error = peewee.OperationalError(first, text)
    error.__context__ = first
    return error


@pytest.mark.parametrize(
    ("code", "free", "expected"),
    [
        (sqlite3.SQLITE_IOERR_SHMSIZE, 0, NoSpace),
        (sqlite3.SQLITE_IOERR_WRITE, 10**9, StorageFailure),
        (sqlite3.SQLITE_FULL, 10**9, NoSpace),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, 10**9, Busy),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, 10**9, Busy),
        (sqlite3.SQLITE_READONLY_DBMOVED, 10**9, NotAllowed),
        (sqlite3.SQLITE_NOMEM, 10**9, StorageFailure),
        (sqlite3.SQLITE_CANTOPEN, 10**9, StorageFailure),
    ],
)
def test_each_code_has_its_class(
    code: int, free: int, expected: type[ZchunkError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: free)
    text = "out of memory" if code == sqlite3.SQLITE_NOMEM else "disk I/O error"
    error = failure(sqlite_error(code, text), WHERE, tmp_path / "t.sqlite")
    assert type(error) is expected
    assert WHERE in error.message or "t.sqlite" in error.message
    assert "rebuild" not in error.message
    if code == sqlite3.SQLITE_NOMEM:
        assert "disk" not in error.message


@pytest.mark.parametrize(
    ("state", "expected"),
    [("53100", NoSpace), ("40001", Busy), ("55P03", Busy), ("25006", NotAllowed), ("57P01", StorageFailure)],
)
def test_each_state_of_a_server_has_its_class(state: str, expected: type[ZchunkError]) -> None:
    class ServersError(Exception):
        sqlstate = state

    error = peewee.OperationalError("it failed")
    error.__context__ = ServersError("it failed")
    assert type(failure(error, "postgresql://host/zchunk", None)) is expected


# -- what others are told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (NoSpace(f"no space on {WHERE}", path=WHERE), NoSpace),
        (Busy(f"{WHERE} is locked", path=WHERE), Busy),
        (NotAllowed(f"{WHERE} cannot be written", path=WHERE), StorageFailure),
        (StorageFailure(f"{WHERE} failed", path=WHERE), StorageFailure),
    ],
)
def test_others_are_told_whose_disk_it_is_and_no_path_of_it(
    own: ZchunkError, told: type[ZchunkError]
) -> None:
    assert is_own(own)
    error = told_abroad(own)
    assert type(error) is told
    assert WHERE not in error.message + str(error.details)
    assert "tracker" in error.message
    assert told_abroad(error) is error


def test_an_error_of_the_asking_is_told_as_it_is() -> None:
    error = NotAllowed("this PC is no member")
    assert told_abroad(error) is error
