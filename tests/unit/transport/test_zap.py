"""transport/zap.py and the sockets behind it (bound_sockets.py): who is let in, as which connection,
and until when. Real sockets on loopback, in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from socket import socket as TcpSocket
from typing import Any

import pytest
import zmq

from tests.hostile import zmtp
from tests.waiting import wait_for
from zchunk.transport.auth import new_key_pair
from zchunk.transport.base import Delivery, Knock, Link, Received, SocketOptions
from zchunk.transport.bound_sockets import _descriptor_number as number
from zchunk.transport.connected_socket import ConnectedSocket
from zchunk.transport.keys import CurveClient, CurveServer, KeyPair
from zchunk.transport.zap import Admission, Admissions, ZapGate, parse_admission
from zchunk.transport.zeromq import ZmqTransport

OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)
DEADLINE_S = 20.0
SERVER, DOOR = new_key_pair(), "a door"
A, B = "a" * 32, "b" * 32


# -- numbers --------------------------------------------------------------------------------


def test_an_admission_travels_as_text() -> None:
    admission = Admissions().admit(A)
    assert parse_admission(admission.encode().decode()) == admission == Admission(A, 1)


@pytest.mark.parametrize("user_id", [None, "", A])
def test_what_no_gate_was_asked_about_is_no_admission(user_id: str | None) -> None:
    assert parse_admission(user_id) is None


def test_an_end_voids_what_was_admitted_before_and_nothing_later_nor_of_others() -> None:
    admissions = Admissions()
    first, other, second = admissions.admit(A), admissions.admit(B), admissions.admit(A)
    admissions.end(A)
    later = admissions.admit(A)
    assert [admissions.is_void(a) for a in (first, other, second, later, None)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    admissions.end(A)
    assert admissions.is_void(later)


# -- the gate's messages ----------------------------------------------------------------------


GOOD = [b"1.0", b"7", b"door", b"10.0.0.7", b"", b"CURVE", b"k" * 32]
BAD = {
    "another version": [b"2.0", *GOOD[1:]],
    "another mechanism": [*GOOD[:5], b"PLAIN", b"name", b"password"],
    "no mechanism": [*GOOD[:5], b"NULL"],
    "a short key": [*GOOD[:6], b"k" * 31],
    "no key": GOOD[:6],
    "one frame more": [*GOOD, b""],
}


class Asked:
    """A gate, and one who puts the question to it that libzmq puts for each handshake."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.gate = ZapGate(self.context, Admissions())
        self.client = self.context.socket(zmq.REQ)
        self.client.connect("inproc://zeromq.zap.01")

    def knock(self, frames: list[bytes]) -> Knock:
        self.client.send_multipart(frames)
        found = wait_for(self.gate.receive, DEADLINE_S, "the knock")
        assert isinstance(found, Knock)
        return found

    def close(self) -> None:
        self.client.close(0)
        self.gate.close()
        self.context.term()


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.close()


def test_a_key_is_asked_about_and_the_answer_names_its_member(asked: Asked) -> None:
    knock = asked.knock(GOOD)
    assert (knock.door, knock.public_key, knock.address) == ("door", b"k" * 32, "10.0.0.7")
    asked.gate.answer(knock, A)
    assert asked.client.recv_multipart() == [b"1.0", b"7", b"200", b"", f"{A}.1".encode(), b""]


def test_who_is_refused_is_named_nobody(asked: Asked) -> None:
    asked.gate.answer(asked.knock(GOOD), None)
    assert asked.client.recv_multipart() == [b"1.0", b"7", b"400", b"", b"", b""]


@pytest.mark.parametrize("how", BAD)
def test_what_cannot_be_read_is_refused_and_nobody_is_asked(asked: Asked, how: str) -> None:
    asked.client.send_multipart(BAD[how])

    def answered() -> int:
        assert asked.gate.receive() is None
        return int(asked.client.poll(0))

    wait_for(answered, DEADLINE_S, "the refusal")
    assert asked.client.recv_multipart()[2] == b"400"


# -- sockets behind a gate --------------------------------------------------------------------


