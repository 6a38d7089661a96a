"""The file's digest while chunks come: what it keeps in memory, and what it reads back."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

from zchunk.node.download.running_digest import RunningDigest
from zchunk.system.buffers import Buffer, BufferPool

SIZE = 4096
CHUNKS = [bytes([number]) * SIZE for number in range(5)]


class Part:
    """A part file in which every chunk is, for who reads it back."""

    class manifest:
        chunk_size = SIZE
        chunks = CHUNKS

        @staticmethod
        def length(index: int) -> int:
            return SIZE

    def read_parts(self, index: int, into: memoryview) -> Iterator[memoryview]:
        into[:SIZE] = CHUNKS[index]
        yield into[:SIZE]


class Later:
    """Workers that work when they are told to."""

    def __init__(self) -> None:
        self.due: deque[tuple[Callable[[], None], Callable[[None, None], None]]] = deque()

    def submit(self, work: Callable[[], None], done: Callable[[None, None], None]) -> None:
        self.due.append((work, done))

    def run(self) -> None:
        while self.due:
            work, done = self.due.popleft()
            work()
            done(None, None)


def taken(pool: BufferPool, index: int) -> Buffer:
    buffer = pool.try_reserve(SIZE)
    assert buffer is not None
    buffer.view(SIZE)[:] = CHUNKS[index]
    return buffer


def test_what_lies_in_memory_is_not_given_up_when_its_turn_has_come() -> None:
    """Its owner makes room, when nothing else is in work, for what is waited for; at the end of
    a download nothing is, and the last chunks were read back."""
    results: list[bytes] = []
    workers, pool = Later(), BufferPool(1024 * 1024)

    def freed(_: int) -> None:
        if digest.waits:
            digest.make_room()

    digest = RunningDigest(
        part=cast(Any, Part()),
        workers=cast(Any, workers),
        reach=8,
        is_coming=lambda index: True,
        is_held=lambda index: True,
        on_freed=freed,
        on_done=results.append,
        on_error=lambda error: results.append(b""),
    )
    for index in (1, 2, 3, 4, 0):
        assert digest.take(index, taken(pool, index))
        assert digest.waits is (index != 0)
    digest.advance()
    workers.run()
    assert results == [hashlib.sha256(b"".join(CHUNKS)).digest()]
    assert digest.read_back == 0
