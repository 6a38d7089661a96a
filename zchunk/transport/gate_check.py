"""A process's test of its own doors: a key that nobody knows must not come in.

A socket under CURVE whose gate is missing lets everyone in, and nothing shows it. So each
server knocks at its own sockets, as a stranger would, before it does anything else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from zchunk.errors import OpenDoor
from zchunk.system import addresses
from zchunk.transport.auth import new_key_pair
from zchunk.transport.base import Link, Socket, SocketOptions
from zchunk.transport.keys import CurveClient
from zchunk.transport.zeromq import ZmqTransport

log = logging.getLogger(__name__)

_OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)
#: A busy machine may take its time; a gate that answers takes milliseconds.
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Door:
    """A bound socket: `endpoint` as it tells it, the public key that it serves under."""

    endpoint: str
    server_key: bytes
    publishes: bool = False


def prove_closed(doors: Sequence[Door]) -> None:
    """Returns when each of them has refused a stranger's key. Their loops must be running.

    Raises OpenDoor where one did not, or where that could not be found out.
    """
    log.info("checking that our own ports reject an unknown key")
    transport = ZmqTransport()
    try:
        for door in doors:
            _check(transport, door)
    finally:
        transport.close()


def _check(transport: ZmqTransport, door: Door) -> None:
    curve = CurveClient(new_key_pair(), door.server_key)
    connect = transport.subscriber if door.publishes else transport.dealer
    socket = connect([_reached(door.endpoint)], _OPTIONS, curve)
    try:
        link = _outcome(transport, socket)
    finally:
        socket.close()
    if link is Link.UP:
        raise OpenDoor(
            f"{door.endpoint} accepts an unknown key; zchunk refuses to run without this protection"
        )
    if link is not Link.REFUSED:
        raise OpenDoor(
            f"could not check that {door.endpoint} rejects an unknown key: it does not answer; is there a"
            " firewall between this PC and itself?"
        )


def _outcome(transport: ZmqTransport, socket: Socket) -> Link | None:
    poller = transport.poller()
    poller.register(socket)
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while (left := deadline - time.monotonic()) > 0:
            poller.wait(left)
            received = socket.receive()
            if isinstance(received, Link) and received is not Link.DOWN:
                return received
    finally:
        poller.unregister(socket)
        poller.close()
    return None


def _reached(endpoint: str) -> str:
    """How this PC reaches its own socket: of a wildcard, by loopback."""
    at = addresses.parse(endpoint)
    if not addresses.is_wildcard(at.host):
        return at.tcp
    return addresses.HostPort("::1" if ":" in at.host else "127.0.0.1", at.port).tcp
