"""zchunk/runtime/disconnects.py: a hint is no proof, a proof is told once, a wrong suspect is let go.
And the hints of real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zchunk.clock import ManualClock, SystemClock
from zchunk.protocol import wire
from zchunk.protocol.messages import Probe
from zchunk.runtime.disconnects import Disconnects
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Arrival, Delivery, Link, Received, SocketOptions, Suspects
from zchunk.transport.memory import MemoryPoller
from zchunk.transport.zeromq import ZmqTransport

OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)
DEADLINE_S = 20.0


class FakeRouter:
    """Answers each send as the test says."""

    endpoint = ""

    def __init__(self) -> None:
        self.gone: set[bytes] = set()
        self.probed: list[bytes] = []

    def receive(self) -> Arrival | None:
        return None

    def send(self, frames: object, connection: bytes = b"") -> Delivery:
        assert wire.decode(frames).message == Probe()  # type: ignore[arg-type]
        self.probed.append(connection)
        return Delivery.GONE if connection in self.gone else Delivery.SENT

    def reject(self, arrival: Arrival) -> None: ...

    def close(self) -> None: ...


class Watch:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.router = FakeRouter()
        self.told: list[bytes] = []
        self.disconnects = Disconnects(
            Loop(MemoryPoller(), self.clock, "test"), self.router, self.told.append
        )

    def run(self, seconds: float) -> None:
        """Wakes it at its deadlines for so long."""
        end = self.clock.monotonic() + seconds
        while (at := self.disconnects.deadline()) is not None and at <= end:
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            self.disconnects.on_time(self.clock.monotonic())


def test_what_the_transport_knows_at_once_is_told_at_once() -> None:
    watch = Watch()
    watch.router.gone = {b"a"}
    watch.disconnects.suspect([b"a"])
    assert watch.told == [b"a"]
    assert watch.disconnects.deadline() is None


def test_the_proof_may_come_later_than_the_hint_and_is_told_once() -> None:
    watch = Watch()
    watch.disconnects.suspect([b"a", b"b"])
    watch.run(0.01)
    assert watch.told == []
    watch.router.gone = {b"a"}
    watch.run(0.02)
    assert watch.told == [b"a"], "and not b, which stands"
    watch.run(10)
    assert watch.told == [b"a"]


def test_a_connection_that_stands_is_let_go_after_a_few_probes() -> None:
    watch = Watch()
    watch.disconnects.suspect([b"alive"])
    watch.run(10)
    assert watch.told == []
    assert watch.disconnects.deadline() is None
    assert 5 <= len(watch.router.probed) <= 30


def test_a_second_hint_begins_anew() -> None:
    watch = Watch()
    watch.disconnects.suspect([b"a"])
    watch.run(0.2)
    watch.disconnects.suspect([b"a"])
    watch.run(0.2)
    watch.router.gone = {b"a"}
    watch.run(1)
    assert watch.told == [b"a"]


# -- real sockets -----------------------------------------------------------------------


class Server:
    """A ROUTER on loopback in a loop of its own, turned by the test."""

    def __init__(self) -> None:
        self.transport = ZmqTransport()
        self.loop = Loop(self.transport.poller(), SystemClock(), "server")
        self.router = self.transport.router("tcp://127.0.0.1:0", OPTIONS)
        self.loop.add_socket(self.router, self.on_arrival)
        self.gone: list[bytes] = []
        self.seen: dict[bytes, bytes] = {}
        self.hints: list[Suspects] = []
        self.disconnects = Disconnects(self.loop, self.router, self.gone.append)

    def on_arrival(self, arrival: Arrival) -> None:
        if isinstance(arrival, Suspects):
            self.hints.append(arrival)
            self.disconnects.suspect(arrival.connections)
        elif isinstance(arrival, Received):
            self.seen[bytes(arrival.frames[0])] = arrival.connection

    def turn_until(self, condition: object) -> None:
        end = self.loop.clock.monotonic() + DEADLINE_S
        while not condition():  # type: ignore[operator]
            assert self.loop.clock.monotonic() < end, (self.seen, self.gone, self.hints)
            self.loop.turn(min(0.01, self.loop.timeout() or 0.01))


class Caller:
    """A DEALER that has said its name to the server."""

    def __init__(self, server: Server, name: bytes) -> None:
        self.transport = ZmqTransport()
        self.socket = self.transport.dealer([server.router.endpoint], OPTIONS)
        self.poller = self.transport.poller()
        self.poller.register(self.socket)
        while self.socket.receive() is not Link.UP:
            server.router._bound.answer_gate()
            self.poller.wait(0.01)
        self.socket.send([name])
        server.turn_until(lambda: name in server.seen)
        self.connection = server.seen[name]

    def close(self) -> None:
        self.poller.close()
        self.socket.close()
        self.transport.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.loop.close()
    server.transport.close()


def test_a_closed_connection_is_told_and_no_other(server: Server) -> None:
    callers = [Caller(server, b"caller%d" % number) for number in range(5)]
    callers[2].close()
    server.turn_until(lambda: server.gone)
    assert server.gone == [callers[2].connection]
    for caller in callers[:2] + callers[3:]:
        assert server.router.send([b"still"], caller.connection) is Delivery.SENT
        caller.close()
    server.turn_until(lambda: len(server.gone) == 5)
    assert sorted(server.gone) == sorted(caller.connection for caller in callers)
    assert not server.router._by_descriptor
    assert not server.router._shown


def test_a_connection_with_a_reused_descriptor_is_not_taken_for_the_one_that_ended(server: Server) -> None:
    """The server reads no hint before the next connection has the same descriptor."""
    first = Caller(server, b"first")
    descriptor = server.router._shown[first.connection].number
    first.close()
    later = []
    for number in range(20):
        later.append(Caller(server, b"later%d" % number))
        if server.router._shown[later[-1].connection].number == descriptor:
            break
    server.turn_until(lambda: first.connection in server.gone)
    server.turn_until(lambda: server.disconnects.deadline() is None)
    assert server.gone == [first.connection]
    for caller in later:
        caller.close()


def test_hundreds_of_connections_come_and_go(server: Server) -> None:
    """Some 500 unread monitor events would stop the context."""
    for number in range(120):
        for caller in [Caller(server, b"%d-%d" % (number, at)) for at in range(5)]:
            caller.close()
    server.turn_until(lambda: len(server.gone) == 600)
    assert len(set(server.gone)) == 600
