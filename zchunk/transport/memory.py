"""An in-memory network for simulations: the interface of `base`, driven by a `ManualClock`.

One `Network` carries every message of a simulated cluster as an event in a queue ordered
by time. Delay, loss, duplication and corruption come from a seeded `Random`, so a seed
replays exactly. It is harsher than TCP: messages of one connection may overtake each
other, be lost or be doubled while the connection stands.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from zchunk.clock import ManualClock
from zchunk.errors import InvalidUsage
from zchunk.system import addresses
from zchunk.transport.base import (
    Arrival,
    BoundSocket,
    Buffer,
    Delivery,
    Gate,
    Link,
    Poller,
    Received,
    Socket,
    SocketOptions,
    Suspects,
)
from zchunk.transport.keys import CurveClient, CurveServer

T = TypeVar("T", bound="ServerSocket | ClientSocket")

#: How long a cut line stays unnoticed: the ZMTP heartbeat's timeout.
_UNNOTICED_S = 2.0
_CONNECT_S = 0.01
_RETRY_S = 0.2
_FIRST_PORT = 40_000
#: Mostly the end of a connection is hinted at; a lease must do where it is not.
_HINTED = 0.9


@dataclass(frozen=True)
class Faults:
    """Probabilities per message; delays in seconds. `corrupt` flips one bit of a payload."""

    delay_min: float = 0.0001
    delay_max: float = 0.002
    loss: float = 0.0
    double: float = 0.0
    corrupt: float = 0.0


@dataclass(slots=True)
class Connection:
    """A client socket's connection to a bound one."""

    name: bytes
    client: ClientSocket
    server: ServerSocket
    alive: bool = True
    #: when the latest message of each direction was delivered, to count overtaking
    last_sent: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})


