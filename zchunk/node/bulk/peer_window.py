"""How much to ask of, or send to, one peer at a time: window, block size, pauses. Pure.

Credit is counted in bytes. Blocks start small and grow while the link is fast, since a
big frame on a slow link holds up everything behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: This many blocks may be outstanding at one peer,
WINDOW_BLOCKS = 8
#: but not more bytes than keep any LAN busy (10 Gbit/s, 3 ms to and fro), or two blocks: what
#: overruns a fresh connection's buffers is lost, and TCP takes more than 100 ms to find out.
MAX_WINDOW = 4 * 1024**2
#: A block that took less than this lets the next ones be larger.
FAST_BLOCK_S = 0.05
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0


@dataclass(slots=True)
class PeerWindow:
    #: bytes of the next blocks
    block: int
    block_max: int
    #: bytes on their way
    outstanding: int = 0
    #: bytes per second, smoothed; 0 until measured
    rate: float = 0.0
    #: when something last came back, or the first thing was asked (monotonic)
    last_progress: float = 0.0
    #: set aside until then; 0 when not
    paused_until: float = 0.0
    _pause: float = 0.0
    _block_min: int = field(init=False)

    def __post_init__(self) -> None:
        self._block_min = self.block

    @property
    def size(self) -> int:
        """Bytes that may be on their way."""
        return min(WINDOW_BLOCKS * self.block, max(MAX_WINDOW, 2 * self.block))

    def takes(self, length: int) -> bool:
        """Whether `length` more bytes fit the window; one block always does."""
        return not self.outstanding or self.outstanding + length <= self.size

    def sent(self, length: int, now: float) -> None:
        if not self.outstanding:
            self.last_progress = now
        self.outstanding += length

    def answered(self, length: int, took_s: float, now: float) -> None:
        """`length` bytes asked `took_s` ago came through."""
        self.taken_back(length)
        self.last_progress = now
        self._pause = 0.0
        rate = length / max(took_s, 1e-6)
        self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate
        if took_s < FAST_BLOCK_S:
            self.block = min(2 * self.block, self.block_max)

    def taken_back(self, length: int) -> None:
        self.outstanding -= length

    def stalled(self, stall_s: float, now: float) -> bool:
        # The same sum as in `wakes_at`: woken then, it must be so.
        return self.outstanding > 0 and self.last_progress + stall_s <= now

    def set_aside(self, now: float) -> None:
        """Ask nothing for a while, longer each time until it makes progress; then begin with
        small blocks again: the line may be a slow one now. All that fails at one time is one
        failure."""
        self.block = self._block_min
        if now < self.paused_until:
            return
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE_S), _MAX_PAUSE_S)
        self.paused_until = now + self._pause

    def fails_again(self, now: float) -> bool:
        """Whether it was set aside, tried again after that, and made no progress in between."""
        return self._pause > 0.0 and self.paused_until <= now

    def welcome_back(self, now: float) -> None:
        self._pause = self.paused_until = 0.0
        self.last_progress = now

    def end_pause(self, now: float) -> None:
        if self.paused_until <= now:
            self.paused_until = 0.0

    def wakes_at(self, stall_s: float) -> list[float]:
        """When its owner must look at it again."""
        times = [self.last_progress + stall_s] if self.outstanding else []
        return [*times, self.paused_until] if self.paused_until else times
