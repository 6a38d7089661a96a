"""A running download that other commands of the same user can steer, and how they do it.

`KeptJob` runs in the bulk loop of the process that downloads: it listens at a Unix socket beside
the job's file (transport/unix_socket.py), writes where that is into the file, answers `steer_job`, and
keeps the file up to date. `steer` is the other side.

What may not happen here: an order of another user obeyed; `cancelled` said before the part is
gone; a run that has begun, or ended, without its record durable, where the home's disk takes one.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from zchunk.clock import iso_utc
from zchunk.errors import (
    Cancelled,
    Interrupted,
    InvalidUsage,
    MalformedMessage,
    NotFound,
    PartialDownload,
    PeerUnreachable,
    UnknownMessage,
    ZchunkError,
)
from zchunk.node.bulk.location import MAX_LISTED
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.download.actions import JobState
from zchunk.node.job_events import Done, Failed, JobEvent, Waiting
from zchunk.node.jobs.records import JobBook, JobRecord, JobStatus, identity
from zchunk.protocol import columns, wire
from zchunk.protocol.messages import CHUNK_STATUSES, ErrorReply, Job, Message, SteerJob
from zchunk.runtime import log_ids
from zchunk.transport.base import Arrival, Received
from zchunk.transport.unix_socket import LocalClient, LocalServer

log = logging.getLogger(__name__)

#: What ends a run and leaves the job to be resumed, without anything being wrong.
_STOPPED = (Interrupted, PartialDownload)


class Steered(Protocol):
    """What `get.Download` is to this module. Called in the bulk loop."""

    waiting_since: float | None

    def start(self) -> None: ...

    def stop(self, error: ZchunkError | None = None) -> None: ...

    def pause(self) -> None:
        """Raises InvalidUsage where it is too late."""

    def resume(self) -> None: ...

    def cancel(self) -> None:
        """Raises InvalidUsage where it is too late."""

    @property
    def state(self) -> JobState: ...

    def chunk_statuses(self) -> Sequence[tuple[str, str | None]]: ...

    def missing_names(self) -> dict[str, str]: ...


def _nothing() -> None:
    """What follows on a record that only its order matters of."""


class KeptJob:
    """One run of a job. Its owner makes the download with `emit` and `state_changed` of
    this, gives it to `attach`, and posts `start`."""

    def __init__(
        self,
        *,
        bulk: BulkPlane,
        book: JobBook,
        record: JobRecord,
        emit: Callable[[JobEvent], None],
    ) -> None:
        self.record = record
        self._bulk = bulk
        self._book = book
        self._emit = emit
        self._download: Steered
        self._door: LocalServer | None = None
        self._has_ended = False
        #: of the records to be saved; the highest that was
        self._numbers = itertools.count(1)
        self._saved = 0
        self._saving = threading.Lock()
        self._told_unrecorded = False
        #: connections that wait for the cancellation to be done, with their requests
        self._cancelling: list[tuple[bytes, int]] = []

    def attach(self, download: Steered) -> None:
        self._download = download

    # -- the owner's calls, in the bulk loop ----------------------------------------

    def start(self) -> None:
        """Listens, makes the record durable, then starts the download."""
        self._listen()
        record = self.record

        def work() -> None:
            self._book.save(record)
            self._book.prune()

        def then(_: None, error: ZchunkError | None) -> None:
            if error is not None:
                self._unrecorded(error)
            self._download.start()

        self._bulk.pools.writing.submit(work, then)

    def _listen(self) -> None:
        """Who runs a job holds the lock beside its target, so nobody else listens by this name."""
        try:
            self._door = LocalServer(self._book.folders[0], f"{self.record.job_id}.sock")
        except OSError as error:
            log.warning("other commands cannot control job %s: %s", self.record.job_id, error)
            return
        self._bulk.loop.add_socket(self._door, self._on_message)
        self.record = replace(self.record, endpoint=self._door.endpoint)

    def stop(self) -> None:
        self._download.stop()

    def _unrecorded(self, error: ZchunkError) -> None:
        """The home's disk is full, say, and the target's is not: what lies beside the target is
        what counts. Said once."""
        log.log(
            logging.INFO if self._told_unrecorded else logging.WARNING,
            "job %s continues without its record: %s; `zchunk jobs` and `pause` may not find it",
            self.record.job_id,
            error.message,
        )
        self._told_unrecorded = True

    # -- what the download tells ------------------------------------------------------

    def emit(self, event: JobEvent) -> None:
        """Events on their way to the user; the last one passes when its record is durable."""
        if isinstance(event, Waiting) and not event.busy:
            self.record = replace(
                self.record,
                state=JobState.WAITING.value,
                missing_peers=event.missing_peers,
                missing_names=tuple(row.name for row in event.missing),
                waiting_since=event.waiting_since,
            )
            self._save()
        if isinstance(event, Done | Failed):
            self._ended(event)
        else:
            self._emit(event)

    def state_changed(self, state: JobState) -> None:
        """`verifying` is durable before the file can get its name: it goes through the
        thread that does that. Waiting, and the end, are told as events."""
        if state in (JobState.RUNNING, JobState.PAUSED, JobState.VERIFYING):
            self.record = replace(self.record, state=state.value, waiting_since=None)
            self._save(_nothing if state is JobState.VERIFYING else None)

    def _ended(self, event: Done | Failed) -> None:
        error = event.error if isinstance(event, Failed) else None
        state = JobState.COMPLETE if error is None else _state_after(error)
        at = iso_utc(self._bulk.loop.clock.wall())
        self._has_ended = True
        self.record = self.record.ended(state.value, at, error.message if error is not None else None)

        def then() -> None:
            self._answer_cancelling()
            self._leave()
            self._emit(event)

        self._save(then)

    def _save(self, then: Callable[[], None] | None = None) -> None:
        """Durable soon; with `then`, before it runs, and behind what the part file's thread does.
        Else another thread does it: a disk that takes its time to sync must not hold up the
        first chunk of a peer that is back."""
        record, number = self.record, next(self._numbers)
        pools = self._bulk.pools

        def work() -> None:
            with self._saving:  # the latest wins, whichever thread is slower
                if number > self._saved:
                    self._book.save(record)
                    self._saved = number

        def done(_: None, error: ZchunkError | None) -> None:
            if error is not None:
                self._unrecorded(error)
            if then is not None:
                then()

        (pools.hashing if then is None else pools.writing).submit(work, done)

    def _leave(self) -> None:
        if self._door is not None:
            self._bulk.loop.remove_socket(self._door)
            self._door = None

    # -- orders -----------------------------------------------------------------------

    def _on_message(self, received: Arrival) -> None:
        if not isinstance(received, Received):
            return
        request_id: int | None = None
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
            request_id = envelope.request_id
            self._obey(received.connection, request_id, self._checked(envelope.message))
        except ZchunkError as error:
            request_id = error.details.get("request_id", request_id)
            log_ids.of(log, "job", self.record.job_id).info("refused %s: %s", error.code, error.message)
            if request_id is not None:
                self._reply(received.connection, request_id, wire.error_reply(error))
            elif self._door is not None:
                self._door.reject(received)  # it cannot be answered

    def _checked(self, message: Message) -> SteerJob:
        if not isinstance(message, SteerJob):
            raise UnknownMessage(f"a download does not answer {message.TYPE!r}")
        if message.job_id != self.record.job_id:
            raise NotFound(f"this process runs job {self.record.job_id}, not {message.job_id}")
        return message

    def _obey(self, connection: bytes, request_id: int, order: SteerJob) -> None:
        if self._has_ended and order.action != "show":
            raise InvalidUsage(f"job {self.record.job_id} has just ended: it is {self.record.state}")
        if order.action == "cancel":
            self._download.cancel()
            self._cancelling.append((connection, request_id))
            return
        if order.action == "pause":
            self._download.pause()
        elif order.action == "resume":
            self._download.resume()
        self._reply(connection, request_id, self._report())

    def _answer_cancelling(self) -> None:
        for connection, request_id in self._cancelling:
            self._reply(connection, request_id, self._report())

    def _reply(self, connection: bytes, request_id: int, message: Message) -> None:
        # Who does not take it runs into its deadline.
        if self._door is not None:
            self._door.send(wire.encode(message, request_id), connection)

    def _report(self) -> Job:
        statuses = self._download.chunk_statuses()
        names = self._download.missing_names()
        since = self._download.waiting_since
        kinds = [status for status, _ in statuses]
        listed = statuses if len(statuses) <= MAX_LISTED else []
        peers = sorted({peer_id for _, peer_id in listed if peer_id is not None})
        place = {peer_id: at for at, peer_id in enumerate(peers)}
        state = self.record.state if self._has_ended else self._download.state.value
        return Job(
            job_id=self.record.job_id,
            state=state,
            auto_resume=self.record.auto_resume,
            **{status: kinds.count(status) for status in CHUNK_STATUSES},
            missing_peers=tuple(names),
            missing_names=tuple(names.values()),
            waiting_since_ms=int(since * 1000) if since is not None else None,
            peers=tuple(peers),
            chunk_status=columns.pack(2, (CHUNK_STATUSES.index(status) for status, _ in listed)),
            chunk_peer=columns.pack(
                2, (place[peer] if peer is not None else columns.NOBODY for _, peer in listed)
            ),
        )


def _state_after(error: ZchunkError) -> JobState:
    if isinstance(error, Cancelled):
        return JobState.CANCELLED
    return JobState.PAUSED if isinstance(error, _STOPPED) else JobState.FAILED


# -- the other side -------------------------------------------------------------------


def steer(record: JobRecord, action: str, timeout_s: float) -> JobStatus:
    """Asks the process that runs the job; blocks.

    Raises NotFound where none does, PeerUnreachable where it does not answer in time, and what the
    download answers.
    """
    assert record.endpoint is not None
    order = wire.encode(SteerJob(job_id=record.job_id, action=action), 1)
    who = "process"
    try:
        with LocalClient(record.endpoint, timeout_s) as line:
            who = line.process
            answer = line.ask(order)
    except TimeoutError:
        raise PeerUnreachable(
            f"the {who} that runs job {record.job_id} does not answer; stop it, then try again"
        ) from None
    return _status(record, wire.decode(answer).message)


def _status(record: JobRecord, answer: Message) -> JobStatus:
    if isinstance(answer, ErrorReply):
        raise wire.raised(answer)
    if not isinstance(answer, Job):
        raise UnknownMessage(f"an answer of type {answer.TYPE!r} from job {record.job_id}")
    counts = {status: getattr(answer, status) for status in CHUNK_STATUSES}
    if answer.job_id != record.job_id or sum(counts.values()) != record.chunks_count:
        raise MalformedMessage(f"the answer of job {record.job_id} does not fit it")
    since = answer.waiting_since_ms
    return JobStatus(
        **identity(record),
        state=answer.state,
        chunks_progress=_progress(record, answer),
        chunks_status=counts,
        missing_peers=answer.missing_peers,
        missing_names=answer.missing_names,
        waiting_since=iso_utc(since / 1000) if since is not None else None,
        auto_resume=answer.auto_resume,
        active=answer.state not in ("complete", "failed", "cancelled"),
    )


def _progress(record: JobRecord, answer: Job) -> dict[str, dict[str, Any]] | None:
    statuses = columns.unpack(2, answer.chunk_status)
    peers = columns.unpack(2, answer.chunk_peer)
    if record.chunks_count > MAX_LISTED:
        return None
    fits = len(statuses) == len(peers) == record.chunks_count
    known = (*range(len(answer.peers)), columns.NOBODY)
    if not fits or any(at >= len(CHUNK_STATUSES) for at in statuses) or any(at not in known for at in peers):
        raise MalformedMessage(f"the answer of job {record.job_id} does not fit it")
    return {
        str(index): {
            "status": CHUNK_STATUSES[status],
            "peer_id": answer.peers[peer] if peer != columns.NOBODY else None,
        }
        for index, (status, peer) in enumerate(zip(statuses, peers, strict=True))
    }