class Network:
    def __init__(self, clock: ManualClock, rng: Random, faults: Faults | None = None) -> None:
        self.clock = clock
        self.rng = rng
        self.faults = faults or Faults()
        #: what was done to messages: lost, doubled, reordered, corrupted, delivered
        self.counts: Counter[str] = Counter()
        self.bound: dict[str, ServerSocket] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._next_port = _FIRST_PORT
        self._cut: set[frozenset[str]] = set()

    # -- time -----------------------------------------------------------------------

    def schedule(self, delay: float, call: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.clock.monotonic() + max(0.0, delay), self._serial, call))

    def step(self) -> bool:
        """Carry out the next event, moving the clock to it; False when there is none."""
        if not self._events:
            return False
        at, _, call = heapq.heappop(self._events)
        self.clock.advance(max(0.0, at - self.clock.monotonic()))
        call()
        return True

    # -- faults ---------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two hosts. Sockets with heartbeats notice it after a while;
        the others' connections stand, and go on where the line is mended."""
        self._cut.add(frozenset((one, other)))
        for server in self.bound.values():
            for connection in server.connections():
                if connection.client.heartbeats and self._is_cut(connection.client.host, server.host):
                    self.schedule(_UNNOTICED_S, lambda c=connection: self._end_if_cut(c))  # type: ignore[misc]

    def heal(self) -> None:
        self._cut.clear()

    def _is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cut

    def _end_if_cut(self, connection: Connection) -> None:
        if self._is_cut(connection.client.host, connection.server.host):
            self.end(connection)

    # -- messages -------------------------------------------------------------------

    def transmit(self, connection: Connection, up: bool, frames: Sequence[Buffer]) -> None:
        """Put a message on the line: it arrives later, perhaps not at all or twice."""
        copy = [bytes(frame) for frame in frames]
        self._serial += 1
        number = self._serial
        if self._chance(self.faults.loss, "lost") or self._is_cut(
            connection.client.host, connection.server.host
        ):
            return
        times = 2 if self._chance(self.faults.double, "doubled") else 1
        for _ in range(times):
            delay = self.rng.uniform(self.faults.delay_min, self.faults.delay_max)
            self.schedule(delay, lambda: self._deliver(connection, up, number, copy))

    def _chance(self, probability: float, name: str) -> bool:
        happened = probability > 0 and self.rng.random() < probability
        self.counts[name] += happened
        return happened

    def _deliver(self, connection: Connection, up: bool, number: int, frames: list[bytes]) -> None:
        if not connection.alive or self._is_cut(connection.client.host, connection.server.host):
            return
        direction = "up" if up else "down"
        self.counts["delivered"] += 1
        self.counts["reordered"] += number < connection.last_sent[direction]
        connection.last_sent[direction] = max(number, connection.last_sent[direction])
        payload = self._flipped(frames)
        if up:
            connection.server.put(Received(payload, connection.name, address=connection.client.host))
        else:
            connection.client.put(Received(payload))

    def _flipped(self, frames: list[bytes]) -> list[bytes]:
        if len(frames) < 2 or len(frames[-1]) < 1024 or not self._chance(self.faults.corrupt, "corrupted"):
            return frames
        damaged = bytearray(frames[-1])
        bit = self.rng.randrange(8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
        return [*frames[:-1], bytes(damaged)]

    # -- connections ----------------------------------------------------------------

    def bind(self, address: str, server: ServerSocket) -> str:
        at = addresses.parse(address)
        port = at.port
        if not port:
            port, self._next_port = self._next_port, self._next_port + 1
        endpoint = addresses.HostPort(at.host, port).tcp
        if endpoint in self.bound:
            raise InvalidUsage(f"cannot listen on {endpoint}: another program uses it")
        self.bound[endpoint] = server
        return endpoint

    def try_connect(self, client: ClientSocket) -> None:
        """One attempt at the client's next address, and so on until one works."""
        if client.closed or client.connection is not None:
            return
        address = client.next_address()
        server = self.bound.get(address)
        if server is None or self._is_cut(client.host, server.host):
            self.schedule(self.rng.uniform(_RETRY_S / 2, _RETRY_S), lambda: self.try_connect(client))
            return
        self._serial += 1
        connection = Connection(b"c%d" % self._serial, client, server)
        client.connection = connection
        server.add(connection)
        client.put(Link.UP)

    def end(self, connection: Connection) -> None:
        """The connection is gone, and both sides know."""
        if not connection.alive:
            return
        connection.alive = False
        connection.server.drop(connection)
        client = connection.client
        client.connection = None
        client.put(Link.DOWN)
        if not client.closed:
            self.schedule(_CONNECT_S, lambda: self.try_connect(client))


class MemorySocket:
    """What every socket has: an inbox, and a poller that hears of it."""

    def __init__(self, network: Network, host: str, endpoint: str = "") -> None:
        self.network = network
        self.host = host
        self.endpoint = endpoint
        self.closed = False
        self.poller: MemoryPoller | None = None
        self._inbox: deque[Arrival] = deque()

    def put(self, received: Arrival) -> None:
        if self.closed:
            return
        self._inbox.append(received)
        if self.poller is not None:
            self.poller.wake()

    def receive(self) -> Arrival | None:
        return self._inbox.popleft() if self._inbox else None

    @property
    def readable(self) -> bool:
        return bool(self._inbox)


class ServerSocket(MemorySocket):
    """ROUTER or PUB."""

    def __init__(self, network: Network, host: str, bind: str, publishes: bool) -> None:
        super().__init__(network, host)
        self._publishes = publishes
        self._connections: dict[bytes, Connection] = {}
        self.endpoint = network.bind(bind, self)

    def connections(self) -> list[Connection]:
        return list(self._connections.values())

    def add(self, connection: Connection) -> None:
        self._connections[connection.name] = connection

    def drop(self, connection: Connection) -> None:
        """It is gone. What the hint says may fit a live connection too, as with real sockets."""
        self._connections.pop(connection.name, None)
        if not self._publishes and self.network.rng.random() < _HINTED:
            others = sorted(self._connections)[:1]
            self.put(Suspects((connection.name, *others)))

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        targets = self.connections() if self._publishes else [self._connections.get(connection)]
        for target in targets:
            if target is None:
                return Delivery.GONE
            self.network.transmit(target, False, frames)
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        if isinstance(arrival, Received):
            self.end_connection(arrival.connection)

    def end(self, peer_id: str) -> None:
        """Nobody proves here who he is."""

    def end_connection(self, connection: bytes) -> None:
        if (known := self._connections.get(connection)) is not None:
            self.network.end(known)

    def close(self) -> None:
        self.closed = True
        self.network.bound.pop(self.endpoint, None)
        for connection in self.connections():
            self.network.end(connection)


class ClientSocket(MemorySocket):
    """DEALER or SUB."""

    def __init__(self, network: Network, host: str, targets: Sequence[str], heartbeats: bool) -> None:
        super().__init__(network, host)
        self.heartbeats = heartbeats
        self.connection: Connection | None = None
        self._targets = deque(targets)
        network.schedule(_CONNECT_S, lambda: network.try_connect(self))

    def next_address(self) -> str:
        self._targets.rotate(-1)
        return self._targets[-1]

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        if self.connection is None:
            return Delivery.GONE
        self.network.transmit(self.connection, True, frames)
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        if self.connection is not None:
            self.network.end(self.connection)

    def close(self) -> None:
        self.closed = True
        if self.connection is not None:
            self.network.end(self.connection)


class MemoryPoller:
    """Never blocks: `on_wake` asks the simulation to give its loop a turn."""

    def __init__(self) -> None:
        self.on_wake: Callable[[], None] = lambda: None
        self._sockets: list[MemorySocket] = []

    def register(self, socket: Socket) -> None:
        assert isinstance(socket, MemorySocket)
        socket.poller = self
        self._sockets.append(socket)
        if socket.readable:
            self.wake()

    def unregister(self, socket: Socket) -> None:
        assert isinstance(socket, MemorySocket)
        self._sockets.remove(socket)

    def wait(self, timeout_s: float | None) -> list[Socket]:
        return [socket for socket in self._sockets if socket.readable]  # type: ignore[misc]

    def wake(self) -> None:
        self.on_wake()

    def close(self) -> None:
        self._sockets.clear()


class MemoryTransport:
    """One host's sockets on the network."""

    def __init__(self, network: Network, host: str) -> None:
        self.network = network
        self.host = host
        self._sockets: list[ServerSocket | ClientSocket] = []

    def poller(self) -> Poller:
        return MemoryPoller()

    def gate(self) -> Gate:
        raise NotImplementedError("simulations have plain transport: nobody knocks")

    def router(self, bind: str, options: SocketOptions, curve: CurveServer | None = None) -> BoundSocket:
        return self._keep(ServerSocket(self.network, self.host, bind, publishes=False))

    def publisher(self, bind: str, options: SocketOptions, curve: CurveServer | None = None) -> BoundSocket:
        return self._keep(ServerSocket(self.network, self.host, bind, publishes=True))

    def dealer(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> Socket:
        return self._keep(ClientSocket(self.network, self.host, addresses, options.heartbeats))

    def subscriber(
        self, addresses: Sequence[str], options: SocketOptions, curve: CurveClient | None = None
    ) -> Socket:
        return self._keep(ClientSocket(self.network, self.host, addresses, heartbeats=False))

    def close(self) -> None:
        """All sockets end at once: also what a crash of the host's process looks like."""
        for socket in self._sockets:
            socket.close()
        self._sockets = []

    def _keep(self, socket: T) -> T:
        self._sockets.append(socket)
        return socket
