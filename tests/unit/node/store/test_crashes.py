"""A process that is killed at any call loses no chunk, and holds none that is not whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.store.stores import (
    BIG,
    DAY,
    UPLOAD,
    Chunk,
    Stores,
    bring,
    check,
    chunk_path,
    files_below,
    flip_a_bit,
    keep,
    manifest_of,
    oserror,
    placed,
    put,
    replaced,
)
from zchunk.content import hashing
from zchunk.errors import (
    ForeignStore,
    NoSpace,
    NotAllowed,
    StorageFailure,
    StorageUnavailable,
    StoreOffline,
    ZchunkError,
)
from zchunk.node.store import chunk_index
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.reconcile import Reconciler
from zchunk.node.store.store_folder import MARKER
from zchunk.system import disk


def intent(stores: Stores, chunk: Chunk) -> None:
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db, db:
        db.execute("INSERT INTO _intent (sha256) VALUES (?)", (chunk.sha256,))


def intents(stores: Stores) -> int:
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM _intent").fetchone()[0])


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("state", ["intent", "temp", "half a temp", "renamed", "renamed, no intent"])
def test_each_state_between_intent_and_row(
    stores: Stores, store: ChunkStore, state: str, clean: bool
) -> None:
    held, chunk = Chunk(1), Chunk(2)
    put(store, held)
    store.close() if clean else stores.crash(store)
    if state != "renamed, no intent":
        intent(stores, chunk)
    if "temp" in state:
        (stores.root / "tmp" / f"{chunk.hex}.0").write_bytes(chunk.data[: 100 if "half" in state else None])
    if "renamed" in state:
        placed(stores, chunk)
    again = stores.reopen()
    # A clean close has waited for every put, so there only intents are looked after.
    found = state == "renamed" or (state == "renamed, no intent" and not clean)
    assert again.has(chunk.sha256) is found
    assert again.has(held.sha256)
    assert os.listdir(stores.root / "tmp") == []
    assert intents(stores) == 0
    assert again.leased(chunk.sha256, stores.clock.wall()) is found  # its own lease was lost
    if not found:
        put(again, chunk)
    check(again)


def test_a_chunk_found_after_a_kill_is_read_from_the_disk_and_its_folder_synced(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between rename and folder sync: in the cache it is there, on the disk perhaps not."""
    stores.crash(store)
    path = placed(stores, Chunk(1))
    calls = []
    real_sync, real_drop = disk.sync_folder, disk.drop_cache
    monkeypatch.setattr(disk, "sync_folder", lambda at: (calls.append(at), real_sync(at)))
    monkeypatch.setattr(disk, "drop_cache", lambda fd: (calls.append("drop"), real_drop(fd)))
    assert stores.reopen().count == 1
    assert path.parent in calls
    assert "drop" in calls


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
@pytest.mark.parametrize("known", ["intent", "listing", "row"])
def test_a_damaged_file_under_a_final_name_is_no_chunk(
    stores: Stores, store: ChunkStore, damage: str, known: str
) -> None:
    chunk = Chunk(1)
    if known == "row":
        put(store, chunk)
    stores.crash(store)
    path = placed(stores, chunk)
    if damage == "flip":
        flip_a_bit(path, 7)
    else:
        path.write_bytes({"cut": chunk.data[:-1], "empty": b"", "longer": chunk.data + b"x"}[damage])
    if known == "intent":
        intent(stores, chunk)
    again = stores.reopen()
    if known == "row" and damage == "flip":  # same size: the scrub's work, not the opening's
        assert not again.verify(chunk.sha256)
        again.drop_corrupt(chunk.sha256)
    assert not again.has(chunk.sha256)
    assert not path.exists()
    assert files_below(stores.root / "trash") == [f"corrupt/2023-11-14-{chunk.hex}"]
    put(again, chunk)


def test_a_chunk_that_vanished_is_not_held_after_a_crash(stores: Stores, store: ChunkStore) -> None:
    gone, held = Chunk(1), Chunk(2)
    put(store, gone, held)
    stores.crash(store)
    chunk_path(stores.root, gone).unlink()
    assert stores.reopen().hashes() == [held.sha256]


