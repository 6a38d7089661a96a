"""What an upload that waits tells people: for whom, how many chunks, and who refuses and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zchunk.errors import PeersUnsure, TooFewPeers, ZchunkError
from zchunk.node.bulk.job_driver import JobDriver
from zchunk.node.job_events import MissingPeer, RefusingPeer, Waiting
from zchunk.node.upload.job import UploadJob
from zchunk.placement import refusals_text, takers_text


class WaitingTexts:
    def __init__(self, driver: JobDriver[Any], job: UploadJob, job_id: str) -> None:
        self._driver = driver
        self._bulk = driver.bulk
        self._job = job
        self._job_id = job_id
        #: what each peer said that refused something last
        self.reasons: dict[str, str] = {}

    def event(self) -> Waiting:
        """For whom the job waits, since when, for how many chunks, and how many peers it takes."""
        missing, why = self._job.copies.missing(), self._job.blocked
        own = self._refusing()
        told = _told_refusing(why) if why is not None else []
        refusing = own + [row for row in told if row.peer_id not in {mine.peer_id for mine in own}]
        event = self._waits_for(self._driver.missing_rows(missing, self._why_missing))
        event = dataclasses.replace(event, refusing=tuple(refusing))
        if why is None:
            return event
        message = _why_it_waits(why, own, refusing)
        return dataclasses.replace(event, message=message, details=why.details)

    def busy(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return dataclasses.replace(self._waits_for(missing), busy=True)

    def _waits_for(self, missing: tuple[MissingPeer, ...]) -> Waiting:
        return Waiting(
            job_id=self._job_id,
            missing=missing,
            chunks_missing=self._job.chunks_count - self._job.chunks_completed,
            chunks_completed=self._job.chunks_completed,
            chunks_count=self._job.chunks_count,
            waiting_since=self._driver.wall_text(),
        )

    def _why_missing(self, peer_id: str) -> str:
        if peer_id in self._bulk.unreachable:
            return "unreachable"
        return "refuses" if peer_id in self._job.refusing else "offline"

    def _refusing(self) -> list[RefusingPeer]:
        """Peers that are up and take nothing, and what each said."""
        away = self._bulk.unreachable
        known = [p for p in self._job.refusing if p in self.reasons and p not in away]
        name_of = self._driver.peer_name
        return [RefusingPeer(peer_id, name_of(peer_id), self.reasons[peer_id]) for peer_id in known]


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
