"""Who reported which copy of a chunk as corrupt, until its node has answered. Pure.

A report proves nothing (the line or the reporter may be at fault): it makes the node check
itself, and only reports by two members, or the node's own answer, change a location (SPEC
D8). `tracker/core.py` asks and tells. In memory alone: after a restart of the tracker who meets
the chunk again reports it again.

What may not happen here: one member counted twice for a copy; memory that grows with what
members report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from zchunk.errors import Busy

#: Reports by so many members change a location without the node's own answer.
ENOUGH = 2
_MAX_COPIES = 10_000
_MAX_OF_MEMBER = 1_000


class CorruptReports:
    def __init__(self) -> None:
        #: (peer, chunk) -> the members who reported it; oldest first
        self._open: dict[tuple[str, bytes], frozenset[str]] = {}
        #: member -> how many of these name it
        self._of_member: Counter[str] = Counter()

    def check(self, member: str) -> None:
        """Raises Busy (retryable) for a member with too many reports that are not settled."""
        if self._of_member[member] >= _MAX_OF_MEMBER:
            raise Busy(
                f"{_MAX_OF_MEMBER:,} reports of this member are waiting for the nodes that they name; "
                "report again when these have checked their chunks"
            )

    def add(self, member: str, peer_id: str, sha256: bytes) -> int:
        """How many members have reported this copy by now; 0 when this one had before.
        With `ENOUGH` it is settled."""
        copy = (peer_id, sha256)
        members = self._open.get(copy, frozenset())
        if member in members:
            return 0
        members |= {member}
        self.settle(peer_id, [sha256])
        if len(members) < ENOUGH:
            self._open[copy] = members
            self._of_member.update(members)
            while len(self._open) > _MAX_COPIES:
                oldest_peer, oldest_chunk = next(iter(self._open))
                self.settle(oldest_peer, [oldest_chunk])
        return len(members)

    def settle(self, peer_id: str, hashes: Iterable[bytes]) -> None:
        """It is known by now how these copies are."""
        if not self._open:
            return
        for sha256 in hashes:
            for member in self._open.pop((peer_id, sha256), ()):
                self._of_member[member] -= 1
                if not self._of_member[member]:
                    del self._of_member[member]

    def open_at(self, peer_id: str) -> list[bytes]:
        """The chunks that this peer should check, ascending."""
        return sorted(sha256 for peer, sha256 in self._open if peer == peer_id)
