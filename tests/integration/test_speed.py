"""A guard against a transfer path that got slower: `get` next to the floor of the same run.

Never an absolute time: a machine that is slow or busy slows both. The bounds are a little under half of
the medians measured (0.75 and 0.57): noise does not fail it, a path that takes over twice as long does.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from benchmarks.floors import CACHED, DIRECT, floor

from tests.integration.cluster import Cluster, Source, make_file, sha256_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(300)]

SIZE = 300 * 10**6
ROUNDS = 5
DISTRIBUTED = {"chunking.min_file_size_for_distribution": "100MB"}
#: the least share of the floor's speed, by transport
LEAST = {"plain": 0.35, "curve": 0.25}


@pytest.mark.parametrize("transport", LEAST)
def test_get_keeps_up_with_the_floor(
    transport: str, tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    source = make_file(folder / "random.bin", SIZE)
    settings = {**DISTRIBUTED, "security.transport": transport}
    with Cluster(tmp_path_factory.mktemp("speed"), settings) as cluster:
        cluster.start_nodes("A", "B", "C")
        cluster.client.put(source.path)
        target = folder / "copy.bin"
        kind = kind_here(source, target)
        rounds = [one_round(cluster, source, target, kind) for _ in range(ROUNDS + 1)]
    ratios = sorted(floor_s / get_s for floor_s, get_s in rounds[1:])  # the first one warms up
    said = ", ".join(f"{floor_s:.2f}/{get_s:.2f}" for floor_s, get_s in rounds)
    print(f"{transport}: median {median(ratios):.2f} of the floor's speed; seconds, floor/get: {said}")
    assert median(ratios) >= LEAST[transport], f"floor/get, seconds: {said}"


def kind_here(source: Source, target: Path) -> str:
    """O_DIRECT, if the file system has it."""
    try:
        floor(source.path, target, DIRECT)
    except OSError:
        return CACHED
    target.unlink()
    return DIRECT


def one_round(cluster: Cluster, source: Source, target: Path, kind: str) -> tuple[float, float]:
    """Seconds of the floor, and what `get` says of its transfer: a process's start would hide a
    file of this size."""
    run = floor(source.path, target, kind)
    assert run.sha256 == source.sha256
    target.unlink()
    done = cluster.client.get(source.path.name, target).last
    assert (sha256_of(target), done["bytes_received"]) == (source.sha256, source.size)
    target.unlink()
    return run.seconds, done["seconds"]
