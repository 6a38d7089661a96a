"""Uploads that are killed, frozen, or lose a peer, and run again: what is there is not sent
again, whichever peers are up by then (SPEC U6, U7).

What is missing is read from the nodes' disks, and `bytes_sent` must be exactly that.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Event, Process, Source, flip_bit, sha256_of
from tests.integration.conftest import SMALL
from tests.integration.test_edges import CHUNK, fresh
from tests.waiting import wait_for

SIZE = 16 * MIB + 1000
COUNT = SIZE // CHUNK + 1
#: of each fault
ROUNDS = int(os.environ.get("ZCHUNK_ROUNDS", "4"))
SEED = int(os.environ.get("ZCHUNK_SEED", "20"))
#: So that an upload has a middle: one that holds only a few chunks at a time.
SLOW = {"transfer.receive_budget": "1MiB"}


@pytest.fixture(scope="module")
def quad_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("quad"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C", "D")
        yield cluster


@pytest.fixture
def quad(quad_cluster: Cluster) -> Iterator[Cluster]:
    """Four nodes."""
    yield quad_cluster
    quad_cluster.mend()


# -- what the disks say -----------------------------------------------------------------------


def hashes_of(source: Source) -> list[str]:
    data = source.path.read_bytes()
    return [hashlib.sha256(data[at : at + CHUNK]).hexdigest() for at in range(0, len(data), CHUNK)]


def stored(cluster: Cluster, hashes: list[str]) -> set[str]:
    """Which of these chunks lie on a node that runs."""
    return set().union(*(node.holds(hashes) for node in cluster.nodes.values() if node.process.alive))


def missing_bytes(cluster: Cluster, source: Source) -> int:
    hashes = hashes_of(source)
    there = stored(cluster, hashes)
    sizes = (min(CHUNK, source.size - index * CHUNK) for index in range(len(hashes)))
    return sum(size for sha256, size in zip(hashes, sizes, strict=True) if sha256 not in there)


def settle(cluster: Cluster) -> None:
    """Until the tracker has heard of every chunk on the disks: a node tells of chunks
    before the heartbeats that count them. Two, since one may overtake a report."""
    live = [node for node in cluster.nodes.values() if node.process.alive]
    for _ in range(2):
        before = {name: record.last_seen_ms for name, record in cluster.records().items()}

        def told(before: dict[str, int] = before) -> bool:
            records = cluster.records()
            return all(
                records[node.name].last_seen_ms > before[node.name]
                and records[node.name].status == "up"
                and records[node.name].chunks == len(node.chunks())
                for node in live
            )

        wait_for(told, PATIENCE_S, "the tracker knows what the nodes hold")


def begin(cluster: Cluster, source: Source, chunks: int) -> Process:
    """An upload that runs, when `chunks` of its chunks are stored, or all."""
    hashes = hashes_of(source)
    put = cluster.client.start("put", "--yes", source.path, settings=SLOW)
    wait_for(lambda: len(stored(cluster, hashes)) >= chunks, PATIENCE_S, f"{chunks} chunks stored")
    return put


def kill(put: Process) -> bool:
    """kill -9; whether it still ran."""
    put.send(signal.SIGKILL)
    code = put.result().code
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check(cluster: Cluster, source: Source, folder: Path) -> None:
    """The file is complete and identical, on two peers or more."""
    info = cluster.client.info(source.path.name)
    assert (info["health"], info["sha256"]) == ("complete", source.sha256)
    assert len(set(info["distribution_map"].values())) >= 2
    assert len(info["distribution_map"]) == len(hashes_of(source))
    target = folder / f"copy of {source.path.name}"
    cluster.client.get(source.path.name, target)
    assert sha256_of(target) == source.sha256
    target.unlink()


# -- run again with other peers (U7) -----------------------------------------------------------


@pytest.mark.row("U7")
@pytest.mark.parametrize("change", ["same", "one fewer", "one more"])
def test_a_killed_upload_sends_only_what_is_missing(change: str, quad: Cluster, folder: Path) -> None:
    source = fresh(folder, SIZE)
    if change == "one more":
        quad.stop("D")
    assert kill(begin(quad, source, COUNT // 2)), "a finished upload is no round"
    if change == "one fewer":
        quad.kill("D")
    elif change == "one more":
        quad.restart("D")
    settle(quad)
    missing = missing_bytes(quad, source)
    assert 0 < missing < SIZE
    assert source.path.name not in quad.client.names(), "all or nothing (U5)"
    assert quad.client.put(source.path).last["bytes_sent"] == missing
    check(quad, source, folder)
    again = quad.client.put(source.path).last
    assert (again["bytes_sent"], again["already"]) == (0, True)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_it_goes_through_at_once_where_the_file_fits_only_once(
    end: int, tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    """Nothing is promised to the dead upload any more, and what is stored of it is counted on."""
    source = fresh(folder, SIZE)
    with Cluster(tmp_path_factory.mktemp("nearly full"), SMALL) as cluster:
        cluster.start_nodes("A", "B", options=("--capacity", "10MB"))
        for part in (3, 2):  # killed again when there is more of it
            put = begin(cluster, source, COUNT // part)
            assert put.alive, "a finished upload is no round"
            put.send(end)
            put.wait()
        missing = missing_bytes(cluster, source)
        assert 0 < missing < SIZE
        assert 0 < cluster.client.put(source.path).last["bytes_sent"] <= missing
        check(cluster, source, folder)
        other = fresh(folder, SIZE)
        assert cluster.client.put(other.path, code=8).last["code"] == "no_space"


@pytest.mark.row("U7")
def test_a_version_or_copy_sends_only_new_chunks_whatever_peers_the_plan_names(
    quad: Cluster, folder: Path
) -> None:
    source = fresh(folder, SIZE)
    quad.stop("D")
    quad.client.put(source.path)
    quad.restart("D")
    copy = quad.client.put(source.path, "--name", "a copy.bin", "--strategy", "contiguous").last
    assert (copy["bytes_sent"], copy["already"]) == (0, False)
    assert copy["sha256"] == source.sha256
    with open(source.path, "r+b") as file:  # 1 % of it
        for index in (5, 100):
            file.seek(index * CHUNK)
            file.write(os.urandom(CHUNK))
    version = Source(source.path, source.size, sha256_of(source.path))
    assert quad.client.put(version.path).last["bytes_sent"] == 2 * CHUNK
    check(quad, version, folder)


@pytest.mark.row("U7")
def test_the_same_file_sends_nothing_when_a_node_has_joined(quad: Cluster, folder: Path) -> None:
    source = fresh(folder, SIZE)
    quad.stop("A")
    first = quad.client.put(source.path).last
    quad.restart("A")
    again = quad.client.put(source.path).last
    assert (again["file_id"], again["bytes_sent"], again["already"]) == (first["file_id"], 0, True)


# -- too few peers left (U6) ---------------------------------------------------------------------


def waiting_pair(cluster: Cluster, source: Source) -> tuple[Process, Event]:
    """Of two nodes B dies in the middle: the upload that waits, and its word for it."""
    cluster.start_nodes("A", "B")
    put = begin(cluster, source, COUNT // 3)
    assert put.alive, "a finished upload is no round"
    cluster.kill("B")
    return put, put.until("waiting")


@pytest.mark.row("U6")
def test_an_upload_goes_on_when_its_peer_is_back_and_its_copies_count(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    source = fresh(folder, SIZE)
    with Cluster(tmp_path_factory.mktemp("pair"), SMALL) as cluster:
        put, event = waiting_pair(cluster, source)
        lost = cluster.nodes["B"]
        assert event["missing_peers"] == [lost.peer_id]
        assert [(row["peer_id"], row["name"]) for row in event["missing"]] == [(lost.peer_id, "B")]
        assert event["chunks_missing"] == COUNT - event["chunks_completed"] > 0
        assert (event["online"], event["needed"]) == (["A"], 2)
        cluster.restart("B")
        result = put.result().expect(0)
        assert [e["peer_id"] for e in result.of("resumed")] == [lost.peer_id]
        assert result.last["bytes_sent"] <= source.size, "nothing that B had was sent again"
        check(cluster, source, folder)


@pytest.mark.row("U6")
def test_ctrl_c_leaves_a_waiting_upload_resumable(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    source = fresh(folder, SIZE)
    with Cluster(tmp_path_factory.mktemp("pair"), SMALL) as cluster:
        put, _ = waiting_pair(cluster, source)
        put.send(signal.SIGINT)
        assert put.result().expect(130).last["code"] == "interrupted"
        cluster.restart("B")
        settle(cluster)
        missing = missing_bytes(cluster, source)
        assert 0 < missing < SIZE
        assert cluster.client.put(source.path).last["bytes_sent"] == missing
        check(cluster, source, folder)


# -- at any moment --------------------------------------------------------------------------------


#: Does its harm, sees the upload through (run again if need be), and says whether the
#: upload was still running when it came.
Fault = Callable[[Cluster, Source, Process, Random], bool]


def killed_uploader(cluster: Cluster, source: Source, put: Process, rng: Random) -> bool:
    if not kill(put):
        return False
    settle(cluster)
    missing = missing_bytes(cluster, source)
    assert cluster.client.put(source.path).last["bytes_sent"] == missing
    return True


def frozen_uploader(cluster: Cluster, source: Source, put: Process, rng: Random) -> bool:
    """SIGSTOP for some of the cluster's heartbeats: the nodes keep what it began."""
    with cluster.frozen(put):
        ran = put.alive
        beats = rng.randrange(1, 4)
        end = cluster.records()["A"].last_seen_ms + 1000 * beats
        wait_for(lambda: cluster.records()["A"].last_seen_ms >= end, PATIENCE_S, f"{beats} heartbeats")
    assert put.result().expect(0).last["bytes_sent"] == source.size
    return ran


