"""The copies of a file's chunks: where each is to be, is on its way to, or is stored. Pure.

What may not happen here: a chunk counted as stored before a node said so; a peer given two copies
of one chunk; more on its way to a peer than its window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from zchunk.content.manifest import block_ranges
from zchunk.node.bulk.peer_window import PeerWindow
from zchunk.node.upload.actions import Action, Limits, OfferChunk, SendBlock


class Copy(Enum):
    PLANNED = "planned"
    OFFERED = "offered"
    SENDING = "sending"
    STORED = "stored"


_ON_THE_WAY = (Copy.OFFERED, Copy.SENDING)


@dataclass(slots=True)
class Target:
    copy: Copy = Copy.PLANNED
    attempt: int = 0
    unsent: list[tuple[int, int]] = field(default_factory=list)
    #: offset -> (length, when sent)
    sent: dict[int, tuple[int, float]] = field(default_factory=dict)


class Memory(Enum):
    NONE = "none"
    READING = "reading"
    READY = "ready"


@dataclass(slots=True)
class Chunk:
    size: int
    targets: dict[str, Target]
    memory: Memory = Memory.NONE
    #: whether the file's digest has taken it in: it stays in memory until then
    digested: bool = False
    #: a block of it may still wait in a socket that broke
    unclean: bool = False
    #: who held it when the tracker was asked; None until it is known, or given up
    holders: tuple[str, ...] | None = None
    #: the chunk of the same bytes that was hashed first
    twin: int | None = None

    @property
    def on_the_way(self) -> bool:
        """Whether an answer about a copy is still to come."""
        return any(target.copy in _ON_THE_WAY for target in self.targets.values())


class Copies:
    def __init__(
        self, sizes: Sequence[int], assignment: Sequence[Collection[str]], replicas: int, limits: Limits
    ) -> None:
        """`assignment`: the plan's peer ids per chunk."""
        self.rows = [
            Chunk(size, {peer_id: Target() for peer_id in sorted(peers)})
            for size, peers in zip(sizes, assignment, strict=True)
        ]
        #: peer id -> incarnation
        self.up: dict[str, int] = {}
        #: peers that take nothing
        self.refused: set[str] = set()
        self.windows: dict[str, PeerWindow] = {}
        #: chunks that are read, or are in memory
        self.active: set[int] = set()
        #: chunks with all their live copies; kept up to date, since files have many chunks
        self.done: set[int] = set()
        #: whether places may be missing: that only changes when a peer comes, goes or refuses, or
        #: a plan arrives. True at first: a planned peer may have gone before the job listened.
        self.places_changed = True
        #: payload that peers took: of blocks that were answered, and of a chunk that was sent whole,
        #: whose answer did not come in time, and that its peer has when it is offered again
        self.bytes_sent = 0
        #: (peer id, chunk) -> the part of such a chunk that no answer has counted
        self._unanswered: dict[tuple[str, int], int] = {}
        self._replicas = replicas
        self._limits = limits
        self._attempts = 0

    def window(self, peer_id: str) -> PeerWindow:
        if peer_id not in self.windows:
            self.windows[peer_id] = PeerWindow(self._limits.block_min, self._limits.block_max)
        return self.windows[peer_id]

    # -- what is known --------------------------------------------------------------

    def live(self, chunk: Chunk) -> list[str]:
        """Peers that store the chunk and are up."""
        return [p for p, t in chunk.targets.items() if t.copy is Copy.STORED and p in self.up]

    def kept(self, chunk: Chunk) -> list[str]:
        """Peers that have, or will get, a copy as things stand."""
        return [p for p, t in chunk.targets.items() if p in self.up and self._is_usable(p, t)]

    def _is_usable(self, peer_id: str, target: Target) -> bool:
        return target.copy is not Copy.PLANNED or peer_id not in self.refused

    def is_needy(self, chunk: Chunk) -> bool:
        """Fewer places than copies are asked for."""
        return len(self.kept(chunk)) < self._replicas

    def is_done(self, chunk: Chunk) -> bool:
        return len(self.live(chunk)) >= self._replicas

    def missing(self) -> dict[str, int]:
        """Peers that are not up, or take nothing now -> how many unfinished chunks have, or were
        to get, a copy there."""
        unfinished = [chunk for i, chunk in enumerate(self.rows) if i not in self.done]
        return dict(Counter(p for chunk in unfinished for p in chunk.targets.keys() - self.kept(chunk)))

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """What was offered waits for these peers, and nothing else moves: peer id -> chunks."""
        waits: Counter[str] = Counter()
        for chunk in (self.rows[index] for index in self.active):
            states = {p: t.copy for p, t in chunk.targets.items() if t.copy in _ON_THE_WAY}
            if chunk.memory is Memory.READING or Copy.SENDING in states.values():
                return {}
            waits.update(list(states))
        return dict(waits) if waits.keys() <= set(busy) else {}

    def is_moving(self) -> bool:
        """Whether some answer is still to come that moves the job."""
        chunks = (self.rows[index] for index in self.active)
        return any(chunk.memory is Memory.READING or chunk.on_the_way for chunk in chunks)

    # -- sending --------------------------------------------------------------------

    def offer(self, index: int, now: float) -> list[Action]:
        """To each planned peer that can be asked, once it is known who has the chunk already."""
        chunk = self.rows[index]
        if chunk.memory is not Memory.READY or chunk.holders is None or index in self.done:
            return []
        actions: list[Action] = []
        for peer_id, target in chunk.targets.items():
            if target.copy is not Copy.PLANNED or peer_id not in self.up or peer_id in self.refused:
                continue
            if self.window(peer_id).paused_until > now:
                continue
            self._attempts += 1
            target.copy, target.attempt = Copy.OFFERED, self._attempts
            actions.append(OfferChunk(peer_id, index, target.attempt))
        return actions

    def send(self, index: int, now: float) -> list[Action]:
        """Blocks to those that want the chunk, as many as their windows take."""
        actions: list[Action] = []
        for peer_id, target in self.rows[index].targets.items():
            if target.copy is not Copy.SENDING:
                continue
            window = self.window(peer_id)
            while target.unsent and window.takes(target.unsent[-1][1]):
                offset, length = target.unsent.pop()
                target.sent[offset] = (length, now)
                window.sent(length, now)
                actions.append(SendBlock(peer_id, index, target.attempt, offset, length))
        return actions

    def offered(self, peer_id: str, index: int, attempt: int, have: bool) -> bool:
        """An offer was answered. Whether it counts."""
        target = self._target(peer_id, index, attempt, Copy.OFFERED)
        if target is None:
            return False
        unanswered = self._unanswered.pop((peer_id, index), 0)
        if have:
            self.bytes_sent += unanswered
            self._store(index, target)
        else:
            target.copy = Copy.SENDING
            target.unsent = block_ranges(self.rows[index].size, self.window(peer_id).block)[::-1]
        return True

    def taken(self, peer_id: str, index: int, attempt: int, offset: int, stored: bool, now: float) -> bool:
        """A block was answered; `stored` with the one that completed the chunk. Whether it counts."""
        target = self._target(peer_id, index, attempt, Copy.SENDING)
        if target is None or offset not in target.sent:
            return False
        length, sent_at = target.sent.pop(offset)
        window = self.window(peer_id)
        window.answered(length, now - sent_at, now)
        self.bytes_sent += length
        if stored:
            # All of it arrived, in whatever order the answers do.
            self.bytes_sent += sum(rest for rest, _ in target.sent.values())
            self.rows[index].unclean |= bool(target.sent)
            self._settle(peer_id, target)
            self._store(index, target)
        elif not target.sent and not target.unsent:
            # All was answered and yet it is not complete there: the node started over.
            window.set_aside(now)  # else a broken one would be sent it without end
            self.plan_again(peer_id, self.rows[index])
        return True

    def is_on_the_way(self, peer_id: str, index: int, attempt: int) -> bool:
        target = self.rows[index].targets.get(peer_id)
        return target is not None and target.attempt == attempt and target.copy in _ON_THE_WAY

    def _target(self, peer_id: str, index: int, attempt: int, copy: Copy) -> Target | None:
        target = self.rows[index].targets.get(peer_id)
        if target is None or target.attempt != attempt or target.copy is not copy:
            return None
        return target

    def _store(self, index: int, target: Target) -> None:
        target.copy = Copy.STORED
        if self.is_done(self.rows[index]):
            self.done.add(index)

    # -- taking back ----------------------------------------------------------------

    def void(self, peer_id: str) -> None:
        """What is on its way to the peer will not be answered."""
        for index in sorted(self.active):
            chunk = self.rows[index]
            target = chunk.targets.get(peer_id)
            if target is not None and target.copy in _ON_THE_WAY:
                self.withdraw(peer_id, index)
                self.plan_again(peer_id, chunk)

    def plan_again(self, peer_id: str, chunk: Chunk) -> None:
        """The copy is still to be made there, unless the peer has refused meanwhile."""
        chunk.targets[peer_id] = Target()
        self.places_changed = True

    def withdraw(self, peer_id: str, index: int) -> None:
        """It is not to be made there."""
        chunk = self.rows[index]
        target = chunk.targets.pop(peer_id)
        chunk.unclean = chunk.unclean or bool(target.sent)
        if target.sent and not target.unsent:  # it may be stored there all the same
            self._unanswered[peer_id, index] = sum(length for length, _ in target.sent.values())
        self._settle(peer_id, target)

    def _settle(self, peer_id: str, target: Target) -> None:
        self.window(peer_id).taken_back(sum(length for length, _ in target.sent.values()))
        target.sent, target.unsent = {}, []

    def doubt(self, indexes: Collection[int]) -> None:
        """Stored copies of these are offered again."""
        for index in indexes:
            targets = self.rows[index].targets
            targets |= {p: Target() for p, t in targets.items() if t.copy is Copy.STORED}

    def give_up(self, peer_id: str) -> None:
        """It takes nothing, and what it has does not count."""
        self.refused.add(peer_id)
        for chunk in self.rows:
            chunk.targets.pop(peer_id, None)

    def recount(self) -> None:
        """Peers or places changed."""
        self.done = {i for i, chunk in enumerate(self.rows) if self.is_done(chunk)}
        self.places_changed = True
