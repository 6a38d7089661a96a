from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster
from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest
from zchunk.errors import NotYetStored
from zchunk.protocol.messages import Commit


@pytest.mark.row("U3", "R7")
def test_put_get_remove_on_a_quiet_network(root: Path) -> None:
    cluster = Cluster(root, seed=1)
    client = cluster.client()
    path = cluster.make_file("quiet.bin", 7 * CHUNK + 13)
    put = client.put(path)
    cluster.run(lambda: put.ended, "the upload")
    done = put.expect_done()
    assert done["bytes_sent"] == path.stat().st_size
    cluster.verify({"quiet.bin": path})
    removed = client.remove(done["file_id"])
    cluster.run(lambda: removed.ended, "the removal")
    removed.expect_done()
    cluster.run(lambda: not any(node.store.count for node in cluster.nodes), "the space to be freed")
    cluster.verify({})


def test_a_commit_of_chunks_that_nobody_has_is_refused_soon(root: Path) -> None:
    """Also when it is asked again meanwhile, as every unanswered request is."""
    cluster = Cluster(root, seed=1)
    row = ChunkRow(CHUNK, IDENTITY, bytes(32), bytes(32), None)
    manifest = Manifest("nowhere.bin", CHUNK, bytes(32), CHUNK, (row,))
    commit = Commit(
        upload_id="5" * 32,
        replicas=1,
        min_peers=1,
        distribute=False,
        file_id=manifest.file_id,
        manifest=manifest.canonical,
    )
    asked = cluster.client().ask(commit)
    cluster.run(lambda: asked.ended, "the refusal", limit_s=8)
    assert isinstance(asked.error, NotYetStored)
