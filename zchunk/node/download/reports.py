"""What a download tells people at its beginning, and why it ends without all of the file."""

from __future__ import annotations

from collections import Counter

from zchunk.errors import PartialDownload
from zchunk.node import job_events
from zchunk.node.bulk.location import MAX_LISTED, Location
from zchunk.node.download.part_file import PartFile
from zchunk.node.job_events import MissingPeer, Waiting


def plan_event(part: PartFile, where: Location, held: set[int]) -> job_events.DownloadPlan:
    """What is fetched, and who has it."""
    rows = [[peer_id for peer_id, _ in chunk] for chunk in where.holders]
    holding = Counter(peer_id for row in rows for peer_id in row)
    wanted = Counter(peer_id for index, row in enumerate(rows) if index not in held for peer_id in row)
    return job_events.DownloadPlan(
        job_id=part.job_id,
        file_id=where.manifest.file_id,
        name=where.manifest.name,
        size=where.manifest.size,
        target=str(part.target),
        chunks_count=len(where.manifest.chunks),
        chunks_kept=len(held - part.zeros),
        chunks_of_zeros=len(part.zeros),
        peers=tuple(
            job_events.Source(r.peer_id, r.name, r.status, holding[r.peer_id], wanted[r.peer_id])
            for r in where.peers.values()
        ),
        map=where.distribution_map() if len(where.holders) <= MAX_LISTED else None,
    )


def partial(waiting: Waiting, kept: str) -> PartialDownload:
    """The error of a download that does not wait for the peers of a `waiting` event."""
    names = ", ".join(map(_named, waiting.missing)) or "no known peer"
    count = waiting.chunks_missing
    how = f"`zchunk resume {waiting.job_id}`, or the same command, continues once they can be fetched"
    return PartialDownload(
        f"{kept}; {count} {'waits' if count == 1 else 'wait'} for {names}: {how}",
        missing_peers=list(waiting.missing_peers),
        chunks_missing=count,
        chunks_completed=waiting.chunks_completed,
        chunks_count=waiting.chunks_count,
    )


def _named(row: MissingPeer) -> str:
    return f"{row.name}, which cannot read them now" if row.reason == "unreadable" else row.name
