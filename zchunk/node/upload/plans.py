"""New places for chunks whose planned ones can no longer give them their copies. Pure.

Without enough peers there are none: then the upload is blocked, until a peer comes, or until it is
time to look for room again. What may not happen here: two plans for one chunk asked for at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zchunk.errors import NoSpace, PeersUnsure, TooFewPeers, ZchunkError
from zchunk.node.upload.actions import Action, Replan
from zchunk.node.upload.copies import Copies, Copy, Target

#: Seconds after which a job that waits, since a peer had no room, asks for a plan with it again:
#: no event tells of space that was made.
ROOM_S = 2.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A new plan for a chunk was asked for: the places that were to stay, and when."""

    held: tuple[str, ...]
    arrivals: int


class Plans:
    def __init__(self, copies: Copies) -> None:
        #: why there are no places for some chunks, while that is so
        self.blocked: ZchunkError | None = None
        #: when it looks for room the next time, while it `waits_for_room`
        self.room_at = 0.0
        self._copies = copies
        self._asked: dict[int, _Asked] = {}
        #: how often a peer came up
        self._arrivals = 0
        #: while blocked: whether a peer is missing that had no room
        self._room_missing = False
        self._look_for_room = False

    def is_asked(self, index: int) -> bool:
        return index in self._asked

    @property
    def are_asked(self) -> bool:
        """Whether a plan is to come, for some chunk."""
        return bool(self._asked)

    def arrived(self) -> None:
        """A peer came: there may be places now."""
        self._arrivals += 1
        self.blocked = None

    def ask(self) -> list[Action]:
        copies = self._copies
        if (self.blocked is not None and not self._look_for_room) or not copies.places_changed:
            return []
        copies.places_changed = self._look_for_room = False
        rows = copies.rows
        needy = [i for i, chunk in enumerate(rows) if i not in self._asked and copies.is_needy(chunk)]
        if not needy:
            return []
        held = tuple(tuple(copies.kept(rows[i])) for i in needy)
        self._asked |= {i: _Asked(kept, self._arrivals) for i, kept in zip(needy, held, strict=True)}
        return [Replan(tuple(needy), held, tuple(sorted(copies.refused)))]

    def planned(self, chunks: Sequence[int], peers: Sequence[Collection[str]]) -> None:
        """The plan names new places only: those it was told of stay."""
        for index, targets in zip(chunks, peers, strict=True):
            asked = self._asked.pop(index)
            chunk = self._copies.rows[index]
            planned = [p for p, t in chunk.targets.items() if t.copy is Copy.PLANNED]
            for peer_id in [p for p in planned if p not in asked.held]:
                del chunk.targets[peer_id]
            for peer_id in sorted(targets):
                chunk.targets.setdefault(peer_id, Target())
        self.blocked, self._room_missing = None, False

    def refused(self, chunks: Collection[int], error: ZchunkError, now: float) -> bool:
        """Whether the upload can wait for the event that brings enough peers, or for room."""
        asked = [self._asked.pop(index) for index in chunks]
        still_no_room = isinstance(error, NoSpace) and not isinstance(self.blocked, PeersUnsure | None)
        if not isinstance(error, TooFewPeers) and not still_no_room:
            return False
        if any(each.arrivals < self._arrivals for each in asked):
            self._copies.places_changed = True  # a peer came after the tracker had said so
        else:
            self.blocked = error
            # No event tells of them, or may have come before this answer.
            self._room_missing |= bool(self._copies.refused) or "refusing" in error.details
            self.room_at = now + ROOM_S
        return True

    def waits_for_room(self) -> bool:
        """While the job waits: whether time may bring what no event tells of."""
        # Of a node that was expected and is not there, neither.
        return (self._room_missing or isinstance(self.blocked, PeersUnsure)) and not self._asked

    def look_for_room(self, now: float) -> None:
        """Who had none may have made some."""
        if self._room_missing:
            self._copies.refused.clear()
        self._look_for_room, self.room_at = True, now + ROOM_S
