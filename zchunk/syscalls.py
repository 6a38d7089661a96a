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


def rename_new(source: Path, target: Path) -> None:
    """`source` gets the name `target` if nothing has it, in one step. Raises FileExistsError
    where something has, OSError as `os.rename` does, EINVAL too where the file system cannot."""
    names = os.fsencode(source), os.fsencode(target)
    _call("renameat2", _AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_NOREPLACE), on=target)


def _call(name: str, *args: Any, on: Path) -> None:
    call = getattr(_library(), name, None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(on))
    if call(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(on))


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None
