"""Reads blocks of held chunks, not verified: the receiver does."""

from __future__ import annotations

import errno
from collections.abc import Callable

from zchunk.errors import InvalidUsage
from zchunk.node.store.open_store import OpenStore
from zchunk.system import disk


def fresh(length: int) -> memoryview:
    return memoryview(bytearray(length))


class BlockReader:
    def __init__(self, opened: OpenStore) -> None:
        self._open = opened

    def read_block(
        self, sha256: bytes, offset: int, length: int, memory: Callable[[int], memoryview] = fresh
    ) -> memoryview:
        """`length` bytes of the chunk, not verified: the receiver does. They lie in
        `memory(length)`, which is asked only once the range is known to be one.

        Raises NotFound, InvalidUsage (a range outside the chunk), Unreadable (retryable:
        what is wrong with it, if anything, `verify` finds out), StoreOffline (retryable).
        """
        self._open.folder.check_online()
        size = self._open.held.size_of(sha256)
        if offset < 0 or length < 0 or offset + length > size:
            raise InvalidUsage(
                f"chunk {sha256.hex()[:12]} has {size} bytes; {length} bytes from {offset} are beyond its end"
            )
        try:
            view = memory(length)
            if self._pread(sha256, offset, view) != length:
                raise OSError(errno.EIO, "it is shorter than its size says")
        except (OSError, MemoryError) as error:
            raise self._open.refused(sha256, error) from error
        return view

    def _pread(self, sha256: bytes, offset: int, view: memoryview) -> int:
        try:
            return self._read(sha256, offset, view)
        except FileNotFoundError:
            with self._open.index_lock:  # it was on its way to the trash, and is perhaps back by now
                self._open.held.size_of(sha256)
                return self._read(sha256, offset, view)

    def _read(self, sha256: bytes, offset: int, view: memoryview) -> int:
        with self._open.readers.reading(sha256, self._open.files.path(sha256)) as fd:
            return disk.read_into(fd, view, offset)
