"""transport/greeting.py: what the other side speaks, by its own word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.waiting import wait_for
from zchunk.transport.auth import new_key_pair
from zchunk.transport.base import SocketOptions
from zchunk.transport.greeting import Greeting
from zchunk.transport.keys import CurveServer
from zchunk.transport.zeromq import ZmqTransport

DEADLINE_S = 20.0
OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)


def told(address: str) -> str | None:
    greeting = Greeting(address)
    wait_for(lambda: greeting.is_over, DEADLINE_S, "the greeting ends")
    return greeting.mechanism


@pytest.mark.parametrize(
    ("curve", "mechanism"), [(None, "NULL"), (CurveServer(new_key_pair(), "door"), "CURVE")]
)
def test_a_server_says_what_it_speaks(curve: CurveServer | None, mechanism: str) -> None:
    transport = ZmqTransport()
    router = transport.router("tcp://127.0.0.1:0", OPTIONS, curve)
    try:
        assert [told(router.endpoint) for _ in range(20)] == [mechanism] * 20
    finally:
        router.close()
        transport.close()


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A program that is no ZeroMQ; `answer` gets its one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                answer(line)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 200, b"\xff" + bytes(8) + b"\x7f\x03\x01CUR"],
    ids=["nothing", "another protocol", "a piece of a greeting"],
)
def test_another_program_says_nothing_of_it(answer: bytes) -> None:
    with answering(lambda line: line.sendall(answer)) as address:
        assert told(address) is None


def test_who_keeps_silent_is_not_waited_for() -> None:
    over = threading.Event()
    with answering(lambda line: over.wait(DEADLINE_S) and None) as address:
        assert told(address) is None
        over.set()


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    assert told(address) is None
