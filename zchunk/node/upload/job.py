"""The upload job: which chunk to read, whom to offer it, what to send, when all is safe. Pure.

What may not happen here: a chunk counted as stored before a node said so; more bytes
in memory than the budget; a peer given two copies of one chunk; `AllStored` while a
chunk has fewer live copies than asked; a file on fewer different peers because some of
them had its chunks already.

Chunks are read in order once, so that the file's digest comes out of the same pass; a
chunk that must go elsewhere after its buffer was freed is read again. Between hash and
offer the tracker is asked who holds the chunk (SPEC U7): one question at a time, about
all chunks that were hashed meanwhile. Its answer is a hint, and without one the upload
goes on as planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from zchunk.content.manifest import block_ranges
from zchunk.errors import NoSpace, PeersUnsure, TooFewPeers, ZchunkError
from zchunk.node.bulk.history import History
from zchunk.node.bulk.peer_window import PeerWindow
from zchunk.node.upload.spread import Spread
from zchunk.protocol.messages import MAX_FIND


class UploadState(Enum):
    RUNNING = "running"
    WAITING = "waiting"
    STORED = "stored"
    FAILED = "failed"


#: Errors by which a peer says that it can take nothing; after others it is tried again.
CANNOT = frozenset({"no_space", "storage_failure", "store_offline", "not_allowed"})
#: ... that it cannot for now: it is tried once more after a pause, then others take its chunks.
_FOR_NOW = "storage_unavailable"
#: The tracker did not say who holds some chunks: so long it is not asked about others.
FIND_PAUSE_S = 10.0

#: Seconds after which a job that waits, since a peer had no room, asks for a plan with it again:
#: no event tells of space that was made.
ROOM_S = 2.0


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Reserve a buffer, read and hash the chunk; answer with `read`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class FindHolders:
    """Ask the tracker who holds these chunks, which are hashed; answer with `found` or
    `not_found`."""

    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OfferChunk:
    peer_id: str
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SendBlock:
    peer_id: str
    chunk: int
    attempt: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ReleaseChunk:
    """The chunk's buffer is free. `clean`: every block sent from it was answered, so no
    socket can still be reading it."""

    chunk: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Replan:
    """Ask the tracker for new places for these chunks; answer with `replanned` or
    `not_replanned`. `held` are the copies of each that stay."""

    chunks: tuple[int, ...]
    held: tuple[tuple[str, ...], ...]
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A peer came, and the job that waited goes on."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: UploadState


@dataclass(frozen=True, slots=True)
class AllStored:
    """Every chunk has its live, verified, durable copies: publish."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: ZchunkError


Action = (
    ReadChunk
    | FindHolders
    | OfferChunk
    | SendBlock
    | ReleaseChunk
    | Replan
    | Resumed
    | StateChanged
    | AllStored
    | Failed
)


@dataclass(frozen=True, slots=True)
class Limits:
    budget: int
    block_min: int
    block_max: int
    stall_s: float


class _Copy(Enum):
    PLANNED = "planned"
    OFFERED = "offered"
    SENDING = "sending"
    STORED = "stored"


