"""Carries out what a download and a reader have in common: blocks into buffers, checks, reports.

Decisions are `DownloadJob`'s; what becomes of a chunk that is whole and right is the
subclass's (runner.py, reading/range_reader.py). Everything here runs in the bulk loop.

A chunk of an encrypted file is decrypted where it stands, once its SHA-256 was right: who
uses the buffer sees plain bytes only, and its size on the wire nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection

from zchunk.content import hashing
from zchunk.content.encryption import opened
from zchunk.content.manifest import TAG_BYTES
from zchunk.errors import IntegrityError, NotFound, StorageUnavailable, ZchunkError
from zchunk.limits.memory_shares import room_for_chunks
from zchunk.node import job_events
from zchunk.node.bulk.job_driver import Emit, Job, JobDriver
from zchunk.node.bulk.location import Location, location
from zchunk.node.bulk.plane import TRACKER_TIMEOUT_S, BulkPlane
from zchunk.node.control.plane import Answer, expect
from zchunk.node.download.job import (
    Action,
    BeginChunk,
    CheckRemoved,
    DownloadJob,
    DropChunk,
    Limits,
    Relocate,
    ReportCorrupt,
    RequestBlock,
    Resumed,
    VerifyChunk,
    corrupt_everywhere,
    removed_meanwhile,
)
from zchunk.protocol.messages import Block, Event, Locate, Located, Message
from zchunk.protocol.messages import ReportCorrupt as ReportMessage
from zchunk.system import disk
from zchunk.system.buffers import Buffer, BufferPool

#: Whether the file is still there: a tracker that is away is not waited for longer.
CHECK_S = 5.0


def budget_of(bulk: BulkPlane, where: Location) -> int:
    """Bytes of chunks of that file that a job may have in memory."""
    return room_for_chunks(bulk.settings.transfer.receive_budget, where.manifest.chunk_size + TAG_BYTES)


class Fetcher(JobDriver[Action]):
    """A subclass sets `_job` (see `new_job`), and carries out what is left of its actions in
    `carry_out_own`."""

    def __init__(self, *, bulk: BulkPlane, where: Location, emit: Emit, job_id: str | None = None) -> None:
        """The manifest of an encrypted file was opened (content/encryption.py). `job_id`: of the
        job that it is, if it is one."""
        super().__init__(bulk, emit)
        self.job_id = job_id
        self.where = where
        self.manifest = where.manifest
        #: payload bytes per peer in this run
        self.received_from: dict[str, int] = {}
        self._job: DownloadJob | None = None
        #: (chunk, attempt) -> its memory
        self._buffers: dict[tuple[int, int], Buffer] = {}
        self._opened = opened(self.manifest)
        self._stop_watching: Callable[[], None] | None = None
        #: bytes of chunks that may be in memory
        self.budget = budget_of(bulk, where)
        rounding = disk.ALIGNMENT * (self.budget // self.manifest.chunk_size + 1)
        self._pool = BufferPool(self.budget + rounding)

    def new_job(self, held: Collection[int], auto_resume: bool, block_max: int | None = None) -> DownloadJob:
        """For the chunks that are not held, with what is known of peers now. `block_max`: if it is
        less than `transfer.block_size_max`."""
        transfer, chunking = self.bulk.settings.transfer, self.bulk.settings.chunking
        for record in self.where.peers.values():
            self.bulk.learn(record)
        return DownloadJob(
            sizes=[row.stored_size for row in self.manifest.chunks],
            holders=self.where.holder_ids(),
            up=self.bulk.up(),
            unreachable=self.bulk.unreachable,
            held=held,
            limits=Limits(
                budget=self.budget,
                block_min=transfer.block_size_min,
                block_max=min(transfer.block_size_max, block_max or transfer.block_size_max),
                stall_s=transfer.request_timeout_s,
                relocate_s=chunking.resume_check_interval,
                auto_resume=auto_resume,
            ),
        )

    # -- actions --------------------------------------------------------------------

    def carry_out(self, action: Action) -> None:
        if isinstance(action, DropChunk):  # also after the end
            self._give_back(action)
        elif not self.ended:
            self._perform_one(action)

    @abstractmethod
    def carry_out_own(self, action: Action) -> None:
        """What only this kind of job does."""

    def _perform_one(self, action: Action) -> None:
        if isinstance(action, RequestBlock):
            self._request(action)
        elif isinstance(action, BeginChunk):
            self._begin(action)
        elif isinstance(action, VerifyChunk):
            self._verify(action)
        elif isinstance(action, Resumed):
            name = self.peer_name(action.peer_id)
            self.emit(job_events.Resumed(job_id=self.job_id, peer_id=action.peer_id, name=name))
        elif isinstance(action, Relocate):
            self._locate(TRACKER_TIMEOUT_S, self._relocated)
        elif isinstance(action, CheckRemoved):
            self._locate(CHECK_S, self._relocated)
        elif isinstance(action, ReportCorrupt):
            self._report(action)
        else:
            self.carry_out_own(action)

    def _request(self, ask: RequestBlock) -> None:
        self.bulk.links.get_block(
            ask.peer_id,
            self.manifest.chunks[ask.chunk].sha256,
            ask.offset,
            ask.length,
            # The job notices a stall itself; this ends what it has given up.
            2 * self.bulk.settings.transfer.request_timeout_s,
            lambda reply, error: self._on_block(ask, reply, error),
        )

    def _on_block(self, ask: RequestBlock, reply: Message | None, error: ZchunkError | None) -> None:
        job = self._job
        if job is None or self.ended:
            return
        now = self.now()
        block = expect(Block, reply, error)
        if isinstance(block, Block) and len(block.data) != ask.length:
            block = IntegrityError(f"{self.peer_name(ask.peer_id)} sent a block of the wrong length")
        if isinstance(block, ZchunkError):
            self.perform(job.refused(ask.chunk, ask.attempt, block, now))
            return
        if job.expects(ask.chunk, ask.attempt, ask.offset, ask.length):
            view = self._buffers[ask.chunk, ask.attempt].view(ask.offset + ask.length)
            view[ask.offset :] = block.data
            self.received_from[ask.peer_id] = self.received_from.get(ask.peer_id, 0) + ask.length
        self.perform(job.block(ask.chunk, ask.attempt, ask.offset, ask.length, now))

    def _give_back(self, action: DropChunk) -> None:
        buffer = self._buffers.pop((action.chunk, action.attempt), None)
        if buffer is not None:  # else there was no memory for it
            buffer.release()

    def _begin(self, action: BeginChunk) -> None:
        try:
            buffer = self._pool.try_reserve(self.manifest.chunks[action.chunk].stored_size)
        except StorageUnavailable as error:
            self.fail(error)
            return
        assert buffer is not None  # the job's budget is less than the pool's
        self._buffers[action.chunk, action.attempt] = buffer

    def _verify(self, action: VerifyChunk) -> None:
        index, row = action.chunk, self.manifest.chunks[action.chunk]
        view = self._buffers[index, action.attempt].view(row.stored_size)

        def then(good: bool) -> None:
            assert self._job is not None
            self.perform(self._job.verified(index, good, self.now()))

        def work() -> bool:
            good = hashing.sha256(view) == row.sha256
            if good and self._opened is not None:
                self._opened.open_chunk(index, view)
            return good

        self.submit(self.bulk.pools.hashing, work, then)

    def _report(self, action: ReportCorrupt) -> None:
        sha256 = self.manifest.chunks[action.chunk].sha256
        self.log.info("peer %s sent chunk %d corrupt", self.peer_name(action.peer_id), action.chunk)
        message = ReportMessage(peer_id=action.peer_id, sha256=sha256)
        self.bulk.control.request(message, TRACKER_TIMEOUT_S, self.bulk.loop, self._reported)
        others = [peer_id for peer_id, _ in self.where.holders[action.chunk] if peer_id != action.peer_id]
        self.emit(
            job_events.Corrupt(
                job_id=self.job_id,
                peer_id=action.peer_id,
                name=self.peer_name(action.peer_id),
                chunk_index=action.chunk,
                other_holders=len(others),
            )
        )

    def _locate(self, timeout_s: float, answer: Answer) -> None:
        ask = Locate(name_or_id=self.manifest.file_id, unique=False)
        self.bulk.control.request(ask, timeout_s, self.bulk.loop, answer)

    def _relocated(self, reply: Message | None, error: ZchunkError | None) -> None:
        if self._job is None or self.ended:
            return
        if isinstance(error, NotFound):
            self.perform(self._job.removed(self.now()))
            return
        if not isinstance(reply, Located):
            self.perform(self._job.not_located(self.now()))  # the known holders do (SPEC D9)
            return
        try:
            where = location(reply, self.manifest.file_id)
        except ZchunkError as problem:
            self.log.warning("the tracker's answer cannot be used: %s", problem.message)
            self.perform(self._job.not_located(self.now()))
            return
        for record in where.peers.values():
            self.bulk.learn(record)
        self.perform(self._job.located(where.holder_ids(), self.now()))

    # -- removal ----------------------------------------------------------------------

    def follow(self, job: Job[Action]) -> None:
        """It also hears when the file is removed."""
        super().follow(job)
        self._stop_watching = self.bulk.control.watch_events(
            self.bulk.loop, self._on_event, lambda missed: self._doubt()
        )

    def leave(self) -> None:
        super().leave()
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None

    def _on_event(self, event: Event) -> None:
        if event.topic == "file.removed" and event.fields.get("file_id") == self.manifest.file_id:
            self._doubt()

    def _doubt(self) -> None:
        """An event is a hint: the file may have been put again."""
        if not self.ended:
            self._locate(TRACKER_TIMEOUT_S, self._relocated)

    def kept_text(self) -> str:
        """Behind the news that the file was removed: what is kept of it."""
        return ""

    def _with_names(self, error: ZchunkError) -> ZchunkError:
        """The job knows ids only; people know names."""
        if error.details.get("removed"):
            return removed_meanwhile(repr(self.manifest.name), self.kept_text())
        peers = error.details.get("peers")
        if not isinstance(error, IntegrityError) or not peers:
            return error
        return corrupt_everywhere(error.details["chunks"], peers, [self.peer_name(peer) for peer in peers])

    def _reported(self, _: Message | None, error: ZchunkError | None) -> None:
        if error is not None:  # the download does without: the chunk comes from another holder
            self.log.info("the tracker did not accept the report: %s", error.message)
