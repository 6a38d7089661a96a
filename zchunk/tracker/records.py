"""Peers and files between the store's rows, the wire's records and the events' fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from zchunk.protocol.messages import FileRecord, MemberRecord, PeerRecord, ReportCorrupt, ReportHeld
from zchunk.tracker.members.member_list import Member
from zchunk.tracker.rules.health import Copies

if TYPE_CHECKING:
    from zchunk.tracker.store.store import TrackerStore
    from zchunk.tracker.store.stored_peers import StoredPeer


def restored(peer: StoredPeer, member: Member | None) -> PeerRecord:
    """As the store knows it from an earlier run; `member` is its entry in the allow list. Whether
    a node that did not leave is up is still to be heard."""
    return PeerRecord(
        peer_id=peer.peer_id,
        name=peer.name,
        role="node",
        status="left" if peer.left else "down",
        incarnation=peer.incarnation,
        endpoints=tuple(peer.endpoints),
        capacity=peer.capacity,
        free=peer.free,
        chunks=peer.inventory_count,
        last_seen_ms=peer.last_seen_ms,
        public_key=None if member is None else member.public_key.hex(),
        unsure=not peer.left,
    )


def member_record(member: Member) -> MemberRecord:
    return MemberRecord(
        peer_id=member.peer_id,
        name=member.name,
        role=member.role,
        public_key=member.public_key.hex(),
        revoked=member.revoked,
    )


def save(store: TrackerStore, record: PeerRecord, left: bool) -> None:
    store.save_peer(
        peer_id=record.peer_id,
        name=record.name,
        incarnation=record.incarnation,
        endpoints=record.endpoints,
        capacity=record.capacity,
        free=record.free,
        last_seen_ms=record.last_seen_ms,
        left=left,
    )


def peer_fields(record: PeerRecord, **more: Any) -> dict[str, Any]:
    return {"peer_id": record.peer_id, "name": record.name, **more, "peer": asdict(record)}


def member_fields(member: Member) -> dict[str, Any]:
    named = {"peer_id": member.peer_id, "name": member.name, "role": member.role}
    return {**named, "member": asdict(member_record(member))}


def held_fields(node: Member, report: ReportHeld, holder: Member | None) -> dict[str, Any]:
    return {
        "peer_id": node.peer_id,
        "name": node.name,
        "held_by": report.member,
        "held_by_name": holder.name if holder is not None else report.member,
        "purpose": report.purpose,
        "bytes": report.size,
        "budget": report.budget,
        "seconds": report.seconds,
    }


def file_fields(record: FileRecord) -> dict[str, Any]:
    return {
        "file_id": record.file_id,
        "name": record.name,
        "size": record.size,
        "chunks_count": record.chunks_count,
        "is_distributed": record.is_distributed,
    }


def removed_fields(file_id: str, commit_number: int) -> dict[str, Any]:
    return {"file_id": file_id, "commit_number": commit_number}


def corrupt_fields(member: str, report: ReportCorrupt, members: int) -> dict[str, Any]:
    return {
        "peer_id": report.peer_id,
        "sha256": report.sha256.hex(),
        "reported_by": member,
        "reports": members,
    }


def health_fields(copies: Copies) -> dict[str, Any]:
    return {
        "file_id": copies.file_id,
        "name": copies.name,
        "health": copies.health.value,
        "replicas": copies.replicas,
        "chunks_count": copies.chunks_count,
        "chunks_unavailable": copies.chunks_unavailable,
        "chunks_below_replicas": copies.chunks_below_replicas,
    }
