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
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A connection by its descriptor's number and who is at the other end of it."""

    number: int
    other_end: Any


def descriptor(number: int) -> Descriptor | None:
    """The connection that has this number now; None where it has ended."""
    with suppress(OSError), closing(_copy(number)) as copy:
        return Descriptor(number, copy.getpeername())
    return None


def own_end(number: int) -> Any:
    """(host, port, ...) of this side of a TCP connection that stands; None for all else."""
    with suppress(OSError), closing(_copy(number)) as copy:
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            copy.getpeername()
            return copy.getsockname()
    return None


def is_open(which: Descriptor) -> bool:
    return descriptor(which.number) == which


def shut_down(which: Descriptor) -> None:
    """Ends this connection, and no other that has its number by now."""
    with suppress(OSError), closing(_copy(which.number)) as copy:
        if copy.getpeername() == which.other_end:
            copy.shutdown(socket.SHUT_RDWR)


def _copy(number: int) -> socket.socket:
    """A descriptor of our own for the same connection. Raises OSError where it is none."""
    # Not of a file: when a copy is closed, this process loses its locks on that file (POSIX), and
    # with SQLite's locks others may cut the file off under its mapping.
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
