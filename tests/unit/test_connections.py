"""transport/connections.py: what is seen of real sockets, and ended."""

from __future__ import annotations

import selectors
import socket
from contextlib import ExitStack

from zchunk.transport.connections import Connections
from zchunk.transport.guard import Limits


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
