"""The index of a node's chunk store: what would be slow to find out from its folders.

Responsible for its tables, for one transaction a method, and for finding a damaged index
and setting it aside when it is opened. Not responsible for what is true: the folders
are, `chunk_store.py` makes the index equal to them. So it may be deleted, and runs with
synchronous=NORMAL, where a power cut costs its last commits, never its consistency.
Called by `chunk_store.py` and `manifest_folder.py`.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peewee

from zchunk.errors import NoSpace, NotAllowed, StorageFailure, StorageUnavailable, ZchunkError
from zchunk.system import disk, file_rights

LEASE_S = 24 * 3600.0
#: The lease an unclean start gives to chunks no manifest names; once per chunk, so that a
#: PC which is switched off hard every night still gets rid of its leftovers.
RECOVERED = "recovered"
SCHEMA = "1"

_ROWS_PER_INSERT = 5000


#: peewee's classes are untyped; said once here, it holds with type stubs for it and without.
_Model: Any = peewee.Model


class _Table(_Model):  # type: ignore[misc]
    """The models belong to no database: several stores may be open in one process."""


class _Setting(_Table):
    """`schema`; `clean`, the token of the last clean close, or empty; `cluster`, see
    `cluster_memory.py`."""

    key = peewee.TextField(primary_key=True)
    value = peewee.TextField()


class _Chunk(_Table):
    sha256 = peewee.BlobField(primary_key=True)
    size = peewee.BigIntegerField()
    blake3 = peewee.BlobField()


class _Intent(_Table):
    """A put that began; its file may be under its final name without a chunk row."""

    sha256 = peewee.BlobField(primary_key=True)


class _Lease(_Table):
    sha256 = peewee.BlobField()
    upload_id = peewee.TextField(index=True)
    until = peewee.DoubleField()

    class Meta:
        primary_key = peewee.CompositeKey("sha256", "upload_id")


class _Manifest(_Table):
    file_id = peewee.TextField(unique=True)


class _Claim(_Table):
    """Whether a kept manifest is that of a file. `until`: the wall time to which the upload that
    brought it has it; null once it is known to be one."""

    file_id = peewee.TextField(primary_key=True)
    until = peewee.DoubleField(null=True)


class _Reference(_Table):
    """A chunk (held or not) that a kept manifest names."""

    sha256 = peewee.BlobField()
    manifest = peewee.IntegerField(index=True)

    class Meta:
        primary_key = peewee.CompositeKey("sha256", "manifest")
        without_rowid = True


_TABLES = (_Setting, _Chunk, _Intent, _Lease, _Manifest, _Claim, _Reference)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """NoSpace for a full disk, StorageUnavailable for want of memory, descriptors or the lock (both
    retryable), NotAllowed, else StorageFailure; what failed was rolled back."""
    try:
        yield
    except (peewee.PeeweeException, sqlite3.Error, MemoryError) as error:
        raise _told(error, path) from error


#: What SQLite says of the machine, not of the file. Else the disk or the file is broken.
_REFUSALS: dict[int, type[ZchunkError]] = {
    sqlite3.SQLITE_FULL: NoSpace,
    sqlite3.SQLITE_NOMEM: StorageUnavailable,
    sqlite3.SQLITE_IOERR_NOMEM: StorageUnavailable,
    sqlite3.SQLITE_CANTOPEN: StorageUnavailable,
    sqlite3.SQLITE_BUSY: StorageUnavailable,
    sqlite3.SQLITE_LOCKED: StorageUnavailable,
    sqlite3.SQLITE_READONLY: NotAllowed,
    sqlite3.SQLITE_PERM: NotAllowed,
}
#: What SQLite says, too, where it cannot enlarge one of its files.
_STOPPED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def _told(error: BaseException, path: Path) -> ZchunkError:
    cause, code = _first(error)
    kind = _REFUSALS.get(code, _REFUSALS.get(code & 0xFF, StorageFailure))
    if kind is NoSpace or (code & 0xFF in _STOPPED and disk.is_full(path.absolute().parent)):
        return NoSpace(f"no space left for {path}: free some space on that disk", path=str(path))
    text = f"the chunk index {path} failed: {cause}"
    if kind is NotAllowed:
        text += f"; {file_rights.missing(path) or 'check the owner and mode of its folder'}"
    if kind is StorageFailure:
        text += "; restart the node to rebuild it"
    return kind(text, path=str(path))


def _first(error: BaseException) -> tuple[BaseException, int]:
    """What SQLite said first, and its number: it has rolled back by itself then, so peewee's own
    rollback fails too, and covers it."""
    found, code = error, sqlite3.SQLITE_ERROR
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError):
            return MemoryError("no memory is left"), sqlite3.SQLITE_NOMEM
        if isinstance(at, sqlite3.Error):
            found, code = at, getattr(at, "sqlite_errorcode", code)
        at = at.__context__
    return found, code


class ChunkIndex:
    """The tables, one connection for all threads; the caller holds the store's index lock.

    Each method is one transaction: whole in the index or not there at all, also after
    kill -9. A power cut may take the last ones, in order; `set_clean` is never among them.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the tables. Raises peewee or sqlite3 errors for a damaged file."""
        self.path = path
        self._db: Any = peewee.SqliteDatabase(
            str(path),
            pragmas=[("journal_mode", "wal"), ("synchronous", "normal")],
            thread_safe=False,
            check_same_thread=False,
            autoconnect=False,
        )
        try:
            self._db.connect()
            for table in _TABLES:
                peewee.SchemaManager(table, self._db).create_all(safe=True)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with _errors(self.path), self._db.atomic():
            yield

    def _run(self, query: Any) -> Any:
        with _errors(self.path):
            return query.execute(self._db)

    def _rows(self, query: Any) -> list[Any]:
        with _errors(self.path):
            return list(query.tuples().execute(self._db))

    # settings

    def setting(self, key: str) -> str | None:
        rows = self._rows(_Setting.select(_Setting.value).where(_Setting.key == key))
        return rows[0][0] if rows else None

    def set_setting(self, key: str, value: str) -> None:
        self._run(_Setting.insert(key=key, value=value).on_conflict_replace())

    def set_clean(self, token: str) -> None:
        """Durable on return, with everything before it: a power cut must not turn a store
        in use (no token) into one that looks cleanly closed."""
        self.set_setting("clean", token)
        with _errors(self.path):
            self._db.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def is_sound(self) -> bool:
        with _errors(self.path):
            return bool(self._db.execute_sql("PRAGMA quick_check(1)").fetchone()[0] == "ok")

    # chunks

    def chunks(self) -> dict[bytes, int]:
        return dict(self._rows(_Chunk.select(_Chunk.sha256, _Chunk.size)))

    def blake3(self, sha256: bytes) -> bytes | None:
        rows = self._rows(_Chunk.select(_Chunk.blake3).where(_Chunk.sha256 == sha256))
        return bytes(rows[0][0]) if rows else None

    def intend(self, sha256: bytes) -> None:
        self._run(_Intent.insert(sha256=sha256).on_conflict_ignore())

    def forget_intent(self, sha256: bytes) -> None:
        self._run(_Intent.delete().where(_Intent.sha256 == sha256))

    def intents(self) -> list[bytes]:
        return [row[0] for row in self._rows(_Intent.select(_Intent.sha256))]

    def add(self, sha256: bytes, size: int, blake3: bytes, lease: tuple[str, float] | None = None) -> None:
        """The chunk's row and lease in, its intent out."""
        with self._change():
            self._run(_Chunk.insert(sha256=sha256, size=size, blake3=blake3).on_conflict_replace())
            if lease is not None:
                self.lease(sha256, *lease)
            self.forget_intent(sha256)

    def remove(self, sha256: bytes) -> None:
        with self._change():
            for table in (_Chunk, _Lease, _Intent):
                self._run(table.delete().where(table.sha256 == sha256))

    # leases

    def lease(self, sha256: bytes, upload_id: str, until: float) -> None:
        self._run(_Lease.insert(sha256=sha256, upload_id=upload_id, until=until).on_conflict_replace())

    def lease_unreferenced(self, upload_id: str, until: float) -> None:
        """A lease for each chunk that no manifest names and that never had this one."""
        found = _Chunk.select(_Chunk.sha256, peewee.Value(upload_id), peewee.Value(until))
        found = found.where(_Chunk.sha256.not_in(_Reference.select(_Reference.sha256)))
        fields = [_Lease.sha256, _Lease.upload_id, _Lease.until]
        self._run(_Lease.insert_from(found, fields).on_conflict_ignore())

    def leased(self, sha256: bytes, now: float) -> bool:
        query = _Lease.select(_Lease.until).where((_Lease.sha256 == sha256) & (_Lease.until > now))
        return bool(self._rows(query.limit(1)))

    def leased_by(self, upload_id: str, ends_after: float = 0.0) -> list[bytes]:
        """Chunks that it has leased, or had: an upload may take longer than its first leases."""
        leases = (_Lease.upload_id == upload_id) & (_Lease.until >= ends_after)
        return [row[0] for row in self._rows(_Lease.select(_Lease.sha256).where(leases))]

    def end_leases(self, upload_id: str) -> None:
        self._run(_Lease.delete().where(_Lease.upload_id == upload_id))

    def forget_leases(self, ended_before: float) -> None:
        old = (_Lease.until < ended_before) & (_Lease.upload_id != RECOVERED)
        self._run(_Lease.delete().where(old))

    # manifests

    def manifests(self) -> list[str]:
        return [row[0] for row in self._rows(_Manifest.select(_Manifest.file_id))]

    def add_manifest(self, file_id: str, hashes: Iterable[bytes]) -> None:
        """The manifest's row and all its references, or nothing."""
        with self._change():
            self.remove_manifest(file_id)
            key = self._run(_Manifest.insert(file_id=file_id))
            rows = [(sha256, key) for sha256 in sorted(set(hashes))]
            for part in peewee.chunked(rows, _ROWS_PER_INSERT):
                self._run(_Reference.insert_many(part, [_Reference.sha256, _Reference.manifest]))

    def remove_manifest(self, file_id: str) -> None:
        with self._change():
            for (key,) in self._rows(_Manifest.select(_Manifest.id).where(_Manifest.file_id == file_id)):
                self._run(_Reference.delete().where(_Reference.manifest == key))
                self._run(_Manifest.delete().where(_Manifest.id == key))

    def claims(self) -> dict[str, float | None]:
        return dict(self._rows(_Claim.select(_Claim.file_id, _Claim.until)))

    def claim(self, file_ids: Iterable[str], until: float | None) -> None:
        """None: they are known to be files."""
        rows = [(file_id, until) for file_id in file_ids]
        with self._change():
            for part in peewee.chunked(rows, _ROWS_PER_INSERT):
                self._run(_Claim.insert_many(part, [_Claim.file_id, _Claim.until]).on_conflict_replace())

    def disclaim(self, file_ids: Iterable[str]) -> None:
        with self._change():
            for file_id in file_ids:
                self._run(_Claim.delete().where(_Claim.file_id == file_id))

    def referenced(self, sha256: bytes) -> bool:
        query = _Reference.select(_Reference.manifest).where(_Reference.sha256 == sha256)
        return bool(self._rows(query.limit(1)))

    def garbage(self, now: float) -> list[bytes]:
        leased = _Lease.select(_Lease.sha256).where(_Lease.until > now)
        named = _Reference.select(_Reference.sha256)
        query = _Chunk.select(_Chunk.sha256)
        query = query.where(_Chunk.sha256.not_in(leased) & _Chunk.sha256.not_in(named))
        return [row[0] for row in self._rows(query.order_by(_Chunk.sha256))]


