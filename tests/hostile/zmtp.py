"""ZMTP by hand, over a plain socket: what libzmq itself would never send."""

from __future__ import annotations

import socket
import struct

At = tuple[str, int]

SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
_MORE, _LONG, _COMMAND = 1, 2, 4
DEALER, SUB = 5, 2


def second(kind: int = DEALER, said: bytes = b"x") -> bytes:
    """All that a peer of ZMTP 2.0 says: its greeting, an empty routing id, one frame."""
    return SIGNATURE + bytes([1, kind]) + bytes(2) + bytes([0, len(said)]) + said


def first(said: bytes = b"x") -> bytes:
    """And one of ZMTP 1.0, which has no greeting."""
    return bytes([1, 0]) + bytes([1 + len(said), 0]) + said


#: What libzmq once took in plain transport, and hands on without a word on where it came from.
OLD = (second(), first(), second(SUB, b"\x01"), first(b"\x01"))
OLD_IDS = ("2.0 dealer", "1.0 dealer", "2.0 subscriber", "1.0 subscriber")


def greeting(mechanism: bytes, *, minor: int = 0, as_server: bool = False) -> bytes:
    return SIGNATURE + bytes([3, minor]) + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    return header(len(body), more=more, command=command) + body


def header(size: int, *, more: bool = False, command: bool = False) -> bytes:
    """Of a frame that claims `size` bytes."""
    flags = (_MORE if more else 0) | (_COMMAND if command else 0)
    if size < 256:
        return bytes([flags, size])
    return bytes([flags | _LONG]) + struct.pack(">Q", size)


def ready(kind: bytes = b"DEALER", **more: bytes) -> bytes:
    """`more`: further properties, `_` for each `-` in their names."""
    told = b"\x05READY"
    for name, value in {"Socket_Type": kind, **more}.items():
        told += bytes([len(name)]) + name.replace("_", "-").encode() + struct.pack(">I", len(value)) + value
    return frame(told, command=True)


def connect(at: At, within_s: float = 3.0, source: str = "") -> socket.socket:
    """`source`: the address that it comes from, of this PC's."""
    return socket.create_connection(at, within_s, (source, 0) if source else None)


def plain(at: At, kind: bytes = b"DEALER", **more: bytes) -> socket.socket:
    """A connection whose handshake (NULL) is done."""
    line = connect(at)
    line.sendall(greeting(b"NULL"))
    _take(line, 64)
    line.sendall(ready(kind, **more))
    head = _take(line, 2)
    _take(line, head[1])
    return line


def _take(line: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        if not (piece := line.recv(size - len(taken))):
            raise ConnectionError("ended in the handshake")
        taken += piece
    return taken
