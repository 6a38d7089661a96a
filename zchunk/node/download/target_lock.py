"""One process for a target: a lock on `<target>.zlock`, which ends with the process.

The file may lie in a folder that others write to, so it is opened as what anybody may have put
there: never through a link, never cut, and it counts as ours only where it is owned as the
files are that we make there. On some disks (FAT, SMB, a squashed NFS) these are not owned by
the user that the process runs as.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from zchunk.errors import NotAllowed
from zchunk.system import disk
from zchunk.system.file_limit import keep_regular
from zchunk.system.file_owners import own_uid, owner_name

log = logging.getLogger(__name__)

_POLL_S = 0.02
#: Who takes the file away from under us that often has something else in mind.
_TRIES = 500
#: EBADF: NFS locks nothing that is open for reading alone, as another user's file is.
_CONTENTION = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EBADF})
#: What a disk says that has no locks, or whose server has none for us.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_FLAGS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Held(Exception):
    """A process has the lock; `owner` is the user whose file it is, None where it is ours."""

    def __init__(self, owner: int | None) -> None:
        super().__init__("held")
        self.owner = owner


class TargetLock:
    """Held by this process, until `release` or its end."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        #: who owns what this process makes in that folder
        self.owner = os.fstat(fd).st_uid

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def owns(self, found: os.stat_result) -> bool:
        """Whether a file in that folder is ours alone: nobody else may write to it, by another
        name either."""
        ours = found.st_uid in (self.owner, own_uid())
        return stat.S_ISREG(found.st_mode) and ours and found.st_nlink == 1

    def release(self) -> None:
        """A second call does nothing."""
        if self._fd < 0:
            return
        # Removed while held: who waits at the old file finds that it has no name any more.
        disk.discard(self.path)
        self.drop()

    def drop(self) -> None:
        """As the end of the process does: the file stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def acquire(path: Path, wait_s: float) -> TargetLock:
    """Waits up to `wait_s` for who holds it. Raises Held, NotAllowed (what is there is somebody
    else's, or no file), OSError."""
    deadline = time.monotonic() + wait_s
    for _ in range(_TRIES):
        lock, held = _try(path)
        if lock is not None:
            return lock
        if held is not None and time.monotonic() >= deadline:
            raise held
        time.sleep(_POLL_S)
    raise Held(None)


def _try(path: Path) -> tuple[TargetLock | None, Held | None]:
    """Neither where what is there changed meanwhile: it is looked at again."""
    fd, made = _open(path)
    if fd < 0:
        return None, None
    try:
        found = os.fstat(fd)
        ours = made or found.st_uid == own_uid()
        if not _lock(fd, path):
            return None, Held(None if ours else found.st_uid)
        if not _is_at(path, found):
            return None, None
        if not ours:
            _remove_foreign(path, found.st_uid)
            return None, None
        lock, fd = TargetLock(path, fd), -1
        return lock, None
    except BaseException:
        if made:
            _take_back(path, fd)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def _take_back(path: Path, fd: int) -> None:
    """What was made for a lock that the disk refuses: nobody has it."""
    with suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            os.unlink(path)


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether the file was made; -1 where it went meanwhile."""
    with suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), True
    try:
        fd = _open_there(path)
    except FileNotFoundError:
        return -1, False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _odd(path) from None
        raise
    if not keep_regular(fd):
        raise _odd(path)
    return fd, False


def _open_there(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | _FLAGS)
    except PermissionError:
        return os.open(path, os.O_RDONLY | _FLAGS)  # of another user: enough for a lock


def _odd(path: Path) -> NotAllowed:
    return NotAllowed(
        f"{path} is in the way and is not a file of zchunk: remove it, or choose another target (-o)"
    )


def _is_at(path: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except FileNotFoundError:
        return False


def _remove_foreign(path: Path, uid: int) -> None:
    """What somebody else's process left, who has ended: nobody holds it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except PermissionError:
        raise NotAllowed(
            f"{path} belongs to {owner_name(uid)} and is not in use: ask them to remove it, or choose another"
            " target (-o)"
        ) from None


if sys.platform == "win32":

    def _lock(fd: int, path: Path) -> bool:
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(fd: int, path: Path) -> bool:
        """Whether nobody else has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _CONTENTION:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "the file system of %s has no locks: do not start a second download to the same target", path
            )
        return True
