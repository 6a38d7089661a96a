"""The gate at ZeroMQ's own door (ZAP, RFC 27): each key that connects is asked about here.

What may not happen here: a key let in because a request could not be read; an answer that
names a member on a request that was not CURVE's.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from zchunk.transport.base import Buffer, Delivery, Knock
from zchunk.transport.keys import KEY_BYTES

_AT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_LET_IN, _REFUSED = b"200", b"400"


class ZapGate:
    """The ZAP handler of a context. libzmq waits for its answer with each handshake."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.raw = context.socket(zmq.ROUTER)
        self.raw.setsockopt(zmq.LINGER, 0)
        self.raw.bind(_AT)
        self.endpoint = ""

    def pollable(self) -> list[zmq.Socket[bytes]]:
        return [self.raw]

    def receive(self) -> Knock | None:
        while True:
            try:
                frames = self.raw.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return None
            knock = _knock(frames)
            if knock is not None:
                return knock
            self._reply(tuple(frames[:1] + frames[3:4]), _REFUSED, b"")

    def answer(self, knock: Knock, peer_id: str | None) -> None:
        if peer_id is None:
            self._reply(knock.ticket, _REFUSED, b"")
        else:
            self._reply(knock.ticket, _LET_IN, peer_id.encode())

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        return Delivery.GONE

    def end(self, peer_id: str) -> None:
        pass

    def close(self) -> None:
        self.raw.close()

    def _reply(self, ticket: tuple[bytes, ...], status: bytes, user_id: bytes) -> None:
        if len(ticket) == 2:
            self.raw.send_multipart([ticket[0], b"", _VERSION, ticket[1], status, b"", user_id, b""])


def _knock(frames: Sequence[bytes]) -> Knock | None:
    """None for a request that does not bring a CURVE key."""
    if len(frames) != 9 or frames[2] != _VERSION or frames[7] != b"CURVE" or len(frames[8]) != KEY_BYTES:
        return None
    sender, _, _, request, door, address, _, _, key = frames
    return Knock(
        door.decode(errors="replace"), key, address.decode(errors="replace"), ticket=(sender, request)
    )
