"""transport/name_lookup.py, and sockets that connect by names (connected_socket.py): no name server
holds anybody up. The system's resolver is stubbed in the one place where it is asked."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.waiting import wait_for
from zchunk.errors import InvalidUsage
from zchunk.transport import name_lookup
from zchunk.transport.base import Delivery, Link, Received, SocketOptions
from zchunk.transport.bound_sockets import RouterSocket
from zchunk.transport.connected_socket import ConnectedSocket
from zchunk.transport.name_lookup import Lookup, is_number, look_up
from zchunk.transport.zeromq import ZmqTransport

DEADLINE_S = 20.0
OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)


class Resolver:
    """What names lead to; `None` for a name server that is silent. Unknown names do not exist."""

    def __init__(self) -> None:
        self.known: dict[str, list[str] | None] = {}
        self.asked: Counter[str] = Counter()
        self.speak = threading.Event()

    def __call__(self, host: str, port: None, **_: Any) -> list[tuple[Any, ...]]:
        self.asked[host] += 1
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if self.known[host] is None:
            self.speak.wait(DEADLINE_S)
        return [(0, 0, 0, "", (number, 0)) for number in self.known[host] or ()]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(name_lookup, "getaddrinfo", resolver)
    monkeypatch.setattr(name_lookup, "_PAUSE_S", 0.05)
    yield resolver
    resolver.speak.set()
    wait_for(lambda: not name_lookup._running, DEADLINE_S, "all look-ups are over")


# -- look-ups -------------------------------------------------------------------------------


def test_numbers_come_in_the_systems_order_and_once(resolver: Resolver) -> None:
    resolver.known["pc"] = ["10.0.0.2", "::1", "10.0.0.1", "10.0.0.2"]
    assert look_up("pc") == ("10.0.0.2", "::1", "10.0.0.1")


@pytest.mark.parametrize("host", ["unknown", "a" * 70, "ä" * 70])
def test_a_name_that_is_none_has_no_numbers(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str, *_: Any, **__: Any) -> None:
        host.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(name_lookup, "getaddrinfo", refuse)
    assert look_up(host) == ()


def test_a_silent_name_server_is_waited_for_so_long(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.2)
    resolver.known["silent"] = None
    began = time.monotonic()
    assert look_up("silent") == ()
    assert time.monotonic() - began < 5.0


def test_many_ask_for_a_silent_name_and_one_thread_waits(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.1)
    resolver.known["silent"] = None
    for _ in range(10):
        assert look_up("silent") == ()
    assert resolver.asked["silent"] == 1


def test_further_names_fail_at_once_where_too_many_hang(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.05)
    monkeypatch.setattr(name_lookup, "_MOST", 3)
    for number in range(4):
        resolver.known[f"silent{number}"] = None
        assert look_up(f"silent{number}") == ()
    assert resolver.asked["silent3"] == 0


def test_who_was_slow_is_told_and_who_gave_up_is_not(resolver: Resolver) -> None:
    resolver.known["silent"] = None
    told: list[str] = []
    lookups = [Lookup("silent", lambda n=n: told.append(n)) for n in ("one", "two")]  # type: ignore[misc]
    lookups[0].cancel()
    resolver.known["silent"] = ["10.0.0.1"]
    resolver.speak.set()
    wait_for(lambda: told, DEADLINE_S, "it is told")
    assert told == ["two"]
    assert (lookups[1].is_over, lookups[1].numbers) == (True, ("10.0.0.1",))
    assert not lookups[0].is_over


@pytest.mark.parametrize(
    ("host", "number"),
    [("10.0.0.1", True), ("::1", True), ("fe80::1%a", True), ("pc", False), ("*", False)],
)
def test_numbers_are_told_from_names(host: str, number: bool) -> None:
    assert is_number(host) is number


# -- sockets ----------------------------------------------------------------------------------


class World:
    """Servers that answer in plain transport, and who connects to them."""

    def __init__(self) -> None:
        self.servers: dict[str, tuple[ZmqTransport, RouterSocket]] = {}
        self.callers = ZmqTransport()
        self.sockets: dict[ConnectedSocket, list[Link]] = {}
        self.heard: list[bytes] = []
        self.port = 0

    def listen(self, number: str) -> None:
        transport = ZmqTransport()
        router = transport.router(f"tcp://{number}:{self.port}", OPTIONS)
        self.port = int(router.endpoint.rpartition(":")[2])
        self.servers[number] = (transport, router)

    def end(self, number: str) -> None:
        transport, router = self.servers.pop(number)
        router.close()
        transport.close()

    def call(self, *hosts: str) -> ConnectedSocket:
        socket = self.callers.dealer([f"tcp://{host}:{self.port}" for host in hosts], OPTIONS)
        self.sockets[socket] = []
        return socket

    def turn(self) -> None:
        for _, router in self.servers.values():
            while (received := router.receive()) is not None:
                if isinstance(received, Received):
                    self.heard.append(bytes(received.frames[0]))
        for line, links in self.sockets.items():
            while (change := line.receive()) is not None:
                if isinstance(change, Link):
                    links.append(change)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_for(lambda: self.turn() or condition(), DEADLINE_S, what)

    def close(self) -> None:
        for line in self.sockets:
            line.close()
        self.callers.close()
        for number in list(self.servers):
            self.end(number)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.listen("127.0.0.1")
    yield world
    world.close()


def test_a_name_is_connected_to_by_its_number(world: World, resolver: Resolver) -> None:
    resolver.known["pc"] = ["127.0.0.1"]
    socket = world.call("pc")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")
    assert socket.send([b"hello"]) is Delivery.SENT
    world.until(lambda: world.heard == [b"hello"], "it is heard")


@pytest.mark.parametrize("first", ["127.0.0.9", "::1"])
def test_further_numbers_of_a_name_are_tried(world: World, resolver: Resolver, first: str) -> None:
    resolver.known["pc"] = [first, "127.0.0.8", "127.0.0.1"]
    socket = world.call("pc")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")


@pytest.mark.parametrize("other", ["unknown", "silent", "away"])
def test_a_further_address_is_tried_where_a_name_leads_nowhere(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.2)
    resolver.known |= {"silent": None, "away": ["127.0.0.9", "127.0.0.8"]}
    for hosts in ((other, "127.0.0.1"), ("127.0.0.9", other, "127.0.0.1")):
        socket = world.call(*hosts)
        world.until(lambda socket=socket: world.sockets[socket] == [Link.UP], "it is up")  # type: ignore[misc]


def test_a_silent_name_server_holds_nobody_else_up(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of one transport: its I/O thread asks no name server."""
    resolver.known["silent"] = None
    silent = world.call("silent")
    began = time.monotonic()
    socket = world.call("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")
    assert time.monotonic() - began < 2.0
    assert world.sockets[silent] == []


