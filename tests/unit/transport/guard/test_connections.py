"""transport/guard/connections.py: what is seen of real sockets, and ended."""

from __future__ import annotations

import errno
import gc
import os
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.system.test_file_limit import none_left, spare
from zchunk.transport.guard.connections import Connections
from zchunk.transport.guard.rules import Limits

__all__ = ["spare"]  # a fixture


def test_connections_above_the_limit_are_ended_and_others_are_not() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        connections = Connections()
        stack.callback(connections.close)
        connections.watch(f"tcp://127.0.0.1:{port}", Limits(of_an_address=2))
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        for _ in lines:
            stack.enter_context(listener.accept()[0])
        selector = stack.enter_context(selectors.DefaultSelector())  # select() knows 1024 descriptors
        for line in lines:
            selector.register(line, selectors.EVENT_READ)
        ready = [key.fileobj for key, _ in selector.select(10)]
        assert len(ready) == 1
        assert isinstance(ready[0], socket.socket)
        assert ready[0].recv(1) == b""
        assert connections.ended == 1


def test_they_are_ended_where_no_descriptor_is_left(spare: None, caplog: pytest.LogCaptureFixture) -> None:
    """Nor has the thread that ends them one of its own to look with."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        lines = [stack.enter_context(socket.socket()) for _ in range(3)]
        connections = Connections()
        stack.callback(connections.close)
        connections.watch(f"tcp://127.0.0.1:{listener.getsockname()[1]}", Limits(of_an_address=2))
        selector = stack.enter_context(selectors.DefaultSelector())
        taken = stack.enter_context(none_left())
        for line in lines:
            line.connect(listener.getsockname())
            os.close(taken.pop())
            stack.enter_context(listener.accept()[0])
            selector.register(line, selectors.EVENT_READ)
        assert len(selector.select(10)) == 1
    assert "could not be looked at" not in caplog.text


def test_a_look_that_fails_is_told_and_the_next_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files"), MemoryError("no memory"), KeyError("a bug")]
    look = Connections.look

    def failing(self: Connections, now: float) -> None:
        if failures:
            raise failures.pop(0)
        look(self, now)

    monkeypatch.setattr(Connections, "look", failing)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        connections = Connections()
        stack.callback(connections.close)
        connections.watch(f"tcp://127.0.0.1:{listener.getsockname()[1]}", Limits(of_an_address=2))
        lines = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        for _ in lines:
            stack.enter_context(listener.accept()[0])
        selector = stack.enter_context(selectors.DefaultSelector())
        for line in lines:
            selector.register(line, selectors.EVENT_READ)
        assert len(selector.select(10)) == 1
    assert not failures
    assert "Too many open files" in caplog.text
    assert len([line for line in caplog.messages if "trying again" in line]) == 1, "a line a minute"


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Connections, socket.socket]]:
    """Connections that look only when they are told to and allow none, and where to connect.
    What else this process has does not change meanwhile: neither its memory, nor how many
    descriptors there are by garbage of tests before."""
    gc.collect()
    monkeypatch.setattr(Connections, "_run", lambda self: None)
    monkeypatch.setattr("zchunk.transport.guard.connections._resident", lambda: 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = Connections()
        connections.watch(f"tcp://127.0.0.1:{listener.getsockname()[1]}", Limits(connections=0))
        yield connections, listener
        connections.close()


def test_a_connection_in_the_place_of_a_closed_file_is_seen_soon(
    still: tuple[Connections, socket.socket], tmp_path: Path
) -> None:
    """Descriptors are as many as before, so only a new list of them shows it."""
    connections, listener = still
    file = (tmp_path / "file").open("wb")
    with socket.create_connection(listener.getsockname(), timeout=10) as line:
        connections.look(100.0)
        file.close()
        with listener.accept()[0]:
            connections.look(100.05)
            assert connections.ended == 0
            connections.look(100.11)
            assert connections.ended == 1
        assert line.recv(1) == b""


def test_one_descriptor_more_is_looked_at_at_once(still: tuple[Connections, socket.socket]) -> None:
    connections, listener = still
    with socket.create_connection(listener.getsockname()):
        connections.look(100.0)
        with listener.accept()[0]:
            connections.look(100.01)
            assert connections.ended == 1
