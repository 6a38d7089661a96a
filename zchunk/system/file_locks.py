"""Locks on files in a home: one process at a time does what they stand for.

`flock`, which ends with its process, however that ends. On a file system without locks (NFS
without its lock service, SMB, some of FUSE) a file of the same meaning in this PC's own runtime
folder is locked instead: that excludes all processes of this user here, and none on other PCs,
which is said. (The lock beside the target of a download is `download/target_lock.py`'s: others may write
to that folder.)
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from zchunk.errors import NotAllowed
from zchunk.system.os_errors import NOT_THERE

log = logging.getLogger(__name__)

__all__ = ["FileLock", "Timeout", "locked"]

_NO_LOCKS = NOT_THERE | {errno.ENOLCK}


def locked(path: Path, *, timeout_s: float = 0.0, mode: int = 0o600) -> FileLock:
    """The lock of `path`, held; `release` it. The folder must be there. Raises Timeout where another
    process, or thread, has it for so long, and OSError."""
    os.stat(path.parent)  # else the library makes it
    lock = _lock(path, timeout_s, mode)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "the file system of %s has no locks: another PC could use it at the same time", path.parent
        )
        lock = _lock(_here(path), timeout_s, 0o600)
        lock.acquire()
    return lock


def _lock(path: Path, timeout_s: float, mode: int) -> FileLock:
    # An object of its own each time: two threads must exclude each other too.
    return FileLock(path, timeout=timeout_s, mode=mode, thread_local=False, fallback_to_soft=False)


def _here(path: Path) -> Path:
    """What stands for it on this PC: of one folder by whatever path, the same."""
    folder = os.stat(path.parent)
    name = hashlib.sha256(f"{folder.st_dev}:{folder.st_ino}:{path.name}".encode()).hexdigest()
    return _runtime_folder() / f"{name[:32]}.lock"


def _runtime_folder() -> Path:
    """Of this user alone. Raises NotAllowed where another user was faster, in a folder of all."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        folder = Path(base) / "zchunk-locks"
    else:
        folder = Path(tempfile.gettempdir()) / f"zchunk-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise NotAllowed(
            f"{folder} belongs to another user: remove it, or set XDG_RUNTIME_DIR", path=str(folder)
        )
    return folder
