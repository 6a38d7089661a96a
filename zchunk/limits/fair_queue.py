"""Things of several members that wait for one who does them, and whose turn it is. Pure.

Members take turns, whoever has much waiting: what one has waiting delays another by one thing
at most for each member. The things of one member stay in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    def __init__(self) -> None:
        #: member -> what it has waiting; in the order of their turns
        self._waiting: dict[Hashable, deque[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, who: Hashable, thing: T) -> None:
        self._waiting.setdefault(who, deque()).append(thing)
        self._count += 1

    def next(self) -> T:
        """Raises StopIteration where nothing waits."""
        who = next(iter(self._waiting))
        queue = self._waiting.pop(who)
        self._count -= 1
        thing = queue.popleft()
        if queue:
            self._waiting[who] = queue
        return thing

    def round(self, most: int) -> list[T]:
        """One thing of each member whose turn it is, of `most` of them."""
        return [self.next() for _ in range(min(most, len(self._waiting)))]
