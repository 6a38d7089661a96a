"""The upload side's operations by their names, on a quiet simulated cluster."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster, Outcome
from zchunk.content import hashing
from zchunk.content.encryption import Passphrase
from zchunk.content.manifest import MAX_NEW_SEALED_CHUNKS
from zchunk.errors import ChunkCorrupt, InvalidUsage, StoreOffline
from zchunk.node.manager import DistributedChunkManager, PutOptions

UPLOAD = "ab" * 16


@pytest.fixture
def cluster(root: Path) -> Cluster:
    return Cluster(root, seed=3)


def manager_of(cluster: Cluster) -> DistributedChunkManager:
    client = cluster.client()
    manager = DistributedChunkManager(bulk=client.bulk, keep_at=client.folder / "manifests")
    cluster.run(lambda: len(manager.get_available_peers()) == 3, "the client to see every node")
    return manager


def test_should_distribute_from_the_threshold_on(cluster: Cluster) -> None:
    manager = manager_of(cluster)
    threshold = cluster.settings.chunking.min_file_size_for_distribution
    assert manager.should_distribute(threshold)
    assert not manager.should_distribute(threshold - 1)


def test_available_peers_are_those_that_are_up(cluster: Cluster) -> None:
    manager = manager_of(cluster)
    cluster.nodes[0].crash()
    cluster.run(lambda: len(manager.get_available_peers()) == 2, "the event that a peer is down")
    assert {record.name for record in manager.get_available_peers()} == {"b", "c"}


def test_send_chunk_to_peer_ends_when_it_is_durable_there(cluster: Cluster) -> None:
    manager, node = manager_of(cluster), cluster.nodes[1]
    data = cluster.rng.randbytes(CHUNK - 5)
    for _ in range(2):  # the second time it is there already
        results: list[object] = []
        manager.send_chunk_to_peer(node.membership.peer_id, data, UPLOAD, results.append)
        cluster.run(lambda results=results: bool(results), "the outcome")  # type: ignore[misc]
        assert results == [None]
    sha256 = hashlib.sha256(data).digest()
    assert node.store.read_block(sha256, 0, len(data)) == data


def test_receive_chunk_stores_only_what_was_promised(cluster: Cluster) -> None:
    manager, data = cluster.nodes[0].parts.manager, cluster.rng.randbytes(CHUNK)
    sha256, blake3 = hashing.sha256(data), hashing.blake3(data)
    with pytest.raises(ChunkCorrupt):
        manager.receive_chunk(sha256, blake3, data[:-1] + bytes([data[-1] ^ 1]), UPLOAD)
    assert cluster.nodes[0].store.count == 0
    manager.receive_chunk(sha256, blake3, data, UPLOAD)
    assert cluster.nodes[0].store.hashes() == [sha256]


def test_a_client_stores_nothing(cluster: Cluster) -> None:
    with pytest.raises(StoreOffline, match="zchunk node"):
        manager_of(cluster).receive_chunk(bytes(32), bytes(32), b"x", UPLOAD)


def test_scan_and_distribute_takes_large_files_only(cluster: Cluster) -> None:
    manager, outcome = manager_of(cluster), Outcome()
    small = cluster.make_file("small", 2 * CHUNK - 1)
    assert not manager.scan_and_distribute_large_file(small, outcome.emit)
    large = cluster.make_file("large", 5 * CHUNK + 1)
    assert manager.scan_and_distribute_large_file(large, outcome.emit)
    cluster.run(lambda: outcome.ended, "the upload")
    assert outcome.expect_done()["chunks_count"] == 6
    cluster.verify({"large": large})


def test_a_node_distributes_files_of_its_own_pc(cluster: Cluster) -> None:
    node, outcome = cluster.nodes[0], Outcome()
    large = cluster.make_file("from a node", 4 * CHUNK)
    cluster.run(lambda: len(node.parts.manager.get_available_peers()) == 3, "the node to see every node")
    assert node.parts.manager.scan_and_distribute_large_file(large, outcome.emit)
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    cluster.verify({"from a node": large})


def test_encryption_is_not_for_uploads_that_start_in_a_loop(cluster: Cluster) -> None:
    """Making a key takes a quarter of a second, in which a node would answer nobody."""
    manager, outcome = manager_of(cluster), Outcome()
    large = cluster.make_file("large", 5 * CHUNK)
    options = PutOptions(encrypt=Passphrase("pale blue dot"))
    with pytest.raises(InvalidUsage, match=r"Client\.put"):
        manager.scan_and_distribute_large_file(large, outcome.emit, options=options)
    assert not outcome.events


def test_what_no_encrypted_file_can_be(cluster: Cluster) -> None:
    manager, encrypt = manager_of(cluster), Passphrase("pale blue dot")
    most = PutOptions(encrypt=encrypt, chunk_size=CHUNK)
    manager.plan_request(MAX_NEW_SEALED_CHUNKS * CHUNK, most, None)
    with pytest.raises(InvalidUsage, match="larger --chunk-size"):
        manager.plan_request(MAX_NEW_SEALED_CHUNKS * CHUNK + 1, most, None)
    with pytest.raises(InvalidUsage, match="only the name of an encrypted file"):
        manager.plan_request(CHUNK, PutOptions(hide_name=True), None)


def test_an_upload_in_a_loop_waits_for_nodes_to_say_hello(cluster: Cluster) -> None:
    """A tracker that has just started has heard from none of them: that refuses nothing yet."""
    manager, outcome = manager_of(cluster), Outcome()
    for node in cluster.nodes:
        node.crash()
    cluster.crash_tracker()
    cluster.start_tracker(port=7700)
    cluster.run(lambda: all(r.unsure for r in manager.bulk.peers.values()), "the client to hear of it")
    large = cluster.make_file("early", 5 * CHUNK)
    assert manager.scan_and_distribute_large_file(large, outcome.emit)
    for node in cluster.nodes:
        node.start()
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    cluster.verify({"early": large})
