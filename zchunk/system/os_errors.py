"""What an operating system's refusal means, in words: the one place that knows error numbers.

Responsible for which error a user, a tool or a peer gets for an OSError, and for which refusals
are none (a file system that has no such call). Not responsible for what is done then.

May not happen here: a disk called broken for want of rights, descriptors, memory or space.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zchunk.errors import (
    InvalidUsage,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    StorageUnavailable,
    ZchunkError,
)
from zchunk.system import file_limit, file_rights

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_TAKEN = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP})
#: The disk, or the file system on it, is at fault: EUCLEAN and EBADMSG say that what lies there is.
_BROKEN = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ENXIO", "ENODEV", "EREMOTEIO", "EUCLEAN", "EBADMSG", "ENOMEDIUM", "EILSEQ")
    if hasattr(errno, name)
)
#: What a file system says that has no such call, or not for this kind of file.
NOT_THERE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

#: Refusals of a machine, or a process, that has too little of something: number -> what is wrong,
#: and what to do.
_SHORT = {
    errno.EMFILE: "this process has too many files and connections open",
    errno.ENFILE: "this PC has too many files open: close some programs, or raise fs.file-max",
    errno.ENOMEM: "this PC has no memory left: close some programs",
    errno.ENOBUFS: "this PC has no memory left: close some programs",
}
#: ... of a file system that is not there for now.
_AWAY = {
    errno.ESTALE: "its network file system lost it: mount it again",
    errno.ETIMEDOUT: "its file system does not answer: try again later",
    errno.EHOSTDOWN: "its file system does not answer: try again later",
    errno.ENOTCONN: "its file system has stopped: mount it again",
    errno.EBUSY: "something else uses it: try again later",
    errno.ETXTBSY: "a running program uses it: try again later",
    errno.ENOLCK: "its file system has no locks left: try again later",
}


#: Of what nobody has named.
_NAMELESS = Path("a file or connection")
#: What is done to names in a folder, not to the files that have them.
_OF_NAMES = ("making", "deleting", "removing", "moving", "storing")
_ELSE = "a file server, SELinux or the like may forbid it, or the file is immutable (chattr)"


def storage_error(error: OSError | MemoryError, path: Path, doing: str) -> ZchunkError:
    """What an operating system's refusal means to a user, naming `path` and what to do."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "out of memory"
    kind, text = _told(number, path, doing, reason)
    return kind(text, path=str(path))


def _told(number: int | None, path: Path, doing: str, reason: str) -> tuple[type[ZchunkError], str]:
    failed = f"{doing} {path} failed"
    if number in _FULL:
        return NoSpace, f"no space left for {doing} {path}: free some space on that disk, then try again"
    if number == errno.EFBIG:
        return NoSpace, f"{failed}: {_largest()}; put it on another disk"
    if number in _FORBIDDEN:
        return NotAllowed, f"{doing} {path} is not permitted: {_forbidden(path, doing, reason)}"
    if number == errno.EROFS:
        return NotAllowed, f"{doing} {path} is not permitted: its disk is mounted read-only"
    if number in _GONE:
        return NotFound, f"{failed}: it or its folder does not exist"
    if number in _TAKEN:
        return InvalidUsage, f"{failed}: {reason}"
    if number == errno.ENAMETOOLONG:
        return InvalidUsage, f"{failed}: the name is too long for its file system"
    if number in _BROKEN:
        return StorageFailure, f"{failed}: {reason}; check the disk, its data cannot be trusted"
    return StorageUnavailable, f"{failed}: {_passing(number, reason)}"


def _forbidden(path: Path, doing: str, reason: str) -> str:
    """Who may not do what to which file, as far as its permissions say."""
    why = None if path == _NAMELESS else file_rights.missing(path, of_name=doing.startswith(_OF_NAMES))
    return why or f"{reason}, though its owner and mode allow it: {_ELSE}"


def _passing(number: int | None, reason: str) -> str:
    """Nothing is known to be lost: it may go on working by itself, or with some help."""
    if number == errno.EMFILE and (limit := file_limit.limit()) is not None:
        return f"{_SHORT[number]} (limit: {limit}): raise the limit with `ulimit -n`"
    what = {**_SHORT, **_AWAY}.get(number or 0)
    return f"{reason}; {what}" if what is not None else reason


def _largest() -> str:
    limit = file_limit.largest_file()
    if limit is not None:
        return f"this process cannot write files larger than {limit} bytes (`ulimit -f`)"
    return "its file system does not support files this large (FAT32: 4 GiB - 1 byte at most)"


def check_descriptors(what: str, needed: int) -> None:
    """Before `what` begins, which cannot go on without so many. Raises StorageUnavailable."""
    if (problem := file_limit.shortage(what, needed)) is not None:
        raise StorageUnavailable(problem)


def as_ours(error: OSError | MemoryError) -> ZchunkError:
    """Of a refusal that nobody has put into words where it came up."""
    name = error.filename if isinstance(error, OSError) else None
    if name is not None:
        return storage_error(error, Path(os.fsdecode(name)), "using")
    return storage_error(error, _NAMELESS, "using")


def reason_of(error: OSError | MemoryError) -> str:
    """In a few words, for a sentence that says what failed."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    return os.strerror(number) if number is not None else str(error)


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns OSError and MemoryError into NoSpace, StorageUnavailable (both retryable), NotAllowed,
    NotFound, InvalidUsage or StorageFailure."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise storage_error(error, path, doing) from error
