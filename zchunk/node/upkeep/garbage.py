"""What a node frees: files removed in the cluster, uploads that were never committed.

A chunk goes only when no manifest kept here names it, no lease holds it, and the
tracker, asked for exactly these chunks, has agreed and no longer counts on them: it was
not given an inventory meanwhile that names them again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from zchunk.clock import Clock
from zchunk.errors import ZchunkError
from zchunk.node.control.plane import ControlPlane, expect
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import GetRemovals, Message, Release, Released, Removals
from zchunk.runtime.loop import Loop, Workers

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
#: Ended leases and old trash are looked for this often.
_SWEEP_S = 600.0
#: Chunks released per request.
_BATCH = 10_000


class GarbageCollector:
    """Runs in the control loop; disk work in `workers`. `collect` may be called at any time."""

    def __init__(
        self,
        *,
        loop: Loop,
        control: ControlPlane,
        store: ChunkStore,
        workers: Workers,
        trash_keep_s: float,
        inventory: Callable[[], int | None],
        on_kept: Callable[[list[bytes]], None],
        on_outdated: Callable[[], None],
    ) -> None:
        """`inventory`: the number of the last one that the tracker was given; None while it may
        be given one, and `collect` is to be called afterwards. `on_outdated`: one crossed a
        release, so that the tracker may count on chunks it let go, or not on ones we keep.
        `on_kept`: chunks that the tracker has let go but an upload leased meanwhile."""
        self._loop = loop
        self._control = control
        self._store = store
        self._workers = workers
        self._clock: Clock = loop.clock
        self._trash_keep_s = trash_keep_s
        self._inventory = inventory
        self._on_kept = on_kept
        self._on_outdated = on_outdated
        #: False while the tracker's store is foreign or older than what was seen: it may
        #: order no deletion
        self.allowed = True
        #: removals up to this commit were obeyed by this process; others told of higher
        #: numbers without telling of the removals in between
        self._obeyed = 0
        self._busy = False
        self._again = False
        self._sweep_at = self._clock.monotonic() + _SWEEP_S
        loop.add_timed(self)

    def deadline(self) -> float | None:
        return self._sweep_at

    def on_time(self, now: float) -> None:
        self._sweep_at = now + _SWEEP_S
        self.collect()

    def collect(self) -> None:
        """Learn what was removed, free what nothing needs. One run at a time."""
        if not self.allowed:
            return
        if self._busy:
            self._again = True
            return
        self._busy, self._again = True, False
        self._ask_removals()

    def _ask_removals(self) -> None:
        ask = GetRemovals(since=self._obeyed)
        self._control.request(ask, _TIMEOUT_S, self._loop, self._on_removals)

    def _on_removals(self, reply: Message | None, error: ZchunkError | None) -> None:
        removals = expect(Removals, reply, error)
        if isinstance(removals, ZchunkError):
            self._end(removals)
            return

        def work() -> list[bytes]:
            # First whether this tracker may order anything here (SPEC R8).
            seen = self._store.commit_number
            self._store.seen_store(removals.store_id, max(seen, removals.commit_number))
            for file_id in removals.file_ids:
                self._store.forget_manifest(file_id)
            now = self._clock.wall()
            self._store.purge_trash(now - self._trash_keep_s)
            return [] if removals.more else self._store.garbage(now)[:_BATCH]

        def then(garbage: list[bytes]) -> None:
            self._obeyed = max(self._obeyed, removals.commit_number)
            if removals.more:
                self._ask_removals()
            elif garbage:
                self._release(garbage)
            else:
                self._end(None)

        self._submit(work, then)

    def _release(self, garbage: list[bytes]) -> None:
        inventory = self._inventory()
        if inventory is None:
            self._end(None)
            return

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if error is None and self._inventory() != inventory:
                self._on_outdated()
                self._end(None)
            else:
                self._on_released(reply, error)

        self._control.request(Release(hashes=b"".join(garbage)), _TIMEOUT_S, self._loop, answer)

    def _on_released(self, reply: Message | None, error: ZchunkError | None) -> None:
        answer = expect(Released, reply, error)
        if isinstance(answer, ZchunkError):
            self._end(answer)
            return

        try:
            released = split_hashes(answer.hashes)
        except ZchunkError as malformed:
            self._end(malformed)
            return

        def work() -> list[bytes]:
            self._store.seen_store(answer.store_id, answer.commit_number)
            return self._store.trash(released, answer.store_id, self._clock.wall())

        def then(moved: list[bytes]) -> None:
            log.info("moved %d chunks to the trash", len(moved))
            kept = [sha256 for sha256 in set(released) - set(moved) if self._store.has(sha256)]
            if kept:
                self._on_kept(sorted(kept))
            # A full batch means that there may be more.
            self._again = self._again or len(moved) == _BATCH
            self._end(None)

        self._submit(work, then)

    def _submit(self, work: Any, then: Any) -> None:
        def done(value: Any, error: ZchunkError | None) -> None:
            if error is not None:
                self._end(error)
            else:
                then(value)

        self._workers.submit(work, done)

    def _end(self, error: ZchunkError | None) -> None:
        self._busy = False
        if error is not None:
            log.warning("no space is freed for now: %s", error.message)
        if self._again and error is None:
            self.collect()
