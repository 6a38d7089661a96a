"""A fetch alone: a list of chunks that belong to no file, a sink, and peers that answer at once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zchunk.clock import ManualClock
from zchunk.content.manifest import IDENTITY, ChunkRow
from zchunk.errors import NotFound, PeerUnreachable, ZchunkError
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.download.actions import JobState
from zchunk.node.download.fetcher import ChunkList, Fetcher, new_job
from zchunk.node.download.holders import Found, Gone, HoldersOfFile, Where
from zchunk.node.job_events import Corrupt, JobEvent, MissingPeer, Waiting
from zchunk.protocol.messages import Block, Locate, Message
from zchunk.runtime import log_ids
from zchunk.runtime.loop import Workers
from zchunk.system.buffers import Buffer

A, B = "a" * 32, "b" * 32
SIZE = 4096
CHUNKS = [bytes([number]) * SIZE for number in range(4)]
ROWS = [ChunkRow(SIZE, IDENTITY, hashlib.sha256(data).digest(), b"b" * 32, None) for data in CHUNKS]

LOG = log_ids.of(logging.getLogger(__name__), "job", "0" * 16)

Reply = Callable[[Message | None, ZchunkError | None], None]


class AtOnce:
    def submit(self, work: Callable[[], Any], done: Callable[[Any, None], None]) -> None:
        done(work(), None)


class Peers:
    """They send what they have, when told to."""

    def __init__(self) -> None:
        self.has = {A: dict(enumerate(CHUNKS)), B: dict(enumerate(CHUNKS))}
        self.asked: list[tuple[str, int]] = []
        self._due: list[Callable[[], None]] = []

    def get_block(
        self, peer_id: str, sha256: bytes, offset: int, length: int, timeout_s: float, answer: Reply
    ) -> None:
        index = next(index for index, row in enumerate(ROWS) if row.sha256 == sha256)
        self.asked.append((peer_id, index))
        data = self.has[peer_id].get(index)
        if data is None:
            self._due.append(lambda: answer(None, NotFound("not here")))
        else:
            self._due.append(lambda: answer(Block(data=data[offset : offset + length]), None))

    def run(self) -> None:
        while self._due:
            self._due.pop(0)()


class Bulk:
    def __init__(self) -> None:
        self.loop = SimpleNamespace(
            clock=ManualClock(), add_timed=lambda timed: None, remove_timed=lambda timed: None
        )
        self.links = Peers()
        self.pools = SimpleNamespace(hashing=AtOnce(), writing=AtOnce(), digesting=AtOnce())
        self.control = SimpleNamespace(request=self._request, watch_events=self._watch)
        self.settings = SimpleNamespace(
            transfer=SimpleNamespace(
                receive_budget=2 * SIZE, block_size_min=1024, block_size_max=SIZE, request_timeout_s=30.0
            ),
            chunking=SimpleNamespace(resume_check_interval=60.0),
        )
        self.unreachable: set[str] = set()
        self.busy: set[str] = set()
        self.requests: list[tuple[Message, Reply]] = []
        self.watching = 0

    def up(self) -> dict[str, int]:
        return {A: 1, B: 1}

    def name_of(self, peer_id: str) -> str:
        return f"PC-{peer_id[0]}"

    def learn(self, record: Any) -> None: ...

    def listen(self, *listeners: Any) -> None: ...

    def unlisten(self, *listeners: Any) -> None: ...

    def _request(self, message: Message, timeout_s: float, loop: Any, answer: Reply) -> None:
        self.requests.append((message, answer))

    def _watch(self, loop: Any, on_event: Any, on_missed: Any) -> Callable[[], None]:
        self.watching += 1

        def stop() -> None:
            self.watching -= 1

        return stop


class Kept:
    """A sink that remembers, and keeps the buffer of every chunk in `keeps`."""

    def __init__(self, *, threads: bool = False, keeps: frozenset[int] = frozenset()) -> None:
        self.workers = cast(Workers, AtOnce()) if threads else None
        self.keeps = keeps
        self.written: list[int] = []
        self.got: dict[int, bytes] = {}
        self.buffers: dict[int, Buffer] = {}

    def write(self, index: int, buffer: Buffer) -> None:
        self.written.append(index)

    def take(self, index: int, buffer: Buffer) -> bool:
        self.got[index] = bytes(buffer.view(SIZE))
        if index in self.keeps:
            self.buffers[index] = buffer
        return index in self.keeps

    def taken(self) -> None: ...


class Known:
    """Holders that do not change."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Where], None]] = []
        self.doubt: Callable[[], None] | None = None

    def ask(self, timeout_s: float, answer: Callable[[Where], None]) -> None:
        self.asked.append(answer)

    def watch(self, on_doubt: Callable[[], None]) -> None:
        self.doubt = on_doubt

    def unwatch(self) -> None:
        self.doubt = None


