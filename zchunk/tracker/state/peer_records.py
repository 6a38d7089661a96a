"""What the tracker knows of each node, as others are shown it. Pure.

Each node says each second how much it holds. That is kept beside its record, which is made anew
only when somebody asks for it: to make one is much of what a heartbeat costs.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from msgspec import Struct
from msgspec.structs import replace

from zchunk.protocol.messages import PeerRecord


class _Beat(Struct, frozen=True):
    free: int
    chunks: int
    last_seen_ms: int


class PeerRecords(MutableMapping[str, PeerRecord]):
    """By peer id. What is asked for is as of the last heartbeat."""

    def __init__(self) -> None:
        self._records: dict[str, PeerRecord] = {}
        #: what is newer than in their records
        self._beats: dict[str, _Beat] = {}

    def heard(self, peer_id: str, free: int, chunks: int, last_seen_ms: int) -> None:
        """A node that has a record sent a heartbeat."""
        self._beats[peer_id] = _Beat(free, chunks, last_seen_ms)

    def status(self, peer_id: str) -> str:
        return self._records[peer_id].status

    def files_unknown(self, peer_id: str) -> int:
        return self._records[peer_id].files_unknown

    def refuses(self, peer_id: str) -> str:
        return self._records[peer_id].refuses

    def __getitem__(self, peer_id: str) -> PeerRecord:
        beat = self._beats.pop(peer_id, None)
        if beat is not None:
            free, chunks, seen = beat.free, beat.chunks, beat.last_seen_ms
            record = replace(self._records[peer_id], free=free, chunks=chunks, last_seen_ms=seen)
            self._records[peer_id] = record
        return self._records[peer_id]

    def __setitem__(self, peer_id: str, record: PeerRecord) -> None:
        self._beats.pop(peer_id, None)
        self._records[peer_id] = record

    def __delitem__(self, peer_id: str) -> None:
        self._beats.pop(peer_id, None)
        del self._records[peer_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
