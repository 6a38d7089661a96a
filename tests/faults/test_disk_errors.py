"""T4: a node's disk fails to sync, or to read. What it cannot keep it does not announce, and
others give what it cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.announced import announced
from tests.faults.tracing import needs_strace, tampered
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.waiting import wait_for

pytestmark = needs_strace

_SYNCS = "fsync,fdatasync:error=EIO"
_READS = "preadv,preadv2:error=EIO"


@pytest.fixture
def trio(small: Cluster) -> Iterator[Cluster]:
    """The nodes A, B, C; A starts again after each test, so that its disk is good again."""
    yield small
    small.nodes["A"].process.end()
    small.restart("A")


def free(cluster: Cluster, name: str) -> int:
    rows = cluster.client.run("peers").last
    return next(int(row["free"]) for row in rows if row["name"] == name)


def test_a_node_that_cannot_sync_announces_nothing(trio: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "unsynced.bin", 4 * MIB), trio.nodes["A"]
    with tampered(node.process, folder / "trace", _SYNCS):
        done = trio.client.put(source.path).last
    assert "INJECTED" in (folder / "trace").read_text(), "it was asked to sync"
    assert node.peer_id not in done["peers"]
    hashes = trio.client.info("unsynced.bin")["chunks_hashes"]
    assert not announced(trio, node) & set(hashes)
    trio.client.get("unsynced.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    assert "takes no more chunks" in node.process.stderr


def test_a_disk_that_failed_once_is_not_used_until_a_restart(trio: Cluster, folder: Path) -> None:
    node = trio.nodes["A"]
    first, second = make_file(folder / "first", 4 * MIB), make_file(folder / "second", 4 * MIB)
    with tampered(node.process, folder / "trace", _SYNCS):
        trio.client.put(first.path)
    wait_for(lambda: free(trio, "A") == 0, PATIENCE_S, "the tracker knows that A takes nothing")
    assert node.peer_id not in trio.client.put(second.path).last["peers"]
    node.process.end()
    trio.restart("A")
    wait_for(lambda: free(trio, "A") > 0, PATIENCE_S, "A takes chunks again")
    third = make_file(folder / "third", 4 * MIB)
    assert node.peer_id in trio.client.put(third.path).last["peers"]


def test_what_a_node_cannot_read_comes_from_the_replica(trio: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "unread.bin", 4 * MIB), trio.nodes["A"]
    trio.client.put(source.path, "--replicas", "2")
    assert node.holds(trio.client.info("unread.bin")["chunks_hashes"])
    with tampered(node.process, folder / "trace", _READS):
        done = trio.client.get("unread.bin", folder / "copy", "--no-wait").last
    assert "INJECTED" in (folder / "trace").read_text(), "it was asked"
    assert node.peer_id not in done["bytes_received_by_peer"]
    assert sha256_of(folder / "copy") == source.sha256


def test_what_only_a_failing_disk_has_is_told_and_can_be_put_again(trio: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "unreadable.bin", 4 * MIB), trio.nodes["A"]
    trio.client.put(source.path)
    with tampered(node.process, folder / "trace", _READS):
        result = trio.client.get("unreadable.bin", folder / "copy", code=None)
    assert result.code in (4, 5), str(result)
    assert "(A)" in result.stderr, "it is named"
    # What the node could not read when it looked itself, it no longer counts as held.
    trio.client.put(source.path)
    again = trio.client.get("unreadable.bin", folder / "copy")
    assert again.of("plan")[0]["chunks_kept"] > 0
    assert sha256_of(folder / "copy") == source.sha256
