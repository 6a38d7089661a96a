"""Who has the chunks already, and which copies go there instead of where they were planned. Pure.

Between hash and offer the tracker is asked who holds the chunk (SPEC U7): one question at a time,
about all chunks that were hashed meanwhile. Its answer is a hint, and without one the upload goes
on as planned. What may not happen here: a file on fewer different peers because some of them had
its chunks already (spread.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from zchunk.node.upload.actions import Action, FindHolders
from zchunk.node.upload.copies import Chunk, Copies, Copy, Memory, Target
from zchunk.node.upload.plans import Plans
from zchunk.node.upload.spread import Spread
from zchunk.protocol.messages import MAX_FIND

#: The tracker did not say who holds some chunks: so long it is not asked about others.
FIND_PAUSE_S = 10.0


class Finding:
    def __init__(
        self,
        copies: Copies,
        plans: Plans,
        *,
        replicas: int,
        min_peers: int,
        undivided: bool,
        own_peer: str | None,
    ) -> None:
        """An `undivided` file has the same places for every chunk (SPEC U1); from `own_peer` it
        is not taken away. `min_peers`: on how many the file is to lie."""
        #: a question is under way
        self.busy = False
        self._copies = copies
        self._plans = plans
        self._replicas = replicas
        self._min_peers = min_peers
        self._undivided = undivided
        self._own_peer = own_peer
        self._again_at = 0.0
        #: where the file will lie; None where places changed since
        self._spread: Spread | None = None

    def places_changed(self) -> None:
        self._spread = None

    def ask(self, now: float) -> list[Action]:
        if self.busy:
            return []
        unfound = sorted(index for index in self._copies.active if self._is_unfound(index))[:MAX_FIND]
        if not unfound:
            return []
        if now < self._again_at:
            for index in unfound:
                self._copies.rows[index].holders = ()
            return []
        self.busy = True
        return [FindHolders(tuple(unfound))]

    def _is_unfound(self, index: int) -> bool:
        """Whether the chunk waits to be looked for. Not while another one of the same bytes
        is on its way: then it will be there, and a node takes a chunk from an upload once."""
        chunk, copies = self._copies.rows[index], self._copies
        if chunk.memory is not Memory.READY or chunk.holders is not None or index in copies.done:
            return False
        return chunk.twin not in copies.active or chunk.twin in copies.done

    def failed(self, now: float) -> None:
        """The tracker did not say."""
        self._again_at = now + FIND_PAUSE_S

    def found(self, chunks: Sequence[int], holders: Sequence[Sequence[str]], now: float) -> bool:
        """Who holds these chunks, as far as the tracker knows. Whether the whole file moved."""
        self.busy = False
        for index, peers in zip(chunks, holders, strict=True):
            if self._is_unfound(index):
                self._copies.rows[index].holders = (*peers, *self._twins_holders(index, peers))
                self.go_to_holders(index, now)
        return self._undivided and self._go_together(chunks)

    def _twins_holders(self, index: int, known: Collection[str]) -> list[str]:
        """Where the chunk of the same bytes is; the tracker may not have heard of it yet."""
        twin = self._copies.rows[index].twin
        return (
            [] if twin is None else [p for p in self._copies.live(self._copies.rows[twin]) if p not in known]
        )

    def go_to_holders(self, index: int, now: float) -> None:
        """Copies that were not begun go to peers that have the chunk already. Not while new
        places are made for it: the tracker was told which of the old ones stay."""
        chunk = self._copies.rows[index]
        if not chunk.holders or self._plans.is_asked(index) or self._undivided:
            return
        for _ in range(self._replicas):
            spread = self._spread_now()
            move = spread.better(self._open_places(chunk), self._other_holders(chunk, now))
            if move is None:
                return
            place, holder = move
            spread.move(place, holder)
            del chunk.targets[place]
            chunk.targets[holder] = Target()

    def _go_together(self, first: Sequence[int]) -> bool:
        """An undivided file goes, whole, where most of its `first` chunks are. Only before
        anything was offered."""
        everyone = [chunk.targets for chunk in self._copies.rows]
        begun = any(t.copy is not Copy.PLANNED for targets in everyone for t in targets.values())
        if begun or self._plans.are_asked:
            return False
        up, refused, rows = self._copies.up, self._copies.refused, self._copies.rows
        counts = Counter(p for i in first for p in rows[i].holders or () if p in up)
        places = sorted(everyone[0].keys() - {self._own_peer}, key=lambda p: (counts[p], p))
        others = sorted(counts.keys() - everyone[0].keys() - refused, key=lambda p: (-counts[p], p))
        for place, holder in zip(places, others, strict=False):
            if counts[place] < counts[holder]:
                for targets in everyone:
                    del targets[place]
                    targets[holder] = Target()
        return True

    def _open_places(self, chunk: Chunk) -> list[str]:
        """Where a copy is to be made of which nothing was sent yet."""
        holders = chunk.holders or ()
        kept = self._copies.kept(chunk)
        return [p for p in kept if chunk.targets[p].copy is Copy.PLANNED and p not in holders]

    def _other_holders(self, chunk: Chunk, now: float) -> list[str]:
        """Peers that have the chunk, can be asked now, and are none of its places."""
        copies = self._copies
        asked = [p for p in chunk.holders or () if p in copies.up and p not in chunk.targets]
        return [p for p in asked if p not in copies.refused and copies.window(p).paused_until <= now]

    def _spread_now(self) -> Spread:
        if self._spread is None:
            self._spread = Spread(map(self._copies.kept, self._copies.rows), self._min_peers)
        return self._spread
