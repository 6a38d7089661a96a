"""What tests of download jobs share: a job, and peers that answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from zchunk.node.download.actions import Action, Limits, RequestBlock, VerifyChunk, WriteChunk
from zchunk.node.download.job import DownloadJob

A, B, C, NEW = "a" * 32, "b" * 32, "c" * 32, "d" * 32

CHUNK, BLOCK = 16, 4

STALL, RELOCATE = 10.0, 30.0

LIMITS = Limits(budget=4 * CHUNK, block_min=BLOCK, block_max=CHUNK, stall_s=STALL, relocate_s=RELOCATE)

#: slow enough that blocks do not grow
SLOW = 0.1


def make(
    holders: Sequence[Collection[str]],
    up: Iterable[str] = (A, B, C),
    *,
    size: int = CHUNK,
    held: Collection[int] = (),
    **limits: Any,
) -> DownloadJob:
    values = {name: getattr(LIMITS, name) for name in Limits.__slots__}
    return DownloadJob(
        sizes=[size] * len(holders),
        holders=holders,
        up=dict.fromkeys(up, 1),
        held=held,
        limits=Limits(**{**values, **limits}),
    )


def requests(actions: Iterable[Action]) -> list[RequestBlock]:
    return [action for action in actions if isinstance(action, RequestBlock)]


def blocks(peer_id: str, chunk: int, attempt: int = 1, size: int = CHUNK) -> list[RequestBlock]:
    """All requests for a chunk in blocks of the first size."""
    return [RequestBlock(peer_id, chunk, attempt, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]


def answer(job: DownloadJob, asked: Iterable[RequestBlock], now: float) -> list[Action]:
    actions: list[Action] = []
    for ask in asked:
        actions += job.block(ask.chunk, ask.attempt, ask.offset, ask.length, now)
    return actions


def settle(job: DownloadJob, asked: Iterable[Action], now: float = SLOW) -> list[Action]:
    """Answer every request, then those that follow, check and write: the honest world."""
    seen: list[Action] = []
    todo: list[Action] = list(asked)
    while todo:
        action = todo.pop(0)
        seen.append(action)
        if isinstance(action, RequestBlock):
            todo += answer(job, [action], now)
        elif isinstance(action, VerifyChunk):
            todo += job.verified(action.chunk, True, now)
        elif isinstance(action, WriteChunk):
            todo += job.written(action.chunk, False, now)
    return seen


def states(job: DownloadJob) -> Mapping[str, int]:
    return Counter(job.view.status(index)[0] for index in range(job.chunks_count))
