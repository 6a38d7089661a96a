"""What tests of upload jobs share: a job, and peers that answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from zchunk.node.upload.actions import (
    Action,
    FindHolders,
    Limits,
    OfferChunk,
    ReadChunk,
    SendBlock,
    UploadState,
)
from zchunk.node.upload.job import UploadJob

A, B, C, D = "a" * 32, "b" * 32, "c" * 32, "d" * 32

CHUNK, BLOCK = 16, 4

STALL, SLOW = 10.0, 0.1

LIMITS = Limits(budget=4 * CHUNK, block_min=BLOCK, block_max=CHUNK, stall_s=STALL)


class Fresh(UploadJob):
    """Of a file whose chunks nobody holds: the tracker says so at once."""

    def _advance(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for action in super()._advance(now):
            if isinstance(action, FindHolders):
                actions += self.found(action.chunks, [()] * len(action.chunks), now)
            else:
                actions.append(action)
        return actions


def make(
    assignment: Sequence[Collection[str]],
    up: Iterable[str] = (A, B, C),
    *,
    replicas: int = 1,
    min_peers: int = 1,
    size: int = CHUNK,
    kind: type[UploadJob] = Fresh,
    undivided: bool = False,
    own_peer: str | None = None,
    **limits: Any,
) -> UploadJob:
    values = {name: getattr(LIMITS, name) for name in Limits.__slots__}
    return kind(
        sizes=[size] * len(assignment),
        assignment=assignment,
        replicas=replicas,
        min_peers=min_peers,
        up=dict.fromkeys(up, 1),
        limits=Limits(**{**values, **limits}),
        undivided=undivided,
        own_peer=own_peer,
    )


def of(kind: type[Action], actions: Iterable[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def sends(peer_id: str, chunk: int, attempt: int) -> list[SendBlock]:
    return [SendBlock(peer_id, chunk, attempt, at, BLOCK) for at in range(0, CHUNK, BLOCK)]


def take(job: UploadJob, sent: Sequence[SendBlock], now: float = SLOW) -> list[Action]:
    """The node takes every block; the last one completes the chunk."""
    actions: list[Action] = []
    for ask in sent:
        last = ask is sent[-1]
        actions += job.taken(ask.peer_id, ask.chunk, ask.attempt, ask.offset, last, now)
    return actions


def offered(job: UploadJob, chunk: int, now: float = 0.0) -> list[Action]:
    """Read and digested; what the job then does."""
    return [*job.read(chunk, now), *job.digested(chunk, now)]


def begin_sending(job: UploadJob, peer_id: str = A) -> list[Action]:
    """A job of one chunk at `peer_id`, up to the blocks being on their way."""
    job.start(0.0)
    assert offered(job, 0) == [OfferChunk(peer_id, 0, 1)]
    return job.offered(peer_id, 0, 1, False, 0.0)


def stored(assignment: Sequence[Collection[str]] = ([A], [B]), **options: Any) -> UploadJob:
    """A job after `AllStored`: its peers had everything."""
    job = make(assignment, **options)
    actions = job.start(0.0)
    while job.state is not UploadState.STORED:
        for read in of(ReadChunk, actions):
            actions += offered(job, read.chunk)
        offers, actions = of(OfferChunk, actions), []
        for offer in offers:
            actions += job.offered(offer.peer_id, offer.chunk, offer.attempt, True, 0.0)
    return job
