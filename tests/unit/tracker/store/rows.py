"""What tests of the tracker's database share: files, peers, commits, and what it says of holders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.protocol import columns
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.store.store import LocatedRows, TrackerStore

CHUNK = 64 * 1024

A, B, C, D = (f"{number:032x}" for number in (0xA, 0xB, 0xC, 0xD))

NAMES = {A: "A", B: "B", C: "C", D: "D"}


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def digests(numbers: Iterable[int]) -> list[bytes]:
    return [digest(number) for number in numbers]


def make(name: str, chunks: Sequence[int], *, sealed: bytes | None = None) -> Manifest:
    """A file of whole chunks, each known by a number."""
    size, encoding = (CHUNK + 16, "aes256gcm") if sealed else (CHUNK, "identity")
    rows = tuple(ChunkRow(size, encoding, digest(n), digest(n), None) for n in chunks)
    content = None if sealed else hashlib.sha256(repr((name, chunks)).encode()).digest()
    return Manifest(name, len(chunks) * CHUNK, content, CHUNK, rows, sealed)


def register(store: TrackerStore, peer_id: str, **other: Any) -> None:
    values: dict[str, Any] = {
        "name": NAMES.get(peer_id, peer_id),
        "incarnation": 1,
        "endpoints": ("tcp://10.0.0.1:7000",),
        "capacity": 1000,
        "free": 900,
        "last_seen_ms": 5,
        "left": False,
    }
    store.save_peer(peer_id, **{**values, **other})


def commit(store: TrackerStore, manifest: Manifest, **other: Any) -> tuple[FileRecord, bool]:
    values: dict[str, Any] = {
        "replicas": 1,
        "min_peers": 2,
        "distributed": True,
        "live": [A, B, C],
        "now_ms": 1000,
    }
    return store.commit_file(manifest, **{**values, **other})


def stored(store: TrackerStore, manifest: Manifest, peers: Sequence[str] = (A, B)) -> Manifest:
    """Each chunk on one of `peers`, in turn."""
    for turn, peer_id in enumerate(peers):
        rows = manifest.chunks[turn :: len(peers)]
        store.add_holdings(peer_id, [row.sha256 for row in rows], 10)
    return manifest


def holders(located: LocatedRows) -> list[list[tuple[str, int]]]:
    """Per chunk [(peer id, stored at), ...], from the packed columns."""
    peers = iter(columns.unpack(2, located.holder_peers))
    times = iter(columns.unpack(8, located.holder_times))
    counts = columns.unpack(2, located.holder_counts)
    read = [[(located.peer_ids[next(peers)], next(times)) for _ in range(count)] for count in counts]
    assert next(peers, None) is None
    assert next(times, None) is None
    return read


def view(store: TrackerStore) -> set[tuple[Any, ...]]:
    rows = store._database.models.ChunkLocation.select().tuples()
    return {(f, i, p, bytes(h), at, bool(ok)) for f, i, p, h, at, ok in rows}


def found(
    store: TrackerStore, numbers: Sequence[int], live: Sequence[str], limit: int = 9
) -> list[list[str]]:
    rows = store.find_chunks(digests(numbers), live, limit)
    peers = iter(columns.unpack(2, rows.holder_peers))
    read = [[rows.peer_ids[next(peers)] for _ in range(n)] for n in columns.unpack(2, rows.holder_counts)]
    assert next(peers, None) is None
    assert {peer_id for chunk in read for peer_id in chunk} == set(rows.peer_ids)
    return read


def put(store: TrackerStore, name: str, chunk: int, now_ms: int) -> FileRecord:
    return commit(store, stored(store, make(name, [chunk]), [A]), distributed=False, now_ms=now_ms)[0]
