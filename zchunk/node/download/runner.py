"""Carries out a download job: the part file, the file's digest, the finish.

Decisions are `DownloadJob`'s; how its chunks come is `Fetcher`'s. Everything here runs in
the bulk loop; blocking work goes to its threads. What the user sees comes out as events
(node/job_events.py) through `emit`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from zchunk.clock import iso_utc
from zchunk.errors import Cancelled, IntegrityError, Interrupted, InvalidUsage, ZchunkError
from zchunk.node import job_events
from zchunk.node.bulk.job_driver import Emit, Log
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.bulk.progress import Progress
from zchunk.node.control.hello_wait import HelloWait
from zchunk.node.download.actions import Action, ChunkState, JobState, removed_meanwhile
from zchunk.node.download.fetcher import ChunkList, Fetcher, budget_of, new_job
from zchunk.node.download.holders import HoldersOfFile
from zchunk.node.download.part_file import PartFile
from zchunk.node.download.preparing import Preparing
from zchunk.node.download.reports import partial, plan_event
from zchunk.node.download.running_digest import RunningDigest
from zchunk.node.download.sinks import PartFileSink
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.runtime import log_ids

log = logging.getLogger(__name__)

#: The journal is a hint (the content decides), so it is not written for each chunk.
_SAVE_EVERY_S = 10.0
#: So often chunks that turned out bad on our own disk are fetched again.
_BAD_ROUNDS = 3


class Download:
    """One download into one part file. `start`, then events; ends with exactly one `done`
    or `error` event. `stop` makes it end early, kept."""

    def __init__(
        self,
        *,
        bulk: BulkPlane,
        where: Location,
        part: PartFile,
        wait: bool,
        emit: Emit,
        auto_resume: bool = True,
        on_state: Callable[[JobState], None] = lambda state: None,
    ) -> None:
        """The manifest of an encrypted file was opened (content/encryption.py).
        `wait`: stay for missing peers; else end as partial when only they are left.
        `auto_resume`: go on by itself when one is back; else only after `resume`.
        `on_state` hears of each change of the job's state."""
        self.bulk = bulk
        self.where = where
        self.manifest = where.manifest
        self.emit = emit
        self.part = part
        self.ended = False
        #: wall time since when nothing but missing peers is left; None while it is not so
        self.waiting_since: float | None = None
        self._wait = wait
        self._hellos = HelloWait()
        self._auto_resume = auto_resume
        self._on_state = on_state
        #: whether it was looked at what is kept, and the rest is being fetched
        self._fetching = False
        #: told to pause before that
        self._pause_at_start = False
        self._digested_in_pause: bytes | None = None
        chunks = ChunkList.of_file(where)
        self._opened = chunks.opened
        self._job = new_job(bulk, chunks, auto_resume)
        self._sink = PartFileSink(part, bulk.pools.writing, self._new_digest())
        self._fetcher = Fetcher(
            bulk=bulk,
            chunks=chunks,
            job=self._job,
            sink=self._sink,
            holders=HoldersOfFile(bulk, self.manifest.file_id, self.log),
            owner=self,
            emit=emit,
            log=self.log,
            job_id=part.job_id,
        )
        self._progress = Progress(emit, part.job_id, self.manifest.size, len(self.manifest.chunks))
        self._started = 0.0
        #: when the journal is written next, and how many chunks it had the last time
        self._save_at, self._saved = 0.0, 0
        self._finishing = False
        self._bad_rounds = 0

    @property
    def log(self) -> Log:
        return log_ids.of(log, "job", self.part.job_id)

    # -- the owner's calls, in the bulk loop ----------------------------------------

    def start(self) -> None:
        """Looks at what an earlier run kept, if there was one, then fetches the rest."""
        if self.ended:
            return
        self._started = self._now()
        self._save_at = self._started + _SAVE_EVERY_S
        if self.part.is_new:
            self._scanned(set(self.part.zeros), None)
        else:
            self.bulk.pools.digesting.submit(self._scan, self._scanned)

    def _scan(self) -> set[int]:
        """In a thread; given up when the download has ended."""
        loop, chunk_size = self.bulk.loop, self.manifest.chunk_size
        preparing = Preparing(
            lambda event: loop.post(lambda: None if self.ended else self.emit(event)),
            loop.clock,
            job_id=self.part.job_id,
            target=str(self.part.target),
            size=self.manifest.size,
        )

        def looked_at(chunks: int, _: int) -> None:
            if self.ended:
                raise Interrupted("the download has ended")
            preparing.looked_at(min(chunks * chunk_size, self.manifest.size))

        looked_at(0, 0)
        return self.part.scan(looked_at)

    def stop(self, error: ZchunkError | None = None) -> None:
        """End now and keep what is there; the outcome is `error` (default: interrupted).
        Too late when the file is being put in its place: then that is the outcome."""
        if self._finishing:
            return
        if self._fetching:
            self._perform(self._job.pause(self._now()))
        how = f"`zchunk resume {self.part.job_id}`, or the same command, continues"
        self._end(error or Interrupted(f"interrupted; what is downloaded is kept: {how}"))

    def pause(self) -> None:
        """Stand still until `resume`; what is there is saved. Does nothing while paused.
        Raises InvalidUsage when it is too late."""
        if not self._fetching and not self.ended:
            self._pause_at_start = True
            return
        self._check_under_way("pause")
        if self._job.state is JobState.PAUSED:
            return
        self._perform(self._job.pause(self._now()))
        self._save_journal()
        self.emit(self._paused_event(job_events.Paused))

    def resume(self) -> None:
        """Go on after a pause, or with peers that came back while auto-resume is off. Does
        nothing while it runs. Raises InvalidUsage when it is too late."""
        self._pause_at_start = False
        if not self._fetching and not self.ended:
            return
        self._check_under_way("resume")
        paused = self._job.state is JobState.PAUSED
        actions = self._job.resume(self._now())
        if paused:
            self.emit(self._paused_event(job_events.Continued))
        self._perform(actions)

    def cancel(self) -> None:
        """End, and delete what is there. Raises InvalidUsage when it is too late."""
        if self._fetching:
            self._check_under_way("cancel", and_also=JobState.VERIFYING)
            self._perform(self._job.cancel(self._now()))
        elif self.ended:
            raise self._too_late("cancel")
        self._end(Cancelled(f"cancelled; nothing of {self.part.target} is kept"), self.part.abandon)

    def _check_under_way(self, verb: str, and_also: JobState | None = None) -> None:
        allowed = (JobState.RUNNING, JobState.WAITING, JobState.PAUSED, and_also)
        if self.ended or self._finishing or self.state not in allowed:
            raise self._too_late(verb)

    def _too_late(self, verb: str) -> InvalidUsage:
        state = "ended" if self.ended else "complete and being verified"
        return InvalidUsage(f"job {self.part.job_id} is {state}: too late to {verb} it")

    def _now(self) -> float:
        return self.bulk.loop.clock.monotonic()

    def _perform(self, actions: Sequence[Action]) -> None:
        self._fetcher.perform(actions)

    # -- what others ask, in the bulk loop --------------------------------------------

    @property
    def state(self) -> JobState:
        return JobState.PAUSED if self._pause_at_start else self._job.state

    def chunk_statuses(self) -> list[tuple[str, str | None]]:
        """(status, peer_id) of each chunk, as SPEC "DownloadJob" names them."""
        if self._fetching:
            return [self._job.view.status(index) for index in range(self._job.chunks_count)]
        kept = self.part.completed  # what the journal claims, until it is looked at
        count = len(self.manifest.chunks)
        return [("completed" if index in kept else "pending", None) for index in range(count)]

    def missing_names(self) -> dict[str, str]:
        """Peers that wanted chunks wait for -> their names."""
        missing = self._job.view.missing() if self._fetching else {}
        return {peer_id: self.bulk.name_of(peer_id) for peer_id in sorted(missing)}

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        save_at = self._save_at if self._is_unsaved() else None
        hellos_end = self._hellos.deadline() if self.state is JobState.WAITING else None
        times = [self._progress.deadline(), save_at, hellos_end]
        return min(t for t in times if t is not None)

    def on_time(self, now: float) -> None:
        # First: what may have changed is looked at now, and not a tenth of a second later again.
        self.after_actions()
        if self.ended:
            return
        self._progress.on_time(
            now, self._job.chunks_completed, self._job.bytes_received, peers=self._job.view.by_peer()
        )
        if self._save_at <= now and self._is_unsaved():
            self._save_journal()

    def _save_journal(self) -> None:
        self._save_at, self._saved = self._now() + _SAVE_EVERY_S, self._job.chunks_completed
        self._fetcher.submit(self.bulk.pools.writing, self.part.save, lambda _: None)

    def _is_unsaved(self) -> bool:
        """Whether the journal lacks chunks that are here."""
        return not self._finishing and self._job.chunks_completed != self._saved

    # -- start ----------------------------------------------------------------------

    def _scanned(self, held: set[int] | None, error: ZchunkError | None) -> None:
        if self.ended:
            return
        if error is not None:
            self._end(error)
            return
        self._fetcher.begin(held or set())
        self._fetching = True
        self.bulk.loop.add_timed(self)
        self.emit(plan_event(self.part, self.where, held or set()))
        if self._pause_at_start:
            self._pause_at_start = False
            self.pause()
        self._perform(self._job.start(self._now()))
        self._sink.digest.advance()

    def _new_digest(self) -> RunningDigest:
        return RunningDigest(
            part=self.part,
            workers=self.bulk.pools.digesting,
            reach=budget_of(self.bulk, self.manifest.chunk_size) // self.manifest.chunk_size,
            is_coming=lambda index: not self._job.view.is_missing(index),
            is_held=lambda index: self._job.view.chunk_state(index) is ChunkState.HELD,
            on_freed=lambda index: self._fetcher.freed(index),
            on_done=self._digested,
            on_error=lambda error: self._fetcher.fail(error),
        )

    # -- what the fetcher tells its owner ---------------------------------------------

    def after_actions(self) -> None:
        self._progress.touch()
        if self._hellos.deadline() is not None and self.state is JobState.WAITING:
            self._end_if_partial(self.waiting_event())
        digest = self._sink.digest
        if digest.waits and self._job.cannot_wait(digest.awaits, self._now()):
            digest.make_room()

    def state_changed(self, state: JobState) -> None:
        self.part.state = state.value
        self.waiting_since = self.bulk.loop.clock.wall() if state is JobState.WAITING else None
        self._on_state(state)
        if state is JobState.WAITING:
            self._waiting()

    def _waiting(self) -> None:
        event = self.waiting_event()
        self.emit(event)
        if self._wait:
            # For a long time perhaps: what is here is made safe, and the journal right.
            self._save_journal()
        else:
            self._end_if_partial(event)

    def _end_if_partial(self, event: Waiting) -> None:
        """Without waiting, unless peers may turn out to be up that the tracker has not heard from."""
        unsure = self._fetcher.is_unsure(event.missing_peers)
        if not self._hellos.waits(unsure, self.bulk.settings.tracker.lease_s, self._now()):
            self.stop(partial(event, self._chunks_text()))

    def waiting_event(self) -> Waiting:
        """For whom the job waits, since when, for how many chunks (SPEC D4)."""
        return Waiting(
            job_id=self.part.job_id,
            missing=self._fetcher.missing_rows(self._job.view.missing(), self._job.view.why_missing),
            auto_resume=self._auto_resume,
            chunks_missing=len(self._job.view.missing_chunks()),
            chunks_completed=self._job.chunks_completed,
            chunks_count=self._job.chunks_count,
            waiting_since=iso_utc(self.waiting_since or self.bulk.loop.clock.wall()),
        )

    def busy_event(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return Waiting(
            job_id=self.part.job_id,
            missing=missing,
            auto_resume=self._auto_resume,
            chunks_missing=self._job.chunks_count - self._job.chunks_completed,
            chunks_completed=self._job.chunks_completed,
            chunks_count=self._job.chunks_count,
            waiting_since=self._fetcher.wall_text(),
            busy=True,
        )

    def _paused_event(self, kind: type[job_events.Paused | job_events.Continued]) -> job_events.JobEvent:
        return kind(
            job_id=self.part.job_id,
            chunks_completed=self._job.chunks_completed,
            chunks_count=self._job.chunks_count,
        )

    def peer_back(self, peer_id: str) -> None:
        """It came back while auto-resume is off, and is asked only after `resume`."""
        name = self.bulk.name_of(peer_id)
        self.emit(job_events.PeerBack(job_id=self.part.job_id, peer_id=peer_id, name=name))

    def failed(self, error: ZchunkError) -> None:
        if error.details.get("removed"):
            kept = f"; {self._chunks_text()}: `zchunk cancel {self.part.job_id}` deletes them"
            error = removed_meanwhile(repr(self.manifest.name), kept)
        self._end(error)

    def _chunks_text(self) -> str:
        return f"{self._job.chunks_completed} of {self._job.chunks_count} chunks are kept"

    # -- the end --------------------------------------------------------------------

    def all_held(self) -> None:
        sha256, self._digested_in_pause = self._digested_in_pause, None
        if sha256 is not None:
            self._digested(sha256)
        else:
            self._sink.digest.advance()

    def _digested(self, sha256: bytes) -> None:
        if self.ended:
            return
        if self._job.state is JobState.PAUSED:
            # The last chunks were being written when it was told to stand still.
            self._digested_in_pause = sha256
            return
        if self.manifest.sha256 in (None, sha256):
            self._finishing = True
            self.bulk.pools.writing.submit(self.part.finish, self._finished)
            return
        self.log.warning("the file's SHA-256 is wrong; checking every chunk")
        self.bulk.pools.digesting.submit(
            lambda: self._sink.bad_chunks(self._opened, lambda: self.ended), self._found_bad
        )

    def _found_bad(self, bad: list[int] | None, error: ZchunkError | None) -> None:
        if self.ended:
            return
        if error is None and not bad:
            error = IntegrityError(
                f"all chunks of {self.manifest.name!r} are intact, but the file's SHA-256 does not match:"
                " its manifest is wrong; upload the file again from its source"
            )
        if error is not None:
            self._fetcher.fail(error)
            return
        self._bad_rounds += 1
        if self._bad_rounds > _BAD_ROUNDS:
            self._fetcher.fail(
                IntegrityError(
                    f"the disk of {self.part.target} changes what is written to it; check the disk"
                )
            )
            return
        for index in bad or []:
            self.part.unmark(index)
        self._sink.digest = self._new_digest()
        self._perform(self._job.want(bad or [], self._now()))

    def _finished(self, _: None, error: ZchunkError | None) -> None:
        if self.ended:
            return
        if error is not None:
            self._fetcher.fail(error)
            return
        self._job.complete(self._now())
        self._progress.last(
            self._job.chunks_completed, self._job.bytes_received, self._now(), peers=self._job.view.by_peer()
        )
        self._close()
        self.emit(self._done_event())

    def _done_event(self) -> job_events.Downloaded:
        return job_events.Downloaded(
            job_id=self.part.job_id,
            file_id=self.manifest.file_id,
            name=self.manifest.name,
            target=str(self.part.target),
            size=self.manifest.size,
            sha256=self.manifest.sha256.hex() if self.manifest.sha256 is not None else None,
            seconds=round(self._now() - self._started, 3),
            bytes_received=self._job.bytes_received,
            bytes_received_by_peer=dict(sorted(self._fetcher.received_from.items())),
            chunks_count=self._job.chunks_count,
            chunks_read_back=self._sink.digest.read_back,
        )

    def _end(self, error: ZchunkError, close_part: Callable[[], None] | None = None) -> None:
        """Close the part file (by default: keep it) once its threads are through, then tell
        the outcome."""
        if self.ended:
            return
        received = self._job.bytes_received
        self._close()

        def told(_: None, problem: ZchunkError | None) -> None:
            outcome = problem or error
            outcome.details.setdefault("job_id", self.part.job_id)
            outcome.details.setdefault("bytes_received", received)
            self.emit(job_events.Failed(job_id=self.part.job_id, error=outcome))

        # Through both threads that use the file: what they still do comes before.
        writing = self.bulk.pools.writing
        self.bulk.pools.digesting.submit(
            lambda: None, lambda value, problem: writing.submit(close_part or self._keep_part, told)
        )

    def _keep_part(self) -> None:
        try:
            if not self.part.closed:
                self.part.save()
        except ZchunkError as problem:
            # The journal is a hint; the content is found again by the next run's scan.
            self.log.warning("the job's journal could not be written: %s", problem.message)
        finally:
            self.part.keep()

    def _close(self) -> None:
        self.ended = True
        self._fetcher.leave()
        if self._fetching:
            self.bulk.loop.remove_timed(self)
        self._sink.digest.close()
        self.bulk.links.acknowledge_all()
