"""The one place that says whether the bytes of a file are those of its name.

Responsible for the verdict alone; what is done with it is the matter of `chunk_store.py`,
`reconcile.py` and `manifest_folder.py`, the callers.

May not happen here: a file called damaged that was not read without an error from its first
byte to its last, twice, with the same wrong bytes. An operating system that refuses a read
(a disk that fails, no descriptors, no memory, no rights, a mount that went) says nothing of
what is there: that is an OSError here, and never evidence.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from zchunk.content import hashing
from zchunk.errors import Unreadable
from zchunk.system import disk
from zchunk.system.file_limit import close_file, open_file

#: A file is read back in pieces: several at a time must not take the memory of as many chunks.
_PIECE = 1024 * 1024


class Verdict(Enum):
    WHOLE = "whole"
    DAMAGED = "damaged"
    #: there is no file of that name; whether its folder is still the store's, the caller asks
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict
    #: bytes of the file, and their BLAKE3; only of a whole one
    size: int = 0
    blake3: bytes = b""


def judge(path: Path, sha256: bytes, blake3: bytes | None = None) -> Judged:
    """Reads the file from the disk, not from memory. `blake3`: what the bytes of `sha256` have,
    if that is known, since it is faster; SHA-256 decides where it differs.

    Raises OSError where it cannot be read now.
    """
    try:
        return _judge(path, sha256, blake3)
    except FileNotFoundError:
        return Judged(Verdict.GONE)
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path)) from error


def _judge(path: Path, sha256: bytes, blake3: bytes | None) -> Judged:
    if blake3 is not None and hashing.blake3_of(pieces := _Pieces(path)) == blake3:
        return Judged(Verdict.WHOLE, pieces.size, blake3)
    first = hashing.both_of(_Pieces(path))
    found = first if first.sha256 == sha256 else hashing.both_of(_Pieces(path))
    if found.sha256 == sha256:
        return Judged(Verdict.WHOLE, found.size, found.blake3)
    if found != first:
        raise OSError(errno.EIO, "two reads returned different bytes", str(path))
    return Judged(Verdict.DAMAGED)


class _Pieces:
    """The file's bytes in order; a piece is valid until the next. Raises OSError, also where
    the file ends before its size: that was no read of all of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = 0

    def __iter__(self) -> Iterator[memoryview]:
        fd = open_file(self._path, os.O_RDONLY)
        try:
            disk.drop_cache(fd)
            buffer = memoryview(bytearray(_PIECE))
            while got := disk.read_into(fd, buffer, self.size):
                self.size += got
                yield buffer[:got]
            if self.size < os.fstat(fd).st_size:
                raise OSError(errno.EIO, "it is shorter than its size says", str(self._path))
        finally:
            close_file(fd)


def unreadable(what: str, error: BaseException, **details: str) -> Unreadable:
    """What a refused read means to whoever wants the bytes: `what` is "chunk 1234"."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "out of memory"
    return Unreadable(f"{what} cannot be read now ({reason}); it is kept, and tried again later", **details)


def unreadable_chunk(sha256: bytes, error: BaseException) -> Unreadable:
    return unreadable(f"chunk {sha256.hex()[:12]}", error, chunk=sha256.hex())
