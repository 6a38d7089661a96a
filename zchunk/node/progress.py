"""`progress` events of a job, about ten a second, with a smoothed speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.1
#: The speed shown is that of the last seconds, not of the whole job.
_WINDOW_S = 3.0


class Progress:
    def __init__(self, tell: Callable[[dict[str, Any]], None], size: int, chunks_count: int) -> None:
        """`size`: bytes of the whole file."""
        self._tell = tell
        self._size = size
        self._chunks_count = chunks_count
        self._next = 0.0
        self._marks: deque[tuple[float, int]] = deque()

    def deadline(self) -> float:
        return self._next

    def on_time(self, now: float, chunks_completed: int, bytes_moved: int, **more: Any) -> None:
        """Tells, if it is time. `bytes_moved`: payload of this run; `more` goes with it."""
        if now >= self._next:
            self.last(chunks_completed, bytes_moved, now, **more)

    def last(self, chunks_completed: int, bytes_moved: int, now: float, **more: Any) -> None:
        """Tells now, so that the final state is shown however fast the job was."""
        self._next = now + _EVERY_S
        self._tell(
            {
                "event": "progress",
                "chunks_completed": chunks_completed,
                "chunks_count": self._chunks_count,
                "bytes": bytes_moved,
                "size": self._size,
                "bytes_per_second": round(self._speed(now, bytes_moved)),
                **more,
            }
        )

    def _speed(self, now: float, bytes_moved: int) -> float:
        self._marks.append((now, bytes_moved))
        while self._marks[0][0] < now - _WINDOW_S:
            self._marks.popleft()
        start, before = self._marks[0]
        return (bytes_moved - before) / (now - start) if now > start else 0.0
