"""Memory for chunks on their way between socket and disk: page-aligned, within a budget.

Responsible for how much is lent out and what is kept for re-use; what the bytes are, and
when a chunk may be asked for, the callers say: uploads, downloads and the chunk service
each have a pool of their own. A buffer is on the grid of O_DIRECT (`disk.ALIGNMENT`), so
that it can be written past the page cache.

`BufferPool` lends memory that is given back by a call, `LoanPool` memory that comes back
by itself: what goes into a socket is free at a moment that only the transport knows.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from contextlib import suppress

from zchunk.errors import StorageUnavailable
from zchunk.system.disk import ALIGNMENT

#: What a huge page holds, on the processors we know.
_HUGE = 2 * 1024**2


def _fresh(capacity: int) -> mmap.mmap:
    """Memory nobody has touched. Its first touch and its end cost a fault for each page, so the
    pages are huge where the system has such: of 10 MiB then 5 for 2560."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, capacity)
    memory = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if capacity >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Buffer:
    """Page-aligned memory lent by a `BufferPool`, to be given back exactly one way."""

    def __init__(self, pool: BufferPool, memory: mmap.mmap) -> None:
        self._pool = pool
        self._memory: mmap.mmap | None = memory
        self.capacity = len(memory)

    def view(self, length: int) -> memoryview:
        """The first `length` bytes, writable; of the same memory at each call."""
        if self._memory is None:
            raise RuntimeError("the buffer was released")
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


class _Kept:
    """Memory that waits for re-use, the longest unused first. Callers hold their lock."""

    def __init__(self) -> None:
        self._memory: list[mmap.mmap] = []
        self.bytes = 0

    def add(self, memory: mmap.mmap) -> None:
        self._memory.append(memory)
        self.bytes += len(memory)

    def take(self, capacity: int) -> mmap.mmap | None:
        """The one of that capacity that was used last."""
        for at in range(len(self._memory) - 1, -1, -1):
            if len(self._memory[at]) == capacity:
                self.bytes -= capacity
                return self._memory.pop(at)
        return None

    def shrink(self, limit: int) -> None:
        # Dropped, not closed: memory somebody still views cannot be unmapped under him.
        while self._memory and self.bytes > limit:
            self.bytes -= len(self._memory.pop(0))


class BufferPool:
    """A budget of memory for chunks in flight, re-used since fresh pages are slow.

    Thread-safe. Invariant: what is reserved is within the budget, and what is reserved and
    kept for re-use are together within `keep` (the budget) while anything is kept; only a single
    buffer larger than all of it may stand alone.
    """

    def __init__(self, budget_bytes: int, keep: int | None = None) -> None:
        """`keep`: bytes, where less than the budget is to be kept when it is given back."""
        self.budget = budget_bytes
        self._keep = budget_bytes if keep is None else keep
        self._lock = threading.Lock()
        self._reserved = 0
        self._kept = _Kept()

    @property
    def reserved(self) -> int:
        """Bytes lent out."""
        with self._lock:
            return self._reserved

    @property
    def kept(self) -> int:
        """Bytes that wait for re-use."""
        with self._lock:
            return self._kept.bytes

    def try_reserve(self, size: int) -> Buffer | None:
        """A buffer of at least `size` bytes, with old content in it; None: ask again later.
        Raises StorageUnavailable (retryable) where the system has no such memory."""
        capacity = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        with self._lock:
            if self._reserved and self._reserved + capacity > self.budget:
                return None
            memory = self._kept.take(capacity) or self._fresh(capacity)
            self._reserved += capacity
            self._kept.shrink(self._keep - self._reserved)
            return Buffer(self, memory)

    def _fresh(self, capacity: int) -> mmap.mmap:
        self._kept.shrink(self._keep - self._reserved - capacity)
        try:
            return _fresh(capacity)
        except (OSError, MemoryError):
            text = f"this PC has no memory left for a chunk of {capacity} bytes: close some programs"
            raise StorageUnavailable(text) from None

    def _take_back(self, buffer: Buffer, *, keep: bool) -> None:
        with self._lock:
            memory, buffer._memory = buffer._memory, None
            if memory is None:
                return
            self._reserved -= len(memory)
            if keep:
                self._kept.add(memory)
                self._kept.shrink(self._keep - self._reserved)


class LoanPool:
    """Memory for blocks on their way out. It comes back when its last view is gone.

    Thread-safe. What is lent is the caller's to bound; what came back stays for re-use as
    long as it is, with what is lent, within the budget. Blocks taken from the heap instead
    would cost the process up to the budget again for each thread that reads them.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._lent = 0
        self._kept = _Kept()
        #: came back, and is not yet counted: added to without the lock, since a view may
        #: die in any thread at any line, also where this thread holds the lock
        self._returned: deque[mmap.mmap] = deque()

    @property
    def lent(self) -> int:
        """Bytes that somebody still views."""
        with self._lock:
            self._take_returned()
            return self._lent

    @property
    def kept(self) -> int:
        """Bytes that wait for re-use."""
        with self._lock:
            self._take_returned()
            return self._kept.bytes

    def lend(self, length: int) -> memoryview:
        """`length` writable bytes with old content in them. Raises OSError or MemoryError where the
        system has no such memory."""
        # Few capacities, so that what came back fits.
        grid = max(ALIGNMENT, 1 << max(0, length - 1).bit_length() >> 3)
        capacity = max(1, -(-length // grid)) * grid
        with self._lock:
            self._take_returned()
            memory = self._kept.take(capacity)
            self._lent += capacity
            self._kept.shrink(self._budget - self._lent)
        if memory is None:
            memory = self._fresh(capacity)
        owner = (ctypes.c_char * capacity).from_buffer(memory)
        weakref.finalize(owner, self._returned.append, memory).atexit = False
        return memoryview(owner).cast("B")[:length]

    def _fresh(self, capacity: int) -> mmap.mmap:
        try:
            return _fresh(capacity)
        except (OSError, MemoryError):
            with self._lock:
                self._lent -= capacity
            raise

    def _take_returned(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._lent -= len(memory)
            self._kept.add(memory)
        self._kept.shrink(self._budget - self._lent)
