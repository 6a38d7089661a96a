"""What a node sends, and what it takes in: fairness and budgets. Pure.

`Outgoing` decides which block to read and send next: one budget of bytes for all
receivers together, requests waiting as ranges. `Incoming` decides which offered chunk may
be sent to us: a chunk is admitted only with memory for all of it. In both whoever has the
least of the budget comes next, so that members have equal shares while all ask
(`limits/memory_shares.py`); the connections of one member take turns.

What may not happen here: more bytes on their way than the budget, but for what others keep
without progress, or beyond their share (or for one block, when nothing else is, or the few
chunks that any budget holds); a connection or a member that starves another; a reservation
that outlives its connection and its deadline; messages that settle nothing taken for progress.
This file is long because both directions take turns by the same rules, and change together.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from zchunk.content.manifest import MAX_STORED_SIZE
from zchunk.errors import Busy
from zchunk.limits.memory_shares import CHUNKS_AT_ONCE, Held, Stillness, Uses, Who
from zchunk.system.disk import ALIGNMENT

#: Bytes of one block. All requests of one member are to fit what others may be waiting for.
MAX_BLOCK = 16 * 1024**2
#: Requests of a connection that may wait, or be read from the disk.
MAX_WAITING = 1024
#: Chunks that a connection may offer and not yet have sent.
MAX_OFFERS = 4096
#: Chunks of a member that it may be sending at a time, however small.
MAX_ADMITTED = 256
#: Offers of one chunk that are answered, the latest: those before were given up.
MAX_ASKS = 8
#: The most memory that one chunk takes: whole pages.
_LARGEST = -(-MAX_STORED_SIZE // ALIGNMENT) * ALIGNMENT
#: Blocks of a chunk: the largest chunk in the smallest blocks, and some.
MAX_BLOCKS = 20_000


class _Told:
    """Who was told to hold a pool: once, until it moves."""

    def __init__(self) -> None:
        self._members: set[Who] = set()

    def news(self, holders: Iterable[tuple[Who, int, float]], share: int) -> list[Held]:
        """`holders`: (member, bytes, since when) of what is held now, one after the other."""
        found: dict[Who, Held] = {}
        for who, size, since in holders:
            known = found.get(who)
            found[who] = Held(
                who, size + (known.size if known else 0), min(since, known.since if known else since)
            )
        # Less than half a share keeps nobody waiting.
        much = {who: held for who, held in found.items() if 2 * held.size >= share}
        news = [held for who, held in much.items() if who not in self._members]
        self._members = set(much)
        return news


@dataclass(frozen=True, slots=True)
class BlockWanted:
    connection: bytes
    request_id: int
    sha256: bytes
    offset: int
    length: int


@dataclass(slots=True)
class _Receiver:
    who: Who
    #: what it had settled before we began to count
    base: int
    still: Stillness
    waiting: deque[BlockWanted] = field(default_factory=deque)
    #: how many blocks are being read for it, and their bytes
    reading: int = 0
    reading_bytes: int = 0
    #: payload bytes being read for this connection, or handed to it, and how many of them it
    #: said are settled
    sent: int = 0
    acknowledged: int = 0
    #: it takes no more until its next request
    parked: bool = False

    @property
    def on_the_way(self) -> int:
        return self.sent - self.acknowledged

    @property
    def owes(self) -> bool:
        """Whether it is its turn: what is being read is ours."""
        return self.parked or self.on_the_way > self.reading_bytes

    def has_read(self, length: int) -> None:
        self.reading = max(0, self.reading - 1)
        self.reading_bytes = max(0, self.reading_bytes - length)

    def takes_back(self, length: int) -> int:
        """What was read for it was not handed over; returns how many bytes less are on the way."""
        before = self.on_the_way
        self.has_read(length)
        self.sent -= length
        self.acknowledged = min(self.acknowledged, self.sent)  # it may have claimed too much
        return before - self.on_the_way


class Outgoing:
    def __init__(self, budget: int) -> None:
        """`budget`: bytes read or on their way to all receivers together."""
        self._uses = Uses(budget, spare=max(budget, MAX_BLOCK))
        self._receivers: dict[bytes, _Receiver] = {}
        #: member -> its connections with waiting requests; both in the order of their turns
        self._turns: dict[Who, deque[bytes]] = {}
        self._told = _Told()

    @property
    def on_the_way(self) -> int:
        return self._uses.total

    def request(self, wanted: BlockWanted, who: Who, received: int, now: float) -> None:
        """A block is wanted; `received` is what this connection has settled in total.

        Raises Busy when too many of its requests wait.
        """
        receiver = self._receivers.get(wanted.connection)
        if receiver is None:
            receiver = _Receiver(who, received, Stillness(now))
            self._receivers[wanted.connection] = receiver
            self._uses.join(who)
        self._acknowledge(receiver, received, now)
        if len(receiver.waiting) + receiver.reading >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} of your requests are waiting here; try again later")
        receiver.waiting.append(wanted)
        receiver.parked = False
        turns = self._turns.setdefault(receiver.who, deque())
        if wanted.connection not in turns:
            turns.append(wanted.connection)

    def acknowledge(self, connection: bytes, received: int, now: float) -> None:
        receiver = self._receivers.get(connection)
        if receiver is not None:
            self._acknowledge(receiver, received, now)
            self._forget_if_idle(connection, receiver)

    def next(self) -> list[BlockWanted]:
        """Blocks to read and send now, within the budget: of who has the least on the way."""
        wanted: list[BlockWanted] = []
        while self._turns:
            who = self._uses.least(self._turns)
            receiver = self._receivers[self._turns[who][0]]
            block = receiver.waiting[0]
            if not self._uses.fits(who, block.length, self._stuck):
                break  # nobody goes past the one who has the least
            self._take_turn(who, receiver)
            receiver.sent += block.length
            receiver.reading += 1
            receiver.reading_bytes += block.length
            self._uses.take(who, block.length)
            wanted.append(block)
        return wanted

    def _take_turn(self, who: Who, receiver: _Receiver) -> None:
        """Its first request goes; it is the last of its member's connections then, and that one
        of the members."""
        turns = self._turns.pop(who)
        receiver.waiting.popleft()
        connection = turns.popleft()
        if receiver.waiting:
            turns.append(connection)
        if turns:
            self._turns[who] = turns

    def member(self, wanted: BlockWanted) -> Who:
        """Whose turn it took."""
        return self._receivers[wanted.connection].who

    def sent(self, wanted: BlockWanted, now: float) -> None:
        """It was read and handed over."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            if not receiver.owes:
                receiver.still.moved(now)
            receiver.has_read(wanted.length)
            self._forget_if_idle(wanted.connection, receiver)

    def not_sent(self, wanted: BlockWanted) -> None:
        """It could not be read or handed over: its bytes are not on their way."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            self._uses.give_back(receiver.who, receiver.takes_back(wanted.length))
            self._forget_if_idle(wanted.connection, receiver)

    def park(self, wanted: BlockWanted, now: float) -> None:
        """The connection takes no more for now: its requests wait for its next one."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            if not receiver.owes:
                receiver.still.moved(now)
            self._uses.give_back(receiver.who, receiver.takes_back(wanted.length))
            receiver.waiting.appendleft(wanted)
            receiver.parked = True
            self._no_turn(wanted.connection, receiver)

    def gone(self, connection: bytes) -> None:
        """The connection ended: its budget is free, its requests are void."""
        receiver = self._receivers.pop(connection, None)
        if receiver is not None:
            self._no_turn(connection, receiver)
            self._uses.give_back(receiver.who, receiver.on_the_way)
            self._uses.leave(receiver.who)

    def waits_for_others(self, connection: bytes) -> bool:
        """Whether its requests wait for memory that other members have."""
        receiver = self._receivers.get(connection)
        if receiver is None or connection not in self._turns.get(receiver.who, ()):
            return False
        return self._uses.others_have(receiver.who)

    def on_time(self, now: float) -> list[bytes]:
        """Receivers that settled nothing for too long; the caller ends their connections and calls
        `gone`."""
        owing = {c: r for c, r in self._receivers.items() if r.owes}
        for receiver in owing.values():
            receiver.still.look(now)
        return [c for c, r in owing.items() if r.still.is_over(bool(self._turns), now)]

    def held(self) -> list[Held]:
        """Members that keep much of the budget without progress while others use it, as of
        the last `on_time`; each once."""
        if self._uses.members < 2:
            return []
        holding = (r for r in self._receivers.values() if r.owes and r.still.is_held)
        return self._told.news(((r.who, r.on_the_way, r.still.since) for r in holding), self._uses.share)

    def deadline(self) -> float | None:
        waited_for = bool(self._turns)
        owing = (r for r in self._receivers.values() if r.owes)
        return min((r.still.deadline(waited_for) for r in owing), default=None)

    def _stuck(self) -> Iterable[tuple[Who, int]]:
        receivers = self._receivers.values()
        return ((r.who, r.on_the_way) for r in receivers if r.still.is_stuck and r.owes)

    def _no_turn(self, connection: bytes, receiver: _Receiver) -> None:
        turns = self._turns.get(receiver.who, deque())
        if connection in turns:
            turns.remove(connection)
            if not turns:
                del self._turns[receiver.who]

    def _acknowledge(self, receiver: _Receiver, received: int, now: float) -> None:
        # A number of an earlier connection: this one counts from less.
        receiver.base = min(receiver.base, received)
        # Never more than was sent: a receiver that claims so would free others' budget.
        settled = min(received - receiver.base, receiver.sent)
        if settled > receiver.acknowledged:
            self._uses.give_back(receiver.who, settled - receiver.acknowledged)
            receiver.acknowledged = settled
            receiver.still.moved(now)

    def _forget_if_idle(self, connection: bytes, receiver: _Receiver) -> None:
        if not receiver.waiting and not receiver.reading and receiver.sent == receiver.acknowledged:
            self.gone(connection)


