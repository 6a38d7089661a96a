"""Which chunks are late, and which are asked of a second holder, and when. Pure.

A chunk whose peer is slow may have a second attempt, a hedge, at another holder that has nothing
else to send: the first to be complete counts, the other is dropped. What may not happen here: a
third attempt; a hedge at a peer that could bring the file forward otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from statistics import median

from zchunk.node.download.actions import ChunkState
from zchunk.node.download.chunks import Chunks, Fetch
from zchunk.node.download.order import AskOrder
from zchunk.node.download.sources import Source, Sources

#: A hedge is for waits that a person could notice, not for noise.
_MIN_S = 0.05
#: How many remembered times make a quantile.
_FEW = 4
#: The source is much slower than another holder when what it has left takes so many times as long
#: as all of the chunk there.
_SLOW = 1.5
#: A chunk comes late when its source has less than one part in so many of the others' usual
#: speed, or has taken so many times as long as they usually do.
_LATE = 2


class Hedging:
    def __init__(self, chunks: Chunks, sources: Sources, order: AskOrder) -> None:
        self._chunks = chunks
        self._sources = sources
        self._order = order

    def take(self, now: float) -> tuple[int, str] | None:
        """(chunk, second peer) of the chunk that is overdue the longest."""
        due = [hedge for hedge in self.planned() if hedge[0] <= now]
        if not due:
            return None
        _, index, peer_id = min(due)
        return index, peer_id

    def deadline(self) -> float | None:
        return min((due for due, _, _ in self.planned()), default=None)

    def planned(self) -> list[tuple[float, int, str]]:
        """(when it is due, chunk, second peer) of each chunk in flight that an idle holder
        could send as well. Only who has nothing else to send is asked: what is wanted and not
        begun brings the file forward more."""
        idle = self._order.idle()
        hedges = []
        for index in self._chunks.in_work if idle else ():
            chunk = self._chunks.rows[index]
            if chunk.state is not ChunkState.IN_FLIGHT or len(chunk.fetches) != 1:
                continue
            if not self._chunks.fits(chunk.size):
                continue
            (fetch,) = chunk.fetches
            for peer_id in set(idle).intersection(self._sources.live(index)) - {fetch.peer_id}:
                patience = self._patience(fetch, chunk.size, self._sources.peers[peer_id])
                if patience is not None:
                    hedges.append((fetch.begun_at + patience, index, peer_id))
        return hedges

    def _patience(self, fetch: Fetch, size: int, other: Source) -> float | None:
        """Seconds the chunk may take at its source while `other` is idle: what chunks from there
        hardly ever exceed, or twice that of the other where that is less; and none if the other
        would bring all of it sooner than the source what is left."""
        source = self._sources.peers[fetch.peer_id]
        rate, other_rate = source.window.rate, other.window.rate
        if rate and other_rate and fetch.left / rate > _SLOW * size / other_rate:
            return _MIN_S
        known = [
            p95(peer.took) * times for peer, times in ((source, 1), (other, 2)) if len(peer.took) >= _FEW
        ]
        return max(_MIN_S, min(known)) if known else None

    def comes_late(self, index: int, now: float) -> bool:
        """By how fast its sources are, or by how long it has taken already."""
        chunk = self._chunks.rows[index]
        if chunk.state is not ChunkState.IN_FLIGHT:
            return False
        return all(self._is_late(fetch, now) for fetch in chunk.fetches)

    def _is_late(self, fetch: Fetch, now: float) -> bool:
        others = [peer for peer_id, peer in self._sources.peers.items() if peer_id != fetch.peer_id]
        rate = self._sources.peers[fetch.peer_id].window.rate
        rates = [peer.window.rate for peer in others if peer.window.rate]
        if rate and rates and _LATE * rate < median(rates):
            return True
        took = [seconds for peer in others for seconds in peer.took]
        return bool(took) and now > fetch.begun_at + max(_MIN_S, _LATE * median(took))


def p95(seconds: Collection[float]) -> float:
    """What 95 of 100 do not exceed (nearest rank)."""
    ordered = sorted(seconds)
    return ordered[-(-95 * len(ordered) // 100) - 1]
