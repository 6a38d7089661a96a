"""A colleague removes a file while somebody fetches or reads it: that is told as what it is, and
not as corruption (SPEC D8, "Command line")."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import zchunk
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Process, Source, sha256_of, wait_for
from tests.integration.test_edges import CHUNK, fresh
from tests.integration.test_jobs import jobs, waiting_get
from tests.integration.test_ranges import words
from zchunk.config import Settings
from zchunk.errors import NotFound


@pytest.fixture
def source(bench: Cluster, folder: Path) -> Source:
    source = fresh(folder, 2 * MIB)
    bench.client.put(source.path)
    return source


@pytest.fixture
def api(bench: Cluster) -> Iterator[zchunk.Client]:
    with zchunk.Client(bench.client.home, Settings()) as client:
        yield client


def remove(cluster: Cluster, name: str) -> None:
    """Gone from the tracker, and from the nodes that are up."""
    info = cluster.client.info(name)
    cluster.client.run("rm", "--yes", info["file_id"])
    up = [node for node in cluster.nodes.values() if node.process.alive]
    gone = lambda: not any(node.holds(info["chunks_hashes"]) for node in up)  # noqa: E731
    wait_for(gone, PATIENCE_S, "the nodes free its chunks")


def test_a_download_that_waits_ends(bench: Cluster, source: Source, folder: Path) -> None:
    """By the event: nothing else happens until the node is back."""
    bench.kill("B")
    get, job_id = waiting_get(
        bench, source, folder / "copy", settings={"chunking.resume_check_interval": "3600"}
    )
    kept = jobs(bench.client)[job_id]["chunks_status"]["completed"]
    remove(bench, source.path.name)
    result = get.result().expect(9)
    assert (result.last["code"], result.last["job_id"]) == ("not_found", job_id)
    assert f"{source.path.name!r} was removed from the cluster" in result.stderr
    assert f"{kept} of 32 chunks are kept: `zchunk cancel {job_id}` deletes them" in result.stderr
    job = jobs(bench.client)[job_id]
    assert (job["state"], job["active"]) == ("failed", False)
    assert "was removed from the cluster" in job["reason"]
    assert bench.client.run("resume", job_id, code=9).last["code"] == "not_found"
    bench.client.run("cancel", job_id)
    assert [path.name for path in folder.iterdir()] == [source.path.name]


def paused_get(cluster: Cluster, source: Source, target: Path) -> tuple[Process, str]:
    """One that stands still in its middle, with all nodes up."""
    tracker, b = cluster.tracker.process, cluster.nodes["B"].process
    with cluster.frozen(b, tracker):
        get = cluster.client.start("get", source.path.name, "-o", target)
        tracker.send(signal.SIGCONT)  # it is asked first, and must know of nothing but that
        job_id = get.until("plan")["job_id"]
        cluster.client.run("pause", job_id)
        get.until("paused")
    cluster.await_all_up()
    return get, job_id


def test_a_download_whose_chunks_are_gone_ends(bench: Cluster, source: Source, folder: Path) -> None:
    """Every one that it asks for is refused."""
    get, job_id = paused_get(bench, source, folder / "copy")
    remove(bench, source.path.name)
    bench.client.run("resume", job_id, code=None)
    result = get.result().expect(9)
    assert f"{source.path.name!r} was removed from the cluster" in result.stderr
    assert "corrupt" not in result.stderr


def test_one_that_is_put_again_is_gone_on_with(bench: Cluster, source: Source, folder: Path) -> None:
    bench.kill("B")
    get, job_id = waiting_get(bench, source, folder / "copy")
    remove(bench, source.path.name)
    get.result().expect(9)
    bench.restart("B")
    bench.client.put(source.path)
    done = bench.client.run("resume", job_id).last
    assert sha256_of(folder / "copy") == source.sha256
    assert done["bytes_received"] < source.size


def test_what_another_file_keeps_comes_all_the_same(bench: Cluster, source: Source, folder: Path) -> None:
    bench.client.put(source.path, "--name", f"{source.path.name} too")
    get, job_id = paused_get(bench, source, folder / "copy")
    bench.client.run("rm", "--yes", source.path.name)
    bench.client.run("resume", job_id)
    assert get.result().expect(0).last["bytes_received"] == source.size
    assert sha256_of(folder / "copy") == source.sha256


def test_a_file_object_says_so(bench: Cluster, api: zchunk.Client, source: Source) -> None:
    with api.open(source.path.name) as file:
        assert file.read(10) == source.piece(0, 10)
        remove(bench, source.path.name)
        for at in (20, 10, 20):
            file.seek(at * CHUNK)
            with pytest.raises(NotFound, match="was removed from the cluster"):
                file.read(10)


def test_cat_that_waits_ends(bench: Cluster, source: Source) -> None:
    bench.kill("B")
    name = source.path.name
    waiting = bench.spawn(words(bench.client, name)[3:])
    wait_for(lambda: "for B" in waiting.stderr, PATIENCE_S, "it waits")
    bench.client.run("rm", "--yes", name)
    result = waiting.result().expect(9)
    assert f"{name!r} was removed from the cluster" in result.stderr
