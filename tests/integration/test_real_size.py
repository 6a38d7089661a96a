"""The seven tests that must always exist (SPEC), on files of real size, with the settings
that come with zchunk: 1 GiB is distributed, chunks have 10 MiB. And memory, meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import (
    MIB,
    Client,
    Cluster,
    Event,
    Result,
    Source,
    flip_bit,
    make_file,
    sha256_of,
)
from tests.waiting import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(300)]

CHUNK = 10 * MIB
LIMIT = 200 * 10**6
LONG_S = 200.0


@dataclass(frozen=True)
class Published:
    """A file in the cluster, as things were right after its upload."""

    source: Source
    put: Result
    info: Event
    on_disk: dict[str, set[str]]

    @property
    def name(self) -> str:
        return self.source.path.name

    @property
    def hashes(self) -> list[str]:
        hashes: list[str] = self.info["chunks_hashes"]
        return hashes

    def bytes_on(self, peer_id: str) -> int:
        """Of this file, by the distribution map."""
        return sum(self.length(int(i)) for i, at in self.info["distribution_map"].items() if at == peer_id)

    def length(self, index: int) -> int:
        return min(CHUNK, self.source.size - index * CHUNK)


def publish(cluster: Cluster, source: Source, *options: str) -> Published:
    put = cluster.client.put(source.path, *options, deadline_s=LONG_S)
    info = cluster.client.info(put.last["file_id"])
    return Published(source, put, info, cluster.on_disk(info["chunks_hashes"]))


@pytest.fixture(scope="session")
def published(lab_cluster: Cluster, gib: Source) -> Published:
    return publish(lab_cluster, gib)


@pytest.fixture(scope="session")
def runs(lab_cluster: Cluster, big: Source) -> Published:
    """1.5 GB, one run of chunks per peer."""
    return publish(lab_cluster, big, "--strategy", "contiguous")


def holders(info: Event) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for row in info["chunks"]:
        found.setdefault(row["chunk_index"], set()).add(row["peer_id"])
    return found


def check_disks(cluster: Cluster, file: Published) -> None:
    """Every chunk file of the file is what its name says, on whatever disk it lies."""
    seen = set()
    for node in cluster.nodes.values():
        for sha256 in node.holds(file.hashes):
            assert sha256_of(node.chunk_path(sha256)) == sha256, f"{sha256} on {node.name}"
            seen.add(sha256)
    assert seen == set(file.hashes)


def check_got(result: Result, file: Published, target: Path) -> None:
    done = result.last
    assert (done["event"], done["size"], done["sha256"]) == ("done", file.source.size, file.source.sha256)
    assert target.stat().st_size == file.source.size
    assert sha256_of(target) == file.source.sha256
    assert [path.name for path in target.parent.iterdir()] == [target.name], "only the target is left"
    assert sum(done["bytes_received_by_peer"].values()) == done["bytes_received"]


# -- 1: a 1 GB upload is split correctly (U1, U3) -------------------------------------------


@pytest.mark.row("T1")
def test_upload_is_split_correctly(lab: Cluster, published: Published) -> None:
    file, source, done = published, published.source, published.put.last
    assert done["event"] == "done"
    assert (done["size"], done["sha256"], done["bytes_sent"]) == (source.size, source.sha256, source.size)
    info = file.info
    assert (info["is_chunked"], info["is_distributed"], info["chunk_size"]) == (True, True, CHUNK)
    assert info["chunks_count"] == len(file.hashes) == 103
    assert (info["size"], info["sha256"]) == (source.size, source.sha256) == (1024**3, sha256_of(source.path))
    where = holders(info)
    for index, sha256 in enumerate(file.hashes):
        piece = source.piece(index * CHUNK, CHUNK)
        assert len(piece) == file.length(index)
        assert hashlib.sha256(piece).hexdigest() == sha256
        for peer_id in where[index]:
            assert lab.node_of(peer_id).chunk_path(sha256).read_bytes() == piece, f"chunk {index}"
    assert {row["chunk_hash"] for row in info["chunks"]} == set(file.hashes)


@pytest.mark.row("D1")
def test_every_holder_keeps_the_manifest_that_the_id_is_made_of(lab: Cluster, published: Published) -> None:
    """D1, R4"""
    file_id = published.info["file_id"]
    for node in lab.nodes.values():
        assert sha256_of(node.store / "manifests" / file_id) == file_id
    assert sha256_of(lab.client.home / "client" / "manifests" / file_id) == file_id


# -- 2: chunks are spread as planned (U4) ---------------------------------------------------


def as_planned(cluster: Cluster, file: Published) -> dict[str, list[int]]:
    """Checks that plan, tracker and disks agree; returns the chunks of each peer."""
    (plan,) = file.put.of("plan")
    assert plan["map"] == file.info["distribution_map"]
    assert list(plan["map"]) == [str(index) for index in range(len(file.hashes))]
    assert {peer["peer_id"]: peer["name"] for peer in plan["peers"]} == {
        node.peer_id: node.name for node in cluster.nodes.values()
    }
    per_peer: dict[str, list[int]] = {node.peer_id: [] for node in cluster.nodes.values()}
    for index, peer_id in plan["map"].items():
        per_peer[peer_id].append(int(index))
    for peer_id, indexes in per_peer.items():
        assert file.on_disk[peer_id] == {file.hashes[index] for index in indexes}
    for peer in plan["peers"]:
        assert peer["chunks"] == len(per_peer[peer["peer_id"]])
        assert peer["bytes"] == file.bytes_on(peer["peer_id"])
    assert all(row["is_available"] for row in file.info["chunks"])
    assert file.info["health"] == "complete"
    counts = [len(indexes) for indexes in per_peer.values()]
    assert max(counts) - min(counts) <= 1
    return per_peer


@pytest.mark.row("U4", "T2")
def test_chunks_lie_as_planned_round_robin(lab: Cluster, published: Published) -> None:
    per_peer = as_planned(lab, published)
    assert [indexes[:2] for indexes in sorted(per_peer.values())] == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.row("U4", "T2")
def test_chunks_lie_as_planned_contiguous(lab: Cluster, runs: Published) -> None:
    for indexes in as_planned(lab, runs).values():
        assert indexes == list(range(indexes[0], indexes[-1] + 1)), "one run per peer"


# -- 3: a full download with all peers up (D3, D5) ------------------------------------------


@pytest.mark.row("D3", "T3")
def test_full_download(lab: Cluster, stranger: Client, published: Published, folder: Path) -> None:
    target = folder / "copy.bin"
    result = stranger.get(published.name, target, deadline_s=LONG_S)
    check_got(result, published, target)
    done = result.last
    assert done["bytes_received"] == published.source.size
    assert set(done["bytes_received_by_peer"]) == {node.peer_id for node in lab.nodes.values()}
    assert all(done["bytes_received_by_peer"].values()), "every peer gave something"
    assert done["bytes_received_by_peer"] == {
        node.peer_id: published.bytes_on(node.peer_id) for node in lab.nodes.values()
    }
    check_progress(result, 103)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the disks of nodes are hidden from a client")
def test_the_client_of_the_full_download_cannot_read_the_nodes_disks(
    lab: Cluster, stranger: Client, published: Published
) -> None:
    """PROOF "Real sources": what `test_full_download` got came through sockets."""
    for node in lab.nodes.values():
        path = node.chunk_path(sorted(node.holds(published.hashes))[0])
        command = [*stranger.prefix, "cat", str(path)]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode == 1


def check_progress(result: Result, count: int) -> None:
    rows = result.of("progress")
    assert len(rows) >= 3, "about ten a second"
    for key in ("chunks_completed", "bytes"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
    assert {row["chunks_count"] for row in rows} == {count}
    assert rows[-1]["chunks_completed"] == count
    assert max(row["bytes_per_second"] for row in rows) > 0


# -- 4 and 5: partial with one peer offline, resumed when it is back (D2, D4, D7) -----------


@contextmanager
def without(cluster: Cluster, name: str) -> Iterator[str]:
    """The node was killed; yields its peer id. It runs again afterwards."""
    yield cluster.kill(name).peer_id
    if not cluster.nodes[name].process.alive:
        cluster.restart(name)


@pytest.mark.row("D2", "T4")
def test_partial_download_is_kept_and_only_the_rest_is_fetched(
    lab: Cluster, runs: Published, folder: Path
) -> None:
    target = folder / "copy.bin"
    with without(lab, "B") as missing:
        gone = [index for index, at in runs.info["distribution_map"].items() if at == missing]
        result = lab.client.get(runs.name, target, "--no-wait", code=4, deadline_s=LONG_S)
        error = result.last
        assert (error["event"], error["code"], error["exit_code"]) == ("error", "partial", 4)
        assert error["missing_peers"] == [missing]
        assert error["chunks_missing"] == len(gone)
        assert error["chunks_completed"] == error["chunks_count"] - len(gone)
        assert "B" in error["message"]
        assert str(len(gone)) in error["message"]
        assert result.stderr == f"zchunk: {error['message']}\n"
        assert error["bytes_received"] == runs.source.size - runs.bytes_on(missing)
        assert sorted(p.name for p in folder.iterdir()) == ["copy.bin.zjob", "copy.bin.zpart"]
        assert lab.client.info(runs.name)["health"] == "unavailable"
    again = lab.client.get(runs.name, target, deadline_s=LONG_S)
    check_got(again, runs, target)
    assert again.last["bytes_received_by_peer"] == {missing: runs.bytes_on(missing)}
    (plan,) = again.of("plan")
    assert plan["chunks_kept"] == error["chunks_completed"]
    assert plan["job_id"] == error["job_id"], "the same job goes on"


@pytest.mark.row("D4", "T5")
def test_a_waiting_download_goes_on_when_the_peer_is_back(
    lab: Cluster, runs: Published, folder: Path
) -> None:
    target = folder / "copy.bin"
    # Whatever wakes it, it is not the safety net.
    patient = {"chunking.resume_check_interval": 3600}
    with without(lab, "C") as missing:
        gone = sum(at == missing for at in runs.info["distribution_map"].values())
        get = lab.client.start("get", runs.name, "-o", target, settings=patient)
        waiting = get.until("waiting", LONG_S)
        assert waiting["missing_peers"] == [missing]
        assert [row["name"] for row in waiting["missing"]] == ["C"]
        assert waiting["missing"][0]["chunks"] == waiting["chunks_missing"] == gone
        assert waiting["missing"][0]["last_seen"]
        assert get.alive
        assert not target.exists()
        lab.restart("C")
        assert get.until("resumed", LONG_S)["peer_id"] == missing
    result = get.result(LONG_S).expect(0)
    check_got(result, runs, target)
    assert result.last["bytes_received"] == runs.source.size


# -- 6: every chunk's hash is valid (S1, D8) ------------------------------------------------


@pytest.mark.row("D8", "T6")
def test_every_chunk_is_valid_and_a_flipped_bit_is_never_written(
    lab: Cluster, published: Published, folder: Path
) -> None:
    twice = publish(lab, published.source, "--name", "twice.bin", "--replicas", "2")
    try:
        assert all(len(peers) >= 2 for peers in holders(twice.info).values())
        check_disks(lab, twice)
        liar = lab.nodes["B"]
        bad = sorted(liar.holds(twice.hashes))
        for sha256 in bad:
            flip_bit(liar.chunk_path(sha256), int(sha256[:4], 16))
        target = folder / "copy.bin"
        result = lab.client.get("twice.bin", target, deadline_s=LONG_S)
        check_got(result, twice, target)
        corrupt = result.of("corrupt")
        assert corrupt, "a chunk was asked of every peer"
        assert {event["peer_id"] for event in corrupt} == {liar.peer_id}
        reported = {twice.hashes[event["chunk_index"]] for event in corrupt}
        assert reported <= set(bad)
        wait_for(lambda: not liar.holds(sorted(reported)), LONG_S, "B drops what it finds damaged")
        for sha256 in liar.holds(bad):
            flip_bit(liar.chunk_path(sha256), int(sha256[:4], 16))
        check_disks(lab, twice)
    finally:
        lab.client.run("rm", "--yes", twice.info["file_id"])


# -- 7: a peer lost while being sent to (U6) ------------------------------------------------


@pytest.mark.row("U6", "T7")
def test_a_peer_lost_while_being_sent_to(lab: Cluster, folder: Path) -> None:
    source = make_file(folder / "lost.bin", 1024 * MIB)
    put = lab.client.start("put", "--yes", source.path)
    lost = lab.nodes["C"]
    seen = put.until(lambda e: e.get("event") == "progress" and e["chunks_completed"] > 5)
    lost.process.end(signal.SIGKILL)
    assert seen["chunks_completed"] < seen["chunks_count"], "a finished upload is no round"
    result = put.result(LONG_S).expect(0)
    stored_there = lost.chunks()
    info = lab.client.info(source.path.name)
    there = {sha256 for sha256 in info["chunks_hashes"] if sha256 in stored_there}
    assert 0 < len(there) < 103, "killed in the middle"
    assert result.last["sha256"] == info["sha256"] == source.sha256
    assert info["health"] == "complete"
    live = {lab.nodes["A"].peer_id, lab.nodes["B"].peer_id}
    assert set(info["distribution_map"].values()) == live
    assert len(info["distribution_map"]) == 103
    assert result.last["bytes_sent"] > source.size, "what only it had was sent again"
    for index, peer_id in info["distribution_map"].items():
        sha256 = info["chunks_hashes"][int(index)]
        assert sha256_of(lab.node_of(peer_id).chunk_path(sha256)) == sha256
    target = folder / "copy" / "copy.bin"
    target.parent.mkdir()
    got = lab.client.get(source.path.name, target, deadline_s=LONG_S)
    assert sha256_of(target) == source.sha256
    assert set(got.last["bytes_received_by_peer"]) == live
    lab.client.run("rm", "--yes", source.path.name)


# -- interrupted in the middle (D5, D6, D7, D9) ---------------------------------------------


def half_way(event: Event) -> bool:
    return event.get("event") == "progress" and event["chunks_completed"] > 10


@pytest.mark.row("D7")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download_keeps_what_it_has(
    number: signal.Signals, lab: Cluster, published: Published, folder: Path
) -> None:
    target = folder / "copy.bin"
    get = lab.client.start("get", published.name, "-o", target)
    seen = get.until(half_way)
    get.send(number)
    first = get.result()
    assert seen["chunks_completed"] < seen["chunks_count"]
    assert not target.exists()
    if number is signal.SIGKILL:
        assert first.code == -signal.SIGKILL
    else:
        first.expect(130)
        assert first.last["code"] == "interrupted"
    again = lab.client.get(published.name, target, deadline_s=LONG_S)
    check_got(again, published, target)
    (plan,) = again.of("plan")
    assert plan["chunks_kept"] >= seen["chunks_completed"]
    most = published.source.size - (plan["chunks_kept"] - 1) * CHUNK
    assert again.last["bytes_received"] <= most, "what is kept is not fetched again"


@pytest.mark.row("D9")
def test_a_download_goes_on_while_the_tracker_is_away(
    lab: Cluster, published: Published, folder: Path
) -> None:
    target = folder / "copy.bin"
    get = lab.client.start("get", published.name, "-o", target)
    seen = get.until(half_way)
    lab.stop_tracker(signal.SIGKILL)
    result = get.result(LONG_S).expect(0)
    assert seen["chunks_completed"] < seen["chunks_count"]
    check_got(result, published, target)
    assert result.last["bytes_received"] == published.source.size


# -- memory (PROOF) -------------------------------------------------------------------------


def test_memory_while_1_5_gb_pass(lab: Cluster, runs: Published, folder: Path, record_property: Any) -> None:
    target = folder / "copy.bin"
    get = lab.client.get(runs.name, target, deadline_s=LONG_S)
    check_got(get, runs, target)
    servers = [node.process for node in lab.nodes.values()] + [lab.tracker.process]
    assert not [child for process in servers for child in process.children()], "no worker is left out"
    check_memory(record_property, {"put": runs.put.peak, "get": get.peak, **lab.peaks()})


def check_memory(record_property: Any, peaks: dict[str, int]) -> None:
    for name, peak in peaks.items():
        record_property(f"VmHWM of {name}, MB", round(peak / 10**6, 1))
    print({name: f"{peak / 10**6:.0f} MB" for name, peak in peaks.items()})
    assert all(0 < peak < LIMIT for peak in peaks.values()), peaks


def test_memory_with_20_clients_on_one_node(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, record_property: Any
) -> None:
    with Cluster(tmp_path_factory.mktemp("twenty")) as cluster:
        node = cluster.start_node("only")
        source = make_file(folder / "shared.bin", 128 * MIB)
        cluster.client.put(source.path)
        homes = [cluster.join(f"client{number}") for number in range(4)]
        targets = [folder / f"copy{number}" for number in range(20)]
        gets = [homes[i % 4].start("get", "shared.bin", "-o", target) for i, target in enumerate(targets)]
        results = [get.result(LONG_S).expect(0) for get in gets]
        for target in targets:
            assert sha256_of(target) == source.sha256
            target.unlink()
        assert Counter(result.last["bytes_received"] for result in results) == {source.size: 20}
        assert not node.process.children()
        gets_peak = max(result.peak for result in results)
        check_memory(record_property, {"20 gets, the largest": gets_peak, **cluster.peaks()})
        results = get_and_put_at_once(homes, source, folder)
        largest = max(result.peak for result in results)
        check_memory(record_property, {"10 gets and 10 puts, the largest": largest, **cluster.peaks()})


def get_and_put_at_once(homes: list[Client], source: Source, folder: Path) -> list[Result]:
    """What comes in and what goes out share the node's memory."""
    files = [make_file(folder / f"up{number}", 64 * MIB) for number in range(10)]
    jobs = [homes[i % 4].start("get", "shared.bin", "-o", folder / f"down{i}") for i in range(10)]
    jobs += [homes[i % 4].start("put", files[i].path, "--yes") for i in range(10)]
    results = [job.result(LONG_S).expect(0) for job in jobs]
    assert sum(result.last.get("bytes_received", 0) for result in results) == 10 * source.size
    assert sum(result.last.get("bytes_sent", 0) for result in results) == sum(f.size for f in files)
    return results
