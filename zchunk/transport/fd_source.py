"""A descriptor of the operating system's as a socket of a loop: that something can be read from it
is all that it says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from zchunk.transport.base import Arrival, Buffer, Delivery, Readable


class FdSource:
    """Owns `fd`, which does not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.endpoint = ""

    def pollable(self) -> list[int]:
        return [self._fd]

    def receive(self) -> Readable | None:
        """One for all that has come."""
        rung = None
        try:
            while os.read(self._fd, 65_536):
                rung = Readable()
        except BlockingIOError:
            pass
        except OSError:  # more came than the system keeps (netlink)
            rung = Readable()
        return rung

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        return Delivery.GONE

    def reject(self, arrival: Arrival) -> None:
        """Nobody is at the other end."""

    def close(self) -> None:
        os.close(self._fd)
