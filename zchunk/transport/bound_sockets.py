"""Sockets that others connect to: the ROUTER for requests, the publisher of events.

What may not happen here: a message handed on that came by a connection which was ended, or that
does not say by which one it came; a routing id that somebody chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from zchunk.transport.base import Arrival, Buffer, Delivery, Received, Suspects
from zchunk.transport.guard import descriptors
from zchunk.transport.guard.connections import Delivered
from zchunk.transport.guard.descriptors import Descriptor
from zchunk.transport.guard.unread import Unread
from zchunk.transport.monitor import close_monitored, next_event
from zchunk.transport.poller import RAW, Edged, has_message
from zchunk.transport.sending import NOW, NOW_MORE, PARTS, large_bytes, send_frames
from zchunk.transport.zap import Admission, Admissions, PlainGate, parse_admission

_DROPPED_AT_ONCE = 2000
#: How the names begin that libzmq gives to connections. Who chooses one itself could be sent what
#: is still due to another that chose it before.
_OUR_ROUTING_ID = b"\0"
#: A subscriber asks for everything, once; who asks for more topics than this is no friend, nor who
#: asks for long ones: libzmq keeps some 32 bytes for each of a topic's bytes.
_SUBSCRIPTIONS = 32
_TOPIC_BYTES = 64


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that others connect to, and what is noted of them."""

    raw: zmq.Socket[bytes]
    endpoint: str
    admissions: Admissions
    encrypts: bool
    delivered: Delivered
    #: answers libzmq's questions, where this is the socket that does
    gate: PlainGate | None

    def admission(self, frame: zmq.Frame) -> Admission | None:
        """In plain transport whoever connects may write a User-Id of his own into his handshake."""
        return parse_admission(_metadata(frame, "User-Id")) if self.encrypts else None

    @property
    def gates(self) -> list[zmq.Socket[bytes] | int]:
        return [self.gate.raw] if self.gate is not None else []

    def answer_gate(self) -> None:
        if self.gate is not None:
            self.gate.answer()

    def close_gate(self) -> None:
        if self.gate is not None:
            self.gate.close()


class PublisherSocket(Edged):
    """A bound PUB: what is sent goes to whoever listens. It notes by which connection each
    member subscribed, to be able to end it."""

    def __init__(self, bound: Bound) -> None:
        self.raw = bound.raw
        self.endpoint = bound.endpoint
        self._bound = bound
        #: member -> its connections, and for how many usual topics each has asked
        self._subscribers: dict[str, dict[Descriptor, float]] = {}

    def pollable(self) -> list[zmq.Socket[bytes] | int]:
        return [self.raw, *self._bound.gates]

    def receive(self) -> Received | None:
        self._bound.answer_gate()
        while True:
            try:
                frame = self.raw.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                self.news = 0
                return None
            number = _descriptor_number(frame)
            if number is not None:  # else libzmq tells of a connection that ended
                self._bound.delivered.add(number, 1, len(frame))
                self._note(self._bound.admission(frame), descriptors.descriptor(number), len(frame))

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        self.news |= RAW
        send_frames(self.raw, frames)
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        """Nothing that comes here is handed on."""

    def end(self, peer_id: str) -> None:
        self._bound.admissions.end(peer_id)
        for which in self._subscribers.pop(peer_id, {}):
            descriptors.shut_down(which)

    def end_connection(self, connection: bytes) -> None:
        """Subscribers are known by their members only."""

    def close(self) -> None:
        self._bound.close_gate()
        self.raw.close()

    def _note(self, admission: Admission | None, which: Descriptor | None, size: int) -> None:
        if which is None:
            return
        if self._bound.admissions.is_void(admission):
            descriptors.shut_down(which)
            return
        theirs = self._subscribers.setdefault(admission.peer_id if admission else "", {})
        if which not in theirs:
            for other in [known for known in theirs if not descriptors.is_open(known)]:
                del theirs[other]
        theirs[which] = theirs.get(which, 0) + max(1.0, size / _TOPIC_BYTES)
        if theirs[which] > _SUBSCRIPTIONS:
            descriptors.shut_down(which)


