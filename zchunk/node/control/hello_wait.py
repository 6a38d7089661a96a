"""How long who asks waits for nodes that a tracker, just started, has not heard from. Pure.

A tracker that has just started knows its nodes, and not which of them are up: each has a lease
to say hello. Who plans an upload, downloads without waiting for missing peers, or shows a file
stays so long before it takes what is not known for what is not so. Events end the wait: a
`peer.up` or a `peer.down` follows for each of these nodes. Called by `client.py`, `node/manager.py`,
`download/runner.py` and `reading/range_reader.py`.

What may not happen here: a wait without an end, also where the tracker goes away again.

Times are monotonic seconds.
"""

from __future__ import annotations

from zchunk.errors import PeersUnsure, TooFewPeers

#: Beyond a lease: its end, the event and the next question are on their way.
_MARGIN_S = 1.0
#: A lease that a tracker may speak of.
_LONGEST_S = 3600.0


class HelloWait:
    """One wait: `waits` says at each look whether it goes on."""

    def __init__(self) -> None:
        self._ends: float | None = None
        #: it has ended without an answer: nodes that are still not heard from start no other
        self._over = False

    def waits(self, unsure: bool, lease_s: float, now: float) -> bool:
        """`unsure`: nodes may be up that were not heard from yet; they have `lease_s` at most. The
        first look at which there are any begins the wait; one at which there are none ends it."""
        if not unsure:
            self._ends, self._over = None, False
            return False
        if self._ends is None and not self._over:
            self._ends = now + lease_s + _MARGIN_S
        if self._ends is not None and self._ends <= now:
            self._ends, self._over = None, True
        return not self._over

    def rest(self) -> None:
        """Nothing is waited for just now."""
        self._ends = None

    def deadline(self) -> float | None:
        """When to look again, whatever was heard; None while there is no wait."""
        return self._ends


class PlanPatience:
    """What follows from a refused plan. `for_peers`: stay until there are enough peers (`--wait`)."""

    def __init__(self, *, for_peers: bool = False) -> None:
        self.for_peers = for_peers
        self._hellos = HelloWait()

    def waits(self, error: TooFewPeers, now: float) -> bool:
        """Whether to ask again: after news of a peer, and at `deadline`."""
        unsure = isinstance(error, PeersUnsure)
        left = error.details.get("unsure_s", 0.0)
        known = left if isinstance(left, int | float) and 0 <= left <= _LONGEST_S else 0.0
        return self._hellos.waits(unsure, known, now) or self.for_peers

    def deadline(self) -> float | None:
        return self._hellos.deadline()
