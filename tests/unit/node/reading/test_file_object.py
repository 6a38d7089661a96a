"""node/reading/file_object.py (SPEC D11, I2): a file object over a reader, in the thread that reads."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest
from zchunk.errors import ForeignProcess, IntegrityError, NotAllowed, PartialDownload, ZchunkError
from zchunk.node.bulk.job_driver import Emit
from zchunk.node.job_events import Resumed
from zchunk.node.reading.file_object import ChunkStream, file_object
from zchunk.node.reading.range_reader import Answer
from zchunk.runtime.blocking_calls import Call, Ended, ShutOut

CHUNK = 64 * 1024
SIZE = 5 * CHUNK + 100
DATA = bytes(os.urandom(SIZE))
ROOM = 4


class FakeReader:
    """Answers at once, unless something else comes first."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.needed: list[list[int]] = []
        #: what happens at the next calls, in place of an answer with the bytes
        self.script: deque[Callable[[Answer], None]] = deque()
        self.stopped = 0
        self.received_from = {"a": 0}

    def need(self, chunks: Sequence[int], answer: Answer) -> None:
        self.needed.append(list(chunks))
        if self.script:
            self.script.popleft()(answer)
            return
        self.received_from["a"] += 1
        answer(memoryview(DATA)[chunks[0] * CHUNK :][:CHUNK], None)

    def stop(self) -> None:
        self.stopped += 1


