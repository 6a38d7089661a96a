"""What a node sends, and what it takes in: fairness and budgets. Pure.

`Outgoing` decides which block to read and send next: one budget of bytes for all
receivers together, requests waiting as ranges, served round-robin over connections.
`Incoming` decides which offered chunk may be sent to us: a chunk is admitted only with
memory for all of it.

What may not happen here: more bytes on their way than the budget (but for one block,
or one chunk, when nothing else is); a connection that starves another; a reservation
that outlives its connection and its deadline.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from dataclasses import dataclass, field

from zchunk.disk import ALIGNMENT
from zchunk.errors import Busy

#: A receiver that has acknowledged nothing for so long is treated as gone.
SILENCE_S = 30.0
#: Requests of a connection that may wait, or be read from the disk.
MAX_WAITING = 1024
#: Chunks that a connection may offer and not yet have sent.
MAX_OFFERS = 4096
#: Offers of one chunk that are answered, the latest: those before were given up.
MAX_ASKS = 8
#: Blocks of a chunk: the largest chunk in the smallest blocks, and some.
MAX_BLOCKS = 20_000


@dataclass(frozen=True, slots=True)
class BlockWanted:
    connection: bytes
    request_id: int
    sha256: bytes
    offset: int
    length: int


@dataclass(slots=True)
class _Receiver:
    #: what it had settled before we began to count
    base: int
    waiting: deque[BlockWanted] = field(default_factory=deque)
    #: how many are being read for it
    reading: int = 0
    #: payload bytes handed to this connection, and how many of them it said are settled
    sent: int = 0
    acknowledged: int = 0
    last_sign: float = 0.0


class Outgoing:
    def __init__(self, budget: int) -> None:
        """`budget`: bytes read or on their way to all receivers together."""
        self._budget = budget
        self._receivers: dict[bytes, _Receiver] = {}
        #: connections with waiting requests, in the order of their turns
        self._turns: deque[bytes] = deque()

    @property
    def on_the_way(self) -> int:
        return sum(r.sent - r.acknowledged for r in self._receivers.values())

    def request(self, wanted: BlockWanted, received: int, now: float) -> None:
        """A block is wanted; `received` is what this connection has settled in total.

        Raises Busy when too many of its requests wait.
        """
        receiver = self._receivers.setdefault(wanted.connection, _Receiver(received))
        self._acknowledge(receiver, received, now)
        if len(receiver.waiting) + receiver.reading >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} of your requests wait here; ask again later")
        receiver.waiting.append(wanted)
        if wanted.connection not in self._turns:
            self._turns.append(wanted.connection)

    def acknowledge(self, connection: bytes, received: int, now: float) -> None:
        receiver = self._receivers.get(connection)
        if receiver is not None:
            self._acknowledge(receiver, received, now)
            self._forget_if_idle(connection, receiver)

    def next(self) -> list[BlockWanted]:
        """Blocks to read and send now, within the budget, one connection after another."""
        wanted: list[BlockWanted] = []
        on_the_way = self.on_the_way
        while self._turns:
            connection = self._turns[0]
            receiver = self._receivers[connection]
            block = receiver.waiting[0]
            if on_the_way and on_the_way + block.length > self._budget:
                break
            self._turns.popleft()
            receiver.waiting.popleft()
            receiver.sent += block.length
            receiver.reading += 1
            on_the_way += block.length
            wanted.append(block)
            if receiver.waiting:
                self._turns.append(connection)
        return wanted

    def sent(self, wanted: BlockWanted) -> None:
        """It was read and handed over."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            receiver.reading = max(0, receiver.reading - 1)
            self._forget_if_idle(wanted.connection, receiver)

    def not_sent(self, wanted: BlockWanted) -> None:
        """It could not be read or handed over: its bytes are not on their way."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            receiver.sent -= wanted.length
            receiver.reading = max(0, receiver.reading - 1)
            self._forget_if_idle(wanted.connection, receiver)

    def park(self, wanted: BlockWanted) -> None:
        """The connection takes no more for now: its requests wait for its next one."""
        receiver = self._receivers.get(wanted.connection)
        if receiver is not None:
            receiver.sent -= wanted.length
            receiver.reading = max(0, receiver.reading - 1)
            receiver.waiting.appendleft(wanted)
            if wanted.connection in self._turns:
                self._turns.remove(wanted.connection)

    def gone(self, connection: bytes) -> None:
        """The connection ended: its budget is free, its requests are void."""
        if self._receivers.pop(connection, None) is not None and connection in self._turns:
            self._turns.remove(connection)

    def on_time(self, now: float) -> list[bytes]:
        """Ends receivers that were silent for too long; returns their connections."""
        silent = [c for c, r in self._receivers.items() if r.last_sign + SILENCE_S <= now]
        for connection in silent:
            self.gone(connection)
        return silent

    def deadline(self) -> float | None:
        return min((r.last_sign + SILENCE_S for r in self._receivers.values()), default=None)

    def _acknowledge(self, receiver: _Receiver, received: int, now: float) -> None:
        receiver.last_sign = now
        # A number of an earlier connection: this one counts from less.
        receiver.base = min(receiver.base, received)
        # Never more than was sent: a receiver that claims so would free others' budget.
        settled = max(receiver.acknowledged, received - receiver.base)
        receiver.acknowledged = min(settled, receiver.sent)

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
    connection: bytes
    last_sign: float
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
    def cost(self) -> int:
        """Bytes of memory it takes: whole pages."""
        return -(-self.size // ALIGNMENT) * ALIGNMENT


class Incoming:
    def __init__(self, budget: int) -> None:
        """`budget`: bytes of chunks admitted and not yet stored."""
        self._budget = budget
        self._admissions: dict[ChunkKey, Admission] = {}
        self._queue: deque[ChunkKey] = deque()
        #: connection -> how many chunks it offered
        self._offered: Counter[bytes] = Counter()

    @property
    def reserved(self) -> int:
        return sum(a.cost for a in self._admissions.values() if a.admitted)

    def get(self, key: ChunkKey) -> Admission | None:
        return self._admissions.get(key)

    def offer(
        self, key: ChunkKey, size: int, blake3: bytes, connection: bytes, request_id: int, now: float
    ) -> Admission | None:
        """A chunk is offered; returns it when its offer can be answered at once, else it
        waits for `admit_more`. A repeated offer starts the chunk over. Raises Busy (retryable)
        when the connection has offered too many others."""
        known = self._admissions.get(key)
        if (known is None or known.connection != connection) and self._offered[connection] >= MAX_OFFERS:
            raise Busy(f"{MAX_OFFERS} chunks that you offered are not sent yet; offer more later")
        if known is not None and known.admitted and not known.complete:
            if (known.connection, known.last_ask) != (connection, request_id):
                known.start_over()
            self._passes_to(known, connection)
            known.last_sign, known.last_ask = now, request_id
            return known
        if known is None:
            known = Admission(key, size, blake3, connection, now)
            self._admissions[key] = known
            self._queue.append(key)
            self._offered[connection] += 1
        self._passes_to(known, connection)
        known.last_sign, known.last_ask = now, request_id
        known.asks = [*known.asks, request_id][-MAX_ASKS:]
        return None

    def _passes_to(self, chunk: Admission, connection: bytes) -> None:
        self._one_less(chunk.connection)
        chunk.connection = connection
        self._offered[connection] += 1

    def _one_less(self, connection: bytes) -> None:
        self._offered[connection] -= 1
        if not self._offered[connection]:
            del self._offered[connection]

    def admit_more(self) -> list[Admission]:
        """Chunks that may be sent now, first come first served."""
        admitted = []
        reserved = self.reserved
        while self._queue:
            chunk = self._admissions[self._queue[0]]
            if reserved and reserved + chunk.cost > self._budget:
                break
            self._queue.popleft()
            chunk.admitted = True
            reserved += chunk.cost
            admitted.append(chunk)
        return admitted

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
        chunk.last_sign = now
        chunk.take(offset, length)
        chunk.complete = chunk.received == chunk.size
        return True

    def done(self, key: ChunkKey) -> None:
        """Stored, refused or given up: its memory is free."""
        chunk = self._admissions.pop(key, None)
        if chunk is None:
            return
        self._one_less(chunk.connection)
        if not chunk.admitted:
            self._queue.remove(key)

    def gone(self, connection: bytes) -> list[Admission]:
        """The connection ended: what waits for memory is void. Returns what it was sending;
        the caller frees the buffers and calls `done`."""
        for key in [key for key in self._queue if self._admissions[key].connection == connection]:
            self.done(key)
        return [a for a in self._sending() if a.connection == connection]

    def on_time(self, now: float) -> list[Admission]:
        """Senders that were silent for too long; the caller frees their buffers and
        calls `done`."""
        return [a for a in self._sending() if a.last_sign + SILENCE_S <= now]

    def deadline(self) -> float | None:
        return min((a.last_sign + SILENCE_S for a in self._sending()), default=None)

    def _sending(self) -> list[Admission]:
        """Chunks whose sender's turn it is. One that waits for memory waits for us."""
        return [a for a in self._admissions.values() if a.admitted and not a.asks and not a.complete]

    def _overlaps(self, chunk: Admission, offset: int, length: int) -> bool:
        same = chunk.blocks.get(offset)
        if same is not None:
            return same != length  # the same block once more does no harm
        after = bisect_left(chunk.starts, offset)
        before = chunk.starts[after - 1] if after else None
        if before is not None and before + chunk.blocks[before] > offset:
            return True
        return after < len(chunk.starts) and chunk.starts[after] < offset + length
