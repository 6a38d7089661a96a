"""What the tracker says a node holds, and what lies on that node's disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.integration.cluster import Cluster, Node

_QUERY = """
    SELECT hex(chunk_hash) FROM Holding
    JOIN Chunk ON Holding.chunk = Chunk.id JOIN Peer ON Holding.peer = Peer.id
    WHERE is_available AND peer_id = ?
"""


def announced(cluster: Cluster, node: Node) -> set[str]:
    """SHA-256 of the chunks of which the tracker's database names the node as a holder,
    also those of files that are not published yet."""
    database = cluster.tracker.home / "tracker" / "tracker.sqlite"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(_QUERY, (node.peer_id,)).fetchall()
    return {row[0].lower() for row in rows}


def whole_chunks(node: Node) -> set[str]:
    """SHA-256 of the chunk files on its disk; every one must be what its name says."""
    found = set()
    for path in (node.store / "chunks").glob("??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, f"{path} is not whole"
        found.add(path.name)
    return found


def leftovers(node: Node) -> Iterator[Path]:
    """Temporary files in a node's store."""
    yield from (node.store / "tmp").iterdir()
    yield from node.store.rglob(".zchunk-*.tmp")
