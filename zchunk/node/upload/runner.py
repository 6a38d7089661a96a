"""Carries out an upload job: questions, offers and blocks on their way, and the end.

Decisions are `UploadJob`'s; the bytes come from `source_pass.py`, the commit is `publication.py`'s.
Everything here runs in the bulk loop; blocking work goes to its threads. What may not happen here: a
plain byte or a plain digest of a file that is encrypted on its way to anybody: what is offered, asked
about and sent is ciphertext.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from zchunk.content.manifest import chunk_length
from zchunk.errors import (
    Interrupted,
    MalformedMessage,
    ZchunkError,
)
from zchunk.node import job_events
from zchunk.node.bulk.job_driver import Emit, JobDriver, Log
from zchunk.node.bulk.location import found_holders
from zchunk.node.bulk.plane import OFFER_TIMEOUT_S, TRACKER_TIMEOUT_S, BulkPlane
from zchunk.node.bulk.progress import Progress
from zchunk.node.control.plane import checked, expect
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.node.upload.actions import (
    Action,
    AllStored,
    Failed,
    FindHolders,
    Limits,
    OfferChunk,
    ReadChunk,
    ReleaseChunk,
    Replan,
    Resumed,
    SendBlock,
    StateChanged,
    UploadState,
)
from zchunk.node.upload.assignment import assignment
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.publication import Publication
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.source_pass import SourcePass, budget, overhead
from zchunk.node.upload.upload_keys import Encryption
from zchunk.node.upload.waiting import WaitingTexts
from zchunk.protocol import columns
from zchunk.protocol.messages import (
    Abandon,
    BlockTaken,
    ChunksFound,
    Committed,
    FindChunks,
    Message,
    Offer,
    Offered,
    PeerRecord,
    Plan,
    Planned,
    PutBlock,
    Renew,
)
from zchunk.runtime import log_ids

log = logging.getLogger(__name__)

#: Who holds a chunk saves sending it, but is not worth a long wait.
_FIND_S = 3.0


#: Of an upload's blocks. Each lies in memory up to three times: in its chunk's buffer, on its way,
#: and encrypted.
_MAX_BLOCK = 4 * 1024**2


class Upload(JobDriver[Action]):
    """One upload of one file by one plan; ends with exactly one `done` or `error` event."""

    def __init__(
        self,
        *,
        bulk: BulkPlane,
        source: SourceFile,
        name: str,
        plan: Plan,
        planned: Planned,
        keep_at: Path,
        emit: Emit,
        job_id: str,
        encryption: Encryption | None = None,
    ) -> None:
        """`plan` is what was asked, `planned` the answer that the user agreed to; `keep_at`
        the folder where the uploader keeps the manifests of its files (SPEC U4); `encryption`
        encrypts the file. Raises MalformedMessage for a plan that does not fit the file."""
        self.job_id = job_id
        self.source = source
        self.name = name
        self._plan = plan
        self._planned = planned
        self._encryption = encryption
        self._targets = assignment(plan, planned)
        self._job = _new_job(bulk, plan, self._targets, encryption)
        super().__init__(bulk, self._job, emit)
        self._pass = SourcePass(
            driver=self,
            source=source,
            plan=plan,
            encryption=encryption,
            on_read=lambda index, twin: self.perform(self._job.read(index, self.now(), twin)),
            on_digested=lambda index: self.perform(self._job.digested(index, self.now())),
            on_rest=lambda: self._publication.go_on_if_ready(),
        )
        self._waiting = WaitingTexts(self, self._job, job_id)
        self._publication = Publication(
            driver=self,
            job=self._job,
            source_pass=self._pass,
            name=name,
            path=source.path,
            plan=plan,
            planned=planned,
            keep_at=keep_at,
            on_refused=self._waiting.reasons.__setitem__,
            on_done=self._done,
        )
        self._progress = Progress(emit, job_id, plan.size, self._pass.chunks_count)
        self._started = 0.0
        self._stop_watching: Callable[[], None] | None = None
        self._handlers: dict[type[Action], Callable[[Any], None]] = {
            ReadChunk: lambda action: self._pass.read(action.chunk),
            FindHolders: self._find,
            OfferChunk: self._offer,
            SendBlock: self._send,
            ReleaseChunk: lambda action: self._pass.release(action.chunk, action.clean),
            Replan: self._replan,
            Resumed: self._resumed,
            StateChanged: self._state_changed,
            AllStored: lambda action: self._publication.stored_all(),
            Failed: lambda action: self.fail(action.error),
        }

    @property
    def log(self) -> Log:
        return log_ids.of(log, "upload", self._plan.upload_id)

    # -- the owner's calls, in the bulk loop ----------------------------------------

    def start(self) -> None:
        self._started = self.now()
        for record in self._planned.peers:
            self.bulk.learn(record)
        self._job.know(up=self.bulk.up(), unreachable=self.bulk.unreachable)
        self.follow()
        control = self.bulk.control
        self._stop_watching = control.watch_peers(self.bulk.loop, lambda record: None, self._renew)
        self.perform(self._job.start(self.now()))

    def leave(self) -> None:
        super().leave()
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None

    def stop(self) -> None:
        """End now; what nodes stored stays leased, so the same put goes on from there."""
        self.fail(
            Interrupted(
                "interrupted; run the same command again to continue: stored chunks are not sent again"
            )
        )

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        times = (super().deadline(), self._progress.deadline(), self._publication.deadline())
        return min(t for t in times if t is not None)

    def on_time(self, now: float) -> None:
        super().on_time(now)
        if not self.ended:
            self._progress.on_time(now, self._job.chunks_completed, self._job.bytes_sent)
            self._publication.on_time(now)

    def _renew(self) -> None:
        """The tracker answers, perhaps by another connection than the plan was asked by: then only
        this tells it that the upload goes on."""
        if not self.ended:
            renew = Renew(upload_id=self._plan.upload_id)
            self.bulk.control.request(renew, TRACKER_TIMEOUT_S, self.bulk.loop, lambda reply, problem: None)

    # -- what happens ---------------------------------------------------------------

    def carry_out(self, action: Action) -> None:
        if not self.ended:
            self._handlers[type(action)](action)

    def after_actions(self) -> None:
        self._progress.touch()

    def _resumed(self, action: Resumed) -> None:
        name = self.peer_name(action.peer_id)
        self.emit(job_events.Resumed(job_id=self.job_id, peer_id=action.peer_id, name=name))

    # -- who has it already -----------------------------------------------------------

    def _find(self, action: FindHolders) -> None:
        chunks = action.chunks
        ask = FindChunks(hashes=b"".join(self._pass.row(index).sha256 for index in chunks))

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended:
                return
            try:
                found = checked(expect(ChunksFound, reply, error))
                holders = found_holders(found, len(chunks))
            except ZchunkError as problem:
                self.log.info(
                    "sending all chunks; it is unknown which ones the cluster already has: %s",
                    problem.message,
                )
                self.perform(self._job.not_found(chunks, self.now()))
                return
            for record in found.peers:
                self.bulk.learn(record)
            fit = [[record.peer_id for record in row if self._fits(record)] for row in holders]
            self.perform(self._job.found(chunks, fit, self.now()))

        self.bulk.control.request(ask, _FIND_S, self.bulk.loop, answer)

    def _fits(self, holder: PeerRecord) -> bool:
        """An undivided file would go there whole, so there must be room for all of it."""
        return self._plan.distribute or holder.free >= self._plan.size or holder.peer_id in self._targets[0]

    # -- sending --------------------------------------------------------------------

    def _offer(self, action: OfferChunk) -> None:
        row = self._pass.row(action.chunk)
        offer = Offer(
            upload_id=self._plan.upload_id, sha256=row.sha256, blake3=row.blake3, size=row.stored_size
        )

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended:
                return
            offered = expect(Offered, reply, error)
            if isinstance(offered, ZchunkError):
                self._refused(action, offered)
                return
            now = self.now()
            self.perform(self._job.offered(action.peer_id, action.chunk, action.attempt, offered.have, now))

        self.bulk.links.request(action.peer_id, offer, OFFER_TIMEOUT_S, answer)

    def _send(self, action: SendBlock) -> None:
        row = self._pass.row(action.chunk)
        block = PutBlock(
            upload_id=self._plan.upload_id,
            sha256=row.sha256,
            offset=action.offset,
            data=self._pass.stored_view(action.chunk)[action.offset : action.offset + action.length],
        )

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended:
                return
            taken = expect(BlockTaken, reply, error)
            if isinstance(taken, ZchunkError):
                self._refused(action, taken)
                return
            self.perform(
                self._job.taken(
                    action.peer_id, action.chunk, action.attempt, action.offset, taken.stored, self.now()
                )
            )

        timeout_s = 2 * self.bulk.settings.transfer.request_timeout_s
        self.bulk.links.request(action.peer_id, block, timeout_s, answer)

    def _refused(self, action: OfferChunk | SendBlock, error: ZchunkError) -> None:
        self.log.info("%s refused chunk %d: %s", self.peer_name(action.peer_id), action.chunk, error.message)
        self._waiting.reasons[action.peer_id] = error.message
        now = self.now()
        self.perform(self._job.refused(action.peer_id, action.chunk, action.attempt, error, now))

    # -- places for chunks whose peer cannot take them -------------------------------

    def _replan(self, action: Replan) -> None:
        """Asks about every chunk, also those that need nothing: only so does the whole file
        come out even, and on enough different peers."""
        copies = self._job.places()
        held_peers = sorted({peer_id for peers in copies for peer_id in peers})
        at = {peer_id: i for i, peer_id in enumerate(held_peers)}
        width = self._plan.replicas
        held = (
            [at[p] for p in peers[:width]] + [columns.NOBODY] * (width - len(peers[:width]))
            for peers in copies
        )
        ask = replace(
            self._plan,
            avoid=action.avoid,
            held_peers=tuple(held_peers),
            only=columns.pack(4, range(len(copies))),
            held=columns.pack(2, (entry for row in held for entry in row)),
        )

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended:
                return
            planned = expect(Planned, reply, error)
            if isinstance(planned, ZchunkError):
                self.perform(self._job.not_replanned(action.chunks, planned, self.now()))
                return
            try:
                peers = assignment(ask, planned)
            except MalformedMessage as odd:
                self.fail(odd)
                return
            for record in planned.peers:
                self.bulk.learn(record)
            places = [peers[index] for index in action.chunks]
            self.perform(self._job.replanned(action.chunks, places, self.now()))

        self.bulk.control.request(ask, TRACKER_TIMEOUT_S, self.bulk.loop, answer)

    def _state_changed(self, action: StateChanged) -> None:
        if action.state is UploadState.RUNNING:
            self._publication.reopened()
        if action.state is UploadState.WAITING:
            self.emit(self._waiting.event())

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return self._waiting.busy(missing)

    # -- the end --------------------------------------------------------------------

    def _done(self, committed: Committed) -> None:
        self._progress.last(self._job.chunks_completed, self._job.bytes_sent, self.now())
        holders = self._job.all_holders()
        self.leave()
        file = committed.file
        self.emit(
            job_events.Uploaded(
                job_id=self.job_id,
                file_id=file.file_id,
                name=file.name,
                size=file.size,
                sha256=self._pass.sha256.hex(),
                encrypted=self._encryption is not None,
                chunks_count=file.chunks_count,
                is_chunked=file.is_chunked,
                is_distributed=file.is_distributed,
                peers=tuple(holders),
                seconds=round(self.now() - self._started, 3),
                bytes_sent=self._job.bytes_sent,
                already=committed.already,
            )
        )

    def fail(self, error: ZchunkError) -> None:
        if self.ended:
            return
        abandon = Abandon(upload_id=self._plan.upload_id)
        self.bulk.control.request(abandon, 1.0, self.bulk.loop, lambda reply, problem: None)
        self.leave()
        error.details.setdefault("bytes_sent", self._job.bytes_sent)
        # Behind what the threads still do with the file.
        event = job_events.Failed(job_id=self.job_id, error=error)
        self.bulk.pools.writing.submit(lambda: None, lambda value, problem: self.emit(event))


def _new_job(
    bulk: BulkPlane, plan: Plan, targets: Sequence[Sequence[str]], encryption: Encryption | None
) -> UploadJob:
    transfer = bulk.settings.transfer
    return UploadJob(
        sizes=[
            chunk_length(plan.size, plan.chunk_size, index) + overhead(encryption)
            for index in range(len(targets))
        ],
        assignment=targets,
        replicas=plan.replicas,
        min_peers=plan.min_peers if plan.distribute else 1,
        undivided=not plan.distribute,
        own_peer=plan.own_peer,
        up={},
        limits=Limits(
            budget=budget(transfer.receive_budget, plan, encryption),
            block_min=transfer.block_size_min,
            block_max=max(transfer.block_size_min, min(transfer.block_size_max, _MAX_BLOCK)),
            stall_s=transfer.request_timeout_s,
        ),
    )
