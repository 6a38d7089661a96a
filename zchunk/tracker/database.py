"""The connection to the tracker's database: opening, transactions, statements for many rows.

Responsible for what holds of any statement: its durability, that a failed one undoes the
whole transaction around it, that thousands of rows take few of them. Not responsible for
what the tables mean: `storedpeers.py`, `holdings.py`, `commits.py` and `listing.py` send
their statements through this, inside transactions that `store.py` begins.

May not happen here: a statement that succeeds in a batch in which the database has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import peewee
from playhouse import db_url

from zchunk import disk
from zchunk.errors import ConfigError, MalformedMessage, NoSpace, StorageFailure, ZchunkError
from zchunk.homestate import is_there
from zchunk.tracker import models

#: Parameters of one statement; 999 is the least that any SQLite takes.
PARAMETERS = 900
#: The greatest number that a column holds.
MAX_NUMBER = 2**63 - 1

_SQLITE_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",
    "foreign_keys": 1,
    "cache_size": -32_000,  # KiB
}

_MEMORY = ":memory:"

_T = TypeVar("_T")


class Database:
    """One connection for all threads, which take turns. Open one with `Database.open`."""

    def __init__(self, connection: Any, where: str) -> None:
        #: peewee's database
        self.connection = connection
        #: the models of this database's tables
        self.models = models.bind(connection)
        self._where = where
        #: Set while a batch is doomed: the database failed in it, and may have undone
        #: the whole transaction by itself.
        self._broken: ZchunkError | None = None

    @classmethod
    def open(cls, path_or_url: str, now_ms: int) -> Database:
        """The database at a path (SQLite; `:memory:` too) or URL, its tables made or upgraded.

        Raises StorageFailure when it cannot be read, UnsupportedVersion when a newer
        zchunk made it, ConfigError for a URL that is none or needs a missing driver.
        """
        connection, where = _connection(path_or_url, _SQLITE_PRAGMAS)
        if (path := _file_of(connection)) is not None:
            with disk.storage_errors(path, "making the folder of"):
                path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _driver(where):
                database = cls(connection, where)
                with database.reading():
                    connection.connect()
                    models.prepare(database.models, now_ms)
        except ZchunkError:
            connection.close()
            raise
        return database

    @classmethod
    def absence(cls, path_or_url: str) -> str | None:
        """Why there is no store at that path or URL, in words; None where there is one. Makes
        nothing, not even an empty file. Raises as `open` does."""
        connection, where = _connection(path_or_url, {})
        if connection.database == _MEMORY:
            return None
        if (path := _file_of(connection)) is not None and not is_there(path):
            return f"the tracker's database {where} is missing"
        try:
            with _driver(where):
                database = cls(connection, where)
                with database.reading():
                    connection.connect()
                    has_tables = connection.table_exists(database.models.MetaValue)
        finally:
            connection.close()
        return None if has_tables else f"the tracker's database {where} is empty"

    def close(self) -> None:
        """Everything committed is durable already; this lets go of the file."""
        self.connection.close()

    # -- transactions -------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One transaction around several changes. A refused one (NotFound, ...) that the
        caller catches inside undoes only itself; once the database fails, all is undone."""
        with self.changing():
            yield
            if self._broken is not None:
                raise self._broken

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One transaction, or one savepoint of the transaction around it. Raises as `reading`."""
        with self.reading(), self.connection.atomic():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Database errors become StorageFailure, NoSpace (retryable) or MalformedMessage (a
        number too great for its column); one of the first two dooms the batch around it."""
        if self._broken is not None:
            raise self._broken
        outermost = not self.connection.in_transaction()
        try:
            yield
        except (OverflowError, peewee.DataError):
            raise MalformedMessage("a number is greater than the tracker's store can hold") from None
        except (peewee.IntegrityError, peewee.ProgrammingError):
            raise  # a bug of ours
        except (peewee.DatabaseError, peewee.InterfaceError) as error:
            self._broken = _failure(error, self._where)
            raise self._broken from error
        finally:
            if outermost:
                self._recover()

    def _recover(self) -> None:
        """After a failure the next call starts anew, to a server on a new connection."""
        if self._broken is not None and not isinstance(self.connection, peewee.SqliteDatabase):
            self.connection.close()
        self._broken = None

    # -- statements ---------------------------------------------------------------------

    def meta(self, key: str) -> str:
        """One fact about the store itself, see `models.MetaValue`."""
        meta = self.models.MetaValue
        return str(self.all(meta.select(meta.value).where(meta.key == key))[0][0])

    def all(self, query: Any) -> list[Any]:
        """All rows as plain tuples: building an object for each would cost several times
        what the database needs for 100,000 of them."""
        rows: list[Any] = self.connection.execute(query).fetchall()
        return rows

    def insert(self, model: Any, fields: Sequence[Any], rows: Iterable[tuple[Any, ...]]) -> None:
        """`insert_many`, its text made once for each batch length: making it takes peewee
        four times as long as SQLite needs to run it."""
        texts: dict[int, str] = {}
        for batch in batches(rows, PARAMETERS // len(fields)):
            if len(batch) not in texts:
                texts[len(batch)] = model.insert_many(batch, fields).sql()[0]
            self.connection.execute_sql(texts[len(batch)], list(chain.from_iterable(batch)))

    def rows_among(self, query: Any, column: Any, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        for cursor in self.among(query, column, values):
            yield from cursor.fetchall()

    def run_among(self, query: Any, column: Any, values: Sequence[Any]) -> None:
        for _ in self.among(query, column, values):
            pass

    def among(self, query: Any, column: Any, values: Iterable[Any]) -> Iterator[Any]:
        """Run `query` for the rows whose `column` is in `values`, `PARAMETERS` of them at a
        time, its text made once for each batch length; a cursor for each batch. It must not
        end in a clause with parameters."""
        texts: dict[int, tuple[str, list[Any]]] = {}
        for batch in batches(values, PARAMETERS):
            if len(batch) not in texts:
                text, parameters = query.where(column.in_(batch)).sql()
                texts[len(batch)] = text, list(parameters)[: -len(batch)]
            text, fixed = texts[len(batch)]
            yield self.connection.execute_sql(text, [*fixed, *batch])


def batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _connection(path_or_url: str, pragmas: Mapping[str, Any]) -> tuple[Any, str]:
    """An unconnected database, and how messages name it (no password in it).

    One connection for all threads, which take turns: with one for each thread,
    `:memory:` would be another database in each.
    """
    scheme, is_url, rest = path_or_url.partition("://")
    if is_url and not scheme.startswith("sqlite"):
        return _server(path_or_url), f"{scheme}://{rest.rpartition('@')[2]}"
    path = db_url.parse(path_or_url)["database"] if is_url else path_or_url
    connection = peewee.SqliteDatabase(path, pragmas=pragmas, thread_safe=False, check_same_thread=False)
    return connection, path


def _file_of(connection: Any) -> Path | None:
    """None where the database is no file of its own."""
    is_file = isinstance(connection, peewee.SqliteDatabase) and connection.database != _MEMORY
    return Path(connection.database) if is_file else None


@contextmanager
def _driver(where: str) -> Iterator[None]:
    """Raises ConfigError for one that is not installed."""
    try:
        yield
    except peewee.ImproperlyConfigured as error:
        raise ConfigError(f"the tracker's store {where} needs a database driver: {error}") from error


def _server(url: str) -> Any:
    try:
        if not db_url.parse(url)["database"]:  # before version 4 peewee let that pass
            raise ValueError(f'"{url.partition("://")[0]}://..." names no database.')
        return db_url.connect(url, unquote_user=True, unquote_password=True, thread_safe=False)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the tracker's store cannot be opened: {error} "
            "Give a path, or a URL like postgresql://user:password@host/database"
        ) from error


def _failure(error: Exception, where: str) -> ZchunkError:
    reason = " ".join(str(error).split())
    if "disk is full" in reason or "No space left" in reason:
        return NoSpace(f"the disk of the tracker's store {where} is full; free some space there")
    return StorageFailure(
        f"the tracker's store {where} failed: {reason}; check its disk or server. "
        "A lost store can be made anew from the nodes by `zchunk tracker rebuild`"
    )
