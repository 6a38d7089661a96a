"""What turns the tables of one schema version into those of the next.

Called by `models.prepare`, in order, in one transaction with whatever else an upgrade does.
A step speaks to the tables as they were then, so in SQL and not through the models, which
are those of today; SQL that any database understands, but for what `_words` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peewee

#: Runs on a peewee.Database.
Step = Callable[[Any], None]


def _words(database: Any) -> dict[str, str]:
    if isinstance(database, peewee.SqliteDatabase):
        return {"bytes": "BLOB", "long": "INTEGER", "truth": "INTEGER", "by_key": " WITHOUT ROWID"}
    return {"bytes": "BYTEA", "long": "BIGINT", "truth": "BOOLEAN", "by_key": ""}


#: Chunks got numbers: in the order of the files that name them, then those that none names.
_NUMBER_CHUNKS = """
    CREATE TABLE "Chunk" ("id" {long} NOT NULL PRIMARY KEY, "chunk_hash" {bytes} NOT NULL);
    INSERT INTO "Chunk" ("id", "chunk_hash")
        SELECT ROW_NUMBER() OVER (ORDER BY "file", "chunk_index", "chunk_hash"), "chunk_hash" FROM (
            SELECT "chunk_hash", MIN("file") AS "file", MIN("chunk_index") AS "chunk_index" FROM (
                SELECT "chunk_hash", "file", "chunk_index" FROM "FileChunk"
                UNION ALL SELECT "chunk_hash", 2147483647, 0 FROM "Holding"
            ) AS "each" GROUP BY "chunk_hash"
        ) AS "known";
    CREATE UNIQUE INDEX "chunk_chunk_hash" ON "Chunk" ("chunk_hash");

    CREATE TABLE "FileChunk2" ("file" INTEGER NOT NULL REFERENCES "File" ("id"),
        "chunk_index" INTEGER NOT NULL, "chunk" {long} NOT NULL REFERENCES "Chunk" ("id"),
        PRIMARY KEY ("file", "chunk_index")){by_key};
    INSERT INTO "FileChunk2" ("file", "chunk_index", "chunk")
        SELECT "old"."file", "old"."chunk_index", "Chunk"."id" FROM "FileChunk" AS "old"
        JOIN "Chunk" ON "Chunk"."chunk_hash" = "old"."chunk_hash" ORDER BY 1, 2;
    DROP TABLE "FileChunk";
    ALTER TABLE "FileChunk2" RENAME TO "FileChunk";
    CREATE INDEX "filechunk_chunk" ON "FileChunk" ("chunk");

    CREATE TABLE "Holding2" ("chunk" {long} NOT NULL REFERENCES "Chunk" ("id"),
        "peer" INTEGER NOT NULL REFERENCES "Peer" ("id"), "stored_at_ms" {long} NOT NULL,
        "is_available" {truth} NOT NULL, PRIMARY KEY ("chunk", "peer")){by_key};
    INSERT INTO "Holding2" ("chunk", "peer", "stored_at_ms", "is_available")
        SELECT "Chunk"."id", "old"."peer", "old"."stored_at_ms", "old"."is_available" FROM "Holding" AS "old"
        JOIN "Chunk" ON "Chunk"."chunk_hash" = "old"."chunk_hash" ORDER BY 1, 2;
    DROP TABLE "Holding";
    ALTER TABLE "Holding2" RENAME TO "Holding";
    CREATE INDEX "holding_peer" ON "Holding" ("peer")
"""


def _number_chunks(database: Any) -> None:
    for statement in _NUMBER_CHUNKS.format(**_words(database)).split(";"):
        database.execute_sql(statement)


#: Files are listed by their commit number, no longer by the time of their commit.
_LIST_BY_COMMIT = """
    DROP INDEX "file_created_at_ms_commit_number";
    CREATE INDEX "file_commit_number" ON "File" ("commit_number")
"""


def _list_by_commit(database: Any) -> None:
    for statement in _LIST_BY_COMMIT.split(";"):
        database.execute_sql(statement)


#: version -> what turns the tables of the version before into that one.
UPGRADES: Mapping[int, Step] = {2: _number_chunks, 3: _list_by_commit}
