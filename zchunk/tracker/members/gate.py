"""Which keys come in at which of the tracker's doors. Pure."""

from __future__ import annotations

from zchunk.clock import Now
from zchunk.tracker.members.member_list import MemberList

REQUESTS = "zchunk.tracker"
EVENTS = "zchunk.events"


def admitted(listed: MemberList, door: str, public_key: bytes, now: Now) -> str | None:
    """The id under which this key comes in, None where it does not.

    A member comes in everywhere; a token's key only where requests are answered, until it
    expires: what it may there is `join`. One that is used up still comes in, to be told so.
    """
    if door not in (REQUESTS, EVENTS):
        return None
    member = listed.owner_of(public_key)
    if member is not None:
        return None if member.revoked else member.peer_id
    token = listed.token(public_key)
    if token is None or door != REQUESTS or now.wall_ms >= token.expires_ms:
        return None
    return token.key_id
