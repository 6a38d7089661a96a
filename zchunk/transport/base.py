"""What a loop needs of a transport. `zeromq` implements it, `memory` simulates it.

All calls but `Poller.wake` belong to the one thread that runs the loop; none blocks
except `Poller.wait`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from msgspec import Struct

from zchunk.transport.keys import CurveClient, CurveServer

Buffer = bytes | bytearray | memoryview


class Received(Struct, frozen=True):
    """A message off a socket. `frames[0]` is the header, or an event's topic.

    `connection` names the link it came by (ROUTER only; answers go there). `peer_id` is
    proven by the transport (CURVE), None in plain. `address` is the other side's IP.
    """

    frames: Sequence[Buffer]
    connection: bytes = b""
    peer_id: str | None = None
    address: str | None = None


class Link(Enum):
    """What became of a DEALER's or SUB's connection."""

    UP = "up"
    DOWN = "down"
    # After one of these the socket may have given up: its owner makes another one later.
    #: the other side does not let our key in (CURVE)
    REFUSED = "refused"
    #: one side encrypts and the other does not
    MISMATCH = "mismatch"
    #: connections are made and no handshake works: another program, or another key
    STRANGE = "strange"
    #: none of its names resolves here
    NAMELESS = "nameless"


@dataclass(frozen=True, slots=True)
class Suspects:
    """A ROUTER's hint that a connection has ended, and which it may have been.

    A hint only: the operating system re-uses descriptors at once, so a later connection
    may be among them. `runtime/disconnects.py` finds out which one is gone.
    """

    connections: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Knock:
    """A key that wants to connect at one of our doors; `Gate.answer` lets it in or not."""

    door: str
    public_key: bytes
    #: the other side's IP
    address: str
    ticket: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Readable:
    """Something outside is to be looked at (fd_source.py)."""


#: what `Socket.receive` brings
Arrival = Received | Link | Suspects | Knock | Readable


class Delivery(Enum):
    """What became of a send. Only SENT means that the message is on its way."""

    SENT = "sent"
    FULL = "full"  # the receiver takes no more for now
    GONE = "gone"  # no such connection (ROUTER), or not connected (DEALER)


class Socket(Protocol):
    """One socket; `receive` and `send` never block."""

    #: where it can be reached, `tcp://host:port`; "" for a socket that connects
    endpoint: str

    def receive(self) -> Arrival | None:
        """The next message, change of the link (DEALER, SUB) or hint of an end (ROUTER);
        None when there is nothing."""

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery: ...

    def reject(self, arrival: Arrival) -> None:
        """End the connection that this came by, or refuse who knocks. A socket that connects does
        so again."""

    def close(self) -> None: ...


class BoundSocket(Socket, Protocol):
    """One that others connect to."""

    def end(self, peer_id: str) -> None:
        """End the connections of this member, also those on which it has not said a word (under
        CURVE; in plain transport nobody is known). It may connect again, if the gate lets it."""

    def end_connection(self, connection: bytes) -> None:
        """End this one (of a ROUTER), with what waits in it. Its other end may connect again."""


class Gate(Socket, Protocol):
    """Receives a `Knock` for each key that connects to a socket bound under CURVE."""

    def answer(self, knock: Knock, peer_id: str | None) -> None:
        """Let it in as `peer_id`, or refuse it. Each knock is answered once, within the
        three seconds that a handshake may take."""


class Poller(Protocol):
    def register(self, socket: Socket) -> None: ...

    def unregister(self, socket: Socket) -> None: ...

    def wait(self, timeout_s: float | None) -> list[Socket]:
        """Sockets with something to receive; returns early when woken."""

    def wake(self) -> None:
        """Make a `wait` under way, or the next one, return. From any thread."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class SocketOptions:
    """Limits of a socket. Marks count messages: they are the last wall, not flow control."""

    max_frame_bytes: int
    send_mark: int = 1000
    receive_mark: int = 1000
    linger_ms: int = 1000
    #: A ROUTER's large frames that one connection may leave unread, in bytes; four times that
    #: for all connections, where each may leave one.
    unread_bytes: int = 64 * 1024 * 1024
    #: What honest senders together may have on the way to a ROUTER, in bytes; 0 where each sends
    #: one message at a time.
    receive_bytes: int = 0
    #: ZMTP heartbeats find a pulled cable; on control sockets that connect to ask only (a big frame
    #: on a slow link would outlast them, and events come by themselves, each second). Who is
    #: connected to answers them, and expects the next.
    heartbeats: bool = False


class Transport(Protocol):
    """`curve` is None in plain transport: nothing is encrypted, and nobody is refused."""

    def poller(self) -> Poller: ...

    def gate(self) -> Gate:
        """One for all sockets of this transport, made before any of them is bound: without a
        gate nobody is let in."""

    def router(self, bind: str, options: SocketOptions, curve: CurveServer | None = None) -> BoundSocket:
        """Bind at `tcp://host:port`; port 0 takes a free one."""

    def dealer(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> Socket:
        """Connect to one peer that may be reached by any of `addresses`."""

    def publisher(
        self, bind: str, options: SocketOptions, curve: CurveServer | None = None
    ) -> BoundSocket: ...

    def subscriber(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> Socket:
        """Subscribes to every topic."""

    def close(self) -> None: ...
