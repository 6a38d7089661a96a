"""Uploads on a simulated cluster: what is hashed, read and sent; for whom they wait (SPEC U6, U7)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, Cluster, Outcome, SimClient
from tests.sim.replay import record
from zchunk.content import hashing
from zchunk.errors import StoreOffline
from zchunk.node.upload.source_file import SourceFile
from zchunk.tracker.rules.promises import GONE_S, SILENT_S


def put(cluster: Cluster, path: Path, **options: Any) -> dict[str, Any]:
    outcome = cluster.client().put(path, **options)
    cluster.run(lambda: outcome.ended, f"the upload of {path.name}")
    done: dict[str, Any] = outcome.expect_done()
    return done


def changed(path: Path, name: str, at: int) -> Path:
    """A copy with one bit flipped."""
    other, content = path.with_name(name), bytearray(path.read_bytes())
    content[at] ^= 1
    other.write_bytes(content)
    return other


# -- what a file with holes costs ------------------------------------------------------------


def test_holes_are_neither_read_nor_sent(root: Path) -> None:
    cluster = Cluster(root, 8)
    path = cluster.make_file("image", 3 * CHUNK)
    with open(path, "r+b") as file:
        file.truncate(100 * CHUNK)
        file.seek(60 * CHUNK)
        file.write(b"data")
    hashing.counts.clear()
    read: list[int] = []
    read_chunk = SourceFile.read_chunk

    def noted(self: SourceFile, index: int, chunk_size: int, into: memoryview) -> memoryview:
        read.append(index)
        return read_chunk(self, index, chunk_size, into)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceFile, "read_chunk", noted)
        done = put(cluster, path)
    assert sorted(read) == [0, 1, 2, 60]
    assert done["bytes_sent"] == 5 * CHUNK, "one chunk of zeros is stored for all"
    here, there = 4 * CHUNK, 5 * CHUNK
    assert hashing.counts["blake3"] >= here + there
    assert hashing.counts["sha256"] == 100 * CHUNK + here + there, "the file's digest takes all of it"
    cluster.verify({"image": path})


# -- what a new version costs (U7) -----------------------------------------------------------


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many bytes of each source file are read."""
    counts: Counter[str] = Counter()
    read_chunk = SourceFile.read_chunk

    def counted(self: SourceFile, index: int, chunk_size: int, into: memoryview) -> memoryview:
        view = read_chunk(self, index, chunk_size, into)
        counts[self.path.name] += len(view)
        return view

    monkeypatch.setattr(SourceFile, "read_chunk", counted)
    return counts


@pytest.mark.row("U3", "U7")
@pytest.mark.parametrize("away", [False, True], ids=["same peers", "other peers"])
def test_a_file_with_1_percent_changed_costs_one_pass_here_and_that_1_percent_there(
    root: Path, read_bytes: Counter[str], away: bool
) -> None:
    """The uploader hashes each chunk once by each algorithm, and the file. Nodes hash what
    they are sent by both; what they have they only look at, by the fast BLAKE3."""
    cluster = Cluster(root, 5, nodes=4)
    path = cluster.make_file("v1", 100 * CHUNK)
    put(cluster, path)
    version = changed(path, "v2", 70 * CHUNK + 9)
    if away:  # the plan then names other peers for most of the chunks
        put(cluster, path, replicas=2)
        cluster.nodes[1].crash()
        cluster.run(lambda: not cluster.nodes[1].is_up(), "the lease to end")
    hashing.counts.clear()
    done = put(cluster, version)
    assert done["bytes_sent"] == CHUNK
    assert read_bytes["v2"] == version.stat().st_size
    size = version.stat().st_size
    assert hashing.counts == {"sha256": 2 * size + CHUNK, "blake3": 2 * size}


