"""T17: a node's home was copied to another PC, and both are started. And what looks like that
and is not: a home that was put back where it was, from a backup or a snapshot of its PC."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Process, make_file, sha256_of
from tests.waiting import wait_for


@pytest.fixture
def copied(small: Cluster, folder: Path) -> Iterator[Path]:
    """A home with the key, the name and the chunks of the running node A."""
    source = make_file(folder / "held.bin", 2 * MIB)
    small.client.put(source.path, "--name", "held by clones")
    home = folder / "copied"
    shutil.copytree(small.nodes["A"].home, home)
    yield home
    small.client.run("rm", "--yes", "held by clones")


def start_copy(cluster: Cluster, home: Path) -> Process:
    return cluster.spawn(["node", "--home", str(home), "--bind", "127.0.0.1:0"])


def the_refused(processes: dict[str, Process]) -> str:
    """Exactly one ends by itself, with one clear line."""
    wait_for(lambda: any(not p.alive for p in processes.values()), PATIENCE_S, "one of two is refused")
    (name,) = [name for name, process in processes.items() if not process.alive]
    last = processes[name].stderr.strip().splitlines()[-1]
    assert processes[name].code not in (0, -signal.SIGKILL)
    assert "copied" in last, last
    assert "join" in last, "it says what to do"
    return name


def check_works(cluster: Cluster, folder: Path) -> None:
    cluster.await_status("A", "up")
    cluster.client.get("held by clones", folder / "copy", "--no-wait")
    (folder / "copy").unlink()


def test_of_a_node_and_its_running_copy_one_is_refused_and_the_other_works_on(
    small: Cluster, copied: Path, folder: Path
) -> None:
    original = small.nodes["A"]
    copy = start_copy(small, copied)
    refused = the_refused({"original": original.process, "copy": copy})
    check_works(small, folder)
    other = original.process if refused == "copy" else copy
    # The one that lost is started again by somebody who has not read what it said.
    again = start_copy(small, original.home if refused == "original" else copied)
    the_refused({"again": again, "other": other})
    check_works(small, folder)
    for process in (again, other):
        process.close()
    small.await_status("A", "left")
    assert sha256_of(folder / "held.bin")


def number(cluster: Cluster, name: str) -> int:
    return cluster.records()[name].incarnation


@pytest.mark.parametrize("how", ["stopped", "killed", "its number lost"])
def test_a_home_that_was_put_back_is_welcome(small: Cluster, copied: Path, folder: Path, how: str) -> None:
    """`copied` is the backup: the node has been started some times since, and a file was put."""
    node = small.nodes["A"]
    for _ in range(2):
        small.stop("A")
        small.restart("A")
    source = make_file(folder / "since.bin", 2 * MIB)
    small.client.put(source.path, "--name", "put since", "--replicas", "2")
    newest = number(small, "A")
    assert newest > 2
    if how == "killed":
        small.kill("A")
    else:
        small.stop("A")
    if how == "its number lost":
        (node.home / "node" / "incarnation.json").unlink()
    else:
        shutil.rmtree(node.home / "node")
        shutil.copytree(copied / "node", node.home / "node")
    small.restart("A")
    assert number(small, "A") == newest + 1
    check_works(small, folder)
    # What the backup does not have is located where it is, and nowhere else.
    held = node.chunks()
    for row in small.client.info("put since")["chunks"]:
        assert row["peer_id"] != node.peer_id or row["chunk_hash"] in held
    small.client.get("put since", folder / "copy", "--no-wait")
    assert sha256_of(folder / "copy") == source.sha256
    small.stop("A")
    small.restart("A")
    assert number(small, "A") == newest + 2, "it has kept its number"
    small.client.run("rm", "--yes", "put since")


def test_a_copy_beside_the_running_original_on_one_home_is_refused(small: Cluster) -> None:
    second = start_copy(small, small.nodes["A"].home)
    result = second.result()
    assert result.code not in (0, 1)
    assert "another node is already running" in result.stderr
    small.await_status("A", "up")
