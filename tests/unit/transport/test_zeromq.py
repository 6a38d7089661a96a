"""transport/zeromq.py: a socket that cannot be made leaves nothing open, and is told in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.descriptors import open_descriptors
from tests.waiting import wait_for
from zchunk.errors import InvalidUsage, StorageUnavailable, ZchunkError
from zchunk.transport.base import SocketOptions
from zchunk.transport.zeromq import ZmqTransport

PATIENCE_S = 20.0
OPTIONS = SocketOptions(max_frame_bytes=1024)
HERE, NOWHERE, NAMED = "tcp://127.0.0.1:0", "tcp://127.0.0.1:9", "tcp://localhost:9"

MAKE: dict[str, Callable[[ZmqTransport], Any]] = {
    "router": lambda transport: transport.router(HERE, OPTIONS),
    "publisher": lambda transport: transport.publisher(HERE, OPTIONS),
    "dealer": lambda transport: transport.dealer([NOWHERE], OPTIONS),
    "subscriber": lambda transport: transport.subscriber([NOWHERE], OPTIONS),
    "named": lambda transport: transport.dealer([NAMED], OPTIONS),
    "gate": lambda transport: transport.gate(),
}


def refuse(kind: type[Exception], *told: object) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise kind(*told)

    return fail


def opened() -> set[tuple[int, str]]:
    """Without files, which the thread that looks at connections opens when it likes."""
    return {(number, at) for number, at in open_descriptors() if not at.startswith("/")}


@pytest.fixture
def transport() -> Iterator[ZmqTransport]:
    transport = ZmqTransport()
    # What a context opens with its first socket. One that binds has a gate, whose place is free only
    # when libzmq has closed it, in a thread of its own.
    transport.dealer([NOWHERE], OPTIONS).close()
    yield transport
    transport._connections.close()
    transport._context.destroy(0)  # also where a test left something open


@pytest.mark.parametrize(
    ("what", "of", "call", "number"),
    [
        ("router", zmq.Socket, "get_monitor_socket", errno.EMFILE),
        ("router", zmq.Socket, "bind", errno.EMFILE),
        ("publisher", zmq.Socket, "bind", errno.ENFILE),
        ("dealer", zmq.Socket, "get_monitor_socket", errno.EMFILE),
        ("subscriber", zmq.Socket, "get_monitor_socket", errno.ENOMEM),
        ("named", os, "pipe", errno.EMFILE),
        ("gate", zmq.Socket, "bind", errno.EMFILE),
        ("gate", zmq.Context, "socket", errno.EMFILE),
    ],
)
def test_a_socket_that_cannot_be_made_leaves_nothing(
    transport: ZmqTransport, monkeypatch: pytest.MonkeyPatch, what: str, of: Any, call: str, number: int
) -> None:
    before = opened()
    refusal = refuse(zmq.ZMQError, number) if of is not os else refuse(OSError, number, "refused")
    with monkeypatch.context() as patched:
        patched.setattr(of, call, refusal)
        with pytest.raises(StorageUnavailable, match="a file or connection failed") as told:
            MAKE[what](transport)
    wait_for(lambda: opened() <= before, PATIENCE_S, "all of it is closed")
    assert told.value.retryable
    MAKE[what](transport).close()


def test_a_place_that_is_taken_leaves_nothing(transport: ZmqTransport) -> None:
    taken = transport.router(HERE, OPTIONS)
    try:
        before = opened()
        with pytest.raises(InvalidUsage, match="another program uses it") as told:
            transport.router(taken.endpoint, OPTIONS)
        wait_for(lambda: opened() <= before, PATIENCE_S, "all of it is closed")
        assert told.value.code == "usage"
    finally:
        taken.close()


def test_a_context_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ZmqTransport().close()
    before = opened()
    with monkeypatch.context() as patched:
        patched.setattr(zmq.Context, "socket", refuse(zmq.ZMQError, errno.EMFILE))
        with pytest.raises(ZchunkError, match="too many files") as told:
            ZmqTransport()
    wait_for(lambda: opened() <= before, PATIENCE_S, "all of it is closed")
    assert told.value.code == "storage_unavailable"
