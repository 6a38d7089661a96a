"""What was sent to a connection and is not read: how much of it there may be.

A high-water mark counts messages, and a thousand answers of megabytes to who never reads would
be all memory. What an honest receiver has not read yet, flow control keeps below this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import zmq

#: a frame that was not copied: tells when libzmq is done with it; its bytes
Large = tuple[zmq.MessageTracker, int]


class Unread:
    """Large frames that libzmq still holds, since their connections do not read them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[bytes, deque[Large]] = {}
        self._bytes = 0

    def has_room(self, connection: bytes, size: int) -> bool:
        held = self._held.get(connection)
        if not size or held is None:
            return True
        self._let_go(held)
        mine = sum(length for _, length in held)
        if mine and self._bytes + size > 4 * self._most:
            self.sweep()
        return not mine or (mine + size <= self._most and self._bytes + size <= 4 * self._most)

    def add(self, connection: bytes, large: Sequence[Large]) -> None:
        if large:
            self._held.setdefault(connection, deque()).extend(large)
            self._bytes += sum(length for _, length in large)

    def forget(self, connection: bytes) -> None:
        self._bytes -= sum(length for _, length in self._held.pop(connection, ()))

    def sweep(self) -> None:
        """Nothing is kept of connections that have read all, or are gone."""
        for connection, held in list(self._held.items()):
            self._let_go(held)
            if not held:
                del self._held[connection]

    def _let_go(self, held: deque[Large]) -> None:
        while held and held[0][0].done:
            self._bytes -= held.popleft()[1]
