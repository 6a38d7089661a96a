"""transport/poller.py: nothing that is there is waited for, and who has nothing is not asked."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.waiting import wait_for
from zchunk.transport import bound_sockets
from zchunk.transport import poller as polling
from zchunk.transport.base import Arrival, Link, Received, Socket, SocketOptions, Suspects
from zchunk.transport.bound_sockets import PublisherSocket, RouterSocket
from zchunk.transport.connected_socket import ConnectedSocket
from zchunk.transport.poller import ZmqPoller
from zchunk.transport.zeromq import ZmqTransport

OPTIONS = SocketOptions(max_frame_bytes=1024)
PATIENCE_S = 20.0


@pytest.fixture
def transport() -> Iterator[ZmqTransport]:
    made = ZmqTransport()
    yield made
    made.close()


@pytest.fixture
def poller() -> Iterator[ZmqPoller]:
    made = ZmqPoller()
    yield made
    made.close()


@pytest.fixture
def router(transport: ZmqTransport, poller: ZmqPoller) -> Iterator[RouterSocket]:
    made = transport.router("tcp://127.0.0.1:0", OPTIONS)
    poller.register(made)
    yield made
    poller.unregister(made)
    made.close()


@pytest.fixture
def dealer(transport: ZmqTransport, poller: ZmqPoller, router: RouterSocket) -> Iterator[ConnectedSocket]:
    made = transport.dealer([router.endpoint], OPTIONS)
    poller.register(made)
    turn_until(poller, lambda: made.link is Link.UP)
    yield made
    poller.unregister(made)
    made.close()


@pytest.fixture
def publisher(transport: ZmqTransport, poller: ZmqPoller) -> Iterator[PublisherSocket]:
    made = transport.publisher("tcp://127.0.0.1:0", OPTIONS)
    poller.register(made)
    yield made
    poller.unregister(made)
    made.close()


def turn_until(poller: ZmqPoller, condition: Callable[[], bool]) -> list[Arrival]:
    """What comes meanwhile, as a loop takes it in."""
    found: list[Arrival] = []
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        for socket in poller.wait(0.05):
            found += taken(socket)
    return found


def taken(socket: Socket) -> list[Arrival]:
    return list(iter(socket.receive, None))


def turn_until_received(poller: ZmqPoller) -> Received:
    found: list[Received] = []
    end = time.monotonic() + PATIENCE_S
    while not found:
        assert time.monotonic() < end
        for socket in poller.wait(0.05):
            found += [arrival for arrival in taken(socket) if isinstance(arrival, Received)]
    return found[0]


def is_told(raw: zmq.Socket[bytes]) -> bool:
    descriptors = select.poll()
    descriptors.register(int(raw.get(zmq.FD)), select.POLLIN)
    return bool(descriptors.poll(0))


def swallow(raw: zmq.Socket[bytes], use: Callable[[], object]) -> None:
    """Something has come, and `use` makes the descriptor say no more of it."""
    wait_for(lambda: is_told(raw), PATIENCE_S, "something has come")

    def is_swallowed() -> bool:
        use()
        return not is_told(raw)

    wait_for(is_swallowed, PATIENCE_S, "the descriptor says no more")


def assert_found(poller: ZmqPoller, socket: Socket) -> None:
    began = time.monotonic()
    assert socket in poller.wait(PATIENCE_S)  # an answer may have come by another meanwhile
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_request_that_comes_while_another_is_answered_is_found(
    poller: ZmqPoller, router: RouterSocket, dealer: ConnectedSocket
) -> None:
    dealer.send([b"one"])
    asked = turn_until_received(poller)
    dealer.send([b"two"])
    swallow(router.raw, lambda: router.send([b"answer"], asked.connection))
    wait_for(lambda: dealer.receive() is None, PATIENCE_S, "the answers are read")
    assert_found(poller, router)
    assert [bytes(arrival.frames[0]) for arrival in taken(router)] == [b"two"]  # type: ignore[union-attr]


def test_an_answer_that_comes_while_more_is_asked_is_found(
    poller: ZmqPoller, router: RouterSocket, dealer: ConnectedSocket
) -> None:
    dealer.send([b"one"])
    asked = turn_until_received(poller)
    router.send([b"answer"], asked.connection)
    swallow(dealer.raw, lambda: dealer.send([b"more"]))
    wait_for(lambda: router.receive() is None, PATIENCE_S, "the requests are read")
    assert_found(poller, dealer)
    assert [bytes(arrival.frames[0]) for arrival in taken(dealer)] == [b"answer"]  # type: ignore[union-attr]


def test_a_subscription_that_comes_while_something_is_published_is_found(
    transport: ZmqTransport, poller: ZmqPoller, publisher: PublisherSocket
) -> None:
    subscriber = transport.subscriber([publisher.endpoint], OPTIONS)
    try:
        turn_until(poller, lambda: subscriber.receive() is Link.UP)
        subscriber.raw.subscribe(b"topic")
        swallow(publisher.raw, lambda: publisher.send([b"other", b"event"]))
        assert_found(poller, publisher)
        assert taken(publisher) == []
    finally:
        subscriber.close()


def test_what_was_left_is_found(poller: ZmqPoller, router: RouterSocket, dealer: ConnectedSocket) -> None:
    for _ in range(3):
        dealer.send([b"request"])
    for left in (2, 1, 0):
        assert_found(poller, router)
        wait_for(lambda: isinstance(router.receive(), Received), PATIENCE_S, f"all but {left}")
    assert taken(router) == []
    assert poller.wait(0) == []


def test_what_is_left_of_a_message_without_end_is_found(
    poller: ZmqPoller, router: RouterSocket, dealer: ConnectedSocket
) -> None:
    dealer.send([b"part"] * 3 * bound_sockets._DROPPED_AT_ONCE)
    wait_for(lambda: is_told(router.raw), PATIENCE_S, "it has come")
    turns = 0
    while router in poller.wait(0):
        assert router.receive() is None
        turns += 1
    assert turns >= 3


def test_sockets_that_have_nothing_are_not_asked(
    poller: ZmqPoller,
    router: RouterSocket,
    dealer: ConnectedSocket,
    publisher: PublisherSocket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dealer.send([b"request"])
    asked = turn_until_received(poller)
    router.send([b"answer"], asked.connection)
    turn_until_received(poller)
    publisher.send([b"topic", b"event"])
    while poller.wait(0.1):
        for socket in (router, dealer, publisher):
            taken(socket)
    asks: list[zmq.Socket[bytes]] = []
    monkeypatch.setattr(polling, "has_message", lambda raw: asks.append(raw))
    assert poller.wait(0.01) == []
    assert asks == []
    router.send([b"more"], asked.connection)
    poller.wait(0.0)
    assert asks == [router.raw]


def test_a_wait_may_be_for_years(poller: ZmqPoller) -> None:
    """The system's own takes 24 days at a time."""
    poller.wake()
    assert poller.wait(366 * 86400.0) == []


def test_what_is_read_behind_a_handshake_is_not_the_last_of_it(router: RouterSocket) -> None:
    """Connections that ended are told one at a time, and the monitor's descriptor only of the first."""
    router.news = 4
    suspects = Suspects((b"c",))
    left = [suspects, suspects]
    router._suspects = lambda: left.pop() if left else None  # type: ignore[method-assign]
    assert router.receive() is suspects
    assert router.news & 2, "the monitor may have more"