def killed_node(cluster: Cluster, source: Source, put: Process, rng: Random) -> bool:
    """kill -9 of a node that takes its share: the file is complete without it, unless it was
    committed before anybody could know."""
    name = rng.choice(sorted(cluster.nodes))
    cluster.kill(name)
    ran = put.alive
    put.result().expect(0)
    if ran:
        check(cluster, source, source.path.parent)
    cluster.restart(name)
    return ran


@pytest.mark.row("U6")
@pytest.mark.parametrize("fault", [killed_uploader, frozen_uploader, killed_node])
def test_at_any_moment_the_file_ends_complete(fault: Fault, quad: Cluster, folder: Path) -> None:
    """U6, U7: at drawn moments over the whole length of the upload. ZCHUNK_ROUNDS=100 runs more."""
    name = fault.__name__
    rng, tries = Random(f"{SEED} {name}"), 0
    moments: list[int] = []
    while len(moments) < ROUNDS:
        tries += 1
        assert tries <= 4 * ROUNDS, f"seed {SEED}: most uploads had ended: {moments}"
        source, chunks = fresh(folder, SIZE), rng.randrange(1, COUNT)
        put = begin(quad, source, chunks)
        if fault(quad, source, put, rng):
            moments.append(100 * chunks // COUNT)
        quad.mend()
        check(quad, source, folder)
        quad.client.run("rm", "--yes", source.path.name)
        source.path.unlink()
    shown = [sum(low <= m < low + 10 for m in moments) for low in range(0, 100, 10)]
    print(f"{name}, seed {SEED}: moments in per cent {moments}, by tenths {shown}")


# -- what a disk has lost meanwhile -----------------------------------------------------------


@pytest.mark.parametrize("loss", ["a flipped bit", "no file"])
def test_putting_a_file_again_heals_what_a_disk_has_lost(loss: str, quad: Cluster, folder: Path) -> None:
    """A node says that it has a chunk only after it has looked (SPEC U5)."""
    source = fresh(folder, SIZE)
    quad.client.put(source.path)
    hashes = hashes_of(source)
    node = next(node for node in quad.nodes.values() if node.holds(hashes[:1]))
    path = node.chunk_path(hashes[0])
    if loss == "no file":
        path.unlink()
    else:
        flip_bit(path, 8 * 1000)
    again = quad.client.put(source.path).last
    assert (again["bytes_sent"], again["already"]) == (CHUNK, True)
    quad.client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
