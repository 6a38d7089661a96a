"""Where fetched chunks go: what a sink is, and the part file. What comes is whole, right and plain.

A sink decides nothing about the fetch; it says of each chunk whether it keeps the buffer.
Called by `fetcher.py`. Memory is the other sink (reading/memory_sink.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from zchunk.content import hashing
from zchunk.content.encryption import OpenManifest
from zchunk.content.manifest import TAG_BYTES
from zchunk.node.download.part_file import PartFile
from zchunk.node.download.running_digest import RunningDigest
from zchunk.runtime.loop import Workers
from zchunk.system.buffers import Buffer


class Sink(Protocol):
    #: the threads that `write` runs in; None where it has nothing to do
    workers: Workers | None

    def write(self, index: int, buffer: Buffer) -> None:
        """Put the chunk at its place. In a thread, which may block. Raises ZchunkError."""

    def take(self, index: int, buffer: Buffer) -> bool:
        """In the loop, once it is written. True: the buffer is the sink's until the fetcher's
        `freed` is called."""

    def taken(self) -> None:
        """The job knows that the chunk is here."""


class PartFileSink:
    """Chunks go to their places in a part file, and through the digest of the whole."""

    def __init__(self, part: PartFile, workers: Workers, digest: RunningDigest) -> None:
        self.workers: Workers | None = workers
        #: another one takes its place to read everything again
        self.digest = digest
        self._part = part

    def bad_chunks(self, opened: OpenManifest | None, ended: Callable[[], bool]) -> list[int]:
        """Chunks on disk whose SHA-256 is wrong (SPEC D7). Reads all of the file, until `ended`."""
        manifest = self._part.manifest
        view = memoryview(bytearray(manifest.chunk_size))
        stored = memoryview(bytearray(manifest.chunk_size + TAG_BYTES if opened else 0))
        bad = []
        for index, row in enumerate(manifest.chunks):
            if ended():
                break
            found = self._part.read_chunk(index, view)
            if opened is not None:
                found = opened.encrypted_again(index, found, stored)
            if hashing.sha256(found) != row.sha256:
                bad.append(index)
        return bad

    def write(self, index: int, buffer: Buffer) -> None:
        self._part.write_chunk(index, buffer.view(self._part.manifest.length(index)))
        self._part.mark(index)

    def take(self, index: int, buffer: Buffer) -> bool:
        return self.digest.take(index, buffer)

    def taken(self) -> None:
        self.digest.advance()
