"""Joining a cluster with a token: one request under the token's own key."""

from __future__ import annotations

from pathlib import Path

from zchunk.clock import Clock
from zchunk.errors import TokenRefused, TrackerUnreachable, UnknownMessage
from zchunk.node.links import BULK
from zchunk.node.membership import Membership, key_of, save
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, Join, Joined
from zchunk.transport.auth import Token
from zchunk.transport.base import Arrival, Link, Received, Transport

_RESEND_S = 1.0


def join(
    folder: Path, token: Token, name: str, transport: Transport, clock: Clock, timeout_s: float
) -> Membership:
    """Make the role at `folder` a member, and remember it. Joining again is harmless.

    Raises TokenRefused, NameTaken, TrackerUnreachable (says the address).
    """
    if token.expires_ms < clock.wall() * 1000:
        raise TokenRefused("this join token has expired; print a new one with `zchunk token`")
    key = key_of(folder)
    joined = _ask(token, Join(public_key=key.public, name=name), transport, clock, timeout_s)
    membership = Membership(
        peer_id=joined.peer_id,
        name=joined.name,
        role=joined.role,
        store_id=joined.store_id,
        tracker=token.addresses,
        tracker_key=token.tracker_key.hex(),
        events=joined.events,
        transport=token.transport,
    )
    save(folder, membership)
    return membership


def _ask(token: Token, message: Join, transport: Transport, clock: Clock, timeout_s: float) -> Joined:
    poller = transport.poller()
    socket = transport.dealer(token.addresses, BULK)
    poller.register(socket)
    frames = wire.encode(message, 1, token.key.peer_id)
    deadline, resend_at = clock.monotonic() + timeout_s, 0.0
    try:
        while (now := clock.monotonic()) < deadline:
            for _ in poller.wait(min(deadline, max(resend_at, now)) - now):
                reply = _reply(socket.receive())
                if reply is Link.UP:
                    resend_at = 0.0
                elif isinstance(reply, Joined):
                    return reply
            if clock.monotonic() >= resend_at:
                resend_at = clock.monotonic() + _RESEND_S
                socket.send(frames)
    finally:
        poller.unregister(socket)
        socket.close()
        poller.close()
    where = ", ".join(token.addresses)
    raise TrackerUnreachable(
        f"the tracker at {where} does not answer; is it running, and reachable from here?"
    )


def _reply(received: Arrival | None) -> Joined | Link | None:
    if isinstance(received, Link):
        return received
    if not isinstance(received, Received):
        return None
    message = wire.decode(received.frames).message
    if isinstance(message, ErrorReply):
        raise wire.raised(message)
    if not isinstance(message, Joined):
        raise UnknownMessage(f"an answer of type {message.TYPE!r} to a request to join")
    return message
