"""How often an address may try to join. Pure.

A token cannot be guessed; this bounds what trying costs the tracker, whose allow list each
attempt reads and may rewrite. A studio that sets up many PCs at once stays below it: each
has an address of its own.
"""

from __future__ import annotations

from zchunk.errors import Busy
from zchunk.limits.rate_limit import RateLimit

#: Attempts that an address may make at once, and how many per second it gets back.
BURST = 20.0
PER_SECOND = 2.0


class JoinLimit:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._limit = RateLimit(BURST, PER_SECOND)

    def attempt(self, address: str, now: float) -> None:
        """Raises Busy where there were too many."""
        if not self._limit.take(address, now):
            raise Busy(f"too many attempts to join from {address}; try again in a minute")