def test_the_same_file_again_is_hashed_here_and_nowhere_else(root: Path) -> None:
    cluster = Cluster(root, 6)
    path = cluster.make_file("same", 20 * CHUNK + 7)
    first = put(cluster, path)
    hashing.counts.clear()
    again = put(cluster, path)
    assert (again["bytes_sent"], again["already"]) == (0, True)
    assert again["file_id"] == first["file_id"]
    size = path.stat().st_size
    assert hashing.counts == {"sha256": 2 * size, "blake3": 2 * size}


@pytest.mark.row("U7")
def test_an_undivided_file_goes_on_where_it_began(root: Path) -> None:
    """U1, U7: its first peer has less free by then, and the plan prefers another."""
    settings: dict[str, dict[str, Any]] = {
        "chunking": {"chunk_size": CHUNK, "min_file_size_for_distribution": "1GiB"},
        "node": {"reserve": 0, "capacity": "1GiB"},
        "transfer": {"block_size_min": 16 * 1024, "block_size_max": 32 * 1024, "receive_budget": 6 * CHUNK},
    }
    cluster = Cluster(root, 7, settings=settings)
    path = cluster.make_file("whole", 40 * CHUNK)
    killed = cluster.client()
    killed.put(path)
    cluster.run(lambda: any(node.store.count >= 15 for node in cluster.nodes), "some of it stored")
    killed.host.crash()
    [first] = [node for node in cluster.nodes if node.store.count]
    cluster.run(lambda: cluster.is_quiet(first), "it to give up what was half sent")
    cluster.run_for(2.0)  # a heartbeat tells what is free
    kept = first.store.count
    done = put(cluster, path)
    assert done["peers"] == [first.membership.peer_id]
    assert done["bytes_sent"] == (40 - kept) * CHUNK


