"""Calls of Linux that Python has no function for. Where the C library or the kernel lacks one
they raise OSError as a file system does that cannot do it (ENOSYS), and callers do without."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def rename_new(source: Path, target: Path) -> None:
    """`source` gets the name `target` if nothing has it, in one step. Raises FileExistsError
    where something has, OSError as `os.rename` does, EINVAL too where the file system cannot."""
    names = os.fsencode(source), os.fsencode(target)
    flags = ctypes.c_uint(_RENAME_NOREPLACE)
    _call(("renameat2",), _AT_FDCWD, names[0], _AT_FDCWD, names[1], flags, on=target)


def fallocate(fd: int, offset: int, length: int) -> None:
    """Gives the range disk; what it holds stays, and the file becomes so long if it is shorter.
    `os.posix_fallocate` writes a byte in each page where the file system cannot, which takes as
    long as writing the file; this raises OSError (EOPNOTSUPP)."""
    _call_on(fd, 0, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """The range holds zeros and takes no disk; the length stays. Raises OSError, EOPNOTSUPP where
    the file system cannot."""
    _call_on(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)


def _call_on(fd: int, mode: int, offset: int, length: int) -> None:
    numbers = ctypes.c_int64(offset), ctypes.c_int64(length)
    while True:
        try:
            # On 64 bits they are one.
            return _call(("fallocate64", "fallocate"), fd, mode, *numbers, on=f"descriptor {fd}")
        except InterruptedError:
            continue


def _call(names: tuple[str, ...], *args: Any, on: Path | str) -> None:
    calls = [call for name in names if (call := getattr(_library(), name, None)) is not None]
    if not calls:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(on))
    call = calls[0]
    if call(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(on))


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None
