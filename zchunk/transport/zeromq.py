"""ZeroMQ behind the interface of `base`.

What may not happen here: a routing id that we set, ROUTER_HANDOVER, an unlimited
frame, a ROUTER send without MANDATORY, a blocking call outside `ZmqPoller.wait`; a socket
bound under CURVE that lets a key in which no gate was asked about; a message handed on that
came by a connection which was ended, or that does not say by which one it came.
"""

from __future__ import annotations

import contextlib
import os
import socket as os_socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import zmq
from zmq.utils.garbage import gc as returns

from zchunk.errors import InvalidUsage
from zchunk.system import addresses
from zchunk.system.file_limit import is_want
from zchunk.system.os_errors import as_ours, check_descriptors
from zchunk.transport import name_lookup
from zchunk.transport.base import Arrival, Buffer, Delivery, Link, Poller, Received, SocketOptions, Suspects
from zchunk.transport.greeting import Greeting
from zchunk.transport.guard import descriptors
from zchunk.transport.guard.connections import Connections, Delivered
from zchunk.transport.guard.descriptors import Descriptor
from zchunk.transport.guard.rules import Limits
from zchunk.transport.guard.unread import Large, Unread
from zchunk.transport.keys import CurveClient, CurveServer
from zchunk.transport.name_lookup import Lookup
from zchunk.transport.poller import RAW, Edged, ZmqPoller, has_message
from zchunk.transport.zap import PLAIN_DOMAIN, Admission, Admissions, PlainGate, ZapGate, parse_admission

#: Below this size a copy is cheaper than libzmq's bookkeeping for shared memory.
_COPY_BELOW = 64 * 1024

#: A cable that was pulled is noticed by whoever connects within interval and timeout, by the other
#: side within the last. Each costs both sides a wake-up or two.
_HEARTBEAT_INTERVAL_MS = 1000
_HEARTBEAT_TIMEOUT_MS = 1500
_HEARTBEAT_TTL_MS = 2000
_UNACKNOWLEDGED_MS = 2000
_CONNECT_TIMEOUT_MS = 400
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 500
_HANDSHAKE_MS = 3000


#: What CURVE adds to a frame: its command, flags, nonce and authenticator.
_CURVE_BYTES = 64

_LINK_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
#: Handshakes that fail one after the other, at each address, before it is told: one may fail
#: because the other side was just ended. And they fail at once: a process that hangs, behind
#: a kernel that accepts for it, lets them run into their time.
_STRANGE_AFTER = 4
_AT_ONCE_S = 1.0
#: A name whose number does not answer is looked up again this often.
_LOOK_UP_AGAIN_S = 5.0
#: As plain numbers: pyzmq's are slow to reckon with, and each message takes some.
_NOW, _NOW_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
#: With the connection's name. More than any message has, which its reader then refuses.
_PARTS = 16
_DROPPED_AT_ONCE = 2000
#: How the names begin that libzmq gives to connections. Who chooses one itself could be sent what
#: is still due to another that chose it before.
_OUR_ROUTING_ID = b"\0"
#: A subscriber asks for everything, once; who asks for more topics than this is no friend, nor who
#: asks for long ones: libzmq keeps some 32 bytes for each of a topic's bytes.
_SUBSCRIPTIONS = 32
_TOPIC_BYTES = 64
#: In plain transport, of a connection that was accepted. By a window that grows as the system
#: likes, a gigabyte a second comes in on loopback, and with it much between two looks at what a
#: connection holds. This is 1 Gbit/s over 1 ms to and fro.
_PLAIN_WINDOW_BYTES = 128 * 1024


#: Descriptors: of libzmq's context with its first socket, of each I/O thread, of a socket with its
#: monitor, its bell and its first connection, of what returns memory that was sent without a copy.
_OF_A_CONTEXT, _OF_A_THREAD, _OF_A_SOCKET, _OF_RETURNS = 4, 2, 6, 8


