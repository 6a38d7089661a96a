"""The chunk service: answers other nodes' and clients' requests on the node's ROUTER.

Who is served next, and whose chunk is admitted, is `scheduler.py`'s decision; the chunks
are `store/chunk_store.py`'s. What may not happen here: a `stored` for a chunk that is not
verified and durable; memory for a chunk that was not admitted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from zchunk.content.manifest import MAX_STORED_SIZE
from zchunk.errors import (
    Busy,
    MalformedMessage,
    NoSpace,
    NotFound,
    StorageUnavailable,
    UnknownMessage,
    Unreadable,
    ZchunkError,
)
from zchunk.limits.admission import Outstanding, Ticket
from zchunk.limits.memory_shares import Held, Who
from zchunk.limits.misuse import Misuse
from zchunk.limits.rate_limit import RateLimit
from zchunk.limits.refusal_log import RefusalLog
from zchunk.node.serving.scheduler import (
    MAX_BLOCK,
    MAX_OFFERS,
    Admission,
    BlockWanted,
    ChunkKey,
    Incoming,
    Outgoing,
)
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.protocol import wire
from zchunk.protocol.messages import (
    Acknowledge,
    Acknowledged,
    Block,
    BlockTaken,
    Conclude,
    GetBlock,
    Message,
    Offer,
    Offered,
    Ok,
    PutBlock,
    PutManifest,
)
from zchunk.runtime import log_ids
from zchunk.runtime.disconnects import Disconnects
from zchunk.runtime.loop import FairWorkers, Loop, Workers, contained
from zchunk.system.buffers import Buffer, BufferPool, LoanPool
from zchunk.transport.base import Arrival, BoundSocket, Delivery, Received, Suspects

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Told of each chunk that became durable here: (upload id, sha256).
OnStored = Callable[[str, bytes], None]
#: Verifies and stores: (sha256, blake3, bytes, upload id, bytes of space reserved for it); see
#: `DistributedChunkManager`.
ReceiveChunk = Callable[[bytes, bytes, memoryview, str, int], None]
#: Told who keeps much of the memory for "downloads" or for "uploads" without progress.
OnHeld = Callable[["HeldMemory"], None]
#: Of one who keeps it again and again it is told so often.
_TOLD_S = 60.0


@dataclass(frozen=True, slots=True)
class HeldMemory:
    """`member`: its peer id, in plain transport its address. Of a budget of `budget` bytes it keeps
    `size`, and has settled nothing for `seconds`, while others use that memory too."""

    member: str
    purpose: str
    size: int
    budget: int
    seconds: float


def admitted(receive_budget: int) -> int:
    """Bytes of chunks that senders may have on the way to a node."""
    return receive_budget // 2


class ChunkServer:
    def __init__(
        self,
        *,
        loop: Loop,
        router: BoundSocket,
        store: ChunkStore,
        receive_chunk: ReceiveChunk,
        reading: Workers,
        storing: Workers,
        admitting: Workers,
        send_budget: int,
        receive_budget: int,
        threads: int,
        on_stored: OnStored,
        on_unreadable: Callable[[bytes], None],
        on_held: OnHeld = lambda held: None,
    ) -> None:
        """`threads`: those of `reading`, and of `storing`; `admitting` does what takes a moment, and
        nobody is to wait for a disk with. `on_unreadable` is told of a chunk that
        the store holds and cannot read."""
        #: raises NotAllowed for who may not have chunks from here; plain transport asks nobody
        self.check_sender: Callable[[Received], None] = lambda received: None
        self._loop = loop
        self._router = router
        self._store = store
        self._receive_chunk = receive_chunk
        # A thread that ends its work finds the next one there; of long ones not more than one.
        self._reading = FairWorkers(reading, 2 * threads)
        self._storing = FairWorkers(storing, threads + 1)
        self._admitting = admitting
        self._on_stored = on_stored
        self._on_unreadable = on_unreadable
        self._on_held = on_held
        self._held_told = RateLimit(1, 1 / _TOLD_S)
        self._send_budget = send_budget
        self._outgoing = Outgoing(send_budget)
        self._blocks = LoanPool(send_budget)
        # A byte that comes in may lie in its socket and in its chunk's buffer at one time:
        # a sender sends all it was admitted for, however busy this loop is.
        self._incoming = Incoming(admitted(receive_budget))
        self._pool = BufferPool(self._incoming.most, keep=admitted(receive_budget))
        self._buffers: dict[ChunkKey, Buffer] = {}
        self._refusals = RefusalLog()
        self._misuse = Misuse()
        self._outstanding = Outstanding(MAX_OFFERS)
        #: whose request is being handled: the member where it is proven, else the connection
        self._asker: Who = b""
        #: the same for what members have equal shares of: in plain transport those of an address
        self._member: Who = b""
        #: payload bytes sent and stored since the start
        self.bytes_moved = 0
        self._handlers: dict[type[Message], Callable[[bytes, int, Any], None]] = {
            GetBlock: self._get_block,
            Acknowledge: self._acknowledge,
            Offer: self._offer,
            PutBlock: self._put_block,
            PutManifest: self._put_manifest,
            Conclude: self._conclude,
        }
        self._disconnects = Disconnects(loop, router, self._gone)
        loop.add_socket(router, self._on_message)
        loop.add_timed(self)

    @property
    def refused(self) -> int:
        """Requests that could not be read, or were answered with an error."""
        return self._refusals.count

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        times = [self._outgoing.deadline(), self._incoming.deadline()]
        return min((t for t in times if t is not None), default=None)

    def on_time(self, now: float) -> None:
        for connection in self._outgoing.on_time(now):
            log.info(
                "a receiver does not take what it asked for; closing its connection %s", connection.hex()
            )
            self._router.end_connection(connection)  # only so is what waits in its socket free
            self._outgoing.gone(connection)
        for chunk in self._incoming.on_time(now):
            log.info("a sender does not respond; giving up chunk %s", chunk.key[1].hex()[:12])
            self._give_up(chunk)
        self._pump()
        self._admit()
        self._report_held(now)

    def _report_held(self, now: float) -> None:
        for held in self._outgoing.held():
            self._report_one(held, "downloads", self._send_budget, now)
        for held in self._incoming.held():
            self._report_one(held, "uploads", self._incoming.budget, now)

    def _report_one(self, held: Held, purpose: str, budget: int, now: float) -> None:
        member = held.who if isinstance(held.who, str) else held.who.hex()
        if self._held_told.take(f"{purpose} {member}", now):
            seconds = round(now - held.since, 1)
            self._on_held(HeldMemory(member, purpose, held.size, budget, seconds))

    # -- dispatch -------------------------------------------------------------------

    def _on_message(self, received: Arrival) -> None:
        if isinstance(received, Suspects):
            self._disconnects.suspect(received.connections)
        if not isinstance(received, Received):
            return
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
        except ZchunkError as error:
            self._refuse_sender(received, error.details.get("request_id"), error)
            return
        before = log_ids.begin((envelope.request_id, received.peer_id or received.address))
        try:
            self._handle(received, envelope)
        finally:
            log_ids.end(before)

    def _handle(self, received: Received, envelope: wire.Envelope) -> None:
        request_id = envelope.request_id
        try:
            handler = self._handlers.get(type(envelope.message))
            self.check_sender(received)
            if handler is None:
                raise UnknownMessage(f"a node does not answer {envelope.message.TYPE!r}")
            self._asker = received.peer_id or received.connection
            self._member = received.peer_id or received.address or received.connection
            handler(received.connection, request_id, envelope.message)
        except ZchunkError as error:
            request_id = error.details.get("request_id", request_id)
            self._refuse_sender(received, request_id, error)

    def _reply(self, connection: bytes, request_id: int, message: Message) -> Delivery:
        delivery = self._router.send(wire.encode(message, request_id), connection)
        if delivery is Delivery.GONE:
            self._gone(connection)
        return delivery

    def _gone(self, connection: bytes) -> None:
        """What it was sent is lost, what it was sending does not come: all that is free again."""
        self._outgoing.gone(connection)
        for chunk in self._incoming.gone(connection):
            self._give_up(chunk)
        self._pump()
        self._admit()

    def _refuse_sender(self, received: Received, request_id: int | None, error: ZchunkError) -> None:
        peer_id = received.peer_id
        if peer_id is not None and self._misuse.is_too_much(error, peer_id, self._now()):
            self._count(error, received.address)
            self._router.end(peer_id)
        elif request_id is not None:
            self._refuse(received.connection, request_id, error, received.address)
        else:
            self._count(error, received.address)

    def _refuse(
        self, connection: bytes, request_id: int, error: ZchunkError, address: str | None = None
    ) -> None:
        self._count(error, address)
        # A requester that is gone needs no answer; a full one runs into its deadline.
        self._reply(connection, request_id, wire.error_reply(error))

    def _count(self, error: ZchunkError, address: str | None) -> None:
        self._refusals.log(error, address, self._now(), log.info)

    def _now(self) -> float:
        return self._loop.clock.monotonic()

    # -- sending --------------------------------------------------------------------

    def _get_block(self, connection: bytes, request_id: int, ask: GetBlock) -> None:
        if not self._store.has(ask.sha256):
            raise NotFound(f"chunk {ask.sha256.hex()[:12]} is not held here")
        if ask.length > MAX_BLOCK:
            raise MalformedMessage(f"a block of {ask.length} bytes is more than the limit of {MAX_BLOCK}")
        wanted = BlockWanted(connection, request_id, ask.sha256, ask.offset, ask.length)
        now = self._now()
        self._outgoing.request(wanted, self._member, ask.received, now)
        self._pump()
        self._report_held(now)

    def _acknowledge(self, connection: bytes, request_id: int, ask: Acknowledge) -> None:
        self._outgoing.acknowledge(connection, ask.received, self._now())
        self._pump()
        waits = (self._outgoing, self._incoming)
        busy = any(pool.waits_for_others(connection) for pool in waits)
        self._reply(connection, request_id, Acknowledged(busy=busy))

    def _pump(self) -> None:
        for wanted in self._outgoing.next():
            read = partial(
                self._store.read_block, wanted.sha256, wanted.offset, wanted.length, self._blocks.lend
            )
            self._reading.submit(
                self._outgoing.member(wanted), contained(read), partial(self._send_block, wanted)
            )

    def _send_block(self, wanted: BlockWanted, data: memoryview | None, error: ZchunkError | None) -> None:
        if error is not None:
            self._outgoing.not_sent(wanted)
            if isinstance(error, Unreadable):
                self._on_unreadable(wanted.sha256)
            self._refuse(wanted.connection, wanted.request_id, error)
        else:
            delivery = self._reply(wanted.connection, wanted.request_id, Block(data=data))
            if delivery is Delivery.FULL:
                self._outgoing.park(wanted, self._now())
            elif delivery is Delivery.SENT:
                self._outgoing.sent(wanted, self._now())
                self.bytes_moved += wanted.length
        self._pump()

    # -- taking in ------------------------------------------------------------------

    def _offer(self, connection: bytes, request_id: int, offer: Offer) -> None:
        if offer.size > MAX_STORED_SIZE:
            raise MalformedMessage(f"a chunk of {offer.size} bytes is too large")
        if self._store.has(offer.sha256):
            self._take_lease(connection, request_id, offer)
        else:
            self._take_in(connection, request_id, offer, self._member)

    def _take_in(self, connection: bytes, request_id: int, offer: Offer, member: Who) -> None:
        """It is to be sent, when its turn comes."""
        key = (offer.upload_id, offer.sha256)
        now = self._now()
        known = self._incoming.offer(key, offer.size, offer.blake3, member, connection, request_id, now)
        if known is not None:
            self._reply(connection, request_id, Offered(have=False))
        self._admit()
        self._report_held(now)

    def _take_lease(self, connection: bytes, request_id: int, offer: Offer) -> None:
        """The copy counts for this upload, so it is read again: a "have" from the index alone
        would publish a file on what a disk has lost (SPEC U5)."""
        now_wall, member = self._loop.clock.wall(), self._member
        ticket = self._outstanding.begin(self._asker, 0)

        def work() -> bool:
            # Leased first: what is being looked at is not freed meanwhile.
            self._store.lease(offer.sha256, offer.upload_id, now_wall)
            return self._store.verify(offer.sha256)

        def done(whole: bool | None, error: ZchunkError | None) -> None:
            self._outstanding.end(ticket)
            if isinstance(error, Unreadable):
                self._on_unreadable(offer.sha256)
                self._take_anew(connection, request_id, offer, member)
                return
            if error is None and not whole:
                self._on_unreadable(offer.sha256)
                error = Busy("this node's copy of the chunk is damaged and was set aside; offer it again")
            if error is not None:
                self._refuse(connection, request_id, error)
                return
            self._on_stored(offer.upload_id, offer.sha256)
            self._reply(connection, request_id, Offered(have=True))

        self._storing.submit(member, contained(work), done)

    def _take_anew(self, connection: bytes, request_id: int, offer: Offer, member: Who) -> None:
        """It is here and cannot be read: what comes replaces it."""
        try:
            self._take_in(connection, request_id, offer, member)
        except ZchunkError as error:
            self._refuse(connection, request_id, error)

    def _admit(self) -> None:
        for chunk in self._incoming.admit_more():
            # Disk space is reserved before a byte of the chunk comes.
            self._admitting.submit(
                contained(partial(self._store.reserve_space, chunk.size)), partial(self._admitted, chunk)
            )

    def _admitted(self, chunk: Admission, fits: bool | None, error: ZchunkError | None) -> None:
        if error is None and not fits:
            error = NoSpace("this node has no space for the chunk")
        asks = self._incoming.answered(chunk, self._now())
        if error is None:
            error = self._take_buffer(chunk)
        if error is not None:
            for request_id in asks:
                self._refuse(chunk.connection, request_id, error)
            self._incoming.done(chunk.key)
            self._admit()
            return
        for request_id in asks:
            self._reply(chunk.connection, request_id, Offered(have=False))

    def _take_buffer(self, chunk: Admission) -> ZchunkError | None:
        """Memory for the chunk, whose space is reserved; why there is none."""
        try:
            buffer = self._pool.try_reserve(chunk.size)
        except StorageUnavailable as error:
            self._store.unreserve(chunk.size)
            return error
        assert buffer is not None  # `Incoming` admits within the same budget
        self._buffers[chunk.key] = buffer
        return None

    def _put_block(self, connection: bytes, request_id: int, block: PutBlock) -> None:
        key, length = (block.upload_id, block.sha256), len(block.data)
        if key not in self._buffers or not self._incoming.block(
            key, block.offset, length, connection, self._now()
        ):
            raise Busy("this block was not requested; offer its chunk again")
        chunk = self._incoming.get(key)
        assert chunk is not None
        self._buffers[key].view(chunk.size)[block.offset : block.offset + length] = block.data
        if chunk.complete:
            self._store_chunk(chunk, request_id)
        else:
            self._reply(connection, request_id, BlockTaken(stored=False))

    def _store_chunk(self, chunk: Admission, request_id: int) -> None:
        upload_id, sha256 = chunk.key
        view = self._buffers[chunk.key].view(chunk.size)

        def done(_: None, error: ZchunkError | None) -> None:
            self._release(chunk)  # its space was given back where it was stored
            if error is not None:
                self._refuse(chunk.connection, request_id, error)
            else:
                self.bytes_moved += chunk.size
                self._on_stored(upload_id, sha256)
                self._reply(chunk.connection, request_id, BlockTaken(stored=True))
            for again in chunk.asks:  # offered once more while it was being stored
                if error is not None:
                    self._refuse(chunk.connection, again, error)
                else:
                    self._reply(chunk.connection, again, Offered(have=True))
            self._admit()

        receive = partial(self._receive_chunk, sha256, chunk.blake3, view, upload_id, chunk.size)
        self._storing.submit(chunk.who, contained(receive), done)

    def _give_up(self, chunk: Admission) -> None:
        if chunk.key in self._buffers:
            self._release(chunk)
            self._store.unreserve(chunk.size)

    def _release(self, chunk: Admission) -> None:
        self._buffers.pop(chunk.key).release()
        self._incoming.done(chunk.key)

    # -- manifests, the end of an upload --------------------------------------------

    def _put_manifest(self, connection: bytes, request_id: int, message: PutManifest) -> None:
        size = len(message.manifest)
        ticket = self._outstanding.begin(self._asker, size)  # before it is copied
        work = partial(self._store.put_manifest, message.file_id, bytes(message.manifest), message.upload_id)
        self._do(connection, request_id, work, ticket)

    def _conclude(self, connection: bytes, request_id: int, message: Conclude) -> None:
        ticket = self._outstanding.begin(self._asker, 0)
        self._do(connection, request_id, partial(self._store.end_leases, message.upload_id), ticket)

    def _do(self, connection: bytes, request_id: int, work: Callable[[], None], ticket: Ticket) -> None:
        """Disk work that is answered with Ok or its error."""

        def done(_: None, error: ZchunkError | None) -> None:
            self._outstanding.end(ticket)
            if error is not None:
                self._refuse(connection, request_id, error)
            else:
                self._reply(connection, request_id, Ok())

        self._storing.submit(self._member, contained(work), done)
