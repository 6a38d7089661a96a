"""Which keys come in at which of the tracker's doors."""

from __future__ import annotations

import logging

from zchunk.clock import Now
from zchunk.errors import ZchunkError
from zchunk.tracker.membership import Membership

log = logging.getLogger(__name__)

REQUESTS = "zchunk.tracker"
EVENTS = "zchunk.events"


def admitted(membership: Membership, door: str, public_key: bytes, now: Now) -> str | None:
    """The id under which this key comes in, None where it does not.

    A member comes in everywhere; a token's key only where requests are answered, until it
    expires: what it may there is `join`. One that is used up still comes in, to be told so.
    """
    if door not in (REQUESTS, EVENTS):
        return None
    try:
        member = membership.owner_of(public_key)
        if member is not None:
            return None if member.revoked else member.peer_id
        token = membership.token(public_key)
    except ZchunkError as error:
        log.warning("a key is refused, since the allow list cannot be read: %s", error.message)
        return None
    if token is None or door != REQUESTS or now.wall_ms >= token.expires_ms:
        return None
    return token.key_id
