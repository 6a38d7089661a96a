"""Files of a node's store that its user may not read or write: chunks are neither corrupt nor lost
for it, and an upload that the node refuses says who refuses, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, UNPRIVILEGED, Cluster, Node, make_file, sha256_of
from tests.integration.conftest import SMALL


class OwnHomes(Cluster):
    """Nodes run as whoever owns their homes."""

    def node_home(self, name: str) -> Path:
        home = super().node_home(name)
        os.chown(home, os.geteuid(), os.getegid())
        return home


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, which may not do what only root may."""
    with OwnHomes(tmp_path_factory.mktemp("owners"), SMALL) as cluster:
        cluster.start_nodes("A", "B", prefix=UNPRIVILEGED)
        yield cluster


@contextmanager
def mode(number: int, *paths: Path) -> Iterator[None]:
    before = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(number)
    try:
        yield
    finally:
        for path, was in before.items():
            path.chmod(was)


def chunks_of(node: Node) -> list[Path]:
    return sorted((node.store / "chunks").glob("??/*"))


def nothing_was_set_apart(node: Node) -> bool:
    return not list((node.store / "trash").iterdir())


def test_chunks_that_may_not_be_read_are_waited_for(cluster: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "forbidden.bin", 2 * MIB), cluster.nodes["A"]
    cluster.client.put(source.path)
    with mode(0, *chunks_of(node)):
        get = cluster.client.start("get", "-o", folder / "copy", "--", "forbidden.bin")
        (row,) = get.until("waiting")["missing"]
        assert (row["name"], row["reason"]) == ("A", "unreadable")
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256
    assert nothing_was_set_apart(node)
    assert "Permission denied" in node.process.stderr


def test_what_may_not_be_read_is_put_again_to_both(cluster: Cluster, folder: Path) -> None:
    source, node = make_file(folder / "again.bin", 2 * MIB), cluster.nodes["A"]
    cluster.client.put(source.path)
    with mode(0, *chunks_of(node)):
        done = cluster.client.put(source.path, "--name", "other.bin").last
        assert len(done["peers"]) == 2
        cluster.client.get("other.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    assert nothing_was_set_apart(node)


def test_an_upload_names_the_peer_that_refuses_and_why(cluster: Cluster, folder: Path) -> None:
    """Two are up, and one may not write to its store."""
    source, node = make_file(folder / "refused.bin", 2 * MIB), cluster.nodes["A"]
    shards = [path for path in (node.store / "chunks").iterdir() if path.is_dir()]
    with mode(0o500, node.store / "chunks", *shards, node.store / "tmp"):
        # Until the tracker has heard of it a plan is made, and the node refuses what it is offered.
        put = cluster.client.start("put", "--yes", "--wait", source.path)
        waiting = put.until("waiting")
        (refusing,) = waiting["refusing"]
        assert (refusing["peer_id"], refusing["name"]) == (node.peer_id, "A")
        assert "is not permitted" in refusing["reason"]
        assert "A is up, but refuses" in waiting["message"]
        assert "remove files" not in waiting["message"]
    put.result().expect(0)
    cluster.client.get("refused.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


def test_a_tracker_that_may_not_write_its_database_refuses_to_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Cluster(tmp_path_factory.mktemp("readonly")) as cluster:
        cluster.stop_tracker()
        database = cluster.tracker.home / "tracker" / "tracker.sqlite"
        words = ["tracker", "--home", str(cluster.tracker.home), "--bind", "127.0.0.1:0"]
        with mode(0o400, database):
            refused = cluster.spawn(words, prefix=UNPRIVILEGED).result().expect(7)
        assert f"the tracker's database {database} cannot be written" in refused.stderr
        assert refused.lines == [], "it is not ready"
        cluster.start_tracker()
