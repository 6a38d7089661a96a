"""What is beside a target: who works on it, and what earlier downloads left.

What may not happen here: anything deleted that another process has, or that is of another job.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from zchunk.errors import (
    AlreadyRunning,
)
from zchunk.node.download import target_lock
from zchunk.node.download.job_info import JobInfo, load_job
from zchunk.node.download.part_names import JOB, LOCK, PART, TEMP
from zchunk.node.download.target import beside
from zchunk.node.download.target_lock import Held, TargetLock
from zchunk.system import disk
from zchunk.system.file_owners import owner_name

#: Who only looks whether a target is worked on holds its lock for a moment.
_LOOK_S = 0.2


def remove_leftovers(target: Path) -> None:
    """Removes a .zjob without a .zpart, and a lock file nobody holds: what a run leaves that
    is killed right after its final step; and a .zpart that is the target itself, which then has
    two names. For a target that has its content; does nothing while another process works on
    it. Any other .zpart is never touched."""
    part, job = beside(target, PART), beside(target, JOB)
    if _is_another(part, target) or not (job.exists() or beside(target, LOCK).exists()):
        return
    try:
        lock = lock_target(target)
    except AlreadyRunning:
        return
    try:
        if not _is_another(part, target):
            disk.discard(part)
            disk.discard(job)
            disk.discard(beside(target, TEMP))
    finally:
        lock.release()


def _is_another(part: Path, target: Path) -> bool:
    try:
        return not os.path.samestat(os.lstat(part), os.lstat(target))
    except FileNotFoundError:
        return os.path.lexists(part)


# -- a job that nobody works on -------------------------------------------------------


def kept_job(target: Path, file_id: str) -> JobInfo | None:
    """The job of this file whose journal lies beside the target; None where there is none.
    `completed` is empty where the .zpart is gone."""
    job = load_job(beside(target, JOB))
    if job is None or job.file_id != file_id:
        return None
    return job if os.path.isfile(beside(target, PART)) else replace(job, completed=frozenset())


def discard_job(target: Path, job_id: str) -> None:
    """Deletes .zpart and .zjob of this job; durable on return. Does nothing where others'
    lie there. Raises AlreadyRunning, NotAllowed, StorageFailure."""
    if not os.path.isdir(target.parent):
        return
    lock = lock_target(target)
    try:
        job = load_job(beside(target, JOB))
        if job is not None and job.job_id == job_id:
            delete_ours(target)
    finally:
        lock.release()


def delete_ours(target: Path) -> None:
    with disk.storage_errors(beside(target, PART), "deleting"), suppress(FileNotFoundError):
        # The journal last: a .zpart without one would be kept aside for ever.
        for suffix in (PART, JOB, TEMP):
            with suppress(FileNotFoundError):
                os.unlink(beside(target, suffix))
        disk.sync_folder(target.parent)


# -- one writer per target ------------------------------------------------------------


def lock_target(target: Path, wait_s: float = _LOOK_S) -> TargetLock:
    path = beside(target, LOCK)
    with disk.storage_errors(path, "locking"):
        try:
            return target_lock.acquire(path, wait_s)
        except Held as held:
            raise _already_running(target, held.owner) from None


def _already_running(target: Path, owner: int | None) -> AlreadyRunning:
    if owner is not None:
        text = f"{owner_name(owner)} is downloading to {target}: choose another target (-o)"
        return AlreadyRunning(text, job_id=None, target=str(target))
    job = load_job(beside(target, JOB))
    job_id = job.job_id if job else None
    who = f"job {job_id}" if job_id else "another job"
    return AlreadyRunning(f"{who} is already downloading to {target}", job_id=job_id, target=str(target))
