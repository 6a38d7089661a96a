"""The connection to the tracker's database: opening, transactions, statements for many rows.

Responsible for what holds of any statement: its durability, that a failed one undoes the
whole transaction around it, that thousands of rows take few of them. Not responsible for
what the tables mean: `stored_peers.py`, `holdings.py`, `commits.py` and `listing.py` send
their statements through this, inside transactions that `store.py` begins.

May not happen here: a statement that succeeds in a batch in which the database has failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import peewee

from zchunk.errors import Busy, ConfigError, MalformedMessage, ZchunkError
from zchunk.system import disk
from zchunk.system.home_state import is_there
from zchunk.tracker.store import models
from zchunk.tracker.store.database_errors import failure, no_space

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
#: While another program has the database locked it is tried so often, so far apart: for 3 s.
_ATTEMPTS = 60
_PAUSE_S = 0.05

_T = TypeVar("_T")


class Database:
    """One connection for all threads, which take turns. Open one with `Database.open`."""

    def __init__(self, connection: Any, where: str) -> None:
        #: peewee's database
        self.connection = connection
        #: the models of this database's tables
        self.models = models.bind(connection)
        self._where = where
        self._attempts = _ATTEMPTS
        #: Set while a batch is doomed: the database failed in it, and may have undone
        #: the whole transaction by itself.
        self._broken: ZchunkError | None = None

    @classmethod
    def open(cls, path_or_url: str, now_ms: int) -> Database:
        """The database at a path (SQLite; `:memory:` too) or URL, its tables made or upgraded.

        Raises what `databaseerrors.failure` makes of its errors, UnsupportedVersion when a newer
        zchunk made it, ConfigError for a URL that is none or needs a missing driver.
        """
        connection, where = _connection(path_or_url, _SQLITE_PRAGMAS)
        if (path := file_of(connection)) is not None:
            with disk.storage_errors(path, "creating the folder of"):
                disk.make_private(path.parent)
        try:
            with _driver(where):
                database = cls(connection, where)
                database.again(lambda: database._begin(now_ms))
        except ZchunkError:
            connection.close()
            raise
        return database

    def _begin(self, now_ms: int) -> None:
        with self.reading():
            self.connection.connect(reuse_if_open=True)
            models.prepare(self.models, now_ms)

    @classmethod
    def absence(cls, path_or_url: str) -> str | None:
        """Why there is no store at that path or URL, in words; None where there is one. Makes
        nothing, not even an empty file. Raises as `open` does."""
        connection, where = _connection(path_or_url, {})
        if connection.database == _MEMORY:
            return None
        if (path := file_of(connection)) is not None and not is_there(path):
            return f"the tracker's database {where} is missing"
        try:
            with _driver(where):
                database = cls(connection, where)
                has_tables = database.again(database._has_tables)
        finally:
            connection.close()
        return None if has_tables else f"the tracker's database {where} is empty"

    def _has_tables(self) -> bool:
        with self.reading():
            self.connection.connect(reuse_if_open=True)
            return bool(self.connection.table_exists(self.models.MetaValue))

    def close(self) -> None:
        """Everything committed is durable already; this lets go of the file."""
        self.connection.close()

    # -- transactions -------------------------------------------------------------------

    def again(self, run: Callable[[], _T]) -> _T:
        """`run`, a transaction, anew for some seconds while another program has the database locked;
        as it is within a transaction. Raises Busy where it stays so: who changes something next does
        not wait then, until a change gets through."""
        if self.connection.in_transaction():
            return run()
        before = self._changes()
        for left in range(self._attempts - 1, -1, -1):
            try:
                result = run()
                break
            except Busy:
                if not left:
                    self._attempts = 1
                    raise
            time.sleep(_PAUSE_S)
        if self._changes() != before:
            self._attempts = _ATTEMPTS
        return result

    def _changes(self) -> object:
        """Differs after a change."""
        if self.connection.is_closed() or not isinstance(self.connection, peewee.SqliteDatabase):
            return object()
        connection: Any = self.connection  # peewee is untyped
        return connection.connection().total_changes

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
        """Database errors become what `databaseerrors.failure` makes of them, or MalformedMessage
        (a number too great for its column); the former doom the batch around it."""
        if self._broken is not None:
            raise self._broken
        outermost = not self.connection.in_transaction()
        try:
            yield
        except (OverflowError, peewee.DataError):
            raise MalformedMessage("a number is too large for the tracker's database") from None
        except (peewee.IntegrityError, peewee.ProgrammingError):
            raise  # a bug of ours
        except (peewee.DatabaseError, peewee.InterfaceError) as error:
            self._broken = failure(error, self._where, file_of(self.connection))
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

    def check_space(self) -> None:
        """Raises NoSpace where the database's disk has next to no room. Small changes may still go where
        its files have some; of a server's disk nothing is known here."""
        file = file_of(self.connection)
        if file is not None and disk.is_full(file.absolute().parent):
            raise no_space(self._where)

    def touch(self) -> None:
        """Writes a row as it is."""
        meta = self.models.MetaValue
        meta.update({meta.value: meta.value}).where(meta.key == "store_id").execute()

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
    path = _sqlite_path(path_or_url) if is_url else path_or_url
    # No timeout: SQLite does not wait in a transaction that has read before it writes; `again` does.
    connection = peewee.SqliteDatabase(
        path, pragmas=pragmas, timeout=0, thread_safe=False, check_same_thread=False
    )
    return connection, path


def file_of(connection: Any) -> Path | None:
    """None where the database is no file of its own."""
    is_file = isinstance(connection, peewee.SqliteDatabase) and connection.database != _MEMORY
    return Path(connection.database) if is_file else None


@contextmanager
def _driver(where: str) -> Iterator[None]:
    """Raises ConfigError for one that is not installed."""
    try:
        yield
    except peewee.ImproperlyConfigured as error:
        raise ConfigError(f"the tracker's database {where} needs a driver: {error}") from error


# playhouse.db_url looks for the driver of each kind of database: not where there is only a path.


def _sqlite_path(url: str) -> Any:
    from playhouse import db_url

    return db_url.parse(url)["database"]


def _server(url: str) -> Any:
    from playhouse import db_url

    try:
        if not db_url.parse(url)["database"]:  # before version 4 peewee let that pass
            raise ValueError(f'"{url.partition("://")[0]}://..." does not name a database.')
        return db_url.connect(url, unquote_user=True, unquote_password=True, thread_safe=False)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the tracker's database cannot be opened: {error} "
            "Give a path, or a URL like postgresql://user:password@host/database"
        ) from error
