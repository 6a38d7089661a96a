"""The downloads of a home as durable jobs: a small JSON file each, in ROLE/jobs.

A record says which job there is, how its last run ended, and, while a process runs it, where
that process listens.
What is on the disk of a download is not in it: `.zpart` and `.zjob` beside the target tell
that, and the `.zlock` whether anybody works on it (download/part_file.py). So a record may be older
than the truth, and `standing` puts the two together.

A job that was interrupted, by Ctrl-C as by a power cut, is `paused`: nothing runs, what was
verified is kept, `zchunk resume` goes on. Callers: control.py, desk.py, the client.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zchunk.content.manifest import MAX_CHUNKS
from zchunk.errors import AmbiguousName, NotFound
from zchunk.node.bulk.location import MAX_LISTED
from zchunk.node.download import leftovers, part_file
from zchunk.protocol.messages import CHUNK_STATUSES
from zchunk.system import disk, json_files

log = logging.getLogger(__name__)

RECORD_VERSION = 1
#: So many jobs that are over are kept, the newest.
KEEP_OVER = 50
#: What never goes on again.
OVER = frozenset({"complete", "cancelled"})
STATES = OVER | {"running", "waiting", "paused", "verifying", "failed"}

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SUFFIX = ".json"


@dataclass(frozen=True)
class JobRecord:
    """What a job's file says. Times are ISO 8601 UTC; `target` is absolute."""

    job_id: str
    file_id: str
    name: str
    size: int
    chunks_count: int
    target: str
    created_at: str
    auto_resume: bool
    #: the target may be replaced though it has other content
    force: bool = False
    #: DownloadJob.state as of the last change
    state: str = "running"
    missing_peers: tuple[str, ...] = ()
    missing_names: tuple[str, ...] = ()
    waiting_since: str | None = None
    #: why the last run ended before the file was complete, for people
    reason: str | None = None
    ended_at: str | None = None
    #: where the process listens that runs it; None when its run has ended
    endpoint: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    def ended(self, state: str, at: str, reason: str | None = None) -> JobRecord:
        """Its run has ended, and nothing can be reached any more."""
        return replace(self, state=state, ended_at=at, reason=reason, endpoint=None)


@dataclass(frozen=True)
class JobStatus:
    """A download job, as `zchunk jobs --json` prints it."""

    job_id: str
    file_id: str
    name: str
    target: str
    state: str
    #: {index: {status, peer_id}}; None above 1,000 chunks
    chunks_progress: dict[str, dict[str, Any]] | None
    chunks_status: dict[str, int]
    missing_peers: tuple[str, ...]
    waiting_since: str | None
    auto_resume: bool
    size: int
    chunks_count: int
    created_at: str
    missing_names: tuple[str, ...] = ()
    reason: str | None = None
    #: whether a process runs it now
    active: bool = False

    @property
    def chunks_completed(self) -> int:
        return self.chunks_status["completed"]


# -- the files ------------------------------------------------------------------------


class JobBook:
    """The job files of a home. New ones go to the first folder; the others are looked
    through too, since a home may have worked under another role before."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    def save(self, record: JobRecord) -> None:
        """Durable on return. One process at a time writes a job's file: who holds the
        target's lock. Raises NoSpace (retryable), NotAllowed, StorageFailure."""
        path = self._path(record.job_id) or self.folders[0] / f"{record.job_id}{_SUFFIX}"
        with disk.storage_errors(path, "writing"):
            disk.private_folder(path.parent)
        data = json.dumps({"version": RECORD_VERSION, **asdict(record)}, indent=1).encode()
        disk.write_durable(path, data, temp=path.with_suffix(".tmp"), mode=0o600)

    def load(self, job_id: str) -> JobRecord | None:
        path = self._path(job_id)
        return _load(path) if path is not None else None

    def all(self) -> list[JobRecord]:
        """Newest first; a damaged file is passed over, and logged."""
        paths = [path for folder in self.folders for path in sorted(folder.glob(f"*{_SUFFIX}"))]
        found = [record for path in paths if (record := _load(path)) is not None]
        return sorted(found, key=lambda record: (record.created_at, record.job_id), reverse=True)

    def find(self, job_id: str) -> JobRecord:
        """By id or a prefix that only one job has. Raises NotFound, AmbiguousName."""
        known = {record.job_id: record for record in self.all()}
        if job_id in known:
            return known[job_id]
        found = sorted(known_id for known_id in known if job_id and known_id.startswith(job_id))
        if not found:
            raise NotFound(f"this home has no job {job_id[:64]!r}; `zchunk jobs` lists the jobs")
        if len(found) > 1:
            raise AmbiguousName(
                f"{job_id} matches {len(found)} jobs: {', '.join(found[:5])}; give more digits of the id",
                candidates=found[:20],
            )
        return known[found[0]]

    def prune(self) -> None:
        """Forgets all but the newest of the jobs that are over. Raises as `storage_errors` does."""
        over = [record for record in self.all() if record.is_over]
        for record in sorted(over, key=lambda record: record.ended_at or "")[:-KEEP_OVER]:
            path = self._path(record.job_id)
            if path is not None:
                with disk.storage_errors(path, "deleting"):
                    path.unlink(missing_ok=True)
                    path.with_suffix(".sock").unlink(missing_ok=True)  # a process that was killed left it

    def _path(self, job_id: str) -> Path | None:
        if not _ID.fullmatch(job_id):
            return None
        paths = [folder / f"{job_id}{_SUFFIX}" for folder in self.folders]
        return next((path for path in paths if path.exists()), None)


