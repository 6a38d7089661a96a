"""The tracker's tables: their columns, their versions, and nothing of what they mean.

The classes here belong to no database; `bind` makes models of one database's own, so
that several stores can be open in one process, in different threads. The connection
(`tracker/store/database.py`) alone calls this module. Only SQL that any database understands.

Times (`*_ms`) are milliseconds since 1970 UTC, sizes bytes, digests 32 raw bytes.
`file`, `peer` and `chunk` in a table are the `id` of its row, not the public id or the
digest: rows of chunks are many, and an integer is small.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import peewee

from zchunk.errors import StorageFailure, UnsupportedVersion
from zchunk.tracker.store.upgrades import UPGRADES, Step

#: Raise it with every change of a table, and add the step to `upgrades.py`.
SCHEMA_VERSION = 3

_OF_CHUNK = peewee.SQL('REFERENCES "Chunk" ("id")')
_OF_FILE = peewee.SQL('REFERENCES "File" ("id")')
_OF_PEER = peewee.SQL('REFERENCES "Peer" ("id")')


#: peewee's classes are untyped; said once here, it holds with type stubs for it and without.
_Model: Any = peewee.Model


class Table(_Model):  # type: ignore[misc]
    """What is common to all models below."""


class MetaValue(Table):
    """One fact about the store itself, as text: schema_version, store_id, commit_number, ..."""

    key = peewee.CharField(max_length=64, primary_key=True)
    value = peewee.TextField()


class Peer(Table):
    """A storing node, from its first registration on; never deleted.

    `inventory_count` and `inventory_digest` (hashing.inventory_digest) always describe
    exactly the peer's rows in Holding, available or not: they mirror what the node says
    it holds.
    """

    id = peewee.AutoField()
    peer_id = peewee.CharField(max_length=32, unique=True)
    name = peewee.TextField()
    incarnation = peewee.BigIntegerField()
    endpoints = peewee.TextField()  # a JSON list of addresses
    capacity = peewee.BigIntegerField()
    free = peewee.BigIntegerField()
    inventory_count = peewee.BigIntegerField()
    inventory_digest = peewee.BlobField()
    last_seen_ms = peewee.BigIntegerField()
    left = peewee.BooleanField()


class File(Table):
    """A committed, so visible, file. `commit_number` is unique: each commit raises it, so that it
    tells which file is newer, whatever the clock said (`created_at_ms`)."""

    id = peewee.AutoField()
    file_id = peewee.CharField(max_length=64, unique=True)
    name = peewee.TextField(index=True)
    size = peewee.BigIntegerField()
    sha256 = peewee.BlobField(null=True)
    chunk_size = peewee.IntegerField()
    chunks_count = peewee.IntegerField()
    replicas = peewee.IntegerField()
    is_chunked = peewee.BooleanField()
    is_distributed = peewee.BooleanField()
    minimum_peers_required = peewee.IntegerField()
    min_peers = peewee.IntegerField()
    created_at_ms = peewee.BigIntegerField()
    commit_number = peewee.BigIntegerField(index=True)
    manifest = peewee.BlobField()


class Chunk(Table):
    """The number of a chunk that a node holds or a file names, see `chunks.py`."""

    id = peewee.BigIntegerField(primary_key=True)
    chunk_hash = peewee.BlobField(unique=True)


class FileChunk(Table):
    """Which chunk a committed file has at which place: one row for each index."""

    file = peewee.IntegerField(constraints=[_OF_FILE])
    chunk_index = peewee.IntegerField()
    chunk = peewee.BigIntegerField(constraints=[_OF_CHUNK], index=True)

    class Meta:
        primary_key = peewee.CompositeKey("file", "chunk_index")


class Holding(Table):
    """A peer has confirmed a verified, durable copy of a chunk, whichever files need it.

    `is_available` is False for a copy that was found damaged since.
    """

    chunk = peewee.BigIntegerField(constraints=[_OF_CHUNK])
    peer = peewee.IntegerField(constraints=[_OF_PEER], index=True)
    stored_at_ms = peewee.BigIntegerField()
    is_available = peewee.BooleanField()

    class Meta:
        primary_key = peewee.CompositeKey("chunk", "peer")


class Tombstone(Table):
    """A removed file, so that what was removed stays removed. `commit_number` is unique."""

    file_id = peewee.CharField(max_length=64, primary_key=True)
    name = peewee.TextField()
    commit_number = peewee.BigIntegerField(index=True)
    removed_at_ms = peewee.BigIntegerField()


class ChunkLocation(Table):
    """SPEC's ChunkDistribution under its public names: a view, so it can only be read.

    It is the join of FileChunk, Chunk and Holding and can never differ from them. `file_id`
    and `peer_id` are the public ids, `stored_at` is in milliseconds.
    """

    file_id = peewee.CharField()
    chunk_index = peewee.IntegerField()
    peer_id = peewee.CharField()
    chunk_hash = peewee.BlobField()
    stored_at = peewee.BigIntegerField()
    is_available = peewee.BooleanField()

    class Meta:
        primary_key = False


@dataclass(frozen=True, slots=True)
class Models:
    """One database and the models that are its own."""

    database: Any  # a peewee.Database
    MetaValue: type[MetaValue]
    Peer: type[Peer]
    File: type[File]
    Chunk: type[Chunk]
    FileChunk: type[FileChunk]
    Holding: type[Holding]
    Tombstone: type[Tombstone]
    ChunkLocation: type[ChunkLocation]

    @property
    def tables(self) -> list[type[Table]]:
        """The real tables; what others refer to comes first."""
        files = [self.File, self.Chunk, self.FileChunk, self.Holding, self.Tombstone]
        return [self.MetaValue, self.Peer, *files]


_M = TypeVar("_M", bound=Table)

_NAMES: Mapping[type[Table], str] = {MetaValue: "Meta"}
#: Narrow tables that are read by their key: SQLite then needs one tree for each, not two.
_BY_KEY = (FileChunk, Holding)


def bind(database: Any) -> Models:
    """Models of this database alone. Nothing global changes."""
    return Models(
        database,
        MetaValue=_bound(MetaValue, database),
        Peer=_bound(Peer, database),
        File=_bound(File, database),
        Chunk=_bound(Chunk, database),
        FileChunk=_bound(FileChunk, database),
        Holding=_bound(Holding, database),
        Tombstone=_bound(Tombstone, database),
        ChunkLocation=_bound(ChunkLocation, database),
    )


def _bound(model: type[_M], database: Any) -> type[_M]:
    options: dict[str, Any] = {
        "database": database,
        "table_name": _NAMES.get(model, model.__name__),
        "without_rowid": model in _BY_KEY and isinstance(database, peewee.SqliteDatabase),
    }
    metaclass: Any = type(model)
    bound: type[_M] = metaclass(model.__name__, (model,), {"Meta": type("Meta", (), options)})
    return bound


# -- versions -------------------------------------------------------------------------


def prepare(
    models: Models,
    now_ms: int,
    version: int = SCHEMA_VERSION,
    upgrades: Mapping[int, Step] = UPGRADES,
) -> None:
    """Make an empty database a new store, or bring an older store to `version`.

    One transaction: after a failure the database is as it was. Raises UnsupportedVersion
    for a newer store, and for an older one that no step leads on from.
    """
    with models.database.atomic():
        if not models.database.table_exists(models.MetaValue):
            _create(models, now_ms, version)
        elif (stored := _stored_version(models)) != version:
            _upgrade(models, stored, version, upgrades)


def _stored_version(models: Models) -> int:
    row = models.MetaValue.get_or_none(models.MetaValue.key == "schema_version")
    if row is None or not row.value.isdecimal():
        raise StorageFailure("this database is not that of a tracker: it has no schema version")
    return int(row.value)


def _create(models: Models, now_ms: int, version: int) -> None:
    for table in models.tables:  # in our order: peewee knows nothing of the references
        table.create_table(safe=False)
    _create_view(models)
    facts = {
        "schema_version": str(version),
        "store_id": secrets.token_hex(16),
        "commit_number": "0",
        "created_at_ms": str(now_ms),
    }
    meta = models.MetaValue
    meta.insert_many(list(facts.items()), [meta.key, meta.value]).execute()


def _upgrade(models: Models, stored: int, version: int, upgrades: Mapping[int, Step]) -> None:
    steps = range(stored + 1, version + 1)
    if stored > version:
        raise UnsupportedVersion(
            f"the tracker's database has schema version {stored}, this zchunk knows versions up to {version};"
            " upgrade zchunk on this PC"
        )
    if any(step not in upgrades for step in steps):
        raise UnsupportedVersion(
            f"the tracker's database has schema version {stored}, which this zchunk (version {version})"
            " cannot upgrade; open it once with a zchunk release in between"
        )
    # The view names columns, and a database may refuse to change what a view names.
    models.database.execute_sql(_view_sql(models, "DROP VIEW IF EXISTS "))
    for step in steps:
        upgrades[step](models.database)
    _create_view(models)
    meta = models.MetaValue
    meta.update({meta.value: str(version)}).where(meta.key == "schema_version").execute()


# -- the view -------------------------------------------------------------------------


def _create_view(models: Models) -> None:
    text, _ = _location_query(models).sql()  # it has no parameters
    models.database.execute_sql(_view_sql(models, "CREATE VIEW ") + " AS " + text)


def _view_sql(models: Models, verb: str) -> str:
    """`verb` and the view's name, in this database's quotes."""
    context = models.database.get_sql_context()
    text, _ = context.literal(verb).sql(peewee.Entity("ChunkLocation")).query()
    return str(text)


def _location_query(models: Models) -> Any:
    named, file, chunk = models.FileChunk, models.File, models.Chunk
    holding, peer = models.Holding, models.Peer
    columns = (
        file.file_id,
        named.chunk_index,
        peer.peer_id,
        chunk.chunk_hash,
        holding.stored_at_ms.alias("stored_at"),
        holding.is_available,
    )
    query = named.select(*columns).join(file, on=(named.file == file.id))
    query = query.join_from(named, chunk, on=(named.chunk == chunk.id))
    query = query.join_from(named, holding, on=(named.chunk == holding.chunk))
    return query.join_from(holding, peer, on=(holding.peer == peer.id))
