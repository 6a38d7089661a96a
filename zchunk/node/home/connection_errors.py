"""What it means that no connection can be had, in words. Pure."""

from __future__ import annotations

from zchunk.errors import NotAllowed, TrackerUnreachable, TransportMismatch, WrongServer, ZchunkError
from zchunk.transport.base import Link

_JOIN = "join with a new token (`zchunk token` on the tracker's PC prints one)"


def closed_door(
    link: Link,
    who: str,
    encrypted: bool,
    rotating: bool = False,
    unreachable: type[ZchunkError] = TrackerUnreachable,
) -> ZchunkError:
    """`link` is REFUSED, MISMATCH, STRANGE or NAMELESS; `who` is the other side, `the tracker at ...`;
    `encrypted` is our side; `rotating`: a rotation of our key did not come to its end;
    `unreachable`: what to call one that cannot be reached."""
    if link is Link.NAMELESS:
        return unreachable(
            f"{who} cannot be reached: its name does not resolve on this PC, or no name server answers;"
            " check them, or let the other side announce an IP address (--advertise)"
        )
    if link is Link.REFUSED and rotating:
        return NotAllowed(
            f"{who} rejects this PC's old key: `zchunk rotate-key` was interrupted here; run it again, with"
            " the same --home"
        )
    if link is Link.REFUSED:
        return NotAllowed(
            f"{who} rejects this PC: it was revoked, or is not a member of the cluster. On the tracker's PC,"
            " `zchunk peers allow` admits a revoked member again, and `zchunk token` prints a token for a new"
            " one"
        )
    if link is Link.MISMATCH and encrypted:
        return TransportMismatch(
            f"{who} uses plain transport, but this PC joined it with curve (encrypted): set"
            f" `security.transport: curve` there again, or {_JOIN}"
        )
    if link is Link.MISMATCH:
        return TransportMismatch(
            f"{who} uses curve (encrypted) transport, but this PC joined it with plain: {_JOIN}"
        )
    return WrongServer(
        f"{who} is not the one that this PC knows: it has another key, or is another program"
        " (docs/guide/security.md: when a tracker's key is lost)"
    )
