"""How often one address may try our doors before it waits for each answer.

A handshake costs whom it comes to a few milliseconds, whether or not the key is let in. Who comes
back as often as it is refused or cut off would take others their share. Callers: the tracker's
server, a node's `serving/access.py`; where a key is let in is theirs to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zchunk.limits.rate_limit import RateLimit
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Arrival, Gate, Knock

#: Knocks of one address that are answered at once, and how many per second more. All PCs of a
#: site may be behind one address, and come back together: then they wait a moment.
BURST = 200.0
PER_SECOND = 10.0
#: For so long the others wait. The asker is told within two seconds in any case, and libzmq lets
#: a handshake take three, of which a node may need one to ask its tracker.
HOLD_S = 0.5


class Handshakes:
    """Lives in the gate's loop; `decide(knock)` runs there, once for each. How many wait is bounded
    by the handshakes that fit into `HOLD_S`."""

    def __init__(self, loop: Loop, gate: Gate, decide: Callable[[Knock], None]) -> None:
        self._clock = loop.clock
        self._decide = decide
        self._limit = RateLimit(BURST, PER_SECOND)
        #: (when it is decided, which), in this order
        self._held: deque[tuple[float, Knock]] = deque()
        loop.add_socket(gate, self._on_knock)
        loop.add_timed(self)

    def deadline(self) -> float | None:
        return self._held[0][0] if self._held else None

    def on_time(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            self._decide(self._held.popleft()[1])

    def _on_knock(self, knock: Arrival) -> None:
        assert isinstance(knock, Knock)
        now = self._clock.monotonic()
        if self._limit.take(knock.address, now):
            self._decide(knock)
        else:
            self._held.append((now + HOLD_S, knock))