class Rig:
    def __init__(self, size: int = SIZE) -> None:
        count = -(-size // CHUNK)
        rows = tuple(
            ChunkRow(min(CHUNK, size - i * CHUNK), IDENTITY, bytes(32), bytes(32), None) for i in range(count)
        )
        self.readers: list[FakeReader] = []
        self.events: list[dict[str, Any]] = []
        self.closed: list[ChunkStream] = []
        self.stream = ChunkStream(
            call=Call(),
            loop=SimpleNamespace(post=lambda call: call()),  # type: ignore[arg-type]
            manifest=Manifest("f", size, bytes(32), CHUNK, rows),
            room=ROOM,
            make_reader=self._make,  # type: ignore[arg-type]
            on_event=self.events.append,
            on_close=self.closed.append,
        )
        self.file = file_object(self.stream, buffer=4096)

    def _make(self, emit: Emit) -> FakeReader:
        self.readers.append(FakeReader(emit))
        return self.readers[-1]

    @property
    def reader(self) -> FakeReader:
        return self.readers[-1]


# -- what is asked for ---------------------------------------------------------------------


def test_small_reads_in_a_chunk_ask_for_it_once() -> None:
    rig = Rig()
    assert b"".join(rig.file.read(1000) for _ in range(60)) == DATA[:60000]
    assert rig.reader.needed == [[0]]


def test_a_large_read_asks_for_all_its_chunks_as_far_as_there_is_room() -> None:
    rig = Rig()
    assert rig.file.read(SIZE) == DATA
    assert rig.reader.needed[0] == [0, 1, 2, 3]
    assert [chunks[0] for chunks in rig.reader.needed] == [0, 1, 2, 3, 4, 5]


def test_who_reads_in_order_has_chunks_fetched_ahead() -> None:
    rig = Rig()
    for _ in range(0, 4 * CHUNK, 4096):
        rig.file.read(4096)
    assert rig.reader.needed == [[0], [1], [2, 3], [3, 4, 5]]


def test_a_read_does_not_touch_the_chunk_behind_its_end() -> None:
    rig = Rig()
    rig.file.seek(2 * CHUNK - 10)
    assert rig.file.read(10) == DATA[2 * CHUNK - 10 : 2 * CHUNK]
    assert rig.reader.needed == [[1]]


def test_pieces_are_the_range_chunk_by_chunk() -> None:
    rig = Rig()
    pieces = [bytes(piece) for piece in rig.stream.pieces(CHUNK - 5, CHUNK + 10)]
    assert [len(piece) for piece in pieces] == [5, CHUNK, 5]
    assert b"".join(pieces) == DATA[CHUNK - 5 : 2 * CHUNK + 5]
    assert rig.reader.needed == [[0, 1, 2], [1, 2], [2]]
    assert list(rig.stream.pieces(SIZE, 10)) == []
    assert list(rig.stream.pieces(5, 0)) == []


# -- a file object -------------------------------------------------------------------------


def test_seek_tell_and_the_end() -> None:
    file = Rig().file
    assert file.seek(-5, os.SEEK_END) == SIZE - 5
    assert file.read() == DATA[-5:]
    assert (file.tell(), file.read(10)) == (SIZE, b"")
    assert file.seek(10) == 10
    assert file.seek(5, os.SEEK_CUR) == 15
    assert file.read(3) == DATA[15:18]
    assert file.seek(10 * SIZE) == 10 * SIZE
    assert file.read() == b""
    raw: Any = file.raw
    with pytest.raises(OSError, match="Invalid argument"):
        raw.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        raw.seek(0, 9)


def test_it_is_read_only() -> None:
    file = Rig().file
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")


def test_readinto_and_lines() -> None:
    file, into = Rig().file, bytearray(2 * CHUNK)
    assert file.readinto(into) == 2 * CHUNK
    assert into == DATA[: 2 * CHUNK]
    file.seek(0)
    assert b"".join(file) == DATA


def test_an_empty_file_is_at_its_end() -> None:
    rig = Rig(size=0)
    assert rig.file.read() == b""
    assert rig.reader.needed == []


def test_the_end_is_told_once_and_nothing_is_read_after_it() -> None:
    rig = Rig()
    rig.file.read(10)
    rig.file.close()
    rig.file.close()
    rig.stream.close()
    assert (rig.reader.stopped, rig.closed) == (1, [rig.stream])
    for call in (rig.file.read, rig.file.tell, lambda: rig.file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_stream_that_its_client_has_closed_is_closed_for_the_file() -> None:
    rig = Rig()
    rig.stream.close()
    raw: Any = rig.file.raw
    for call in (lambda: rig.file.read(1), lambda: raw.readall(), lambda: rig.stream.at(0, 1)):
        with pytest.raises(ValueError, match="closed"):
            call()


# -- what may come instead of an answer ------------------------------------------------------


@pytest.mark.parametrize("error", [PartialDownload("off"), IntegrityError("wrong")])
def test_an_error_is_of_one_read(error: ZchunkError) -> None:
    rig = Rig()
    rig.reader.script.append(lambda answer: answer(None, error))
    with pytest.raises(type(error)):
        rig.file.read(10)
    assert rig.file.read(10) == DATA[:10]


def test_a_reader_that_has_ended_is_replaced() -> None:
    rig = Rig()
    rig.file.read(10)
    rig.reader.script.append(lambda answer: answer(None, None))
    rig.file.seek(3 * CHUNK)
    assert rig.file.read(10) == DATA[3 * CHUNK : 3 * CHUNK + 10]
    assert [reader.needed for reader in rig.readers] == [[[0], [3]], [[3]]]
    assert rig.stream.bytes_received == 2


def test_what_is_told_meanwhile_goes_to_the_caller() -> None:
    rig = Rig()

    event = Resumed(job_id=None, peer_id="a", name="LAB-PC3")

    def waits(answer: Answer) -> None:
        rig.reader.emit(event)
        answer(memoryview(DATA)[:CHUNK], None)

    rig.reader.script.append(waits)
    assert rig.file.read(10) == DATA[:10]
    assert rig.events == [{"event": "resumed", "peer_id": "a", "name": "LAB-PC3"}]


def test_the_answer_to_a_read_that_was_interrupted_is_not_taken_for_another() -> None:
    rig, late = Rig(), []

    def interrupt(answer: Answer) -> None:
        late.append(answer)
        raise KeyboardInterrupt

    rig.reader.script.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        rig.file.read(10)
    late[0](memoryview(bytes(CHUNK)), None)
    assert rig.file.read(10) == DATA[:10]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Ended(RuntimeError("ours")), RuntimeError),
        (ShutOut(NotAllowed("revoked")), NotAllowed),
    ],
)
def test_who_waits_hears_that_no_answer_will_come(event: object, error: type[Exception]) -> None:
    rig = Rig()
    rig.reader.script.append(lambda answer: rig.stream.call.emit(event))
    with pytest.raises(error):
        rig.file.read(10)


def test_a_read_that_waits_ends_when_another_thread_closes_the_file() -> None:
    rig, waits = Rig(), threading.Event()
    rig.reader.script.append(lambda answer: waits.set())
    failed: list[BaseException] = []

    def read() -> None:
        try:
            rig.file.read(10)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert waits.wait(5)
    rig.file.close()
    reader.join(5)
    assert [type(error) for error in failed] == [ValueError]
    assert rig.file.closed
    assert rig.closed == [rig.stream]


def test_what_cannot_be_read_here_is_not_asked_for() -> None:
    rig = Rig()
    rig.stream._check = lambda: (_ for _ in ()).throw(ForeignProcess("forked"))
    with pytest.raises(ForeignProcess):
        rig.file.read(10)
    assert rig.reader.needed == []
