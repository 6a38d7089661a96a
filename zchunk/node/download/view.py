"""What others see of a download: the state of its chunks, and what waits for whom. Pure.

Looks only: nothing is changed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from zchunk.node.download.actions import PUBLIC_STATUS, ChunkState
from zchunk.node.download.chunks import Chunks
from zchunk.node.download.sources import Sources


class View:
    def __init__(self, chunks: Chunks, sources: Sources) -> None:
        self._chunks = chunks
        self._sources = sources

    def chunk_state(self, index: int) -> ChunkState:
        return self._chunks.rows[index].state

    def attempts(self, index: int) -> list[int]:
        """The numbers of those that count: two while a hedge runs."""
        return [fetch.attempt for fetch in self._chunks.rows[index].fetches]

    def status(self, index: int) -> tuple[str, str | None]:
        """(status, peer_id) as SPEC "DownloadJob" names them."""
        chunk = self._chunks.rows[index]
        if chunk.state is ChunkState.WANTED and self._sources.is_unavailable(index):
            return "failed", None
        peer_id = chunk.fetches[0].peer_id if chunk.fetches else chunk.source
        return PUBLIC_STATUS[chunk.state], peer_id or None

    def by_peer(self) -> dict[str, dict[str, int]]:
        """Holders -> how many chunks came from each in this run, and how many are coming."""
        return {
            peer_id: {"completed": peer.completed, "in_progress": peer.begun}
            for peer_id, peer in sorted(self._sources.peers.items())
            if peer.completed or peer.begun
        }

    # -- what waits for whom ----------------------------------------------------------

    def missing(self) -> dict[str, int]:
        """Peers that are down, or cannot be reached, or cannot read their copies -> how many
        wanted chunks only such peers hold, counted at each."""
        counts: dict[str, int] = {}
        for index in self.missing_chunks():
            for peer_id in self._sources.askable(index):
                counts[peer_id] = counts.get(peer_id, 0) + 1
        return counts

    def why_missing(self, peer_id: str) -> str:
        """Of a peer of `missing`: "offline", or, up as the tracker says, "unreachable" from here,
        or "unreadable" what it holds."""
        peer = self._sources.peers.get(peer_id)
        if peer is None or not peer.up:
            return "offline"
        return "unreadable" if peer.reachable else "unreachable"

    def is_missing(self, index: int) -> bool:
        """Wanted, and no live peer can be asked for it."""
        return index in self._chunks.wanted and not self._sources.live(index)

    def is_waited_for(self, index: int) -> bool:
        """As `is_missing`, and it is more than a moment in which a peer could not read it."""
        return self.is_missing(index) and not self._sources.unread.is_brief(index)

    def missing_chunks(self) -> list[int]:
        """Wanted chunks without a live holder."""
        return [index for index in sorted(self._chunks.wanted) if self.is_missing(index)]

    def unavailable(self) -> list[int]:
        """Wanted chunks that no holder, up or down, can still be asked for."""
        return [index for index in sorted(self._chunks.wanted) if self._sources.is_unavailable(index)]

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """See `JobDriver`'s `Job`: all that is in work was asked of these peers, and nothing has come."""
        chunks = [self._chunks.rows[index] for index in self._chunks.in_work]
        if not all(chunk.state is ChunkState.IN_FLIGHT for chunk in chunks):
            return {}
        waits = Counter(fetch.peer_id for chunk in chunks for fetch in chunk.fetches)
        return dict(waits) if waits.keys() <= set(busy) else {}
