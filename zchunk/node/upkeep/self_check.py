"""A node looks at its own chunks that others reported as corrupt (SPEC D8).

Which ones, it asks the tracker: after registering, after a gap in the events, and when a
`chunk.corrupt` names it. So a report that was made while it was away, or an event that was
lost, is not missed, and nothing is read from the disk on the word of an event alone. A
chunk that it could not read when it was asked for it, it doubts by itself. At each start it
also looks at what an earlier run set apart, or could not read.

A bad chunk goes to trash/corrupt before the tracker hears that it is lost: should that be
cut off, the inventory of the next hello says it. Who is right in the end is the disk.

May not happen here: a chunk that cannot be read told as lost. It is looked at again, after a
pause that grows.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zchunk.errors import NotFound, Unreadable, ZchunkError
from zchunk.node.control.plane import ControlPlane, expect
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import MAX_DOUBTS, Doubts, GetDoubts, Lost, Message, Whole
from zchunk.runtime.loop import Loop, Workers

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
#: After an error it is asked again so much later, if nothing asks before.
_RETRY_S = 60.0
#: What could not be read is looked at again after so long, then after twice as long, ...
_FIRST_PAUSE_S = 5.0
_MAX_PAUSE_S = 3600.0


@dataclass(slots=True)
class _Pause:
    """Of something that could not be read."""

    #: when it is looked at again (monotonic)
    until: float
    seconds: float = 0.0

    def again(self, now: float) -> None:
        self.seconds = min(max(2 * self.seconds, _FIRST_PAUSE_S), _MAX_PAUSE_S)
        self.until = now + self.seconds


class SelfCheck:
    """Runs in the control loop; disk work in `workers`, one chunk at a time. `check` may be
    called at any time."""

    def __init__(
        self,
        *,
        loop: Loop,
        control: ControlPlane,
        store: ChunkStore,
        workers: Workers,
        inventory: Callable[[], int | None],
        on_kept: Callable[[list[bytes]], None],
        on_outdated: Callable[[], None],
    ) -> None:
        """`inventory`, `on_kept` and `on_outdated` as for the `GarbageCollector`: a chunk that
        is told lost may have been in an inventory on its way, or be stored anew meanwhile."""
        self._loop = loop
        self._control = control
        self._store = store
        self._workers = workers
        self._inventory = inventory
        self._on_kept = on_kept
        self._on_outdated = on_outdated
        #: what is left of the tracker's last answer and of our own doubts
        self._queue: deque[bytes] = deque()
        #: chunks that could not be read here, in order, at most `MAX_DOUBTS`
        self._suspected: dict[bytes, _Pause] = {}
        #: what is left of what an earlier run set apart, or could not read
        self._apart: deque[Path] = deque()
        #: when that is looked at; None once all of it was
        self._apart_pause: _Pause | None = _Pause(0.0)
        self.busy = False
        self._again = False
        self._retry_at: float | None = None
        loop.add_timed(self)

    def deadline(self) -> float | None:
        if self.busy or self._inventory() is None:
            return None  # then it looks anyway
        if self._retry_at is not None:
            return self._retry_at
        pauses = [*self._suspected.values(), *([self._apart_pause] if self._apart_pause else [])]
        return min((pause.until for pause in pauses if pause.seconds), default=None)

    def on_time(self, now: float) -> None:
        self._retry_at = None
        self.check()

    def suspect(self, sha256: bytes) -> None:
        """The chunk is held here and could not be read: look at it."""
        if len(self._suspected) >= MAX_DOUBTS or sha256 in self._suspected:
            return  # else what fails would be looked at for every reader
        self._suspected[sha256] = _Pause(self._now())
        if self._retry_at is None:
            self.check()

    def _now(self) -> float:
        return self._loop.clock.monotonic()

    def check(self) -> None:
        """Ask which chunks are in doubt, look at them, answer. One run at a time; asked for
        meanwhile, another one follows."""
        if self._inventory() is None:
            return  # not registered: then it is called again
        if self.busy:
            self._again = True
            return
        self.busy, self._again, self._retry_at = True, False, None
        self._control.request(GetDoubts(), _TIMEOUT_S, self._loop, self._on_doubts)

    def _on_doubts(self, reply: Message | None, error: ZchunkError | None) -> None:
        doubts = expect(Doubts, reply, error)
        if isinstance(doubts, ZchunkError):
            self._end(doubts)
            return
        try:
            doubted = split_hashes(doubts.hashes)[:MAX_DOUBTS]
        except ZchunkError as malformed:
            self._end(malformed)
            return
        # A full answer means that there may be more.
        self._again = self._again or len(doubted) == MAX_DOUBTS
        now = self._now()
        paused = {sha256 for sha256, pause in self._suspected.items() if pause.until > now}
        self._queue = deque(h for h in dict.fromkeys([*doubted, *self._suspected]) if h not in paused)
        self._next()

    def _next(self) -> None:
        if not self._queue:
            self._look_apart()
            return
        sha256, inventory = self._queue.popleft(), self._inventory()

        def looked(whole: bool | None, error: ZchunkError | None) -> None:
            if isinstance(error, Unreadable):
                self._look_later(sha256, error)
                self._next()
            elif error is not None:
                self._end(error)
            else:
                self._answer(sha256, bool(whole), inventory)

        self._workers.submit(lambda: self._look(sha256), looked)

    def _look(self, sha256: bytes) -> bool:
        """In a worker. False: it is damaged, or was not there; then it is not held any more."""
        try:
            return self._store.verify(sha256) or not self._store.drop_corrupt(sha256)
        except NotFound:
            return False

    def _look_later(self, sha256: bytes, error: ZchunkError) -> None:
        log.warning("%s", error.message)
        if len(self._suspected) < MAX_DOUBTS:
            self._suspected.setdefault(sha256, _Pause(0.0))
        if sha256 in self._suspected:
            self._suspected[sha256].again(self._now())

    # -- what was set apart -----------------------------------------------------------

    def _look_apart(self) -> None:
        """The last part of a run: list it, then look at one after the other."""
        if self._apart_pause is None or self._apart_pause.until > self._now():
            self._end(None)
            return

        def listed(paths: list[Path] | None, error: ZchunkError | None) -> None:
            self._apart = deque(paths or ())
            if error is not None:
                self._end(error)
            else:
                self._next_apart(unreadable=False)

        self._workers.submit(self._store.unsettled, listed)

    def _next_apart(self, *, unreadable: bool) -> None:
        if not self._apart:
            self._looked_apart(unreadable)
            return
        path = self._apart.popleft()

        def looked(sha256: bytes | None, error: ZchunkError | None) -> None:
            if error is not None and not isinstance(error, Unreadable):
                self._end(error)
                return
            if error is not None:
                log.warning("%s", error.message)
            if sha256 is not None:
                self._on_kept([sha256])
            self._next_apart(unreadable=unreadable or error is not None)

        self._workers.submit(lambda: self._store.take_back(path), looked)

    def _looked_apart(self, unreadable: bool) -> None:
        if not unreadable:
            self._apart_pause = None
        elif self._apart_pause is not None:
            self._apart_pause.again(self._now())
        self._end(None)

    # -- answers ----------------------------------------------------------------------

    def _answer(self, sha256: bytes, whole: bool, inventory: int | None) -> None:
        if whole:
            log.info("chunk %s was reported corrupt, but is intact here", sha256.hex()[:12])
        else:
            log.warning(
                "chunk %s was reported corrupt: it is damaged or missing, and no longer held here",
                sha256.hex()[:12],
            )

        def answer(_: Message | None, error: ZchunkError | None) -> None:
            if error is not None:
                self._end(error)
                return
            self._suspected.pop(sha256, None)
            if not whole:
                self._told_lost(sha256, inventory)
            self._next()

        message = Whole(hashes=sha256) if whole else Lost(hashes=sha256)
        self._control.request(message, _TIMEOUT_S, self._loop, answer)

    def _told_lost(self, sha256: bytes, inventory: int | None) -> None:
        if inventory is None or self._inventory() != inventory:
            self._on_outdated()
        elif self._store.has(sha256):
            self._on_kept([sha256])

    def _end(self, error: ZchunkError | None) -> None:
        """After an error the tracker still has the doubts, and is asked again later."""
        self._queue.clear()
        self.busy = False
        if error is not None:
            self._retry_at = self._now() + _RETRY_S
            log.warning("chunks reported corrupt cannot be checked for now: %s", error.message)
        if self._again and error is None:
            self.check()
