"""Memory for chunks on their way between socket and disk: page-aligned, within a budget.

Responsible for how much is lent out and what is kept for re-use; what the bytes are, and
when a chunk may be asked for, the callers say: uploads, downloads and the chunk service
each have a pool of their own. A buffer is on the grid of O_DIRECT (`disk.ALIGNMENT`), so
that it can be written past the page cache.
"""

from __future__ import annotations

import mmap
import threading

from zchunk.disk import ALIGNMENT


class Buffer:
    """Page-aligned memory lent by a `BufferPool`, to be given back exactly one way."""

    def __init__(self, pool: BufferPool, memory: mmap.mmap) -> None:
        self._pool = pool
        self._memory: mmap.mmap | None = memory
        self.capacity = len(memory)

    def view(self, length: int) -> memoryview:
        """The first `length` bytes, writable; of the same memory at each call."""
        if self._memory is None:
            raise RuntimeError("the buffer was given back")
        if not 0 <= length <= self.capacity:
            raise ValueError(f"{length} bytes do not fit a buffer of {self.capacity}")
        return memoryview(self._memory)[:length]

    def release(self) -> None:
        """Gives budget and memory back: nobody may read its views any more. A second call,
        also after `discard`, does nothing."""
        self._pool._take_back(self, keep=True)

    def discard(self) -> None:
        """Gives the budget back but not the memory, since someone may still read it (a
        message that is being sent); it goes when the last view does."""
        self._pool._take_back(self, keep=False)


class BufferPool:
    """A budget of memory for chunks in flight, re-used since fresh pages are slow.

    Thread-safe. Invariant: what is reserved and what is kept for re-use are together
    within the budget; only a single buffer larger than all of it may stand alone.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget = budget_bytes
        self._lock = threading.Lock()
        self._reserved = 0
        #: given back, the longest unused first; total within the budget
        self._kept: list[mmap.mmap] = []

    @property
    def reserved(self) -> int:
        """Bytes lent out."""
        with self._lock:
            return self._reserved

    @property
    def kept(self) -> int:
        """Bytes that wait for re-use."""
        with self._lock:
            return self._kept_bytes()

    def try_reserve(self, size: int) -> Buffer | None:
        """A buffer of at least `size` bytes, with old content in it; None: ask again later."""
        capacity = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        with self._lock:
            if self._reserved and self._reserved + capacity > self.budget:
                return None
            memory = self._reuse(capacity) or mmap.mmap(-1, capacity)
            self._reserved += capacity
            return Buffer(self, memory)

    def _reuse(self, capacity: int) -> mmap.mmap | None:
        """Kept memory of that capacity; else makes room in the budget for fresh memory."""
        for at in range(len(self._kept) - 1, -1, -1):
            if len(self._kept[at]) == capacity:
                return self._kept.pop(at)
        self._shrink(self.budget - self._reserved - capacity)
        return None

    def _take_back(self, buffer: Buffer, *, keep: bool) -> None:
        with self._lock:
            memory, buffer._memory = buffer._memory, None
            if memory is None:
                return
            self._reserved -= len(memory)
            if keep:
                self._kept.append(memory)
                self._shrink(self.budget - self._reserved)

    def _shrink(self, limit: int) -> None:
        # Dropped, not closed: memory somebody still views cannot be unmapped under him.
        while self._kept and self._kept_bytes() > limit:
            self._kept.pop(0)

    def _kept_bytes(self) -> int:
        return sum(len(memory) for memory in self._kept)
