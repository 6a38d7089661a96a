"""A seed tells the same story each time: in this process, and in others that order sets
differently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, Cluster
from tests.sim.replay import replay
from zchunk.node.download.job import DownloadJob

ROOT = Path(__file__).parents[2]


def elsewhere(seed: int, hash_seed: int) -> dict[str, Any]:
    """The summary of a replay in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.sim.replay", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        timeout=100,
        check=True,
    )
    summary: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return summary


@pytest.mark.parametrize("seed", [3, 21])
def test_a_seed_replays_message_by_message(root: Path, seed: int) -> None:
    runs = []
    for name in ("once", "again"):
        with pytest.MonkeyPatch.context() as patch:
            runs.append(replay(root / name, seed, patch))
    (first, trace), (second, trace_again) = runs
    for message, again in zip(trace, trace_again, strict=False):
        assert message == again, f"seed {seed}"
    assert first == second
    assert len(trace) > 500


@pytest.mark.parametrize("seed", [3, 8])
def test_the_order_of_sets_decides_nothing(seed: int) -> None:
    summaries = [elsewhere(seed, hash_seed) for hash_seed in (1, 2)]
    assert summaries[0] == summaries[1], (
        f"compare PYTHONHASHSEED=1 and 2 of `python -m tests.sim.replay {seed} --trace`"
    )


def test_other_seeds_tell_other_stories(root: Path) -> None:
    summaries = []
    for seed in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            summaries.append(replay(root / str(seed), seed, patch)[0])
    assert summaries[0]["trace"] != summaries[1]["trace"]


# -- a failing seed prints itself -----------------------------------------------------------


def test_what_does_not_come_is_told_with_the_seed(root: Path) -> None:
    cluster = Cluster(root, seed=77)
    with pytest.raises(AssertionError, match=r"seed 77: 3 simulated seconds .* the impossible"):
        cluster.run(lambda: False, "the impossible", limit_s=3)


def test_a_loop_without_end_is_told_with_the_seed(root: Path) -> None:
    cluster = Cluster(root, seed=78)

    def again() -> None:
        cluster.network.schedule(0.0, again)

    again()
    with pytest.raises(AssertionError, match=r"seed 78: .* steps did not bring"):
        cluster.run(lambda: False, "the impossible")
    with pytest.raises(AssertionError, match=r"seed 78: .* steps took no 5 seconds"):
        cluster.run_for(5)


def test_a_bug_in_the_product_is_told_with_the_seed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: DownloadJob, *args: object) -> list[object]:
        raise IndexError("a bug")

    cluster = Cluster(root, seed=79)
    path = cluster.make_file("some.bin", 3 * CHUNK)
    put = cluster.client().put(path)
    cluster.run(lambda: put.ended, "the upload")
    monkeypatch.setattr(DownloadJob, "block", broken)
    got = cluster.client().get("some.bin", root / "got")
    with pytest.raises(IndexError) as caught:
        cluster.run(lambda: got.ended, "the download")
    assert any(note.startswith("seed 79, step ") for note in caught.value.__notes__)
