"""Clusters and files that tests share, and what the servers said when a test fails."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import GIB, UNPRIVILEGED, Client, Cluster, Source, make_file
from tests.integration.doors import Doors, opened

#: Real rules at a size that is quick: distributed from 1 MiB, in chunks of 64 KiB.
SMALL = {"chunking.min_file_size_for_distribution": "1MiB", "chunking.chunk_size": "64KiB"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        for cluster in Cluster.running:
            report.sections += list(cluster.failed())
    return report


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As tmp_path, but gone after the test: pytest keeps those of three sessions."""
    path = tmp_path_factory.mktemp("folder")
    yield path
    shutil.rmtree(path)


# -- real size --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("lab")) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture
def lab(lab_cluster: Cluster) -> Iterator[Cluster]:
    """A tracker and the nodes A, B, C with the settings that come with zchunk."""
    yield lab_cluster
    lab_cluster.mend()


@pytest.fixture(scope="session")
def stranger(lab_cluster: Cluster) -> Client:
    """A client that cannot read the nodes' disks, where the tests run as root (else the
    user is the same for all, and nothing keeps it away)."""
    return lab_cluster.join("stranger", prefix=UNPRIVILEGED)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("sources")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def gib(sources: Path) -> Source:
    """Exactly the size from which files are distributed."""
    return make_file(sources / "one GiB.bin", GIB)


@pytest.fixture(scope="session")
def big(sources: Path) -> Source:
    """1.5 GB: no multiple of a chunk."""
    return make_file(sources / "big.bin", 1_500_000_000)


# -- small ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bench_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bench"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture
def bench(bench_cluster: Cluster) -> Iterator[Cluster]:
    """A tracker and the nodes A, B, C with `SMALL` settings."""
    yield bench_cluster
    bench_cluster.mend()


@pytest.fixture(scope="session")
def guarded_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("guarded"), SMALL) as cluster:
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.fixture
def guarded(guarded_cluster: Cluster) -> Iterator[Cluster]:
    """A tracker and the nodes A and B, for tests that cut members off and let them in again."""
    yield guarded_cluster
    guarded_cluster.mend()


@pytest.fixture(scope="session")
def doors(guarded_cluster: Cluster, sources: Path) -> Iterator[Doors]:
    with opened(guarded_cluster, sources) as doors:
        yield doors
