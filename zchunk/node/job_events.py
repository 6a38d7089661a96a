"""What jobs tell while they run: frozen values, and the JSON objects that programs get (SPEC
"Machine-readable output", docs/reference/events.md). Pure.

A job is told of by `job_id`; a read of a range is no job and has none. The last event of a job is
`Failed`, or a `Done`: `Downloaded` or `Uploaded`. Whoever shows events to programs uses `to_json`;
inside they stay values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from zchunk.errors import ZchunkError


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    #: `event` in JSON
    EVENT: ClassVar[str]

    job_id: str | None

    def to_json(self) -> dict[str, Any]:
        about = {} if self.job_id is None else {"job_id": self.job_id}
        return {"event": self.EVENT, **about, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        """Beside `event` and `job_id`, those that are known."""
        values = {name: value for name, value in asdict(self).items() if name != "job_id"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }


@dataclass(frozen=True)
class Source:
    """A holder of the file that is downloaded."""

    peer_id: str
    name: str
    status: str
    #: that it holds; of these, those that are not here yet
    chunks: int
    chunks_wanted: int


@dataclass(frozen=True)
class MissingPeer:
    """A peer that chunks wait for."""

    peer_id: str
    name: str
    #: that wait for it
    chunks: int
    #: ISO 8601 UTC
    last_seen: str | None
    #: offline, unreachable, unreadable, offline-store, unsure, refuses, busy
    reason: str


@dataclass(frozen=True)
class RefusingPeer:
    """A peer that is up and takes no chunks, and what it said."""

    peer_id: str
    name: str
    reason: str


# -- while it runs --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preparing(JobEvent):
    """What is here already is looked at; `job_id` is null before there is a job."""

    EVENT = "preparing"

    target: str
    #: bytes of the file, and how many of them were looked at
    size: int
    bytes_checked: int

    def to_json(self) -> dict[str, Any]:
        return {"event": self.EVENT, "job_id": self.job_id, **self._fields()}


@dataclass(frozen=True, kw_only=True)
class DownloadPlan(JobEvent):
    """What a download begins with. `map` is left out above 1,000 chunks."""

    EVENT = "plan"

    file_id: str
    name: str
    size: int
    target: str
    chunks_count: int
    #: that an earlier run left
    chunks_kept: int
    chunks_of_zeros: int
    peers: tuple[Source, ...]
    #: chunk index -> peer id
    map: Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Progress(JobEvent):
    EVENT = "progress"

    chunks_completed: int
    chunks_count: int
    #: payload of this run
    bytes: int
    size: int
    bytes_per_second: int
    #: peer id -> its chunks that are completed, and in progress; of a download
    peers: Mapping[str, Mapping[str, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Waiting(JobEvent):
    """For whom the job waits, since when, for how many chunks (SPEC D4). `busy`: these peers are
    there, and serve others first."""

    EVENT = "waiting"

    missing: tuple[MissingPeer, ...]
    #: ISO 8601 UTC
    waiting_since: str
    chunks_missing: int
    chunks_completed: int | None = None
    chunks_count: int | None = None
    auto_resume: bool | None = None
    #: of a read: the chunk that it cannot go on without
    chunk_index: int | None = None
    #: of an upload
    refusing: tuple[RefusingPeer, ...] | None = None
    #: what else keeps an upload waiting, for people, and what the tracker said of it
    message: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    busy: bool = False

    @property
    def missing_peers(self) -> tuple[str, ...]:
        return () if self.busy else tuple(row.peer_id for row in self.missing)

    def _fields(self) -> dict[str, Any]:
        known = super()._fields()
        del known["details"], known["busy"]
        if self.busy:
            known["busy_peers"] = [row.peer_id for row in self.missing]
        return {"missing_peers": list(self.missing_peers), **known}

    def to_json(self) -> dict[str, Any]:
        """None of the details stands in for what the event says itself."""
        return {**self.details, **super().to_json()}


@dataclass(frozen=True, kw_only=True)
class Resumed(JobEvent):
    """A peer is back, and the job goes on with it."""

    EVENT = "resumed"

    peer_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class PeerBack(JobEvent):
    """A peer is back, and is asked only after `resume`: auto-resume is off."""

    EVENT = "peer_back"

    peer_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Paused(JobEvent):
    EVENT = "paused"

    chunks_completed: int
    chunks_count: int


@dataclass(frozen=True, kw_only=True)
class Continued(JobEvent):
    """After a pause."""

    EVENT = "continued"

    chunks_completed: int
    chunks_count: int


@dataclass(frozen=True, kw_only=True)
class Corrupt(JobEvent):
    """A chunk did not come as it was asked for (SPEC D8)."""

    EVENT = "corrupt"

    peer_id: str
    name: str
    chunk_index: int
    #: how many others have it
    other_holders: int


# -- the end --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Failed(JobEvent):
    """It ended before it was complete: interrupted, cancelled, partial, or by an error."""

    EVENT = "error"

    error: ZchunkError

    def to_json(self) -> dict[str, Any]:
        return self.error.to_json()


@dataclass(frozen=True, kw_only=True)
class Done(JobEvent):
    """It is complete."""

    EVENT = "done"

    file_id: str
    name: str
    size: int
    #: hex; null of an encrypted file that was not opened
    sha256: str | None
    seconds: float
    chunks_count: int


@dataclass(frozen=True, kw_only=True)
class Downloaded(Done):
    """`job_id` is null where the target had the content already: then there was no job."""

    target: str
    bytes_received: int
    bytes_received_by_peer: Mapping[str, int]
    #: for the file's SHA-256
    chunks_read_back: int | None = None
    already: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return {"event": self.EVENT, "job_id": self.job_id, **self._fields(), "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True)
class Uploaded(Done):
    encrypted: bool
    is_chunked: bool
    is_distributed: bool
    #: that hold chunks of it
    peers: tuple[str, ...]
    bytes_sent: int
    #: the cluster had the same file before
    already: bool
