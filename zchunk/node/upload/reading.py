"""Which chunk of the file to read next, and whose memory is free. Pure.

Chunks are read in order once, so that the file's digest comes out of the same pass; a chunk that
must go elsewhere after its buffer was freed is read again, before the others. What may not happen
here: more bytes in memory than the budget, but for a single chunk.
"""

from __future__ import annotations

from zchunk.node.upload.actions import Action, ReadChunk, ReleaseChunk
from zchunk.node.upload.copies import Chunk, Copies, Copy, Memory

#: So many chunks ahead are looked at, at a time.
_AHEAD = 64


class Reading:
    def __init__(self, copies: Copies, budget: int) -> None:
        self.begun_bytes = 0
        self._copies = copies
        self._budget = budget
        self._next = 0
        #: chunks to be read once more
        self._again: set[int] = set()

    def release_done(self) -> list[Action]:
        copies = self._copies
        actions: list[Action] = []
        for index in sorted(copies.active):
            chunk = copies.rows[index]
            if index in copies.done and self._is_free(chunk):
                actions.append(ReleaseChunk(index, clean=not chunk.unclean))
                chunk.memory, chunk.unclean, chunk.holders = Memory.NONE, False, None
                self.begun_bytes -= chunk.size
                copies.active.discard(index)
        return actions

    def _is_free(self, chunk: Chunk) -> bool:
        """In memory, and nobody needs it there any more."""
        return chunk.memory is Memory.READY and chunk.digested and not chunk.on_the_way

    def read_more(self) -> list[Action]:
        actions: list[Action] = []
        for index in self._unread():
            chunk = self._copies.rows[index]
            if self.begun_bytes and self.begun_bytes + chunk.size > self._budget:
                break
            chunk.memory = Memory.READING
            self.begun_bytes += chunk.size
            self._copies.active.add(index)
            self._again.discard(index)
            self._next = max(self._next, index + 1)
            actions.append(ReadChunk(index))
        return actions

    def _unread(self) -> list[int]:
        """Chunks to read next: first those to be read again, then on in the file."""
        ahead = range(self._next, min(len(self._copies.rows), self._next + _AHEAD))
        return sorted(self._again) + list(ahead)

    def look_again(self) -> None:
        """Peers or places changed: which of those that were read must be read again."""
        rows = self._copies.rows
        self._again = {
            index
            for index in range(self._next)
            if rows[index].memory is Memory.NONE and self._is_sendable(index)
        }

    def _is_sendable(self, index: int) -> bool:
        targets = self._copies.rows[index].targets.items()
        planned = any(t.copy is Copy.PLANNED and p in self._copies.up for p, t in targets)
        return planned and index not in self._copies.done
