"""The only place that reads a clock. Everything else is handed `now`.

Monotonic time (seconds, arbitrary zero) is for durations and deadlines; wall time
is for records that people read.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import NamedTuple, Protocol

#: Bounds of what processes tell each other of heartbeats and leases: 10 ms to a year.
MIN_PERIOD_S = 0.01
MAX_PERIOD_S = 366 * 86400.0
#: The end of the year 9999, the last that a calendar shows, in milliseconds.
MAX_WALL_MS = 253_402_300_799_999


class Now(NamedTuple):
    """One moment by both clocks, as pure machines are handed it."""

    mono: float  # seconds, arbitrary zero
    wall_ms: int  # milliseconds since 1970 UTC


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that never go back; comparable within one process only."""

    def wall(self) -> float:
        """Seconds since 1970 UTC; may jump."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class ManualClock:
    """A clock that moves only when told to: for tests and simulations."""

    def __init__(self, monotonic: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("monotonic time cannot go back")
        self._monotonic += seconds
        self._wall += seconds

    def jump_wall(self, seconds: float) -> None:
        """What an administrator or a time server does: wall time only."""
        self._wall += seconds


def read(clock: Clock) -> Now:
    return Now(clock.monotonic(), int(clock.wall() * 1000))


def iso_utc(wall: float) -> str:
    """ISO 8601 with milliseconds, UTC: `2026-01-31T14:02:05.123Z`."""
    moment = datetime.fromtimestamp(wall, tz=timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
