"""Which peers a download can ask, and which of them it may ask for which chunk. Pure.

A peer that sent corrupt chunks is asked last, one that has none of a chunk not at all, one that
cannot read its copy only after a pause. What may not happen here: a peer asked that is down, or
cannot be reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from zchunk.node.bulk.peer_window import PeerWindow
from zchunk.node.download.actions import Limits
from zchunk.node.download.unreadable_copies import UnreadableCopies

#: A peer that sent this many corrupt chunks is asked only for what nobody else has, and for
#: each chunk that comes corrupt again no second time: one that lies ends in one pass.
MAX_CORRUPT = 2
#: A chunk that was corrupt so often from one peer is not asked there again: once may
#: have been the line or its memory.
_MAX_STRIKES = 3
#: How many chunks of one peer may be begun at once: one being sent, one behind it.
_BEGUN_PER_PEER = 2
#: How many times a peer's chunks took are remembered.
_REMEMBERED = 64


@dataclass(slots=True)
class Source:
    """A peer that holds chunks, or may come to hold some."""

    window: PeerWindow
    up: bool = False
    #: False while it cannot be reached from here, although it is up
    reachable: bool = True
    incarnation: int = 0
    #: chunks in flight from it
    begun: int = 0
    #: chunks that came from it and are held
    completed: int = 0
    corrupt: int = 0
    #: seconds that its latest whole chunks took
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def there(self) -> bool:
        """Whether it can be asked at all."""
        return self.up and self.reachable

    def has_room(self, now: float) -> bool:
        """Whether one more chunk can be begun there."""
        return self.up and self.reachable and self.begun < _BEGUN_PER_PEER and self.window.paused_until <= now


class Sources:
    def __init__(self, holders: Sequence[Collection[str]], limits: Limits) -> None:
        """`holders`: peer ids per chunk."""
        self.peers: dict[str, Source] = {}
        #: copies that their holders cannot read now
        self.unread = UnreadableCopies()
        self._limits = limits
        self._holders: list[frozenset[str]] = []
        #: chunk -> peer -> how often its copy was corrupt; `_MAX_STRIKES` where it has none
        self._strikes: dict[int, dict[str, int]] = {}
        self.set_holders(holders)

    def set_holders(self, holders: Sequence[Collection[str]]) -> None:
        """As the tracker says now."""
        self._holders = [frozenset(h) for h in holders]
        for peer_id in sorted({p for h in self._holders for p in h}):
            self.peer(peer_id)

    def set_up(self, up: Mapping[str, int], unreachable: Collection[str] = ()) -> None:
        """These are up: peer id -> incarnation."""
        for peer_id, incarnation in up.items():
            peer = self.peer(peer_id)
            peer.up, peer.incarnation, peer.reachable = True, incarnation, peer_id not in unreachable

    def peer(self, peer_id: str) -> Source:
        if peer_id not in self.peers:
            self.peers[peer_id] = Source(PeerWindow(self._limits.block_min, self._limits.block_max))
        return self.peers[peer_id]

    def holders(self, index: int) -> frozenset[str]:
        return self._holders[index]

    def askable(self, index: int) -> list[str]:
        """Holders, up or down, that may still have the chunk whole."""
        strikes = self._strikes.get(index)
        if not strikes:
            return list(self._holders[index])
        return [p for p in self._holders[index] if strikes.get(p, 0) < _MAX_STRIKES]

    def live(self, index: int) -> list[str]:
        """Peers to ask for the chunk now: those that were never caught, while there are."""
        strikes = self._strikes.get(index, ())
        pausing = self.unread.pausing(index)
        live = [p for p in self.askable(index) if self.peers[p].there and p not in pausing]
        clean = [p for p in live if p not in strikes and self.peers[p].corrupt < MAX_CORRUPT]
        return clean or live

    def is_unavailable(self, index: int) -> bool:
        """It was corrupt or missing at some, and no holder, up or down, is left to ask."""
        return index in self._strikes and not self.askable(index)

    def struck(self, index: int) -> Collection[str]:
        """Peers whose copy of the chunk was corrupt or missing."""
        return self._strikes.get(index, {}).keys()

    def has_none(self, index: int, peer_id: str) -> None:
        """It does not have the chunk (any more), or cannot read it: ask others for it, and
        this one for its others at once. A pause for each of many would take for ever."""
        self._strikes.setdefault(index, {})[peer_id] = _MAX_STRIKES

    def sent_corrupt(self, index: int, peer_id: str, now: float) -> bool:
        """Whether it is set apart from now on: then what else is in flight there is not trusted."""
        peer = self.peers[peer_id]
        peer.corrupt += 1
        if peer.corrupt > MAX_CORRUPT:
            # Set apart already. Pauses would spare nobody, and draw out a sure end.
            self.has_none(index, peer_id)
        else:
            strikes = self._strikes.setdefault(index, {})
            strikes[peer_id] = strikes.get(peer_id, 0) + 1
            peer.window.set_aside(now)
        return peer.corrupt == MAX_CORRUPT
