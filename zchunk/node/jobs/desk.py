"""What a home's commands do with its jobs: ask the process that runs one, else the disk.

Whether a process runs a job is told by the socket that it listens at, which ends with the process:
a record of one that was killed is noticed without waiting for anybody, and no order goes to a
process that has its number by now.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from zchunk.clock import Clock, SystemClock, iso_utc
from zchunk.errors import (
    AlreadyRunning,
    InvalidUsage,
    MalformedMessage,
    NotAllowed,
    NotFound,
    PeerUnreachable,
    TargetExists,
    UnknownMessage,
    ZchunkError,
)
from zchunk.node.download import leftovers
from zchunk.node.home.membership import of_home
from zchunk.node.jobs.control import steer
from zchunk.node.jobs.records import JobBook, JobRecord, JobStatus, book_of, standing

log = logging.getLogger(__name__)

#: A loop answers within milliseconds; a process that hangs is not waited for longer.
SHOW_S = 2.0
ORDER_S = 5.0
#: What is being written or read must end first.
CANCEL_S = 60.0


class JobDesk:
    """The jobs of one home. Thread-safe; every call opens what it needs."""

    def __init__(self, book: JobBook, clock: Clock | None = None) -> None:
        self.book = book
        self._clock = clock or SystemClock()

    def all(self) -> list[JobStatus]:
        """Newest first."""
        return [self.status(record) for record in self.book.all()]

    def find(self, job_id: str) -> JobRecord:
        """By id or unique prefix. Raises NotFound, AmbiguousName."""
        return self.book.find(job_id)

    def status(self, record: JobRecord) -> JobStatus:
        """The job as it is now."""
        return self._order(record, "show", SHOW_S) or standing(self._fresh(record))

    def pause(self, record: JobRecord) -> JobStatus:
        """Tells the process that runs it to stand still. Where none does nothing changes.
        Raises InvalidUsage where it is too late, PeerUnreachable."""
        found = self._order(record, "pause", ORDER_S)
        if found is not None:
            return found
        return self._unless_over(record, "nothing to pause")

    def resume(self, record: JobRecord) -> JobStatus:
        """Tells the process that runs it to go on. Where none does nothing changes: then
        `active` is false, and the caller may run it. Raises as `pause` does."""
        found = self._order(record, "resume", ORDER_S)
        if found is not None:
            return found
        anew = f"`zchunk get {record.file_id}` downloads the file again"
        return self._unless_over(record, f"nothing to resume; {anew}")

    def cancel(self, record: JobRecord) -> JobStatus:
        """Ends it; on return its part and journal are deleted. Raises InvalidUsage where it
        is complete, or about to be, PeerUnreachable, NotAllowed, StorageFailure."""
        found = self._order(record, "cancel", CANCEL_S)
        if found is not None and found.state == "cancelled":
            return standing(replace(record, state="cancelled"))  # what it had is gone
        # Nobody runs it, or who did could not delete it all.
        record = self._fresh(record)
        now = standing(record)
        if now.state == "cancelled":
            return now
        if now.state == "complete":
            raise _over(now, f"nothing to cancel; {now.target} is kept")
        self._discard(record)
        ended = record.ended("cancelled", iso_utc(self._clock.wall()))
        self._save(ended)
        return standing(ended)

    def not_started(self, record: JobRecord, error: ZchunkError) -> None:
        """A run that failed before it began (no space, no permission): the job is kept with
        the reason, where there is one."""
        if isinstance(error, (AlreadyRunning, TargetExists)):
            return
        kept = leftovers.kept_job(Path(record.target), record.file_id)
        if kept is not None:
            record = replace(record, job_id=kept.job_id, created_at=kept.created_at)
        elif self.book.load(record.job_id) is None:
            return
        error.details.setdefault("job_id", record.job_id)
        self._save(record.ended("failed", iso_utc(self._clock.wall()), error.message))

    def completed(self, record: JobRecord) -> None:
        """The target has the content, however it came there."""
        self._save(record.ended("complete", iso_utc(self._clock.wall())))

    def _save(self, record: JobRecord) -> None:
        """What was done is done, whether the home's disk takes it down or not; and a reason why
        something failed is not replaced by this one."""
        try:
            self.book.save(record)
        except ZchunkError as problem:
            log.warning("job %s could not be recorded: %s", record.job_id, problem.message)

    # -- inside ---------------------------------------------------------------------

    def _order(self, record: JobRecord, action: str, timeout_s: float) -> JobStatus | None:
        """None where no process runs the job."""
        if record.is_over or record.endpoint is None:
            return None
        try:
            return steer(record, action, timeout_s)
        except (NotAllowed, NotFound, UnknownMessage, MalformedMessage):
            return None  # nobody is there any more, or another program
        except PeerUnreachable as error:
            if action != "show":
                raise
            return replace(standing(record), state=record.state, active=True, reason=error.message)

    def _fresh(self, record: JobRecord) -> JobRecord:
        return self.book.load(record.job_id) or record

    def _unless_over(self, record: JobRecord, what: str) -> JobStatus:
        now = standing(self._fresh(record))
        if now.state in ("complete", "cancelled"):
            raise _over(now, what)
        return now

    def _discard(self, record: JobRecord) -> None:
        kept = leftovers.kept_job(Path(record.target), record.file_id)
        if kept is not None and kept.job_id == record.job_id:
            leftovers.discard_job(Path(record.target), record.job_id)


def _over(job: JobStatus, what: str) -> InvalidUsage:
    return InvalidUsage(f"job {job.job_id} is already {job.state}: {what}", job_id=job.job_id)


def desk_of(home: Path) -> JobDesk:
    """Raises NotJoined."""
    folder, _ = of_home(home)
    return JobDesk(book_of(home, folder))
