"""Requests being worked on: how many, and how much memory they hold, of each who asks. Pure.

Who asks faster than the disk or the database answers is told to wait, and takes no more
memory meanwhile. The tracker and a node's chunk service ask here before they begin.

What may not happen here: one who asks taking the share of another, or a small request
refused for the sake of others' large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from zchunk.errors import Busy

#: Of one who asks the tracker.
MAX_REQUESTS = 256
#: Of one who asks, wherever: a request of the largest size, and small ones.
MAX_BYTES = 20 * 1024 * 1024
#: Of all together. What is smaller than `_SMALL` is bounded by the number of requests alone.
MAX_BYTES_OF_ALL = 64 * 1024 * 1024
_SMALL = 64 * 1024


@dataclass(slots=True)
class _Open:
    requests: int = 0
    size: int = 0


@dataclass(slots=True)
class Ticket:
    """One request; it ends when nothing is under way for it any more."""

    who: str | bytes
    size: int
    works: int = 0


class Outstanding:
    def __init__(self, most: int = MAX_REQUESTS) -> None:
        """`most`: requests of one who asks."""
        self._most = most
        self._open: dict[str | bytes, _Open] = {}
        self._size = 0

    def begin(self, who: str | bytes, size: int) -> Ticket:
        """A request that holds `size` bytes; end it with `end`. Raises Busy (retryable)."""
        mine = self._open.get(who) or _Open()
        if mine.requests >= self._most:
            raise Busy(f"{self._most} of your requests are in progress here; try again later")
        if size > _SMALL and mine.size and mine.size + size > MAX_BYTES:
            raise Busy(f"your requests already hold {mine.size} bytes here; try again later")
        if size > _SMALL and self._size and self._size + size > MAX_BYTES_OF_ALL:
            raise Busy("too many large requests are in progress here; try again later")
        mine.requests += 1
        mine.size += size
        self._open[who] = mine
        self._size += size
        return Ticket(who, size)

    def end(self, ticket: Ticket) -> None:
        mine = self._open[ticket.who]
        mine.requests -= 1
        mine.size -= ticket.size
        self._size -= ticket.size
        if not mine.requests:
            del self._open[ticket.who]

    @property
    def requests(self) -> int:
        return sum(mine.requests for mine in self._open.values())
