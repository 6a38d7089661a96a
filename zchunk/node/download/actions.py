"""What a download job is in, what it has its shell do, and what bounds it. Pure.

`job.py` decides these actions, `fetcher.py` carries them out in order. A chunk is begun only with a
buffer for all of it. Each time it is begun is an attempt, with a number and a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from zchunk.errors import IntegrityError, NotFound, ZchunkError


class JobState(Enum):
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    VERIFYING = "verifying"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ChunkState(Enum):
    WANTED = "wanted"
    IN_FLIGHT = "in_flight"
    VERIFYING = "verifying"
    WRITING = "writing"
    HELD = "held"


#: The public names of SPEC "DownloadJob".
PUBLIC_STATUS = {
    ChunkState.WANTED: "pending",
    ChunkState.IN_FLIGHT: "downloading",
    ChunkState.VERIFYING: "downloading",
    ChunkState.WRITING: "downloading",
    ChunkState.HELD: "completed",
}


@dataclass(frozen=True, slots=True)
class BeginChunk:
    """Reserve a buffer for this attempt at the chunk: its blocks follow."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RequestBlock:
    peer_id: str
    chunk: int
    attempt: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class VerifyChunk:
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class WriteChunk:
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class DropChunk:
    """Give the attempt's buffer back; blocks of it that still arrive are ignored."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ReportCorrupt:
    peer_id: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Relocate:
    """Ask the tracker again who holds what."""


@dataclass(frozen=True, slots=True)
class CheckRemoved:
    """As `Relocate`, and soon: no holder has what is left, which is what a removal looks like."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: JobState


@dataclass(frozen=True, slots=True)
class Resumed:
    """A peer that the job waited for is asked again."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class AllHeld:
    """Every chunk is verified and written: check the whole file and finish it."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: ZchunkError


Action = (
    BeginChunk
    | RequestBlock
    | VerifyChunk
    | WriteChunk
    | DropChunk
    | ReportCorrupt
    | Relocate
    | CheckRemoved
    | StateChanged
    | Resumed
    | AllHeld
    | Failed
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds; see config.yaml, section transfer."""

    budget: int
    block_min: int
    block_max: int
    stall_s: float
    relocate_s: float
    auto_resume: bool = True


def removed_meanwhile(what: str, kept: str = "") -> NotFound:
    """`details["removed"]` tells it from other things that are not found. `kept`: what of it is."""
    text = f"{what} was removed from the cluster during the download{kept}"
    return NotFound(text, removed=True)


def corrupt_everywhere(chunks: int, peer_ids: Sequence[str], names: Sequence[str]) -> IntegrityError:
    """No holder has these chunks whole; `names` are the holders', for people."""
    what = "1 chunk was" if chunks == 1 else f"{chunks:,} chunks were"
    return IntegrityError(
        f"{what} corrupt or missing at every holder ({', '.join(names)}); "
        "upload the file again from its source with `zchunk put`",
        chunks=chunks,
        peers=list(peer_ids),
    )
