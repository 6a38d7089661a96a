"""tracker/store/upgrades.py: stores that earlier releases made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.unit.tracker.store.rows import A, B, C, commit, digest, digests, holders, make, view
from zchunk.clock import ManualClock
from zchunk.content.hashing import inventory_digest
from zchunk.errors import StorageFailure
from zchunk.tracker.store.store import Removals, TrackerStore

#: As 0.1.0 made it.
VERSION_1 = """
    CREATE TABLE "Meta" ("key" VARCHAR(64) NOT NULL PRIMARY KEY, "value" TEXT NOT NULL);
    CREATE TABLE "Peer" ("id" INTEGER NOT NULL PRIMARY KEY, "peer_id" VARCHAR(32) NOT NULL,
        "name" TEXT NOT NULL, "incarnation" INTEGER NOT NULL, "endpoints" TEXT NOT NULL,
        "capacity" INTEGER NOT NULL, "free" INTEGER NOT NULL, "inventory_count" INTEGER NOT NULL,
        "inventory_digest" BLOB NOT NULL, "last_seen_ms" INTEGER NOT NULL, "left" INTEGER NOT NULL);
    CREATE UNIQUE INDEX "peer_peer_id" ON "Peer" ("peer_id");
    CREATE TABLE "File" ("id" INTEGER NOT NULL PRIMARY KEY, "file_id" VARCHAR(64) NOT NULL,
        "name" TEXT NOT NULL, "size" INTEGER NOT NULL, "sha256" BLOB, "chunk_size" INTEGER NOT NULL,
        "chunks_count" INTEGER NOT NULL, "replicas" INTEGER NOT NULL, "is_chunked" INTEGER NOT NULL,
        "is_distributed" INTEGER NOT NULL, "minimum_peers_required" INTEGER NOT NULL,
        "min_peers" INTEGER NOT NULL, "created_at_ms" INTEGER NOT NULL, "commit_number" INTEGER NOT NULL,
        "manifest" BLOB NOT NULL);
    CREATE UNIQUE INDEX "file_file_id" ON "File" ("file_id");
    CREATE INDEX "file_name" ON "File" ("name");
    CREATE INDEX "file_created_at_ms_commit_number" ON "File" ("created_at_ms", "commit_number");
    CREATE TABLE "FileChunk" ("file" INTEGER NOT NULL REFERENCES "File" ("id"),
        "chunk_index" INTEGER NOT NULL, "chunk_hash" BLOB NOT NULL,
        PRIMARY KEY ("file", "chunk_index")) WITHOUT ROWID;
    CREATE INDEX "filechunk_chunk_hash" ON "FileChunk" ("chunk_hash");
    CREATE TABLE "Holding" ("chunk_hash" BLOB NOT NULL, "peer" INTEGER NOT NULL REFERENCES "Peer" ("id"),
        "stored_at_ms" INTEGER NOT NULL, "is_available" INTEGER NOT NULL,
        PRIMARY KEY ("chunk_hash", "peer")) WITHOUT ROWID;
    CREATE INDEX "holding_peer" ON "Holding" ("peer");
    CREATE TABLE "Tombstone" ("file_id" VARCHAR(64) NOT NULL PRIMARY KEY, "name" TEXT NOT NULL,
        "commit_number" INTEGER NOT NULL, "removed_at_ms" INTEGER NOT NULL);
    CREATE INDEX "tombstone_commit_number" ON "Tombstone" ("commit_number");
    CREATE VIEW "ChunkLocation" AS SELECT "t1"."file_id", "t2"."chunk_index", "t3"."peer_id",
        "t2"."chunk_hash", "t4"."stored_at_ms" AS "stored_at", "t4"."is_available" FROM "FileChunk" AS "t2"
        INNER JOIN "File" AS "t1" ON ("t1"."id" = "t2"."file")
        INNER JOIN "Holding" AS "t4" ON ("t2"."chunk_hash" = "t4"."chunk_hash")
        INNER JOIN "Peer" AS "t3" ON ("t3"."id" = "t4"."peer");
