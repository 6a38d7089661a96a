"""A tracker and three nodes at rest hardly wake up (`scripts/bench rest`, for less time)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks import rest

from tests.integration.cluster import Cluster

pytestmark = pytest.mark.alone

#: As its benchmark has 60 s.
LOOK_S = 20.0
#: The same work costs more where other programs take the caches: the benchmark asks for the bound,
#: on a quiet machine; looks by the clock alone would be 1%.
MOST_CPU = 2 * rest.CPU


@pytest.mark.slow
def test_a_cluster_at_rest_sleeps(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        cluster.start_nodes("A", "B", "C")
        pids = {name: node.process.pid for name, node in cluster.nodes.items()}
        time.sleep(rest.SETTLE_S)
        found = rest.watch({"tracker": cluster.tracker.process.pid, **pids}, LOOK_S)
    assert found.keys() == {"tracker", "A", "B", "C"}
    for name, process in found.items():
        assert 0 < process.own_per_s <= rest.allowed(name), (name, process)
        assert process.cpu <= MOST_CPU, (name, process)