def book_of(home: Path, folder: Path) -> JobBook:
    """`folder` is the role folder that the home's commands use now."""
    others = [home / role for role in ("client", "node") if home / role != folder]
    return JobBook([path / "jobs" for path in (folder, *others)])


def _load(path: Path) -> JobRecord | None:
    try:
        return _record(json_files.record(json_files.read(path)), path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        log.warning("the job record %s cannot be read: %s", path, error)
        return None


def _record(raw: dict[str, Any], path: Path) -> JobRecord:
    """Raises ValueError or KeyError for anything but a record."""
    if raw["version"] != RECORD_VERSION:
        raise ValueError("it is of another version")
    values = {name: check(raw[name]) for name, check in _FIELDS.items()}
    if values["job_id"] != path.stem:
        raise ValueError(f"it is of job {values['job_id']!r}")
    return JobRecord(**values)


def _path_text(value: Any) -> str:
    """A path, or a text that may name one: on Linux its bytes need not be UTF-8."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a path")
    return value


def _target(value: Any) -> str:
    path = Path(_path_text(value))
    if not (path.is_absolute() and path.name):
        raise ValueError("not a target")
    return str(path)


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


_optional = _or_none(json_files.text)
#: field of `JobRecord` -> what takes it in, or raises ValueError
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "job_id": lambda value: json_files.text(value, _ID.pattern),
    "file_id": lambda value: json_files.key(value).hex(),
    "name": json_files.text,
    "size": json_files.count,
    "chunks_count": lambda value: json_files.count(value, MAX_CHUNKS),
    "target": _target,
    "created_at": json_files.text,
    "auto_resume": json_files.flag,
    "force": json_files.flag,
    "state": lambda value: json_files.one_of(value, STATES),
    "missing_peers": json_files.texts,
    "missing_names": json_files.texts,
    "waiting_since": _optional,
    "reason": _or_none(_path_text),
    "ended_at": _optional,
    "endpoint": _or_none(_path_text),
}


# -- a job that no process runs -------------------------------------------------------


def standing(record: JobRecord) -> JobStatus:
    """What is true of a job that nobody works on: its record, corrected by the disk."""
    target = Path(record.target)
    if record.is_over or _was_finished(record, target):
        done = record.chunks_count if record.state != "cancelled" else 0
        state = record.state if record.is_over else "complete"
        return _status(record, state, range(done), None)
    kept = leftovers.kept_job(target, record.file_id)
    if kept is None or kept.job_id != record.job_id:
        gone = f"nothing of it is left at {target}: `zchunk resume {record.job_id}` starts over"
        reason = f"{gone}; it had ended with: {record.reason}" if record.reason else gone
        return _status(record, "failed", (), reason)
    state = "failed" if record.state == "failed" else "paused"
    return _status(record, state, kept.completed, record.reason)


def _was_finished(record: JobRecord, target: Path) -> bool:
    """Killed between the final rename and its last record: `verifying` was durable before,
    and only the rename takes the .zpart away and leaves a whole target."""
    if record.state != "verifying" or part_file.has_part(target):
        return False
    try:
        return target.is_file() and target.stat().st_size == record.size
    except OSError:
        return False


def _status(record: JobRecord, state: str, completed: Iterable[int], reason: str | None) -> JobStatus:
    held = frozenset(completed)
    progress = None
    if record.chunks_count <= MAX_LISTED:
        progress = {
            str(index): {"status": "completed" if index in held else "pending", "peer_id": None}
            for index in range(record.chunks_count)
        }
    counts = dict.fromkeys(CHUNK_STATUSES, 0)
    counts |= {"pending": record.chunks_count - len(held), "completed": len(held)}
    waits = state == "paused"  # for whom it waited when it was interrupted
    return JobStatus(
        **identity(record),
        state=state,
        chunks_progress=progress,
        chunks_status=counts,
        missing_peers=record.missing_peers if waits else (),
        missing_names=record.missing_names if waits else (),
        waiting_since=None,
        auto_resume=record.auto_resume,
        reason=reason,
    )


def identity(record: JobRecord) -> dict[str, Any]:
    """What of a job never changes, as `JobStatus` has it."""
    names = ("job_id", "file_id", "name", "target", "size", "chunks_count", "created_at")
    return {name: getattr(record, name) for name in names}
