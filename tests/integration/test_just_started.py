"""A tracker that has just started does not know yet who is up: nobody takes that for an answer.

The nodes stand still (SIGSTOP) while the tracker starts again, and go on once the command is known
to wait for them. They have a lease that is longer than any of this takes: the wait ends by events.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import zchunk
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Process, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.waiting import wait_for
from zchunk.config import Settings, Tracker

_LEASE_S = 60.0
_SETTINGS = Settings(tracker=Tracker(lease_s=_LEASE_S))
NODES = ("A", "B", "C")


@pytest.fixture(scope="module")
def patient_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {**SMALL, "tracker.lease_s": _LEASE_S}
    with Cluster(tmp_path_factory.mktemp("patient"), settings) as cluster:
        cluster.start_nodes(*NODES)
        make_file(cluster.root / "known.bin", 2 * MIB)
        cluster.client.put(cluster.root / "known.bin")
        yield cluster


@pytest.fixture
def started(patient_cluster: Cluster) -> Iterator[Cluster]:
    """The tracker has just started, and has heard from no node."""
    for node in patient_cluster.nodes.values():
        node.process.send(signal.SIGSTOP)
    patient_cluster.stop_tracker(signal.SIGKILL)
    patient_cluster.start_tracker()
    yield patient_cluster
    patient_cluster.mend()


def _say_hello(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.process.send(signal.SIGCONT)


def _ends_by_event(process: Process) -> None:
    assert process.result().expect(0).seconds < _LEASE_S / 2


@pytest.mark.row("U2")
def test_an_upload_waits_for_the_nodes_to_say_hello(started: Cluster, folder: Path) -> None:
    source = make_file(folder / "early.bin", 2 * MIB)
    put = started.client.start("put", "--yes", source.path)
    waiting = put.until("waiting")
    assert waiting["unsure"] == list(NODES)
    assert "these have not registered yet: A, B, C" in waiting["message"]
    _say_hello(started)
    assert put.until("plan")["peers"]
    _ends_by_event(put)


def test_it_says_for_whom_it_waits(started: Cluster, folder: Path) -> None:
    source = make_file(folder / "told.bin", 2 * MIB)
    put = started.client.start("put", "--yes", source.path, json=False)
    line = "waiting for nodes to register: A, B, C"
    wait_for(lambda: line in put.stderr, PATIENCE_S, "it says what it waits for")
    _say_hello(started)
    _ends_by_event(put)


def test_a_download_without_waiting_waits_for_their_hello(started: Cluster, folder: Path) -> None:
    get = started.client.start("get", "known.bin", "-o", folder / "copy", "--no-wait")
    assert {row["reason"] for row in get.until("waiting")["missing"]} == {"unsure"}
    _say_hello(started)
    _ends_by_event(get)
    assert sha256_of(folder / "copy") == sha256_of(started.root / "known.bin")


def test_a_read_without_waiting_waits_for_their_hello(started: Cluster) -> None:
    with (
        zchunk.Client(started.client.home, _SETTINGS) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        told: list[str] = []
        opened = client.open("known.bin", wait=False, on_event=lambda event: told.append(event["event"]))
        reading = thread.submit(opened.read)
        try:
            wait_for(lambda: "waiting" in told, PATIENCE_S, "the read waits")
        finally:
            _say_hello(started)
        assert reading.result(PATIENCE_S) == (started.root / "known.bin").read_bytes()


def test_what_is_shown_of_a_file_waits_for_their_hello(started: Cluster) -> None:
    with (
        zchunk.Client(started.client.home, _SETTINGS) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        assert {(peer.status, peer.unsure) for peer in client.peers()} == {("down", True)}
        assert "not known yet" in "\n".join(started.client.run("peers", json=False).lines)
        shown = thread.submit(client.locate, "known.bin", settled=True)
        _say_hello(started)
        assert set(shown.result(PATIENCE_S).live_copies()) == {1}
    assert started.client.info("known.bin")["health"] == "complete"


# -- where nobody says hello ----------------------------------------------------------------


@pytest.fixture(scope="module")
def lone_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With a lease that a busy machine does not outlast before a command has asked."""
    with Cluster(tmp_path_factory.mktemp("lone"), {**SMALL, "tracker.lease_s": 20.0}) as cluster:
        cluster.start_nodes(*NODES)
        make_file(cluster.root / "known.bin", 2 * MIB)
        cluster.client.put(cluster.root / "known.bin")
        yield cluster


@pytest.fixture
def alone(lone_cluster: Cluster) -> Iterator[Cluster]:
    """The tracker has just started, and its nodes are gone."""
    for node in lone_cluster.nodes.values():
        node.process.end(signal.SIGKILL)
    lone_cluster.stop_tracker(signal.SIGKILL)
    lone_cluster.start_tracker()
    yield lone_cluster
    lone_cluster.mend()


def test_after_a_lease_without_a_hello_an_upload_is_refused(alone: Cluster) -> None:
    """By then it is known."""
    put = alone.client.start("put", "--yes", make_file(alone.root / "late.bin", 2 * MIB).path)
    assert put.until("waiting")["unsure"] == list(NODES)
    refused = put.result().expect(3).last
    assert refused["code"] == "too_few_peers"
    assert refused["message"].startswith("0 peers online, but 2 needed: start more nodes")


@pytest.mark.parametrize("goes_on", [True, False], ids=["decided", "tracker gone again"])
def test_a_download_without_waiting_ends_all_the_same(alone: Cluster, folder: Path, goes_on: bool) -> None:
    """By the event that a node is down, or, where none can come any more, a moment after the lease."""
    get = alone.client.start("get", "known.bin", "-o", folder / "copy", "--no-wait")
    assert {row["reason"] for row in get.until("waiting")["missing"]} == {"unsure"}
    if not goes_on:
        alone.stop_tracker(signal.SIGKILL)
    partial = get.result().expect(4).last
    assert partial["missing_peers"] == sorted(node.peer_id for node in alone.nodes.values())
