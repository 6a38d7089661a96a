"""What it means for a file when peers are off: which chunks are lost, how few peers hold it. Pure.

Called by the commands, which show it before they upload, and by the tracker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from zchunk.placement import Placement

#: Up to this many peers `minimum_peers` tries all sets; beyond it takes the greedy bound.
EXACT_PEERS = 12


@dataclass(frozen=True, slots=True)
class PeerConsequence:
    """What one peer means for a file."""

    peer_id: str
    #: Chunks it holds a copy of.
    chunks: int
    #: Chunks that cannot be read while it alone is off.
    chunks_lost: int


def lost_without(holders: Sequence[Collection[str]], off: Collection[str]) -> int:
    """How many chunks have no holder left with the peers `off` off; `holders` is per chunk."""
    gone = frozenset(off)
    return sum(gone.issuperset(peers) for peers in holders)


def consequence(
    plan: Placement | Sequence[Collection[str]], peers: Iterable[str] | None = None
) -> list[PeerConsequence]:
    """Per peer, in the order of `peers`, what it holds and what stops with it off.

    `plan` is a placement or the holders per chunk; `peers` are all in it by default.
    """
    holders: Sequence[Collection[str]] = plan.holders() if isinstance(plan, Placement) else plan
    if peers is None:
        peers = plan.peers if isinstance(plan, Placement) else sorted(set().union(*holders))
    held = Counter(peer for row in holders for peer in row)
    alone = Counter(peer for row in holders if len(row) == 1 for peer in row)
    without = sum(not row for row in holders)
    return [PeerConsequence(peer, held[peer], alone[peer] + without) for peer in peers]


def minimum_peers(holders: Sequence[Collection[str]]) -> int:
    """How few peers can together hold every chunk; 0 for no chunks.

    Exact while at most `EXACT_PEERS` peers are to choose from, beyond that what a greedy
    choice needs: never too few. Chunks that nobody holds are left out.
    """
    different = {frozenset(row) for row in holders if row}
    forced = frozenset().union(*(row for row in different if len(row) == 1))
    open_rows = [row for row in different if not row & forced]
    peers = sorted(frozenset().union(*open_rows))
    if len(peers) <= EXACT_PEERS:
        return len(forced) + _smallest_cover(open_rows, peers)
    return len(forced) + _greedy_cover(open_rows, peers)


def _smallest_cover(rows: Sequence[frozenset[str]], peers: Sequence[str]) -> int:
    # A row that contains another is covered with it.
    least = [row for row in rows if not any(other < row for other in rows)]
    for count in range(len(peers)):
        for chosen in combinations(peers, count):
            if not any(row.isdisjoint(chosen) for row in least):
                return count
    return len(peers)


def _greedy_cover(rows: Sequence[frozenset[str]], peers: Sequence[str]) -> int:
    chosen = 0
    while rows:
        useful = Counter(peer for row in rows for peer in row)
        best = max(peers, key=lambda peer: useful[peer])
        rows = [row for row in rows if best not in row]
        chosen += 1
    return chosen


def describe_chunks(indexes: Sequence[int]) -> str:
    """`chunk 0` for one, `0-9` for a run, `first 2, every 3rd, 12 chunks` for even steps,
    else `12 chunks`."""
    count = len(indexes)
    if not count:
        return "no chunks"
    ordered = sorted(indexes)
    if count == 1:
        return f"chunk {ordered[0]}"
    step = ordered[1] - ordered[0]
    if step < 1 or any(after - before != step for before, after in pairwise(ordered)):
        return f"{count} chunks"
    if step == 1:
        return f"{ordered[0]}-{ordered[-1]}"
    return f"first {ordered[0]}, every {_ordinal(step)}, {count} chunks"


def _ordinal(number: int) -> str:
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
