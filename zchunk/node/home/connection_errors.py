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
            " check them, or give the other side an address of numbers (--advertise)"
        )
    if link is Link.REFUSED and rotating:
        return NotAllowed(
            f"{who} does not let this PC in by its old key: `zchunk rotate-key` was interrupted here;"
            " run it again, with the same --home"
        )
    if link is Link.REFUSED:
        return NotAllowed(
            f"{who} does not let this PC in: it was cut off from the cluster, or is no member of it; on the"
            " tracker's PC `zchunk peers allow` lets a member in again, and `zchunk token` makes one"
        )
    if link is Link.MISMATCH and encrypted:
        return TransportMismatch(
            f"{who} speaks plain, and this PC joined it with curve (encrypted): set"
            f" `security.transport: curve` there again, or {_JOIN}"
        )
    if link is Link.MISMATCH:
        return TransportMismatch(f"{who} speaks curve (encrypted), and this PC joined it with plain: {_JOIN}")
    return WrongServer(
        f"what listens as {who} is not whom this PC knows: it has another key, or is another program"
        " (docs/security.md: when a tracker's key is lost)"
    )
