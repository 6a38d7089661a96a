"""`preparing` events: what of a file is here already is looked at before it is fetched, which takes
as long as reading it."""

from __future__ import annotations

from collections.abc import Callable

from zchunk.clock import Clock
from zchunk.node import job_events

#: Somebody waits for it, but nobody counts with it.
_EVERY_S = 0.25


class Preparing:
    """At once, then now and then. Called in one thread."""

    def __init__(
        self,
        emit: Callable[[job_events.Preparing], None],
        clock: Clock,
        *,
        job_id: str | None,
        target: str,
        size: int,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._job_id = job_id
        self._target = target
        self._size = size
        self._next = 0.0

    def looked_at(self, done: int) -> None:
        """`done`: bytes of the file."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            event = job_events.Preparing(
                job_id=self._job_id, target=self._target, size=self._size, bytes_checked=done
            )
            self._emit(event)
