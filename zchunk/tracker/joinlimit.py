"""How often an address may try to join. Pure.

A token cannot be guessed; this bounds what trying costs the tracker, whose allow list each
attempt reads and may rewrite. A studio that sets up many PCs at once stays below it: each
has an address of its own.
"""

from __future__ import annotations

from zchunk.errors import Busy

#: Attempts that an address may make at once, and how many per second it gets back.
BURST = 20.0
PER_SECOND = 2.0
#: Addresses remembered; of more the oldest is forgotten.
_ADDRESSES = 10_000


class JoinLimit:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        #: address -> (attempts it had left, when)
        self._left: dict[str, tuple[float, float]] = {}

    def attempt(self, address: str, now: float) -> None:
        """Raises Busy where there were too many. Who is refused has used up nothing: else many
        who ask again, behind one address, would keep each other out for good."""
        left, since = self._left.pop(address, (BURST, now))
        left = min(BURST, left + (now - since) * PER_SECOND)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _ADDRESSES:
            del self._left[next(iter(self._left))]
        if left < 1:
            raise Busy(f"too many attempts to join from {address}; try again in a minute")
