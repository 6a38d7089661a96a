"""One request to the tracker outside of any session: joining, a new key."""

from __future__ import annotations

from dataclasses import dataclass

from zchunk.clock import Clock
from zchunk.errors import Busy, TrackerUnreachable, UnknownMessage, ZchunkError
from zchunk.node.home.connection_errors import closed_door
from zchunk.node.home.membership import Identity
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, Message, Request
from zchunk.transport.base import Arrival, Link, Received, SocketOptions, Transport

_RESEND_S = 1.0
_SOCKET = SocketOptions(max_frame_bytes=wire.MAX_FRAME_BYTES, linger_ms=0)


@dataclass(frozen=True)
class TrackerAt:
    """Where the tracker is, which public key it has, and who asks it."""

    addresses: tuple[str, ...]
    key: bytes
    identity: Identity

    @property
    def where(self) -> str:
        return ", ".join(self.addresses)


def ask_once(
    tracker: TrackerAt,
    message: Request,
    transport: Transport,
    clock: Clock,
    timeout_s: float,
    shut_out: ZchunkError | None = None,
) -> Message:
    """Its answer. The request may arrive more than once. Blocks.

    Raises the tracker's error, Busy only where it stays so; `shut_out`, else NotAllowed, where
    it does not let this key in; TransportMismatch, WrongServer, TrackerUnreachable (says the
    address).
    """
    poller = transport.poller()
    socket = transport.dealer(tracker.addresses, _SOCKET, tracker.identity.to_server(tracker.key))
    poller.register(socket)
    frames = wire.encode(message, 1, tracker.identity.claim)
    deadline, resend_at = clock.monotonic() + timeout_s, 0.0
    failure: ZchunkError = TrackerUnreachable(
        f"the tracker at {tracker.where} does not answer; is it running, and reachable from here?"
    )
    try:
        while (now := clock.monotonic()) < deadline:
            for _ in poller.wait(min(deadline, max(resend_at, now)) - now):
                received = socket.receive()
                if received is Link.REFUSED and shut_out is not None:
                    raise shut_out
                reply = _reply(received, message, tracker)
                if reply is Link.UP:
                    resend_at = 0.0
                elif isinstance(reply, Busy):
                    failure = reply  # asked again
                elif isinstance(reply, Message):
                    return reply
            if clock.monotonic() >= resend_at:
                resend_at = clock.monotonic() + _RESEND_S
                socket.send(frames)
    finally:
        poller.unregister(socket)
        socket.close()
        poller.close()
    raise failure


def _reply(received: Arrival | None, asked: Request, tracker: TrackerAt) -> Message | Link | Busy | None:
    if isinstance(received, Link):
        if received in (Link.UP, Link.DOWN):
            return received
        raise closed_door(received, f"the tracker at {tracker.where}", encrypted=tracker.identity.encrypts)
    if not isinstance(received, Received):
        return None
    message = wire.decode(received.frames).message
    if isinstance(message, ErrorReply):
        error = wire.raised(message)
        if isinstance(error, Busy):
            return error
        raise error
    if not isinstance(message, asked.REPLY):
        raise UnknownMessage(f"an answer of type {message.TYPE!r} to a request {asked.TYPE!r}")
    return message
