"""tracker/store/store.py, its parts, and tracker/store/models.py (SPEC U5, U7, R7, R8, "Data", "Command
line")."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peewee
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zchunk.clock import ManualClock
from zchunk.content.hashing import inventory_digest
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    AmbiguousName,
    ConfigError,
    InvalidUsage,
    MalformedMessage,
    ManifestInvalid,
    NoSpace,
    NotFound,
    NotYetStored,
    StorageFailure,
    TooFewPeers,
    UnsupportedVersion,
)
from zchunk.protocol import columns
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.store import listing, models
from zchunk.tracker.store.store import HealthCounts, LocatedRows, Removals, StoredPeer, TrackerStore
from zchunk.tracker.store.upgrades import UPGRADES, Step

CHUNK = 64 * 1024
A, B, C, D = (f"{number:032x}" for number in (0xA, 0xB, 0xC, 0xD))
NAMES = {A: "A", B: "B", C: "C", D: "D"}


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def digests(numbers: Iterable[int]) -> list[bytes]:
    return [digest(number) for number in numbers]


def make(name: str, chunks: Sequence[int], *, sealed: bytes | None = None) -> Manifest:
    """A file of whole chunks, each known by a number."""
    size, encoding = (CHUNK + 16, "aes256gcm") if sealed else (CHUNK, "identity")
    rows = tuple(ChunkRow(size, encoding, digest(n), digest(n), None) for n in chunks)
    content = None if sealed else hashlib.sha256(repr((name, chunks)).encode()).digest()
    return Manifest(name, len(chunks) * CHUNK, content, CHUNK, rows, sealed)


def register(store: TrackerStore, peer_id: str, **other: Any) -> None:
    values: dict[str, Any] = {
        "name": NAMES.get(peer_id, peer_id),
        "incarnation": 1,
        "endpoints": ("tcp://10.0.0.1:7000",),
        "capacity": 1000,
        "free": 900,
        "last_seen_ms": 5,
        "left": False,
    }
    store.save_peer(peer_id, **{**values, **other})


def commit(store: TrackerStore, manifest: Manifest, **other: Any) -> tuple[FileRecord, bool]:
    values: dict[str, Any] = {
        "replicas": 1,
        "min_peers": 2,
        "distributed": True,
        "live": [A, B, C],
        "now_ms": 1000,
    }
    return store.commit_file(manifest, **{**values, **other})


def stored(store: TrackerStore, manifest: Manifest, peers: Sequence[str] = (A, B)) -> Manifest:
    """Each chunk on one of `peers`, in turn."""
    for turn, peer_id in enumerate(peers):
        rows = manifest.chunks[turn :: len(peers)]
        store.add_holdings(peer_id, [row.sha256 for row in rows], 10)
    return manifest


def holders(located: LocatedRows) -> list[list[tuple[str, int]]]:
    """Per chunk [(peer id, stored at), ...], from the packed columns."""
    peers = iter(columns.unpack(2, located.holder_peers))
    times = iter(columns.unpack(8, located.holder_times))
    counts = columns.unpack(2, located.holder_counts)
    read = [[(located.peer_ids[next(peers)], next(times)) for _ in range(count)] for count in counts]
    assert next(peers, None) is None
    assert next(times, None) is None
    return read


def view(store: TrackerStore) -> set[tuple[Any, ...]]:
    rows = store._database.models.ChunkLocation.select().tuples()
    return {(f, i, p, bytes(h), at, bool(ok)) for f, i, p, h, at, ok in rows}


@pytest.fixture
def store() -> Iterator[TrackerStore]:
    opened = TrackerStore.open(":memory:", ManualClock())
    for peer_id in (A, B, C):
        register(opened, peer_id)
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tracker" / "tracker.sqlite")


# -- opening, versions ------------------------------------------------------------------


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
    with pytest.raises(StorageFailure, match="no tracker store"):
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
    with pytest.raises(UnsupportedVersion, match="knows no way on"):
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


# -- batches, failures ------------------------------------------------------------------


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


def test_numbers_beyond_the_database_are_the_senders_mistake(store: TrackerStore) -> None:
    with pytest.raises(MalformedMessage):
        register(store, A, capacity=2**64 - 1)
    assert store.peers()[0].capacity == 1000
    assert store.removals(2**64 - 1) == Removals([], 0, False)


# -- peers ------------------------------------------------------------------------------


def test_peers_come_back_as_saved(store: TrackerStore) -> None:
    register(store, D, endpoints=("tcp://1.2.3.4:5", "tcp://[::1]:6"), left=True, incarnation=7, free=3)
    assert store.peers()[-1] == StoredPeer(
        peer_id=D,
        name="D",
        incarnation=7,
        endpoints=("tcp://1.2.3.4:5", "tcp://[::1]:6"),
        capacity=1000,
        free=3,
        inventory_count=0,
        inventory_digest=bytes(32),
        last_seen_ms=5,
        left=True,
    )
    assert [peer.peer_id for peer in store.peers()] == [A, B, C, D]


def test_saving_again_updates_and_keeps_the_inventory(store: TrackerStore) -> None:
    store.add_holdings(A, [digest(1)], 1)
    register(store, A, name="New", incarnation=2, free=1, left=True, last_seen_ms=99)
    peer = store.peers()[0]
    assert (peer.name, peer.incarnation, peer.free, peer.left, peer.last_seen_ms) == ("New", 2, 1, True, 99)
    assert (peer.inventory_count, peer.inventory_digest) == (1, digest(1))
    assert len(store.peers()) == 3


def test_name_owner(store: TrackerStore) -> None:
    assert store.name_owner("B") == B
    assert store.name_owner("b") is None
    register(store, D, name="B", last_seen_ms=6)
    assert store.name_owner("B") == D


# -- holdings ---------------------------------------------------------------------------


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


# -- who holds a chunk (U7) ---------------------------------------------------------------


def found(
    store: TrackerStore, numbers: Sequence[int], live: Sequence[str], limit: int = 9
) -> list[list[str]]:
    rows = store.find_chunks(digests(numbers), live, limit)
    peers = iter(columns.unpack(2, rows.holder_peers))
    read = [[rows.peer_ids[next(peers)] for _ in range(n)] for n in columns.unpack(2, rows.holder_counts)]
    assert next(peers, None) is None
    assert {peer_id for chunk in read for peer_id in chunk} == set(rows.peer_ids)
    return read


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


# -- commit -----------------------------------------------------------------------------


def test_a_commit_makes_the_file_visible_as_it_is(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2, 3]))
    assert store.list_files("") == ([], "")
    record, already = commit(store, manifest, replicas=1, now_ms=77)
    assert already is False
    assert record == FileRecord(
        file_id=manifest.file_id,
        name="f",
        size=3 * CHUNK,
        sha256=manifest.sha256,
        chunk_size=CHUNK,
        chunks_count=3,
        replicas=1,
        is_chunked=True,
        is_distributed=True,
        minimum_peers_required=2,
        created_at_ms=77,
    )
    assert store.list_files("") == ([record], "")
    assert store.commit_number == 1


def test_a_normal_upload_lies_on_one_peer(store: TrackerStore) -> None:
    """SPEC U1."""
    record, _ = commit(store, stored(store, make("f", [1, 2]), [A]), distributed=False)
    assert (record.is_chunked, record.is_distributed, record.minimum_peers_required) == (False, False, 1)


def test_fully_replicated_files_need_one_peer(store: TrackerStore) -> None:
    manifest = make("f", [1, 2])
    for peer_id in (A, B):
        store.add_holdings(peer_id, digests([1, 2]), 1)
    record, _ = commit(store, manifest, replicas=2)
    assert (record.is_distributed, record.minimum_peers_required) == (True, 1)


def test_an_encrypted_file_shows_no_digest(store: TrackerStore) -> None:
    record, _ = commit(store, stored(store, make("f", [1, 2], sealed=b"secret")))
    assert record.sha256 is None


def test_an_empty_file_has_no_chunks_and_no_holders(store: TrackerStore) -> None:
    manifest = make("empty", [])
    record, _ = commit(store, manifest, distributed=False)
    assert (record.chunks_count, record.is_distributed, record.minimum_peers_required) == (0, False, 0)
    located = store.locate(manifest.file_id)
    assert (located.peer_ids, located.holder_counts) == ((), b"")
    assert store.health_counts(manifest.file_id, [A]) == HealthCounts(0, 0, 0)


def test_a_commit_without_a_confirmed_copy_of_each_chunk_is_refused(store: TrackerStore) -> None:
    """SPEC U5: all or nothing."""
    manifest = make("f", range(40))
    store.add_holdings(A, digests(range(0, 40, 2)), 1)
    with pytest.raises(NotYetStored, match="20 of the 40 chunks of 'f'") as caught:
        commit(store, manifest)
    assert caught.value.details["chunks_missing"] == 20
    assert caught.value.details["first_missing"] == list(range(1, 21, 2))
    assert caught.value.retryable
    assert store.list_files("") == ([], "")
    assert store.commit_number == 0


@pytest.mark.parametrize("why", ["down", "damaged"])
def test_copies_that_cannot_be_read_now_do_not_count(store: TrackerStore, why: str) -> None:
    manifest = stored(store, make("f", [1, 2]))
    if why == "damaged":
        store.mark_unavailable(B, digest(2))
    live = [A, C] if why == "down" else [A, B, C]
    with pytest.raises(NotYetStored) as caught:
        commit(store, manifest, live=live)
    assert caught.value.details["first_missing"] == [1]


def test_live_peers_that_never_registered_are_no_matter(store: TrackerStore) -> None:
    assert commit(store, stored(store, make("f", [1, 2])), live={A, B, D})[1] is False


def test_a_distributed_file_on_too_few_peers_is_refused(store: TrackerStore) -> None:
    """SPEC U4: at least min_peers different peers, of those that are up."""
    manifest = stored(store, make("f", [1, 2, 3]), [A])
    with pytest.raises(TooFewPeers, match=rf"1 of the peers .*{A}.* takes 2") as caught:
        commit(store, manifest)
    assert caught.value.details == {"peer_ids": [A], "peers_needed": 2}
    store.add_holdings(C, [digest(1)], 1)
    with pytest.raises(TooFewPeers):
        commit(store, manifest, live=[A, B])
    assert commit(store, manifest)[1] is False


@pytest.mark.parametrize(("replicas", "peers"), [(1, [A]), (2, [A, B])])
def test_a_file_of_fewer_copies_than_peers_needs_no_more_peers_than_copies(
    store: TrackerStore, replicas: int, peers: list[str]
) -> None:
    for peer_id in peers[:-1]:
        store.add_holdings(peer_id, [digest(1)], 1)
        with pytest.raises(TooFewPeers):
            commit(store, make("f", [1]), min_peers=3, replicas=replicas)
    store.add_holdings(peers[-1], [digest(1)], 1)
    assert commit(store, make("f", [1]), min_peers=3, replicas=replicas)[1] is False


def test_equal_chunks_each_count_as_a_chunk(store: TrackerStore) -> None:
    """A file of zeros is a file like any other: it lies on two peers (SPEC U4)."""
    manifest = make("zeros", [7, 7, 7])
    store.add_holdings(A, [digest(7)], 1)
    with pytest.raises(TooFewPeers):
        commit(store, manifest)
    store.add_holdings(B, [digest(7)], 2)
    commit(store, manifest)
    assert holders(store.locate(manifest.file_id)) == [[(A, 1), (B, 2)]] * 3


def test_committing_again_is_the_same_file_whatever_is_up(store: TrackerStore) -> None:
    """SPEC U7, and a client that never saw the first answer."""
    manifest = stored(store, make("f", [1, 2]))
    first, _ = commit(store, manifest, now_ms=10)
    store.drop_holdings(A, [digest(1)])
    again, already = commit(store, manifest, now_ms=20, live=[])
    assert (again, already) == (first, True)
    assert store.commit_number == 1


def test_committing_again_only_raises_what_is_asked(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]), [A])
    commit(store, manifest, distributed=False, replicas=2, min_peers=1)
    store.add_holdings(B, digests([1, 2]), 30)
    record, already = commit(store, manifest, distributed=True, replicas=1, min_peers=2)
    assert already
    assert (record.replicas, record.is_chunked, record.is_distributed) == (2, True, True)
    record, _ = commit(store, manifest, distributed=False, replicas=3)
    assert (record.replicas, record.is_chunked) == (3, True)
    stored_min = store._database.models.File.select(store._database.models.File.min_peers).scalar()
    assert stored_min == 2


def test_raising_replicas_while_chunks_are_away_keeps_what_is_known_of_peers(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    record, _ = commit(store, manifest, replicas=2, live=[A])
    assert (record.replicas, record.is_distributed, record.minimum_peers_required) == (2, True, 2)


def test_a_removed_file_can_come_back(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    store.remove_file(manifest.file_id, 5)
    _, already = commit(store, manifest)
    assert already is False
    assert store.removals(0) == Removals([], 3, False)
    assert store.remove_file(manifest.file_id, 6) == 4


def test_two_files_may_share_chunks(store: TrackerStore) -> None:
    one, two = make("one", [1, 2]), make("two", [2, 3])
    store.add_holdings(A, digests([1, 2, 3]), 1)
    store.add_holdings(B, digests([1, 2, 3]), 1)
    commit(store, one)
    commit(store, two)
    assert store.files_of([digest(2)]) == sorted([one.file_id, two.file_id])
    assert store.files_of(digests([1, 8])) == [one.file_id]


def test_a_nul_in_a_name_is_refused_as_no_database_takes_it_alike(store: TrackerStore) -> None:
    with pytest.raises(ManifestInvalid, match="NUL"):
        commit(store, stored(store, make("a\0b", [1, 2])))


# -- resolve ----------------------------------------------------------------------------


def put(store: TrackerStore, name: str, chunk: int, now_ms: int) -> FileRecord:
    return commit(store, stored(store, make(name, [chunk]), [A]), distributed=False, now_ms=now_ms)[0]


def test_a_name_means_its_newest_file(store: TrackerStore) -> None:
    """The one that was committed last, though the clock had been set back by then."""
    put(store, "f", 1, 30)
    put(store, "f", 2, 40)
    newest = put(store, "f", 3, 20)
    put(store, "other", 4, 50)
    assert store.resolve("f", unique=False) == newest


def test_of_the_same_moment_the_later_commit_is_newer(store: TrackerStore) -> None:
    put(store, "f", 1, 30)
    later = put(store, "f", 2, 30)
    assert store.resolve("f", unique=False) == later
    assert store.list_files("")[0][0] == later


def test_unique_refuses_a_name_of_several_files(store: TrackerStore) -> None:
    older, newer = put(store, "f", 1, 30), put(store, "f", 2, 40)
    alone = put(store, "g", 3, 50)
    with pytest.raises(AmbiguousName, match="name of 2 files") as caught:
        store.resolve("f", unique=True)
    assert caught.value.details == {"candidates": [newer.file_id, older.file_id]}
    assert store.resolve("g", unique=True) == alone


@pytest.mark.parametrize("length", [8, 20, 64])
def test_an_id_or_its_beginning_finds_the_file(store: TrackerStore, length: int) -> None:
    record = put(store, "f", 1, 30)
    put(store, "g", 2, 30)
    assert store.resolve(record.file_id[:length], unique=True) == record
    assert store.resolve(record.file_id[:length].upper(), unique=False) == record


@pytest.mark.parametrize("asked", ["nosuch", "", "a\0b", "deadbeef", "%", "_" * 8, "x" * 4096, "f\n"])
def test_what_is_not_there_is_named_on_one_line(store: TrackerStore, asked: str) -> None:
    put(store, "f", 1, 30)
    with pytest.raises(NotFound) as caught:
        store.resolve(asked, unique=False)
    assert repr(asked[:100])[:-1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_beginning_of_seven_digits_or_beyond_64_is_none(store: TrackerStore) -> None:
    record = put(store, "f", 1, 30)
    for asked in (record.file_id[:7], record.file_id + "0"):
        with pytest.raises(NotFound):
            store.resolve(asked, unique=False)


def test_a_beginning_of_several_ids_is_refused(store: TrackerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["deadbeef" + f"{number:056x}" for number in (1, 2)]
    for number, file_id in enumerate(ids):
        manifest = stored(store, make("f", [number]), [A])
        manifest.__dict__["file_id"] = file_id  # SHA-256 gives no such pair
        commit(store, manifest, distributed=False, now_ms=number)
    with pytest.raises(AmbiguousName, match="id of 2 files") as caught:
        store.resolve("deadbeef", unique=False)
    assert caught.value.details["candidates"] == ids[::-1]
    assert store.resolve(ids[0], unique=False).file_id == ids[0]


def test_an_exact_name_wins_over_the_beginning_of_an_id(store: TrackerStore) -> None:
    """SPEC "Command line"."""
    target = put(store, "f", 1, 30)
    prefix = put(store, target.file_id[:10], 3, 10)
    assert store.resolve(target.file_id[:10], unique=True) == prefix
    assert store.resolve(target.file_id[:11], unique=True) == target
    almost = put(store, target.file_id[:63], 4, 10)
    assert store.resolve(target.file_id[:63], unique=True) == almost


@pytest.mark.parametrize("change", [str, str.upper])
def test_64_hex_digits_are_an_id_and_no_name(store: TrackerStore, change: Callable[[str], str]) -> None:
    target = put(store, "f", 1, 30)
    asked = change(target.file_id)
    with pytest.raises(InvalidUsage, match="64 hex digits are always a file id"):
        put(store, asked, 2, 40)
    assert store.resolve(asked, unique=True) == target
    store.remove_file(target.file_id, now_ms=50)
    with pytest.raises(NotFound):
        store.resolve(asked, unique=False)


def test_an_earlier_file_of_such_a_name_is_reached_by_its_own_id(store: TrackerStore) -> None:
    target, named = put(store, "f", 1, 30), put(store, "g", 2, 40)
    before = store.commit_number
    file = store._database.models.File
    file.update({file.name: target.file_id}).where(file.file_id == named.file_id).execute()
    assert store.resolve(target.file_id, unique=False) == target
    assert store.resolve(target.file_id, unique=True) == target
    assert store.resolve(named.file_id, unique=True).name == target.file_id
    assert store.locate(named.file_id).file.file_id == named.file_id
    again, already = commit(store, make("g", [2]), distributed=False, now_ms=50)
    assert (again.file_id, already) == (named.file_id, True), "a commit repeated goes well"
    assert store.commit_number == before


# -- locate, health, listing --------------------------------------------------------------


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


# -- removal, release -----------------------------------------------------------------------


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


# -- the view -------------------------------------------------------------------------------


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


# -- size -----------------------------------------------------------------------------------


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


# -- against a model --------------------------------------------------------------------------

PEERS = (A, B, C)
HASHES = st.sets(st.integers(0, 9), max_size=6)
FILES = tuple(
    make(name, chunks)
    for name, chunks in [("f", [0, 1]), ("f", [1, 2, 3]), ("g", [4, 4]), ("h", [5]), ("h", [0, 5, 9, 2])]
)
MANIFESTS = st.sampled_from(FILES)
PEER = st.sampled_from(PEERS)


@dataclass
class Model:
    """What the store should know, told in sets."""

    #: (peer, hash) -> (stored at, available)
    holdings: dict[tuple[str, bytes], tuple[int, bool]] = field(default_factory=dict)
    #: file id -> (manifest, replicas, created, commit number)
    files: dict[str, tuple[Manifest, int, int, int]] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    commit_number: int = 0

    def held_by(self, peer_id: str) -> set[bytes]:
        return {chunk_hash for peer, chunk_hash in self.holdings if peer == peer_id}

    def readable(self, chunk_hash: bytes, live: Iterable[str]) -> set[str]:
        return {p for p in live if self.holdings.get((p, chunk_hash), (0, False))[1]}

    def named(self) -> set[bytes]:
        return {row.sha256 for manifest, *_ in self.files.values() for row in manifest.chunks}

    def locations(self) -> set[tuple[Any, ...]]:
        return {
            (file_id, index, peer, row.sha256, at, ok)
            for file_id, (manifest, *_) in self.files.items()
            for index, row in enumerate(manifest.chunks)
            for (peer, chunk_hash), (at, ok) in self.holdings.items()
            if chunk_hash == row.sha256
        }


class StoreAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = TrackerStore.open(":memory:", ManualClock())
        self.model = Model()
        self.now = 100
        for peer_id in PEERS:
            register(self.store, peer_id)

    def teardown(self) -> None:
        self.store.close()

    def tick(self) -> int:
        self.now += 1
        return self.now

    @rule(peer=PEER, numbers=HASHES)
    def add(self, peer: str, numbers: set[int]) -> None:
        now, held = self.tick(), self.model.holdings
        new = [h for h in digests(numbers) if (peer, h) not in held]
        assert self.store.add_holdings(peer, digests(numbers), now) == len(new)
        held.update({(peer, h): (now, True) for h in new})

    @rule(peer=PEER, numbers=HASHES)
    def drop(self, peer: str, numbers: set[int]) -> None:
        gone = [h for h in digests(numbers) if self.model.holdings.pop((peer, h), None)]
        assert self.store.drop_holdings(peer, digests(numbers)) == len(gone)

    @rule(peer=PEER, numbers=HASHES)
    def replace(self, peer: str, numbers: set[int]) -> None:
        now, before, after = self.tick(), self.model.held_by(peer), set(digests(numbers))
        change = self.store.replace_inventory(peer, digests(numbers), now)
        assert (change.added, change.lost) == (len(after - before), len(before - after))
        touched = {
            file_id
            for file_id, (manifest, *_) in self.model.files.items()
            if {row.sha256 for row in manifest.chunks} & (before - after)
        }
        assert change.files_touched == touched
        for chunk_hash in before - after:
            del self.model.holdings[peer, chunk_hash]
        self.model.holdings.update({(peer, h): (now, True) for h in after - before})

    @rule(peer=PEER, number=st.integers(0, 9))
    def damage(self, peer: str, number: int) -> None:
        at, ok = self.model.holdings.get((peer, digest(number)), (0, False))
        assert self.store.mark_unavailable(peer, digest(number)) == ok
        if ok:
            self.model.holdings[peer, digest(number)] = at, False

    @rule(peer=PEER, numbers=HASHES)
    def checked(self, peer: str, numbers: set[int]) -> None:
        held = self.model.holdings
        again = [h for h in digests(numbers) if held.get((peer, h), (0, True))[1] is False]
        assert sorted(self.store.mark_whole(peer, digests(numbers))) == sorted(again)
        held.update({(peer, h): (held[peer, h][0], True) for h in again})

    @rule(manifest=MANIFESTS, live=st.sets(PEER), replicas=st.integers(1, 3), distributed=st.booleans())
    def commit(self, manifest: Manifest, live: set[str], replicas: int, distributed: bool) -> None:
        now, model = self.tick(), self.model
        known = model.files.get(manifest.file_id)
        by_chunk = [model.readable(row.sha256, live) for row in manifest.chunks]
        spread = set().union(*by_chunk)
        demand = {"live": live, "replicas": replicas, "distributed": distributed, "now_ms": now}
        if known is None and not all(by_chunk):
            with pytest.raises(NotYetStored) as caught:
                commit(self.store, manifest, **demand)
            assert caught.value.details["chunks_missing"] == by_chunk.count(set())
        elif known is None and distributed and len(spread) < min(2, len(by_chunk) * replicas):
            with pytest.raises(TooFewPeers):
                commit(self.store, manifest, **demand)
        else:
            record, already = commit(self.store, manifest, **demand)
            assert already == (known is not None)
            if known is None:
                model.commit_number += 1
                model.files[manifest.file_id] = manifest, replicas, now, model.commit_number
                assert record.is_distributed == (len(spread) >= 2)
            else:
                model.files[manifest.file_id] = manifest, max(replicas, known[1]), known[2], known[3]
            model.tombstones.pop(manifest.file_id, None)
            assert record.replicas == model.files[manifest.file_id][1]

    @rule(manifest=MANIFESTS)
    def remove(self, manifest: Manifest) -> None:
        file_id, model = manifest.file_id, self.model
        if model.files.pop(file_id, None) is not None:
            model.commit_number += 1
            model.tombstones[file_id] = model.commit_number
        if file_id in model.tombstones:
            assert self.store.remove_file(file_id, self.tick()) == model.tombstones[file_id]
        else:
            with pytest.raises(NotFound):
                self.store.remove_file(file_id, self.tick())

    @rule(peer=PEER, numbers=HASHES)
    def release(self, peer: str, numbers: set[int]) -> None:
        freed = self.store.release(peer, digests(numbers))
        named = self.model.named()
        assert not named & set(freed)
        assert freed == [h for h in digests(numbers) if h not in named]
        for chunk_hash in freed:
            self.model.holdings.pop((peer, chunk_hash), None)

    @rule(peer=PEER, numbers=HASHES, manifest=MANIFESTS, fails=st.booleans())
    def batched(self, peer: str, numbers: set[int], manifest: Manifest, fails: bool) -> None:
        """Adding stands though the call behind it is refused; unless the batch is given up."""
        with suppress(ZeroDivisionError), self.store.batch():
            if fails:
                self.store.add_holdings(peer, digests(numbers), self.tick())
                self.store.replace_inventory(peer, [], self.now)
                raise ZeroDivisionError
            self.add(peer, numbers)
            with pytest.raises(NotFound):
                self.store.remove_file("f" * 64, self.now)
            self.remove(manifest)

    @invariant()
    def the_view_is_the_join(self) -> None:
        assert view(self.store) == self.model.locations()

    @invariant()
    def a_chunk_is_known_while_it_is_held_or_named(self) -> None:
        table = self.store._database.models.Chunk
        held = {chunk_hash for _, chunk_hash in self.model.holdings}
        assert {bytes(row[0]) for row in table.select(table.chunk_hash).tuples()} == held | self.model.named()

    @invariant()
    def inventories_are_exact(self) -> None:
        for peer in PEERS:
            held = self.model.held_by(peer)
            assert self.store.inventory_summary(peer) == (len(held), inventory_digest(list(held)))

    @invariant()
    def files_are_found_as_committed(self) -> None:
        newest_first = sorted(self.model.files.items(), key=lambda item: item[1][3], reverse=True)
        expected = [file_id for file_id, _ in newest_first]
        assert [record.file_id for record in self.store.list_files("")[0]] == expected
        assert self.store.commit_number == self.model.commit_number
        removed = sorted(self.model.tombstones, key=self.model.tombstones.__getitem__)
        assert self.store.removals(0) == Removals(removed, self.model.commit_number, False)

    @rule()
    def forget(self) -> None:
        self.store._listing.remembered.clear()

    @precondition(lambda self: self.model.files)
    @invariant()
    def holders_are_located(self) -> None:
        for file_id, (manifest, replicas, *_) in self.model.files.items():
            expected = [self._holders_of(row.sha256) for row in manifest.chunks]
            assert holders(self.store.locate(file_id)) == expected
            live = [len(set(dict(row)) & {A, B}) for row in expected]
            low = sum(count < replicas for count in live)
            counts = HealthCounts(len(live), len(live) - live.count(0), low)
            assert self.store.health_counts(file_id, [A, B]) == counts

    def _holders_of(self, chunk_hash: bytes) -> list[tuple[str, int]]:
        found = [(at, p) for (p, h), (at, ok) in self.model.holdings.items() if h == chunk_hash and ok]
        return [(peer, at) for at, peer in sorted(found)]


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
