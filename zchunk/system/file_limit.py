"""How many descriptors this process may have open, and who has which part of them.

A tracker or node has one for each connection, and whoever connects decides how many there are.
So connections have a part only (`for_connections`), and some descriptors are kept open for
nothing but being given up where a file is to be opened and there are none left (`keep`,
`open_file`): between two looks at connections more may come than their part. A look itself takes
one of these where it must (`copy_file`).

What a process cannot do without is counted before it begins (`shortage`): libzmq ends a process
where there is no descriptor left for a thread of its own.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from contextlib import suppress

try:
    import resource
except ImportError:  # Windows: there is no such limit, and each command imports this
    resource = None  # type: ignore[assignment]

#: As many as a node's threads have open at one time: a file past the page cache and through it,
#: or a folder, for each.
SPARE = 12
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})
_WANT = _NONE_LEFT | {errno.ENOMEM, errno.ENOBUFS}


def raise_limit() -> int | None:
    """Raises the soft limit as far as the hard one lets it; returns what holds now, None where
    there is no limit to raise."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


def limit() -> int | None:
    """How many descriptors this process may have; None where there is no limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource is not None else -1
    return soft if soft >= 0 else None


def free(most: int) -> int:
    """How many more descriptors this process can open now; `most` where it is more than that."""
    opened: list[int] = []
    try:
        with suppress(OSError):
            opened.append(os.open(os.devnull, os.O_RDONLY))
            while len(opened) < most:
                opened.append(os.dup(opened[0]))
        return len(opened)
    finally:
        for fd in opened:
            os.close(fd)


def shortage(what: str, needed: int) -> str | None:
    """What to tell where fewer than `needed` descriptors are free for `what`; None where they are."""
    left = free(needed)
    if left == needed:
        return None
    most = limit()
    of = "" if most is None else f" of {most}"
    return (
        f"{what} needs {needed} descriptors for files and connections, but {left}{of} are free: raise the"
        f" limit (RLIMIT_NOFILE), e.g. `ulimit -n {max(1024, 2 * (most or 0))}`"
    )


def largest_file() -> int | None:
    """Bytes of the largest file that this process may write; None where there is no limit."""
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource is not None else -1
    return soft if soft >= 0 else None


def for_connections() -> int:
    """How many connections this process may have: three in eight of all descriptors. A node has
    40 of its own, before it opens a file."""
    return _part(3, 8)


def for_readers(most: int) -> int:
    """How many of `most` files may stay open in case they are read again."""
    return min(most, _part(1, 16))


def _part(share: int, of: int) -> int:
    most = limit()
    return sys.maxsize if most is None else max(1, most * share // of)


def is_want(error: OSError) -> bool:
    """Whether it says that something is short for now, and nothing of what was asked about."""
    return error.errno in _WANT


def keep_regular(fd: int) -> bool:
    """Whether it is of a regular file. Any other is closed, and so is one that cannot be looked at:
    raises OSError then."""
    is_regular = False
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        if not is_regular:
            os.close(fd)
    return is_regular


class _Kept:
    """Descriptors that stand open for nothing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._spare: list[int] = []
        #: what spare ones lead to
        self._nothing = -1

    def keep(self, count: int) -> None:
        with self._lock:
            if self._nothing < 0:
                self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._wanted = count
            while len(self._spare) > count:
                os.close(self._spare.pop())
            self._refill()

    def open(self, path: str | os.PathLike[str], flags: int, mode: int) -> int:
        try:
            fd = os.open(path, flags, mode)
        except OSError as error:
            if error.errno not in _NONE_LEFT or not self._spare:
                raise
            return self._open_instead(path, flags, mode)
        if len(self._spare) < self._wanted:
            with self._lock:
                self._refill()
        return fd

    def _open_instead(self, path: str | os.PathLike[str], flags: int, mode: int) -> int:
        """Whoever accepts connections may be faster at what was given up: then the next."""
        with self._lock:
            while self._spare:
                os.close(self._spare.pop())
                try:
                    return os.open(path, flags, mode)
                except OSError as error:
                    if error.errno not in _NONE_LEFT:
                        self._refill()
                        raise
        return os.open(path, flags, mode)

    def copy(self, fd: int) -> int:
        try:
            return os.dup(fd)
        except OSError as error:
            with self._lock:
                if error.errno not in _NONE_LEFT or not self._spare:
                    raise
                os.dup2(fd, self._spare[-1], inheritable=False)
                return self._spare.pop()

    def close(self, fd: int) -> None:
        """In one step it becomes a spare one where one is missing: nobody can take its place."""
        with self._lock:
            if len(self._spare) < self._wanted:
                os.dup2(self._nothing, fd, inheritable=False)
                self._spare.append(fd)
                return
        os.close(fd)

    def _refill(self) -> None:
        with suppress(OSError):
            while len(self._spare) < self._wanted:
                self._spare.append(os.dup(self._nothing))


_kept = _Kept()


def keep(count: int = SPARE) -> None:
    """From now on so many descriptors are kept for `open_file`. 0 gives them back."""
    _kept.keep(count)


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """As `os.open`, also where connections have all descriptors but those that are kept. Raises
    OSError."""
    return _kept.open(path, flags, mode)


def copy_file(fd: int) -> int:
    """As `os.dup`, in the same way. Raises OSError."""
    return _kept.copy(fd)


def close_file(fd: int) -> None:
    """Of a descriptor from `open_file` or `copy_file`."""
    _kept.close(fd)
