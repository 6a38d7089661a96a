"""In which order chunks are asked for, and of whom. Pure.

The rarest first, then those of slow peers, since they are the ones left behind, then in the file's
order. A chunk that several could send goes to the fastest; ties go to the lowest id.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import median

from zchunk.node.download.actions import ChunkState
from zchunk.node.download.chunks import Chunks
from zchunk.node.download.sources import Source, Sources

#: A peer is slow, and served first, when what it has left takes so many times as long as
#: with the others.
_SLOW = 1.5


class AskOrder:
    def __init__(self, chunks: Chunks, sources: Sources) -> None:
        self._chunks = chunks
        self._sources = sources
        #: peer -> chunks it holds that are wanted: a heap of (holders, index)
        self.queues: dict[str, list[tuple[int, int]]] = {}

    def renew(self) -> None:
        """Who can be asked for what changed: each live peer gets its wanted chunks."""
        queues: dict[str, list[tuple[int, int]]] = {peer_id: [] for peer_id in self._sources.peers}
        self.queues = queues
        for index in sorted(self._chunks.wanted):
            live = self._sources.live(index)
            for peer_id in live:
                queues[peer_id].append((len(live), index))
        for queue in queues.values():
            heapq.heapify(queue)

    def take(self, now: float) -> tuple[int, str] | None:
        """(chunk, peer): the most urgent chunk that some peer can send now, and for which there
        is memory. It is not offered again."""
        ready = [
            (urgency, peer_id)
            for peer_id, peer in self._sources.peers.items()
            if peer.has_room(now) and (urgency := self._first(peer_id)) is not None
        ]
        if not ready:
            return None
        slow = self._slow_peers([peer_id for _, peer_id in ready])
        rank = [
            (holders, peer_id not in slow, index, -self._sources.peers[peer_id].window.rate, peer_id)
            for (holders, index), peer_id in ready
        ]
        _, _, index, _, peer_id = min(rank)
        if not self._chunks.fits(self._chunks.rows[index].size):
            return None
        heapq.heappop(self.queues[peer_id])
        return index, peer_id

    def _first(self, peer_id: str) -> tuple[int, int] | None:
        """(holders, index) of the chunk to ask this peer for next."""
        queue, rows = self.queues.get(peer_id), self._chunks.rows
        while queue:
            if rows[queue[0][1]].state is ChunkState.WANTED:
                return queue[0]
            heapq.heappop(queue)
        return None

    def _slow_peers(self, peer_ids: Sequence[str]) -> set[str]:
        """Those that need much longer than the others for what they have left."""
        peers = {peer_id: self._sources.peers[peer_id] for peer_id in peer_ids}
        left = {p: len(self.queues[p]) / peer.window.rate for p, peer in peers.items() if peer.window.rate}
        usual = median(left.values()) if left else 0.0
        return {p for p, time in left.items() if time > _SLOW * usual}

    def idle(self) -> list[str]:
        """Peers that could send a chunk at once and have no wanted one. Their pauses have ended."""
        return [
            peer_id
            for peer_id, peer in self._sources.peers.items()
            if not peer.window.paused_until and peer.has_room(0.0)
            if self._first(peer_id) is None
        ]

    def is_memory_bound(self, now: float) -> bool:
        """Whether a peer could be asked for more if there were memory for it."""
        return not self._chunks.fits(self._chunks.largest) and any(
            peer.has_room(now) for peer in self._sources.peers.values()
        )

    def has_work(self) -> bool:
        """Whether some peer can be asked for something, if only after a pause."""
        return any(self._has_work(peer_id, peer) for peer_id, peer in self._sources.peers.items())

    def _has_work(self, peer_id: str, peer: Source) -> bool:
        rows = self._chunks.rows
        queue = self.queues.get(peer_id, ())
        return peer.there and any(rows[index].state is ChunkState.WANTED for _, index in queue)
