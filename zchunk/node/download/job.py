"""The download job: which block of which chunk to ask from whom, and when it is done. Pure.

What may not happen here: a chunk accepted unverified; a chunk lost (every chunk is in
exactly one state, and one without a live holder waits for the event that revives it);
more bytes begun than the budget; more asked of one peer than its window; a standstill
while a peer that holds a wanted chunk is up and not set aside.

Events come in through the methods, with the monotonic time; each returns the actions
for the shell (`runner.py`) to carry out in order. A chunk is begun only with a buffer for
all of it, and all its blocks come from one peer, so that a corrupt chunk has an author.
Each time it is begun is an attempt, with a number and a buffer of its own. A chunk whose
peer is slow may have a second attempt, a hedge, at another holder that has nothing else to
send: the first to be complete counts, the other is dropped.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from zchunk.errors import IllegalEvent, IntegrityError, NotFound, Unreadable, ZchunkError
from zchunk.node.bulk.peer_window import PeerWindow
from zchunk.node.download.unreadable_copies import UnreadableCopies

#: A peer that sent this many corrupt chunks is asked only for what nobody else has, and for
#: each chunk that comes corrupt again no second time: one that lies ends in one pass.
_MAX_CORRUPT = 2
#: A chunk that was corrupt so often from one peer is not asked there again: once may
#: have been the line or its memory.
_MAX_STRIKES = 3
#: How many chunks of one peer may be begun at once: one being sent, one behind it.
_BEGUN_PER_PEER = 2
#: How many times a peer's chunks took are remembered, and how many make a quantile.
_REMEMBERED = 64
_FEW = 4
#: A hedge is for waits that a person could notice, not for noise.
_HEDGE_MIN_S = 0.05
#: A peer is slow, and served first, when what it has left takes so many times as long as
#: with the others.
_SLOW = 1.5
#: A chunk comes late when its source has less than one part in so many of the others' usual
#: speed, or has taken so many times as long as they usually do.
_LATE = 2


class JobState(Enum):
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    VERIFYING = "verifying"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ChunkState(Enum):
    WANTED = "wanted"
    IN_FLIGHT = "in_flight"
    VERIFYING = "verifying"
    WRITING = "writing"
    HELD = "held"


#: The public names of SPEC "DownloadJob".
PUBLIC_STATUS = {
    ChunkState.WANTED: "pending",
    ChunkState.IN_FLIGHT: "downloading",
    ChunkState.VERIFYING: "downloading",
    ChunkState.WRITING: "downloading",
    ChunkState.HELD: "completed",
}


@dataclass(frozen=True, slots=True)
class BeginChunk:
    """Reserve a buffer for this attempt at the chunk: its blocks follow."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RequestBlock:
    peer_id: str
    chunk: int
    attempt: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class VerifyChunk:
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class WriteChunk:
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class DropChunk:
    """Give the attempt's buffer back; blocks of it that still arrive are ignored."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ReportCorrupt:
    peer_id: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Relocate:
    """Ask the tracker again who holds what."""


@dataclass(frozen=True, slots=True)
class CheckRemoved:
    """As `Relocate`, and soon: no holder has what is left, which is what a removal looks like."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: JobState


@dataclass(frozen=True, slots=True)
class Resumed:
    """A peer that the job waited for is asked again."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class AllHeld:
    """Every chunk is verified and written: check the whole file and finish it."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: ZchunkError


