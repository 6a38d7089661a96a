"""Chunks that were fetched, in memory, for somebody who reads them. A sink of `Fetcher`."""

from __future__ import annotations

from collections.abc import Sequence

from zchunk.content.manifest import Manifest
from zchunk.node.reading.read_ahead import ChunkWindow
from zchunk.runtime.loop import Workers
from zchunk.system.buffers import Buffer


class MemorySink:
    #: nothing blocks
    workers: Workers | None = None

    def __init__(self, manifest: Manifest, room: int) -> None:
        """`room`: how many chunks are in memory, those on their way included."""
        self.window = ChunkWindow(room)
        #: chunks that were asked for, and have not come
        self.coming: set[int] = set()
        self._manifest = manifest
        #: chunk -> its bytes, decrypted
        self._there: dict[int, Buffer] = {}

    def move(self, chunks: Sequence[int]) -> list[int]:
        """These are needed from now on. Returns those whose memory was given up for them."""
        gone = self.window.move(chunks)
        for index in gone:
            self._there.pop(index).release()
        return gone

    def view(self, index: int) -> memoryview | None:
        """The chunk's bytes, if it is here."""
        buffer = self._there.get(index)
        return None if buffer is None else buffer.view(self._manifest.length(index))

    def close(self) -> None:
        """Nothing is given back for re-use: somebody may be reading there."""
        for buffer in self._there.values():
            buffer.discard()
        self._there.clear()

    # -- Sink -----------------------------------------------------------------------

    def write(self, index: int, buffer: Buffer) -> None:
        """It is there already."""

    def take(self, index: int, buffer: Buffer) -> bool:
        """It stays, if it is still wanted."""
        self.coming.discard(index)
        kept = self.window.take(index)
        if kept:
            self._there[index] = buffer
        return kept

    def taken(self) -> None:
        """Who waits for it is told when everything was carried out."""
