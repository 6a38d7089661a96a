"""Carries out an upload job: one pass over the file, offers and blocks, the commit.

Decisions are `UploadJob`'s. Everything here runs in the bulk loop; blocking work goes
to its threads. What may not happen here: a chunk's buffer given back while the running
file digest still needs it; a commit before the manifest is durable at every holder and, where
its disk takes it, in the uploader's home; a plain byte or a plain digest of a file that
is encrypted on its way to anybody: what is offered, asked about and sent is ciphertext.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from zchunk.content import hashing, zeros
from zchunk.content.encryption import encrypted_row
from zchunk.content.hashing import FileDigest
from zchunk.content.manifest import IDENTITY, TAG_BYTES, ChunkRow, Manifest, chunk_count, chunk_length
from zchunk.errors import (
    FileChanged,
    Interrupted,
    MalformedMessage,
    ManifestInvalid,
    NotYetStored,
    PeersUnsure,
    PeerUnreachable,
    StorageUnavailable,
    TooFewPeers,
    ZchunkError,
)
from zchunk.limits.memory_shares import room_for_chunks
from zchunk.node import job_events
from zchunk.node.bulk.job_driver import Emit, JobDriver, Log
from zchunk.node.bulk.location import check_answered, found_holders
from zchunk.node.bulk.plane import OFFER_TIMEOUT_S, TRACKER_TIMEOUT_S, BulkPlane
from zchunk.node.bulk.progress import Progress
from zchunk.node.control.plane import checked, expect
from zchunk.node.job_events import MissingPeer, RefusingPeer, Waiting
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
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.upload_keys import Encryption
from zchunk.placement import refusals_text, takers_text
from zchunk.protocol import columns
from zchunk.protocol.messages import (
    Abandon,
    BlockTaken,
    ChunksFound,
    Commit,
    Committed,
    Conclude,
    FindChunks,
    Message,
    Offer,
    Offered,
    Ok,
    PeerRecord,
    Plan,
    Planned,
    PutBlock,
    PutManifest,
    Renew,
)
from zchunk.runtime import log_ids
from zchunk.system import disk
from zchunk.system.buffers import Buffer, BufferPool

log = logging.getLogger(__name__)

_MANIFEST_TRIES = 3
_CONCLUDE_S = 2.0
#: A refused commit is mended so often, each time after a pause: mostly a peer went, and the
#: event that says so to the job is on its way.
_MENDS = 3
_MEND_PAUSE_S = 1.0
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
        self._keep_at = keep_at
        self._encryption = encryption
        self._settings = bulk.settings.transfer
        self._targets = assignment(plan, planned)
        self._job = self._new_job()
        super().__init__(bulk, self._job, emit)
        count = chunk_count(plan.size, plan.chunk_size)
        self._rows: list[ChunkRow | None] = [None] * count
        #: SHA-256 -> a chunk of these bytes; zeros, for one, come again and again
        self._first_of: dict[bytes, int] = {}
        #: chunk -> what is sent of it, until it has its copies
        self._buffers: dict[int, Buffer] = {}
        #: chunk -> its plain bytes, until the file's digest took them in; the same memory where
        #: nothing is encrypted
        self._plain: dict[int, Buffer] = {}
        self._pool = self._pool_of(self._budget)
        self._plain_pool = self._pool_of(bulk.settings.transfer.receive_budget // 2)
        #: chunks that wait for memory for their plain bytes, in order
        self._unread: deque[int] = deque()
        self._digest = FileDigest()
        self._next_digest = 0
        self._digest_busy = False
        self._all_stored = False
        self._manifest: Manifest | None = None
        self._keeping = False
        #: raised when a peer goes after everything was stored: older answers do not count
        self._round = 0
        #: what each peer said that refused something last
        self._reasons: dict[str, str] = {}
        #: refusals of the commit so far; when the last one is to be mended, and what it was
        self._mends = 0
        self._mend_at: float | None = None
        self._refusal: ZchunkError | None = None
        self._progress = Progress(emit, job_id, plan.size, count)
        self._started = 0.0
        self._stop_watching: Callable[[], None] | None = None
        self._handlers: dict[type[Action], Callable[[Any], None]] = {
            ReadChunk: self._read,
            FindHolders: self._find,
            OfferChunk: self._offer,
            SendBlock: self._send,
            ReleaseChunk: self._release,
            Replan: self._replan,
            Resumed: self._resumed,
            StateChanged: self._state_changed,
            AllStored: self._stored_all,
            Failed: lambda action: self.fail(action.error),
        }

    @property
    def log(self) -> Log:
        return log_ids.of(log, "upload", self._plan.upload_id)

    def _new_job(self) -> UploadJob:
        plan, transfer = self._plan, self._settings
        return UploadJob(
            sizes=[self._length(index) + self._overhead for index in range(len(self._targets))],
            assignment=self._targets,
            replicas=plan.replicas,
            min_peers=plan.min_peers if plan.distribute else 1,
            undivided=not plan.distribute,
            own_peer=plan.own_peer,
            up={},
            limits=Limits(
                budget=self._budget,
                block_min=transfer.block_size_min,
                block_max=max(transfer.block_size_min, min(transfer.block_size_max, _MAX_BLOCK)),
                stall_s=transfer.request_timeout_s,
            ),
        )

    # -- memory ---------------------------------------------------------------------

    @property
    def _overhead(self) -> int:
        """Bytes that a chunk is longer as it is stored."""
        return 0 if self._encryption is None else TAG_BYTES

    @property
    def _budget(self) -> int:
        """Bytes of chunks, as they are stored, that may be in memory."""
        setting = self._settings.receive_budget // (1 if self._encryption is None else 2)
        return room_for_chunks(setting, self._plan.chunk_size + self._overhead)

    def _pool_of(self, budget: int) -> BufferPool:
        """Each chunk is rounded up to pages."""
        return BufferPool(budget + disk.ALIGNMENT * (budget // self._plan.chunk_size + 1))

    def _reserve(self, pool: BufferPool, size: int) -> Buffer | None:
        """None: not now, or it was told that there is no memory at all."""
        try:
            return pool.try_reserve(size)
        except StorageUnavailable as error:
            self.fail(error)
            return None

    def _length(self, index: int) -> int:
        return chunk_length(self._plan.size, self._plan.chunk_size, index)

    def _stored_view(self, index: int) -> memoryview:
        return self._buffers[index].view(self._length(index) + self._overhead)

    def _drop_plain(self, index: int) -> None:
        """Nobody needs its plain bytes any more, but who sends them."""
        plain = self._plain.pop(index)
        if self._encryption is not None:
            plain.release()
            self._read_next()

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
        times = (super().deadline(), self._progress.deadline(), self._mend_at)
        return min(t for t in times if t is not None)

    def on_time(self, now: float) -> None:
        super().on_time(now)
        if not self.ended:
            self._progress.on_time(now, self._job.chunks_completed, self._job.bytes_sent)
            if self._mend_at is not None and self._mend_at <= now:
                self._mend(now)

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

    def _release(self, action: ReleaseChunk) -> None:
        buffer = self._buffers.pop(action.chunk)
        buffer.release() if action.clean else buffer.discard()

    def _stored_all(self, action: AllStored) -> None:
        self._all_stored = True
        self._finish_if_ready()

    def _resumed(self, action: Resumed) -> None:
        name = self.peer_name(action.peer_id)
        self.emit(job_events.Resumed(job_id=self.job_id, peer_id=action.peer_id, name=name))

    # -- reading and hashing, once --------------------------------------------------

    def _read(self, action: ReadChunk) -> None:
        index = action.chunk
        buffer = self._reserve(self._pool, self._length(index) + self._overhead)
        if self.ended:
            return
        assert buffer is not None  # the job's budget is less than the pool's
        self._buffers[index] = buffer
        self._unread.append(index)
        self._read_next()

    def _read_next(self) -> None:
        """Those that have memory for their plain bytes too."""
        while self._unread and not self.ended:
            index = self._unread[0]
            plain = self._buffers[index]
            if self._encryption is not None:
                found = self._reserve(self._plain_pool, self._length(index))
                if found is None:
                    return
                plain = found
            self._unread.popleft()
            self._plain[index] = plain
            self._hash(index, plain.view(self._length(index)), self._stored_view(index))

    def _hash(self, index: int, plain: memoryview, stored: memoryview) -> None:
        def work() -> ChunkRow:
            chunk_size = self._plan.chunk_size
            hole = self.source.is_hole(index, chunk_size)
            if hole:
                plain[:] = zeros.view(len(plain))
            else:
                self.source.read_chunk(index, chunk_size, plain)
            return self._row(index, plain, stored, hole=hole)

        def then(row: ChunkRow) -> None:
            if self._rows[index] not in (None, row):
                self.fail(
                    FileChanged(f"{self.source.path} changed while it was being uploaded; upload it again")
                )
                return
            self._rows[index] = row
            first = self._first_of.setdefault(row.sha256, index)
            if index < self._next_digest:  # it was read again
                self._drop_plain(index)
            self._digest_next()
            self.perform(self._job.read(index, self.now(), first if first != index else None))

        self.submit(self.bulk.pools.hashing, work, then)

    def _row(self, index: int, plain: memoryview, stored: memoryview, *, hole: bool) -> ChunkRow:
        """The chunk's row; encrypts it into `stored`, if that is asked for."""
        if self._encryption is None and hole:
            return ChunkRow(len(plain), IDENTITY, *zeros.digests(len(plain)), None)
        if self._encryption is None:
            return ChunkRow(len(plain), IDENTITY, hashing.sha256(plain), hashing.blake3(plain), None)
        return encrypted_row(*self._encryption.key.encrypt_chunk(index, self._plan.chunk_size, plain, stored))

    def _digest_next(self) -> None:
        """Feed the file's digest, in order, from chunks that are in memory."""
        index = self._next_digest
        if self._digest_busy or index >= len(self._rows) or self._rows[index] is None:
            self._finish_if_ready()
            return
        self._digest_busy = True
        view = self._plain[index].view(self._length(index))

        def then(_: None) -> None:
            self._digest_busy = False
            self._next_digest += 1
            self._drop_plain(index)
            self.perform(self._job.digested(index, self.now()))
            self._digest_next()

        self.submit(self.bulk.pools.digesting, lambda: self._digest.update(view), then)

    # -- who has it already -----------------------------------------------------------

    def _find(self, action: FindHolders) -> None:
        chunks = action.chunks
        rows = [self._rows[index] for index in chunks]
        ask = FindChunks(hashes=b"".join(row.sha256 for row in rows if row is not None))

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
        row = self._rows[action.chunk]
        assert row is not None
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
        row = self._rows[action.chunk]
        assert row is not None
        block = PutBlock(
            upload_id=self._plan.upload_id,
            sha256=row.sha256,
            offset=action.offset,
            data=self._stored_view(action.chunk)[action.offset : action.offset + action.length],
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
        self._reasons[action.peer_id] = error.message
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
            self._all_stored = False
            self._round += 1
            self._mend_at = None
        if action.state is UploadState.WAITING:
            self.emit(self._waiting_event())

    def _waiting_event(self) -> Waiting:
        """For whom the job waits, since when, for how many chunks, and how many peers it takes."""
        missing, why = self._job.copies.missing(), self._job.blocked
        own = self._refusing()
        told = _told_refusing(why) if why is not None else []
        refusing = own + [row for row in told if row.peer_id not in {mine.peer_id for mine in own}]
        event = self._waits_for(self.missing_rows(missing, self._why_missing))
        event = dataclasses.replace(event, refusing=tuple(refusing))
        if why is None:
            return event
        message = _why_it_waits(why, own, refusing)
        return dataclasses.replace(event, message=message, details=why.details)

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return dataclasses.replace(self._waits_for(missing), busy=True)

    def _waits_for(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return Waiting(
            job_id=self.job_id,
            missing=missing,
            chunks_missing=self._job.chunks_count - self._job.chunks_completed,
            chunks_completed=self._job.chunks_completed,
            chunks_count=self._job.chunks_count,
            waiting_since=self.wall_text(),
        )

    def _why_missing(self, peer_id: str) -> str:
        if peer_id in self.bulk.unreachable:
            return "unreachable"
        return "refuses" if peer_id in self._job.refusing else "offline"

    def _refusing(self) -> list[RefusingPeer]:
        """Peers that are up and take nothing, and what each said."""
        away = self.bulk.unreachable
        known = [p for p in self._job.refusing if p in self._reasons and p not in away]
        return [RefusingPeer(peer_id, self.peer_name(peer_id), self._reasons[peer_id]) for peer_id in known]

    # -- manifest and commit --------------------------------------------------------

    def _finish_if_ready(self) -> None:
        digested = self._next_digest == len(self._rows)
        if not (self._all_stored and digested) or self.ended:
            return
        if self._keeping:
            return
        if self._manifest is None:
            self._keeping = True
            self.submit(self.bulk.pools.writing, self._made_manifest, self._kept)
        else:
            self._put_manifests()

    def _made_manifest(self) -> Manifest:
        """Raises FileChanged."""
        rows = tuple(row for row in self._rows if row is not None)
        plan = self._plan
        manifest = Manifest(self.name, plan.size, self._digest.digest(), plan.chunk_size, rows)
        if self._encryption is not None:
            manifest = self._encryption.manifest(manifest)
        self.source.check_unchanged()
        try:
            self._keep(manifest)
        except ZchunkError as error:
            # The nodes keep it too, and the same put finds the same file.
            self.log.warning("the manifest of %s could not be kept here: %s", self.source.path, error.message)
        return manifest

    def _keep(self, manifest: Manifest) -> None:
        """Durable before the commit."""
        path = self._keep_at / manifest.file_id
        with disk.storage_errors(path, "writing"):
            disk.private_folder(self._keep_at)
        disk.write_durable(path, manifest.canonical)

    def _kept(self, manifest: Manifest) -> None:
        self._manifest, self._keeping = manifest, False
        self._finish_if_ready()  # a peer may have gone meanwhile

    def _put_manifests(self) -> None:
        holders = self._job.all_holders() or [record.peer_id for record in self._planned.peers]
        waiting = set(holders)
        until = self.now() + self.bulk.settings.transfer.request_timeout_s

        def stored(peer_id: str) -> None:
            waiting.discard(peer_id)
            if not waiting and self._all_stored:
                self._commit()

        for peer_id in holders:
            self._put_manifest(peer_id, stored, _MANIFEST_TRIES, until)

    def _put_manifest(self, peer_id: str, stored: Callable[[str], None], tries: int, until: float) -> None:
        """A peer that has not taken it by then is given up, as one that takes no chunk."""
        assert self._manifest is not None
        message = PutManifest(
            upload_id=self._plan.upload_id,
            file_id=self._manifest.file_id,
            manifest=self._manifest.canonical,
        )
        this_round = self._round

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended or this_round != self._round:
                return  # a peer went: the job starts over with what is left
            problem = expect(Ok, reply, error)
            again = isinstance(problem, (PeerUnreachable, ManifestInvalid)) and self.now() < until
            if isinstance(problem, Ok):
                stored(peer_id)
            elif again and tries > 1:
                self._put_manifest(peer_id, stored, tries - 1, until)
            elif isinstance(problem, ManifestInvalid) or not self._rows:
                self.fail(problem)  # every peer would say so; an empty file can go nowhere else
            else:
                self._manifest_refused(peer_id, problem)

        self.bulk.links.request(peer_id, message, self.bulk.settings.transfer.request_timeout_s, answer)

    def _manifest_refused(self, peer_id: str, problem: ZchunkError) -> None:
        """What it holds does not count: that goes elsewhere, or waits for it by name."""
        self.log.info("%s does not keep the manifest: %s", self.peer_name(peer_id), problem.message)
        self._reasons[peer_id] = f"it does not keep the file's manifest: {problem.message}"
        self.perform(self._job.given_up(peer_id, self.now()))

    def _commit(self, tries: int = _MANIFEST_TRIES) -> None:
        assert self._manifest is not None
        plan = self._plan
        commit = Commit(
            upload_id=plan.upload_id,
            replicas=plan.replicas,
            min_peers=plan.min_peers,
            distribute=plan.distribute,
            file_id=self._manifest.file_id,
            manifest=self._manifest.canonical,
        )
        this_round = self._round

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self.ended or (this_round != self._round and not isinstance(reply, Committed)):
                return  # refused for what the job is mending already
            try:
                committed = checked(expect(Committed, reply, error))
                check_answered(commit.file_id, committed.file)
            except ZchunkError as problem:
                self._not_committed(problem, tries)
            else:
                self._conclude(committed)

        self.bulk.control.request(commit, TRACKER_TIMEOUT_S, self.bulk.loop, answer)

    def _not_committed(self, problem: ZchunkError, tries: int) -> None:
        if isinstance(problem, ManifestInvalid) and tries > 1:
            self._commit(tries - 1)  # damaged on its way
        elif isinstance(problem, (NotYetStored, TooFewPeers)) and self._mends < _MENDS:
            self._mends += 1
            self._refusal, self._mend_at = problem, self.now() + _MEND_PAUSE_S
        else:
            self.fail(problem)

    def _mend(self, now: float) -> None:
        """No peer went, and yet the tracker misses copies: a node lost them, or its report
        was lost. Only the chunks that it names, where it names them all."""
        assert self._refusal is not None
        self.log.info("the commit was refused: %s", self._refusal.message)
        self._mend_at = None
        named = self._refusal.details.get("first_missing")
        listed = named if isinstance(named, (list, tuple)) else ()
        known = [index for index in listed if type(index) is int and 0 <= index < len(self._rows)]
        all_named = known and len(known) == self._refusal.details.get("chunks_missing")
        self.perform(self._job.doubted(known if all_named else None, now))

    def _conclude(self, committed: Committed) -> None:
        """End the leases, so that a removal frees the space at once. A node that does not
        hear it lets them run out."""
        waiting = set(self._job.all_holders())
        if not waiting:
            self._done(committed)

        def answer(peer_id: str) -> None:
            waiting.discard(peer_id)
            if not waiting and not self.ended:
                self._done(committed)

        for peer_id in sorted(waiting):
            self.bulk.links.request(
                peer_id,
                Conclude(upload_id=self._plan.upload_id),
                _CONCLUDE_S,
                lambda reply, error, peer_id=peer_id: answer(peer_id),  # type: ignore[misc]
            )

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
                sha256=self._digest.digest().hex(),
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


def _told_refusing(why: ZchunkError) -> list[RefusingPeer]:
    """As the tracker has it; it was not asked of those that are avoided."""
    rows = why.details.get("refusing")
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, (list, tuple)) else []
    return [RefusingPeer(*(str(row.get(key, "")) for key in ("peer_id", "name", "reason"))) for row in known]


def _why_it_waits(why: ZchunkError, own: Sequence[RefusingPeer], refusing: Sequence[RefusingPeer]) -> str:
    """The tracker counts those it was not told to avoid: who refuses, and which of them refused us,
    is up all the same."""
    if not own or isinstance(why, PeersUnsure):
        return why.message
    if not isinstance(why, TooFewPeers):
        return f"{why.message}; {refusals_text([(row.name, row.reason) for row in own])}"
    return f"{takers_text(why)}; {refusals_text([(row.name, row.reason) for row in refusing])}"
