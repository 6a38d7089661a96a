"""Which files' health changed, and when to look: complete, degraded, unavailable. Pure.

Responsible for what is counted next and for what is told of it (SPEC I1, R9). Not
responsible for counting copies (`store/copies.py`, in the store's thread) nor for who is up:
`tracker/core.py` passes the live peers in, asks with `next`, and answers with `counted`.

A peer that comes or goes may change any file: all are gone through, slice by slice.
Files whose locations changed are looked at by name.

What may not happen here: anything told before the peers had a lease to come back after
the tracker's start; the same health of a file told twice; a change that comes while its
file is being counted forgotten; two slices under way; one file's copies added up from
moments at which different peers were up.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import islice

#: Files of one slice at most; `store/copies.py` bounds its chunks.
SLICE_FILES = 100
#: With more files to look at by name it is cheaper to look at all.
_MAX_MARKED = 10_000
#: All files are gone through so soon after a peer came or went, and twice as late each time
#: that peers come and go again before it was quiet for a while: who flaps is told less often.
_PAUSE_S = 0.1
_MAX_PAUSE_S = 10.0
_QUIET_S = 30.0
#: So long each told change keeps the next slice waiting: subscribers must keep up.
_PER_CHANGE_S = 0.0005
_RETRY_S = 1.0

DEGRADED, UNAVAILABLE, AVAILABLE = "file.degraded", "file.unavailable", "file.available"
TOPICS = (DEGRADED, UNAVAILABLE, AVAILABLE)


class Health(Enum):
    COMPLETE = "complete"
    DEGRADED = "degraded"  # readable, with fewer copies than asked
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Copies:
    """A file and how many of its chunks have no copy on a live peer, or fewer than
    `replicas` (those without one counted too)."""

    file_id: str
    name: str
    replicas: int
    chunks_count: int
    chunks_unavailable: int
    chunks_below_replicas: int

    @property
    def health(self) -> Health:
        if self.chunks_unavailable:
            return Health.UNAVAILABLE
        return Health.DEGRADED if self.chunks_below_replicas else Health.COMPLETE


@dataclass(frozen=True, slots=True)
class Partial:
    """A file too large for one slice, counted up to `next_chunk` for these live peers."""

    file_id: str
    live: frozenset[str]
    next_chunk: int = 0
    chunks_unavailable: int = 0
    chunks_below_replicas: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """What to count: the files `file_ids`; or, without any, those behind the row `after`.
    `partial` is where the first of `file_ids` goes on."""

    live: frozenset[str]
    file_ids: tuple[str, ...] = ()
    after: int = 0
    partial: Partial | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """`left` were not got to, `partial` not to its end. `after`: the last row got to by a
    slice without `file_ids`; None when there is none behind it. A removed file is missing."""

    files: tuple[Copies, ...]
    left: tuple[str, ...] = ()
    partial: Partial | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class HealthChange:
    """To be told under `topic`, one of `TOPICS`."""

    topic: str
    copies: Copies


class FileHealth:
    def __init__(self, first_at: float) -> None:
        """Nothing is told before `first_at`; then what is not complete."""
        #: what was told last, of files that are not complete
        self._told: dict[str, Health] = {}
        #: files to look at by name, in order
        self._marked: dict[str, None] = {}
        self._partial: Partial | None = None
        #: the row that the walk over all files has come to; None while there is no walk
        self._after: int | None = None
        #: when the next walk begins; None: none is wanted
        self._walk_at: float | None = first_at
        self._last_walk = float("-inf")
        self._pause_s = _PAUSE_S
        self._not_before = first_at
        self._under_way = False

    # -- what happened --------------------------------------------------------------

    def peers_changed(self, now: float) -> None:
        """A peer came or went, or may hold other chunks than before."""
        if self._walk_at is not None:
            return
        quiet = now - self._last_walk > _QUIET_S
        self._pause_s = _PAUSE_S if quiet else min(2 * self._pause_s, _MAX_PAUSE_S)
        self._walk_at = now + self._pause_s

    def changed(self, file_ids: Iterable[str], now: float) -> None:
        """Copies of these files were lost, or they are new."""
        self._marked.update(dict.fromkeys(file_ids))
        if len(self._marked) > _MAX_MARKED:
            self._marked.clear()
            self._walk_at = now if self._walk_at is None else min(self._walk_at, now)

    def gained(self, file_ids: Iterable[str], now: float) -> None:
        """More copies of these: news only of those that are not complete."""
        counting = self._under_way or self._partial is not None
        self.changed([file_id for file_id in file_ids if counting or file_id in self._told], now)

    def removed(self, file_id: str) -> None:
        self._told.pop(file_id, None)
        self._marked.pop(file_id, None)

    # -- what to count --------------------------------------------------------------

    def deadline(self) -> float | None:
        """When to ask `next`; None while a slice is under way or nothing is to be counted."""
        if self._under_way:
            return None
        if self._partial is not None or self._marked or self._after is not None:
            return self._not_before
        return None if self._walk_at is None else max(self._walk_at, self._not_before)

    def next(self, live: Collection[str], now: float) -> Slice | None:
        """To be answered by `counted` or `failed`. None: nothing now."""
        deadline = self.deadline()
        if deadline is None or deadline > now:
            return None
        self._under_way = True
        return self._next(frozenset(live), now)

    def _next(self, live: frozenset[str], now: float) -> Slice:
        if self._partial is not None:
            file_id = self._partial.file_id
            same = self._partial.live == live
            return Slice(live, (file_id,), partial=self._partial if same else None)
        if self._marked:
            file_ids = tuple(islice(self._marked, SLICE_FILES))
            for file_id in file_ids:
                del self._marked[file_id]
            return Slice(live, file_ids)
        if self._after is None:
            self._after, self._walk_at, self._last_walk = 0, None, now
        return Slice(live, after=self._after)

    # -- what came of it --------------------------------------------------------------

    def counted(self, asked: Slice, found: Counted, now: float) -> list[HealthChange]:
        self._under_way = False
        self._partial = found.partial
        if not asked.file_ids:
            self._after = found.after
        self.changed(found.left, now)
        changes = [change for copies in found.files if (change := self._change(copies)) is not None]
        self._not_before = now + len(changes) * _PER_CHANGE_S
        return changes

    def failed(self, asked: Slice, now: float) -> None:
        """The store could not say: the same again, later."""
        self._under_way = False
        self._partial = None
        self.changed(asked.file_ids, now)
        self._not_before = now + _RETRY_S

    def _change(self, copies: Copies) -> HealthChange | None:
        before = self._told.get(copies.file_id, Health.COMPLETE)
        health = copies.health
        if health is before:
            return None
        if health is Health.COMPLETE:
            del self._told[copies.file_id]
        else:
            self._told[copies.file_id] = health
        return HealthChange(_topic(before, health), copies)


def _topic(before: Health, health: Health) -> str:
    if health is Health.UNAVAILABLE:
        return UNAVAILABLE
    return DEGRADED if before is Health.COMPLETE else AVAILABLE
