"""Connections of the bulk plane to other nodes: a DEALER each, requests with deadlines.

What may not happen here: a request without exactly one answer; a request sent twice
(the jobs decide about trying again); control traffic (it has its own connections); an
attempt to connect to a peer that the tracker calls down (its `peer.up` is waited for).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zchunk.errors import PeerUnreachable, StorageUnavailable, ZchunkError
from zchunk.node.bulk.reachability import Reachability, Verdict
from zchunk.node.home.connection_errors import closed_door
from zchunk.node.home.membership import Identity
from zchunk.protocol import wire
from zchunk.protocol.messages import (
    Acknowledge,
    Acknowledged,
    ErrorReply,
    GetBlock,
    Message,
    PeerRecord,
    Request,
)
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Arrival, Delivery, Link, Received, Socket, SocketOptions, Transport

log = logging.getLogger(__name__)

#: A bulk frame is a block, or a manifest.
BULK = SocketOptions(max_frame_bytes=wire.MAX_FRAME_BYTES, linger_ms=0)

#: Bytes of a message that may be a connection's first.
_SMALL = 64 * 1024
#: Seconds until a peer that refused us is tried again.
_REFUSED_S = 2.0
#: Nobody's: a connection to a peer whose key is not known comes to nothing.
_NO_KEY = "00" * 32

Answer = Callable[[Message | None, ZchunkError | None], None]
#: (peer id, whether it can be reached)
OnReachability = Callable[[str, bool], None]
#: (peer id, whether what we asked of it waits for memory that it gave to others)
OnBusy = Callable[[str, bool], None]


@dataclass(slots=True)
class _Pending:
    deadline: float
    answer: Answer
    #: payload that the answer brings: counted as settled when it ends
    payload: int = 0


@dataclass(slots=True)
class _Peer:
    #: see `_place`
    place: tuple[object, ...]
    socket: Socket
    reachability: Reachability
    pending: dict[int, _Pending] = field(default_factory=dict)
    #: encoded requests that wait for the connection
    unsent: list[tuple[int, Sequence[wire.Buffer]]] = field(default_factory=list)
    #: payload bytes that arrived or were given up, for `GetBlock.received`
    settled: int = 0
    #: how much of `settled` the peer was told
    told: int = 0
    #: it said so last, and has not answered another request since
    busy: bool = False


class PeerConnections:
    def __init__(self, loop: Loop, transport: Transport, identity: Identity) -> None:
        self._loop = loop
        self._transport = transport
        self._identity = identity
        self._known: dict[str, PeerRecord] = {}
        self._peers: dict[str, _Peer] = {}
        #: peers that do not talk to us -> when to try again
        self._try_again: dict[str, float] = {}
        self._next_id = 1
        #: requests sent per peer, for tests and `status`
        self.requests_sent: dict[str, int] = {}
        #: told when a peer that is up cannot be reached from here, and when it can again
        self.on_reachability: OnReachability = lambda peer_id, reachable: None
        #: told when a peer says that it is busy with others, and when it is not any more
        self.on_busy: OnBusy = lambda peer_id, busy: None
        loop.add_timed(self)

    # -- who is where ---------------------------------------------------------------

    def set_peer(self, record: PeerRecord) -> None:
        """What the tracker says of a peer. The connection to one that went ends, and so does
        that to an older start or address: a fresh one is made at once, and does not wait for
        the pause that its socket makes between two attempts."""
        self._known[record.peer_id] = record
        if record.status != "up":
            self._try_again.pop(record.peer_id, None)
        peer = self._peers.get(record.peer_id)
        if peer is None:
            return
        if record.status != "up":
            self.drop(record.peer_id, PeerUnreachable(f"{record.name} is {record.status}"))
        elif peer.place != _place(record):
            self.drop(record.peer_id, PeerUnreachable(f"{record.name} was restarted, or has moved"))

    def drop(self, peer_id: str, error: ZchunkError) -> None:
        """End the connection; what waits for it is answered with `error`."""
        peer = self._peers.pop(peer_id, None)
        if peer is None:
            return
        self._loop.remove_socket(peer.socket)
        self._set_busy(peer_id, peer, False)
        self._fail(peer, error)

    # -- requests -------------------------------------------------------------------

    def get_block(
        self, peer_id: str, sha256: bytes, offset: int, length: int, timeout_s: float, answer: Answer
    ) -> None:
        peer = self._connected(peer_id)
        settled = peer.settled if peer is not None else 0
        if peer is not None:
            peer.told = settled
        message = GetBlock(sha256=sha256, offset=offset, length=length, received=settled)
        self._request(peer_id, peer, message, timeout_s, answer, payload=length)

    def request(self, peer_id: str, message: Request, timeout_s: float, answer: Answer) -> None:
        """`answer(reply, error)` runs once: with the reply, the peer's error, or
        PeerUnreachable when the deadline passes or the connection ends."""
        self._request(peer_id, self._connected(peer_id), message, timeout_s, answer, payload=0)

    def acknowledge_all(self) -> None:
        """Tell every peer what arrived, so that its budget is free for others."""
        for peer_id, peer in list(self._peers.items()):
            if peer.reachability.linked and peer.settled:
                self._acknowledge(peer_id, peer)

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        times = [p.deadline for peer in self._peers.values() for p in peer.pending.values()]
        times += [at for peer in self._peers.values() if (at := peer.reachability.deadline()) is not None]
        times += self._try_again.values()
        return min(times, default=None)

    def on_time(self, now: float) -> None:
        for peer_id in [p for p, at in self._try_again.items() if at <= now]:
            del self._try_again[peer_id]
            self._connect_lost(peer_id)
        for peer_id, peer in list(self._peers.items()):
            verdict = peer.reachability.on_time(now)
            if verdict is Verdict.ASK:
                self._acknowledge(peer_id, peer)
            elif verdict is Verdict.UNREACHABLE:
                self._give_up(peer_id, peer)
                continue
            for request_id, pending in list(peer.pending.items()):
                if pending.deadline <= now:
                    self._settle(peer, request_id)
                    error = PeerUnreachable(f"{self._where(peer_id)} did not answer in time")
                    pending.answer(None, error)
            peer.reachability.wants(bool(peer.pending), now)

    # -- inside ---------------------------------------------------------------------

    def _connected(self, peer_id: str) -> _Peer | None:
        peer, record = self._peers.get(peer_id), self._known.get(peer_id)
        if peer is None and record is not None and record.endpoints:
            curve = self._identity.to_server(bytes.fromhex(record.public_key or _NO_KEY))
            try:
                socket = self._transport.dealer(record.endpoints, BULK, curve)
            except StorageUnavailable as error:
                # Not the peer's fault, and nothing would tell that it is over: all ends that runs here.
                self._loop.fail(error)
                return None
            peer = _Peer(_place(record), socket, Reachability(self._loop.clock.monotonic()))
            self._peers[peer_id] = peer
            self._loop.add_socket(socket, lambda received: self._on_received(peer_id, received))
        return peer

    def _give_up(self, peer_id: str, peer: _Peer) -> None:
        """It cannot be reached. A new socket goes on trying: that it connects is the event
        by which its requests are made again."""
        # First who decides, so that the answers which fail now are old news.
        self.on_reachability(peer_id, False)
        self.drop(peer_id, PeerUnreachable(f"{self._where(peer_id)} cannot be reached from here"))
        log.info("%s cannot be reached", self._where(peer_id))
        self._connect_lost(peer_id)

    def _connect_lost(self, peer_id: str) -> None:
        """Connects to one that was told to be unreachable."""
        successor = self._connected(peer_id)
        if successor is not None:
            successor.reachability.lost = True

    def _request(
        self,
        peer_id: str,
        peer: _Peer | None,
        message: Request,
        timeout_s: float,
        answer: Answer,
        payload: int,
    ) -> None:
        if peer is None:
            answer(None, PeerUnreachable(f"{self._name(peer_id)} has no known address"))
            return
        request_id = self._next_id
        self._next_id += 1
        self.requests_sent[peer_id] = self.requests_sent.get(peer_id, 0) + 1
        now = self._loop.clock.monotonic()
        peer.pending[request_id] = _Pending(now + timeout_s, answer, payload)
        peer.reachability.wants(True, now)
        frames = wire.encode(message, request_id, self._identity.claim)
        # A connection whose end was just told may still take a message, and lose it.
        if not peer.reachability.linked or peer.unsent or peer.socket.send(frames) is not Delivery.SENT:
            peer.unsent.append((request_id, frames))

    def _on_received(self, peer_id: str, received: Arrival) -> None:
        peer, now = self._peers[peer_id], self._loop.clock.monotonic()
        if received is Link.UP:
            back = peer.reachability.link(True, now)
            self._flush(peer_id, peer)
            if back:
                self.on_reachability(peer_id, True)
                log.info("%s can be reached again", self._where(peer_id))
        elif received is Link.DOWN:
            peer.reachability.link(False, now)
            self._set_busy(peer_id, peer, False)
            # Nobody answers on a connection that ended: what was sent on it is void.
            self._fail_sent(peer, PeerUnreachable(f"the connection to {self._where(peer_id)} broke"))
        elif isinstance(received, Link):
            self._on_closed_door(peer_id, peer, received, now)
            return
        else:
            assert isinstance(received, Received)
            peer.reachability.heard(now)
            self._on_reply(peer_id, peer, received)
        peer.reachability.wants(bool(peer.pending), now)

    def _on_closed_door(self, peer_id: str, peer: _Peer, link: Link, now: float) -> None:
        """It does not talk to us: it cannot be reached. After a pause another socket tries,
        since its tracker may tell it better, or the right one is there again."""
        error = closed_door(
            link, self._where(peer_id), encrypted=self._identity.encrypts, unreachable=PeerUnreachable
        )
        self._try_again[peer_id] = now + _REFUSED_S
        self.on_reachability(peer_id, False)
        self.drop(peer_id, PeerUnreachable(error.message))
        log.warning("%s", error.message)

    def _flush(self, peer_id: str, peer: _Peer) -> None:
        unsent, peer.unsent = peer.unsent, []
        # A node takes no large message as the first of a connection (transport/guard/rules.py).
        if not unsent or sum(map(len, unsent[0][1])) > _SMALL:
            self._acknowledge(peer_id, peer)
        for at, (request_id, frames) in enumerate(unsent):
            if request_id in peer.pending and peer.socket.send(frames) is not Delivery.SENT:
                peer.unsent += unsent[at:]
                return

    def _on_reply(self, peer_id: str, peer: _Peer, received: Received) -> None:
        request_id, message, error = _decoded(received)
        pending = self._settle(peer, request_id, refused=error is not None)
        if pending is None:
            return
        if message is not None:
            self._set_busy(peer_id, peer, isinstance(message, Acknowledged) and message.busy)
        pending.answer(message, error)
        # Usually that has asked for the next block. Where it has not, the peer must not hold
        # what it still has for us, or for others, until its budget is free.
        if peer.reachability.linked and peer.settled > peer.told and self._peers.get(peer_id) is peer:
            self._acknowledge(peer_id, peer)

    def _acknowledge(self, peer_id: str, peer: _Peer) -> None:
        peer.told = peer.settled
        message = Acknowledge(received=peer.settled)
        self._request(peer_id, peer, message, 1.0, lambda reply, error: None, payload=0)

    def _set_busy(self, peer_id: str, peer: _Peer, busy: bool) -> None:
        if peer.busy != busy:
            peer.busy = busy
            self.on_busy(peer_id, busy)

    def _settle(self, peer: _Peer, request_id: int, refused: bool = False) -> _Pending | None:
        pending = peer.pending.pop(request_id, None)
        if pending is not None and not refused:
            peer.settled += pending.payload
        return pending

    def _fail_sent(self, peer: _Peer, error: ZchunkError) -> None:
        waiting = {request_id for request_id, _ in peer.unsent}
        failed = [r for r in peer.pending if r not in waiting]
        for pending in [peer.pending.pop(request_id) for request_id in failed]:
            pending.answer(None, error)
        peer.settled = peer.told = 0

    def _fail(self, peer: _Peer, error: ZchunkError) -> None:
        pending, peer.pending = peer.pending, {}
        for entry in pending.values():
            entry.answer(None, error)

    def _where(self, peer_id: str) -> str:
        record = self._known.get(peer_id)
        return self._name(peer_id) + (f" at {', '.join(record.endpoints)}" if record else "")

    def _name(self, peer_id: str) -> str:
        """For people; the beginning of its id where nothing is known of it."""
        record = self._known.get(peer_id)
        return record.name if record else f"peer {peer_id[:8]}"


def _place(record: PeerRecord) -> tuple[object, ...]:
    """What a connection was made for: another address, start or key needs another one."""
    return record.endpoints, record.incarnation, record.public_key


def _decoded(received: Received) -> tuple[int, Message | None, ZchunkError | None]:
    """(request id, reply, error); request id 0 answers nothing."""
    try:
        # What a node has to say besides the bytes of a chunk is as short as a request.
        envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
    except ZchunkError as problem:
        return problem.details.get("request_id", 0), None, problem
    if isinstance(envelope.message, ErrorReply):
        return envelope.request_id, None, wire.raised(envelope.message)
    return envelope.request_id, envelope.message, None