Action = (
    BeginChunk
    | RequestBlock
    | VerifyChunk
    | WriteChunk
    | DropChunk
    | ReportCorrupt
    | Relocate
    | CheckRemoved
    | StateChanged
    | Resumed
    | AllHeld
    | Failed
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds; see config.yaml, section transfer."""

    budget: int
    block_min: int
    block_max: int
    stall_s: float
    relocate_s: float
    auto_resume: bool = True


@dataclass(slots=True)
class _Fetch:
    """One attempt at a chunk, at one peer."""

    peer_id: str
    attempt: int
    begun_at: float
    #: bytes of the chunk, and how many of them were asked for
    size: int
    begun: int = 0
    #: offset -> (length, when asked)
    asked: dict[int, tuple[int, float]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.asked and self.begun == self.size

    @property
    def left(self) -> int:
        """Bytes that have not arrived."""
        return sum(length for length, _ in self.asked.values()) + self.size - self.begun

    def next_length(self, block: int) -> int:
        """Of the next block to ask for: cut only now, as large as blocks are by now. 0: none is left."""
        return min(block, self.size - self.begun)


@dataclass(slots=True)
class _Chunk:
    size: int
    state: ChunkState = ChunkState.WANTED
    #: attempts so far: an answer to one that is not among `fetches` is late
    attempts: int = 0
    #: in flight: one attempt, or two where one is a hedge; then the one that was complete
    #: first, until the chunk is held
    fetches: list[_Fetch] = field(default_factory=list)
    #: who sent it, once it is held
    source: str = ""
    #: peer -> how often its copy was corrupt; `_MAX_STRIKES` where it has none
    strikes: dict[str, int] = field(default_factory=dict)

    def fetch(self, attempt: int) -> _Fetch | None:
        """The attempt of that number, if it still counts."""
        if self.state is not ChunkState.IN_FLIGHT:
            return None
        return next((fetch for fetch in self.fetches if fetch.attempt == attempt), None)


@dataclass(slots=True)
class _Peer:
    window: PeerWindow
    up: bool = False
    #: False while it cannot be reached from here, although it is up
    reachable: bool = True
    incarnation: int = 0
    #: chunks in flight from it
    begun: int = 0
    #: chunks that came from it and are held
    completed: int = 0
    corrupt: int = 0
    #: seconds that its latest whole chunks took
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    #: chunks it holds that are wanted: a heap of (holders, index)
    queue: list[tuple[int, int]] = field(default_factory=list)

    @property
    def there(self) -> bool:
        """Whether it can be asked at all."""
        return self.up and self.reachable


class DownloadJob:
    def __init__(
        self,
        *,
        sizes: Sequence[int],
        holders: Sequence[Collection[str]],
        up: Mapping[str, int],
        held: Collection[int],
        limits: Limits,
        unreachable: Collection[str] = (),
    ) -> None:
        """`sizes`: stored bytes per chunk. `holders`: peer ids per chunk. `up`: peer id ->
        incarnation of those that are up; `unreachable`: those among them that cannot be
        reached from here. `held`: chunks that an earlier run kept."""
        self.state = JobState.RUNNING
        self.waiting_since: float | None = None
        self.bytes_received = 0
        self._limits = limits
        self._chunks = [_Chunk(size) for size in sizes]
        self._largest = max(sizes, default=0)
        self._holders = [frozenset(h) for h in holders]
        self._peers: dict[str, _Peer] = {}
        #: peers waited for that came back and, without auto-resume, are not asked yet
        self._back: dict[str, int] = {}
        self._begun_bytes = 0
        self._held = 0
        self._in_work: set[int] = set()
        #: the chunks in that state: few of many, where a reader wants some of a large file
        self._wanted = set(range(len(sizes)))
        self._relocate_at: float | None = None
        #: copies that their holders cannot read now
        self._unread = UnreadableCopies()
        #: the tracker says that there is no such file (any more)
        self._removed = False
        #: it was asked whether there is; and it has answered, or cannot
        self._checking = self._checked = False
        for peer_id in sorted({p for h in self._holders for p in h}):
            self._peer(peer_id)
        self.know(up=up, held=held, unreachable=unreachable)

    def know(self, *, up: Mapping[str, int], held: Collection[int], unreachable: Collection[str]) -> None:
        """Before `start`: what was not known yet when the job was made."""
        for index in held:
            self._chunks[index].state = ChunkState.HELD
        self._held += len(self._wanted.intersection(held))
        self._wanted.difference_update(held)
        for peer_id, incarnation in up.items():
            peer = self._peer(peer_id)
            peer.up, peer.incarnation, peer.reachable = True, incarnation, peer_id not in unreachable
        self._queue_all()

    # -- what is known --------------------------------------------------------------

    @property
    def chunks_completed(self) -> int:
        return self._held

    @property
    def chunks_count(self) -> int:
        return len(self._chunks)

    @property
    def begun_bytes(self) -> int:
        """Bytes of buffers in use: never over the budget, but for a single chunk."""
        return self._begun_bytes

    @property
    def in_work(self) -> int:
        """Chunks in flight, being checked or written."""
        return len(self._in_work)

    def chunk_state(self, index: int) -> ChunkState:
        return self._chunks[index].state

    def attempts(self, index: int) -> list[int]:
        """The numbers of those that count: two while a hedge runs."""
        return [fetch.attempt for fetch in self._chunks[index].fetches]

    def status(self, index: int) -> tuple[str, str | None]:
        """(status, peer_id) as SPEC "DownloadJob" names them."""
        chunk = self._chunks[index]
        if chunk.state is ChunkState.WANTED and chunk.strikes and not self._askable(index):
            return "failed", None
        peer_id = chunk.fetches[0].peer_id if chunk.fetches else chunk.source
        return PUBLIC_STATUS[chunk.state], peer_id or None

    @property
    def checking(self) -> bool:
        """Whether it waits to be told if the file is still there."""
        return self._checking

    @property
    def came_back(self) -> frozenset[str]:
        """Peers that are up and, without auto-resume, are asked only after `resume`."""
        return frozenset(self._back)

    def by_peer(self) -> dict[str, dict[str, int]]:
        """Holders -> how many chunks came from each in this run, and how many are coming."""
        return {
            peer_id: {"completed": peer.completed, "in_progress": peer.begun}
            for peer_id, peer in sorted(self._peers.items())
            if peer.completed or peer.begun
        }

    def missing(self) -> dict[str, int]:
        """Peers that are down, or cannot be reached, or cannot read their copies -> how many
        wanted chunks only such peers hold, counted at each."""
        counts: dict[str, int] = {}
        for index in self.missing_chunks():
            for peer_id in self._askable(index):
                counts[peer_id] = counts.get(peer_id, 0) + 1
        return counts

    def why_missing(self, peer_id: str) -> str:
        """Of a peer of `missing`: "offline", or, up as the tracker says, "unreachable" from here,
        or "unreadable" what it holds."""
        peer = self._peers.get(peer_id)
        if peer is None or not peer.up:
            return "offline"
        return "unreadable" if peer.reachable else "unreachable"

    def is_missing(self, index: int) -> bool:
        """Wanted, and no live peer can be asked for it."""
        return self._chunks[index].state is ChunkState.WANTED and not self._live(index)

    def is_waited_for(self, index: int) -> bool:
        """As `is_missing`, and it is more than a moment in which a peer could not read it."""
        return self.is_missing(index) and not self._unread.is_brief(index)

    def missing_chunks(self) -> list[int]:
        """Wanted chunks without a live holder."""
        return [index for index in sorted(self._wanted) if self.is_missing(index)]

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """See `driver.Job`: all that is in work was asked of these peers, and nothing has come."""
        chunks = [self._chunks[index] for index in self._in_work]
        if not all(chunk.state is ChunkState.IN_FLIGHT for chunk in chunks):
            return {}
        waits = Counter(fetch.peer_id for chunk in chunks for fetch in chunk.fetches)
        return dict(waits) if waits.keys() <= set(busy) else {}

    def cannot_wait(self, index: int, now: float) -> bool:
        """Whether whole chunks that wait in memory for this one to come hold up the rest: nothing
        else is in work, or memory is short for a peer that could send more, and it comes late."""
        return not self._in_work or (self._memory_bound(now) and self._comes_late(index, now))

    # -- events ---------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return self._advance(now)

    def peer_up(self, peer_id: str, incarnation: int, now: float) -> list[Action]:
        """It is up; with a new incarnation what was asked of the old one is void."""
        peer = self._peer(peer_id)  # it may become a holder later
        if peer.up and peer.incarnation == incarnation:
            return []
        actions = self._take_back(peer_id) if peer.up else []
        waited_for = not peer.up and peer_id in self.missing()
        if waited_for and not self._limits.auto_resume:
            self._back[peer_id] = incarnation
            return []
        peer.up, peer.reachable, peer.incarnation = True, True, incarnation
        return actions + self._welcome_back(peer_id, waited_for, now)

    def peer_reach(self, peer_id: str, reachable: bool, now: float) -> list[Action]:
        """A peer that is up cannot be reached from here, or can again."""
        peer = self._peer(peer_id)
        if not reachable:
            self._back.pop(peer_id, None)
        if peer.reachable == reachable:
            return []
        if reachable:
            waited_for = peer.up and peer_id in self.missing()
            if waited_for and not self._limits.auto_resume:
                self._back[peer_id] = peer.incarnation
                return []
            peer.reachable = True
            return self._welcome_back(peer_id, waited_for, now)
        peer.reachable = False
        actions = self._take_back(peer_id)
        self._queue_all()
        return actions + self._advance(now)

    def _welcome_back(self, peer_id: str, waited_for: bool, now: float) -> list[Action]:
        self._peers[peer_id].window.welcome_back(now)
        self._unread.started_anew(peer_id)
        self._queue_all()
        told: list[Action] = []
        if waited_for and self.state in (JobState.RUNNING, JobState.WAITING):
            told.append(Resumed(peer_id))
        return told + self._advance(now)

    def peer_down(self, peer_id: str, now: float) -> list[Action]:
        self._back.pop(peer_id, None)
        peer = self._peers.get(peer_id)
        if peer is None or not peer.up:
            return []
        peer.up = False
        actions = self._take_back(peer_id)
        self._queue_all()
        return actions + self._advance(now)

    def located(self, holders: Sequence[Collection[str]], now: float) -> list[Action]:
        """The tracker's present answer to who holds what."""
        if len(holders) != len(self._chunks):
            raise IllegalEvent("holders of another file")
        self._holders = [frozenset(h) for h in holders]
        self._removed = False  # put again, perhaps
        for peer_id in sorted({p for h in self._holders for p in h}):
            self._peer(peer_id)
        self._queue_all()
        return self._answered(now)

    def not_located(self, now: float) -> list[Action]:
        """The tracker did not say who holds what."""
        return self._answered(now)

    def removed(self, now: float) -> list[Action]:
        """The tracker knows of no such file. What still comes is taken; when nothing does any
        more the job has failed."""
        self._removed = True
        return self._answered(now)

    def _answered(self, now: float) -> list[Action]:
        if self._checking:
            self._checking, self._checked = False, True
        return self._advance(now)

    def block(self, chunk_index: int, attempt: int, offset: int, length: int, now: float) -> list[Action]:
        """A block arrived; the shell has put its bytes into the chunk's buffer if, and
        only if, `expects` said so before."""
        if not self.expects(chunk_index, attempt, offset, length):
            return []
        chunk = self._chunks[chunk_index]
        fetch = chunk.fetch(attempt)
        assert fetch is not None
        _, asked_at = fetch.asked.pop(offset)
        self._peers[fetch.peer_id].window.answered(length, now - asked_at, now)
        self.bytes_received += length
        actions = self._was_read(chunk_index, fetch.peer_id)
        if fetch.complete:
            actions += self._complete(chunk_index, fetch, now)
        return actions + self._advance(now)

    def _was_read(self, chunk_index: int, peer_id: str) -> list[Action]:
        waited_for = self._unread.was_read(chunk_index, peer_id)
        if waited_for is None:
            return []
        self._queue_all()
        return [Resumed(peer_id)] if waited_for else []

    def expects(self, chunk_index: int, attempt: int, offset: int, length: int) -> bool:
        """Whether this is an answer to a request that still counts."""
        fetch = self._chunks[chunk_index].fetch(attempt)
        asked = fetch.asked.get(offset) if fetch is not None else None
        return asked is not None and asked[0] == length

    def refused(self, chunk_index: int, attempt: int, error: ZchunkError, now: float) -> list[Action]:
        """The peer answered a block request with an error, or the link to it broke."""
        chunk = self._chunks[chunk_index]
        fetch = chunk.fetch(attempt)
        if fetch is None:
            return []
        actions = self._give_up(chunk_index, fetch)
        if isinstance(error, Unreadable):
            # Of this chunk alone: the others may lie on a better part of its disk.
            self._unread.refused(chunk_index, fetch.peer_id, now)
        elif error.retryable:
            self._peers[fetch.peer_id].window.set_aside(now)
        else:
            # It does not have the chunk (any more), or cannot read it: ask others for it, and
            # this one for its others at once. A pause for each of many would take for ever.
            chunk.strikes[fetch.peer_id] = _MAX_STRIKES
            self._checked = False
            self._relocate_at = now + 1.0
        self._queue_all()
        return actions + self._advance(now)

    def verified(self, chunk_index: int, good: bool, now: float) -> list[Action]:
        chunk = self._chunks[chunk_index]
        if chunk.state is not ChunkState.VERIFYING:
            return []
        (fetch,) = chunk.fetches
        if good:
            chunk.state = ChunkState.WRITING
            return [WriteChunk(chunk_index, fetch.attempt)]
        peer = self._peers[fetch.peer_id]
        self._strike(chunk, peer, fetch.peer_id, now)
        actions = [*self._give_up(chunk_index, fetch), ReportCorrupt(fetch.peer_id, chunk_index)]
        if peer.corrupt == _MAX_CORRUPT:
            actions += self._take_back(fetch.peer_id)
        self._queue_all()
        return actions + self._advance(now)

    def _strike(self, chunk: _Chunk, peer: _Peer, peer_id: str, now: float) -> None:
        peer.corrupt += 1
        self._checked = False
        if peer.corrupt > _MAX_CORRUPT:
            # Set apart already. Pauses would spare nobody, and draw out a sure end.
            chunk.strikes[peer_id] = _MAX_STRIKES
        else:
            chunk.strikes[peer_id] = chunk.strikes.get(peer_id, 0) + 1
            peer.window.set_aside(now)

    def written(self, chunk_index: int, kept: bool, now: float) -> list[Action]:
        """Verified and at its place. `kept`: its buffer is still needed (the file's digest
        will get to it soon) and counts against the budget until `freed`."""
        chunk = self._chunks[chunk_index]
        if chunk.state is not ChunkState.WRITING:
            return []
        chunk.source = chunk.fetches.pop().peer_id
        self._peers[chunk.source].completed += 1
        chunk.state = ChunkState.HELD
        self._unread.forget(chunk_index)
        self._in_work.discard(chunk_index)
        self._held += 1
        if not kept:
            self._begun_bytes -= chunk.size
        return self._advance(now)

    def freed(self, chunk_index: int, now: float) -> list[Action]:
        """The buffer of a chunk that was `kept` is free."""
        self._begun_bytes -= self._chunks[chunk_index].size
        return self._advance(now)

    def lost(self, chunk_indexes: Collection[int], now: float) -> list[Action]:
        """The whole file's SHA-256 was wrong and these chunks are why: fetch them again."""
        return self.want(chunk_indexes, now)

    def want(self, chunk_indexes: Collection[int], now: float) -> list[Action]:
        """Fetch these chunks, which counted as held until now."""
        if self.state in (JobState.FAILED, JobState.CANCELLED):
            return []
        for index in chunk_indexes:
            chunk = self._chunks[index]
            if chunk.state is ChunkState.HELD:
                if chunk.source:
                    self._peers[chunk.source].completed -= 1
                chunk.state, chunk.source = ChunkState.WANTED, ""
                self._wanted.add(index)
                self._held -= 1
        self._queue_all()
        actions = self._enter(JobState.RUNNING, now)
        return actions + self._advance(now)

    def unwant(self, chunk_indexes: Collection[int], now: float) -> list[Action]:
        """Nobody needs these chunks any more: they count as held. What is in flight of them is
        dropped; what is being checked goes on, and is written."""
        actions: list[Action] = []
        for index in chunk_indexes:
            chunk = self._chunks[index]
            if chunk.state is ChunkState.IN_FLIGHT:
                for fetch in list(chunk.fetches):
                    actions += self._give_up(index, fetch)
            if chunk.state is ChunkState.WANTED:
                chunk.state = ChunkState.HELD
                self._wanted.discard(index)
                self._held += 1
        self._queue_all()
        return actions + self._advance(now)

    def complete(self, now: float) -> list[Action]:
        if self.state in (JobState.FAILED, JobState.CANCELLED):
            return []
        return self._enter(JobState.COMPLETE, now)

    def fail(self, error: ZchunkError, now: float) -> list[Action]:
        """Something the job cannot go on without (disk full, no permission)."""
        if self.state in (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED):
            return []
        return [*self._drop_all(), *self._enter(JobState.FAILED, now), Failed(error)]

    def pause(self, now: float) -> list[Action]:
        if self.state not in (JobState.RUNNING, JobState.WAITING):
            return []
        return [*self._drop_all(), *self._enter(JobState.PAUSED, now)]

    def resume(self, now: float) -> list[Action]:
        """Go on after a pause, and ask the peers that came back meanwhile."""
        going = self.state in (JobState.RUNNING, JobState.WAITING)
        if self.state is not JobState.PAUSED and not (going and self._back):
            return []
        back, self._back = self._back, {}
        for peer_id, incarnation in back.items():
            peer = self._peers[peer_id]
            peer.up, peer.reachable, peer.incarnation = True, True, incarnation
            peer.window.welcome_back(now)
        self._queue_all()
        resumed = [Resumed(peer_id) for peer_id in sorted(back)]
        return [*self._enter(JobState.RUNNING, now), *resumed, *self._advance(now)]

    def cancel(self, now: float) -> list[Action]:
        if self.state in (JobState.COMPLETE, JobState.FAILED):
            return []
        return [*self._drop_all(), *self._enter(JobState.CANCELLED, now)]

    def on_time(self, now: float) -> list[Action]:
        """Stalled requests, ended pauses, and the safety reconcile with the tracker."""
        if self.state not in (JobState.RUNNING, JobState.WAITING):
            return []
        actions: list[Action] = []
        if self._unread.end_pauses(now):
            self._queue_all()
        for peer_id in sorted(self._peers):
            peer = self._peers[peer_id]
            peer.window.end_pause(now)
            if peer.window.stalled(self._limits.stall_s, now):
                actions += self._take_back(peer_id)
                peer.window.set_aside(now)
                self._queue_all()
        if self._relocate_at is not None and self._relocate_at <= now:
            self._relocate_at = now + self._limits.relocate_s
            actions.append(Relocate())
        return actions + self._advance(now)

    def deadline(self) -> float | None:
        if self.state not in (JobState.RUNNING, JobState.WAITING):
            return None
        times = [t for peer in self._peers.values() for t in peer.window.wakes_at(self._limits.stall_s)]
        times += [due for due, _, _ in self._hedges()]
        times += [at for at in (self._relocate_at, self._unread.deadline()) if at is not None]
        return min(times, default=None)

    # -- going on -------------------------------------------------------------------

    def _advance(self, now: float) -> list[Action]:
        if self.state not in (JobState.RUNNING, JobState.WAITING):
            return []
        actions: list[Action] = []
        while begun := self._begin_one(now) or self._hedge_one(now):
            actions += [begun, *self._ask_blocks(now)]
        actions += self._ask_blocks(now)
        if self._held == len(self._chunks):
            return [*actions, *self._enter(JobState.VERIFYING, now), AllHeld()]
        return actions + self._waiting_or_running(now)

    def _waiting_or_running(self, now: float) -> list[Action]:
        if self._in_work or any(self._usable_queue(p) for p in self._peers.values()):
            return self._enter(JobState.RUNNING, now)
        if not self._wanted.isdisjoint(self._unread.brief()):
            return self._enter(JobState.RUNNING, now)
        if self._removed:
            return self.fail(removed_meanwhile("the file"), now)
        unavailable = self._unavailable()
        if unavailable and len(unavailable) == self.chunks_count - self._held:
            if not self._checked:
                asked, self._checking = self._checking, True
                return [*self._enter(JobState.RUNNING, now), *([] if asked else [CheckRemoved()])]
            peers = sorted({p for i in unavailable for p in self._chunks[i].strikes})
            return self.fail(corrupt_everywhere(len(unavailable), peers, [p[:8] for p in peers]), now)
        return self._enter(JobState.WAITING, now)

    def _unavailable(self) -> list[int]:
        """Wanted chunks that no holder, up or down, can still be asked for."""
        return [
            index
            for index in sorted(self._wanted)
            if self._chunks[index].strikes and not self._askable(index)
        ]

    def _askable(self, index: int) -> list[str]:
        """Holders, up or down, that may still have the chunk whole."""
        strikes = self._chunks[index].strikes
        return [p for p in self._holders[index] if strikes.get(p, 0) < _MAX_STRIKES]

    def _begin_one(self, now: float) -> Action | None:
        """Begin the most urgent chunk that some peer can send now.

        The rarest first, then those of slow peers, since they are the ones left behind, then
        in the file's order. A chunk that several could send goes to the fastest.
        """
        ready = [
            (urgency, peer_id)
            for peer_id, peer in self._peers.items()
            if self._has_room(peer, now) and (urgency := self._most_urgent(peer)) is not None
        ]
        if not ready:
            return None
        slow = self._slow_peers([peer_id for _, peer_id in ready])
        rank = [
            (holders, peer_id not in slow, index, -self._peers[peer_id].window.rate, peer_id)
            for (holders, index), peer_id in ready
        ]
        _, _, index, _, peer_id = min(rank)
        if not self._fits(self._chunks[index].size):
            return None
        heapq.heappop(self._peers[peer_id].queue)
        return self._begin(index, peer_id, now)

    def _has_room(self, peer: _Peer, now: float) -> bool:
        return peer.there and peer.begun < _BEGUN_PER_PEER and peer.window.paused_until <= now

    def _slow_peers(self, peer_ids: Sequence[str]) -> set[str]:
        """Those that need much longer than the others for what they have left."""
        peers = {peer_id: self._peers[peer_id] for peer_id in peer_ids}
        left = {p: len(peer.queue) / peer.window.rate for p, peer in peers.items() if peer.window.rate}
        usual = median(left.values()) if left else 0.0
        return {p for p, time in left.items() if time > _SLOW * usual}

    def _most_urgent(self, peer: _Peer) -> tuple[int, int] | None:
        """(holders, index) of the chunk to ask this peer for next."""
        while peer.queue:
            if self._chunks[peer.queue[0][1]].state is ChunkState.WANTED:
                return peer.queue[0]
            heapq.heappop(peer.queue)
        return None

    def _fits(self, size: int) -> bool:
        return not self._begun_bytes or self._begun_bytes + size <= self._limits.budget

    def _memory_bound(self, now: float) -> bool:
        """Whether a peer could be asked for more if there were memory for it."""
        return not self._fits(self._largest) and any(
            self._has_room(peer, now) for peer in self._peers.values()
        )

    def _comes_late(self, index: int, now: float) -> bool:
        chunk = self._chunks[index]
        if chunk.state is not ChunkState.IN_FLIGHT:
            return False
        return all(self._is_late(fetch, now) for fetch in chunk.fetches)

    def _is_late(self, fetch: _Fetch, now: float) -> bool:
        """By how fast its source is, or by how long it has taken already."""
        others = [peer for peer_id, peer in self._peers.items() if peer_id != fetch.peer_id]
        rate = self._peers[fetch.peer_id].window.rate
        rates = [peer.window.rate for peer in others if peer.window.rate]
        if rate and rates and _LATE * rate < median(rates):
            return True
        took = [seconds for peer in others for seconds in peer.took]
        return bool(took) and now > fetch.begun_at + max(_HEDGE_MIN_S, _LATE * median(took))

    def _begin(self, index: int, peer_id: str, now: float) -> Action:
        chunk, peer = self._chunks[index], self._peers[peer_id]
        chunk.state = ChunkState.IN_FLIGHT
        self._wanted.discard(index)
        chunk.attempts += 1
        chunk.fetches.append(_Fetch(peer_id, chunk.attempts, now, chunk.size))
        peer.begun += 1
        self._begun_bytes += chunk.size
        self._in_work.add(index)
        return BeginChunk(index, chunk.attempts)

    def _ask_blocks(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for index in sorted(self._in_work):
            chunk = self._chunks[index]
            if chunk.state is not ChunkState.IN_FLIGHT:
                continue
            for fetch in chunk.fetches:
                window = self._peers[fetch.peer_id].window
                while (length := fetch.next_length(window.block)) and window.takes(length):
                    offset = fetch.begun
                    fetch.begun += length
                    fetch.asked[offset] = (length, now)
                    window.sent(length, now)
                    actions.append(RequestBlock(fetch.peer_id, index, fetch.attempt, offset, length))
        return actions

    def _complete(self, index: int, fetch: _Fetch, now: float) -> list[Action]:
        """All its blocks are here: it is checked, a second attempt is dropped."""
        chunk, peer = self._chunks[index], self._peers[fetch.peer_id]
        actions: list[Action] = []
        for other in [other for other in chunk.fetches if other is not fetch]:
            actions += self._give_up(index, other)
        chunk.state = ChunkState.VERIFYING
        peer.begun -= 1
        peer.took.append(now - fetch.begun_at)
        return [*actions, VerifyChunk(index, fetch.attempt)]

    # -- hedging --------------------------------------------------------------------

    def _hedge_one(self, now: float) -> Action | None:
        """Ask a second holder for the chunk that is overdue the longest."""
        due = [hedge for hedge in self._hedges() if hedge[0] <= now]
        if not due:
            return None
        _, index, peer_id = min(due)
        return self._begin(index, peer_id, now)

    def _hedges(self) -> list[tuple[float, int, str]]:
        """(when it is due, chunk, second peer) of each chunk in flight that an idle holder
        could send as well. Only who has nothing else to send is asked: what is wanted and not
        begun brings the file forward more."""
        idle = [
            peer_id
            for peer_id, peer in self._peers.items()
            if self._has_room(peer, peer.window.paused_until) and not peer.window.paused_until
            if self._most_urgent(peer) is None
        ]
        hedges = []
        for index in self._in_work if idle else ():
            chunk = self._chunks[index]
            if chunk.state is not ChunkState.IN_FLIGHT or len(chunk.fetches) != 1:
                continue
            if not self._fits(chunk.size):
                continue
            (fetch,) = chunk.fetches
            for peer_id in set(idle).intersection(self._live(index)) - {fetch.peer_id}:
                patience = self._patience(fetch, chunk.size, self._peers[peer_id])
                if patience is not None:
                    hedges.append((fetch.begun_at + patience, index, peer_id))
        return hedges

    def _patience(self, fetch: _Fetch, size: int, other: _Peer) -> float | None:
        """Seconds the chunk may take at its source while `other` is idle: what chunks from there
        hardly ever exceed, or twice that of the other where that is less; and none if the other
        would bring all of it sooner than the source what is left."""
        source = self._peers[fetch.peer_id]
        rate, other_rate = source.window.rate, other.window.rate
        if rate and other_rate and fetch.left / rate > _SLOW * size / other_rate:
            return _HEDGE_MIN_S
        known = [
            p95(peer.took) * times for peer, times in ((source, 1), (other, 2)) if len(peer.took) >= _FEW
        ]
        return max(_HEDGE_MIN_S, min(known)) if known else None

    # -- taking back ----------------------------------------------------------------

    def _take_back(self, peer_id: str) -> list[Action]:
        """What was asked of this peer is wanted again."""
        return self._give_up_fetches(lambda fetch: fetch.peer_id == peer_id)

    def _give_up_fetches(self, which: Callable[[_Fetch], bool]) -> list[Action]:
        """Those in flight. What is being checked or written goes on: threads are at its buffer."""
        actions: list[Action] = []
        for index in sorted(self._in_work):
            chunk = self._chunks[index]
            if chunk.state is ChunkState.IN_FLIGHT:
                for fetch in [fetch for fetch in chunk.fetches if which(fetch)]:
                    actions += self._give_up(index, fetch)
        return actions

    def _give_up(self, index: int, fetch: _Fetch) -> list[Action]:
        """The attempt ends; its buffer goes back. Without another the chunk is wanted again."""
        chunk, peer = self._chunks[index], self._peers[fetch.peer_id]
        if chunk.state is ChunkState.IN_FLIGHT:
            peer.window.taken_back(sum(length for length, _ in fetch.asked.values()))
            peer.begun -= 1
        chunk.fetches.remove(fetch)
        self._begun_bytes -= chunk.size
        if not chunk.fetches:
            chunk.state = ChunkState.WANTED
            self._wanted.add(index)
            self._in_work.discard(index)
        return [DropChunk(index, fetch.attempt)]

    def _drop_all(self) -> list[Action]:
        """Give up what is being fetched, to stand still or to end."""
        actions = self._give_up_fetches(lambda fetch: True)
        self._queue_all()
        return actions

    # -- queues ---------------------------------------------------------------------

    def _peer(self, peer_id: str) -> _Peer:
        if peer_id not in self._peers:
            self._peers[peer_id] = _Peer(PeerWindow(self._limits.block_min, self._limits.block_max))
        return self._peers[peer_id]

    def _live(self, index: int) -> list[str]:
        """Peers to ask for the chunk now: those that were never caught, while there are."""
        strikes = self._chunks[index].strikes
        pausing = self._unread.pausing(index)
        live = [p for p in self._askable(index) if self._peers[p].there and p not in pausing]
        clean = [p for p in live if p not in strikes and self._peers[p].corrupt < _MAX_CORRUPT]
        return clean or live

    def _usable_queue(self, peer: _Peer) -> bool:
        return peer.there and any(self._chunks[i].state is ChunkState.WANTED for _, i in peer.queue)

    def _queue_all(self) -> None:
        """Who can be asked for what changed: each live peer gets its wanted chunks, the
        rarest first."""
        for peer in self._peers.values():
            peer.queue = []
        for index in sorted(self._wanted):
            live = self._live(index)
            for peer_id in live:
                self._peers[peer_id].queue.append((len(live), index))
        for peer in self._peers.values():
            heapq.heapify(peer.queue)

    def _enter(self, state: JobState, now: float) -> list[Action]:
        if state is self.state:
            return []
        self.state = state
        if state is JobState.WAITING:
            self.waiting_since = now
            self._relocate_at = now + self._limits.relocate_s
        elif state is JobState.RUNNING:
            self.waiting_since = None
            self._relocate_at = None
        return [StateChanged(state)]


def removed_meanwhile(what: str, kept: str = "") -> NotFound:
    """`details["removed"]` tells it from other things that are not found. `kept`: what of it is."""
    text = f"{what} was removed from the cluster during the download{kept}"
    return NotFound(text, removed=True)


def corrupt_everywhere(chunks: int, peer_ids: Sequence[str], names: Sequence[str]) -> IntegrityError:
    """No holder has these chunks whole; `names` are the holders', for people."""
    what = "1 chunk was" if chunks == 1 else f"{chunks:,} chunks were"
    return IntegrityError(
        f"{what} corrupt or missing at every holder ({', '.join(names)}); "
        "upload the file again from its source with `zchunk put`",
        chunks=chunks,
        peers=list(peer_ids),
    )


def p95(seconds: Collection[float]) -> float:
    """What 95 of 100 do not exceed (nearest rank)."""
    ordered = sorted(seconds)
    return ordered[-(-95 * len(ordered) // 100) - 1]
