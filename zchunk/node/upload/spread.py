"""Which planned place of a chunk gives way to a peer that holds the chunk already. Pure.

What may not happen here: a move after which the file lies on fewer different peers than
it must (SPEC U4), or than the plan has where that is fewer still.

One chunk at a time, in the order in which they are hashed, without going back: where few
peers hold nearly everything, a chunk may be sent although another choice for an earlier
one had spared it. That it lies on enough peers counts for more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import product


class Spread:
    """How many of a file's chunks each peer has or will get."""

    def __init__(self, rows: Iterable[Collection[str]], min_peers: int) -> None:
        """`rows`: per chunk its peers. `min_peers`: on how many the file is to lie."""
        self._min_peers = min_peers
        self._counts = Counter(peer_id for row in rows for peer_id in row)

    @property
    def peers(self) -> int:
        """On how many different peers the file will lie."""
        return len(self._counts)

    def better(self, places: Collection[str], holders: Collection[str]) -> tuple[str, str] | None:
        """(place, holder): the one of a chunk's `places` that gives way, and to whom; None
        where none may. From the fullest place to the emptiest holder, then by lowest id, so
        that the file stays as even as it can.
        """
        pairs = sorted(
            product(places, holders),
            key=lambda pair: (self._counts[pair[1]], pair[1], -self._counts[pair[0]], pair[0]),
        )
        return next((pair for pair in pairs if self._may_move(*pair)), None)

    def move(self, place: str, holder: str) -> None:
        """One chunk goes to `holder` instead of `place`."""
        self._counts[holder] += 1
        if self._counts[place] > 1:
            self._counts[place] -= 1
        else:
            del self._counts[place]

    def _may_move(self, place: str, holder: str) -> bool:
        # Looked up only: a Counter keeps no entry for what it does not have.
        after = self.peers - (self._counts[place] == 1) + (self._counts[holder] == 0)
        return after >= min(self._min_peers, self.peers)