@dataclass(slots=True)
class _Target:
    copy: _Copy = _Copy.PLANNED
    attempt: int = 0
    unsent: list[tuple[int, int]] = field(default_factory=list)
    #: offset -> (length, when sent)
    sent: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A new plan for a chunk was asked for: the places that were to stay, and when."""

    held: tuple[str, ...]
    arrivals: int


class _Memory(Enum):
    NONE = "none"
    READING = "reading"
    READY = "ready"


@dataclass(slots=True)
class _Chunk:
    size: int
    targets: dict[str, _Target]
    memory: _Memory = _Memory.NONE
    #: whether the file's digest has taken it in: it stays in memory until then
    digested: bool = False
    #: a block of it may still wait in a socket that broke
    unclean: bool = False
    #: who held it when the tracker was asked; None until it is known, or given up
    holders: tuple[str, ...] | None = None
    #: the chunk of the same bytes that was hashed first
    twin: int | None = None


class UploadJob:
    def __init__(
        self,
        *,
        sizes: Sequence[int],
        assignment: Sequence[Collection[str]],
        replicas: int,
        min_peers: int,
        up: Mapping[str, int],
        limits: Limits,
        unreachable: Collection[str] = (),
        undivided: bool = False,
        own_peer: str | None = None,
    ) -> None:
        """`assignment`: the plan's peer ids per chunk. `min_peers`: on how many different
        peers the file is to lie. `up`: peer id -> incarnation; `unreachable`: those that
        cannot be reached from here. An `undivided` file has the same places for every chunk
        (SPEC U1); from `own_peer` it is not taken away."""
        self.state = UploadState.RUNNING
        #: its last transitions, for people
        self.history = History()
        #: payload that peers took: of blocks that were answered, and of a chunk that was sent whole,
        #: whose answer did not come in time, and that its peer has when it is offered again
        self.bytes_sent = 0
        #: (peer id, chunk) -> the part of such a chunk that no answer has counted
        self._unanswered: dict[tuple[str, int], int] = {}
        self._limits = limits
        self._replicas = replicas
        self._min_peers = min_peers
        self._undivided = undivided
        self._own_peer = own_peer
        self._chunks = [
            _Chunk(size, {peer_id: _Target() for peer_id in sorted(peers)})
            for size, peers in zip(sizes, assignment, strict=True)
        ]
        self._up = dict(up)
        self._windows: dict[str, PeerWindow] = {}
        self._refused: set[str] = set(unreachable)
        self._next_read = 0
        self._begun_bytes = 0
        self._active: set[int] = set()
        self._attempts = 0
        self._replanning: dict[int, _Asked] = {}
        #: how often a peer came up
        self._arrivals = 0
        self._blocked: ZchunkError | None = None
        #: a question who holds some chunks is under way
        self._finding = False
        self._find_again_at = 0.0
        #: where the file will lie; None where places changed since
        self._spread: Spread | None = None
        #: while blocked: whether a peer is missing that had no room, and when to plan with it again
        self._room_missing = False
        self._room_at = 0.0
        self._look_for_room = False
        #: chunks with all their live copies; kept up to date, since files have many chunks
        self._done: set[int] = set()
        #: chunks to be read once more, and whether places may be missing: both only
        #: change when a peer comes, goes or refuses, or a plan arrives
        self._again: set[int] = set()
        #: true at first: a planned peer may have gone before this job began to listen
        self._places_changed = True

    def know(self, *, up: Mapping[str, int], unreachable: Collection[str]) -> None:
        """Before `start`: what was not known yet when the job was made."""
        self._up.update(up)
        self._refused.update(unreachable)

    # -- what is known --------------------------------------------------------------

    @property
    def chunks_count(self) -> int:
        return len(self._chunks)

    @property
    def chunks_completed(self) -> int:
        return len(self._done)

    @property
    def begun_bytes(self) -> int:
        return self._begun_bytes

    def holders(self, index: int) -> list[str]:
        """Peers that store the chunk and are up."""
        return self._live_copies(self._chunks[index])

    def all_holders(self) -> list[str]:
        """Every peer that stores some chunk and is up, sorted."""
        return sorted({p for chunk in self._chunks for p in self._live_copies(chunk)})

    def copies(self) -> list[list[str]]:
        """Per chunk the peers that have, or will get, a copy as things stand."""
        return [self._kept(chunk) for chunk in self._chunks]

    def missing(self) -> dict[str, int]:
        """Peers that are not up, or take nothing now -> how many unfinished chunks have, or were
        to get, a copy there."""
        unfinished = [chunk for i, chunk in enumerate(self._chunks) if i not in self._done]
        return dict(Counter(p for chunk in unfinished for p in chunk.targets.keys() - self._kept(chunk)))

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """See `driver.Job`: what was offered waits for these peers, and nothing else moves."""
        waits: Counter[str] = Counter()
        for chunk in (self._chunks[index] for index in self._active):
            states = {p: t.copy for p, t in chunk.targets.items() if t.copy in (_Copy.OFFERED, _Copy.SENDING)}
            if chunk.memory is _Memory.READING or _Copy.SENDING in states.values():
                return {}
            waits.update(list(states))
        return dict(waits) if waits.keys() <= set(busy) and not self._finding else {}

    @property
    def blocked(self) -> ZchunkError | None:
        """Why there are no places for some chunks, while that is so."""
        return self._blocked

    @property
    def refusing(self) -> list[str]:
        """Peers that are up and take nothing, sorted."""
        return sorted(self._refused & self._up.keys())

    # -- events ---------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return self._advance(now)

    def read(self, index: int, now: float, twin: int | None = None) -> list[Action]:
        """The chunk is in memory and hashed. `twin`: the one of the same bytes that was
        hashed first, if that is another."""
        chunk = self._chunks[index]
        if chunk.memory is not _Memory.READING:
            return []
        chunk.memory, chunk.holders, chunk.twin = _Memory.READY, None, twin
        return self._advance(now)

    def found(self, chunks: Sequence[int], holders: Sequence[Sequence[str]], now: float) -> list[Action]:
        """Who holds these chunks, as far as the tracker knows."""
        self._finding = False
        for index, peers in zip(chunks, holders, strict=True):
            if self._unfound(index):
                self._chunks[index].holders = (*peers, *self._twins_holders(index, peers))
                self._go_to_holders(index, now)
        if self._undivided:
            self._go_together(chunks)
        return self._advance(now)

    def not_found(self, chunks: Sequence[int], now: float) -> list[Action]:
        """The tracker did not say: these chunks, and others for a while, go as planned."""
        self._find_again_at = now + FIND_PAUSE_S
        return self.found(chunks, [()] * len(chunks), now)

    def digested(self, index: int, now: float) -> list[Action]:
        """The file's running digest has taken the chunk in."""
        self._chunks[index].digested = True
        return self._advance(now)

    def offered(self, peer_id: str, index: int, attempt: int, have: bool, now: float) -> list[Action]:
        target = self._target(peer_id, index, attempt, _Copy.OFFERED)
        if target is None:
            return []
        unanswered = self._unanswered.pop((peer_id, index), 0)
        if have:
            self.bytes_sent += unanswered
            self._store(index, target)
            return self._advance(now)
        target.copy = _Copy.SENDING
        window = self._window(peer_id)
        target.unsent = block_ranges(self._chunks[index].size, window.block)[::-1]
        return self._advance(now)

    def taken(
        self, peer_id: str, index: int, attempt: int, offset: int, stored: bool, now: float
    ) -> list[Action]:
        """A block was answered; `stored` with the one that completed the chunk."""
        target = self._target(peer_id, index, attempt, _Copy.SENDING)
        if target is None or offset not in target.sent:
            return []
        length, sent_at = target.sent.pop(offset)
        self._window(peer_id).answered(length, now - sent_at, now)
        self.bytes_sent += length
        if stored:
            # All of it arrived, in whatever order the answers do.
            self.bytes_sent += sum(rest for rest, _ in target.sent.values())
            self._chunks[index].unclean |= bool(target.sent)
            self._settle(peer_id, target)
            self._store(index, target)
        elif not target.sent and not target.unsent:
            # All was answered and yet it is not complete there: the node started over.
            self._window(peer_id).set_aside(now)  # else a broken one would be sent it without end
            self._plan_again(peer_id, self._chunks[index])
        return self._advance(now)

    def refused(self, peer_id: str, index: int, attempt: int, error: ZchunkError, now: float) -> list[Action]:
        """An offer or a block was answered with an error, or the link broke. The peer is
        given nothing more where it says that it cannot (no space, store broken), or a second
        time that it cannot for now."""
        chunk = self._chunks[index]
        target = chunk.targets.get(peer_id)
        if target is None or target.attempt != attempt or target.copy not in (_Copy.OFFERED, _Copy.SENDING):
            return []
        self._withdraw(peer_id, index)
        window = self._window(peer_id)
        if error.code in CANNOT or (error.code == _FOR_NOW and window.fails_again(now)):
            self._refused.add(peer_id)
            self._look_again()
        else:
            window.set_aside(now)
            self._plan_again(peer_id, chunk)
        return self._advance(now)

    def peer_up(self, peer_id: str, incarnation: int, now: float) -> list[Action]:
        """Its stored copies count again; what was on its way to an older start is void."""
        if self._up.get(peer_id) == incarnation:
            return []
        if peer_id in self._up:
            self._void(peer_id)
        resumed: list[Action] = [Resumed(peer_id)] if self.state is UploadState.WAITING else []
        self._arrivals += 1
        self._up[peer_id] = incarnation
        self._refused.discard(peer_id)
        self._window(peer_id).welcome_back(now)
        self._blocked = None
        self._look_again()
        return resumed + self._advance(now)

    def peer_down(self, peer_id: str, now: float) -> list[Action]:
        if self._up.pop(peer_id, None) is None:
            return []
        self._void(peer_id)
        self._look_again()
        # Also after `AllStored`: before the commit a copy may still be lost.
        reopened = self._enter(UploadState.RUNNING) if self.state is UploadState.STORED else []
        return reopened + self._advance(now)

    def peer_reach(self, peer_id: str, reachable: bool, now: float) -> list[Action]:
        """A peer that is up cannot be reached from here, or can again: until then its chunks
        go elsewhere. What it stored counts all the same."""
        resumed: list[Action] = []
        if reachable:
            resumed += [Resumed(peer_id)] if self.state is UploadState.WAITING else []
            self._arrivals += 1
            self._refused.discard(peer_id)
            self._window(peer_id).welcome_back(now)
            self._blocked = None
        else:
            self._refused.add(peer_id)
            self._void(peer_id)
        self._look_again()
        return resumed + self._advance(now)

    def replanned(self, chunks: Sequence[int], peers: Sequence[Collection[str]], now: float) -> list[Action]:
        for index, targets in zip(chunks, peers, strict=True):
            asked = self._replanning.pop(index)
            chunk = self._chunks[index]
            # The plan names new places only: those it was told of stay.
            planned = [p for p, t in chunk.targets.items() if t.copy is _Copy.PLANNED]
            for peer_id in [p for p in planned if p not in asked.held]:
                del chunk.targets[peer_id]
            for peer_id in sorted(targets):
                chunk.targets.setdefault(peer_id, _Target())
        self._blocked, self._room_missing = None, False
        self._look_again()
        for index in chunks:
            self._go_to_holders(index, now)
        return self._advance(now)

    def not_replanned(self, chunks: Collection[int], error: ZchunkError, now: float) -> list[Action]:
        """With too few peers left the job waits for the event that brings one."""
        asked = [self._replanning.pop(index) for index in chunks]
        still_no_room = isinstance(error, NoSpace) and not isinstance(self._blocked, PeersUnsure | None)
        if not isinstance(error, TooFewPeers) and not still_no_room:
            return self.fail(error, now)
        if any(each.arrivals < self._arrivals for each in asked):
            self._places_changed = True  # a peer came after the tracker had said so
        else:
            self._blocked = error
            # No event tells of them, or may have come before this answer.
            self._room_missing |= bool(self._refused) or "refusing" in error.details
            self._room_at = now + ROOM_S
        return self._advance(now)

    def doubted(self, chunks: Collection[int] | None, now: float) -> list[Action]:
        """After `AllStored`: the tracker does not know of all copies. Those of `chunks`, or
        all, are offered again: a node that has one says so to both, one that lost it is sent it."""
        if self.state is not UploadState.STORED:
            return []
        for index in range(len(self._chunks)) if chunks is None else chunks:
            targets = self._chunks[index].targets
            targets |= {p: _Target() for p, t in targets.items() if t.copy is _Copy.STORED}
        return self._reopened(now)

    def given_up(self, peer_id: str, now: float) -> list[Action]:
        """After `AllStored`: the peer cannot keep the file after all, so its copies do not count."""
        if self.state is not UploadState.STORED:
            return []
        self._refused.add(peer_id)
        for chunk in self._chunks:
            chunk.targets.pop(peer_id, None)
        return self._reopened(now)

    def _reopened(self, now: float) -> list[Action]:
        self._look_again()
        return [*self._enter(UploadState.RUNNING), *self._advance(now)]

    def fail(self, error: ZchunkError, now: float) -> list[Action]:
        if self.state in (UploadState.FAILED, UploadState.STORED):
            return []
        return [*self._enter(UploadState.FAILED), Failed(error)]

    def on_time(self, now: float) -> list[Action]:
        for peer_id in sorted(self._windows):
            window = self._windows[peer_id]
            window.end_pause(now)
            if window.stalled(self._limits.stall_s, now):
                self._void(peer_id)
                window.set_aside(now)
        if self._waits_for_room() and self._room_at <= now:
            if self._room_missing:
                self._refused.clear()
            self._look_for_room, self._room_at = True, now + ROOM_S
            self._look_again()
        return self._advance(now)

    def _waits_for_room(self) -> bool:
        # No event tells of a node that was expected and is not there.
        may_change = self._room_missing or isinstance(self._blocked, PeersUnsure)
        return self.state is UploadState.WAITING and may_change and not self._replanning

    def deadline(self) -> float | None:
        if self.state not in (UploadState.RUNNING, UploadState.WAITING):
            return None
        times = [t for window in self._windows.values() for t in window.wakes_at(self._limits.stall_s)]
        if self._waits_for_room():
            times.append(self._room_at)
        return min(times, default=None)

    # -- going on -------------------------------------------------------------------

    def _advance(self, now: float) -> list[Action]:
        if self.state not in (UploadState.RUNNING, UploadState.WAITING):
            return []
        actions = self._release_done() + self._replan() + self._read_more() + self._find(now)
        for index in sorted(self._active):
            actions += self._offer(index, now) + self._send(index, now)
        if len(self._done) == len(self._chunks) and not self._active:
            return [*actions, *self._enter(UploadState.STORED), AllStored()]
        waiting = self._blocked is not None and not self._moving()
        if waiting and self.state is not UploadState.WAITING:
            self._room_at = now + ROOM_S  # it may have been blocked for long while it moved
        return actions + self._enter(UploadState.WAITING if waiting else UploadState.RUNNING)

    def _moving(self) -> bool:
        """Whether some answer is still to come that moves the job."""
        on_the_way = (_Copy.OFFERED, _Copy.SENDING)
        return self._finding or any(
            chunk.memory is _Memory.READING or any(t.copy in on_the_way for t in chunk.targets.values())
            for chunk in (self._chunks[i] for i in self._active)
        )

    def _release_done(self) -> list[Action]:
        actions: list[Action] = []
        for index in sorted(self._active):
            chunk = self._chunks[index]
            if index in self._done and self._is_free(chunk):
                actions.append(ReleaseChunk(index, clean=not chunk.unclean))
                chunk.memory, chunk.unclean, chunk.holders = _Memory.NONE, False, None
                self._begun_bytes -= chunk.size
                self._active.discard(index)
        return actions

    def _is_free(self, chunk: _Chunk) -> bool:
        """In memory, and nobody needs it there any more."""
        in_flight = any(t.copy in (_Copy.OFFERED, _Copy.SENDING) for t in chunk.targets.values())
        return chunk.memory is _Memory.READY and chunk.digested and not in_flight

    def _replan(self) -> list[Action]:
        """Chunks whose planned places can no longer give them their copies."""
        blocked = self._blocked is not None and not self._look_for_room
        if blocked or not self._places_changed:
            return []
        self._places_changed = self._look_for_room = False
        needy = [
            i for i, chunk in enumerate(self._chunks) if i not in self._replanning and self._needy(chunk)
        ]
        if not needy:
            return []
        held = tuple(tuple(self._kept(self._chunks[i])) for i in needy)
        self._replanning |= {i: _Asked(kept, self._arrivals) for i, kept in zip(needy, held, strict=True)}
        return [Replan(tuple(needy), held, tuple(sorted(self._refused)))]

    def _needy(self, chunk: _Chunk) -> bool:
        return len(self._kept(chunk)) < self._replicas

    def _kept(self, chunk: _Chunk) -> list[str]:
        """Peers that have, or will get, a copy as things stand."""
        return [p for p, t in chunk.targets.items() if p in self._up and self._usable(p, t)]

    def _usable(self, peer_id: str, target: _Target) -> bool:
        return target.copy is not _Copy.PLANNED or peer_id not in self._refused

    def _read_more(self) -> list[Action]:
        actions: list[Action] = []
        for index in self._unread():
            chunk = self._chunks[index]
            if self._begun_bytes and self._begun_bytes + chunk.size > self._limits.budget:
                break
            chunk.memory = _Memory.READING
            self._begun_bytes += chunk.size
            self._active.add(index)
            self._again.discard(index)
            self._next_read = max(self._next_read, index + 1)
            actions.append(ReadChunk(index))
        return actions

    def _unread(self) -> list[int]:
        """Chunks to read next: first those to be read again, then on in the file."""
        return sorted(self._again) + list(
            range(self._next_read, min(len(self._chunks), self._next_read + 64))
        )

    # -- who has it already -----------------------------------------------------------

    def _find(self, now: float) -> list[Action]:
        if self._finding:
            return []
        unfound = sorted(index for index in self._active if self._unfound(index))[:MAX_FIND]
        if not unfound:
            return []
        if now < self._find_again_at:
            for index in unfound:
                self._chunks[index].holders = ()
            return []
        self._finding = True
        return [FindHolders(tuple(unfound))]

    def _unfound(self, index: int) -> bool:
        """Whether the chunk waits to be looked for. Not while another one of the same bytes
        is on its way: then it will be there, and a node takes a chunk from an upload once."""
        chunk = self._chunks[index]
        if chunk.memory is not _Memory.READY or chunk.holders is not None or index in self._done:
            return False
        return chunk.twin not in self._active or chunk.twin in self._done

    def _twins_holders(self, index: int, known: Collection[str]) -> list[str]:
        """Where the chunk of the same bytes is; the tracker may not have heard of it yet."""
        twin = self._chunks[index].twin
        return [] if twin is None else [p for p in self.holders(twin) if p not in known]

    def _go_to_holders(self, index: int, now: float) -> None:
        """Copies that were not begun go to peers that have the chunk already. Not while new
        places are made for it: the tracker was told which of the old ones stay."""
        chunk = self._chunks[index]
        if not chunk.holders or index in self._replanning or self._undivided:
            return
        for _ in range(self._replicas):
            move = self._spread_now().better(self._open_places(chunk), self._other_holders(chunk, now))
            if move is None:
                return
            place, holder = move
            self._spread_now().move(place, holder)
            del chunk.targets[place]
            chunk.targets[holder] = _Target()

    def _go_together(self, first: Sequence[int]) -> None:
        """An undivided file goes, whole, where most of its `first` chunks are. Only before
        anything was offered."""
        everyone = [chunk.targets for chunk in self._chunks]
        begun = any(t.copy is not _Copy.PLANNED for targets in everyone for t in targets.values())
        if begun or self._replanning:
            return
        counts = Counter(p for i in first for p in self._chunks[i].holders or () if p in self._up)
        places = sorted(everyone[0].keys() - {self._own_peer}, key=lambda p: (counts[p], p))
        others = sorted(counts.keys() - everyone[0].keys() - self._refused, key=lambda p: (-counts[p], p))
        for place, holder in zip(places, others, strict=False):
            if counts[place] < counts[holder]:
                for targets in everyone:
                    del targets[place]
                    targets[holder] = _Target()
        self._look_again()

    def _open_places(self, chunk: _Chunk) -> list[str]:
        """Where a copy is to be made of which nothing was sent yet."""
        holders = chunk.holders or ()
        return [p for p in self._kept(chunk) if chunk.targets[p].copy is _Copy.PLANNED and p not in holders]

    def _other_holders(self, chunk: _Chunk, now: float) -> list[str]:
        """Peers that have the chunk, can be asked now, and are none of its places."""
        asked = [p for p in chunk.holders or () if p in self._up and p not in chunk.targets]
        return [p for p in asked if p not in self._refused and self._window(p).paused_until <= now]

    def _spread_now(self) -> Spread:
        if self._spread is None:
            self._spread = Spread(self.copies(), self._min_peers)
        return self._spread

    # -- what changed -----------------------------------------------------------------

    def _look_again(self) -> None:
        """Peers or places changed: recount what is done, what must be read again."""
        self._spread = None
        self._done = {i for i, chunk in enumerate(self._chunks) if self._is_done(chunk)}
        self._again = {
            index
            for index in range(self._next_read)
            if self._chunks[index].memory is _Memory.NONE and self._sendable(index)
        }
        self._places_changed = True

    def _sendable(self, index: int) -> bool:
        targets = self._chunks[index].targets.items()
        planned = any(t.copy is _Copy.PLANNED and p in self._up for p, t in targets)
        return planned and index not in self._done

    def _offer(self, index: int, now: float) -> list[Action]:
        chunk = self._chunks[index]
        if chunk.memory is not _Memory.READY or chunk.holders is None or index in self._done:
            return []
        actions: list[Action] = []
        for peer_id, target in chunk.targets.items():
            if target.copy is not _Copy.PLANNED or peer_id not in self._up or peer_id in self._refused:
                continue
            if self._window(peer_id).paused_until > now:
                continue
            self._attempts += 1
            target.copy, target.attempt = _Copy.OFFERED, self._attempts
            actions.append(OfferChunk(peer_id, index, target.attempt))
        return actions

    def _send(self, index: int, now: float) -> list[Action]:
        actions: list[Action] = []
        for peer_id, target in self._chunks[index].targets.items():
            window = self._window(peer_id)
            while target.copy is _Copy.SENDING and target.unsent and window.takes(target.unsent[-1][1]):
                offset, length = target.unsent.pop()
                target.sent[offset] = (length, now)
                window.sent(length, now)
                actions.append(SendBlock(peer_id, index, target.attempt, offset, length))
        return actions

    # -- copies ---------------------------------------------------------------------

    def _target(self, peer_id: str, index: int, attempt: int, copy: _Copy) -> _Target | None:
        target = self._chunks[index].targets.get(peer_id)
        if target is None or target.attempt != attempt or target.copy is not copy:
            return None
        return target

    def _live_copies(self, chunk: _Chunk) -> list[str]:
        return [p for p, t in chunk.targets.items() if t.copy is _Copy.STORED and p in self._up]

    def _store(self, index: int, target: _Target) -> None:
        target.copy = _Copy.STORED
        if self._is_done(self._chunks[index]):
            self._done.add(index)

    def _is_done(self, chunk: _Chunk) -> bool:
        return len(self._live_copies(chunk)) >= self._replicas

    def _void(self, peer_id: str) -> None:
        """What is on its way to the peer will not be answered."""
        for index in sorted(self._active):
            chunk = self._chunks[index]
            target = chunk.targets.get(peer_id)
            if target is not None and target.copy in (_Copy.OFFERED, _Copy.SENDING):
                self._withdraw(peer_id, index)
                self._plan_again(peer_id, chunk)

    def _plan_again(self, peer_id: str, chunk: _Chunk) -> None:
        """The copy is still to be made there, unless the peer has refused meanwhile."""
        chunk.targets[peer_id] = _Target()
        self._places_changed = True

    def _withdraw(self, peer_id: str, index: int) -> None:
        chunk = self._chunks[index]
        target = chunk.targets.pop(peer_id)
        chunk.unclean = chunk.unclean or bool(target.sent)
        if target.sent and not target.unsent:  # it may be stored there all the same
            self._unanswered[peer_id, index] = sum(length for length, _ in target.sent.values())
        self._settle(peer_id, target)

    def _settle(self, peer_id: str, target: _Target) -> None:
        self._window(peer_id).taken_back(sum(length for length, _ in target.sent.values()))
        target.sent, target.unsent = {}, []

    def _window(self, peer_id: str) -> PeerWindow:
        if peer_id not in self._windows:
            self._windows[peer_id] = PeerWindow(self._limits.block_min, self._limits.block_max)
        return self._windows[peer_id]

    def _enter(self, state: UploadState) -> list[Action]:
        if state is self.state:
            return []
        self.state = state
        return [StateChanged(state)]
