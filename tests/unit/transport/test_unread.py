"""transport/bound_sockets.py (SPEC S4): what a connection does not read has an end in bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.cluster import ROOT
from tests.waiting import wait_for
from zchunk.transport.base import Delivery, Received, SocketOptions
from zchunk.transport.bound_sockets import RouterSocket
from zchunk.transport.connected_socket import ConnectedSocket
from zchunk.transport.zeromq import ZmqTransport

MIB = 1024 * 1024
OPTIONS = SocketOptions(max_frame_bytes=16 * MIB, linger_ms=0, unread_bytes=8 * MIB)
#: What the system's socket buffers take without anybody reading, at most.
SOCKETS = 24 * MIB


class Line:
    """A ROUTER and two that are connected to it; what they read is up to the test."""

    def __init__(self, transport: ZmqTransport) -> None:
        self.router: RouterSocket = transport.router("tcp://127.0.0.1:0", OPTIONS)
        self.dealers = [transport.dealer([self.router.endpoint], OPTIONS) for _ in range(2)]
        self.names = [self._name(dealer) for dealer in self.dealers]

    def _name(self, dealer: ConnectedSocket) -> bytes:
        """Its connection, as the ROUTER calls it."""

        def arrived() -> bytes | None:
            dealer.receive()
            if not sent:
                sent.extend([1] if dealer.send([b"hello"]) is Delivery.SENT else [])
            received = self.router.receive()
            return received.connection if isinstance(received, Received) else None

        sent: list[int] = []
        name: bytes = wait_for(arrived, 20, "a message from the dealer")
        return name

    def fill(self, to: int, size: int = MIB) -> int:
        """Sends until no more is taken; the bytes that were."""
        total = 0
        while self.router.send([b"header", bytes(size)], self.names[to]) is Delivery.SENT:
            total += size
            assert total < 500 * MIB, "without end"
        return total

    def close(self) -> None:
        self.router.close()
        for dealer in self.dealers:
            dealer.close()


@pytest.fixture
def line() -> Iterator[Line]:
    transport = ZmqTransport()
    made = Line(transport)
    yield made
    made.close()
    transport.close()


@pytest.mark.row("S4")
def test_who_does_not_read_is_full_after_so_many_bytes(line: Line) -> None:
    taken = line.fill(0)
    assert OPTIONS.unread_bytes <= taken <= OPTIONS.unread_bytes + SOCKETS
    assert line.router.send([b"header", bytes(MIB)], line.names[1]) is Delivery.SENT, "the other is not"
    assert line.router.send([b"a small answer"], line.names[0]) is Delivery.SENT


def test_who_reads_again_is_sent_to_again(line: Line) -> None:
    taken = line.fill(0)
    got = 0

    def read() -> bool:
        nonlocal got
        received = line.dealers[0].receive()
        if isinstance(received, Received) and len(received.frames) == 2:
            got += len(received.frames[1])
        return got == taken

    wait_for(read, 20, "all that was sent")
    wait_for(lambda: line.router.send([b"h", bytes(MIB)], line.names[0]) is Delivery.SENT, 20, "room again")


def test_a_frame_larger_than_the_limit_goes_where_nothing_is_unread(line: Line) -> None:
    assert line.router.send([b"header", bytes(2 * OPTIONS.unread_bytes)], line.names[0]) is Delivery.SENT


def test_nothing_is_kept_of_a_connection_that_ended(line: Line) -> None:
    line.fill(0)
    line.dealers.pop(0).close()
    wait_for(
        lambda: line.router.send([b"x"], line.names[0]) is Delivery.GONE, 20, "the end of the connection"
    )
    assert line.router._unread._bytes == 0
    assert not line.router._unread._held


_WITHOUT_DESCRIPTORS = """
import os, resource
from tests.unit.transport.test_unread import MIB, Delivery, Line, ZmqTransport

line = Line(ZmqTransport())
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
try:
    while True:
        os.dup(0)
except OSError:
    pass
assert line.router.send([b"header", bytes(MIB)], line.names[0]) is Delivery.SENT
print("sent", flush=True)
os._exit(0)
"""


def test_large_frames_are_sent_where_others_took_all_descriptors_before_the_first() -> None:
    """In a process of its own: what pyzmq opens for them, it keeps."""
    words = [sys.executable, "-c", _WITHOUT_DESCRIPTORS]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert ended.stdout == "sent\n", ended.stderr
