"""Carries out reads of ranges: the chunks that somebody reads, in memory, verified.

Decisions are `DownloadJob`'s (which holder) and `ChunkWindow`'s (which chunks); how a chunk comes
is `Fetcher`'s. Everything here runs in the bulk loop. `file_object.py` is who reads, in a
thread of its own.

A chunk's bytes are handed out once all of it had the SHA-256 that the manifest names (and, of
an encrypted file, was decrypted). The file's own SHA-256 is not looked at: that takes all of
the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from zchunk.errors import NotFound, PartialDownload, ZchunkError
from zchunk.node.bulk.job_driver import Emit, Log
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.control.hello_wait import HelloWait
from zchunk.node.download.fetcher import CHECK_S, Fetcher, budget_of
from zchunk.node.download.job import (
    Action,
    ChunkState,
    DownloadJob,
    Failed,
    WriteChunk,
    corrupt_everywhere,
    removed_meanwhile,
)
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.node.reading.read_ahead import ChunkWindow, room_for
from zchunk.protocol.messages import Message
from zchunk.runtime import log_ids
from zchunk.system.buffers import Buffer

log = logging.getLogger(__name__)

#: Of a chunk that comes alone, the second block is read while the first is sent: with larger ones
#: a read takes longer (docs/reports/performance.md).
_BLOCK_MAX = 2 * 1024**2

#: The chunk's plain bytes, valid until the next `need`; or why there are none; or neither: this
#: reader had ended before, of a failure that was told, and another one may do better.
Answer = Callable[[memoryview | None, ZchunkError | None], None]


def room_of(bulk: BulkPlane, where: Location) -> int:
    """How many chunks a reader of that file has in memory, those on their way included."""
    largest = max((row.stored_size for row in where.manifest.chunks[:1]), default=1)
    return room_for(budget_of(bulk, where), largest)


class Reader(Fetcher):
    """One reader of one file. Each `need` is answered once, unless another one comes before;
    `stop` ends it. Memory: `transfer.receive_budget`, or three chunks where that is more."""

    def __init__(self, *, bulk: BulkPlane, where: Location, wait: bool, emit: Emit) -> None:
        """The manifest of an encrypted file was opened (content/encryption.py). `wait`: stay for missing
        peers; else answer PartialDownload. `emit` hears `waiting`, `resumed` and `corrupt`."""
        super().__init__(bulk=bulk, where=where, emit=emit)
        self._wait = wait
        self._hellos = HelloWait()
        self._window = ChunkWindow(room_of(bulk, where))
        #: chunk -> its bytes, decrypted
        self._there: dict[int, Buffer] = {}
        #: chunks that were asked of the job, and have not come
        self._coming: set[int] = set()
        #: the chunk that somebody waits for, and how to tell him
        self._asked: tuple[int, Answer] | None = None
        self._told_waiting = False
        #: the tracker is being asked why a chunk does not come
        self._finding_out = False

    @property
    def log(self) -> Log:
        return log_ids.of(log, "file", self.manifest.file_id)

    # -- the owner's calls, in the bulk loop ----------------------------------------

    def need(self, chunks: Sequence[int], answer: Answer) -> None:
        """Answer with the first of `chunks`; the others are needed soon, as far as there is
        room for them. What was needed before is not any more."""
        if self.ended:
            answer(None, None)
            return
        job = self._job or self._begin_job()
        self._asked, self._told_waiting = (chunks[0], answer), False
        gone = self._window.move(chunks)
        self._drop(job, self._coming - self._window.wanted)
        for index in gone:
            self._there.pop(index).release()
            self.perform(job.freed(index, self.now()))
        missing = self._window.missing()
        self._coming.update(missing)
        self.perform(job.want(missing, self.now()))

    def stop(self) -> None:
        """Nobody reads any more."""
        if not self.ended:
            self._end(None)

    # -- Timed ------------------------------------------------------------------------

    def deadline(self) -> float | None:
        times = (super().deadline(), self._hellos.deadline() if self._asked is not None else None)
        return min((at for at in times if at is not None), default=None)

    # -- inside -----------------------------------------------------------------------

    def _begin_job(self) -> DownloadJob:
        """All chunks count as held, until they are wanted."""
        every = range(len(self.manifest.chunks))
        # Without a job to `resume`, it goes on by itself.
        self._job = job = self.new_job(every, auto_resume=True, block_max=_BLOCK_MAX)
        self.follow(job)
        self.perform(job.start(self.now()))
        return job

    def _drop(self, job: DownloadJob, chunks: set[int]) -> None:
        self.perform(job.unwant(chunks, self.now()))
        self._coming -= {index for index in chunks if job.chunk_state(index) is ChunkState.HELD}

    def carry_out_own(self, action: Action) -> None:
        if isinstance(action, WriteChunk):
            self._came(action)
        elif isinstance(action, Failed):
            self._end(self._with_names(action.error))

    def _came(self, action: WriteChunk) -> None:
        """Whole and right: it stays in memory, if it is still wanted."""
        assert self._job is not None
        buffer = self._buffers.pop((action.chunk, action.attempt))
        kept = self._window.take(action.chunk)
        if kept:
            self._there[action.chunk] = buffer
        else:
            buffer.release()
        self._coming.discard(action.chunk)
        self.perform(self._job.written(action.chunk, kept, self.now()))

    def after_actions(self) -> None:
        if self._asked is None or self._job is None:
            return
        index, _ = self._asked
        if not self._job.is_waited_for(index):
            self._hellos.rest()
        if index in self._there:
            self._answer(self._there[index].view(self.manifest.length(index)), None)
        elif self._job.status(index)[0] == "failed":
            # The job itself goes on as long as it can have another chunk.
            if not self._job.checking:
                self._find_out(index)
        elif self._job.is_waited_for(index):
            self._missing(self._job, index)
        else:
            self._told_waiting = False

    def _answer(self, view: memoryview | None, error: ZchunkError | None) -> None:
        if self._asked is not None:
            (_, answer), self._asked = self._asked, None
            answer(view, error)

    def _find_out(self, index: int) -> None:
        """Why no holder has the chunk: corrupt copies, or the file was removed."""
        if self._finding_out:
            return
        self._finding_out = True

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            self._finding_out = False
            self._relocated(reply, error)
            if self._asked is None or self._job is None or self.ended:
                return
            if self._asked[0] == index and self._job.status(index)[0] == "failed":
                gone = isinstance(error, NotFound)
                name = repr(self.manifest.name)
                self._answer(None, removed_meanwhile(name) if gone else self._corrupt(index))
            self.perform([])  # somebody may ask for another one by now

        self._locate(CHECK_S, answer)

    def _corrupt(self, index: int) -> ZchunkError:
        holders = [peer_id for peer_id, _ in self.where.holders[index]]
        return corrupt_everywhere(1, holders, [self.peer_name(peer_id) for peer_id in holders])

    def _missing(self, job: DownloadJob, index: int) -> None:
        """Nobody who holds the chunk can be asked for it now."""
        missing = job.missing()
        event = Waiting(
            job_id=None,
            missing=self.missing_rows(missing, job.why_missing),
            chunks_missing=len(job.missing_chunks()),
            chunk_index=index,
            waiting_since=self.wall_text(),
        )
        unsure = self.is_unsure(missing)
        stays = self._wait or self._hellos.waits(unsure, self.bulk.settings.tracker.lease_s, self.now())
        if not stays:
            self._answer(None, self._partial(event, index))
        elif not self._told_waiting:
            self._told_waiting = True
            self.emit(event)

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return Waiting(
            job_id=None,
            missing=missing,
            chunks_missing=len(self._coming),
            waiting_since=self.wall_text(),
            busy=True,
        )

    def _partial(self, waiting: Waiting, index: int) -> PartialDownload:
        names = ", ".join(row.name for row in waiting.missing) or "no known peer"
        offset = self.manifest.offset(index)
        return PartialDownload(
            f"{self.manifest.name!r} cannot be read from byte {offset:,} on without {names}",
            missing_peers=list(waiting.missing_peers),
            chunk_index=index,
            offset=offset,
        )

    # -- the end --------------------------------------------------------------------

    def fail(self, error: ZchunkError) -> None:
        assert self._job is not None
        self.perform(self._job.fail(error, self.now()))

    def _end(self, error: ZchunkError | None) -> None:
        if self._job is not None:
            self.perform(self._job.pause(self.now()))  # what is in flight is dropped
        self.leave()
        # Not given back for re-use: somebody may be reading there.
        for buffer in self._there.values():
            buffer.discard()
        self._there.clear()
        self.bulk.links.acknowledge_all()
        if error is not None:
            self._answer(None, error)
