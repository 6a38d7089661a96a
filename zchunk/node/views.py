"""What the cluster's things look like to programs: FileInfo, peers, jobs, plans, health (SPEC "Data"
and "Machine-readable output").

The command line prints these objects; whoever else shows them to programs takes them from here,
so that all say the same. The names of the fields are a contract. What only a plan or an encrypted
file needs is imported there: a listing has to be soon.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from zchunk.clock import SystemClock, iso_utc
from zchunk.content.manifest import chunk_count, chunk_length
from zchunk.node.bulk.location import MAX_LISTED, Location
from zchunk.node.control.event_feed import Missed
from zchunk.node.jobs.records import JobStatus
from zchunk.node.upload.assignment import assignment
from zchunk.protocol.messages import Event, FileRecord, PeerRecord, Plan, Planned

# -- files ----------------------------------------------------------------------------


def file_info(record: FileRecord) -> dict[str, Any]:
    """FileInfo without its per-chunk lists."""
    return {
        "file_id": record.file_id,
        "name": record.name,
        "size": record.size,
        "sha256": record.sha256.hex() if record.sha256 is not None else None,
        "created_at": iso_utc(record.created_at_ms / 1000),
        "replicas": record.replicas,
        "is_chunked": record.is_chunked,
        "chunk_size": record.chunk_size,
        "chunks_count": record.chunks_count,
        "is_distributed": record.is_distributed,
        "minimum_peers_required": record.minimum_peers_required,
    }


def file_details(where: Location) -> dict[str, Any]:
    """FileInfo with its per-chunk lists, and one ChunkDistribution per chunk and holder. The
    lists are iterators: of a large file they take more memory than all the rest."""
    sha256 = where.manifest.sha256
    return file_info(where.file) | {
        # the true ones, where the manifest of an encrypted file was opened
        "name": where.manifest.name,
        "sha256": sha256.hex() if sha256 is not None else None,
        "encryption": encryption(where),
        "chunks_hashes": (row.sha256.hex() for row in where.manifest.chunks),
        "distribution_map": where.distribution_map(),
        "chunks": _distribution_rows(where),
        "health": health(where),
    }


def health(where: Location) -> str:
    """complete; degraded: readable with fewer copies than asked; unavailable."""
    copies = where.live_copies()
    if not all(copies):
        return "unavailable"
    return "complete" if all(count >= where.file.replicas for count in copies) else "degraded"


def encryption(where: Location) -> dict[str, Any] | None:
    """By what an encrypted file is locked."""
    if where.manifest.sealed is None:
        return None
    from zchunk.content.encryption import head_of

    lock = head_of(where.manifest).lock
    by = {"by": "passphrase"} if lock.key_id is None else {"by": "key_file", "key_id": lock.key_id.hex()}
    return {"cipher": "AES-256-GCM", **by}


def _distribution_rows(where: Location) -> Iterator[dict[str, Any]]:
    """ChunkDistribution of each chunk and holder."""
    for index, row in enumerate(where.holders):
        chunk_hash = where.manifest.chunks[index].sha256.hex()
        for peer_id, stored_at in row:
            yield {
                "file_id": where.file.file_id,
                "chunk_index": index,
                "peer_id": peer_id,
                "chunk_hash": chunk_hash,
                "stored_at": iso_utc(stored_at / 1000),
                "is_available": where.peers[peer_id].status == "up",
            }


# -- peers ----------------------------------------------------------------------------


def peer(record: PeerRecord) -> dict[str, Any]:
    return {
        "peer_id": record.peer_id,
        "name": record.name,
        "status": record.status,
        "unsure": record.unsure,
        "endpoint": record.endpoints[0] if record.endpoints else None,
        "capacity": record.capacity,
        "free": record.free,
        "chunks": record.chunks,
        "last_seen": iso_utc(record.last_seen_ms / 1000) if record.last_seen_ms else None,
        "files_unknown": record.files_unknown,
        "refuses": record.refuses or None,
    }


# -- events ---------------------------------------------------------------------------


def cluster_event(event: Event | Missed) -> dict[str, Any]:
    """What happened, or, as `missed`, which events the tracker no longer has."""
    if isinstance(event, Missed):
        numbers = {"seq": event.last, "first": event.first, "last": event.last}
        return {"topic": "missed", "epoch": event.epoch, "time": iso_utc(SystemClock().wall()), **numbers}
    own = {
        "topic": event.topic,
        "epoch": event.epoch,
        "seq": event.seq,
        "time": iso_utc(event.time_ms / 1000),
    }
    return {**own, **event.fields, **own}  # its own come first, and are not overwritten


# -- jobs -----------------------------------------------------------------------------


def job(status: JobStatus) -> dict[str, Any]:
    """DownloadJob; without `chunks_progress` where that is too long, or not known."""
    value = asdict(status)
    if status.chunks_progress is None:
        del value["chunks_progress"]
    return value


# -- plans ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerShare:
    """One peer's part of a plan."""

    peer_id: str
    name: str
    #: what it takes, as a person reads it
    chunks_text: str
    chunks: int
    #: of these, copies of chunks whose first holder is another peer
    copies: int
    bytes: int
    #: chunks that cannot be read while it alone is off
    chunks_lost: int


def peer_shares(plan: Plan, planned: Planned) -> tuple[PeerShare, ...]:
    """Each peer's part of what the tracker answered to `plan`, in the order of the answer."""
    from zchunk.consequence import consequence, describe_chunks

    holders = assignment(plan, planned)
    primaries: dict[str, list[int]] = {}
    sizes: Counter[str] = Counter()
    for index, row in enumerate(holders):
        primaries.setdefault(row[0], []).append(index)
        for peer_id in row:
            sizes[peer_id] += chunk_length(plan.size, plan.chunk_size, index)
    records = {record.peer_id: record for record in planned.peers}
    return tuple(
        PeerShare(
            peer_id=part.peer_id,
            name=records[part.peer_id].name,
            chunks_text=describe_chunks(first := primaries.get(part.peer_id, [])),
            chunks=part.chunks,
            copies=part.chunks - len(first),
            bytes=sizes[part.peer_id],
            chunks_lost=part.chunks_lost,
        )
        for part in consequence(holders, list(records))
    )


def plan_event(name: str, plan: Plan, planned: Planned, *, encrypted: bool) -> dict[str, Any]:
    """What is told of an upload before it begins: the peers, the map, the consequence."""
    shares = peer_shares(plan, planned)
    count = chunk_count(plan.size, plan.chunk_size)
    event: dict[str, Any] = {
        "event": "plan",
        "name": name,
        "size": plan.size,
        "encrypted": encrypted,
        "is_chunked": planned.distributed,
        "chunk_size": plan.chunk_size,
        "chunks_count": count,
        "strategy": planned.strategy,
        "replicas": planned.replicas,
        "peers": [
            {"peer_id": s.peer_id, "name": s.name, "chunks": s.chunks, "bytes": s.bytes} for s in shares
        ],
        "consequence": [
            {"peer_id": s.peer_id, "name": s.name, "chunks": s.chunks, "chunks_lost": s.chunks_lost}
            for s in shares
        ],
    }
    if count <= MAX_LISTED:
        event["map"] = {str(index): row[0] for index, row in enumerate(assignment(plan, planned))}
    return event
