"""Open descriptors of the chunks read last: opening a file for each block would cost more
than reading it.

Responsible for how many are open, and that none is closed during a read or stays open
once its chunk has gone; not for what is read, nor for who may. Called by `chunk_store.py`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zchunk.system.file_limit import close_file, open_file


class _Reader:
    """An open chunk file. It is closed when it is out of the cache and nobody reads it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.cached = False


class ChunkReaders:
    """The descriptors of the chunks read last. Thread-safe; none is closed during a read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, _Reader] = OrderedDict()
        #: Raised by each `drop`: a file opened before that may be the one which has gone.
        self._drops = 0

    @contextmanager
    def reading(self, sha256: bytes, path: Path) -> Iterator[int]:
        """A descriptor that stays open inside the block. Raises OSError."""
        reader = self._acquire(sha256, path)
        try:
            yield reader.fd
        finally:
            self._release(reader)

    def _acquire(self, sha256: bytes, path: Path) -> _Reader:
        with self._lock:
            drops = self._drops
            if (known := self._cache.get(sha256)) is not None:
                self._cache.move_to_end(sha256)
                known.users += 1
                return known
        fresh = _Reader(open_file(path, os.O_RDONLY))  # not under the lock: a disk may take its time
        fresh.users = 1
        with self._lock:
            if drops == self._drops and sha256 not in self._cache:
                fresh.cached = True
                self._cache[sha256] = fresh
                self._evict(self._limit)
        return fresh

    def _release(self, reader: _Reader) -> None:
        with self._lock:
            reader.users -= 1
            self._close_if_unused(reader)

    def drop(self, sha256: bytes) -> None:
        with self._lock:
            self._drops += 1
            if (reader := self._cache.pop(sha256, None)) is not None:
                reader.cached = False
                self._close_if_unused(reader)

    def close(self) -> None:
        with self._lock:
            self._drops += 1
            self._evict(0)

    def _evict(self, limit: int) -> None:
        while len(self._cache) > limit:
            _, oldest = self._cache.popitem(last=False)
            oldest.cached = False
            self._close_if_unused(oldest)

    def _close_if_unused(self, reader: _Reader) -> None:
        if not reader.cached and reader.users == 0:
            close_file(reader.fd)
