"""A tracker whose disk fails for a while: nodes go on when it does, and do not pester it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster
from zchunk.errors import StorageFailure
from zchunk.tracker.store.store import TrackerStore

SECONDS = 10.0


def test_a_node_whose_inventory_cannot_be_kept_asks_once_a_second(root: Path) -> None:
    cluster = Cluster(root, 1, nodes=2)
    path, node = cluster.make_file("file", 4 * CHUNK), cluster.nodes[0]
    outcome = cluster.client().put(path)
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    node.crash()
    cluster.store.replace_inventory(node.membership.peer_id, [], 0)  # the next start is asked for one
    asked = []

    def refuse(*_: object) -> None:
        asked.append(cluster.clock.monotonic())
        raise StorageFailure("the disk failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrackerStore, "replace_inventory", refuse)
        node.start()
        cluster.run_for(SECONDS)
    assert 2 < len(asked) <= SECONDS + 1
    cluster.verify({"file": path})
