"""The gate at ZeroMQ's own door (ZAP, RFC 27): each key that connects is asked about here.

What may not happen here: a key let in because a request could not be read; an answer that
names a member on a request that was not CURVE's; two connections let in under one number.

Plain sockets ask as well, although everybody is let in there (`PlainGate`): a socket that asks
nobody also takes peers that speak ZMTP 1 or 2, whose messages say nothing of the connection that
they came by. libzmq refuses these wherever it has to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from zchunk.transport.base import Arrival, Buffer, Delivery, Knock
from zchunk.transport.keys import KEY_BYTES
from zchunk.transport.poller import RAW, Edged, has_message

_AT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_LET_IN, _REFUSED = b"200", b"400"
#: The domain of plain sockets: without one libzmq does not ask.
PLAIN_DOMAIN = "zchunk.plain"


@dataclass(frozen=True, slots=True)
class Admission:
    """Who was let in, and as which one: each connection has a number of its own. It travels
    as the User-Id of all that comes by that connection."""

    peer_id: str
    number: int

    def encode(self) -> bytes:
        return f"{self.peer_id}.{self.number}".encode()


def parse_admission(user_id: str | None) -> Admission | None:
    """None for a connection that no gate was asked about (plain transport)."""
    peer_id, dot, number = (user_id or "").partition(".")
    return Admission(peer_id, int(number)) if dot else None


class Admissions:
    """Which of those who were let in may stay. A socket is told to end a member: that voids
    all admissions of it up to then, also of connections that have not said a word yet and
    are not known by any."""

    def __init__(self) -> None:
        self._last = 0
        #: member -> its last admission that is void
        self._void: dict[str, int] = {}

    def admit(self, peer_id: str) -> Admission:
        self._last += 1
        return Admission(peer_id, self._last)

    def end(self, peer_id: str) -> None:
        self._void[peer_id] = self._last

    def is_void(self, admission: Admission | None) -> bool:
        return admission is not None and admission.number <= self._void.get(admission.peer_id, 0)


class ZapGate(Edged):
    """The ZAP handler of a context. libzmq waits for its answer with each handshake."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admissions: Admissions) -> None:
        self._admissions = admissions
        self.raw = _handler(context)
        self.endpoint = ""

    def pollable(self) -> list[zmq.Socket[bytes] | int]:
        return [self.raw]

    def receive(self) -> Knock | None:
        while True:
            try:
                frames = self.raw.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                self.news = 0
                return None
            knock = _knock(frames)
            if knock is not None:
                return knock
            _reply(self.raw, _ticket(frames), _REFUSED, b"")

    def answer(self, knock: Knock, peer_id: str | None) -> None:
        self.news |= RAW
        if peer_id is None:
            _reply(self.raw, knock.ticket, _REFUSED, b"")
        else:
            _reply(self.raw, knock.ticket, _LET_IN, self._admissions.admit(peer_id).encode())

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        return Delivery.GONE

    def reject(self, arrival: Arrival) -> None:
        if isinstance(arrival, Knock):
            self.answer(arrival, None)

    def close(self) -> None:
        self.raw.close()


class PlainGate:
    """The ZAP handler of a context with plain sockets: lets everybody in, as nobody."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.raw = _handler(context)

    def answer(self) -> None:
        """All that ask now."""
        while has_message(self.raw):
            frames = self.raw.recv_multipart()
            _reply(self.raw, _ticket(frames), _LET_IN if _is_plain(frames) else _REFUSED, b"")

    def close(self) -> None:
        self.raw.close()


def _handler(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    raw = context.socket(zmq.ROUTER)
    try:
        raw.setsockopt(zmq.LINGER, 0)
        raw.bind(_AT)
    except BaseException:
        raw.close()
        raise
    return raw


def _ticket(frames: Sequence[bytes]) -> tuple[bytes, ...]:
    """Who asked, and the number of the question."""
    return tuple(frames[:1]) + tuple(frames[3:4])


def _reply(raw: zmq.Socket[bytes], ticket: tuple[bytes, ...], status: bytes, user_id: bytes) -> None:
    if len(ticket) == 2:
        raw.send_multipart([ticket[0], b"", _VERSION, ticket[1], status, b"", user_id, b""])


def _is_plain(frames: Sequence[bytes]) -> bool:
    return len(frames) == 8 and frames[2] == _VERSION and frames[7] == b"NULL"


def _knock(frames: Sequence[bytes]) -> Knock | None:
    """None for a request that does not bring a CURVE key."""
    if len(frames) != 9 or frames[2] != _VERSION or frames[7] != b"CURVE" or len(frames[8]) != KEY_BYTES:
        return None
    sender, _, _, request, door, address, _, _, key = frames
    return Knock(
        door.decode(errors="replace"), key, address.decode(errors="replace"), ticket=(sender, request)
    )
