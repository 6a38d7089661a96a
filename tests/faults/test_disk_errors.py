"""T4: a node's disk fails to sync, or to read. What it cannot keep it does not announce, and
others give what it cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.announced import announced
from tests.faults.tracing import injected, needs_strace, tampered
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


@pytest.mark.row("U5")
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
    assert "accepts no more chunks" in node.process.stderr


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


def test_a_plan_that_needs_a_node_whose_disk_failed_says_so(trio: Cluster, folder: Path) -> None:
    """And not that there is no room: nobody is to remove files for it."""
    node, source = trio.nodes["A"], make_file(folder / "needs", 2 * MIB)
    with tampered(node.process, folder / "trace", _SYNCS):
        trio.client.put(make_file(folder / "fails", 4 * MIB).path)
    wait_for(lambda: free(trio, "A") == 0, PATIENCE_S, "the tracker knows that A takes nothing")
    row = next(row for row in trio.client.run("peers").last if row["name"] == "A")
    assert row["status"] == "up"
    assert row["refuses"].startswith("the store accepts no chunks until the node is restarted: ")
    assert row["refuses"].endswith("Input/output error; check the disk, its data cannot be trusted")
    refused = trio.client.run("put", "--yes", "--replicas", "3", source.path, code=3).last
    assert refused["code"] == "too_few_peers"
    assert refused["message"] == (
        f"3 peers are needed; ready for chunks: B, C; A is up, but refuses chunks: {row['refuses']}"
    )
    put = trio.client.start("put", "--yes", "--wait", "--replicas", "3", source.path)
    assert [told["name"] for told in put.until("waiting")["refusing"]] == ["A"]
    node.process.end()
    trio.restart("A")
    assert node.peer_id in put.result().expect(0).last["peers"]


def test_what_a_node_cannot_read_comes_from_the_replica(trio: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "unread.bin", 4 * MIB), trio.nodes["A"]
    trio.client.put(source.path, "--replicas", "2")
    assert node.holds(trio.client.info("unread.bin")["chunks_hashes"])
    with tampered(node.process, folder / "trace", _READS):
        done = trio.client.get("unread.bin", folder / "copy", "--no-wait").last
    assert "INJECTED" in (folder / "trace").read_text(), "it was asked"
    assert node.peer_id not in done["bytes_received_by_peer"]
    assert sha256_of(folder / "copy") == source.sha256


@pytest.mark.parametrize(
    "errors",
    ["preadv,preadv2:error=EIO", "openat:error=EMFILE", "openat:error=EACCES"],
)
def test_a_time_in_which_a_node_cannot_read_costs_no_chunk(trio: Cluster, folder: Path, errors: str) -> None:
    """Nobody else has them. The download waits and says for whom; it goes on by itself."""
    source, node, log = make_file(folder / "moment.bin", 4 * MIB), trio.nodes["A"], folder / "trace"
    trio.client.put(source.path)
    hashes = trio.client.info("moment.bin")["chunks_hashes"]
    mine = node.holds(hashes)
    assert len(mine) > 10
    with tampered(node.process, log, errors, only=[node.chunk_path(sha256) for sha256 in mine]):
        get = trio.client.start("get", "-o", folder / "copy", "--", "moment.bin")
        waiting = get.until("waiting")
    assert [(row["name"], row["reason"]) for row in waiting["missing"]] == [("A", "unreadable")]
    assert waiting["chunks_missing"] == len(mine)
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256
    assert injected(log) >= len(mine)
    assert node.holds(hashes) == mine <= announced(trio, node)
    # Others' tests may have removed files of theirs.
    apart = [path for path in (node.store / "trash").rglob("*") if path.name[-64:] in mine]
    assert not apart, "nothing was set apart"


def test_what_a_node_cannot_read_can_be_put_again(trio: Cluster, folder: Path) -> None:
    """Also to the same node: what comes replaces what it cannot read."""
    source, node, log = make_file(folder / "again.bin", 4 * MIB), trio.nodes["A"], folder / "trace"
    trio.client.put(source.path)
    mine = node.holds(trio.client.info("again.bin")["chunks_hashes"])
    before = {sha256: node.chunk_path(sha256).stat().st_ino for sha256 in mine}
    with tampered(node.process, log, _READS):
        done = trio.client.put(source.path, "--name", "other.bin").last
    assert done["bytes_sent"] == len(mine) * 64 * 1024
    trio.client.get("other.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    assert not [sha256 for sha256 in mine if node.chunk_path(sha256).stat().st_ino == before[sha256]]


def test_sound_chunks_in_the_trash_of_damaged_ones_are_taken_back_at_the_start(
    trio: Cluster, folder: Path
) -> None:
    """As earlier versions left them there, which took what they could not read for damaged."""
    source, node = make_file(folder / "back.bin", 4 * MIB), trio.nodes["A"]
    trio.client.put(source.path)
    mine = node.holds(trio.client.info("back.bin")["chunks_hashes"])
    node.process.end()
    corrupt = node.store / "trash" / "corrupt"
    corrupt.mkdir()
    for sha256 in mine:
        node.chunk_path(sha256).rename(corrupt / f"2026-01-31-{sha256}")
    (node.store / "index.sqlite").unlink()
    trio.restart("A")
    wait_for(lambda: announced(trio, node) >= mine, PATIENCE_S, "all of them are told again")
    trio.client.get("back.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    assert not list(corrupt.iterdir())