# -- opening --------------------------------------------------------------------------


def open_index(path: Path, note: Callable[[str], None], closed: str | None) -> tuple[ChunkIndex, bool]:
    """The index, and whether it may be trusted as it is: it was closed cleanly, by the close that
    the store's folder has the token of. An older index, put back from a backup, has another.

    A damaged one is set aside, which `note` is told, and an empty one is returned. Raises
    StorageFailure for one that does not open for another reason, NoSpace (retryable).
    """
    try:
        index = ChunkIndex(path)
    except (peewee.PeeweeException, sqlite3.Error, MemoryError) as error:
        if not _is_damage(error):
            raise _told(error, path) from error
        return _replace(path, str(error), note), False
    try:
        problem = _problem(index)
        if problem is None:
            index.set_setting("schema", SCHEMA)
            return index, closed is not None and index.setting("clean") == closed
    except BaseException:
        index.close()
        raise
    index.close()
    return _replace(path, problem, note), False


def _is_damage(error: BaseException | None) -> bool:
    # OperationalError is the world's fault (no permission, full, locked), not the file's.
    if isinstance(error, peewee.OperationalError | sqlite3.OperationalError):
        return False
    return isinstance(error, peewee.DatabaseError | sqlite3.DatabaseError)


def _problem(index: ChunkIndex) -> str | None:
    try:
        if not index.is_sound():
            return "the check of the database failed"
        schema = index.setting("schema")
    except ZchunkError as error:
        if not _is_damage(error.__cause__):
            raise
        return error.message
    return None if schema in (None, SCHEMA) else f"the schema is {schema}"


def _replace(path: Path, problem: str, note: Callable[[str], None]) -> ChunkIndex:
    with disk.storage_errors(path, "setting aside"):
        aside = _unused(path, f"{path.name}.damaged")
        for suffix in ("-wal", "-shm"):  # they belong to the damaged file, not to its successor
            if disk.is_there(part := Path(f"{path}{suffix}")):
                os.replace(part, f"{aside}{suffix}")
        os.replace(path, aside)
        disk.sync_folder(path.parent)
    note(f"the chunk index was damaged ({problem}); it is kept as {aside.name} and rebuilt")
    with _errors(path):
        index = ChunkIndex(path)
    index.set_setting("schema", SCHEMA)
    return index


def _unused(path: Path, stem: str) -> Path:
    names = (path.with_name(f"{stem}-{n}") for n in itertools.count(1))
    return next(name for name in names if not disk.is_there(name))
