"""What a database's error means to a person: the one table from its codes to our errors.

Called by `database.py` for every error that a statement, a commit or an opening ends with. Each
result names the database in `details["path"]`: it is the tracker's own, and `tracker/server.py` tells
others of it in other words.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import peewee

from zchunk.errors import Busy, NoSpace, NotAllowed, StorageFailure, ZchunkError
from zchunk.system import disk, file_rights

#: SQLite's primary result codes (sqlite.org/rescode.html), and PostgreSQL's SQLSTATEs and classes of
#: them (Appendix A of its manual).
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_READ_ONLY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STATES_FULL = ("53100",)
_STATES_BUSY = ("40001", "40P01", "55P03", "53300")
_STATES_READ_ONLY = ("25006", "42501")


def failure(error: BaseException, where: str, file: Path | None) -> ZchunkError:
    """`where` names the database; `file` is its path where it is one (SQLite)."""
    first = _first(error)
    code = getattr(first, "sqlite_errorcode", None)
    state = str(getattr(first, "pgcode", None) or getattr(first, "sqlstate", None) or "")
    reason = " ".join(str(first).split()) or type(first).__name__
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_FULL or state in _STATES_FULL or _is_full(primary, reason, file):
        return no_space(where)
    if primary in _BUSY or state in _STATES_BUSY:
        text = f"another program has the tracker's database {where} locked ({reason}): stop it, or try again"
        return Busy(text, path=where)
    if primary in _READ_ONLY or state in _STATES_READ_ONLY:
        why = file_rights.missing(file) if file is not None else None
        text = f"the tracker's database {where} cannot be written ({reason}): "
        text += why or "check its owner and mode"
        return NotAllowed(text, path=where)
    return StorageFailure(_other(primary, reason, where, file), path=where)


def _other(primary: int | None, reason: str, where: str, file: Path | None) -> str:
    if primary in _DAMAGED:
        return (
            f"the tracker's database {where} is damaged ({reason}): stop the tracker and restore a backup;"
            " without one, move the database away and start with `zchunk tracker --new-database`"
        )
    if primary == sqlite3.SQLITE_NOMEM:
        return (
            f"the tracker's database {where} is out of memory ({reason}): close other programs, then try"
            " again"
        )
    if primary == sqlite3.SQLITE_CANTOPEN and file is not None and (refused := _refused(file)) is not None:
        return refused
    if primary == sqlite3.SQLITE_IOERR:
        return f"the tracker's database {where} failed: {reason}; check its disk"
    return f"the tracker's database {where} failed: {reason}; check its disk or server"


def _refused(file: Path) -> str | None:
    """What the system says to opening it, which SQLite does not tell."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return disk.storage_error(error, file, "opening").message
    return None


def no_space(where: str) -> NoSpace:
    text = f"no space on the disk of the tracker's database {where}: free some space there, then try again"
    return NoSpace(text, path=where)


def _is_full(primary: int | None, reason: str, file: Path | None) -> bool:
    if "No space left" in reason:
        return True
    stopped = primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return stopped and file is not None and disk.is_full(file.absolute().parent)


def _first(error: BaseException) -> BaseException:
    """The error that all others follow from: after a failure SQLite has undone the transaction by
    itself, so that peewee's undoing of it fails too, "no transaction is active"."""
    first: BaseException = error
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, (peewee.PeeweeException, sqlite3.Error)) or hasattr(at, "sqlstate"):
            first = at
        at = at.__context__
    return first
