"""Ending a connection of a socket that libzmq owns.

libzmq has no call for it, so the descriptor under the connection is shut down: libzmq sees
the connection break, and closes it. Its number is libzmq's, and is used again as soon as
the connection has ended: a number alone is not enough to name a connection.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from zchunk.system.file_limit import close_file, copy_file, is_want


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A connection by its descriptor's number and who is at the other end of it."""

    number: int
    other_end: Any


def descriptor(number: int) -> Descriptor | None:
    """The connection that has this number now; None where it has ended."""
    with suppress(OSError), _copied(number) as copy:
        return Descriptor(number, copy.getpeername())
    return None


def own_end(number: int) -> Any:
    """(host, port, ...) of this side of a TCP connection that stands; None for all else. Raises
    OSError where that cannot be found out now."""
    try:
        with _copied(number) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                copy.getpeername()
                return copy.getsockname()
    except OSError as error:
        if is_want(error):
            raise
    return None


def is_open(which: Descriptor) -> bool:
    return descriptor(which.number) == which


def shut_down(which: Descriptor) -> None:
    """Ends this connection, and no other that has its number by now."""
    with suppress(OSError), _copied(which.number) as copy:
        if copy.getpeername() == which.other_end:
            copy.shutdown(socket.SHUT_RDWR)


@contextmanager
def _copied(number: int) -> Iterator[socket.socket]:
    """A descriptor of our own for the same connection. Raises OSError where it is none."""
    # Not of a file: when a copy is closed, this process loses its locks on that file (POSIX), and
    # with SQLite's locks others may cut the file off under its mapping.
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    fd = copy_file(number)
    try:
        copy = socket.socket(fileno=fd)
        try:
            yield copy
        finally:
            copy.detach()
    finally:
        close_file(fd)
