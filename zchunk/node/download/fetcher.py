"""Fetches chunks into a sink: blocks into buffers, checks, reports.

It carries out what a `DownloadJob` decides, for chunks of which it knows the SHA-256, the size
and the holders; where they go is its sink's (sinks.py), and what it is for is its owner's
(runner.py, reading/range_reader.py). Everything here runs in the bulk loop.

A chunk of an encrypted file is decrypted where it stands, once its SHA-256 was right: the sink
sees plain bytes only, and its size on the wire nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from zchunk.content import hashing
from zchunk.content.encryption import OpenManifest, opened
from zchunk.content.manifest import TAG_BYTES, ChunkRow
from zchunk.errors import IntegrityError, StorageUnavailable, ZchunkError
from zchunk.limits.memory_shares import room_for_chunks
from zchunk.node import job_events
from zchunk.node.bulk.job_driver import Emit, JobDriver, Log
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import TRACKER_TIMEOUT_S, BulkPlane
from zchunk.node.control.plane import expect
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    BeginChunk,
    CheckRemoved,
    DropChunk,
    Failed,
    JobState,
    Limits,
    Relocate,
    ReportCorrupt,
    RequestBlock,
    Resumed,
    StateChanged,
    VerifyChunk,
    WriteChunk,
    corrupt_everywhere,
)
from zchunk.node.download.holders import CHECK_S, Gone, Holders, Where
from zchunk.node.download.job import DownloadJob
from zchunk.node.download.sinks import Sink
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.protocol.messages import Block, Message, PeerRecord
from zchunk.protocol.messages import ReportCorrupt as ReportMessage
from zchunk.system import disk
from zchunk.system.buffers import Buffer, BufferPool


@dataclass(frozen=True)
class ChunkList:
    """The chunks to fetch, which are named by their place in the list."""

    rows: Sequence[ChunkRow]
    #: per chunk its peer ids, and what is known of these
    holders: Sequence[Sequence[str]]
    peers: Collection[PeerRecord]
    #: the largest is no larger, but for the tag of an encrypted one
    chunk_size: int
    #: decrypts them
    opened: OpenManifest | None = None

    @classmethod
    def of_file(cls, where: Location) -> ChunkList:
        """All of a file; the manifest of an encrypted one was opened (content/encryption.py)."""
        manifest = where.manifest
        peers = where.peers.values()
        return cls(manifest.chunks, where.holder_ids(), peers, manifest.chunk_size, opened(manifest))


def budget_of(bulk: BulkPlane, chunk_size: int) -> int:
    """Bytes of chunks of that size that a job may have in memory."""
    return room_for_chunks(bulk.settings.transfer.receive_budget, chunk_size + TAG_BYTES)


def new_job(
    bulk: BulkPlane, chunks: ChunkList, auto_resume: bool, block_max: int | None = None
) -> DownloadJob:
    """In any thread: what is known of peers, and the chunks that are here, it is told at
    `Fetcher.begin`. `block_max`: if it is less than `transfer.block_size_max`."""
    transfer, chunking = bulk.settings.transfer, bulk.settings.chunking
    return DownloadJob(
        sizes=[row.stored_size for row in chunks.rows],
        holders=chunks.holders,
        up={},
        held=(),
        limits=Limits(
            budget=budget_of(bulk, chunks.chunk_size),
            block_min=transfer.block_size_min,
            block_max=min(transfer.block_size_max, block_max or transfer.block_size_max),
            stall_s=transfer.request_timeout_s,
            relocate_s=chunking.resume_check_interval,
            auto_resume=auto_resume,
        ),
    )


class Owner(Protocol):
    """Whom a fetch is for. Called in the bulk loop."""

    def state_changed(self, state: JobState) -> None: ...

    def all_held(self) -> None:
        """Every chunk is in the sink."""

    def failed(self, error: ZchunkError) -> None:
        """The job cannot go on."""

    def after_actions(self) -> None:
        """Everything decided so far was carried out."""

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        """See `JobDriver`."""

    def peer_back(self, peer_id: str) -> None:
        """It is up again and, without auto-resume, asked only after `DownloadJob.resume`."""


class Fetcher(JobDriver[Action]):
    """`begin` once; its owner ends it with `leave`."""

    def __init__(
        self,
        *,
        bulk: BulkPlane,
        chunks: ChunkList,
        job: DownloadJob,
        sink: Sink,
        holders: Holders,
        owner: Owner,
        emit: Emit,
        log: Log,
        job_id: str | None = None,
    ) -> None:
        """`job` is for these chunks (`new_job`). `holders` finds out where they are by now.
        `job_id`: of the job that its events are of, if it is one that users know."""
        super().__init__(bulk, job, emit)
        self.job = job
        self._log = log
        self._job_id = job_id
        #: payload bytes per peer
        self.received_from: dict[str, int] = {}
        self._chunks = chunks
        self._sink = sink
        self._holders = holders
        self._owner = owner
        #: (chunk, attempt) -> its memory
        self._buffers: dict[tuple[int, int], Buffer] = {}
        budget = budget_of(bulk, chunks.chunk_size)
        self._pool = BufferPool(budget + disk.ALIGNMENT * (budget // chunks.chunk_size + 1))

    def begin(self, held: Collection[int]) -> None:
        """The job is told what is known now, and hears from now on; `held` need not be fetched.
        Its owner starts it."""
        for record in self._chunks.peers:
            self.bulk.learn(record)
        self.job.know(up=self.bulk.up(), unreachable=self.bulk.unreachable, held=held)
        self.follow()
        self._holders.watch(self._doubt)

    @property
    def log(self) -> Log:
        return self._log

    def leave(self) -> None:
        super().leave()
        self._holders.unwatch()

    # -- actions --------------------------------------------------------------------

    def carry_out(self, action: Action) -> None:
        if isinstance(action, DropChunk):  # also after the end
            self._give_back(action)
        elif not self.ended:
            self._perform_one(action)

    def after_actions(self) -> None:
        self._owner.after_actions()

    def fail(self, error: ZchunkError) -> None:
        self.perform(self.job.fail(error, self.now()))

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return self._owner.busy_event(missing)

    def _perform_one(self, action: Action) -> None:
        if isinstance(action, RequestBlock):
            self._request(action)
        elif isinstance(action, BeginChunk):
            self._begin_chunk(action)
        elif isinstance(action, VerifyChunk):
            self._verify(action)
        elif isinstance(action, WriteChunk):
            self._write(action)
        elif isinstance(action, Relocate):
            self.locate(TRACKER_TIMEOUT_S)
        elif isinstance(action, CheckRemoved):
            self.locate(CHECK_S)
        elif isinstance(action, ReportCorrupt):
            self._report(action)
        else:
            self._tell(action)

    def _tell(self, action: Action) -> None:
        if isinstance(action, Resumed):
            name = self.peer_name(action.peer_id)
            self.emit(job_events.Resumed(job_id=self._job_id, peer_id=action.peer_id, name=name))
        elif isinstance(action, StateChanged):
            self._owner.state_changed(action.state)
        elif isinstance(action, AllHeld):
            self._owner.all_held()
        elif isinstance(action, Failed):
            self._owner.failed(self._with_names(action.error))

    def _request(self, ask: RequestBlock) -> None:
        self.bulk.links.get_block(
            ask.peer_id,
            self._chunks.rows[ask.chunk].sha256,
            ask.offset,
            ask.length,
            # The job notices a stall itself; this ends what it has given up.
            2 * self.bulk.settings.transfer.request_timeout_s,
            lambda reply, error: self._on_block(ask, reply, error),
        )

    def _on_block(self, ask: RequestBlock, reply: Message | None, error: ZchunkError | None) -> None:
        if self.ended:
            return
        now = self.now()
        block = expect(Block, reply, error)
        if isinstance(block, Block) and len(block.data) != ask.length:
            block = IntegrityError(f"{self.peer_name(ask.peer_id)} sent a block of the wrong length")
        if isinstance(block, ZchunkError):
            self.perform(self.job.refused(ask.chunk, ask.attempt, block, now))
            return
        if self.job.expects(ask.chunk, ask.attempt, ask.offset, ask.length):
            view = self._buffers[ask.chunk, ask.attempt].view(ask.offset + ask.length)
            view[ask.offset :] = block.data
            self.received_from[ask.peer_id] = self.received_from.get(ask.peer_id, 0) + ask.length
        self.perform(self.job.block(ask.chunk, ask.attempt, ask.offset, ask.length, now))

    def _give_back(self, action: DropChunk) -> None:
        buffer = self._buffers.pop((action.chunk, action.attempt), None)
        if buffer is not None:  # else there was no memory for it
            buffer.release()

    def _begin_chunk(self, action: BeginChunk) -> None:
        try:
            buffer = self._pool.try_reserve(self._chunks.rows[action.chunk].stored_size)
        except StorageUnavailable as error:
            self.fail(error)
            return
        assert buffer is not None  # the job's budget is less than the pool's
        self._buffers[action.chunk, action.attempt] = buffer

    def _verify(self, action: VerifyChunk) -> None:
        index, row = action.chunk, self._chunks.rows[action.chunk]
        view = self._buffers[index, action.attempt].view(row.stored_size)

        def then(good: bool) -> None:
            self.perform(self.job.verified(index, good, self.now()))

        def work() -> bool:
            good = hashing.sha256(view) == row.sha256
            if good and self._chunks.opened is not None:
                self._chunks.opened.open_chunk(index, view)
            return good

        self.submit(self.bulk.pools.hashing, work, then)

    def _write(self, action: WriteChunk) -> None:
        key = (action.chunk, action.attempt)
        buffer = self._buffers[key]

        def then(_: None) -> None:
            del self._buffers[key]
            kept = self._sink.take(action.chunk, buffer)
            if not kept:
                buffer.release()
            self.perform(self.job.written(action.chunk, kept, self.now()))
            self._sink.taken()

        if self._sink.workers is None:
            then(None)
        else:
            self.submit(self._sink.workers, lambda: self._sink.write(action.chunk, buffer), then)

    def freed(self, index: int) -> None:
        """The sink has no more use for the memory of a chunk that it kept."""
        self.perform(self.job.freed(index, self.now()))

    def _report(self, action: ReportCorrupt) -> None:
        sha256 = self._chunks.rows[action.chunk].sha256
        self.log.info("peer %s sent chunk %d corrupt", self.peer_name(action.peer_id), action.chunk)
        message = ReportMessage(peer_id=action.peer_id, sha256=sha256)
        self.bulk.control.request(message, TRACKER_TIMEOUT_S, self.bulk.loop, self._reported)
        others = [peer_id for peer_id in self._chunks.holders[action.chunk] if peer_id != action.peer_id]
        self.emit(
            job_events.Corrupt(
                job_id=self._job_id,
                peer_id=action.peer_id,
                name=self.peer_name(action.peer_id),
                chunk_index=action.chunk,
                other_holders=len(others),
            )
        )

    def _reported(self, _: Message | None, error: ZchunkError | None) -> None:
        if error is not None:  # the download does without: the chunk comes from another holder
            self.log.info("the tracker did not accept the report: %s", error.message)

    # -- where the chunks are by now ---------------------------------------------------

    def locate(self, timeout_s: float) -> None:
        """Ask for the holders; the job hears of them."""
        self._holders.ask(timeout_s, self.located)

    def located(self, where: Where) -> None:
        if self.ended:
            return
        if isinstance(where, Gone):
            self.perform(self.job.removed(self.now()))
        elif where is None:
            self.perform(self.job.not_located(self.now()))  # the known holders do (SPEC D9)
        else:
            for record in where.peers:
                self.bulk.learn(record)
            self.perform(self.job.located(where.holders, self.now()))

    def _doubt(self) -> None:
        """Something happened to them."""
        if not self.ended:
            self.locate(TRACKER_TIMEOUT_S)

    # -- peers ----------------------------------------------------------------------

    def _on_peer(self, record: PeerRecord) -> None:
        known = self.job.came_back
        super()._on_peer(record)
        self._tell_back(known)

    def _on_reach(self, peer_id: str, reachable: bool) -> None:
        known = self.job.came_back
        super()._on_reach(peer_id, reachable)
        self._tell_back(known)

    def _tell_back(self, known: frozenset[str]) -> None:
        for peer_id in sorted(self.job.came_back - known):
            self._owner.peer_back(peer_id)

    def _with_names(self, error: ZchunkError) -> ZchunkError:
        """The job knows ids only; people know names."""
        peers = error.details.get("peers")
        if not isinstance(error, IntegrityError) or not peers:
            return error
        return corrupt_everywhere(error.details["chunks"], peers, [self.peer_name(peer) for peer in peers])
