"""How much of a pool of memory each member may have, and who holds some without progress. Pure.

A pool has a budget of bytes. Whoever asks gets them while there are any; so one member may have
them all. Its fair share is the budget divided by the members that hold or ask. What others hold
beyond theirs, or hold without progress, is not held against who asks now: the pool is overdrawn
for it, by so much at most, until they have let go.

A budget holds `CHUNKS_AT_ONCE` chunks, however large they are: with less each would wait for
the one before it.

What may not happen here: a member kept from its share by what one other holds; progress seen in
messages that settle nothing; a pool overdrawn while everybody keeps to its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: A member: its peer id where that is proven, else its address, else its connection.
Who = str | bytes

#: Chunks that any budget holds: one that comes, one that is checked or sent, one that is written.
CHUNKS_AT_ONCE = 3

#: Seconds without progress after which what a member holds is not held against others,
STUCK_S = 0.5
#: after which people are told,
HELD_S = 3.0
#: and after which it counts as gone: while others wait for it, and else.
WAITED_FOR_S = 5.0
SILENCE_S = 30.0
_STAGES = (STUCK_S, HELD_S)


def room_for_chunks(budget: int, chunk_size: int) -> int:
    """The bytes of a budget for chunks of that size, which are alike."""
    return max(budget, CHUNKS_AT_ONCE * chunk_size)


@dataclass(slots=True)
class Stillness:
    """How long somebody who has something to settle has settled nothing. Monotonic seconds."""

    since: float
    _passed: int = 0

    def moved(self, now: float) -> None:
        """A byte was settled, or there is something to settle only from now on."""
        self.since, self._passed = now, 0

    def look(self, now: float) -> None:
        while self._passed < len(_STAGES) and self.since + _STAGES[self._passed] <= now:
            self._passed += 1

    @property
    def is_stuck(self) -> bool:
        """As of the last look, as below."""
        return self._passed > 0

    @property
    def is_held(self) -> bool:
        return self._passed == len(_STAGES)

    def is_over(self, waited_for: bool, now: float) -> bool:
        return self._end(waited_for) <= now

    def deadline(self, waited_for: bool) -> float:
        """When to look again."""
        if self.is_held:
            return self._end(waited_for)
        return min(self._end(waited_for), self.since + _STAGES[self._passed])

    def _end(self, waited_for: bool) -> float:
        return self.since + (WAITED_FOR_S if waited_for else SILENCE_S)


@dataclass(frozen=True, slots=True)
class Held:
    """A member that keeps `size` bytes of a pool without progress since then, while others
    use the pool too."""

    who: Who
    size: int
    since: float


class Uses:
    """Who has how much of one pool."""

    def __init__(self, budget: int, spare: int) -> None:
        """`spare`: by how many bytes the pool may be overdrawn."""
        self.total = 0
        self._budget = budget
        self._spare = spare
        #: member -> how many things of it hold or ask, and the bytes that it has
        self._things: Counter[Who] = Counter()
        self._has: dict[Who, int] = {}

    def join(self, who: Who) -> None:
        """One thing more of this member holds or asks."""
        self._things[who] += 1
        self._has.setdefault(who, 0)

    def leave(self, who: Who) -> None:
        """One less; what it had was given back."""
        self._things[who] -= 1
        if not self._things[who]:
            del self._things[who]
            assert not self._has.pop(who)

    def take(self, who: Who, size: int) -> None:
        self._has[who] += size
        self.total += size

    def give_back(self, who: Who, size: int) -> None:
        self.take(who, -size)

    def has(self, who: Who) -> int:
        return self._has.get(who, 0)

    def others_have(self, who: Who) -> bool:
        return self.total > self.has(who)

    @property
    def members(self) -> int:
        """How many hold or ask."""
        return len(self._has)

    @property
    def share(self) -> int:
        return self._budget // max(1, len(self._has))

    def least(self, among: Iterable[Who]) -> Who:
        """Who has the least; of equals the first."""
        return min(among, key=self.has)

    def fits(self, who: Who, size: int, stuck: Callable[[], Iterable[tuple[Who, int]]]) -> bool:
        """Whether this member may have `size` bytes more. Anything fits an empty pool. `stuck` tells
        (member, bytes) of what is held without progress, where it matters."""
        over = self.total + size - self._budget
        if not self.total or over <= 0:
            return True
        # A pool whose share is less than one piece is given out by the piece.
        return over <= self._spare and over <= self.excess(who, max(self.share, size), stuck())

    def excess(self, who: Who, fair: int, stuck: Iterable[tuple[Who, int]]) -> int:
        """Bytes that others hold without progress, or beyond `fair`."""
        beyond = {other: max(0, has - fair) for other, has in self._has.items()}
        still: Counter[Who] = Counter()
        for other, held in stuck:
            still[other] += held
        return sum(max(more, still[other]) for other, more in beyond.items() if other != who)
