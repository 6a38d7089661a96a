"""What operating systems refuse: disks, descriptors, memory, at drawn moments and calls.

Inside `Refusals.applied` each call that a simulated process makes of its system may fail, as
long as a trouble of that process lasts: which calls, with which errors, how often and for how
long is drawn from the seed. The test's own calls never fail. SQLite calls the system from C,
so its statements fail instead, with the codes that it would have.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from types import FrameType
from typing import Any

import peewee
import pytest

from tests.sim.cluster import Cluster, Host
from zchunk.system import buffers, disk, syscalls

#: Every error that the deliverable names, but short reads and writes, see `_SHORT`.
NUMBERS = (
    errno.EIO,
    errno.ENOSPC,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EROFS,
    errno.EINTR,
    errno.ESTALE,
)
#: Of `os`. `fsync` and `fdatasync` are those of `system/disk.py`, which a simulation replaces.
LOOKS = ("stat", "lstat", "fstat", "listdir", "scandir")
READS = ("open", "pread", "preadv")
WRITES = ("pwrite", "replace", "unlink", "mkdir", "ftruncate")
#: Of `system/syscalls.py`.
MORE_WRITES = ("rename_new", "fallocate", "punch_hole")
SYNCS = ("sync_file", "sync_folder")
ALL_WRITES = WRITES + MORE_WRITES + SYNCS
#: SQLite's statements, memory for chunks, and files opened by Python itself.
OTHERS = ("sql", "memory", "file")
CALLS = LOOKS + READS + ALL_WRITES + OTHERS
#: What a trouble is of: a machine that is short of something refuses all, a disk that fails to
#: read reads nothing. One that nobody can look at hides all else, so it is not drawn often.
KINDS = (
    READS,
    READS,
    ALL_WRITES,
    ALL_WRITES,
    READS + ALL_WRITES,
    ("ftruncate", *MORE_WRITES, *SYNCS),  # the first and the last of a download
    ("sql",),
    ("memory", "file"),
    LOOKS,
    ("listdir", "scandir", "fstat", "lstat"),
    CALLS,
)
#: Of the calls of a trouble.
SHARES = (1.0, 0.5, 0.2, 0.1)
_fstat, _pwrite = os.fstat, os.pwrite
#: What a call does instead: less than it was asked for.
SHORT = "short"
SHORTENED = ("preadv", "pread", "pwrite")
#: SQLite's words and code for each kind of refusal.
_SQLITE = {
    errno.EIO: ("disk I/O error", sqlite3.SQLITE_IOERR),
    errno.ENOSPC: ("database or disk is full", sqlite3.SQLITE_FULL),
    errno.EMFILE: ("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    errno.ENFILE: ("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    errno.EROFS: ("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
    errno.EACCES: ("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
    errno.EINTR: ("database is locked", sqlite3.SQLITE_BUSY),
    errno.ESTALE: ("disk I/O error", sqlite3.SQLITE_IOERR),
}


@dataclass(frozen=True)
class Trouble:
    """Of one process, while it lasts."""

    host: str
    #: names of calls, `sql` for SQLite's and `memory` for that of chunks
    calls: frozenset[str]
    #: error numbers, and `SHORT`
    errors: tuple[int | str, ...]
    #: of each such call
    share: float


#: Where in the product a call was made: (process, call, file, line).
Site = tuple[str, str, str, int]
_PRODUCT = os.sep + "zchunk" + os.sep


class Refusals:
    def __init__(self, cluster: Cluster, seed: int, once: tuple[Site, int | str] | None = None) -> None:
        """`once`: the first call at this place is refused with this error, and no other."""
        self.cluster = cluster
        self.rng = Random(f"refusals {seed}")
        self._once = once
        #: places that called the system, in their order, when `once` is wanted
        self.sites: dict[Site, None] = {}
        #: (call, error) -> how often it was refused
        self.hits: Counter[tuple[str, str]] = Counter()
        self._troubles: list[Trouble] = []

    # -- drawing ---------------------------------------------------------------------

    def trouble(self, host: str, seconds: float) -> None:
        """Begins now, for so long."""
        trouble = self._drawn(host)
        self._troubles.append(trouble)
        self.cluster.network.schedule(seconds, lambda: self._over(trouble))

    def every_other(self, host: str, call: str, error: int | str) -> None:
        """From now on half of its calls of this kind are refused with that error."""
        self._troubles.append(Trouble(host, frozenset({call}), (error,), 0.5))

    def _drawn(self, host: str) -> Trouble:
        rng = self.rng
        calls: Sequence[str] = rng.choice(KINDS)
        if rng.random() < 0.3:  # some of them alone: what goes before and after it works
            calls = rng.sample(calls, rng.randrange(1, len(calls) + 1))
        errors: list[int | str] = rng.sample((*NUMBERS, SHORT), rng.randrange(1, 4))
        return Trouble(host, frozenset(calls), tuple(errors), rng.choice(SHARES))

    def _over(self, trouble: Trouble) -> None:
        if trouble in self._troubles:
            self._troubles.remove(trouble)

    def end(self) -> None:
        self._troubles.clear()

    # -- refusing --------------------------------------------------------------------

    def hit(self, call: str) -> int | str | None:
        """What this call of the process that acts now is refused with; None: it is not."""
        if Host.acting is None:
            return None
        if not self._troubles:
            return self._hit_once(call)
        for trouble in self._troubles:
            if trouble.host != Host.acting.name or call not in trouble.calls:
                continue
            error = self.rng.choice(trouble.errors)
            if error == SHORT and call not in SHORTENED:
                continue
            if self.rng.random() < trouble.share:
                return self._struck(call, error)
        return None

    def _hit_once(self, call: str) -> int | str | None:
        assert Host.acting is not None
        site = (Host.acting.name, call, *_caller())
        self.sites.setdefault(site)
        if self._once is None or self._once[0] != site:
            return None
        error, self._once = self._once[1], None
        return self._struck(call, error)

    def _struck(self, call: str, error: int | str) -> int | str:
        if call == "memory":
            error = errno.ENOMEM  # there is no other reason
        self.hits[call, error if isinstance(error, str) else errno.errorcode[error]] += 1
        return error

    @contextmanager
    def applied(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in (*LOOKS, *READS, *WRITES):
                patch.setattr(os, name, self._refusing(name, getattr(os, name)))
            for name in MORE_WRITES:
                patch.setattr(syscalls, name, self._refusing(name, getattr(syscalls, name)))
            patch.setattr(disk, "sync_file", self._refusing("sync_file", disk.sync_file, _lose))
            patch.setattr(disk, "sync_folder", self._refusing("sync_folder", disk.sync_folder))
            for module in (io, builtins):
                patch.setattr(module, "open", self._refusing("file", io.open))
            patch.setattr(buffers, "_fresh", self._of_memory(buffers._fresh))
            database = peewee.SqliteDatabase
            patch.setattr(database, "execute_sql", self._of_sqlite(database.execute_sql))
            patch.setattr(database, "commit", self._of_sqlite(database.commit))
            yield

    def _refusing(
        self, call: str, real: Callable[..., Any], spoil: Callable[[Any], None] = lambda _: None
    ) -> Callable[..., Any]:
        """`spoil(first argument)`: what a refusal does besides."""

        def refusing(*args: Any, **options: Any) -> Any:
            error = self.hit(call)
            if error is None:
                return real(*args, **options)
            if error == SHORT:
                return _short(call, real, *args)
            spoil(args[0])
            raise _refusal(error, args[0])

        return refusing

    def _of_memory(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(capacity: int) -> Any:
            if (error := self.hit("memory")) is not None:
                raise _refusal(error)
            return real(capacity)

        return refusing

    def _of_sqlite(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(*args: Any, **options: Any) -> Any:
            error = self.hit("sql")
            if error == errno.ENOMEM:
                raise MemoryError
            if isinstance(error, int):
                words, code = _SQLITE[error]
                cause = sqlite3.OperationalError(words)
                cause.sqlite_errorcode = code
                raise _of_peewee(words, cause)
            return real(*args, **options)

        return refusing


def _refusal(error: int | str, on: object = None) -> OSError:
    assert isinstance(error, int)
    path = str(on) if isinstance(on, (str, bytes, os.PathLike)) else None
    return OSError(error, os.strerror(error), path)


def _lose(fd: int) -> None:
    """After a sync that failed, what was written is gone, whoever reads it back before."""
    _pwrite(fd, bytes(_fstat(fd).st_size), 0)


def _of_peewee(words: str, cause: Exception) -> Exception:
    """As peewee wraps what SQLite raised."""
    error = peewee.OperationalError(words)
    error.__context__ = cause
    return error


def _caller() -> tuple[str, int]:
    """The line of the product that leads to this call."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if _PRODUCT in name and f"{os.sep}tests{os.sep}" not in name:
            return name.rpartition(_PRODUCT)[2], frame.f_lineno
        frame = frame.f_back
    return "?", 0


def _short(call: str, real: Callable[..., int], fd: int, what: Any, offset: int) -> Any:
    """A part of what was asked for, at least a byte."""
    if call == "pread":
        return real(fd, max(1, what // 2), offset)
    view = memoryview(what[0] if call == "preadv" else what).cast("B")
    part = view[: max(1, len(view) // 2)]
    return real(fd, [part] if call == "preadv" else part, offset)
