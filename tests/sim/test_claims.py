"""An upload that ends between "the nodes keep its manifest" and "it is committed" leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster, SimNode
from zchunk.node.upkeep import claims

DAY = 86_400.0


@pytest.fixture
def cluster(root: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(claims, "_GRACE_S", 20.0)
    return Cluster(root, seed=5)


def up(cluster: Cluster) -> None:
    cluster.run(lambda: all(node.is_up() for node in cluster.nodes), "every node is up")


def started_again(cluster: Cluster) -> list[SimNode]:
    for node in cluster.nodes:
        node.crash()
        node.start()
    up(cluster)
    return cluster.nodes


def ended_at_the_last_step(cluster: Cluster, name: str) -> list[SimNode]:
    """kill -9 of a put once every node keeps its manifest; the commit was never asked for."""
    client, source = cluster.client(), cluster.make_file(name, 6 * CHUNK)
    client.put(source)

    def commit_is_near() -> bool:
        return any(node.store.manifests() for node in cluster.nodes)

    cluster.run(commit_is_near, "a node keeps the manifest")
    client.host.crash()
    cluster.run_for(10.0)
    assert not cluster.store.list_files("")[0]
    holding = [node for node in cluster.nodes if node.store.manifests()]
    assert holding
    return holding


@pytest.mark.row("R7")
def test_what_an_upload_left_that_was_never_committed_is_freed(cluster: Cluster) -> None:
    up(cluster)
    holding = ended_at_the_last_step(cluster, "dead")
    cluster.clock.jump_wall(DAY + 60.0)
    started_again(cluster)
    cluster.run_for(5.0)
    assert all(node.store.manifests() for node in holding), "a commit may be on its way"
    cluster.run(lambda: not any(node.store.manifests() for node in cluster.nodes), "the manifests are gone")
    cluster.run(lambda: not any(node.store.count for node in cluster.nodes), "the chunks are gone")


def test_within_the_lease_the_same_put_goes_on(cluster: Cluster) -> None:
    up(cluster)
    holding = ended_at_the_last_step(cluster, "again")
    cluster.clock.jump_wall(DAY - 3600.0)
    started_again(cluster)
    cluster.run_for(60.0)
    assert all(node.store.manifests() for node in holding)
    source = cluster.root / "files" / "again"
    outcome = cluster.client().put(source)
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    cluster.clock.jump_wall(10 * DAY)
    started_again(cluster)
    cluster.run_for(60.0)
    cluster.verify({"again": source})


def test_a_file_is_known_to_be_one_by_its_event(cluster: Cluster) -> None:
    up(cluster)
    outcome = cluster.client().put(cluster.make_file("file", 6 * CHUNK))
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    cluster.run(lambda: not any(n.store.claimed_manifests() for n in cluster.nodes), "the event has come")
    assert all(node.store.manifests() for node in cluster.nodes)


@pytest.mark.row("R8")
@pytest.mark.parametrize("known", [True, False], ids=["file", "upload"])
def test_a_tracker_with_an_older_database_makes_nobody_drop_a_manifest(cluster: Cluster, known: bool) -> None:
    """Also of one that is not known to be a file's: who can tell?"""
    up(cluster)
    if known:
        outcome = cluster.client().put(cluster.make_file("kept", 6 * CHUNK))
        cluster.run(lambda: outcome.ended, "the upload")
        outcome.expect_done()
    else:
        ended_at_the_last_step(cluster, "kept")
    kept = {node.name: node.store.manifests() for node in cluster.nodes}
    for node in cluster.nodes:
        assert node.store.store_id is not None
        node.store.seen_store(node.store.store_id, cluster.store.commit_number + 7)
    cluster.clock.jump_wall(10 * DAY)
    started_again(cluster)
    cluster.run_for(200.0)
    assert {node.name: node.store.manifests() for node in cluster.nodes} == kept
    assert all(node.store.count for node in cluster.nodes if kept[node.name])