@pytest.mark.parametrize("hosts", [("unknown",), ("silent",), ("unknown", "silent")])
def test_a_name_that_leads_nowhere_is_told(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.2)
    resolver.known["silent"] = None
    socket = world.call(*hosts)
    world.until(lambda: world.sockets[socket], "it is told")
    assert world.sockets[socket] == [Link.NAMELESS]


def test_it_is_told_within_the_limit_for_users(world: World, resolver: Resolver) -> None:
    resolver.known["silent"] = None
    began = time.monotonic()
    socket = world.call("silent")
    world.until(lambda: world.sockets[socket], "it is told")
    assert 2.9 < time.monotonic() - began < 5.0


def test_a_peer_that_moved_is_found_by_its_name(world: World, resolver: Resolver) -> None:
    resolver.known["pc"] = ["127.0.0.1"]
    socket = world.call("pc")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")
    resolver.known["pc"] = ["127.0.0.2"]
    world.listen("127.0.0.2")
    world.end("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP, Link.DOWN, Link.UP], "it is up again")
    socket.send([b"there"])
    world.until(lambda: world.heard == [b"there"], "it is heard")


def test_a_peer_is_found_that_moves_while_it_is_away(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zchunk.transport.connected_socket._LOOK_UP_AGAIN_S", 0.2)
    resolver.known["pc"] = ["127.0.0.9"]
    socket = world.call("pc")
    world.until(lambda: resolver.asked["pc"] >= 2, "it is looked up again")
    assert world.sockets[socket] == []
    resolver.known["pc"] = ["127.0.0.1"]
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")


@pytest.mark.parametrize("then", ["unknown", "silent"])
def test_a_name_server_that_is_away_too_loses_nobody(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A node is started anew while the name server is: its number still leads to it."""
    monkeypatch.setattr(name_lookup, "LIMIT_S", 0.2)
    resolver.known["pc"] = ["127.0.0.1"]
    socket = world.call("pc")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")
    if then == "silent":
        resolver.known["pc"] = None
    else:
        del resolver.known["pc"]
    world.end("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP, Link.DOWN], "it is lost")
    world.listen("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP, Link.DOWN, Link.UP], "it is up again")


def test_numbers_are_looked_up_nowhere(world: World, resolver: Resolver) -> None:
    socket = world.call("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP], "it is up")
    world.end("127.0.0.1")
    world.until(lambda: world.sockets[socket] == [Link.UP, Link.DOWN], "it is lost")
    assert not resolver.asked


def test_who_closes_while_a_name_is_looked_up_leaves_nothing(resolver: Resolver) -> None:
    resolver.known["silent"] = None
    transport = ZmqTransport()
    before = len(os.listdir("/proc/self/fd"))
    transport.dealer(["tcp://silent:7700"], OPTIONS).close()
    resolver.speak.set()
    wait_for(lambda: not name_lookup._running, DEADLINE_S, "the look-up is over")
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before + 4, DEADLINE_S, "its descriptors are gone")
    transport.close()


# -- listening --------------------------------------------------------------------------------


def test_one_may_listen_by_a_name(resolver: Resolver) -> None:
    resolver.known["pc"] = ["127.0.0.1"]
    transport = ZmqTransport()
    router = transport.router("tcp://pc:0", OPTIONS)
    assert router.endpoint.startswith("tcp://127.0.0.1:")
    router.close()
    transport.close()


def test_one_may_listen_by_an_interface(resolver: Resolver) -> None:
    transport = ZmqTransport()
    router = transport.router("tcp://lo:0", OPTIONS)
    assert router.endpoint.startswith("tcp://127.0.0.1:") or "[::1]" in router.endpoint
    assert not resolver.asked
    router.close()
    transport.close()


def test_a_name_to_listen_by_that_does_not_resolve_is_said(resolver: Resolver) -> None:
    transport = ZmqTransport()
    with pytest.raises(InvalidUsage, match="the name pc does not resolve"):
        transport.router("tcp://pc:0", OPTIONS)
    transport.close()
