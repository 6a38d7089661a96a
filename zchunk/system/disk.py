"""Durable file operations: what is on the disk when a function returns is said here.

The only module that calls fsync, fdatasync, fallocate or opens with O_DIRECT.
Everything that syncs goes through the module globals `sync_file` and `sync_folder`,
so a simulation replaces those two and controls what survives a power cut. They
raise plain OSError; callers wrap them in `storage_errors`, which knows the path.

Rules that hold here:
- A failed sync means the data is gone: nothing in this module syncs a second time.
- O_DIRECT and the page cache have a descriptor each. A descriptor never changes its
  mode, so it is never used both ways while pages are dirty.
- No descriptor is open across a rename or a removal of its file.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from zchunk.errors import ZchunkError
from zchunk.system import syscalls
from zchunk.system.file_limit import close_file, open_file
from zchunk.system.os_errors import NOT_THERE
from zchunk.system.os_errors import storage_error as storage_error
from zchunk.system.os_errors import storage_errors as storage_errors

log = logging.getLogger(__name__)

#: O_DIRECT wants offset, length and memory on this grid (a page; sectors are smaller).
ALIGNMENT = 4096

#: What `st_blocks` counts.
_BLOCK = 512
#: Bytes; with less than this free a disk is full.
_NEXT_TO_NOTHING = 1024 * 1024

Writable = bytes | bytearray | memoryview

#: What a file system says that has no O_DIRECT, or not for this memory or offset.
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_NO_FALLOCATE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV})
#: What a file system says that nobody can write to (an image, a CD).
_NOTHING_TO_SYNC = frozenset({errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP, errno.ENOSYS})
#: What others than the owner may do.
_OTHERS = 0o077
_TEMPORARY_PREFIX = ".zchunk-"
_TEMPORARY_SUFFIX = ".tmp"


# -- syncing --------------------------------------------------------------------------


def sync_file(fd: int) -> None:
    """On return the file's bytes, and its length, survive a power cut. Raises OSError:
    what was written since the last success is then lost, and asking again would lie."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def write_back(fd: int) -> None:
    """On return what anybody wrote to the file before is on its disk, so that the next write
    through a mapping moves the file's times. For reading what others write: nothing is vouched
    for, and a file system that has nothing to sync is no failure. Raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOTHING_TO_SYNC:
            raise


def sync_folder(path: Path) -> None:
    """On return the names in folder `path` survive a power cut. A file system that has no such
    call (SMB, some of FUSE) keeps names itself. Raises OSError."""
    if os.name == "nt":  # a folder cannot be opened there; NTFS journals its names
        return
    fd = open_file(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
    finally:
        close_file(fd)


def write_durable(path: Path, data: Writable, *, temp: Path | None = None, mode: int = 0o600) -> None:
    """Replaces the file `path` by `data`: after a crash it is the old one or the new one,
    on return it is the new one and survives a power cut.

    `temp` names the temporary file; a caller that is the only writer of `path` gives
    one, so that a kill leaves nothing the next write does not take away. Otherwise it
    gets a name of its own in the same folder, see `remove_temporaries`. `mode` is for its
    owner alone unless it lies where the user's own files do.
    Raises as `storage_errors` does; the old content is then in place, except when the
    folder's sync failed: then either may be.
    """
    if temp is None:
        temp = path.with_name(f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
    with storage_errors(path, "writing"):
        try:
            _write_synced(temp, data, mode)
            os.replace(temp, path)
        except OSError:
            discard(temp)
            raise
        sync_folder(path.parent)


def _write_synced(path: Path, data: Writable, mode: int) -> None:
    with suppress(FileNotFoundError):  # what a killed process left
        os.unlink(path)
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_at(None, fd, data, 0)
        sync_file(fd)
    finally:
        close_file(fd)


def private_folder(path: Path) -> None:
    """Makes it, and each folder above it that is missing, for their owner alone, whatever the umask:
    keys lie in it, and everyone's chunks. One that is there and ours is closed to others.
    Raises OSError."""
    make_private(path)
    found = os.stat(path)
    if os.name != "nt" and found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
        os.chmod(path, stat.S_IMODE(found.st_mode) & ~_OTHERS)
        log.warning("%s was open to other users of this PC; now only its owner can open it", path)


def make_private(path: Path) -> None:
    """As `private_folder`, but one that is there stays as it is: others' files may lie in it too."""
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # a umask may have taken bits from its owner too
    except FileNotFoundError:
        make_private(path.parent)
        make_private(path)
    except FileExistsError:
        if not path.is_dir():
            raise


def discard(path: Path) -> bool:
    """Removes `path` if that is possible: for clean-up behind an error that matters more. False
    where it may still be there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_temporaries(folder: Path) -> None:
    """Removes what killed `write_durable` calls left in `folder`. Only for its one owner:
    a temporary file of a call that still runs goes too. Raises as `storage_errors` does."""
    with storage_errors(folder, "cleaning"):
        for name in os.listdir(folder):
            if name.startswith(_TEMPORARY_PREFIX) and name.endswith(_TEMPORARY_SUFFIX):
                os.unlink(folder / name)


def is_there(path: Path) -> bool:
    """Whether there is anything of that name. Raises OSError where that cannot be found out: what
    cannot be looked at is not missing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


# -- space ----------------------------------------------------------------------------


