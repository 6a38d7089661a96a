"""What an upload job is in, what it has its shell do, and what bounds it. Pure.

`job.py` decides these actions, `runner.py` carries them out in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from zchunk.errors import ZchunkError


class UploadState(Enum):
    RUNNING = "running"
    WAITING = "waiting"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Reserve a buffer, read and hash the chunk; answer with `read`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class FindHolders:
    """Ask the tracker who holds these chunks, which are hashed; answer with `found` or
    `not_found`."""

    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OfferChunk:
    peer_id: str
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SendBlock:
    peer_id: str
    chunk: int
    attempt: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ReleaseChunk:
    """The chunk's buffer is free. `clean`: every block sent from it was answered, so no
    socket can still be reading it."""

    chunk: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Replan:
    """Ask the tracker for new places for these chunks; answer with `replanned` or
    `not_replanned`. `held` are the copies of each that stay."""

    chunks: tuple[int, ...]
    held: tuple[tuple[str, ...], ...]
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A peer came, and the job that waited goes on."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: UploadState


@dataclass(frozen=True, slots=True)
class AllStored:
    """Every chunk has its live, verified, durable copies: publish."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: ZchunkError


Action = (
    ReadChunk
    | FindHolders
    | OfferChunk
    | SendBlock
    | ReleaseChunk
    | Replan
    | Resumed
    | StateChanged
    | AllStored
    | Failed
)


@dataclass(frozen=True, slots=True)
class Limits:
    budget: int
    block_min: int
    block_max: int
    stall_s: float
