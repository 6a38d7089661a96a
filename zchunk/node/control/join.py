"""Joining a cluster with a token: one request under the token's own key."""

from __future__ import annotations

from pathlib import Path

from zchunk.clock import Clock
from zchunk.errors import InvalidUsage, TokenRefused
from zchunk.node.control.single_request import TrackerAt, ask_once
from zchunk.node.home.membership import Identity, Membership, key_of, save
from zchunk.protocol.messages import Join, Joined
from zchunk.transport.auth import Token
from zchunk.transport.base import Transport

_EXPIRED = "this join token has expired; print a new one with `zchunk token` on the tracker's PC"


def join(
    folder: Path, token: Token, name: str, transport: Transport, clock: Clock, timeout_s: float
) -> Membership:
    """Make the role at `folder` a member, and remember it. Joining again is harmless.

    Raises TokenRefused, NameTaken, TransportMismatch, WrongServer, TrackerUnreachable
    (says the address), InvalidUsage (a name that cannot be sent: what is no text).
    """
    if not name.isprintable():
        raise InvalidUsage(f"invalid name {name!r}: use 1 to 64 printable characters")
    if token.expires_ms < clock.wall() * 1000:
        raise TokenRefused(_EXPIRED)
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
    identity = Identity(token.key.peer_id, token.key if token.transport == "curve" else None)
    tracker = TrackerAt(token.addresses, token.tracker_key, identity)
    unknown = TokenRefused(
        f"the tracker at {tracker.where} rejects this join token: it has expired by the tracker's"
        " clock, or was withdrawn; print a new one with `zchunk token` on the tracker's PC"
    )
    reply = ask_once(tracker, message, transport, clock, timeout_s, shut_out=unknown)
    assert isinstance(reply, Joined)
    return reply
