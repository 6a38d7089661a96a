"""So many at once, and then so many a second, for each one who asks: a token bucket. Pure."""

from __future__ import annotations

#: Of those who asked so many are remembered; of more the one that has not asked the longest is
#: forgotten.
_REMEMBERED = 10_000


class RateLimit:
    """Times are monotonic seconds."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        #: who -> (what it had left, when)
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, who: str, now: float) -> bool:
        """Whether it may once more. Who may not has used up nothing: else many who ask again,
        known by one name, would keep each other out for good."""
        left, since = self._left.pop(who, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        may = left >= 1
        self._left[who] = (left - 1 if may else left, now)
        if len(self._left) > _REMEMBERED:
            del self._left[next(iter(self._left))]
        return may