class Rig:
    """The owner, too."""

    def __init__(self, sink: Kept, holders: list[list[str]] | None = None) -> None:
        self.bulk, self.sink, self.known = Bulk(), sink, Known()
        self.states: list[JobState] = []
        self.errors: list[ZchunkError] = []
        self.events: list[JobEvent] = []
        chunks = ChunkList(ROWS, holders or [[A, B]] * len(ROWS), (), SIZE)
        bulk = cast(BulkPlane, self.bulk)
        self.fetcher = Fetcher(
            bulk=bulk,
            chunks=chunks,
            job=new_job(bulk, chunks, auto_resume=True),
            sink=sink,
            holders=self.known,
            owner=self,
            emit=self.events.append,
            log=LOG,
        )

    def start(self, held: list[int]) -> None:
        self.fetcher.begin(held)
        self.fetcher.perform(self.fetcher.job.start(0.0))
        self.bulk.links.run()

    def state_changed(self, state: JobState) -> None:
        self.states.append(state)

    def all_held(self) -> None:
        self.fetcher.perform(self.fetcher.job.complete(0.0))

    def failed(self, error: ZchunkError) -> None:
        self.errors.append(error)

    def after_actions(self) -> None: ...

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        raise AssertionError("nobody is busy")

    def peer_back(self, peer_id: str) -> None: ...


@pytest.mark.parametrize("threads", [True, False])
def test_each_chunk_goes_into_the_sink_once_and_what_is_held_does_not(threads: bool) -> None:
    rig = Rig(Kept(threads=threads))
    rig.start(held=[2])
    assert rig.sink.got == {index: CHUNKS[index] for index in (0, 1, 3)}
    assert sorted(rig.sink.written) == ([0, 1, 3] if threads else [])
    assert rig.states == [JobState.VERIFYING, JobState.COMPLETE]
    assert sum(rig.fetcher.received_from.values()) == 3 * SIZE
    assert rig.fetcher._pool.reserved == 0


def test_a_buffer_that_the_sink_keeps_counts_until_it_is_freed() -> None:
    rig = Rig(Kept(keeps=frozenset(range(3))))  # three fill the budget
    rig.start(held=[])
    assert sorted(rig.sink.got) == [0, 1, 2]
    rig.sink.buffers.pop(1).release()
    rig.fetcher.freed(1)
    rig.bulk.links.run()
    assert sorted(rig.sink.got) == [0, 1, 2, 3]


def test_a_wrong_chunk_never_gets_into_the_sink_and_is_reported() -> None:
    rig = Rig(Kept(), holders=[[A], [A], [A], [A, B]])
    rig.bulk.links.has[A][3] = b"x" * SIZE
    rig.bulk.links.has[B][3] = b"y" * SIZE
    rig.start(held=[0, 1, 2])
    assert rig.sink.got == {}
    assert {event.name for event in rig.events if isinstance(event, Corrupt)} == {"PC-a", "PC-b"}
    assert {message.TYPE for message, _ in rig.bulk.requests} == {"report_corrupt"}


def test_a_block_of_the_wrong_length_is_refused() -> None:
    rig = Rig(Kept(), holders=[[A], [A], [A], [A]])
    rig.bulk.links.has[A][0] = CHUNKS[0][:-1]
    rig.start(held=[1, 2, 3])
    assert rig.sink.got == {}
    assert rig.fetcher._pool.reserved == 0, "its memory was given back"


def test_a_doubt_asks_where_they_are_and_a_removal_ends_it_by_the_owner() -> None:
    rig = Rig(Kept(), holders=[[A]] * len(ROWS))
    rig.bulk.links.has[A] = {}
    rig.start(held=[])
    assert len(rig.known.asked) == 1, "nobody has any of it"
    assert rig.known.doubt is not None
    rig.known.doubt()
    answer = rig.known.asked[1]
    answer(Gone())
    (error,) = rig.errors
    assert isinstance(error, NotFound)
    assert error.details["removed"]
    rig.fetcher.leave()
    assert rig.known.doubt is None
    answer(Found([[B]] * len(ROWS), ()))  # late
    assert rig.errors == [error]


def test_holders_of_a_file_are_located_and_removals_heard() -> None:
    bulk = Bulk()
    holders = HoldersOfFile(cast(BulkPlane, bulk), "f" * 64, LOG)
    answers: list[Where] = []
    holders.ask(1.0, answers.append)
    ((message, answer),) = bulk.requests
    assert isinstance(message, Locate)
    assert message.name_or_id == "f" * 64
    answer(None, NotFound("no such file"))
    answer(None, PeerUnreachable("no tracker"))
    answer(Block(data=b""), None)
    assert isinstance(answers[0], Gone)
    assert answers[1:] == [None, None]
    holders.watch(lambda: None)
    assert bulk.watching == 1
    holders.unwatch()
    holders.unwatch()
    assert bulk.watching == 0
