"""Removal frees the chunks that nothing else uses, and no others (SPEC R7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.waiting import wait_for

pytestmark = pytest.mark.alone


def held(cluster: Cluster, hashes: Sequence[str]) -> int:
    return sum(len(found) for found in cluster.on_disk(hashes).values())


def await_freed(cluster: Cluster, hashes: Sequence[str]) -> None:
    wait_for(lambda: not held(cluster, hashes), PATIENCE_S, "the chunks have left the folders")


@pytest.mark.row("R7")
def test_rm_frees_the_chunks(bench: Cluster, folder: Path) -> None:
    source = make_file(folder / "freed.bin", 3 * MIB)
    file_id = bench.client.put(source.path, "--replicas", "2").last["file_id"]
    hashes = bench.client.info(file_id)["chunks_hashes"]
    assert held(bench, hashes) == 2 * 48
    done = bench.client.run("rm", "--yes", "freed.bin").last
    assert (done["event"], done["file_id"]) == ("done", file_id)
    await_freed(bench, hashes)
    assert bench.client.run("info", file_id, code=9).last["code"] == "not_found"
    assert bench.client.run("rm", "--yes", file_id, code=9).last["code"] == "not_found"
    # It can be put again.
    assert bench.client.put(source.path).last["bytes_sent"] in (0, source.size)
    bench.client.get("freed.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


@pytest.mark.row("R7")
def test_what_another_file_uses_stays(bench: Cluster, folder: Path) -> None:
    source = make_file(folder / "shared.bin", 2 * MIB)
    client = bench.client
    first = client.put(source.path, "--name", "first").last
    second = client.put(source.path, "--name", "second").last
    assert (first["bytes_sent"], second["bytes_sent"]) == (source.size, 0)
    assert first["file_id"] != second["file_id"]
    hashes = client.info("first")["chunks_hashes"]
    before = bench.on_disk(hashes)

    client.run("rm", "--yes", "first")
    # When the chunks of a file removed later are gone, the nodes have dealt with this one.
    fence = make_file(folder / "fence", 2 * MIB)
    client.put(fence.path)
    fence_hashes = client.info("fence")["chunks_hashes"]
    client.run("rm", "--yes", "fence")
    await_freed(bench, fence_hashes)
    assert bench.on_disk(hashes) == before
    client.get("second", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256

    client.run("rm", "--yes", "second")
    await_freed(bench, hashes)


def test_a_node_that_was_away_learns_of_a_removal(bench: Cluster, folder: Path) -> None:
    source = make_file(folder / "away.bin", 2 * MIB)
    bench.client.put(source.path)
    hashes = bench.client.info("away.bin")["chunks_hashes"]
    node = bench.stop("C")
    mine = node.holds(hashes)
    assert mine
    bench.client.run("rm", "--yes", "away.bin")
    assert node.holds(hashes) == mine
    bench.restart("C")
    await_freed(bench, hashes)