@pytest.mark.parametrize("strategy", ["round_robin", "contiguous"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_chunks_of_the_same_bytes_are_sent_once_for_each_copy(
    root: Path, strategy: str, replicas: int
) -> None:
    """A disk image is mostly zeros. Of the only chunk there must be two copies, on two peers."""
    cluster = Cluster(root, 12)
    path = cluster.make_file("zeros", 0)
    path.write_bytes(bytes(60 * CHUNK))
    done = put(cluster, path, strategy=strategy, replicas=replicas)
    assert done["bytes_sent"] == 2 * CHUNK
    assert len(done["peers"]) == 2
    assert done["seconds"] < 2, "nothing was refused and tried again"
    cluster.verify({path.name: path})


# -- the tracker does not answer ------------------------------------------------------------


def test_without_the_tracker_chunks_go_as_planned(root: Path) -> None:
    """It is needed again at the commit."""
    cluster = Cluster(root, 8)
    path = cluster.make_file("alone", 12 * CHUNK)
    client = cluster.client()
    outcome = client.put(path)
    cluster.run(lambda: any(node.store.count for node in cluster.nodes), "the first chunk stored")
    cluster.network.cut(client.host.name, "tracker")
    cluster.run(lambda: sum(n.store.count for n in cluster.nodes) == 12, "all stored", limit_s=10)
    cluster.network.heal()
    cluster.run(lambda: outcome.ended, "the commit")
    assert outcome.expect_done()["bytes_sent"] == path.stat().st_size
    cluster.verify({path.name: path})


# -- waiting (U6) ----------------------------------------------------------------------------


def waiting_upload(cluster: Cluster, size: int) -> tuple[SimClient, Outcome, dict[str, Any]]:
    """Of two nodes one dies in the middle; the upload that then waits, and its word for it."""
    client = cluster.client()
    outcome = client.put(cluster.make_file("waits", size))
    lost = cluster.nodes[1]
    cluster.run(lambda: lost.store.count >= 3, "some chunks stored")
    lost.crash()
    cluster.run(lambda: any(e["event"] == "waiting" for e in outcome.events), "the upload to wait")
    return client, outcome, next(e for e in outcome.events if e["event"] == "waiting")


@pytest.mark.row("U6")
def test_a_waiting_upload_says_for_whom_since_when_and_for_how_much(root: Path) -> None:
    cluster = Cluster(root, 9, nodes=2)
    _, _, event = waiting_upload(cluster, 40 * CHUNK)
    lost = cluster.nodes[1].membership.peer_id
    assert event["missing_peers"] == [lost]
    [row] = event["missing"]
    assert (row["peer_id"], row["name"]) == (lost, "b")
    assert row["last_seen"]
    assert row["chunks"] == 20, "every second one; what it had stored counts only when it is back"
    assert event["chunks_missing"] == 40 - event["chunks_completed"] >= 20
    assert (list(event["online"]), event["needed"], event["chunks_count"]) == (["a"], 2, 40)
    assert "1 peer online (a)" in event["message"]
    assert event["waiting_since"]


def test_a_waiting_upload_keeps_its_promise_also_over_a_broken_line(root: Path) -> None:
    """So long that the tracker gives up what was promised by the connection before."""
    cluster = Cluster(root, 11, nodes=2)
    client, _, _ = waiting_upload(cluster, 40 * CHUNK)
    promises = cluster.tracker.server.core.promises
    cluster.network.cut(client.host.name, "tracker")
    cluster.run(lambda: not promises._by, "the tracker to notice", limit_s=10)
    cluster.network.heal()
    cluster.run(lambda: bool(promises._by), "the upload to say that it goes on", limit_s=10)
    cluster.run_for(GONE_S + SILENT_S)
    assert len(promises) == 1


def test_the_promise_of_an_upload_that_died_ends(root: Path) -> None:
    cluster = Cluster(root, 12, nodes=2)
    client, _, _ = waiting_upload(cluster, 40 * CHUNK)
    promises = cluster.tracker.server.core.promises
    client.host.crash()
    cluster.run(lambda: not promises._by, "the tracker to notice", limit_s=10)
    cluster.run_for(GONE_S - 10)
    assert len(promises) == 1
    cluster.run_for(11)
    assert len(promises) == 0


@pytest.mark.row("U6")
def test_a_waiting_upload_polls_nobody_and_goes_on_by_the_event(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(root, 10, nodes=2)
    client, outcome, _ = waiting_upload(cluster, 40 * CHUNK)
    kept = cluster.nodes[1].folder / "store" / "chunks"
    stored_there = len(list(kept.glob("*/*")))
    cluster.run_for(3.0)
    trace = record(monkeypatch)
    cluster.run_for(600.0)
    mine = [line.split()[4] for line in trace if line.split()[1:3] == [client.host.name, ">"]]
    assert set(mine) == {"heartbeat"}, Counter(mine)
    assert not outcome.ended
    cluster.nodes[1].start()
    cluster.run(cluster.nodes[1].is_up, "the peer to be back")
    before = cluster.clock.monotonic()
    cluster.run(lambda: any(e["event"] == "resumed" for e in outcome.events), "the upload to go on")
    assert cluster.clock.monotonic() - before < 0.2
    cluster.run(lambda: outcome.ended, "the upload")
    done = outcome.expect_done()
    assert done["bytes_sent"] <= 40 * CHUNK + 6 * CHUNK, "again at most what was on its way"
    assert cluster.nodes[1].store.count == 20
    assert stored_there >= 3
    resumed = next(e for e in outcome.events if e["event"] == "resumed")
    assert (resumed["peer_id"], resumed["name"]) == (cluster.nodes[1].membership.peer_id, "b")
    cluster.verify({"waits": cluster.root / "files" / "waits"})


def test_a_holder_that_cannot_keep_the_manifest_is_replaced(root: Path) -> None:
    """U6: its disk was pulled when it had everything; the file is published without it."""
    cluster = Cluster(root, 11)
    path = cluster.make_file("pulled", 12 * CHUNK)
    broken, *others = cluster.nodes

    def put_manifest(file_id: str, data: bytes, upload_id: str) -> None:
        raise StoreOffline("the disk is gone")

    broken.store.put_manifest = put_manifest
    done = put(cluster, path)
    assert sorted(done["peers"]) == sorted(node.membership.peer_id for node in others)
    del broken.store.put_manifest
    cluster.verify({path.name: path})
