"""The floor: what one thread needs to read a file, take its SHA-256 and write it durably.

No network, no second process, and nothing of zchunk: a change here changes what every ratio
means, so it stands in a commit of its own, with the figures before and after.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

#: what is read, hashed and written at once, in one buffer that is used again
PIECE = 1 << 22
_PAGE = 4096
DIRECT, CACHED = "O_DIRECT", "page cache"
KINDS = (DIRECT, CACHED)


@dataclass(frozen=True)
class Floor:
    seconds: float
    cpu_s: float
    sha256: str


def floor(source: Path, target: Path, kind: str) -> Floor:
    """Copies `source` (read through the page cache) to `target`, written as `kind` says: space
    taken at the start, file synced, renamed, folder synced. Raises OSError: EINVAL where the
    file system has no O_DIRECT."""
    cpu, started = time.process_time(), time.perf_counter()
    temporary = target.with_name(target.name + ".floor")
    try:
        sha256 = _copy(source, temporary, kind == DIRECT)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.rename(temporary, target)
    _sync_folder(target.parent)
    return Floor(time.perf_counter() - started, time.process_time() - cpu, sha256)


def _copy(source: Path, target: Path, direct: bool) -> str:
    """Returns the SHA-256, in hex."""
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
    reader, writer = os.open(source, os.O_RDONLY), os.open(target, flags, 0o600)
    try:
        size = os.fstat(reader).st_size
        os.posix_fallocate(writer, 0, size)
        with mmap.mmap(-1, PIECE) as memory, memoryview(memory) as view:
            while length := os.readv(reader, [view]):
                digest.update(view[:length])
                # O_DIRECT writes whole pages; what is too much goes with the length below.
                _write(writer, view[: -(-length // _PAGE) * _PAGE if direct else length])
        os.ftruncate(writer, size)
        os.fsync(writer)
    finally:
        os.close(reader)
        os.close(writer)
    return digest.hexdigest()


def _write(fd: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(fd, view) :]


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
