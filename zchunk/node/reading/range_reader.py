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

from zchunk.errors import PartialDownload, ZchunkError
from zchunk.node.bulk.job_driver import Emit, Log
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.control.hello_wait import HelloWait
from zchunk.node.download.actions import ChunkState, JobState, corrupt_everywhere, removed_meanwhile
from zchunk.node.download.fetcher import ChunkList, Fetcher, budget_of, new_job
from zchunk.node.download.holders import CHECK_S, Gone, HoldersOfFile, Where
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.node.reading.memory_sink import MemorySink
from zchunk.node.reading.read_ahead import room_for
from zchunk.runtime import log_ids

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
    return room_for(budget_of(bulk, where.manifest.chunk_size), largest)


class Reader:
    """One reader of one file. Each `need` is answered once, unless another one comes before;
    `stop` ends it. Memory: `transfer.receive_budget`, or three chunks where that is more."""

    def __init__(self, *, bulk: BulkPlane, where: Location, wait: bool, emit: Emit) -> None:
        """The manifest of an encrypted file was opened (content/encryption.py). `wait`: stay for missing
        peers; else answer PartialDownload. `emit` hears `waiting`, `resumed` and `corrupt`."""
        self.ended = False
        self._bulk = bulk
        self._where = where
        self._manifest = where.manifest
        self._emit = emit
        self._wait = wait
        self._hellos = HelloWait()
        chunks = ChunkList.of_file(where)
        # Without a job to `resume`, it goes on by itself.
        self._job = new_job(bulk, chunks, auto_resume=True, block_max=_BLOCK_MAX)
        self._sink = MemorySink(where.manifest, room_of(bulk, where))
        self._holders = HoldersOfFile(bulk, where.manifest.file_id, self.log)
        self._fetcher = Fetcher(
            bulk=bulk,
            chunks=chunks,
            job=self._job,
            sink=self._sink,
            holders=self._holders,
            owner=self,
            emit=emit,
            log=self.log,
        )
        self._begun = False
        #: the chunk that somebody waits for, and how to tell him
        self._asked: tuple[int, Answer] | None = None
        self._told_waiting = False
        #: the tracker is being asked why a chunk does not come
        self._finding_out = False

    @property
    def log(self) -> Log:
        return log_ids.of(log, "file", self._manifest.file_id)

    # -- the owner's calls, in the bulk loop ----------------------------------------

    def need(self, chunks: Sequence[int], answer: Answer) -> None:
        """Answer with the first of `chunks`; the others are needed soon, as far as there is
        room for them. What was needed before is not any more."""
        if self.ended:
            answer(None, None)
            return
        self._begin()
        self._asked, self._told_waiting = (chunks[0], answer), False
        window, coming = self._sink.window, self._sink.coming
        gone = self._sink.move(chunks)
        self._drop(coming - window.wanted)
        for index in gone:
            self._fetcher.freed(index)
        missing = window.missing()
        coming.update(missing)
        self._fetcher.perform(self._job.want(missing, self._now()))

    def stop(self) -> None:
        """Nobody reads any more."""
        if not self.ended:
            self._end(None)

    @property
    def received_from(self) -> dict[str, int]:
        """Payload bytes per peer."""
        return self._fetcher.received_from

    # -- Timed ------------------------------------------------------------------------

    def deadline(self) -> float | None:
        return self._hellos.deadline() if self._asked is not None else None

    def on_time(self, now: float) -> None:
        self.after_actions()

    # -- inside -----------------------------------------------------------------------

    def _now(self) -> float:
        return self._bulk.loop.clock.monotonic()

    def _begin(self) -> None:
        """All chunks count as held, until they are wanted."""
        if not self._begun:
            self._begun = True
            self._fetcher.begin(range(len(self._manifest.chunks)))
            self._bulk.loop.add_timed(self)
            self._fetcher.perform(self._job.start(self._now()))

    def _drop(self, chunks: set[int]) -> None:
        self._fetcher.perform(self._job.unwant(chunks, self._now()))
        self._sink.coming -= {
            index for index in chunks if self._job.view.chunk_state(index) is ChunkState.HELD
        }

    # -- what the fetcher tells its owner ---------------------------------------------

    def state_changed(self, state: JobState) -> None:
        """What matters is the chunk that somebody waits for."""

    def all_held(self) -> None:
        """Others may be wanted."""

    def peer_back(self, peer_id: str) -> None:
        """It is asked at once, see `new_job`."""

    def failed(self, error: ZchunkError) -> None:
        gone = error.details.get("removed")
        self._end(removed_meanwhile(repr(self._manifest.name)) if gone else error)

    def after_actions(self) -> None:
        if self._asked is None:
            return
        index, _ = self._asked
        if not self._job.view.is_waited_for(index):
            self._hellos.rest()
        view = self._sink.view(index)
        if view is not None:
            self._answer(view, None)
        elif self._job.view.status(index)[0] == "failed":
            # The job itself goes on as long as it can have another chunk.
            if not self._job.checking:
                self._find_out(index)
        elif self._job.view.is_waited_for(index):
            self._missing(index)
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

        def answer(where: Where) -> None:
            self._finding_out = False
            self._fetcher.located(where)
            if self._asked is None or self.ended:
                return
            if self._asked[0] == index and self._job.view.status(index)[0] == "failed":
                gone = isinstance(where, Gone)
                name = repr(self._manifest.name)
                self._answer(None, removed_meanwhile(name) if gone else self._corrupt(index))
            self._fetcher.perform([])  # somebody may ask for another one by now

        self._holders.ask(CHECK_S, answer)

    def _corrupt(self, index: int) -> ZchunkError:
        holders = [peer_id for peer_id, _ in self._where.holders[index]]
        return corrupt_everywhere(1, holders, [self._bulk.name_of(peer_id) for peer_id in holders])

    def _missing(self, index: int) -> None:
        """Nobody who holds the chunk can be asked for it now."""
        missing = self._job.view.missing()
        event = Waiting(
            job_id=None,
            missing=self._fetcher.missing_rows(missing, self._job.view.why_missing),
            chunks_missing=len(self._job.view.missing_chunks()),
            chunk_index=index,
            waiting_since=self._fetcher.wall_text(),
        )
        unsure = self._fetcher.is_unsure(missing)
        stays = self._wait or self._hellos.waits(unsure, self._bulk.settings.tracker.lease_s, self._now())
        if not stays:
            self._answer(None, self._partial(event, index))
        elif not self._told_waiting:
            self._told_waiting = True
            self._emit(event)

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return Waiting(
            job_id=None,
            missing=missing,
            chunks_missing=len(self._sink.coming),
            waiting_since=self._fetcher.wall_text(),
            busy=True,
        )

    def _partial(self, waiting: Waiting, index: int) -> PartialDownload:
        names = ", ".join(row.name for row in waiting.missing) or "no known peer"
        offset = self._manifest.offset(index)
        return PartialDownload(
            f"{self._manifest.name!r} cannot be read from byte {offset:,} on without {names}",
            missing_peers=list(waiting.missing_peers),
            chunk_index=index,
            offset=offset,
        )

    # -- the end --------------------------------------------------------------------

    def _end(self, error: ZchunkError | None) -> None:
        if self._begun:
            self._fetcher.perform(self._job.pause(self._now()))  # what is in flight is dropped
            self._bulk.loop.remove_timed(self)
        self.ended = True
        self._fetcher.leave()
        self._sink.close()
        self._bulk.links.acknowledge_all()
        if error is not None:
            self._answer(None, error)