"""
META = {"schema_version": "1", "store_id": "5" * 32, "commit_number": "3", "created_at_ms": "1"}
#: with one chunk at two places, and one that both have
FILES = make("f", [1, 2, 1]), make("g", [2, 3])
#: (chunk, peer's key, stored at, available); nobody has chunk 3, no file names 7 and 8
HELD = [
    (1, 1, 10, 1),
    (1, 2, 5, 1),
    (2, 2, 10, 0),
    (2, 3, 11, 1),
    (7, 1, 12, 1),
    (7, 3, 12, 1),
    (8, 3, 13, 0),
]


@pytest.fixture
def old(tmp_path: Path) -> str:
    """The path of a store of version 1."""
    path = str(tmp_path / "tracker.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(VERSION_1)
        connection.executemany('INSERT INTO "Meta" VALUES (?, ?)', META.items())
        for key, peer_id in enumerate((A, B, C), 1):
            mine = digests(number for number, peer, *_ in HELD if peer == key)
            values = (key, peer_id, f"PC-{key}", 1, "[]", 9, 8, len(mine), inventory_digest(mine), 5, 0)
            connection.execute(f'INSERT INTO "Peer" VALUES ({",".join("?" * 11)})', values)
        for key, manifest in enumerate(FILES, 1):
            head = (key, manifest.file_id, manifest.name, manifest.size, manifest.sha256, manifest.chunk_size)
            rest = (len(manifest.chunks), 1, 1, 1, 2, 2, 100 + key, key, manifest.canonical)
            connection.execute(f'INSERT INTO "File" VALUES ({",".join("?" * 15)})', head + rest)
            chunks = [(key, index, sha256) for index, sha256 in enumerate(manifest.hashes)]
            connection.executemany('INSERT INTO "FileChunk" VALUES (?, ?, ?)', chunks)
        held = [(digest(number), *rest) for number, *rest in HELD]
        connection.executemany('INSERT INTO "Holding" VALUES (?, ?, ?, ?)', held)
        connection.execute('INSERT INTO "Tombstone" VALUES (?, ?, ?, ?)', ("d" * 64, "gone", 3, 50))
    return path


def asked(path: str, query: str) -> set[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return set(connection.execute(query).fetchall())


def dump(path: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_a_store_of_version_1_holds_the_same_afterwards(old: str) -> None:
    before = asked(old, 'SELECT * FROM "ChunkLocation"')
    assert len(before) == 8
    store = TrackerStore.open(old, ManualClock())
    assert view(store) == before
    assert (store.store_id, store.commit_number) == (META["store_id"], 3)
    assert [file.file_id for file in store.list_files("")[0]] == [f.file_id for f in reversed(FILES)]
    assert store.removals(0) == Removals(["d" * 64], 3, False)
    one, other = (store.locate(manifest.file_id) for manifest in FILES)
    assert [one.manifest, other.manifest] == [manifest.canonical for manifest in FILES]
    assert holders(one) == [[(B, 5), (A, 10)], [(C, 11)], [(B, 5), (A, 10)]]
    assert holders(other) == [[(C, 11)], []]
    store.close()


def test_a_store_of_version_1_goes_on_as_one_of_today(old: str) -> None:
    store = TrackerStore.open(old, ManualClock())
    for key, peer_id in enumerate((A, B, C), 1):
        mine = digests(number for number, peer, *_ in HELD if peer == key)
        assert store.inventory_summary(peer_id) == (len(mine), inventory_digest(mine))
        change = store.replace_inventory(peer_id, mine, 99)
        assert (change.added, change.lost) == (0, 0)
    assert store.unavailable_on(C, 9) == [digest(8)]
    assert store.mark_whole(B, [digest(2)]) == [digest(2)]
    assert store.release(C, digests([2, 7, 8])) == digests([7, 8])
    store.add_holdings(A, digests([3, 4]), 200)
    commit(store, make("h", [3, 4, 2]))
    assert store.commit_number == 4
    store.remove_file(FILES[0].file_id, 300)
    assert store.release(A, digests([1, 3, 7])) == digests([1, 7])
    store.close()


def test_an_upgraded_store_has_the_tables_of_a_new_one(old: str, tmp_path: Path) -> None:
    new = str(tmp_path / "new.sqlite")
    for path in (old, new):
        TrackerStore.open(path, ManualClock()).close()
    tables = "SELECT type, name, tbl_name FROM sqlite_master"
    assert asked(old, tables) == asked(new, tables)
    for _, name, _ in asked(new, f"{tables} WHERE type = 'table'"):
        for pragma in ("table_info", "foreign_key_list", "index_list"):
            assert asked(old, f'PRAGMA {pragma}("{name}")') == asked(new, f'PRAGMA {pragma}("{name}")')
    by_key = "SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID'"
    assert asked(old, by_key) == asked(new, by_key) != set()
    assert asked(old, 'PRAGMA foreign_key_check("FileChunk")') == set()


def test_an_upgrade_that_fails_anywhere_leaves_the_old_store(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left, failures = dump(old), 0, 0
    run: Any = peewee.SqliteDatabase.execute_sql

    def fails(self: Any, sql: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise peewee.OperationalError("no more")
        return run(self, sql, *args, **kwargs)

    while True:
        left = failures
        with monkeypatch.context() as patch:
            patch.setattr(peewee.SqliteDatabase, "execute_sql", fails)
            try:
                store = TrackerStore.open(old, ManualClock())
            except StorageFailure:
                failures += 1
                assert dump(old) == before
                continue
        break
    assert failures > 15  # statements of an upgrade
    assert len(view(store)) == 8
    store.close()
