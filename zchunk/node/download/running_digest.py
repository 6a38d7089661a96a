"""The file's SHA-256 in index order, while chunks come in any order (SPEC D5).

A chunk's buffer is used where the chunk's turn comes while it is in memory; else the
chunk is read back from the part file when its turn comes. Lives in one loop; hashing
and reading back run in the digesting thread, so they are in order.
"""

from __future__ import annotations

from collections.abc import Callable

from zchunk.content.hashing import FileDigest
from zchunk.errors import StorageUnavailable, ZchunkError
from zchunk.node.download.part_file import PartFile
from zchunk.runtime.loop import Workers
from zchunk.system.buffers import Buffer, BufferPool

#: Bytes of a chunk that are read back at a time.
_PART = 10 * 1024**2


class RunningDigest:
    def __init__(
        self,
        *,
        part: PartFile,
        workers: Workers,
        reach: int,
        is_coming: Callable[[int], bool],
        is_held: Callable[[int], bool],
        on_freed: Callable[[int], None],
        on_done: Callable[[bytes], None],
        on_error: Callable[[ZchunkError], None],
    ) -> None:
        """`reach`: how many chunks ahead of the first missing one may wait in memory.
        `is_coming(i)`: whether chunk i is here or can be fetched now. `is_held(i)`:
        whether it can be read back. `on_freed(i)`: a buffer that was taken is free.
        `on_done(sha256)` once all chunks went through.
        """
        self._part = part
        self._workers = workers
        self._reach = reach
        self._is_coming = is_coming
        self._is_held = is_held
        self._on_freed = on_freed
        self._on_done = on_done
        self._on_error = on_error
        self._count = len(part.manifest.chunks)
        self._spare = BufferPool(_PART)
        self._digest = FileDigest()
        self._next = 0
        self._parked: dict[int, Buffer] = {}
        self._busy = False
        self._ended = False
        #: chunks that had to be read back, for tests and benchmarks
        self.read_back = 0

    @property
    def waits(self) -> bool:
        """Whether chunks wait in memory for one that is not there yet."""
        return bool(self._parked) and not self._busy and self._next not in self._parked

    @property
    def awaits(self) -> int:
        """The chunk whose turn it is."""
        return self._next

    def take(self, index: int, buffer: Buffer) -> bool:
        """Offers a written chunk's buffer; True when it is ours until `on_freed`. Call
        `advance` afterwards.

        What waits here holds the download back, so that it does not run ahead of the
        digest and have everything read twice. But a chunk waits only for one that comes
        soon: a far one, or one whose holder is away, would hold up everything else.
        """
        missing = self._first_missing()
        near = missing <= index <= missing + self._reach
        if self._ended or not near or not (index == missing or self._is_coming(missing)):
            return False
        self._parked[index] = buffer
        return True

    def _first_missing(self) -> int:
        """The first chunk that is neither hashed nor being hashed nor waiting here."""
        index = self._next + self._busy
        while index in self._parked:
            index += 1
        return index

    def make_room(self) -> None:
        """What waits here keeps the one it waits for from being fetched: give it up. It
        will be read back."""
        parked, self._parked = self._parked, {}
        for index, buffer in parked.items():
            buffer.release()
            self._on_freed(index)

    def advance(self) -> None:
        """Hash what can be hashed."""
        if self._busy or self._ended:
            return
        if self._next == self._count:
            self._ended = True
            self._on_done(self._digest.digest())
            return
        buffer = self._parked.pop(self._next, None)
        if buffer is not None:
            self._submit(buffer, taken=True)
        elif self._is_held(self._next):
            self._read_back()

    def _read_back(self) -> None:
        try:
            spare = self._spare.try_reserve(min(self._part.manifest.chunk_size, _PART))
        except StorageUnavailable as error:
            self._ended = True
            self._on_error(error)
            return
        assert spare is not None  # one at a time: `_busy`
        self.read_back += self._next not in self._part.zeros
        self._submit(spare, taken=False)

    def close(self) -> None:
        self._ended = True
        for buffer in self._parked.values():
            buffer.release()
        self._parked = {}

    def _submit(self, buffer: Buffer, taken: bool) -> None:
        index, self._busy = self._next, True

        def work() -> None:
            if taken:
                self._digest.update(buffer.view(self._part.manifest.length(index)))
                return
            for part in self._part.read_parts(index, buffer.view(buffer.capacity)):
                self._digest.update(part)

        def done(_: None, error: ZchunkError | None) -> None:
            buffer.release()
            self._busy = False
            self._next += 1
            if self._ended:
                return
            if error is not None:
                self._ended = True
                self._on_error(error)
                return
            if taken:
                self._on_freed(index)
            self.advance()

        self._workers.submit(work, done)
