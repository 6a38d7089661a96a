"""`preparing` events: what of a file is here already is looked at before it is fetched, which takes
as long as reading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zchunk.clock import Clock

#: Somebody waits for it, but nobody counts with it.
_EVERY_S = 0.25


class Preparing:
    """At once, then now and then. Called in one thread."""

    def __init__(self, emit: Callable[[dict[str, Any]], None], clock: Clock, **about: Any) -> None:
        """`about`: which file, and where; it stands in each event."""
        self._emit = emit
        self._clock = clock
        self._about = about
        self._next = 0.0

    def looked_at(self, done: int) -> None:
        """`done`: bytes of the file."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._emit({"event": "preparing", **self._about, "bytes_checked": done})
