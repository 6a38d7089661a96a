"""`progress` events of a job: when something has changed, ten a second at most, with a smoothed
speed; a sign of life now and then where nothing changes. Pure.

What may not happen here: an event that says what the one before it said, but for the signs of life.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from zchunk.node import job_events

#: peer id -> counts of its chunks
_Peers = Mapping[str, Mapping[str, int]]

_EVERY_S = 0.1
#: A job that waits says so often that it is still there.
ALIVE_S = 30.0
#: The speed shown is that of the last seconds, not of the whole job.
_WINDOW_S = 3.0


class Progress:
    def __init__(
        self, emit: Callable[[job_events.Progress], None], job_id: str, size: int, chunks_count: int
    ) -> None:
        """`size`: bytes of the whole file."""
        self._emit = emit
        self._job_id = job_id
        self._size = size
        self._chunks_count = chunks_count
        self._next = 0.0
        self._alive_at = 0.0
        #: something may be other than what was told last
        self._touched = True
        self._told: job_events.Progress | None = None
        #: (when, bytes moved by then): the first of them holds at the window's beginning
        self._marks: deque[tuple[float, int]] = deque()

    def touch(self) -> None:
        """Something may have changed: look at it when it is time for an event."""
        self._touched = True

    def deadline(self) -> float:
        return min(self._next, self._alive_at) if self._touched else self._alive_at

    def on_time(
        self, now: float, chunks_completed: int, bytes_moved: int, peers: _Peers | None = None
    ) -> None:
        """Tells, if it is time and there is something to tell. `bytes_moved`: payload of this
        run; `peers`: what came from each."""
        if now < self.deadline():
            return
        event = self._event(now, chunks_completed, bytes_moved, peers)
        if event != self._told or now >= self._alive_at:
            self._say(event, now)
        self._next = now + _EVERY_S
        self._touched = event.bytes_per_second > 0  # which falls by itself

    def last(self, chunks_completed: int, bytes_moved: int, now: float, peers: _Peers | None = None) -> None:
        """Tells now, so that the final state is shown however fast the job was."""
        event = self._event(now, chunks_completed, bytes_moved, peers)
        if event != self._told:
            self._say(event, now)

    def _say(self, event: job_events.Progress, now: float) -> None:
        self._told, self._alive_at = event, now + ALIVE_S
        self._emit(event)

    def _event(
        self, now: float, chunks_completed: int, bytes_moved: int, peers: _Peers | None
    ) -> job_events.Progress:
        return job_events.Progress(
            job_id=self._job_id,
            chunks_completed=chunks_completed,
            chunks_count=self._chunks_count,
            bytes=bytes_moved,
            size=self._size,
            bytes_per_second=round(self._speed(now, bytes_moved)),
            peers=peers,
        )

    def _speed(self, now: float, bytes_moved: int) -> float:
        """Of the window; between two marks nothing was moved."""
        self._marks.append((now, bytes_moved))
        while len(self._marks) > 1 and self._marks[1][0] <= now - _WINDOW_S:
            self._marks.popleft()
        start = max(self._marks[0][0], now - _WINDOW_S)
        return (bytes_moved - self._marks[0][1]) / (now - start) if now > start else 0.0
