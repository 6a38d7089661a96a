"""Chunks that fill the memory for chunks: three at a time are under way all the same, and not more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, Outcome
from tests.sim.test_encrypted import begin, make_cluster
from zchunk.system import buffers

#: One chunk of a client, and half of one of a node, which takes the whole file.
_TIGHT = {
    **SETTINGS,
    "chunking": {**SETTINGS["chunking"], "min_file_size_for_distribution": 100 * CHUNK},
    "transfer": {**SETTINGS["transfer"], "receive_budget": CHUNK},
}


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[buffers.BufferPool]:
    """Those that were made, in order."""
    made: list[buffers.BufferPool] = []
    real = buffers.BufferPool.__init__

    def noted(self: buffers.BufferPool, budget_bytes: int, keep: int | None = None) -> None:
        real(self, budget_bytes, keep)
        made.append(self)

    monkeypatch.setattr(buffers.BufferPool, "__init__", noted)
    return made


def most_chunks(cluster: Cluster, outcome: Outcome, pools: list[buffers.BufferPool]) -> list[int]:
    """How many chunks each pool had lent out at most when the transfer had ended."""
    most: dict[int, int] = {}

    def look() -> bool:
        for at, pool in enumerate(pools):
            most[at] = max(most.get(at, 0), pool.reserved // CHUNK)
        return outcome.ended

    cluster.run(look, "the transfer")
    outcome.expect_done()
    return [most[at] for at in sorted(most)]


def test_three_at_a_time_are_sent_taken_in_and_fetched(root: Path, pools: list[buffers.BufferPool]) -> None:
    """Of some seeds: in a network that is quick, a third may not be needed."""
    seen = [transferred(root / str(seed), seed, pools) for seed in range(4)]
    assert [max(of_one) for of_one in zip(*seen, strict=True)] == [3, 3, 0, 3]


def transferred(root: Path, seed: int, pools: list[buffers.BufferPool]) -> list[int]:
    """The most chunks in the memory of a put: the client's, the node's, for encryption; of a get."""
    root.mkdir()
    del pools[:]
    cluster = Cluster(root, seed, nodes=1, settings=_TIGHT)
    path, reader = cluster.make_file("film", 40 * CHUNK), cluster.client()
    put = most_chunks(cluster, cluster.client().put(path), pools)
    del pools[:]
    got = reader.get("film", root / "got")
    # Made first is what the file's digest reads back into, one at a time; then what is fetched into.
    _, got_most = most_chunks(cluster, got, pools)
    cluster.verify({"film": path})
    assert (root / "got").read_bytes() == path.read_bytes()
    return [*put, got_most]


def test_of_an_encrypted_upload_one_more_is_there_with_its_plain_bytes(
    root: Path, pools: list[buffers.BufferPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each of the three in both forms."""
    cluster = make_cluster(root, 4, monkeypatch, nodes=1, settings=_TIGHT)
    path = cluster.make_file("film", 40 * CHUNK)
    assert most_chunks(cluster, begin(cluster, path), pools) == [3, 3, 1]
    cluster.verify({"film": path})