def test_foreign_files_in_the_folders_stay(stores: Stores, store: ChunkStore) -> None:
    chunk = Chunk(1)
    put(store, chunk)
    stores.crash(store)
    strange = [
        stores.root / "chunks" / "notes.txt",
        stores.root / "chunks" / chunk.hex[:2] / "readme",
        stores.root / "chunks" / chunk.hex[:2] / ("ff" * 32),
        stores.root / "manifests" / "readme",
        stores.root / "trash" / "readme",
    ]
    (stores.root / "trash" / "mine").mkdir()
    strange.append(stores.root / "trash" / "mine" / "x")
    for path in strange:
        path.write_bytes(b"mine")
    again = stores.reopen()
    again.purge_trash(stores.clock.wall() + 1000 * DAY)
    assert all(path.exists() for path in strange)
    assert again.hashes() == ([chunk.sha256])


def test_after_a_clean_close_no_chunk_is_read_or_listed(
    stores: Stores, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, *map(Chunk, range(20)))
    store.close()
    before = hashing.counts.copy()
    monkeypatch.setattr(Reconciler, "_reconcile_chunks", lambda self: pytest.fail("listed"))
    again = stores.reopen()
    assert again.count == 20
    assert hashing.counts == before


def test_after_a_crash_chunks_with_a_row_are_listed_but_not_read(stores: Stores, store: ChunkStore) -> None:
    put(store, *map(Chunk, range(20)))
    stores.crash(store)
    before = hashing.counts.copy()
    again = stores.reopen()
    assert hashing.counts == before
    assert again.count == 20


def test_a_power_cut_cannot_bring_the_clean_flag_of_an_earlier_run_back(
    stores: Stores, store: ChunkStore
) -> None:
    """The flag is taken off durably before the first put, not in the write-ahead log alone."""
    store.close()
    again = stores.reopen()
    copy = stores.root.with_name("without-log.sqlite")
    copy.write_bytes((stores.root / "index.sqlite").read_bytes())
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT value FROM _setting WHERE key = 'clean'").fetchone() == ("",)
    again.close()
    with contextlib.closing(sqlite3.connect(stores.root / "index.sqlite")) as db:
        assert db.execute("SELECT value FROM _setting WHERE key = 'clean'").fetchone() == (
            (stores.root / "closed").read_text(),
        )


@pytest.mark.parametrize(
    "how", ["missing", "garbage", "zeros", "empty", "other schema", "cut", "broken page", "broken half"]
)
@pytest.mark.parametrize("clean", [True, False])
def test_without_a_usable_index_the_folder_tells_everything(
    stores: Stores, store: ChunkStore, how: str, clean: bool
) -> None:
    chunks = [Chunk(seed, 2000) for seed in range(60)]
    put(store, *chunks)
    file_id = keep(store, *chunks[:1])
    store.close() if clean else stores.crash(store)
    spoil(stores.root / "index.sqlite", how)
    again = stores.reopen()
    assert again.hashes() == sorted(c.sha256 for c in chunks)
    assert again.manifests() == [file_id]
    assert chunks[0].sha256 not in again.garbage(BIG)
    assert len(again.garbage(BIG)) == 59
    set_aside = [n for n in os.listdir(stores.root) if "damaged" in n and not n.endswith(("-wal", "-shm"))]
    assert len(set_aside) == len(again.notes) == (0 if how in ("missing", "empty") else 1)
    check(again)
    again.close()
    assert stores.reopen().notes == []


