"""What the fault tests share: the reports and folders of the integration tests, a seed each
session, and clusters of small chunks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.rounds import SETTINGS, Rounds
from tests.integration.cluster import Cluster
from tests.integration.conftest import SMALL, folder, pytest_runtest_makereport

__all__ = ["Figure", "folder", "pytest_runtest_makereport"]

#: pytest's `record_property`: what is told as "figures" is shown at the end of every run.
Figure = Callable[[str, object], None]


@pytest.fixture(scope="session")
def seed() -> int:
    """Of all moments that are drawn. A run is repeated with ZCHUNK_TEST_SEED=<seed>."""
    return int(os.environ.get("ZCHUNK_TEST_SEED") or time.time_ns() % 10**9)


@pytest.fixture(scope="session")
def rounds(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Rounds]:
    """Three nodes, a file on all of them and one on a single one."""
    with Cluster(tmp_path_factory.mktemp("rounds"), SETTINGS) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield Rounds(cluster, tmp_path_factory.mktemp("files"), seed)


@pytest.fixture(scope="session")
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("small"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture
def small(small_cluster: Cluster) -> Iterator[Cluster]:
    """A tracker and the nodes A, B, C: distributed from 1 MiB, chunks of 64 KiB."""
    yield small_cluster
    small_cluster.mend()
