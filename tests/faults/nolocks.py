"""zchunk on a home that lies on a file system without locks: NFS without its lock service, SMB.

Its arguments are the command that it stands for: an interpreter, `-m zchunk`, and the words
behind. Files below the folder in TEST_WITHOUT_LOCKS cannot be locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from zchunk.cli import main

_flock = fcntl.flock


def flock(fd: int, how: int) -> None:
    if os.readlink(f"/proc/self/fd/{fd}").startswith(os.environ["TEST_WITHOUT_LOCKS"]):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    _flock(fd, how)


if __name__ == "__main__":
    fcntl.flock = flock  # type: ignore[assignment]
    sys.argv = ["zchunk", *sys.argv[4:]]
    main()
