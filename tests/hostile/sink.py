"""Takes everything and keeps nothing: what an attack is aimed at where speeds are compared.

    python -m tests.hostile.sink [KEYS]     KEYS as in `attacks.py`: then a ROUTER under CURVE,
                                            with the key pair of the victim that stands there

Where it listens is its first line.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
from contextlib import suppress
from pathlib import Path

import zmq
from zmq.utils import z85

from tests.hostile import zmtp


def raw() -> None:
    """Greets like a plain ROUTER, and reads on."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                line, _ = listener.accept()
                with suppress(OSError):
                    line.sendall(zmtp.greeting(b"NULL") + zmtp.ready(b"ROUTER"))
                selector.register(line, selectors.EVENT_READ)
            else:
                assert isinstance(key.fileobj, socket.socket)
                _read(selector, key.fileobj)


def _read(selector: selectors.BaseSelector, line: socket.socket) -> None:
    try:
        taken = line.recv(1 << 20)
    except OSError:
        taken = b""
    if not taken:
        selector.unregister(line)
        line.close()


def router(keys: Path) -> None:
    """Lets everybody in, drops what they say, and answers each message in a few bytes: who waits
    for an answer must find as much to do here as at the victim."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taking:
        taking.curve_server = 1
        taking.curve_publickey = z85.encode(bytes.fromhex(json.loads(keys.read_text())["server"]))
        taking.curve_secretkey = z85.encode(bytes.fromhex(json.loads(keys.read_text())["server_secret"]))
        port = taking.bind_to_random_port("tcp://127.0.0.1")
        print(f"127.0.0.1:{port}", flush=True)
        while True:
            connection, *_ = taking.recv_multipart(copy=False)
            with suppress(zmq.Again):
                taking.send_multipart([connection, b"error"], zmq.DONTWAIT)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    router(Path(sys.argv[1])) if len(sys.argv) > 1 else raw()
