"""A machine that has no memory left for a chunk: it says so, and nothing ends but what needed it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster, Host, Outcome
from zchunk.system import buffers


@contextmanager
def without_memory(host: Host) -> Iterator[None]:
    """Inside the block that process gets none for its chunks."""
    real = buffers._fresh

    def refuse(capacity: int) -> mmap.mmap:
        if Host.acting is host:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(capacity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "_fresh", refuse)
        yield


def end_of(cluster: Cluster, outcome: Outcome) -> Outcome:
    cluster.run(lambda: outcome.ended, "its end")
    return outcome


def says_so(outcome: Outcome) -> None:
    assert outcome.error is not None
    assert outcome.error.code == "storage_unavailable"
    assert "this PC has no memory left for a chunk" in outcome.error.message


def test_others_take_the_chunks_of_a_node_without_memory(root: Path) -> None:
    cluster = Cluster(root, 1, nodes=3)
    path, node = cluster.make_file("file", 8 * CHUNK), cluster.nodes[0]
    with without_memory(node.host):
        done = end_of(cluster, cluster.client().put(path)).expect_done()
    assert sorted(done["peers"]) == sorted(n.membership.peer_id for n in cluster.nodes[1:])
    cluster.verify({"file": path})  # also: no space is reserved any more
    assert node.parts.service.refused > 0


def test_an_upload_waits_for_a_node_without_memory_that_it_needs(root: Path) -> None:
    cluster = Cluster(root, 1, nodes=2)
    path, node = cluster.make_file("file", 8 * CHUNK), cluster.nodes[0]
    with without_memory(node.host):
        outcome = cluster.client().put(path)
        cluster.run_for(10.0)
        told = outcome.events[-1]
    assert (told["event"], [row["name"] for row in told["refusing"]]) == ("waiting", ["a"])
    assert "a is up, but refuses chunks: this PC has no memory left for a chunk" in told["message"]
    cluster.run(lambda: outcome.ended, "the upload", limit_s=4.0)
    outcome.expect_done()
    cluster.verify({"file": path})


def test_a_client_without_memory_ends_in_words(root: Path) -> None:
    cluster = Cluster(root, 2, nodes=2)
    path, writer, reader = cluster.make_file("file", 8 * CHUNK), cluster.client(), cluster.client()
    with without_memory(writer.host):
        says_so(end_of(cluster, writer.put(path)))
    end_of(cluster, writer.put(path)).expect_done()
    with without_memory(reader.host):
        says_so(end_of(cluster, reader.get("file", root / "got")))
    end_of(cluster, reader.get("file", root / "got")).expect_done()
    assert (root / "got").read_bytes() == path.read_bytes()
    cluster.verify({"file": path})


def test_a_node_without_memory_for_a_block_is_asked_again(root: Path) -> None:
    cluster = Cluster(root, 3, nodes=2)
    path = cluster.make_file("file", 8 * CHUNK)
    end_of(cluster, cluster.client().put(path)).expect_done()
    with without_memory(cluster.nodes[0].host):
        outcome = cluster.client().get("file", root / "got")
        cluster.run_for(2.0)
        assert not outcome.ended
    end_of(cluster, outcome).expect_done()
    assert (root / "got").read_bytes() == path.read_bytes()
    cluster.verify({"file": path})
    assert cluster.nodes[0].parts.service._blocks.lent == 0
