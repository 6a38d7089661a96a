"""Plans for uploads: placement over the peers that are up, less what is promised. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zchunk.content.manifest import (
    MAX_NEW_CHUNKS,
    chunk_count,
    chunk_length,
    chunk_size_problem,
    expected_bytes,
    kept_bytes,
)
from zchunk.errors import InvalidUsage, MalformedMessage, NoSpace, PeersUnsure, TooFewPeers, ZchunkError
from zchunk.placement import Candidate, Placement, place, place_missing, place_whole, without_refused
from zchunk.protocol import columns
from zchunk.protocol.messages import PeerRecord, Plan, Planned

#: Copies that one plan places: ten of each chunk of the largest file.
MAX_PLACES = 1_500_000
#: A peer that moves so many bytes per second (a gigabit link's worth) counts as having
#: half its free space, where placement goes by load.
_FULL_LOAD = 100e6
#: Nodes that a refusal names.
_NAMED = 5


def make_plan(
    plan: Plan, online: Sequence[PeerRecord], taken: Mapping[str, int], loads: Mapping[str, float]
) -> tuple[Planned, dict[str, int]]:
    """The answer to `plan` and the bytes it puts on each peer. `taken`: bytes that are not for
    this upload (promises.py); `loads`: bytes per second that peers move already.

    A node that takes no chunks at present gets none. Raises TooFewPeers, NoSpace (both say so of
    such nodes), or MalformedMessage for a request that contradicts itself.
    """
    avoid, sizes = set(plan.avoid), _sizes(plan)
    # Whoever takes a chunk keeps the manifest too.
    manifest = kept_bytes(expected_bytes(chunk_count(plan.size, plan.chunk_size)))
    others = [p for p in online if p.peer_id not in avoid]
    candidates = [
        Candidate(
            p.peer_id,
            p.name,
            free=max(0, p.free - taken.get(p.peer_id, 0) - manifest),
            load=loads.get(p.peer_id, 0.0) / _FULL_LOAD,
        )
        for p in others
        if not p.refuses
    ]
    try:
        placement = _place(plan, sizes, candidates)
    except (TooFewPeers, NoSpace) as error:
        refusing = sorted((p for p in others if p.refuses), key=lambda p: p.name)
        raise _explained(error, refusing) from None
    wanted = _bytes_per_peer(placement, sizes, manifest)
    return _planned(plan, placement, online), wanted


def _explained(error: TooFewPeers | NoSpace, refusing: Sequence[PeerRecord]) -> ZchunkError:
    """With what those peers say that are up and take nothing: without them there is no plan."""
    if not refusing:
        return error
    rows = [{"peer_id": p.peer_id, "name": p.name, "reason": p.refuses} for p in refusing[:_NAMED]]
    message = without_refused(error, [(row["name"], row["reason"]) for row in rows])
    more = f"; and {len(refusing) - _NAMED} more refuse" if len(refusing) > _NAMED else ""
    return type(error)(message + more, **error.details, refusing=rows)


def refusal(error: ZchunkError, unsure: Sequence[str], unsure_s: float) -> ZchunkError:
    """What is answered where there is no plan. `unsure`: names of nodes that have `unsure_s` seconds
    more to say hello; where they may change it, it is not known yet whether there is one."""
    more = len(error.details.get("online", ())) + len(unsure)
    enough = isinstance(error, TooFewPeers) and more >= error.details.get("needed", more)
    if not unsure or not (enough or isinstance(error, NoSpace)):
        return error
    # Not what to do about it: who is not heard from yet may be what is missing.
    reason = error.message if "refusing" in error.details else error.message.partition(":")[0]
    names = ", ".join(unsure[:_NAMED])
    more_names = f" and {len(unsure) - _NAMED} more" if len(unsure) > _NAMED else ""
    return PeersUnsure(
        f"{reason}; the tracker or some nodes have just started, and these have not registered yet:"
        f" {names}{more_names}; try again in {max(1, round(unsure_s))} s",
        online=error.details.get("online", []),
        unsure=list(unsure),
        unsure_s=round(unsure_s, 3),
    )


def _sizes(plan: Plan) -> list[int]:
    if (problem := chunk_size_problem(plan.chunk_size)) is not None:
        raise MalformedMessage(f"the plan is invalid: {problem}")
    count = chunk_count(plan.size, plan.chunk_size)
    if count > MAX_NEW_CHUNKS:
        raise InvalidUsage(
            f"the file would have {count} chunks, more than {MAX_NEW_CHUNKS}; choose a larger --chunk-size"
        )
    if len(plan.only) > 4 * count:
        raise MalformedMessage("the plan is for more chunks than the file has")
    indexes = columns.unpack(4, plan.only) if len(plan.only) else range(count)
    if any(index >= count for index in indexes):
        raise MalformedMessage("the plan is for chunks beyond the end of the file")
    if len(indexes) * plan.replicas > MAX_PLACES:
        raise InvalidUsage(
            f"{len(indexes)} chunks with {plan.replicas} copies each are more than {MAX_PLACES} copies; "
            "choose a larger --chunk-size, or fewer --replicas"
        )
    return [chunk_length(plan.size, plan.chunk_size, index) for index in indexes]


def _place(plan: Plan, sizes: list[int], candidates: list[Candidate]) -> Placement:
    held = _held(plan, len(sizes)) if len(plan.only) else []
    # An undivided file of which nothing is left goes to one peer again, like a new one.
    if len(plan.only) and (plan.distribute or any(held)):
        return place_missing(
            strategy=plan.strategy,
            sizes=sizes,
            held=held,
            candidates=candidates,
            replicas=plan.replicas,
            min_peers=plan.min_peers if plan.distribute else 1,
        )
    if not plan.distribute:
        return place_whole(sizes=sizes, candidates=candidates, replicas=plan.replicas, own_peer=plan.own_peer)
    return place(
        strategy=plan.strategy,
        sizes=sizes,
        candidates=candidates,
        replicas=plan.replicas,
        min_peers=plan.min_peers,
        own_peer=plan.own_peer,
    )


def _held(plan: Plan, count: int) -> list[list[str]]:
    if len(plan.held) != 2 * count * plan.replicas:  # said before it is many small lists
        raise MalformedMessage("a plan for single chunks must list the kept copies of each")
    rows = columns.rows(columns.unpack(2, plan.held), plan.replicas)
    if any(at != columns.NOBODY and at >= len(plan.held_peers) for row in rows for at in row):
        raise MalformedMessage("the plan names a holder that it does not list")
    return [[plan.held_peers[at] for at in row if at != columns.NOBODY] for row in rows]


def _bytes_per_peer(placement: Placement, sizes: Sequence[int], manifest: int) -> dict[str, int]:
    total = dict.fromkeys(placement.peers, manifest)
    for size, row in zip(sizes, placement.assignment, strict=True):
        for at in row:
            total[placement.peers[at]] += size
    return total


def _planned(plan: Plan, placement: Placement, online: Sequence[PeerRecord]) -> Planned:
    records = {record.peer_id: record for record in online}
    rows = (tuple(row) + (columns.NOBODY,) * (plan.replicas - len(row)) for row in placement.assignment)
    return Planned(
        strategy=plan.strategy,
        distributed=plan.distribute,
        replicas=plan.replicas,
        peers=tuple(records[peer_id] for peer_id in placement.peers),
        assignment=columns.pack(2, (at for row in rows for at in row)),
    )
