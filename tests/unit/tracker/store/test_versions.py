"""The tracker's database is opened, made, and upgraded by version."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.unit.tracker.store.rows import A, B, commit, digest, digests, make, register, stored, view
from zchunk.clock import ManualClock
from zchunk.content.hashing import inventory_digest
from zchunk.errors import (
    ConfigError,
    NotFound,
    StorageFailure,
    UnsupportedVersion,
)
from zchunk.tracker.store import models
from zchunk.tracker.store.store import TrackerStore
from zchunk.tracker.store.upgrades import UPGRADES, Step


def test_a_store_keeps_everything_over_a_restart(path: str) -> None:
    first = TrackerStore.open(path, ManualClock())
    register(first, A)
    register(first, B)
    record, _ = commit(first, stored(first, make("f", [1, 2])))
    identity = first.store_id, first.commit_number
    first.close()
    again = TrackerStore.open(path, ManualClock())
    assert (again.store_id, again.commit_number) == identity
    assert again.resolve("f", unique=True) == record
    assert again.inventory_summary(A) == (1, digest(1))
    again.close()


def test_each_store_has_an_id_of_its_own_that_fits_the_wire() -> None:
    stores = [TrackerStore.open(":memory:", ManualClock()) for _ in range(3)]
    assert len({store.store_id for store in stores}) == 3
    assert all(len(store.store_id) == 32 and int(store.store_id, 16) for store in stores)
    for store in stores:
        store.close()


def test_sqlite_is_opened_for_durability(path: str) -> None:
    store = TrackerStore.open(path, ManualClock())
    assert store._database.connection.pragma("journal_mode") == "wal"
    assert store._database.connection.pragma("synchronous") == 2  # FULL
    assert store._database.connection.pragma("foreign_keys") == 1
    store.close()


def test_foreign_keys_hold(store: TrackerStore) -> None:
    chunk = store._database.models.FileChunk
    with pytest.raises(peewee.IntegrityError):
        chunk.insert({chunk.file: 99, chunk.chunk_index: 0, chunk.chunk: 1}).execute()


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:////{}"])
def test_a_url_opens_the_same_store_as_its_path(tmp_path: Path, form: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = form.count("/") == 4
    name = str(tmp_path / "t.sqlite").lstrip("/") if absolute else "t.sqlite"
    by_url = TrackerStore.open(form.format(name), ManualClock())
    assert by_url._database.connection.pragma("synchronous") == 2
    store_id = by_url.store_id
    by_url.close()
    by_path = TrackerStore.open(str(tmp_path / "t.sqlite"), ManualClock())
    assert by_path.store_id == store_id
    by_path.close()


@pytest.mark.parametrize("url", ["nosuch://user:secret@host/base", "postgresql://user:secret@host"])
def test_a_wrong_url_is_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match="Give a path, or a URL") as caught:
        TrackerStore.open(url, ManualClock())
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Any) -> None:
        raise peewee.ImproperlyConfigured("Postgres driver not installed.")

    monkeypatch.setattr(peewee.PostgresqlDatabase, "get_binary_type", missing)
    with pytest.raises(ConfigError, match="driver") as caught:
        TrackerStore.open("postgresql://user:secret@host/base", ManualClock())
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_storage_failure_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)
    before = path.read_bytes()
    with pytest.raises(StorageFailure, match=r"damaged"):
        TrackerStore.open(str(path), ManualClock())
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFound, match=r"t\.sqlite"):
        TrackerStore.open(str(tmp_path / "file" / "sub" / "t.sqlite"), ManualClock())


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    other = sqlite3.connect(path)
    other.execute('CREATE TABLE "Meta" (key TEXT, value TEXT)')
    other.close()
    with pytest.raises(StorageFailure, match="not that of a tracker"):
        TrackerStore.open(str(path), ManualClock())


def set_version(path: str, version: str) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE Meta SET value = ? WHERE key = 'schema_version'", (version,))
    database.commit()
    database.close()


def test_a_newer_schema_is_refused_with_both_versions(path: str) -> None:
    TrackerStore.open(path, ManualClock()).close()
    set_version(path, "99")
    with pytest.raises(UnsupportedVersion, match=r"version 99, .* up to 3; upgrade zchunk"):
        TrackerStore.open(path, ManualClock())


def test_an_older_schema_without_a_way_on_is_refused(path: str) -> None:
    TrackerStore.open(path, ManualClock()).close()
    set_version(path, "0")
    with pytest.raises(UnsupportedVersion, match="cannot upgrade"):
        TrackerStore.open(path, ManualClock())


def test_every_older_version_has_its_step() -> None:
    assert set(UPGRADES) == set(range(2, models.SCHEMA_VERSION + 1))


def upgraded(path: str, version: int, upgrades: dict[int, Step]) -> dict[str, str]:
    """Open as a zchunk of schema `version` would; returns the store's facts."""
    database = peewee.SqliteDatabase(path, thread_safe=False)
    bound = models.bind(database)
    try:
        models.prepare(bound, 5, version, upgrades)
    finally:
        facts = dict(bound.MetaValue.select().tuples())
        database.close()
    return facts


def note(mark: str) -> Step:
    def step(database: Any) -> None:
        database.execute_sql(f'ALTER TABLE "File" ADD COLUMN {mark} INTEGER')

    return step


def test_upgrade_steps_run_in_order_once_and_keep_the_rows(path: str) -> None:
    store = TrackerStore.open(path, ManualClock())
    register(store, A)
    commit(store, stored(store, make("f", [1]), [A]))
    before, store_id = view(store), store.store_id
    store.close()
    now = models.SCHEMA_VERSION
    steps = {now + 1: note("second"), now + 2: note("third")}
    facts = upgraded(path, now + 2, steps)
    assert facts["schema_version"] == str(now + 2)
    assert facts["store_id"] == store_id
    upgraded(path, now + 2, steps)  # would fail if run twice
    set_version(path, str(now))
    again = TrackerStore.open(path, ManualClock())
    assert view(again) == before
    found = [column.name for column in again._database.connection.get_columns("File")]
    assert found[-2:] == ["second", "third"]
    again.close()


def test_a_failing_upgrade_leaves_the_store_as_it_was(path: str) -> None:
    TrackerStore.open(path, ManualClock()).close()
    now = models.SCHEMA_VERSION
    with pytest.raises(peewee.OperationalError):
        upgraded(path, now + 2, {now + 1: note("second"), now + 2: note("second")})
    store = TrackerStore.open(path, ManualClock())
    assert "second" not in [column.name for column in store._database.connection.get_columns("File")]
    assert view(store) == set()
    store.close()


def test_stores_in_several_threads_do_not_meet() -> None:
    ready = threading.Barrier(4)
    found: dict[int, tuple[int, bytes]] = {}

    def work(number: int) -> None:
        store = TrackerStore.open(":memory:", ManualClock())
        register(store, A)
        ready.wait()
        for step in range(50):
            store.add_holdings(A, [digest(1000 * number + step)], step)
        found[number] = store.inventory_summary(A)
        store.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {n: (50, inventory_digest(digests(range(1000 * n, 1000 * n + 50)))) for n in range(4)}
    assert found == expected


def test_a_store_opened_in_one_thread_works_in_another(store: TrackerStore) -> None:
    thread = threading.Thread(target=lambda: store.add_holdings(A, [digest(1)], 1))
    thread.start()
    thread.join()
    assert store.inventory_summary(A)[0] == 1


def test_now_ms_is_the_clocks_wall_time(store: TrackerStore) -> None:
    assert store.now_ms() == 1_700_000_000_000
