"""zchunk with one guard taken out: a test of guards shows by it that it can fail.

    python -m tests.hostile.mutated MUTATION PYTHON -m zchunk COMMAND ...

What is behind MUTATION is a usual command, so that this may stand before one as a prefix.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import zmq

from zchunk.node.serving.chunk_server import ChunkServer
from zchunk.runtime.loop import Loop
from zchunk.startup import main
from zchunk.transport import bound_sockets, zeromq


def old_protocols() -> None:
    """Peers of ZMTP 1 and 2 are let in, and each message is taken to say where it came from."""

    def ask(*_: Any) -> None:
        return None

    def gate(*_: Any) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def number(frame: zmq.Frame) -> int:
        return int(frame.get(zmq.SRCFD))

    _replace(zeromq, "ask_gate", ask)
    _replace(zeromq.ZmqTransport, "_plain_gate", gate)
    _replace(bound_sockets, "_descriptor_number", number)


def bug_in_a_handler() -> None:
    """A node's handler lets through what it was to refuse."""

    def refuse(_: ChunkServer, received: Any, request_id: int | None, error: Exception) -> None:
        raise error

    _replace(ChunkServer, "_refuse_sender", refuse)


def no_boundary() -> None:
    """And the loop has no boundary around a message that cannot be handled."""

    def contain(_: Loop, socket: Any, received: Any, error: Exception) -> None:
        raise error

    bug_in_a_handler()
    _replace(Loop, "_contain", contain)


def _replace(where: Any, name: str, by: Callable[..., Any]) -> None:
    assert callable(getattr(where, name)), f"{where} has no {name} any more"
    setattr(where, name, by)


MUTATIONS = {mutate.__name__: mutate for mutate in (old_protocols, bug_in_a_handler, no_boundary)}

if __name__ == "__main__":
    MUTATIONS[sys.argv[1]]()
    sys.argv = ["zchunk", *sys.argv[5:]]
    main()
