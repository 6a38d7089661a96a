"""The file being uploaded: opened once, watched for changes, read chunk by chunk.

What may not happen here: half of one state of a file and half of another taken for a file. A
change is told by the times that the file system keeps; of these no program can set the
ctime. A write through a mapping moves them only when its page was clean, so the file is
synced first (`_at_rest`). A tmpfs moves them for no such write: there it goes unnoticed.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

from zchunk.clock import Clock, SystemClock
from zchunk.content.manifest import chunk_length
from zchunk.errors import FileChanged, InvalidUsage, NotFound
from zchunk.system import disk
from zchunk.system.file_limit import keep_regular

log = logging.getLogger(__name__)

#: Two changes within so long may have the same time: a tick of the kernel's coarse clock, or
#: two seconds where times are whole seconds (FAT, old ext4).
_TICK_S, _COARSE_TICK_S = 0.02, 2.0
_SECOND_NS = 10**9
#: A file that was written to in each of so many looks is not at rest.
_LOOKS = 4


class SourceFile:
    """An open regular file. Thread-safe: every read names its offset."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        """Takes as long as the disk needs for what was just written to the file, and a moment.

        Raises NotFound, NotAllowed (unreadable), InvalidUsage (no regular file, or one without a
        size of its own), FileChanged (somebody is writing to it), StorageFailure."""
        self.path = path
        self._fd = _open_regular(path)
        try:
            self._stat = _at_rest(self._fd, path, clock or SystemClock())
            self._check_size()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        return self._stat.st_size

    def is_hole(self, index: int, chunk_size: int) -> bool:
        """Whether the file system knows that the chunk is nothing but zeros."""
        length = chunk_length(self.size, chunk_size, index)
        return not disk.has_data(self._fd, index * chunk_size, length)

    def read_chunk(self, index: int, chunk_size: int, into: memoryview) -> memoryview:
        """The chunk's bytes as a slice of `into`. Raises FileChanged where the file has
        become shorter, StorageFailure."""
        view = into[: chunk_length(self.size, chunk_size, index)]
        with disk.storage_errors(self.path, "reading"):
            got = disk.read_into(self._fd, view, index * chunk_size)
        if got != len(view):
            raise _changed(self.path)
        return view

    def check_unchanged(self) -> None:
        """Raises FileChanged where the file was written to, or replaced, since it was opened."""
        with disk.storage_errors(self.path, "checking"):
            now = os.fstat(self._fd)
        if _identity(now) != _identity(self._stat):
            raise _changed(self.path)
        try:
            at_path = os.stat(self.path)
        except OSError:
            raise _changed(self.path) from None
        if _identity(at_path) != _identity(self._stat):
            raise _changed(self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check_size(self) -> None:
        """Files of the kernel (/proc, /sys) have a size that says nothing of what is read."""
        last = max(0, self.size - 1)
        try:
            found = os.pread(self._fd, 2, last)
        except OSError as error:
            if self.size:
                raise disk.storage_error(error, self.path, "reading") from error
            found = b"?"  # an empty file cannot fail to be read
        if len(found) != self.size - last:
            self.check_unchanged()
            raise InvalidUsage(
                f"{self.path} has another size than it reports: copy its content to a file, and upload that"
            )


def _open_regular(path: Path) -> int:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # not even opened: that may act on a device
            raise _no_file(path)
        # Not blocking: if it was a named pipe by now it would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        if keep_regular(fd):
            return fd
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise disk.storage_error(error, path, "reading") from None
    raise _no_file(path)


def _at_rest(fd: int, path: Path, clock: Clock) -> os.stat_result:
    """How the file stands, so that whatever is written to it from now on moves its times. Raises
    FileChanged."""
    status = os.fstat(fd)
    for _ in range(_LOOKS):
        before, begun = status, clock.wall()
        _write_back(fd, path)
        status = os.fstat(fd)
        if status.st_ctime_ns / _SECOND_NS + _tick(status) < begun:
            return status
        time.sleep(_tick(status))
    if _identity(status) == _identity(before):  # the file's disk has another clock than this PC
        return status
    raise FileChanged(f"{path} is being written to; upload it when nothing writes to it", path=str(path))


def _write_back(fd: int, path: Path) -> None:
    try:
        disk.write_back(fd)
    except OSError as error:
        log.warning(
            "%s could not be synced (%s): changes that a program makes through memory may go unnoticed",
            path,
            error.strerror,
        )


def _tick(status: os.stat_result) -> float:
    return _TICK_S if status.st_ctime_ns % _SECOND_NS else _COARSE_TICK_S


def _changed(path: Path) -> FileChanged:
    return FileChanged(
        f"{path} changed while it was being uploaded; upload it again when nothing writes to it"
    )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _no_file(path: Path) -> InvalidUsage:
    return InvalidUsage(f"{path} is not a regular file; upload files one by one, or pack a folder first")
