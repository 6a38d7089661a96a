"""node/bulk/peer_connections.py on the in-memory network: who is connected to, and when an answer is given
up."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from zchunk.clock import ManualClock
from zchunk.errors import PeerUnreachable, ZchunkError
from zchunk.node.bulk.peer_connections import BULK, PeerConnections
from zchunk.node.home.membership import Identity
from zchunk.protocol import wire
from zchunk.protocol.messages import Acknowledge, Acknowledged, Conclude, Message, Ok, PeerRecord
from zchunk.runtime.loop import Loop
from zchunk.transport.auth import new_key_pair
from zchunk.transport.base import Delivery, Link, Received
from zchunk.transport.memory import MemoryPoller, MemoryTransport, Network

PEER = "a" * 32
UPLOAD = "b" * 32
STEP_S = 0.01


def record(status: str = "up", incarnation: int = 1, endpoint: str = "tcp://node:7710") -> PeerRecord:
    return PeerRecord(
        peer_id=PEER,
        name="LAB-PC3",
        role="node",
        status=status,
        incarnation=incarnation,
        endpoints=(endpoint,),
        capacity=0,
        free=0,
        chunks=0,
        last_seen_ms=0,
    )


CLIENT = Identity("c" * 32, None)


class Rig:
    """A client's links, and a node that answers what it is told to answer."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = Network(self.clock, Random(1))
        transport = MemoryTransport(self.network, "client")
        self.loop = Loop(transport.poller(), self.clock, "bulk")
        self.links = PeerConnections(self.loop, transport, CLIENT)
        self.reach: list[tuple[str, bool]] = []
        self.links.on_reachability = lambda peer_id, reachable: self.reach.append((peer_id, reachable))
        self.node = MemoryTransport(self.network, "node")
        self.server = Loop(self.node.poller(), self.clock, "node")
        self.answering = True
        self.asked: list[Message] = []
        self.start_node()
        self.answers: list[Any] = []

    def start_node(self) -> None:
        self.router = self.node.router("tcp://node:7710", BULK)
        self.server.add_socket(self.router, self.serve)

    def serve(self, received: Any) -> None:
        if not isinstance(received, Received):
            return
        envelope = wire.decode(received.frames)
        self.asked.append(envelope.message)
        if self.answering:
            self.router.send(wire.encode(Ok(), envelope.request_id), received.connection)

    def ask(self, timeout_s: float = 60.0) -> None:
        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            self.answers.append(error or reply)

        self.links.request(PEER, Conclude(upload_id=UPLOAD), timeout_s, answer)

    def run(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.network.schedule(STEP_S, lambda: None)
            at = self.clock.monotonic()
            while self.clock.monotonic() < at + STEP_S and self.network.step():
                self.server.turn()
                self.loop.turn()

    @property
    def connections(self) -> int:
        return len(self.router.connections())  # type: ignore[attr-defined]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    assert isinstance(rig.loop._poller, MemoryPoller)
    yield rig
    rig.loop.close()


def test_a_request_is_answered(rig: Rig) -> None:
    rig.links.set_peer(record())
    rig.ask()
    rig.run(0.1)
    assert rig.answers == [Ok()]


def test_without_an_address_the_answer_is_an_error_at_once(rig: Rig) -> None:
    rig.ask()
    assert isinstance(rig.answers[0], PeerUnreachable)


def test_a_peer_without_an_address_is_told_by_its_name(rig: Rig) -> None:
    rig.ask()
    rig.links.set_peer(replace(record(), endpoints=()))
    rig.ask()
    assert [error.message for error in rig.answers] == [
        f"peer {PEER[:8]} has no known address",
        "LAB-PC3 has no known address",
    ]


def test_the_connection_to_a_peer_that_went_ends_and_is_not_tried_again(rig: Rig) -> None:
    rig.answering = False
    rig.links.set_peer(record())
    rig.ask()
    rig.run(0.1)
    rig.links.set_peer(record("down"))
    assert isinstance(rig.answers[0], PeerUnreachable)
    assert "LAB-PC3 is down" in str(rig.answers[0])
    rig.run(60.0)
    assert rig.connections == 0


def test_a_peer_that_is_back_is_connected_to_at_once(rig: Rig) -> None:
    """Not after the pause between two attempts of a socket that stood there meanwhile."""
    rig.links.set_peer(record())
    rig.ask()
    rig.run(0.1)
    rig.loop._poller.wait(0)
    rig.server.remove_socket(rig.router)
    rig.run(5.0)
    rig.start_node()
    rig.links.set_peer(record(incarnation=2))
    rig.ask()
    rig.run(3 * STEP_S)
    assert rig.answers == [Ok(), Ok()]


def test_a_peer_that_cannot_be_connected_to_is_told_and_its_return_too(rig: Rig) -> None:
    rig.network.cut("client", "node")
    rig.links.set_peer(record())
    rig.ask()
    rig.run(2.1)
    assert rig.reach == [(PEER, False)]
    assert isinstance(rig.answers[0], PeerUnreachable)
    assert "cannot be reached" in str(rig.answers[0])
    rig.run(60.0)
    assert rig.reach == [(PEER, False)], "told once"
    rig.network.heal()
    rig.run(0.5)
    assert rig.reach == [(PEER, False), (PEER, True)]
    rig.ask()
    rig.run(0.1)
    assert rig.answers[1] == Ok()


def test_a_silent_peer_is_asked_and_then_given_up(rig: Rig) -> None:
    rig.answering = False
    rig.links.set_peer(record())
    rig.ask()
    rig.run(2.2)
    assert isinstance(rig.asked[-1], Acknowledge)
    assert rig.reach == []
    rig.run(2.2)
    assert rig.reach[0] == (PEER, False)
    assert isinstance(rig.answers[0], PeerUnreachable)


def test_a_peer_that_answers_the_question_may_take_its_time_for_the_rest(rig: Rig) -> None:
    rig.links.set_peer(record())
    rig.ask()
    rig.run(0.1)
    rig.serve_only = None  # type: ignore[attr-defined]
    original = rig.serve

    def slow(received: Any) -> None:
        rig.answering = isinstance(received, Received) and isinstance(
            wire.decode(received.frames).message, Acknowledge
        )
        original(received)

    rig.server._handlers[rig.router] = slow
    rig.ask(timeout_s=40.0)
    rig.run(30.0)
    assert rig.reach == []
    assert rig.answers == [Ok()], "still waiting"
    rig.run(11.0)
    assert "did not answer in time" in str(rig.answers[1])


def test_a_peer_that_serves_others_first_is_told_and_when_it_does_not_any_more(rig: Rig) -> None:
    busy: list[tuple[str, bool]] = []
    rig.links.on_busy = lambda peer_id, is_busy: busy.append((peer_id, is_busy))
    rig.links.set_peer(record())
    waiting: list[tuple[bytes, int]] = []

    def serve(received: Any) -> None:
        if isinstance(received, Received):
            envelope = wire.decode(received.frames)
            if isinstance(envelope.message, Acknowledge):
                reply = wire.encode(Acknowledged(busy=True), envelope.request_id)
                rig.router.send(reply, received.connection)
            else:
                waiting.append((received.connection, envelope.request_id))

    rig.server._handlers[rig.router] = serve
    rig.ask()
    rig.run(1.9)
    assert busy == []
    rig.run(0.5)
    assert busy == [(PEER, True)], "once it was asked whether it is there"
    rig.run(10.0)
    assert busy == [(PEER, True)], "told once"
    for connection, request_id in waiting:
        rig.router.send(wire.encode(Ok(), request_id), connection)
    rig.run(0.1)
    assert busy == [(PEER, True), (PEER, False)]


def test_a_silence_while_nothing_is_asked_is_none(rig: Rig) -> None:
    rig.links.set_peer(record())
    rig.ask()
    rig.run(0.1)
    asked = len(rig.asked)
    rig.run(300.0)
    assert (rig.reach, len(rig.asked)) == ([], asked)


# -- a connection that ends -----------------------------------------------------------------


class Ending:
    """A DEALER, and its transport and poller, that takes every message: as libzmq does until
    it has noticed itself that a connection ended, which its monitor tells before."""

    endpoint = ""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.sent: list[Any] = []

    def dealer(self, addresses: Any, options: Any, curve: Any) -> Any:
        return self

    def receive(self) -> Any:
        return self.waiting.pop(0) if self.waiting else None

    def send(self, frames: Any, connection: bytes = b"") -> Delivery:
        self.sent.append(frames)
        return Delivery.SENT

    def register(self, socket: Any) -> None: ...

    def unregister(self, socket: Any) -> None: ...

    def close(self) -> None: ...

    def wait(self, timeout_s: float | None) -> list[Any]:
        return [self] if self.waiting else []


def test_what_is_asked_as_a_connection_ends_is_sent_on_the_next_one() -> None:
    """An upload asks again at once when an answer is an error."""
    socket: Any = Ending()
    loop = Loop(socket, ManualClock(), "bulk")
    links = PeerConnections(loop, socket, CLIENT)
    links.set_peer(record())
    answers: list[Any] = []

    def answer(reply: Message | None, error: ZchunkError | None) -> None:
        answers.append(error or reply)
        if error is not None:
            ask()

    def ask() -> None:
        links.request(PEER, Conclude(upload_id=UPLOAD), 60.0, answer)

    def sees(*what: Any) -> None:
        socket.waiting += what
        while socket.waiting:
            loop.turn()

    ask()
    sees(Link.UP, Link.DOWN)
    assert [type(each) for each in answers] == [PeerUnreachable]
    assert len(socket.sent) == 1, "nothing more goes to the connection that ended"
    sees(Link.UP)
    sees(Received(wire.encode(Ok(), wire.decode(socket.sent[1]).request_id)))
    assert answers[1:] == [Ok()]


# -- a peer that does not talk to us -------------------------------------------------------------


class Doors:
    """Links whose sockets the test speaks for."""

    def __init__(self, identity: Identity = CLIENT) -> None:
        self.clock = ManualClock()
        self.sockets: list[Any] = []
        poller: Any = Ending()
        self.loop = Loop(poller, self.clock, "bulk")
        transport: Any = self
        self.links = PeerConnections(self.loop, transport, identity)
        self.reach: list[tuple[str, bool]] = []
        self.links.on_reachability = lambda peer_id, reachable: self.reach.append((peer_id, reachable))
        self.answers: list[Any] = []
        self.keys: list[Any] = []

    def dealer(self, addresses: Any, options: Any, curve: Any) -> Any:
        self.sockets.append(Ending())
        self.keys.append(curve)
        return self.sockets[-1]

    def ask(self) -> None:
        self.links.request(
            PEER, Conclude(upload_id=UPLOAD), 60.0, lambda reply, error: self.answers.append(error or reply)
        )

    def sees(self, what: Any) -> None:
        self.loop._handlers[self.sockets[-1]](what)

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.links.on_time(self.clock.monotonic())


@pytest.fixture
def doors() -> Doors:
    doors = Doors()
    doors.links.set_peer(record())
    doors.ask()
    return doors


@pytest.mark.parametrize("link", [Link.REFUSED, Link.MISMATCH])
def test_a_closed_door_answers_what_was_asked_and_is_tried_after_a_pause(doors: Doors, link: Link) -> None:
    doors.sees(link)
    assert [type(answer) for answer in doors.answers] == [PeerUnreachable]
    assert doors.reach == [(PEER, False)]
    doors.later(1.0)
    assert len(doors.sockets) == 1, "not at once"
    doors.later(2.0)
    assert len(doors.sockets) == 2
    doors.sees(Link.UP)
    assert doors.reach[-1] == (PEER, True)


def test_a_peer_that_went_after_it_refused_us_is_not_tried_again(doors: Doors) -> None:
    doors.sees(Link.REFUSED)
    doors.links.set_peer(record(status="down"))
    doors.later(10.0)
    assert len(doors.sockets) == 1
    assert doors.links.deadline() is None


def test_a_peer_that_has_a_new_key_is_connected_to_anew() -> None:
    doors = Doors(Identity("c" * 32, new_key_pair()))
    doors.links.set_peer(replace(record(), public_key="11" * 32))
    doors.ask()
    doors.links.set_peer(replace(record(), public_key="22" * 32))
    assert [type(answer) for answer in doors.answers] == [PeerUnreachable]
    doors.ask()
    assert [curve.server_key for curve in doors.keys] == [b"\x11" * 32, b"\x22" * 32]


def test_a_peer_without_a_key_is_nobody_to_encrypt_to() -> None:
    """Never to whoever listens there: the handshake can come to nothing only."""
    doors = Doors(Identity("c" * 32, new_key_pair()))
    doors.links.set_peer(record())
    doors.ask()
    assert doors.keys[0].server_key == bytes(32)