class RouterSocket(Edged):
    """A bound ROUTER. Its monitor hints at connections that end.

    The monitor is read first in each turn and asked for one kind of event only: some 500
    events that nobody reads stop the whole context.
    """

    def __init__(self, bound: Bound, unread_bytes: int) -> None:
        self.raw = bound.raw
        self.endpoint = bound.endpoint
        self._bound = bound
        self._discards = False
        self._unread = Unread(unread_bytes)
        self._monitor = self.raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        #: descriptor -> connections that came by it, in this order; most are the latest's
        self._by_descriptor: dict[int, dict[bytes, None]] = {}
        self._shown: dict[bytes, _Shown] = {}

    def pollable(self) -> list[zmq.Socket[bytes] | int]:
        return [self.raw, self._monitor, *self._bound.gates]

    def receive(self) -> Received | Suspects | None:
        if self.news != RAW:
            self.news = -1  # who is read here may have more, of which its descriptor says nothing
            self._bound.answer_gate()
            if (suspects := self._suspects()) is not None:
                return suspects
            self.news = RAW
        while self.is_told or has_message(self.raw):
            self.is_told = False
            try:
                parts = self._message()
            except zmq.Again:
                break
            if parts is None:
                return None  # there is more of it
            if (received := self._received(parts)) is not None:
                return received
        self.news = 0
        return None

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        large = large_bytes(frames)
        if large and not self._unread.has_room(connection, large):
            return Delivery.FULL
        self.news |= RAW
        try:
            self.raw.send(connection, NOW_MORE)
            self._unread.add(connection, send_frames(self.raw, frames))
        except zmq.Again:
            return Delivery.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(connection)
            return Delivery.GONE
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        if isinstance(arrival, Received):
            self.end_connection(arrival.connection)

    def end(self, peer_id: str) -> None:
        self._bound.admissions.end(peer_id)
        for shown in list(self._shown.values()):
            if shown.admission is not None and shown.admission.peer_id == peer_id:
                _shut_down(shown)

    def end_connection(self, connection: bytes) -> None:
        if (shown := self._shown.get(connection)) is not None:
            _shut_down(shown)

    def close(self) -> None:
        self._bound.close_gate()
        close_monitored(self.raw, self._monitor)

    def _message(self) -> list[zmq.Frame] | None:
        """None for one that has more parts than any; of its rest so many are dropped at a time."""
        most = _DROPPED_AT_ONCE if self._discards else PARTS
        parts: list[zmq.Frame] = []
        while len(parts) < most:
            parts.append(self.raw.recv(NOW, copy=False))
            if not parts[-1].more:
                was_rest, self._discards = self._discards, False
                return None if was_rest else parts
        if not self._discards:
            self._discards = True
            _end_sender(parts[1])
        return None

    def _received(self, parts: Sequence[zmq.Frame]) -> Received | None:
        """None for what came by a connection that is ended, ends by it, or is not known."""
        connection = parts[0].bytes
        if len(parts) < 2:
            return None
        if connection[:1] != _OUR_ROUTING_ID:
            _end_sender(parts[1])
            return None
        known = self._shown.get(connection) or self._remember(connection, parts[1])
        if known is None:
            return None
        admission = known.admission
        if self._bound.admissions.is_void(admission):
            _shut_down(known)
            return None
        peer_id = admission.peer_id if admission is not None else None
        frames = [part.buffer for part in parts[1:]]
        self._bound.delivered.add(known.number, len(frames), sum(map(len, frames)))
        return Received(frames, connection, peer_id, known.address)

    def _suspects(self) -> Suspects | None:
        while (event := next_event(self._monitor)) is not None:
            connections = self._by_descriptor.get(event[1])
            if connections:
                return Suspects(tuple(connections))
        return None

    def _remember(self, connection: bytes, frame: zmq.Frame) -> _Shown | None:
        """None where the message does not say by which descriptor it came."""
        self._unread.sweep()
        number = _descriptor_number(frame)
        if number is None:
            return None
        which, address = descriptors.descriptor(number), _metadata(frame, "Peer-Address")
        shown = _Shown(number, self._bound.admission(frame), which, address)
        self._shown[connection] = shown
        self._by_descriptor.setdefault(number, {})[connection] = None
        return shown

    def _forget(self, connection: bytes) -> None:
        self._unread.forget(connection)
        shown = self._shown.pop(connection, None)
        if shown is None:
            return
        connections = self._by_descriptor[shown.number]
        connections.pop(connection, None)
        if not connections:
            del self._by_descriptor[shown.number]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the first message of a connection showed of it. `descriptor` is None where the
    connection had ended by then."""

    number: int
    admission: Admission | None
    descriptor: Descriptor | None
    #: the other side's IP
    address: str | None


def _end_sender(frame: zmq.Frame) -> None:
    number = _descriptor_number(frame)
    if number is not None and (which := descriptors.descriptor(number)) is not None:
        descriptors.shut_down(which)


def _shut_down(shown: _Shown) -> None:
    if shown.descriptor is not None:
        descriptors.shut_down(shown.descriptor)


def _descriptor_number(frame: zmq.Frame) -> int | None:
    """The descriptor of the connection that it came by, where it says one: what a ZMTP 1 or 2 peer
    sends has none, nor has what libzmq tells by itself."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def _metadata(frame: zmq.Frame, name: str) -> str | None:
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, UnicodeDecodeError):
        return None
