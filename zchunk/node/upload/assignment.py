"""The tracker's answer to `Plan` as Python values: which peers each chunk goes to. Pure."""

from __future__ import annotations

from zchunk.content.manifest import chunk_count
from zchunk.errors import MalformedMessage
from zchunk.protocol import columns
from zchunk.protocol.messages import Plan, Planned


def assignment(plan: Plan, planned: Planned) -> list[list[str]]:
    """The peer ids per chunk that answer `plan`. Raises MalformedMessage for an answer that
    does not fit what was asked, or itself."""
    if (planned.replicas, planned.distributed) != (plan.replicas, plan.distribute):
        raise MalformedMessage("the tracker's plan is not the one that was asked for")
    count = chunk_count(plan.size, plan.chunk_size)
    rows = columns.rows(columns.unpack(2, planned.assignment), planned.replicas)
    known = (*range(len(planned.peers)), columns.NOBODY)
    if len(rows) != count or any(at not in known for row in rows for at in row):
        raise MalformedMessage("the tracker's plan does not match the file")
    return [[planned.peers[at].peer_id for at in row if at != columns.NOBODY] for row in rows]