def is_read_only(path: Path) -> bool:
    """Whether its file system is mounted so. Raises OSError."""
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the disk of `path`."""
    with storage_errors(path, "reading the free space of"):
        return shutil.disk_usage(path).free


def is_full(folder: Path) -> bool:
    """Whether the disk of `folder` has next to no room; False where that cannot be found out. For
    libraries that say "I/O error" where they cannot enlarge a file (SQLite)."""
    try:
        return free_bytes(folder) < _NEXT_TO_NOTHING
    except ZchunkError:
        return False


def preallocate(
    fd: int, size: int, path: Path, ranges: Iterable[tuple[int, int]] | None = None, holes: int = 0
) -> None:
    """Gives a file of `size` bytes its disk, so that later writes cannot run out of it: for all
    of it, or `ranges` (offset, length). `holes`: bytes that need none.

    What the file holds stays, and it is as long at least. Where the file system cannot promise
    space only the length is set, if there is as much space now. Raises NoSpace (retryable): the
    file then has its old length, and what had been taken is free again. Not durable by itself.
    """
    with storage_errors(path, f"reserving {size - holes} bytes for"):
        before = os.fstat(fd).st_size
        try:
            _allocate(fd, ((0, size),) if ranges is None else ranges, size - holes)
        except OSError:
            # A failed allocation keeps what it got so far: a full disk, for nothing.
            os.ftruncate(fd, before)
            raise
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)


def _allocate(fd: int, ranges: Iterable[tuple[int, int]], data: int) -> None:
    try:
        for offset, length in ranges:
            if length:
                syscalls.fallocate(fd, offset, length)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        _check_room(fd, data)


def _check_room(fd: int, data: int) -> None:
    """Raises OSError (ENOSPC) where the disk has not as much as a file with so many bytes lacks."""
    if not hasattr(os, "fstatvfs"):
        return
    there, disk = os.fstat(fd).st_blocks * _BLOCK, os.fstatvfs(fd)
    if data - there > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_hole(fd: int, offset: int, length: int) -> bool:
    """The range of the file reads as zeros and takes no disk, if the file system can do that, or
    knows that it does. Raises OSError."""
    try:
        syscalls.punch_hole(fd, offset, length)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        return not has_data(fd, offset, length)
    return True


def has_data(fd: int, offset: int, length: int) -> bool:
    """False only where the file system knows that nothing was ever written to the range."""
    if not hasattr(os, "SEEK_DATA"):
        return True
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + length
    except OSError as error:
        return error.errno != errno.ENXIO  # ENXIO: a hole up to the end of the file


def drop_cache(fd: int) -> None:
    """Asks that the next reads come from the disk itself. Only clean pages go: sync first."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # advice; some file systems take none
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# -- reading and writing --------------------------------------------------------------


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fills `view` from `offset`; fewer bytes than it holds mean the file ended. Raises OSError."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def write_at(fd_direct: int | None, fd_cached: int, data: Writable, offset: int) -> int:
    """Writes all of `data` at `offset`; returns how many bytes bypassed the page cache.

    The part on the 4096 grid goes through `fd_direct` if there is one and the file
    system takes it, the rest through `fd_cached`. Not durable: sync `fd_cached`
    afterwards, which covers both. Raises OSError; parts may then be written.
    """
    view = memoryview(data)
    if view.nbytes == 0:
        return 0
    view = view.cast("B")
    done = 0
    if fd_direct is not None and offset % ALIGNMENT == 0:
        done = _write_direct(fd_direct, view[: _aligned(len(view))], offset)
    _write_all(fd_cached, view[done:], offset + done)
    return done


def _aligned(length: int) -> int:
    return length - length % ALIGNMENT


def _write_direct(fd: int, view: memoryview, offset: int) -> int:
    """How much went direct; stops at the first refusal, the caller writes the rest."""
    done = 0
    while done < len(view):
        try:
            wrote = os.pwrite(fd, view[done:], offset + done)
        except OSError as error:
            if error.errno in _NOT_DIRECT:
                break
            raise
        if wrote % ALIGNMENT:  # a short write off the grid: its last piece is written anew
            return done + _aligned(wrote)
        if wrote == 0:
            break
        done += wrote
    return done


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        wrote = os.pwrite(fd, view[done:], offset + done)
        if wrote == 0:
            raise OSError(errno.EIO, "the disk accepts no more bytes")
        done += wrote


class DirectWriter:
    """The one writer of one open file, past the page cache where that is possible.

    `fd` is the cached descriptor, for reading too. Not thread-safe: two threads that
    write one file would only wait for each other in the kernel.
    """

    def __init__(self, path: Path, flags: int = os.O_CREAT | os.O_EXCL) -> None:
        """Opens `path` with `flags` for reading and writing. Raises as `storage_errors` does."""
        self.path = path
        with storage_errors(path, "opening"):
            self.fd = open_file(path, os.O_RDWR | flags)
        self._direct = _open_direct(path, self.fd)

    def write_at(self, data: Writable, offset: int) -> int:
        """As `write_at`; not durable before `sync`. Raises NoSpace (retryable), StorageFailure."""
        with storage_errors(self.path, "writing"):
            return write_at(self._direct, self.fd, data, offset)

    def sync(self) -> None:
        """On return all that was written is durable. StorageFailure: it is lost, do not retry."""
        with storage_errors(self.path, "syncing"):
            sync_file(self.fd)

    def close(self) -> None:
        """Closes both descriptors; a second call does nothing. Syncs nothing."""
        fds, self.fd, self._direct = (self.fd, self._direct), -1, None
        for fd in fds:
            if fd is not None and fd >= 0:
                close_file(fd)


def _open_direct(path: Path, cached: int) -> int | None:
    """A descriptor past the page cache of the file that `cached` is of, or None where there is no
    such thing (EINVAL on some file systems, no O_DIRECT on some systems) or another file is at
    `path` by now: the cached one does everything then."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        fd = open_file(path, os.O_WRONLY | flag | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    if _same_file(fd, cached):
        return fd
    close_file(fd)
    return None


def _same_file(one: int, other: int) -> bool:
    """Whether two descriptors are known to be of one file."""
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False
