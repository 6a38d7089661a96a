"""What each chunk of a fetch is at: its attempts, their blocks, and the memory they take. Pure.

What may not happen here: a chunk in two states, or in none; more bytes begun than the budget, but
for a single chunk; more asked of one peer than its window; a block that counts twice. All blocks of
an attempt come from one peer, so that a corrupt chunk has an author.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from zchunk.node.download.actions import Action, BeginChunk, ChunkState, DropChunk, RequestBlock, VerifyChunk
from zchunk.node.download.sources import Sources


@dataclass(slots=True)
class Fetch:
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
class Chunk:
    size: int
    state: ChunkState = ChunkState.WANTED
    #: attempts so far: an answer to one that is not among `fetches` is late
    attempts: int = 0
    #: in flight: one attempt, or two where one is a hedge; then the one that was complete
    #: first, until the chunk is held
    fetches: list[Fetch] = field(default_factory=list)
    #: who sent it, once it is held
    source: str = ""

    def fetch(self, attempt: int) -> Fetch | None:
        """The attempt of that number, if it still counts."""
        if self.state is not ChunkState.IN_FLIGHT:
            return None
        for fetch in self.fetches:
            if fetch.attempt == attempt:
                return fetch
        return None


class Chunks:
    def __init__(self, sizes: Sequence[int], budget: int, sources: Sources) -> None:
        """`sizes`: stored bytes per chunk. `budget`: bytes of those that may be begun."""
        self.rows = [Chunk(size) for size in sizes]
        self.largest = max(sizes, default=0)
        #: the chunks in that state: few of many, where a reader wants some of a large file
        self.wanted = set(range(len(sizes)))
        #: in flight, being checked or written
        self.in_work: set[int] = set()
        self.held = 0
        self.begun_bytes = 0
        self._budget = budget
        self._sources = sources

    def fits(self, size: int) -> bool:
        """Whether there is memory for one more of that size."""
        return not self.begun_bytes or self.begun_bytes + size <= self._budget

    # -- attempts -------------------------------------------------------------------

    def begin(self, index: int, peer_id: str, now: float) -> Action:
        """A first attempt, or a hedge."""
        chunk = self.rows[index]
        chunk.state = ChunkState.IN_FLIGHT
        self.wanted.discard(index)
        chunk.attempts += 1
        chunk.fetches.append(Fetch(peer_id, chunk.attempts, now, chunk.size))
        self._sources.peers[peer_id].begun += 1
        self.begun_bytes += chunk.size
        self.in_work.add(index)
        return BeginChunk(index, chunk.attempts)

    def ask_blocks(self, now: float) -> list[Action]:
        """As many as the peers' windows take, in the file's order."""
        actions: list[Action] = []
        peers = self._sources.peers
        for index in sorted(self.in_work):
            chunk = self.rows[index]
            if chunk.state is not ChunkState.IN_FLIGHT:
                continue
            for fetch in chunk.fetches:
                window = peers[fetch.peer_id].window
                while (length := fetch.next_length(window.block)) and window.takes(length):
                    offset = fetch.begun
                    fetch.begun += length
                    fetch.asked[offset] = (length, now)
                    window.sent(length, now)
                    actions.append(RequestBlock(fetch.peer_id, index, fetch.attempt, offset, length))
        return actions

    def awaits(self, index: int, attempt: int, offset: int, length: int) -> Fetch | None:
        """The attempt that such a block is an answer of, if it still counts."""
        fetch = self.rows[index].fetch(attempt)
        asked = fetch.asked.get(offset) if fetch is not None else None
        return fetch if asked is not None and asked[0] == length else None

    def arrived(self, fetch: Fetch, offset: int, now: float) -> None:
        """A block that it `awaits`."""
        length, asked_at = fetch.asked.pop(offset)
        self._sources.peers[fetch.peer_id].window.answered(length, now - asked_at, now)

    def complete(self, index: int, fetch: Fetch, now: float) -> list[Action]:
        """All its blocks are here: it is checked, a second attempt is dropped."""
        chunk, peer = self.rows[index], self._sources.peers[fetch.peer_id]
        actions: list[Action] = []
        for other in [other for other in chunk.fetches if other is not fetch]:
            actions += self.give_up(index, other)
        chunk.state = ChunkState.VERIFYING
        peer.begun -= 1
        peer.took.append(now - fetch.begun_at)
        return [*actions, VerifyChunk(index, fetch.attempt)]

    # -- taking back ----------------------------------------------------------------

    def take_back(self, peer_id: str) -> list[Action]:
        """What was asked of this peer is wanted again."""
        return self._give_up_fetches(lambda fetch: fetch.peer_id == peer_id)

    def take_back_all(self) -> list[Action]:
        return self._give_up_fetches(lambda fetch: True)

    def _give_up_fetches(self, which: Callable[[Fetch], bool]) -> list[Action]:
        """Those in flight. What is being checked or written goes on: threads are at its buffer."""
        actions: list[Action] = []
        for index in sorted(self.in_work):
            chunk = self.rows[index]
            if chunk.state is ChunkState.IN_FLIGHT:
                for fetch in [fetch for fetch in chunk.fetches if which(fetch)]:
                    actions += self.give_up(index, fetch)
        return actions

    def give_up(self, index: int, fetch: Fetch) -> list[Action]:
        """The attempt ends; its buffer goes back. Without another the chunk is wanted again."""
        chunk, peer = self.rows[index], self._sources.peers[fetch.peer_id]
        if chunk.state is ChunkState.IN_FLIGHT:
            peer.window.taken_back(sum(length for length, _ in fetch.asked.values()))
            peer.begun -= 1
        chunk.fetches.remove(fetch)
        self.begun_bytes -= chunk.size
        if not chunk.fetches:
            chunk.state = ChunkState.WANTED
            self.wanted.add(index)
            self.in_work.discard(index)
        return [DropChunk(index, fetch.attempt)]

    # -- here, or not ---------------------------------------------------------------

    def hold(self, index: int, kept: bool) -> None:
        """It was written. `kept`: its memory counts until `free`."""
        chunk = self.rows[index]
        chunk.source = chunk.fetches.pop().peer_id
        self._sources.peers[chunk.source].completed += 1
        chunk.state = ChunkState.HELD
        self.in_work.discard(index)
        self.held += 1
        if not kept:
            self.begun_bytes -= chunk.size

    def free(self, index: int) -> None:
        self.begun_bytes -= self.rows[index].size

    def have(self, indexes: Collection[int]) -> None:
        """These wanted ones need not be fetched: they count as held."""
        for index in self.wanted.intersection(indexes):
            self.rows[index].state = ChunkState.HELD
            self.wanted.discard(index)
            self.held += 1

    def want(self, indexes: Collection[int]) -> None:
        """Held ones are to be fetched, again perhaps."""
        for index in indexes:
            chunk = self.rows[index]
            if chunk.state is ChunkState.HELD:
                if chunk.source:
                    self._sources.peers[chunk.source].completed -= 1
                chunk.state, chunk.source = ChunkState.WANTED, ""
                self.wanted.add(index)
                self.held -= 1

    def unwant(self, indexes: Collection[int]) -> list[Action]:
        """What is in flight of these is dropped; what is being checked goes on, and is written."""
        actions: list[Action] = []
        for index in indexes:
            chunk = self.rows[index]
            if chunk.state is ChunkState.IN_FLIGHT:
                for fetch in list(chunk.fetches):
                    actions += self.give_up(index, fetch)
        self.have(indexes)
        return actions
