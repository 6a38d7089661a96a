"""Pause, resume and cancel (SPEC D4, D6) of simulated downloads, at any moment of theirs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, Outcome, SimClient
from zchunk.errors import Cancelled, Interrupted, InvalidUsage
from zchunk.node.download.actions import JobState

NAME = "film.mkv"
#: The download takes about this many simulated seconds when nothing disturbs it.
LENGTH_S = 0.12


class Asked(Counter[str]):
    """Blocks that a client asked for, by peer."""

    def __init__(self, client: SimClient) -> None:
        super().__init__()
        get_block = client.bulk.links.get_block

        def counted(peer_id: str, *args: Any) -> None:
            self[peer_id] += 1
            get_block(peer_id, *args)

        client.bulk.links.get_block = counted  # type: ignore[assignment, method-assign]


def begun(root: Path, seed: int, *, auto_resume: bool = True) -> tuple[Cluster, SimClient, Path]:
    """A cluster that holds a file."""
    chunking = {**SETTINGS["chunking"], "auto_resume_downloads": auto_resume}
    cluster = Cluster(root, seed, settings={**SETTINGS, "chunking": chunking})
    client = cluster.client()
    path = cluster.make_file(NAME, 24 * CHUNK + 13)
    put = client.put(path)
    cluster.run(lambda: put.ended, "the upload")
    put.expect_done()
    return cluster, client, path


def under_way(cluster: Cluster, client: SimClient, root: Path) -> Outcome:
    """A download, somewhere between its first look at the disk and its end."""
    got = client.get(NAME, root / "copy")
    cluster.run(lambda: got.download is not None, "the download to begin")
    cluster.run_for(cluster.rng.uniform(0.0, LENGTH_S))
    return got


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("copy*"))


@pytest.mark.row("D6")
@pytest.mark.parametrize("seed", range(40))
def test_a_paused_download_asks_nobody_and_then_ends_well(root: Path, seed: int) -> None:
    cluster, client, path = begun(root, seed)
    asked = Asked(client)
    got = under_way(cluster, client, root)
    if not got.ended:
        try:
            got.download.pause()
        except InvalidUsage:
            assert got.download.state is JobState.VERIFYING
        else:
            cluster.run_for(2.0)
            before = dict(asked)
            cluster.nodes[0].crash()
            cluster.run_for(20.0)
            cluster.nodes[0].start()
            cluster.run_for(20.0)
            assert asked == before
            assert got.download.state is JobState.PAUSED
            assert got.part.state == "paused"
            got.download.resume()
            told = [event["event"] for event in got.events if event["event"] in ("paused", "continued")]
            assert told == ["paused", "continued"]
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()
    assert (root / "copy").read_bytes() == path.read_bytes()
    assert leftovers(root) == ["copy"]


@pytest.mark.row("D6")
@pytest.mark.parametrize("seed", range(40))
def test_a_cancelled_download_leaves_nothing(root: Path, seed: int) -> None:
    cluster, client, _ = begun(root, seed)
    asked = Asked(client)
    got = under_way(cluster, client, root)
    if cluster.rng.random() < 0.3 and not got.ended:
        with_pause(got)
    try:
        got.download.cancel()
    except InvalidUsage:
        cluster.run(lambda: got.ended, "the download")
        got.expect_done()
        assert leftovers(root) == ["copy"]
        return
    cluster.run(lambda: got.ended, "the end")
    assert isinstance(got.error, Cancelled)
    assert leftovers(root) == []
    before = dict(asked)
    cluster.run_for(20.0)
    assert asked == before
    # The same target is free for another job.
    again = client.get(NAME, root / "copy")
    cluster.run(lambda: again.ended, "another download")
    assert again.expect_done()["job_id"] != got.error.details["job_id"]


def test_a_paused_download_that_is_interrupted_is_kept(root: Path) -> None:
    cluster, client, path = begun(root, 3)
    got = client.get(NAME, root / "copy")
    cluster.run(lambda: got.download is not None, "the download to begin")
    cluster.run(lambda: got.part.completed, "a chunk")
    got.download.pause()
    cluster.run_for(5.0)
    got.download.stop()
    cluster.run(lambda: got.ended, "the end")
    assert isinstance(got.error, Interrupted)
    assert leftovers(root) == ["copy.zjob", "copy.zpart"]
    again = client.get(NAME, root / "copy")
    cluster.run(lambda: again.ended, "another download")
    done = again.expect_done()
    assert done["job_id"] == got.error.details["job_id"]
    assert done["bytes_received"] < path.stat().st_size
    assert (root / "copy").read_bytes() == path.read_bytes()


def with_pause(got: Outcome) -> None:
    try:
        got.download.pause()
    except InvalidUsage:
        assert got.download.state is JobState.VERIFYING


def stopped(cluster: Cluster, client: SimClient, target: Path) -> None:
    """An earlier run, whose part is looked at first by the next one."""
    got = client.get(NAME, target)
    cluster.run(lambda: got.download is not None, "the download to begin")
    got.download.stop()
    cluster.run(lambda: got.ended, "its end")


def test_a_pause_before_the_disk_was_looked_at_holds(root: Path) -> None:
    cluster, client, _ = begun(root, 1)
    stopped(cluster, client, root / "copy")
    asked = Asked(client)
    got = client.get(NAME, root / "copy")
    cluster.run(lambda: got.download is not None, "the download to begin")
    got.download.pause()
    assert got.download.state is JobState.PAUSED
    cluster.run_for(20.0)
    assert [event["event"] for event in got.events if event["event"] not in ("progress", "preparing")] == [
        "plan",
        "paused",
    ]
    assert not asked
    got.download.resume()
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()


def test_a_pause_taken_back_before_the_disk_was_looked_at_is_none(root: Path) -> None:
    cluster, client, _ = begun(root, 1)
    stopped(cluster, client, root / "copy")
    got = client.get(NAME, root / "copy")
    cluster.run(lambda: got.download is not None, "the download to begin")
    got.download.pause()
    got.download.resume()
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()
    assert not [event for event in got.events if event["event"] in ("paused", "continued")]


@pytest.mark.row("D4")
@pytest.mark.parametrize("seed", range(5))
def test_without_auto_resume_a_waiting_download_goes_on_when_it_is_told(root: Path, seed: int) -> None:
    """D4: the peer's return is told, and nothing is asked of it until then."""
    cluster, client, path = begun(root, seed, auto_resume=False)
    node = cluster.nodes[1]
    node.crash()
    cluster.run(lambda: not node.is_up(), "its lease to end")
    asked = Asked(client)
    got = client.get(NAME, root / "copy")
    cluster.run(lambda: got.download is not None, "the download to begin")
    cluster.run(lambda: got.download.state is JobState.WAITING, "it to wait")
    node.start()
    cluster.run(lambda: got.events[-1]["event"] == "peer_back", "its return to be told")
    cluster.run_for(60.0)
    assert node.membership.peer_id not in asked
    assert got.download.state is JobState.WAITING
    assert got.download.missing_names() == {node.membership.peer_id: node.name}
    got.download.resume()
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()
    resumed = [event for event in got.events if event["event"] == "resumed"]
    assert [event["peer_id"] for event in resumed] == [node.membership.peer_id]
    assert (root / "copy").read_bytes() == path.read_bytes()