def spoil(path: Path, how: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:  # all of it into the one file
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if how == "other schema":
            db.execute("UPDATE _setting SET value = '99' WHERE key = 'schema'")
            db.commit()
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "broken half":
        half = len(data) // 8192 * 4096
        path.write_bytes(data[:half] + random.Random(1).randbytes(len(data) - half))
    elif how == "broken page":
        path.write_bytes(data[:4096] + random.Random(1).randbytes(len(data) - 4096))
    elif how != "other schema":
        new = {"garbage": b"garbage!" * 999, "zeros": bytes(len(data)), "empty": b"", "cut": data[:5000]}
        path.write_bytes(new[how])


def test_a_second_damaged_index_is_set_aside_beside_the_first(stores: Stores, store: ChunkStore) -> None:
    for _ in range(2):
        store.close()
        (stores.root / "index.sqlite").write_bytes(b"garbage!" * 999)
        store = stores.reopen()
    assert {"index.sqlite.damaged-1", "index.sqlite.damaged-2"} <= set(os.listdir(stores.root))


def test_an_index_that_may_not_be_opened_is_not_taken_for_damaged(stores: Stores, store: ChunkStore) -> None:
    store.close()
    os.unlink(stores.root / "index.sqlite")
    (stores.root / "index.sqlite").mkdir()
    with pytest.raises(StorageUnavailable, match="unable to open"):
        stores.reopen()
    assert (stores.root / "index.sqlite").is_dir()


#: What SQLite says -> what it is.
INDEX_ERRORS = {
    "SQLITE_FULL": NoSpace,
    "SQLITE_NOMEM": StorageUnavailable,
    "SQLITE_IOERR_NOMEM": StorageUnavailable,
    "SQLITE_CANTOPEN": StorageUnavailable,
    "SQLITE_BUSY_SNAPSHOT": StorageUnavailable,
    "SQLITE_READONLY_DBMOVED": NotAllowed,
    "SQLITE_IOERR_READ": StorageFailure,
    "SQLITE_CORRUPT": StorageFailure,
}


@pytest.mark.parametrize("name", INDEX_ERRORS)
def test_only_a_broken_index_makes_the_store_refuse_until_a_restart(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    """And peewee's rollback, which fails too then, does not cover what SQLite said first."""
    error: Exception = MemoryError()
    if name != "SQLITE_NOMEM":
        error = sqlite3.OperationalError("what SQLite says")
        error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    with replaced(store.parts.index._db, "execute", fail), pytest.raises(INDEX_ERRORS[name]) as caught:
        put(store, Chunk(1))
    assert type(caught.value) is INDEX_ERRORS[name]
    if name == "SQLITE_NOMEM":
        assert caught.value.message.endswith("failed: no memory is left")
    assert bool(store.flag) is (INDEX_ERRORS[name] is StorageFailure)
    assert not store.has(Chunk(1).sha256)
    if not store.flag:
        put(store, Chunk(1))


@pytest.mark.parametrize("name", ["SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN"])
def test_an_index_on_a_full_disk_has_no_space_whatever_sqlite_calls_it(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    with (
        replaced(store.parts.index._db, "execute", fail),
        replaced(disk, "free_bytes", lambda path: 4096),
        pytest.raises(NoSpace, match="free some space"),
    ):
        put(store, Chunk(1))
    assert store.flag is None
    put(store, Chunk(1))


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_CANTOPEN", "SQLITE_IOERR_NOMEM"])
def test_an_index_that_cannot_be_checked_is_not_set_aside(
    stores: Stores, store: ChunkStore, name: str
) -> None:
    put(store, Chunk(1))
    store.close()
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = getattr(sqlite3, name)

    def fail(self: chunk_index.ChunkIndex) -> None:
        with chunk_index._errors(self.path):
            raise error

    with replaced(chunk_index.ChunkIndex, "is_sound", fail), pytest.raises(ZchunkError):
        stores.reopen()
    assert not list(stores.root.glob("*.damaged*"))
    assert stores.reopen().hashes() == [Chunk(1).sha256]


def test_rebuild_index_repairs_rows_while_the_store_runs(stores: Stores, store: ChunkStore) -> None:
    held, gone, new, cut = map(Chunk, range(4))
    put(store, held, gone, cut)
    file_id = keep(store, held)
    chunk_path(stores.root, gone).unlink()
    placed(stores, new)
    placed(stores, cut, cut.data[:-1])
    with store.parts.index_lock:
        store.parts.index.remove_manifest(file_id)
    store.rebuild_index()
    assert store.hashes() == sorted([held.sha256, new.sha256])
    assert store.manifests() == [file_id]
    assert held.sha256 not in store.garbage(BIG)


@pytest.mark.row("R8")
def test_unplugged_while_it_is_opened_makes_no_chunk_corrupt(stores: Stores, store: ChunkStore) -> None:
    stores.crash(store)
    path = placed(stores, Chunk(1))

    def unplug(_fd: int) -> None:
        os.rename(stores.root / MARKER, stores.root / "aside")
        oserror(errno.EIO)()

    with replaced(disk, "drop_cache", unplug), pytest.raises(StoreOffline):
        stores.reopen()
    assert path.exists()
    os.rename(stores.root / "aside", stores.root / MARKER)
    assert stores.reopen().count == 1


PATCHED = [
    "open",
    "pwrite",
    "fdatasync",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "ftruncate",
    "rmdir",
]


def run_killed(step: int, action: Callable[[Callable[[bytes], object]], None]) -> tuple[bool, bytes]:
    """Runs `action(say)` in a process that dies before its `step`-th disk call. Returns
    whether it got through, and what it said before it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(step)
            action(lambda data: os.write(writing, data))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137)
    return code == 0, said


def die_at(step: int) -> None:
    left = [step]

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return real(*args, **kwargs)

        return call

    for name in PATCHED:
        setattr(os, name, dying(getattr(os, name)))


def every_kill(action: Callable[[Callable[[bytes], object]], None], then: Callable[[bytes], None]) -> int:
    """Kills `action` before each of its disk calls in turn; `then(said)` after each."""
    for step in range(1, 1000):
        done, said = run_killed(step, action)
        then(said)
        if done:
            return step - 1
    pytest.fail("it never gets through")


def test_killed_at_any_disk_call_of_put_the_chunk_is_whole_or_absent(stores: Stores) -> None:
    """PITFALLS T2: nothing acknowledged is lost, nothing is held that is not whole."""
    chunks = iter(Chunk(seed, 9000) for seed in range(1000))
    told: list[bytes] = []
    now: list[Chunk] = []

    def action(say: Callable[[bytes], object]) -> None:
        store = stores.create()
        put(store, now[0])
        say(now[0].sha256)

    def then(said: bytes) -> None:
        told.extend([said] if said else [])
        now[:] = [next(chunks)]
        if not (stores.root / MARKER).exists():
            return
        store = stores.reopen()
        check(store)
        assert all(store.has(sha256) for sha256 in told)
        assert os.listdir(stores.root / "tmp") == []
        assert not [n for n in os.listdir(stores.root) if n.endswith(".tmp")]
        assert intents(stores) == 0
        store.close()

    now.append(next(chunks))
    assert every_kill(action, then) > 12
    assert len(told) == 1


def test_killed_at_any_disk_call_of_trash_and_manifests(stores: Stores) -> None:
    chunks = [Chunk(seed, 5000) for seed in range(4)]
    made = manifest_of(Chunk(50))
    step = [0]

    def action(say: Callable[[bytes], object]) -> None:
        store = stores.create()
        store.end_leases(UPLOAD)
        store.end_leases(chunk_index.RECOVERED)
        moved = store.trash([c.sha256 for c in chunks], "cluster", stores.clock.wall())
        say(b"".join(moved))
        bring(store, made)
        store.seen_store("cluster", step[0] + 1)
        store.forget_manifest(made.file_id)
        store.purge_trash(stores.clock.wall() + 9 * DAY)

    def then(said: bytes) -> None:
        store = stores.reopen()
        check(store)
        if said:
            assert store.count == 0
        kept = {p.name for p in (stores.root / "manifests").iterdir()}
        assert set(store.manifests()) == kept <= {made.file_id}
        step[0] = store.commit_number
        put(store, *chunks)
        store.close()

    first = stores.create()
    first.seen_store("cluster", 0)  # a node meets its tracker before it is given a manifest
    put(first, *chunks)
    first.close()
    assert every_kill(action, then) > 20


def test_a_store_that_lost_its_memory_of_the_cluster_obeys_nobody(stores: Stores) -> None:
    """Until it has been found out that the tracker knows all files that are kept here."""
    store = stores.create()
    assert not store.adopt_store("cluster", 4), "a new store has lost nothing"
    store.seen_store("cluster", 7)
    keep(store, Chunk(50))
    assert not store.adopt_store("cluster", 8)
    assert store.commit_number == 7
    store.close()
    for name in ("cluster.json", "index.sqlite"):
        (stores.root / name).unlink()
    store = stores.reopen()
    with pytest.raises(ForeignStore, match=r"cluster\.json is missing"):
        store.seen_store("cluster", 6)
    assert (store.store_id, store.commit_number) == (None, 0)
    assert store.adopt_store("cluster", 6)
    store.seen_store("cluster", 6)
    assert (store.store_id, store.commit_number) == ("cluster", 6)