ChunkKey = tuple[str, bytes]  # (upload id, sha256)


@dataclass(slots=True)
class Admission:
    """One chunk being offered or received. `asks` are the offers to answer on admission."""

    key: ChunkKey
    size: int
    blake3: bytes
    who: Who
    connection: bytes
    #: since its offer was answered, or its last block that was new
    still: Stillness
    asks: list[int] = field(default_factory=list)
    #: the latest offer: a copy of it is no new one
    last_ask: int = 0
    admitted: bool = False
    complete: bool = False
    #: offset -> length of blocks that arrived; their offsets, ascending; their bytes
    blocks: dict[int, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    received: int = 0

    def start_over(self) -> None:
        self.blocks.clear()
        self.starts.clear()
        self.received = 0

    def take(self, offset: int, length: int) -> None:
        """A block that overlaps none, or the same once more."""
        if offset not in self.blocks:
            insort(self.starts, offset)
            self.received += length
        self.blocks[offset] = length

    @property
    def is_sending(self) -> bool:
        """Whether it is its sender's turn. One that waits for memory waits for us."""
        return self.admitted and not self.asks and not self.complete

    @property
    def cost(self) -> int:
        """Bytes of memory it takes: whole pages."""
        return -(-self.size // ALIGNMENT) * ALIGNMENT


class Incoming:
    def __init__(self, budget: int) -> None:
        """`budget`: bytes of chunks admitted and not yet stored."""
        self.budget = budget
        # What somebody keeps may be one chunk of the largest size.
        self._spare = max(budget, _LARGEST)
        self._uses = Uses(budget, self._spare)
        self._admissions: dict[ChunkKey, Admission] = {}
        #: those that have memory
        self._admitted: dict[ChunkKey, Admission] = {}
        #: member -> how many those are
        self._number: Counter[Who] = Counter()
        #: member -> its chunks that wait for memory; members in the order of their turns
        self._queues: dict[Who, deque[ChunkKey]] = {}
        #: connection -> how many chunks it offered
        self._offered: Counter[bytes] = Counter()
        self._told = _Told()

    @property
    def most(self) -> int:
        """Bytes that may be admitted at any moment."""
        return max(self.budget + self._spare, (CHUNKS_AT_ONCE + 1) * _LARGEST)

    @property
    def reserved(self) -> int:
        return self._uses.total

    def get(self, key: ChunkKey) -> Admission | None:
        return self._admissions.get(key)

    def offer(
        self,
        key: ChunkKey,
        size: int,
        blake3: bytes,
        who: Who,
        connection: bytes,
        request_id: int,
        now: float,
    ) -> Admission | None:
        """A chunk is offered; returns it when its offer can be answered at once, else it
        waits for `admit_more`. A repeated offer starts the chunk over, and is no progress. Raises
        Busy (retryable) when the connection has offered too many others."""
        known = self._admissions.get(key)
        if (known is None or known.connection != connection) and self._offered[connection] >= MAX_OFFERS:
            raise Busy(f"{MAX_OFFERS} chunks that you offered are not sent yet; try again later")
        if known is not None and known.admitted and not known.complete:
            if (known.connection, known.last_ask) != (connection, request_id):
                known.start_over()
            self._passes_to(known, who, connection)
            known.last_ask = request_id
            return known
        if known is None:
            known = Admission(key, size, blake3, who, connection, Stillness(now))
            self._admissions[key] = known
            self._queues.setdefault(who, deque()).append(key)
            self._offered[connection] += 1
            self._uses.join(who)
        self._passes_to(known, who, connection)
        known.last_ask = request_id
        known.asks = [*known.asks, request_id][-MAX_ASKS:]
        return None

    def _passes_to(self, chunk: Admission, who: Who, connection: bytes) -> None:
        self._one_less(chunk.connection)
        self._offered[connection] += 1
        chunk.connection = connection
        if who != chunk.who:
            self._passes_to_member(chunk, who)

    def _passes_to_member(self, chunk: Admission, who: Who) -> None:
        if chunk.admitted:
            self._no_memory(chunk)
        else:
            self._leaves_queue(chunk)
        self._uses.leave(chunk.who)
        chunk.who = who
        self._uses.join(who)
        if chunk.admitted:
            self._has_memory(chunk)
        else:
            self._queues.setdefault(who, deque()).append(chunk.key)

    def _has_memory(self, chunk: Admission) -> None:
        self._admitted[chunk.key] = chunk
        self._number[chunk.who] += 1
        self._uses.take(chunk.who, chunk.cost)

    def _no_memory(self, chunk: Admission) -> None:
        del self._admitted[chunk.key]
        self._number -= Counter([chunk.who])
        self._uses.give_back(chunk.who, chunk.cost)

    def _one_less(self, connection: bytes) -> None:
        self._offered[connection] -= 1
        if not self._offered[connection]:
            del self._offered[connection]

    def _leaves_queue(self, chunk: Admission) -> None:
        queue = self._queues[chunk.who]
        queue.remove(chunk.key)
        if not queue:
            del self._queues[chunk.who]

    def admit_more(self) -> list[Admission]:
        """Chunks that may be sent now: of who has the least admitted, in the order of its offers."""
        admitted: list[Admission] = []
        while ready := [who for who in self._queues if self._number[who] < MAX_ADMITTED]:
            who = self._uses.least(ready)
            chunk = self._admissions[self._queues[who][0]]
            if not self._fits(chunk):
                break  # nobody goes past the one who has the least
            self._leaves_queue(chunk)
            if who in self._queues:  # the others come first
                self._queues[who] = self._queues.pop(who)
            chunk.admitted = True
            self._has_memory(chunk)
            admitted.append(chunk)
        return admitted

    def _fits(self, chunk: Admission) -> bool:
        """Within the budget, or among the first few; or one more than these, for what others hold."""
        beyond = len(self._admitted) - CHUNKS_AT_ONCE
        if beyond < 0 or self._uses.fits(chunk.who, chunk.cost, self._stuck):
            return True
        fair = -(-CHUNKS_AT_ONCE // self._uses.members) * chunk.cost
        return not beyond and self._uses.excess(chunk.who, fair, self._stuck()) >= chunk.cost

    def answered(self, chunk: Admission, now: float) -> list[int]:
        """The requests to answer, now that its space is known: from now on it is its sender's turn."""
        asks, chunk.asks = chunk.asks, []
        chunk.still.moved(now)
        return asks

    def block(self, key: ChunkKey, offset: int, length: int, connection: bytes, now: float) -> bool:
        """A block arrived; False when it is no part of an admitted chunk, or reaches
        beyond its end, or overlaps another, or is one of far too many."""
        chunk = self._admissions.get(key)
        if chunk is None or not chunk.admitted or chunk.complete or chunk.connection != connection:
            return False
        if offset + length > chunk.size or not length or self._overlaps(chunk, offset, length):
            return False
        if len(chunk.blocks) >= MAX_BLOCKS:
            return False
        if offset not in chunk.blocks:  # the same once more is no progress
            chunk.still.moved(now)
        chunk.take(offset, length)
        chunk.complete = chunk.received == chunk.size
        return True

    def done(self, key: ChunkKey) -> None:
        """Stored, refused or given up: its memory is free."""
        chunk = self._admissions.pop(key, None)
        if chunk is None:
            return
        self._one_less(chunk.connection)
        if chunk.admitted:
            self._no_memory(chunk)
        else:
            self._leaves_queue(chunk)
        self._uses.leave(chunk.who)

    def gone(self, connection: bytes) -> list[Admission]:
        """The connection ended: what waits for memory is void. Returns what it was sending;
        the caller frees the buffers and calls `done`."""
        queued = [key for queue in self._queues.values() for key in queue]
        for key in [key for key in queued if self._admissions[key].connection == connection]:
            self.done(key)
        return [a for a in self._sending() if a.connection == connection]

    def waits_for_others(self, connection: bytes) -> bool:
        """Whether its offers wait for memory that other members have."""
        queued = (self._admissions[key] for queue in self._queues.values() for key in queue)
        mine = next((a.who for a in queued if a.connection == connection), None)
        return mine is not None and self._uses.others_have(mine)

    def on_time(self, now: float) -> list[Admission]:
        """Chunks of which nothing new came for too long; the caller frees their buffers and
        calls `done`."""
        sending = self._sending()
        for chunk in sending:
            chunk.still.look(now)
        return [a for a in sending if a.still.is_over(bool(self._queues), now)]

    def held(self) -> list[Held]:
        """As `Outgoing.held`."""
        if self._uses.members < 2:
            return []
        holding = (a for a in self._sending() if a.still.is_held)
        return self._told.news(((a.who, a.cost, a.still.since) for a in holding), self._uses.share)

    def deadline(self) -> float | None:
        waited_for = bool(self._queues)
        return min((a.still.deadline(waited_for) for a in self._sending()), default=None)

    def _stuck(self) -> Iterable[tuple[Who, int]]:
        return ((a.who, a.cost) for a in self._sending() if a.still.is_stuck)

    def _sending(self) -> list[Admission]:
        return [a for a in self._admitted.values() if a.is_sending]

    def _overlaps(self, chunk: Admission, offset: int, length: int) -> bool:
        same = chunk.blocks.get(offset)
        if same is not None:
            return same != length  # the same block once more does no harm
        after = bisect_left(chunk.starts, offset)
        before = chunk.starts[after - 1] if after else None
        if before is not None and before + chunk.blocks[before] > offset:
            return True
        return after < len(chunk.starts) and chunk.starts[after] < offset + length