class Server:
    """A ROUTER and a PUB whose gate lets in whom `members` has."""

    def __init__(self) -> None:
        self.transport, self.callers = ZmqTransport(), ZmqTransport()
        self.gate = self.transport.gate()
        self.router = self.transport.router("tcp://127.0.0.1:0", OPTIONS, CurveServer(SERVER, DOOR))
        self.publisher = self.transport.publisher("tcp://127.0.0.1:0", OPTIONS, CurveServer(SERVER, DOOR))
        self.members: dict[bytes, str] = {}
        self.received: list[Received] = []
        self.knocks: list[Knock] = []
        self.sockets: list[ConnectedSocket] = []
        self.links: dict[ConnectedSocket, list[Link]] = {}
        self.arrived: dict[ConnectedSocket, list[bytes]] = {}

    def turn(self) -> None:
        while (knock := self.gate.receive()) is not None:
            self.knocks.append(knock)
            self.gate.answer(knock, self.members.get(knock.public_key))
        while (received := self.router.receive()) is not None:
            if isinstance(received, Received):
                self.received.append(received)
        assert self.publisher.receive() is None
        for socket in self.sockets:
            while (change := socket.receive()) is not None:
                if isinstance(change, Link):
                    self.links[socket].append(change)
                else:
                    assert isinstance(change, Received)
                    self.arrived[socket].append(bytes(change.frames[0]))

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def turned() -> Any:
            self.turn()
            return condition()

        wait_for(turned, DEADLINE_S, what)

    def call(self, key: KeyPair, kind: str = "dealer", server_key: bytes = SERVER.public) -> ConnectedSocket:
        connect = self.callers.dealer if kind == "dealer" else self.callers.subscriber
        at = self.router.endpoint if kind == "dealer" else self.publisher.endpoint
        return self.keep(connect([at], OPTIONS, CurveClient(key, server_key)))

    def keep(self, socket: ConnectedSocket) -> ConnectedSocket:
        self.sockets.append(socket)
        self.links[socket], self.arrived[socket] = [], []
        return socket

    def inside(self, key: KeyPair, kind: str = "dealer") -> ConnectedSocket:
        socket = self.call(key, kind)
        self.until(lambda: self.links[socket], "the handshake")
        assert self.links[socket] == [Link.UP]
        return socket

    def member(self, peer_id: str) -> KeyPair:
        key = new_key_pair()
        self.members[key.public] = peer_id
        return key

    def close(self) -> None:
        closed: list[Any] = [*self.sockets, self.gate, self.router, self.publisher]
        for socket in closed:
            socket.close()
        self.callers.close()
        self.transport.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_a_message_names_the_member_whose_key_it_came_by(server: Server) -> None:
    first, second = server.inside(server.member(A)), server.inside(server.member(B))
    for socket, said in ((first, b"one"), (second, b"two"), (first, b"three")):
        assert socket.send([said]) is Delivery.SENT
    server.until(lambda: len(server.received) == 3, "all is heard")
    assert {bytes(r.frames[0]): r.peer_id for r in server.received} == {b"one": A, b"two": B, b"three": A}
    assert {knock.door for knock in server.knocks} == {DOOR}


@pytest.mark.parametrize("kind", ["dealer", "subscriber"])
def test_a_stranger_is_told_that_it_is_refused(server: Server, kind: str) -> None:
    socket = server.call(new_key_pair(), kind)
    server.until(lambda: server.links[socket], "it is told")
    assert server.links[socket] == [Link.REFUSED]


def test_without_a_gate_nobody_is_let_in() -> None:
    """ZAP_ENFORCE_DOMAIN: a gate that is missing is no open door."""
    transport, callers = ZmqTransport(), ZmqTransport()
    router = transport.router("tcp://127.0.0.1:0", OPTIONS, CurveServer(SERVER, DOOR))
    socket = callers.dealer([router.endpoint], OPTIONS, CurveClient(new_key_pair(), SERVER.public))
    told: list[Link] = []

    def turn() -> bool:
        assert router.receive() is None
        change = socket.receive()
        told.extend([change] if isinstance(change, Link) else [])
        return bool(told)

    try:
        wait_for(turn, DEADLINE_S, "it is told")
        assert Link.UP not in told
    finally:
        for each in (socket, router):
            each.close()
        callers.close()
        transport.close()


def test_who_is_ended_loses_its_line_at_once_and_may_come_again(server: Server) -> None:
    key, other = server.member(A), server.inside(server.member(B))
    socket = server.inside(key)
    for each in (socket, other):
        each.send([b"here"])
    server.until(lambda: len(server.received) == 2, "both have shown themselves")
    server.router.end(A)
    server.until(lambda: server.links[socket] == [Link.UP, Link.DOWN, Link.UP], "it is back")
    socket.send([b"again"])
    server.until(lambda: len(server.received) == 3, "it is heard again")
    assert server.links[other] == [Link.UP]


def test_who_sends_what_cannot_be_handled_loses_its_line_and_nobody_else_does(server: Server) -> None:
    socket, other = (server.inside(server.member(who)) for who in (A, B))
    for each in (socket, other):
        each.send([b"here"])
    server.until(lambda: len(server.received) == 2, "both are heard")
    server.router.reject(next(received for received in server.received if received.peer_id == A))
    server.until(lambda: server.links[socket] == [Link.UP, Link.DOWN, Link.UP], "it is back")
    assert server.links[other] == [Link.UP]
    socket.send([b"again"])
    server.until(lambda: len(server.received) == 3, "it is heard again")