class ZmqTransport:
    """One libzmq context, so one set of I/O threads: a process has one per plane. It raises
    StorageUnavailable where too few descriptors are left for it, or for another socket."""

    def __init__(self, io_threads: int = 1) -> None:
        # libzmq ends the process where its threads find no descriptor; they start with its first
        # socket.
        own = _OF_A_CONTEXT + _OF_A_THREAD * io_threads
        check_descriptors("a set of connections", own + _OF_RETURNS)
        _prepare_for_large_frames()
        self._context = zmq.Context(io_threads)
        try:
            with _in_words():
                self._context.socket(zmq.PAIR).close()
        except BaseException:
            self._context.term()
            raise
        # A closed context must not hang on sockets of a thread that died.
        self._context.linger = 0
        self._admissions = Admissions()
        self._connections = Connections()
        self._asked_in_plain = False

    def poller(self) -> Poller:
        return ZmqPoller()

    def gate(self) -> ZapGate:
        with _in_words():
            return ZapGate(self._context, self._admissions)

    def router(self, bind: str, options: SocketOptions, curve: CurveServer | None = None) -> RouterSocket:
        with self._listening(zmq.ROUTER, {zmq.ROUTER_MANDATORY: 1}, bind, options, curve) as bound:
            return RouterSocket(bound, options.unread_bytes)

    def publisher(
        self, bind: str, options: SocketOptions, curve: CurveServer | None = None
    ) -> PublisherSocket:
        # A PUB that shows its subscriptions, and so which connection is whose.
        # What a subscriber's PC has not acknowledged for so long, it never will (Linux, Windows).
        flags: dict[int, int] = {zmq.XPUB_VERBOSE: 1, zmq.TCP_MAXRT: _UNACKNOWLEDGED_MS}
        with self._listening(zmq.XPUB, flags, bind, options, curve) as bound:
            return PublisherSocket(bound)

    def dealer(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> ConnectedSocket:
        with self._socket(zmq.DEALER, options, curve) as raw:
            # Without this, requests queue up for a peer that is not there.
            raw.setsockopt(zmq.IMMEDIATE, 1)
            _set_heartbeats(raw, options)
            return ConnectedSocket(raw, addresses, encrypts=curve is not None)

    def subscriber(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> ConnectedSocket:
        with self._socket(zmq.SUB, options, curve) as raw:
            raw.setsockopt(zmq.LINGER, 0)  # else closing waits for subscriptions nobody takes
            raw.setsockopt(zmq.SUBSCRIBE, b"")
            # Never more unread than the mark, see there. What comes is what the tracker publishes.
            raw.setsockopt(zmq.RCVHWM, 0)
            return ConnectedSocket(raw, addresses, encrypts=curve is not None)

    @contextlib.contextmanager
    def _listening(
        self,
        kind: int,
        flags: Mapping[int, int],
        bind: str,
        options: SocketOptions,
        curve: CurveServer | None,
    ) -> Iterator[_Bound]:
        """A socket with these options of libzmq's, bound; closed again where the block fails."""
        with self._socket(kind, options, curve) as raw, self._plain_gate(curve) as gate:
            for flag, value in flags.items():
                raw.setsockopt(flag, value)
            if curve is None:
                raw.setsockopt(zmq.RCVBUF, _PLAIN_WINDOW_BYTES)
            _ask_gate(raw, curve.door if curve is not None else PLAIN_DOMAIN)
            endpoint = _bind(raw, bind)
            delivered = self._connections.watch(endpoint, _limits(options))
            yield _Bound(raw, endpoint, self._admissions, curve is not None, delivered, gate)

    @contextlib.contextmanager
    def _plain_gate(self, curve: CurveServer | None) -> Iterator[PlainGate | None]:
        """Of the first plain socket; it answers for the others too, which live in the same loop.
        Closed again where the block fails."""
        if curve is not None or self._asked_in_plain:
            yield None
            return
        gate = PlainGate(self._context)
        try:
            yield gate
        except BaseException:
            gate.close()
            raise
        self._asked_in_plain = True

    def close(self) -> None:
        """Ends the context; every loop has closed its own sockets before."""
        self._connections.close()
        self._context.term()

    @contextlib.contextmanager
    def _socket(
        self, kind: int, options: SocketOptions, curve: CurveServer | CurveClient | None
    ) -> Iterator[zmq.Socket[bytes]]:
        """Closed again where the block fails."""
        # Else libzmq tries to connect again and again, and tells nobody what keeps it from it.
        check_descriptors("a connection", _OF_A_SOCKET)
        with _in_words():
            raw = self._context.socket(kind)
            try:
                _set_options(raw, options, curve)
                yield raw
            except BaseException:
                raw.close(0)
                raise


def _set_options(
    raw: zmq.Socket[bytes], options: SocketOptions, curve: CurveServer | CurveClient | None
) -> None:
    _set_curve(raw, curve)
    raw.setsockopt(zmq.LINGER, options.linger_ms)
    raw.setsockopt(zmq.MAXMSGSIZE, options.max_frame_bytes + (_CURVE_BYTES if curve else 0))
    raw.setsockopt(zmq.SNDHWM, options.send_mark)
    raw.setsockopt(zmq.RCVHWM, options.receive_mark)
    raw.setsockopt(zmq.IPV6, 1)
    raw.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
    raw.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    raw.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    raw.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Strangers may have taken what was counted as free: raises StorageUnavailable then."""
    try:
        yield
    except (OSError, zmq.ZMQError) as error:
        refusal = OSError(error.errno, str(error.strerror))
        if not is_want(refusal):
            raise
        raise as_ours(refusal) from error


def _prepare_for_large_frames() -> None:
    """pyzmq has a context and a thread of its own, which give back the memory of frames that are not
    copied. It starts them with the first of these: where that fails nobody can be told, and by then
    strangers may have taken all descriptors."""
    if not returns.is_alive():
        zmq.Frame(b"\0", copy=False)


def _limits(options: SocketOptions) -> Limits:
    """A node's senders, whose address may be one, have what it admits on the way to it, however
    busy its loop is."""
    usual = Limits()
    return Limits(
        held_of_an_address=max(usual.held_of_an_address, options.receive_bytes),
        held_by_all=max(usual.held_by_all, 2 * options.receive_bytes),
    )


def _set_heartbeats(raw: zmq.Socket[bytes], options: SocketOptions) -> None:
    """Of a socket that connects to ask, and of no other: libzmq (4.3.5) aborts the process when it is time
    for a heartbeat on a connection that was lost with more of it unread than the mark. So whoever
    sends much, reads nothing and goes would end a server that sends heartbeats. What it knows of
    a cable it knows by those of the other side: they say how long to wait for the next."""
    if options.heartbeats:
        raw.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_INTERVAL_MS)
        raw.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        raw.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS)


def _set_curve(raw: zmq.Socket[bytes], curve: CurveServer | CurveClient | None) -> None:
    if curve is None:
        return
    raw.setsockopt(zmq.CURVE_PUBLICKEY, curve.key.public)
    raw.setsockopt(zmq.CURVE_SECRETKEY, curve.key.secret)
    if isinstance(curve, CurveClient):
        raw.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key)
        return
    raw.setsockopt(zmq.CURVE_SERVER, 1)


def _ask_gate(raw: zmq.Socket[bytes], domain: str) -> None:
    raw.setsockopt_string(zmq.ZAP_DOMAIN, domain)
    # Else a socket lets in any key when nobody answers at the gate.
    raw.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def _bind(raw: zmq.Socket[bytes], address: str) -> str:
    """Bind and return the endpoint with the port that was taken."""
    try:
        number = _number_to_bind(address)
        if _is_ipv4(number):
            raw.setsockopt(zmq.IPV6, 0)  # else the endpoint reads ::ffff:127.0.0.1
        _bind_dual_stack(raw, number)
    except zmq.ZMQError as error:
        if is_want(OSError(error.errno, "")):
            raise
        hint = "another program uses it" if error.errno == zmq.EADDRINUSE else str(error.strerror)
        raise InvalidUsage(f"cannot listen on {address}: {hint}; choose another with --bind") from None
    return raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _number_to_bind(address: str) -> str:
    """libzmq knows interfaces by their names too, and looks up no other. Raises InvalidUsage."""
    name = _name_in(address)
    if name is None or any(name == interface for _, interface in os_socket.if_nameindex()):
        return address
    numbers = name_lookup.look_up(name)
    if not numbers:
        raise InvalidUsage(
            f"cannot listen on {address}: the name {name} does not resolve on this PC; use an IP address or *"
        )
    return addresses.HostPort(numbers[0], addresses.parse(address).port).tcp


def _is_ipv4(address: str) -> bool:
    host = address.removeprefix("tcp://").rpartition(":")[0]
    return host.replace(".", "").isdigit()


def _bind_dual_stack(raw: zmq.Socket[bytes], address: str) -> None:
    try:
        raw.bind(address)
    except zmq.ZMQError as error:
        if "//*:" not in address or error.errno == zmq.EADDRINUSE:
            raise
        # A PC with IPv6 switched off: the wildcard is then IPv4's.
        raw.setsockopt(zmq.IPV6, 0)
        raw.bind(address)


@dataclass(frozen=True, slots=True)
class _Bound:
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

    def __init__(self, bound: _Bound) -> None:
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
            number = _number(frame)
            if number is not None:  # else libzmq tells of a connection that ended
                self._bound.delivered.add(number, 1, len(frame))
                self._note(self._bound.admission(frame), descriptors.descriptor(number), len(frame))

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        self.news |= RAW
        _send_frames(self.raw, frames)
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

    def __init__(self, bound: _Bound, unread_bytes: int) -> None:
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
        large = _large_bytes(frames)
        if large and not self._unread.has_room(connection, large):
            return Delivery.FULL
        self.news |= RAW
        try:
            self.raw.send(connection, _NOW_MORE)
            self._unread.add(connection, _send_frames(self.raw, frames))
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
        _close_monitored(self.raw, self._monitor)

    def _message(self) -> list[zmq.Frame] | None:
        """None for one that has more parts than any; of its rest so many are dropped at a time."""
        most = _DROPPED_AT_ONCE if self._discards else _PARTS
        parts: list[zmq.Frame] = []
        while len(parts) < most:
            parts.append(self.raw.recv(_NOW, copy=False))
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
        while (event := _next_event(self._monitor)) is not None:
            connections = self._by_descriptor.get(event[1])
            if connections:
                return Suspects(tuple(connections))
        return None

    def _remember(self, connection: bytes, frame: zmq.Frame) -> _Shown | None:
        """None where the message does not say by which descriptor it came."""
        self._unread.sweep()
        number = _number(frame)
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
    number = _number(frame)
    if number is not None and (which := descriptors.descriptor(number)) is not None:
        descriptors.shut_down(which)


def _shut_down(shown: _Shown) -> None:
    if shown.descriptor is not None:
        descriptors.shut_down(shown.descriptor)


def _next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """(event, value) of a socket's monitor that has come already. (pyzmq's own reader brings
    asyncio and ssl into each process.)"""
    if not has_message(monitor):
        return None
    head, _address = monitor.recv_multipart(zmq.DONTWAIT)
    event, value = struct.unpack("=Hi", head)
    return event, value


def _close_monitored(raw: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    # The monitor first: its unread events would outlive the socket.
    raw.disable_monitor()
    monitor.close(0)
    raw.close()


def _number(frame: zmq.Frame) -> int | None:
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


def _send_frames(raw: zmq.Socket[bytes], frames: Sequence[Buffer]) -> list[Large]:
    """What of it is not copied: its memory is needed until libzmq has written it."""
    last, large = len(frames) - 1, []
    for at, frame in enumerate(frames):
        flags = _NOW if at == last else _NOW_MORE
        if len(frame) < _COPY_BELOW:
            raw.send(frame, flags)
        else:
            large.append((raw.send(frame, flags, copy=False, track=True), len(frame)))
    return large


def _large_bytes(frames: Sequence[Buffer]) -> int:
    large = 0
    for frame in frames:
        if len(frame) >= _COPY_BELOW:
            large += len(frame)
    return large


class ConnectedSocket(Edged):
    """A DEALER or SUB to one peer. It goes through the peer's addresses until one works,
    and reports its link's state between the messages.

    libzmq knows one of them at a time, and as a number: names are looked up here (name_lookup.py), when
    their turn comes and again when a connection by them is lost."""

    def __init__(self, raw: zmq.Socket[bytes], addresses: Sequence[str], *, encrypts: bool) -> None:
        self.raw = raw
        self.endpoint = ""
        self.link = Link.DOWN
        self._encrypts = encrypts
        self._addresses = deque(addresses)
        #: what libzmq connects to, and what else the address in front may lead to
        self._numbers: deque[str] = deque()
        self._lookup: Lookup | None = None
        self._looked_up_at = 0.0
        #: rung when a look-up is over; (to read from, to write to), for a peer that has a name
        self._bell: tuple[int, int] | None = None
        #: addresses in a row that did not resolve
        self._nameless = 0
        #: handshakes that failed since the last that did not
        self._failed = 0
        #: addresses that answered in another way than we speak
        self._gave_up = 0
        #: of addresses at which handshakes fail
        self._greetings: dict[str, Greeting] = {}
        self._connected_at = 0.0
        #: the descriptor of the latest connection
        self._number: int | None = None
        self._monitor = raw.get_monitor_socket(_LINK_EVENTS)
        try:
            if any(_name_in(address) for address in addresses):
                self._bell = _new_bell()
            self._connect()
        except BaseException:
            self.close()
            raise

    def pollable(self) -> list[zmq.Socket[bytes] | int]:
        bell = [self._bell[0]] if self._bell is not None else []
        return [self.raw, self._monitor, *bell]

    def receive(self) -> Received | Link | None:
        if self.news != RAW:
            if (change := self._link_change() or self._look_up_over()) is not None:
                return change
            self.news = RAW
        if self.is_told or has_message(self.raw):
            self.is_told = False
            try:
                parts = self.raw.recv_multipart(_NOW, copy=False)
                return Received([part.buffer for part in parts])
            except zmq.Again:
                pass
        self.news = 0
        return None

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        self.news |= RAW
        try:
            _send_frames(self.raw, frames)
        except zmq.Again:
            return Delivery.FULL if self.link is Link.UP else Delivery.GONE
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        if self._number is not None and (which := descriptors.descriptor(self._number)) is not None:
            descriptors.shut_down(which)

    def close(self) -> None:
        if self._lookup is not None:
            self._lookup.cancel()
        _close_monitored(self.raw, self._monitor)
        for fd in self._bell or ():
            os.close(fd)
        self._bell = None

    # -- where to -----------------------------------------------------------------------

    def _connect(self) -> None:
        """To the next address that is one at all; the others are passed over."""
        for _ in range(len(self._addresses)):
            name = _name_in(self._addresses[0])
            if name is not None:
                self._look_up(name)
                return
            if self._use([self._addresses[0]]):
                return
            self._addresses.rotate(-1)

    def _use(self, numbers: Sequence[str]) -> bool:
        """Connects to the first of them that is one; whether there is."""
        self._leave()
        for at, number in enumerate(numbers):
            with contextlib.suppress(zmq.ZMQError):
                self.raw.connect(number)
                self._numbers = deque(numbers[at:])
                return True
        return False

    def _leave(self) -> None:
        if self._numbers:
            with contextlib.suppress(zmq.ZMQError):  # ENOENT: libzmq gave it up by itself
                self.raw.disconnect(self._numbers[0])
        self._numbers.clear()

    def _next_address(self) -> None:
        """The present one leads nowhere, for now."""
        if self.link is Link.UP or self._lookup is not None:
            return
        if len(self._numbers) > 1:
            self._use(list(self._numbers)[1:])
        elif len(self._addresses) > 1:
            self._leave()
            self._addresses.rotate(-1)
            self._connect()
        else:
            self._look_up_again()

    def _look_up_again(self) -> None:
        """What has a name may be elsewhere by now. libzmq goes on with the number it has."""
        name = _name_in(self._addresses[0])
        if name is not None and time.monotonic() >= self._looked_up_at + _LOOK_UP_AGAIN_S:
            self._look_up(name)

    def _look_up(self, name: str) -> None:
        assert self._bell is not None
        if self._lookup is None:
            self._lookup = Lookup(name, partial(_ring, self._bell[1]))

    def _look_up_over(self) -> Link | None:
        if self._lookup is None or not self._lookup.is_over:
            return None
        assert self._bell is not None
        os.read(self._bell[0], 16)
        lookup, self._lookup, self._looked_up_at = self._lookup, None, time.monotonic()
        port = addresses.parse(self._addresses[0]).port
        found = [addresses.HostPort(number, port).tcp for number in lookup.numbers]
        if self._numbers and (self.link is Link.UP or not found):
            return None  # it is connected, or the name server is away: what was known is still the best
        if found and self._numbers and self._numbers[0] == found[0]:
            self._numbers = deque(found)  # libzmq is at it
            return None
        if found and self._use(found):
            self._nameless = 0
            return None
        self._nameless += 1
        if self._nameless >= len(self._addresses):
            return Link.NAMELESS
        self._addresses.rotate(-1)
        self._connect()
        return None

    # -- what becomes of it ---------------------------------------------------------------

    def _link_change(self) -> Link | None:
        while (message := _next_event(self._monitor)) is not None:
            change = self._changed(*message)
            if change is not None:
                self.link = change
                return change
        return None

    def _changed(self, event: int, value: int) -> Link | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed = self._gave_up = 0
            self._greetings.clear()
            return Link.UP
        if event == zmq.EVENT_DISCONNECTED:
            # That of a handshake which failed is no news.
            if self.link is not Link.UP:
                return None
            self._looked_up_at = 0.0
            self._look_up_again()
            return Link.DOWN
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Link.REFUSED
        if event == zmq.EVENT_CONNECT_RETRIED:
            self._next_address()
        elif event == zmq.EVENT_CONNECTED:
            self._connected_at, self._number = time.monotonic(), value
        elif time.monotonic() - self._connected_at < _AT_ONCE_S:
            return self._handshake_failed(event, value)
        return None

    def _handshake_failed(self, event: int, value: int) -> Link | None:
        """libzmq does not connect again after an error of the protocol, and does after others:
        one may fail because the other side was just ended."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self._was_last_address():
            is_mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
            return Link.MISMATCH if is_mismatch else Link.STRANGE
        if not self._numbers:
            return None  # of an address that was left
        self._failed += 1
        address = self._numbers[0]
        self._greetings[address] = self._greetings.get(address) or Greeting(address)
        enough = self._failed >= _STRANGE_AFTER * len(self._addresses)
        return self._judged() if enough and self.link is Link.DOWN else None

    def _judged(self) -> Link | None:
        """None while an address may still say what it speaks."""
        if not all(greeting.is_over for greeting in self._greetings.values()):
            return None
        other = "NULL" if self._encrypts else "CURVE"
        said = [greeting.mechanism for greeting in self._greetings.values()]
        return Link.MISMATCH if other in said else Link.STRANGE

    def _was_last_address(self) -> bool:
        """Another address may lead to whom we look for; libzmq has given this one up."""
        self._gave_up += len(self._numbers) <= 1
        if self._gave_up >= len(self._addresses):
            return True
        self._next_address()
        return False


def _name_in(address: str) -> str | None:
    """The host of `tcp://host:port` where it is a name; None for a number, and for no address."""
    try:
        host = addresses.parse(address).host
    except InvalidUsage:
        return None
    return None if host == addresses.WILDCARD or name_lookup.is_number(host) else host


def _ring(fd: int) -> None:
    os.write(fd, b"!")


def _new_bell() -> tuple[int, int]:
    """A pipe, not an inproc socket: it is rung in another thread."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
