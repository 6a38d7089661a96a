"""What no zchunk sends, and how much of it a member may send before its connections end. Pure.

An answer costs more than a question: who asks for nonsense as fast as it is refused would take
others their share. What honest members are refused under load (`busy`, `not_found`) never counts.
"""

from __future__ import annotations

from zchunk.errors import MalformedMessage, NotAllowed, UnknownMessage, UnsupportedVersion, ZchunkError
from zchunk.limits.rate_limit import RateLimit

#: Such requests that a member may make at once, and how many per second it gets back: another
#: version of zchunk may well ask for what this one does not know.
BURST = 200.0
PER_SECOND = 20.0
#: Exactly these: `not_joined` and the like are what an honest home is told.
_KINDS = (MalformedMessage, UnknownMessage, UnsupportedVersion, NotAllowed)


class Misuse:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._limit = RateLimit(BURST, PER_SECOND)

    def is_too_much(self, error: ZchunkError, peer_id: str, now: float) -> bool:
        """Whether this member, which is refused once more, is to be cut off."""
        return type(error) in _KINDS and not self._limit.take(peer_id, now)