def test_who_is_sent_what_cannot_be_handled_connects_again(server: Server) -> None:
    socket, other = (server.inside(server.member(who)) for who in (A, B))
    socket.reject(Received([b"anything"]))
    server.until(lambda: server.links[socket] == [Link.UP, Link.DOWN, Link.UP], "it is back")
    assert server.links[other] == [Link.UP]
    socket.send([b"here"])
    server.until(lambda: server.received, "it is heard")


def test_a_knock_that_cannot_be_handled_is_refused(asked: Asked) -> None:
    asked.gate.reject(asked.knock(GOOD))
    assert asked.client.recv_multipart() == [b"1.0", b"7", b"400", b"", b"", b""]


def test_who_said_nothing_before_its_end_is_not_heard_after_it(server: Server) -> None:
    socket = server.inside(server.member(A))
    server.router.end(A)
    server.members.clear()
    socket.send([b"hello"])
    server.until(lambda: Link.REFUSED in server.links[socket], "its line ends, and it is refused")
    assert server.received == []


def test_a_subscriber_that_is_ended_hears_nothing_more(server: Server) -> None:
    socket, other = (
        server.inside(server.member(A), "subscriber"),
        server.inside(server.member(B), "subscriber"),
    )

    def published() -> bool:
        server.publisher.send([b"event"])
        server.turn()
        return all(server.arrived[s] for s in (socket, other))

    wait_for(published, DEADLINE_S, "both hear")
    server.publisher.end(A)
    server.members = {key: who for key, who in server.members.items() if who == B}
    server.until(lambda: Link.REFUSED in server.links[socket], "it is out")
    heard, others = len(server.arrived[socket]), len(server.arrived[other])
    server.publisher.send([b"secret"])
    server.until(lambda: len(server.arrived[other]) > others, "the other hears")
    assert server.arrived[socket][heard:] == []


def test_a_subscription_that_comes_after_the_end_is_void(server: Server) -> None:
    key = server.member(A)
    silent = server.callers._context.socket(zmq.SUB)
    silent.linger = 0
    silent.curve_publickey, silent.curve_secretkey = key.public, key.secret
    silent.curve_serverkey = SERVER.public
    monitor = silent.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    silent.connect(server.publisher.endpoint)
    try:
        server.until(lambda: monitor.poll(0), "it is in")
        monitor.recv_multipart()
        server.publisher.end(A)
        server.members.clear()
        silent.setsockopt(zmq.SUBSCRIBE, b"")
        server.until(lambda: monitor.poll(0), "its line has ended")
    finally:
        silent.disable_monitor()
        monitor.close(0)
        silent.close(0)


@pytest.mark.parametrize(
    "topics",
    [[bytes([i]) for i in range(40)], [bytes([i]) * 500 for i in range(5)]],
    ids=["many", "long"],
)
def test_who_subscribes_to_too_much_is_ended(server: Server, topics: list[bytes]) -> None:
    first, other = (server.inside(server.member(who), "subscriber") for who in (A, B))
    for topic in topics:
        first.raw.setsockopt(zmq.SUBSCRIBE, topic)
    server.until(lambda: Link.DOWN in server.links[first], "its line has ended")
    assert server.links[other] == [Link.UP]


@pytest.mark.parametrize("user_id", [b"a.b", b"\xff\xfe", f"{A}.1".encode()])
@pytest.mark.parametrize("kind", [b"DEALER", b"SUB"])
def test_in_plain_transport_nobody_is_who_his_handshake_says(kind: bytes, user_id: bytes) -> None:
    """A User-Id in the handshake's properties comes with each message, as that of a gate does."""
    transport = ZmqTransport()
    bind = transport.router if kind == b"DEALER" else transport.publisher
    bound = bind("tcp://127.0.0.1:0", OPTIONS)
    host, _, port = bound.endpoint.removeprefix("tcp://").rpartition(":")
    said = b"hello" if kind == b"DEALER" else b"\x01"
    arrived: list[Received] = []

    def take() -> bool:
        if isinstance(received := bound.receive(), Received):
            arrived.append(received)
        return bool(arrived)

    try:
        with (
            ThreadPoolExecutor(1) as pool,
            turning(pool.submit(zmtp.plain, (host, int(port)), kind, User_Id=user_id), take) as line,
        ):
            line.sendall(zmtp.frame(said))

            def turn() -> bool:
                take()
                if kind == b"SUB":
                    bound.send([b"event"])
                    line.setblocking(False)
                    with suppress(BlockingIOError):
                        return bool(line.recv(64))
                return bool(arrived)

            wait_for(turn, DEADLINE_S, "it is heard, or hears")
        assert [received.peer_id for received in arrived] == [None] * len(arrived)
    finally:
        bound.close()
        transport.close()


