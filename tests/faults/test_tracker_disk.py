"""The disk of the tracker's database is full, or another program has the database locked: told as
what it is, on the PC that it is about, and over when it is over."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.smalldisk import fill, tmpfs
from tests.integration.cluster import MIB, PATIENCE_S, Client, Cluster, Source, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.waiting import wait_for

_FULL = "no space on the tracker's disk"


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    with tmpfs(folder / "disk", 16 * MIB) as disk:
        yield disk


@pytest.fixture
def cluster(folder: Path, disk: Path) -> Iterator[Cluster]:
    """Two nodes; the tracker's home is on the small disk."""
    made = Cluster(folder / "cluster", SMALL)
    (made.root / "tracker-home").symlink_to(disk)
    with made:
        made.start_nodes("A", "B")
        yield made


@pytest.fixture
def source(folder: Path) -> Source:
    return make_file(folder / "source.bin", 40 * MIB)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    ballast = fill(disk, 0)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def locked(cluster: Cluster) -> Iterator[None]:
    """As by a program that has begun to change it."""
    path = cluster.tracker.home / "tracker" / "tracker.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def words_of_the_cause(text: str) -> None:
    assert _FULL in text, text
    for wrong in ("no confirmed copy", "no transaction is active", "rebuild", "/tracker"):
        assert wrong not in text, text


def test_an_upload_to_a_tracker_whose_disk_is_full(
    cluster: Cluster, disk: Path, source: Source, folder: Path
) -> None:
    put = cluster.client.start("put", "--yes", source.path)
    put.until("plan")
    with full(disk):
        result = put.result().expect(8)
        assert result.last["code"] == "no_space"
        words_of_the_cause(result.stderr)
        again = cluster.client.put(source.path, code=8)
        words_of_the_cause(again.stderr)
        assert again.of("progress") == [], "it is known before the first byte"
        assert cluster.client.names() == [], "what only reads works"
        assert cluster.statuses() == {"A": "up", "B": "up"}
    log = cluster.tracker.process.stderr
    assert f"no space on the disk of the tracker's database {cluster.tracker.home}" in log
    done = cluster.client.put(source.path).last
    assert done["bytes_sent"] < source.size // 10, "what the nodes have is not sent again"
    cluster.client.get("source.bin", folder / "copy", "--no-wait")
    assert sha256_of(folder / "copy") == source.sha256


def test_a_node_that_joins_is_told_whose_disk_is_full(cluster: Cluster, disk: Path, folder: Path) -> None:
    tokens = {role: cluster.token(role) for role in ("node", "client")}
    with full(disk):
        home = folder / "newcomer"
        words = ["node", "--home", str(home), "--bind", "127.0.0.1:0", "--name", "C", "--join"]
        result = cluster.spawn([*words, tokens["node"]]).result().expect(8)
        words_of_the_cause(result.stderr)
        client = Client(cluster, folder)
        words_of_the_cause(client.run("join", tokens["client"], code=8).stderr)
        here = cluster.spawn(["token", "--home", str(cluster.tracker.home)]).result().expect(8)
        assert str(cluster.tracker.home) in here.stderr, "on the tracker's own PC it has its path"
    later = cluster.spawn([*words, tokens["node"]])
    later.ready()
    later.end()


def test_a_tracker_does_not_say_ready_on_a_full_disk(cluster: Cluster, disk: Path) -> None:
    cluster.stop_tracker()
    with full(disk):
        at = cluster.tracker
        words = ["tracker", "--home", str(at.home), "--bind", at.endpoint, "--events", at.events]
        result = cluster.spawn(words).result().expect(8)
        assert result.lines == []
        assert len(result.stderr.strip().splitlines()) == 1
    cluster.start_tracker()
    cluster.await_all_up()


def test_a_database_that_is_locked_for_a_while_is_waited_for(cluster: Cluster, source: Source) -> None:
    with locked(cluster):
        put = cluster.client.start("put", "--yes", source.path)
        # It cannot be done before; that it has begun shows in what the nodes store.
        nodes = cluster.nodes.values()
        wait_for(lambda: any(node.chunks() for node in nodes), PATIENCE_S, "chunks come")
        assert put.alive
    assert put.result().expect(0).last["event"] == "done"


def test_a_database_that_stays_locked_is_busy_and_what_reads_works(cluster: Cluster, source: Source) -> None:
    cluster.client.put(source.path)
    file_id = cluster.client.info("source.bin")["file_id"]
    with locked(cluster):
        result = cluster.client.run("rm", "--yes", "source.bin", code=1)
        assert result.last["code"] == "busy"
        assert "another program" in result.stderr
        assert "/tracker" not in result.stderr
        assert [row["file_id"] for row in cluster.client.ls()] == [file_id]
        assert "locked" in cluster.tracker.process.stderr
        removing = cluster.client.start("rm", "--yes", "source.bin")
        assert not removing.ends_within(1.0), "it is tried again"
    removing.result().expect(0)
    assert cluster.client.names() == []
