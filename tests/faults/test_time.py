"""T20: processes that stop for a while, and wall clocks that jump: nobody else is taken for
down for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL
from zchunk.protocol.messages import EventList, EventRecord, GetEvents, GetSnapshot, Snapshot

#: Longer than a lease and than every heartbeat's timeout.
_STOPPED_S = 4.0
#: A lease and some: by then a lease that a jump has ended would have been noticed.
_NOTICED_S = 3.5
#: One heartbeat, and what a busy machine may add.
_BEAT_S, _BUSY_S = 1.0, 3.0
_FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class History:
    """What the tracker has told of peers since this was made."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        with cluster.watcher() as client:
            now = client.ask(GetSnapshot(), PATIENCE_S)
        assert isinstance(now, Snapshot)
        self._epoch, self._since = now.epoch, now.seq

    def of_peers(self) -> list[EventRecord]:
        with self._cluster.watcher() as client:
            reply = client.ask(GetEvents(epoch=self._epoch, since=self._since), PATIENCE_S)
        assert isinstance(reply, EventList)
        assert reply.epoch == self._epoch, "the same run of the tracker"
        return [event for event in reply.events if event.topic in ("peer.up", "peer.down")]


def check_works(cluster: Cluster, folder: Path) -> None:
    source = make_file(folder / "worked.bin", 2 * MIB)
    cluster.client.put(source.path)
    cluster.client.get("worked.bin", folder / "copy", "--no-wait")
    assert sha256_of(folder / "copy") == source.sha256
    cluster.client.run("rm", "--yes", "worked.bin")


@pytest.mark.row("D9")
def test_a_tracker_that_was_stopped_calls_nobody_down(small: Cluster, folder: Path) -> None:
    """Its own silence is no silence of the nodes."""
    history, tracker = History(small), small.tracker.process
    with small.frozen(tracker):
        assert not tracker.ends_within(_STOPPED_S)
    small.await_all_up()
    assert not tracker.ends_within(_NOTICED_S)
    small.await_all_up()
    assert history.of_peers() == []
    check_works(small, folder)


def test_a_node_that_was_stopped_is_up_again_at_once(
    small: Cluster, folder: Path, record_property: Figure
) -> None:
    node = small.nodes["A"].process
    with small.frozen(node):
        small.await_status("A", "down")
    began = node.seconds
    small.await_status("A", "up", _BEAT_S + _BUSY_S)
    record_property("figures", f"up {node.seconds - began:.2f} s after it went on")
    check_works(small, folder)


# -- clocks -----------------------------------------------------------------------------------


class Clock:
    """The wall clock of the processes that start with `prefix`; monotonic time stays."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        self.prefix = (
            "env",
            f"LD_PRELOAD={_FAKETIME}",
            f"FAKETIME_TIMESTAMP_FILE={file}",
            "FAKETIME_NO_CACHE=1",
            "DONT_FAKE_MONOTONIC=1",
        )

    def set(self, seconds: int) -> None:
        """So far from the true time."""
        # In one step: a process that reads it empty ends with an error of libfaketime.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, dict[str, Clock]]]:
    folder = tmp_path_factory.mktemp("clocks")
    clocks = {name: Clock(folder / name) for name in ("tracker", "node")}
    cluster = Cluster(tmp_path_factory.mktemp("clocked"), SMALL)
    cluster.tracker_prefix = clocks["tracker"].prefix
    with cluster:
        cluster.start_node("A", prefix=clocks["node"].prefix)
        cluster.start_node("B")
        cluster.await_all_up()  # the events of that come before the clocks jump
        yield cluster, clocks


@pytest.mark.skipif(_FAKETIME is None, reason="needs faketime")
def test_clocks_that_jump_take_nobody_down(clocked: tuple[Cluster, dict[str, Clock]], folder: Path) -> None:
    """The tracker's an hour on and the node's an hour back, and then the other way round."""
    cluster, clocks = clocked
    for seconds in (3600, -3600):
        history = History(cluster)
        clocks["tracker"].set(seconds)
        clocks["node"].set(-seconds)
        assert not cluster.tracker.process.ends_within(_NOTICED_S)
        assert history.of_peers() == []
        assert cluster.statuses() == {"A": "up", "B": "up"}
        check_works(cluster, folder)
        (folder / "copy").unlink()
    for clock in clocks.values():
        clock.set(0)


@pytest.mark.skipif(_FAKETIME is None, reason="needs faketime")
def test_the_clocks_of_these_tests_do_jump(clocked: tuple[Cluster, dict[str, Clock]], folder: Path) -> None:
    """Else the tests above prove nothing."""
    cluster, clocks = clocked
    clocks["tracker"].set(-3600)
    cluster.client.put(make_file(folder / "dated.bin", 10).path)
    with cluster.watcher() as client:
        dated = next(record.created_at_ms for record in client.ls() if record.name == "dated.bin")
    clocks["tracker"].set(0)
    true_ms = (folder / "dated.bin").stat().st_mtime * 1000
    assert -3_700_000 < dated - true_ms < -3_500_000
