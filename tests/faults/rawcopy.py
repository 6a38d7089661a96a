"""What a cable gives: bytes from one PC's memory to another's over a plain TCP connection."""

from __future__ import annotations

import socket
import threading
import time

from lan import Lan

_PIECE = 1024**2
_PATIENCE_S = 120.0


def raw_copy(lan: Lan, sender: str, receiver: str, size: int) -> float:
    """Seconds from the first byte sent until the sender knows that all of them arrived."""
    address = lan.address(receiver)
    with lan.on(receiver, lambda: socket.create_server((address, 0))) as listening:
        listening.settimeout(_PATIENCE_S)
        there = threading.Thread(target=_receive, args=(listening, size))
        there.start()
        port = listening.getsockname()[1]
        with lan.on(sender, lambda: socket.create_connection((address, port), _PATIENCE_S)) as connection:
            took = _send(connection, size)
        there.join()
    return took


def _send(connection: socket.socket, size: int) -> float:
    piece = memoryview(bytes(_PIECE))
    started = time.monotonic()
    for at in range(0, size, _PIECE):
        connection.sendall(piece[: size - at])
    assert connection.recv(1) == b"!", "not all of it arrived"
    return time.monotonic() - started


def _receive(listening: socket.socket, size: int) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(_PATIENCE_S)
        room, left = bytearray(_PIECE), size
        while left and (count := connection.recv_into(room)):
            left -= count
        connection.sendall(b"?" if left else b"!")
