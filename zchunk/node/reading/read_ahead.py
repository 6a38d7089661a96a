"""Which chunks a range of a file touches, which to fetch ahead, and which stay in memory. Pure.

What may not happen here: a chunk wanted that the range does not touch, but for those ahead of
somebody who reads in order; more chunks in memory than there is room for.

Offsets and lengths are bytes of the plain content; a chunk is named by its index.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def chunks_of(offset: int, length: int, size: int, chunk_size: int) -> range:
    """The chunks that hold bytes `offset` to `offset + length` of a file of `size` bytes; none
    for an empty range, or for one behind the file's end."""
    end = min(offset + length, size)
    if offset >= end:
        return range(0)
    return range(offset // chunk_size, (end - 1) // chunk_size + 1)


def room_for(budget: int, stored_size: int) -> int:
    """How many chunks a reader keeps and fetches at a time: what fits `budget`, and one less,
    for a second attempt at a chunk that is slow to come. Always one."""
    return max(1, budget // stored_size - 1)


class ReadAhead:
    """How far ahead of a reader to fetch: nothing until it went on in order twice (once is what a
    small read across two chunks looks like), then twice as far with each chunk, up to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: int | None = None
        #: how many times it went on in order
        self._steps = 0

    def behind(self, chunks: range, count: int) -> range:
        """The chunks to fetch behind a read of `chunks`, of a file that has `count`."""
        if self._last is None or not self._last <= chunks[0] <= self._last + 1:
            self._steps = 0
        elif chunks[-1] > self._last:
            self._steps += 1
        self._last = chunks[-1]
        depth = min(self._most, 2 ** min(self._steps - 2, 20)) if self._steps > 1 else 0
        return range(chunks[-1] + 1, min(chunks[-1] + 1 + depth, count))


class ChunkWindow:
    """The chunks that are in memory, or come into it: those that are wanted, and beside these
    as many of the others as there is room for, the latest used ones."""

    def __init__(self, room: int) -> None:
        self.room = room
        #: the wanted ones, at most `room`
        self.wanted: frozenset[int] = frozenset()
        #: in memory, the longest unused first
        self._there: dict[int, None] = {}

    def move(self, wanted: Sequence[int]) -> list[int]:
        """`wanted`, as many of the first of them as there is room for, are needed from now on.
        Returns the chunks whose memory must be given up for them."""
        self.wanted = frozenset(wanted[: self.room])
        for index in wanted[: self.room]:
            if index in self._there:
                self._there[index] = self._there.pop(index)
        too_many = len(self.wanted.union(self._there)) - self.room
        others = [index for index in self._there if index not in self.wanted]
        gone = others[: max(0, too_many)]
        for index in gone:
            del self._there[index]
        return gone

    def missing(self) -> list[int]:
        """The wanted ones that are not in memory, in order."""
        return sorted(self.wanted.difference(self._there))

    def take(self, index: int) -> bool:
        """A chunk came. Whether it stays: else nobody wants it any more."""
        if index in self.wanted:
            self._there[index] = None
        return index in self.wanted

    @property
    def there(self) -> Collection[int]:
        """The chunks in memory."""
        return self._there.keys()
