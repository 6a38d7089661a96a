"""Which connections of a ROUTER have ended: from the transport's hint to the proof.

A hint names connections that may have ended; only the transport's answer "no such
connection" to a message proves it, and it comes some milliseconds after the hint. So each
suspect is sent a `probe`, a message that means nothing, until that answer or until it has
stood so long that the hint was about another. Callers: the tracker's server, a node's
chunk service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zchunk.protocol import wire
from zchunk.protocol.messages import Probe
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Delivery, Socket

#: Measured: within 20 ms of the hint the transport knows. A machine that is busy has more.
_PROBE_FOR_S = 0.25
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.02


class Disconnects:
    """Lives in the router's loop; `on_gone(connection)` runs there, once for each."""

    def __init__(self, loop: Loop, router: Socket, on_gone: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._router = router
        self._on_gone = on_gone
        self._frames = wire.encode(Probe())
        #: connection -> (when it is probed next, the pause after that, when it is let go)
        self._suspects: dict[bytes, tuple[float, float, float]] = {}
        loop.add_timed(self)

    def suspect(self, connections: Iterable[bytes]) -> None:
        """The transport hints that one of these has ended."""
        now = self._loop.clock.monotonic()
        for connection in connections:
            self._suspects[connection] = (now, _FIRST_PAUSE_S, now + _PROBE_FOR_S)
        self.on_time(now)

    def deadline(self) -> float | None:
        return min((at for at, _, _ in self._suspects.values()), default=None)

    def on_time(self, now: float) -> None:
        for connection, (at, pause, until) in list(self._suspects.items()):
            if at > now:
                continue
            if self._router.send(self._frames, connection) is Delivery.GONE:
                del self._suspects[connection]
                self._on_gone(connection)
            elif now >= until:
                del self._suspects[connection]
            else:
                self._suspects[connection] = (now + pause, min(2 * pause, _LONGEST_PAUSE_S), until)
