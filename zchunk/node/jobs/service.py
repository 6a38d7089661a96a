"""The jobs of one process: uploads and downloads, for whoever asks.

Several run at once, in the one bulk loop; each has an id, a durable record, and a socket by which
others steer it (control.py). A job is made here, in the caller's thread, since what it needs
takes a disk its time; it is returned not yet started: `start` it in the bulk loop, its events come by
`emit`, there. A thread that has nothing else to do waits for one by blocking.py.

What may not happen here: a job whose target somebody else is writing to; a secret in a record.
Callers: the client.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zchunk.clock import SystemClock, iso_utc
from zchunk.errors import TargetExists, ZchunkError
from zchunk.node.bulk.job_driver import Emit
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.download.leftovers import remove_leftovers
from zchunk.node.download.part_file import open_part
from zchunk.node.download.preparing import Preparing
from zchunk.node.download.runner import Download
from zchunk.node.download.target import check_regular
from zchunk.node.download.target_content import target_has_content
from zchunk.node.home.membership import Membership, check_fetches
from zchunk.node.job_events import Downloaded
from zchunk.node.job_events import Preparing as PreparingEvent
from zchunk.node.jobs.control import KeptJob
from zchunk.node.jobs.desk import JobDesk
from zchunk.node.jobs.records import JobRecord


class JobService:
    """Thread-safe: every call makes what it needs."""

    def __init__(self, *, bulk: BulkPlane, desk: JobDesk, membership: Membership) -> None:
        self._bulk = bulk
        self._desk = desk
        self._membership = membership

    # -- downloads --------------------------------------------------------------------

    def new_download(self, where: Location, path: Path, *, force: bool) -> JobRecord:
        """The record of a download that has not begun."""
        return JobRecord(
            job_id=secrets.token_hex(8),
            file_id=where.manifest.file_id,
            name=where.manifest.name,
            size=where.manifest.size,
            chunks_count=len(where.manifest.chunks),
            target=str(path.absolute()),
            created_at=iso_utc(SystemClock().wall()),
            auto_resume=self._bulk.settings.chunking.auto_resume_downloads,
            force=force,
        )

    def at_target(
        self,
        where: Location,
        path: Path,
        *,
        force: bool,
        emit: Callable[[PreparingEvent], None],
        check: Callable[[], None],
    ) -> Downloaded | None:
        """The end of a download whose target is the file already, else None. Takes as long as it
        takes to read it; `check` is called now and then, and raises to end that. Raises
        TargetExists."""
        if not os.path.lexists(path):
            return None
        preparing = Preparing(emit, SystemClock(), job_id=None, target=str(path), size=where.manifest.size)

        def looked_at(done: int) -> None:
            preparing.looked_at(done)
            check()

        if target_has_content(path, where.manifest, looked_at):
            remove_leftovers(path)
            return _done_already(where, path)
        check_regular(path, os.lstat(path))
        if not force:
            raise TargetExists(
                f"{path} exists and has other content; choose another target with -o, or replace it with"
                " --force"
            )
        return None

    def download(self, where: Location, record: JobRecord, *, wait: bool, emit: Emit) -> KeptJob:
        """The download of a file that was opened; it goes on from what an earlier run left, under
        that one's id. `wait`: stay for missing peers. Raises AlreadyRunning, NotAllowed, NoSpace,
        StorageFailure; why a kept job did not start stands in its record."""
        check_fetches(self._membership)
        try:
            part = open_part(Path(record.target), where.manifest, record.job_id, replaces=record.force)
        except ZchunkError as error:
            self._desk.not_started(record, error)
            raise
        record = replace(record, job_id=part.job_id, created_at=part.created_at)
        kept = KeptJob(bulk=self._bulk, book=self._desk.book, record=record, emit=emit)
        kept.attach(
            Download(
                bulk=self._bulk,
                where=where,
                part=part,
                wait=wait,
                auto_resume=record.auto_resume,
                emit=kept.emit,
                on_state=kept.state_changed,
            )
        )
        return kept

    def found_complete(self, record: JobRecord) -> None:
        """The target of this job has the content, however it came there."""
        if self._desk.book.load(record.job_id) is not None:
            self._desk.completed(record)

    def download_again(self, where: Location, record: JobRecord) -> JobRecord:
        """The record of a run that goes on with the job of this one."""
        again = self.new_download(where, Path(record.target), force=record.force)
        return replace(again, job_id=record.job_id, created_at=record.created_at)


def _done_already(where: Location, path: Path) -> Downloaded:
    sha256 = where.manifest.sha256
    return Downloaded(
        job_id=None,
        file_id=where.manifest.file_id,
        name=where.manifest.name,
        target=str(path),
        size=where.manifest.size,
        sha256=sha256.hex() if sha256 is not None else None,
        seconds=0.0,
        bytes_received=0,
        bytes_received_by_peer={},
        chunks_count=len(where.manifest.chunks),
        already=True,
    )
