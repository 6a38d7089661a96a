"""Small JSON files, read as what a disk, an older release or a stranger may have made of them.

Responsible for limits and plain types, so that whoever keeps such a file checks its values in
a line each. What a damaged one means to the user, its owner says. The functions raise
ValueError for anything but what they ask for, and `read` also OSError.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from zchunk.system.file_limit import keep_regular

#: More than ten thousand members take.
MAX_BYTES = 16 * 1024 * 1024
_MAX_COUNT = 2**63 - 1


def read(path: Path, most: int = MAX_BYTES, *, follow: bool = True) -> Any:
    """What the file at `path` holds. A pipe or device there is not waited for. `follow`: also
    through a link, as is right in folders where only the user makes any."""
    link = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | link)
    if not keep_regular(fd):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(fd, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"longer than {most} bytes")
    return parse(data)


def parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a record")
    return value


def text(value: Any, pattern: str = "", most: int = 4096) -> str:
    """Text that can be printed and stored; all of it matches `pattern` where one is given."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError("not text, or too long")
    value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    if pattern and not re.fullmatch(pattern, value):
        raise ValueError("text of the wrong form")
    return value


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def texts(value: Any, pattern: str = "", most: int = 4096) -> tuple[str, ...]:
    return tuple(text(item, pattern, most) for item in items(value))


def count(value: Any, most: int = _MAX_COUNT) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a count")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def one_of(value: Any, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError("unknown word")
    return value


def key(value: Any) -> bytes:
    """32 bytes, written as 64 hexadecimal digits."""
    return bytes.fromhex(text(value, "[0-9a-f]{64}"))
