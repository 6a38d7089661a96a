"""What waits for the tracker's database, and what of it is done together. Pure.

What changes something keeps its order, and what waits together shares a transaction and so a
sync. At what only reads members take turns: else one who asks much, and large things, keeps
everybody waiting for seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from zchunk.limits.fair_queue import FairQueue

T = TypeVar("T")

#: Changes done together, and members whose reads are.
_TOGETHER = 256


class StoreQueue(Generic[T]):
    def __init__(self) -> None:
        self._changes: deque[T] = deque()
        self._reads: FairQueue[T] = FairQueue()

    def __len__(self) -> int:
        return len(self._changes) + len(self._reads)

    def add(self, thing: T, reader: Hashable | None = None) -> None:
        """`reader`: the member for whom it only reads."""
        if reader is None:
            self._changes.append(thing)
        else:
            self._reads.add(reader, thing)

    def take(self) -> list[T]:
        """What is done together now: changes, then one read of each member. Empty where nothing
        waits."""
        changes = [self._changes.popleft() for _ in range(min(_TOGETHER, len(self._changes)))]
        return changes + self._reads.round(_TOGETHER)
