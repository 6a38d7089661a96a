"""What file systems refuse that are not broken, and limits of a process: each is told as what it is,
and where the work can be done without, it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import nolocks
from tests.faults.tracing import injected, needs_strace, tampered
from tests.integration.cluster import MIB, Cluster, Node, make_file, sha256_of


@pytest.fixture
def trio(small: Cluster) -> Iterator[Cluster]:
    """The nodes A, B, C; A starts again after each test."""
    yield small
    small.nodes["A"].process.end()
    small.restart("A")


def folders_of(node: Node) -> list[Path]:
    shards = [node.store / "chunks" / f"{n:02x}" for n in range(256)]
    return [node.store, node.store / "chunks", node.store / "manifests", node.store / "trash", *shards]


@needs_strace
def test_a_disk_that_syncs_no_folders_takes_chunks(trio: Cluster, folder: Path) -> None:
    source, node, log = make_file(folder / "unsynced.bin", 4 * MIB), trio.nodes["A"], folder / "trace"
    with tampered(node.process, log, "fsync:error=EINVAL", only=folders_of(node)):
        assert node.peer_id in trio.client.put(source.path).last["peers"]
    assert injected(log) > 10
    trio.client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


@needs_strace
@pytest.mark.parametrize("errors", ["openat:error=EMFILE:when=1..40", "rename:error=ESTALE:when=1..5"])
def test_a_node_that_is_short_of_something_is_not_called_broken(
    trio: Cluster, folder: Path, errors: str
) -> None:
    """It takes chunks again as soon as it can; until then others do."""
    source, node, log = make_file(folder / f"{errors[:4]}.bin", 4 * MIB), trio.nodes["A"], folder / "trace"
    with tampered(node.process, log, errors):
        trio.client.put(source.path)
    assert injected(log) > 3
    assert "accepts no more chunks" not in node.process.stderr
    assert "cannot be trusted" not in node.process.stderr
    trio.client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    later = make_file(folder / f"later-{errors[:4]}.bin", 4 * MIB)
    assert node.peer_id in trio.client.put(later.path).last["peers"]


def test_a_home_without_locks_is_used_by_one_process_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = (sys.executable, nolocks.__file__)
    root = tmp_path_factory.mktemp("nolocks")
    monkeypatch.setenv("TEST_WITHOUT_LOCKS", str(root))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    with Cluster(root / "cluster") as cluster:
        node = cluster.start_node("A", prefix=prefix)
        assert "has no locks: another PC could use it at the same time" in node.process.stderr
        words = ["node", "--home", str(node.home), "--bind", "127.0.0.1:0"]
        second = cluster.spawn(words, prefix=prefix).result().expect(2)
        assert "another node is already running on" in second.stderr
        node.process.end(9)
        again = cluster.spawn(words, prefix=prefix)
        assert again.ready()["peer_id"] == node.peer_id, "the lock ended with its process"


def test_a_file_that_is_too_large_for_the_target_names_the_limit(small: Cluster, folder: Path) -> None:
    source = make_file(folder / "large.bin", 4 * MIB)
    small.client.put(source.path)
    get = small.spawn(
        ["get", "--home", str(small.client.home), "--json", "-o", str(folder / "copy"), "large.bin"],
        prefix=("prlimit", f"--fsize={2 * MIB}"),
    )
    error = get.result().expect(8).last
    assert error["code"] == "no_space"
    assert f"cannot write files larger than {2 * MIB} bytes (`ulimit -f`)" in error["message"]
    assert not os.path.lexists(folder / "copy")
    small.client.get("large.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
