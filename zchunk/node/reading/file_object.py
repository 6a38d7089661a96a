"""Reads ranges of a file in the cluster, in the caller's thread: pieces in order, or a file object.

A `ChunkStream` asks a `Reader` (range_reader.py), which lives in the bulk loop, for one chunk after
the other, and waits. `RangeFile` makes a file object of it: read-only, seekable, binary.

Only from one thread at a time; `file_object` puts an `io.BufferedReader` around it, which has
a lock.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zchunk.content import zeros
from zchunk.content.manifest import Manifest
from zchunk.errors import ZchunkError
from zchunk.node.bulk.job_driver import Emit
from zchunk.node.job_events import JobEvent
from zchunk.node.reading.range_reader import Reader
from zchunk.node.reading.read_ahead import ReadAhead, chunks_of
from zchunk.runtime.blocking_calls import Call, ShutOut
from zchunk.runtime.loop import Loop

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Bytes that small reads of a file object are served from; larger ones go past them.
_BUFFER = 64 * 1024

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Closed:
    """By another thread: whoever reads must not wait any longer."""


@dataclass(frozen=True)
class _Answer:
    """To the reader's call of that number: see `range_reader.Answer`."""

    number: int
    view: memoryview | None
    error: ZchunkError | None


class ChunkStream:
    """Chunks of one file, in the order that somebody reads them."""

    def __init__(
        self,
        *,
        call: Call,
        loop: Loop,
        manifest: Manifest,
        room: int,
        make_reader: Callable[[Emit], Reader],
        on_event: OnEvent | None = None,
        on_close: Callable[[ChunkStream], None] = lambda stream: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`call`: what comes from the loops. `room`: chunks that the reader has at a time.
        `on_event` hears of `waiting`, `resumed` and `corrupt` while a read waits, in the reading
        thread. `on_close` is called once; `check` before each read, and raises where it cannot
        be done here."""
        self.manifest = manifest
        self.closed = False
        self.call = call
        self._check = check
        self._loop = loop
        self._room = room
        self._make_reader = make_reader
        self._on_event = on_event
        self._on_close = on_close
        self._ahead = ReadAhead(room - 1)
        #: they are known, and not fetched
        self._zeros = zeros.zero_chunks(manifest)
        self._reader = make_reader(call.emit)
        #: the chunk that was read last, and its bytes
        self._current: tuple[int, memoryview] | None = None
        self._number = 0
        #: of readers that have ended
        self._received_before = 0

    @property
    def bytes_received(self) -> int:
        """Bytes of chunks that came over the wire for it."""
        return self._received_before + sum(list(self._reader.received_from.values()))

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes from `offset` on, at most `length`, less at the file's end. A piece is
        valid until the next one."""
        end = min(offset + length, self.manifest.size)
        while offset < end:
            piece = self.at(offset, end - offset)
            yield piece
            offset += len(piece)

    def at(self, offset: int, length: int) -> memoryview:
        """The bytes of a range up to its end, or that of its first chunk; empty behind the end of
        the file. Valid until the next call. What else the range touches is fetched meanwhile.

        Raises PartialDownload (without `wait`), IntegrityError, and ValueError once closed, also
        by another thread while it waits."""
        self._check()
        self._check_open()
        chunks = chunks_of(offset, length, self.manifest.size, self.manifest.chunk_size)
        if not chunks:
            return memoryview(b"")
        index = chunks[0]
        begin = offset - self.manifest.offset(index)
        if index in self._zeros:
            return zeros.view(min(length, self.manifest.length(index) - begin))
        if self._current is None or self._current[0] != index:
            self._current = None
            behind = self._ahead.behind(chunks, len(self.manifest.chunks))
            wanted = [chunk for chunk in (*chunks, *behind) if chunk not in self._zeros]
            self._current = index, self._fetch(wanted[: self._room])
        return self._current[1][begin : begin + length]

    def close(self) -> None:
        """Gives the memory back; from any thread. A second call does nothing."""
        if self.closed:
            return
        self.closed, self._current = True, None
        self._loop.post(self._reader.stop)
        self.call.emit(_Closed())
        self._on_close(self)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("read of a closed file")

    def _fetch(self, chunks: list[int]) -> memoryview:
        self._need(chunks)
        while True:
            event = self.call.next()
            self._check_open()
            if isinstance(event, ShutOut):
                raise event.why
            if isinstance(event, JobEvent) and self._on_event is not None:
                self._on_event(event.to_json())
            if isinstance(event, _Answer) and event.number == self._number:  # else of an interrupted read
                if event.error is not None:
                    raise event.error
                if event.view is not None:
                    return event.view
                self._received_before = self.bytes_received
                self._reader = self._make_reader(self.call.emit)
                self._need(chunks)

    def _need(self, chunks: list[int]) -> None:
        self._number += 1
        reader, number = self._reader, self._number

        def answer(view: memoryview | None, error: ZchunkError | None) -> None:
            self.call.emit(_Answer(number, view, error))

        self._loop.post(lambda: reader.need(chunks, answer))


def file_object(stream: ChunkStream, buffer: int = _BUFFER) -> io.BufferedReader:
    """Read-only, seekable, binary. Its end is that of the stream."""
    return _File(RangeFile(stream, buffer), buffer)


class _File(io.BufferedReader):
    """Can be closed while another thread reads, and so has its lock: that read ends first."""

    def close(self) -> None:
        if isinstance(self.raw, RangeFile):
            self.raw.end()
        super().close()


class RangeFile(io.RawIOBase):
    """The content of a file in the cluster. Reads raise ZchunkError."""

    mode = "rb"

    def __init__(self, stream: ChunkStream, buffer: int) -> None:
        """`buffer`: reads of so many bytes, or less, may be for a buffer and go farther than
        anybody needs: they ask for no second chunk."""
        self.name = stream.manifest.name
        self._stream = stream
        self._buffer = buffer
        self._position = 0

    @property
    def size(self) -> int:
        return self._stream.manifest.size

    @property
    def bytes_received(self) -> int:
        """Bytes of chunks that came over the wire for it."""
        return self._stream.bytes_received

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Behind the end is allowed, and reads nothing there."""
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"invalid whence: {whence}")
        base = (0, self._position, self.size)[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Up to the end of a chunk at most."""
        self._check_open()
        into = memoryview(buffer).cast("B")
        if not len(into):
            return 0
        length = len(into)
        if length <= self._buffer:
            chunk_size = self._stream.manifest.chunk_size
            length = min(length, chunk_size - self._position % chunk_size)
        piece = self._stream.at(self._position, length)
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        self._check_open()
        rest = io.BytesIO()
        for piece in self._stream.pieces(self._position, self.size):
            rest.write(piece)
            self._position += len(piece)
        return rest.getvalue()

    def end(self) -> None:
        """Reads raise ValueError from now on, those too that wait. From any thread."""
        self._stream.close()

    def close(self) -> None:
        if not self.closed:
            self.end()
        super().close()

    def _check_open(self) -> None:
        if self.closed or self._stream.closed:
            raise ValueError("I/O operation on closed file")
