"""What the shells of an upload and a download share: the order of actions, blocking work,
the peers' events. The decisions are the job's, the doing is `download/runner.py`'s and `upload/runner.py`'s.

What may not happen here: an action carried out before one that was decided earlier; a
result of a thread used after the job has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from logging import Logger, LoggerAdapter
from typing import Generic, Protocol, TypeVar

from zchunk.clock import iso_utc
from zchunk.errors import ZchunkError
from zchunk.node.bulk.history import History
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.job_events import JobEvent, MissingPeer, Waiting
from zchunk.protocol.messages import PeerRecord
from zchunk.runtime.loop import Workers

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)
T = TypeVar("T")

Emit = Callable[[JobEvent], None]
Log = LoggerAdapter[Logger]


class Job(Protocol[A_co]):
    """The part of a pure job that peers' events and time drive."""

    @property
    def history(self) -> History:
        """Its last transitions."""

    def peer_up(self, peer_id: str, incarnation: int, now: float) -> Sequence[A_co]: ...

    def peer_down(self, peer_id: str, now: float) -> Sequence[A_co]: ...

    def peer_reach(self, peer_id: str, reachable: bool, now: float) -> Sequence[A_co]: ...

    def on_time(self, now: float) -> Sequence[A_co]: ...

    def deadline(self) -> float | None: ...

    def waits_for_turn(self, busy: Collection[str]) -> Mapping[str, int]:
        """Where nothing of the job moves because these peers serve others first: peer id -> how
        many of its chunks wait there. Else nothing."""


class JobDriver(ABC, Generic[A]):
    """Runs in the bulk loop. A subclass calls `follow`; it carries out actions in `carry_out`
    and ends through `leave`."""

    def __init__(self, bulk: BulkPlane, job: Job[A], emit: Emit) -> None:
        self.bulk = bulk
        self.emit = emit
        self.ended = False
        self._driven = job
        #: whether the job hears of peers and of time
        self._following = False
        #: peers of which it was told last that the job waits for its turn there
        self._turn_told: frozenset[str] = frozenset()
        self._actions: deque[A] = deque()
        self._performing = False

    # -- for subclasses to fill ---------------------------------------------------------

    @property
    @abstractmethod
    def log(self) -> Log:
        """Its lines name the job."""

    @abstractmethod
    def carry_out(self, action: A) -> None:
        """Do what the job decided."""

    def after_actions(self) -> None:
        """When everything decided so far was carried out."""

    @abstractmethod
    def fail(self, error: ZchunkError) -> None:
        """Blocking work failed."""

    @abstractmethod
    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        """That nothing moves because these peers serve others first."""

    # -- Timed --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        return self._driven.deadline() if self._following else None

    def on_time(self, now: float) -> None:
        if self._following:
            self.perform(self._driven.on_time(now))

    # -- for subclasses to call -----------------------------------------------------------

    def now(self) -> float:
        return self.bulk.loop.clock.monotonic()

    def wall_text(self) -> str:
        """Now, ISO 8601 UTC."""
        return iso_utc(self.bulk.loop.clock.wall())

    def peer_name(self, peer_id: str) -> str:
        """For people; the beginning of its id where nothing is known of it."""
        return self.bulk.name_of(peer_id)

    def missing_rows(self, missing: Mapping[str, int], why: Callable[[str], str]) -> tuple[MissingPeer, ...]:
        """Of a `waiting` event, by peer id: how many chunks wait for each. `why` says of a
        peer that it is "offline", "unreachable", "unreadable", "refuses" or "busy". One that the
        tracker has not heard from yet is "unsure"."""
        return tuple(
            MissingPeer(
                peer_id=peer_id,
                name=self.peer_name(peer_id),
                chunks=chunks,
                last_seen=self._last_seen(peer_id),
                reason=self._reason(peer_id, why),
            )
            for peer_id, chunks in sorted(missing.items())
        )

    def _last_seen(self, peer_id: str) -> str | None:
        record = self.bulk.peers.get(peer_id)
        return iso_utc(record.last_seen_ms / 1000) if record is not None and record.last_seen_ms else None

    def _reason(self, peer_id: str, why: Callable[[str], str]) -> str:
        record = self.bulk.peers.get(peer_id)
        if record is not None and record.status == "offline-store":
            return record.status
        return "unsure" if self.is_unsure([peer_id]) else why(peer_id)

    def is_unsure(self, peers: Iterable[str]) -> bool:
        """Whether some of them may be up, for all that the tracker, just started, has heard yet."""
        records = (self.bulk.peers.get(peer_id) for peer_id in peers)
        return any(record is not None and record.unsure for record in records)

    def follow(self) -> None:
        """From now on the job hears of peers and of time."""
        self._following = True
        self.bulk.listen(self._on_peer, self._on_reach, self._on_busy)
        self.bulk.loop.add_timed(self)

    def leave(self) -> None:
        """The job has ended: nothing reaches it any more."""
        if not self.ended:
            self.log.debug("a job has ended; its last transitions:\n%s", self._driven.history)
        self.ended = True
        if self._following:
            self._following = False
            self.bulk.unlisten(self._on_peer, self._on_reach, self._on_busy)
            self.bulk.loop.remove_timed(self)

    def perform(self, actions: Sequence[A]) -> None:
        """In order, also when carrying out one leads to more."""
        self._actions.extend(actions)
        if self._performing:
            return
        self._performing = True
        while self._actions:
            self.carry_out(self._actions.popleft())
        self._performing = False
        if not self.ended:
            self.after_actions()

    def submit(self, workers: Workers, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Blocking work. Its result does not count after the end; an error in it is `fail`."""

        def done(value: T | None, error: ZchunkError | None) -> None:
            if self.ended:
                return
            if error is not None:
                self.fail(error)
            else:
                then(value)  # type: ignore[arg-type]

        workers.submit(work, done)

    def _on_peer(self, record: PeerRecord) -> None:
        if not self._following:
            return
        if record.status == "up":
            self.perform(self._driven.peer_up(record.peer_id, record.incarnation, self.now()))
        else:
            self.perform(self._driven.peer_down(record.peer_id, self.now()))

    def _on_reach(self, peer_id: str, reachable: bool) -> None:
        if self._following:
            self.perform(self._driven.peer_reach(peer_id, reachable, self.now()))

    def _on_busy(self, peer_id: str, busy: bool) -> None:
        """Tell, once, that nothing moves because peers serve others first (SPEC D4)."""
        if not self._following:
            return
        waits = self._driven.waits_for_turn(self.bulk.busy)
        before, self._turn_told = self._turn_told, frozenset(waits)
        if waits and self._turn_told != before:
            self.emit(self.busy_event(self.missing_rows(waits, lambda peer_id: "busy")))