def turning(line: Future[TcpSocket], turn: Callable[[], Any]) -> TcpSocket:
    """The connection, once its handshake is over, for which the other side must get its turns."""
    wait_for(lambda: turn() or line.done(), DEADLINE_S, "the handshake")
    return line.result()


@pytest.mark.parametrize("said", zmtp.OLD, ids=zmtp.OLD_IDS)
@pytest.mark.parametrize("kind", ["router", "publisher"])
def test_a_peer_whose_messages_say_nothing_of_it_is_not_let_in(kind: str, said: bytes) -> None:
    """ZMTP 1 and 2 know no metadata: which connection such a message came by is unknown."""
    transport = ZmqTransport()
    bound = getattr(transport, kind)("tcp://127.0.0.1:0", OPTIONS)
    host, _, port = bound.endpoint.removeprefix("tcp://").rpartition(":")
    try:
        with zmtp.connect((host, int(port)), DEADLINE_S) as line:
            line.sendall(said)
            line.setblocking(False)
            heard = bytearray()

            def over() -> bool:
                assert bound.receive() is None
                with suppress(BlockingIOError, ConnectionResetError):
                    piece = line.recv(64)
                    heard.extend(piece)
                    return not piece
                return False

            wait_for(over, DEADLINE_S, "its connection ends")
        assert len(heard) <= 14, "a greeting, and nothing else"
    finally:
        bound.close()
        transport.close()


@pytest.mark.parametrize("said", zmtp.OLD, ids=zmtp.OLD_IDS)
@pytest.mark.parametrize("kind", ["router", "publisher"])
def test_a_message_that_does_not_say_where_it_came_from_is_none(
    kind: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where libzmq lets such a peer in, as it does where it has nobody to ask."""
    monkeypatch.setattr("zchunk.transport.zeromq.ask_gate", lambda raw, domain: None)
    transport = ZmqTransport()
    bound = getattr(transport, kind)("tcp://127.0.0.1:0", OPTIONS)
    host, _, port = bound.endpoint.removeprefix("tcp://").rpartition(":")
    came: list[int] = []
    monkeypatch.setattr(
        "zchunk.transport.bound_sockets._descriptor_number", lambda frame: came.append(1) or number(frame)
    )
    try:
        with zmtp.connect((host, int(port)), DEADLINE_S) as line:
            line.sendall(said)

            def turn() -> bool:
                assert bound.receive() is None
                return bool(came)

            wait_for(turn, DEADLINE_S, "the message has come")
    finally:
        bound.close()
        transport.close()


# -- closed doors -----------------------------------------------------------------------------


def test_another_transport_is_told_as_that_every_time(server: Server) -> None:
    """By chance a mismatch shows as a broken line, several times in a row."""
    sockets = [server.keep(server.callers.dealer([server.router.endpoint], OPTIONS)) for _ in range(40)]
    server.until(lambda: all(server.links[socket] for socket in sockets), "all are told")
    assert {server.links[socket][0] for socket in sockets} == {Link.MISMATCH}


def test_a_plain_socket_is_told_as_that_every_time() -> None:
    transport, callers = ZmqTransport(), ZmqTransport()
    router = transport.router("tcp://127.0.0.1:0", OPTIONS)
    curve = CurveClient(new_key_pair(), SERVER.public)
    told: dict[ConnectedSocket, Link] = {
        callers.dealer([router.endpoint], OPTIONS, curve): Link.DOWN for _ in range(40)
    }

    def turn() -> bool:
        router.receive()
        for socket, link in told.items():
            change = socket.receive()
            if link is Link.DOWN and isinstance(change, Link):
                told[socket] = change
        return Link.DOWN not in told.values()

    try:
        wait_for(turn, DEADLINE_S, "all are told")
        assert set(told.values()) == {Link.MISMATCH}
    finally:
        router.close()
        for each in told:
            each.close()
        callers.close()
        transport.close()


def test_another_servers_key_is_told_as_strange_within_two_seconds(server: Server) -> None:
    before = time.monotonic()
    socket = server.call(server.member(A), server_key=new_key_pair().public)
    server.until(lambda: server.links[socket], "it is told")
    assert server.links[socket] == [Link.STRANGE]
    assert time.monotonic() - before < 2.0
