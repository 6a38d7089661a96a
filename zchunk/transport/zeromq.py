"""ZeroMQ behind the interface of `base`: makes its context and its sockets.

What these do is in `bound_sockets.py` and `connected_socket.py`; their options are in
`socket_settings.py`. What may not happen here: a routing id that we set, ROUTER_HANDOVER, a ROUTER
send without MANDATORY, a blocking call outside `ZmqPoller.wait`; a socket bound under CURVE that
lets a key in which no gate was asked about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import zmq
from zmq.utils.garbage import gc as returns

from zchunk.system.os_errors import check_descriptors
from zchunk.transport.base import Poller, SocketOptions
from zchunk.transport.binding import bind_at
from zchunk.transport.bound_sockets import Bound, PublisherSocket, RouterSocket
from zchunk.transport.connected_socket import ConnectedSocket
from zchunk.transport.guard.connections import Connections
from zchunk.transport.keys import CurveClient, CurveServer
from zchunk.transport.poller import ZmqPoller
from zchunk.transport.socket_settings import (
    PLAIN_WINDOW_BYTES,
    ask_gate,
    in_words,
    limits,
    set_heartbeats,
    set_options,
)
from zchunk.transport.zap import PLAIN_DOMAIN, Admissions, PlainGate, ZapGate

_UNACKNOWLEDGED_MS = 2000


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
            with in_words():
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
        with in_words():
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
            set_heartbeats(raw, options)
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
    ) -> Iterator[Bound]:
        """A socket with these options of libzmq's, bound; closed again where the block fails."""
        with self._socket(kind, options, curve) as raw, self._plain_gate(curve) as gate:
            for flag, value in flags.items():
                raw.setsockopt(flag, value)
            if curve is None:
                raw.setsockopt(zmq.RCVBUF, PLAIN_WINDOW_BYTES)
            ask_gate(raw, curve.door if curve is not None else PLAIN_DOMAIN)
            endpoint = bind_at(raw, bind)
            delivered = self._connections.watch(endpoint, limits(options))
            yield Bound(raw, endpoint, self._admissions, curve is not None, delivered, gate)

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
        with in_words():
            raw = self._context.socket(kind)
            try:
                set_options(raw, options, curve)
                yield raw
            except BaseException:
                raw.close(0)
                raise


def _prepare_for_large_frames() -> None:
    """pyzmq has a context and a thread of its own, which give back the memory of frames that are not
    copied. It starts them with the first of these: where that fails nobody can be told, and by then
    strangers may have taken all descriptors."""
    if not returns.is_alive():
        zmq.Frame(b"\0", copy=False)
