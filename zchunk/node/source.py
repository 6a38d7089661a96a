"""The file being uploaded: opened once, watched for changes, read chunk by chunk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zchunk import disk
from zchunk.errors import FileChanged, InvalidUsage, NotAllowed, NotFound
from zchunk.manifest import chunk_length


class SourceFile:
    """An open regular file. Thread-safe: every read names its offset."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound, NotAllowed (unreadable), InvalidUsage (no regular file)."""
        self.path = path
        try:
            # Not blocking: opening a named pipe would wait for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist") from None
        except IsADirectoryError:
            raise _no_file(path) from None
        except OSError as error:
            raise NotAllowed(f"{path} cannot be read: {error.strerror}") from None
        self._stat = os.fstat(self._fd)
        if not stat.S_ISREG(self._stat.st_mode):
            self.close()
            raise _no_file(path)

    @property
    def size(self) -> int:
        return self._stat.st_size

    def read_chunk(self, index: int, chunk_size: int, into: memoryview) -> memoryview:
        """The chunk's bytes as a slice of `into`. Raises FileChanged where the file has
        become shorter, StorageFailure."""
        view = into[: chunk_length(self.size, chunk_size, index)]
        with disk.storage_errors(self.path, "reading"):
            got = disk.read_into(self._fd, view, index * chunk_size)
        if got != len(view):
            raise self._changed()
        return view

    def check_unchanged(self) -> None:
        """Raises FileChanged where the file was written to, or replaced, since it was opened."""
        with disk.storage_errors(self.path, "looking at"):
            now = os.fstat(self._fd)
        if _identity(now) != _identity(self._stat):
            raise self._changed()
        try:
            at_path = os.stat(self.path)
        except OSError:
            raise self._changed() from None
        if _identity(at_path) != _identity(self._stat):
            raise self._changed()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _changed(self) -> FileChanged:
        return FileChanged(
            f"{self.path} changed while it was being uploaded; put it again when it is at rest"
        )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _no_file(path: Path) -> InvalidUsage:
    return InvalidUsage(f"{path} is no regular file; put files one by one, or pack a folder first")
