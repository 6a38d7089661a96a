"""Trackers and nodes that end and start again: nothing that was told is forgotten."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.waiting import wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_tracker_starts_again(number: signal.Signals, bench: Cluster, folder: Path) -> None:
    source = make_file(folder / f"kept{number}.bin", 2 * MIB)
    client = bench.client
    put = client.put(source.path).last
    before = (client.ls(), client.info(source.path.name))
    pids = {node.process.pid for node in bench.nodes.values()}
    bench.stop_tracker(number)
    if number is signal.SIGTERM:
        assert bench.tracker.process.code == 0
    bench.start_tracker()
    assert client.ls() == before[0]
    bench.await_all_up()
    assert {node.process.pid for node in bench.nodes.values()} == pids, "by themselves"
    assert client.info(source.path.name) == before[1]
    client.get(put["file_id"], folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    again = make_file(folder / f"after{number}.bin", 2 * MIB)
    assert client.put(again.path).last["event"] == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_node_starts_again(number: signal.Signals, bench: Cluster, folder: Path) -> None:
    source = make_file(folder / f"held{number}.bin", 2 * MIB)
    bench.client.put(source.path)
    node = bench.nodes["B"]
    before = (node.peer_id, node.endpoint, node.chunks())
    code = node.process.end(number)
    assert code == (-number if number is signal.SIGKILL else 0), str(node.process)
    bench.await_status("B", "down" if number is signal.SIGKILL else "left")
    assert bench.client.info(source.path.name)["health"] == "unavailable"
    bench.restart("B")
    assert (node.peer_id, node.endpoint, node.chunks()) == before
    assert bench.client.info(source.path.name)["health"] == "complete"
    bench.client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_many_times(
    number: signal.Signals, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ctrl-C pressed twice, or a shutdown that signals all: once a signal that came while an
    earlier one was dealt with made it hang for ever."""
    with Cluster(tmp_path_factory.mktemp("stop")) as cluster:
        nodes = cluster.start_nodes("A", "B", "C", "D")
        for process in [*(node.process for node in nodes), cluster.tracker.process]:
            for _ in range(200):
                process.send(number)
            assert process.wait(20.0) == 0, str(process)


def test_a_node_that_starts_before_the_tracker(bench: Cluster) -> None:
    bench.stop("A")
    bench.stop_tracker()
    node = bench.nodes["A"]
    words = ["node", "--home", str(node.home), "--bind", node.endpoint]
    node.process.close()
    node.process = bench.spawn(words)
    wait_for(lambda: "keeps trying" in node.process.stderr, PATIENCE_S, "it says what it waits for")
    assert node.process.alive
    bench.start_tracker()
    assert node.process.ready()["peer_id"] == node.peer_id
    bench.await_all_up()


def test_a_waiting_download_survives_the_trackers_restart(bench: Cluster, folder: Path) -> None:
    """D4, D9: the event it waits for comes from another run of the tracker."""
    source = make_file(folder / "patient.bin", 2 * MIB)
    bench.client.put(source.path)
    lost = bench.kill("C")
    patient = {"chunking.resume_check_interval": 3600}
    get = bench.client.start("get", source.path.name, "-o", folder / "copy", settings=patient)
    assert get.until("waiting")["missing_peers"] == [lost.peer_id]
    bench.stop_tracker(signal.SIGKILL)
    bench.start_tracker()
    bench.await_status("A", "up")
    assert get.alive
    bench.restart("C")
    assert get.until("resumed")["peer_id"] == lost.peer_id
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256


def test_a_node_whose_store_is_not_mounted_does_not_make_a_new_one(bench: Cluster, folder: Path) -> None:
    """An empty mount point is not a first start; the right disk is taken when it is back."""
    source = make_file(folder / "mounted.bin", 2 * MIB)
    bench.client.put(source.path)
    bench.stop("A")
    node = bench.nodes["A"]
    node.store.rename(folder / "away")
    node.store.mkdir()
    refused = bench.spawn(["node", "--home", str(node.home), "--bind", node.endpoint]).result().expect(1)
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("zchunk: ")]
    assert f"this node's store {node.store} is missing: is its disk mounted?" in line
    assert "--new-store" in line
    assert not list(node.store.iterdir())
    node.store.rmdir()
    (folder / "away").rename(node.store)
    bench.restart("A")
    bench.client.get("mounted.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


def test_a_node_goes_on_with_an_empty_disk_where_that_is_said(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Cluster(tmp_path_factory.mktemp("emptied")) as cluster:
        node = cluster.start_node("A")
        cluster.stop("A")
        shutil.rmtree(node.store)
        again = cluster.spawn(["node", "--home", str(node.home), "--bind", node.endpoint, "--new-store"])
        assert again.ready()["peer_id"] == node.peer_id
        assert again.end() == 0
        cluster.restart("A")


@pytest.mark.row("R8")
def test_a_disk_that_is_unplugged_is_waited_for_by_name(bench: Cluster, folder: Path) -> None:
    """The node runs, its store is away (SPEC R8): nothing is asked there, nothing is lost."""
    source = make_file(folder / "unplugged.bin", 4 * MIB)
    bench.client.put(source.path)
    marker = bench.nodes["C"].home / "node" / "store" / "zchunk-store.json"
    plugged = marker.read_bytes()
    marker.unlink()
    bench.await_status("C", "offline-store")
    assert bench.client.info("unplugged.bin")["health"] == "unavailable"
    partly = bench.client.get("unplugged.bin", folder / "partly", "--no-wait", code=4)
    assert partly.last["missing_peers"] == [bench.nodes["C"].peer_id]
    get = bench.client.start("get", "unplugged.bin", "-o", folder / "copy")
    (row,) = get.until("waiting")["missing"]
    assert (row["name"], row["reason"]) == ("C", "offline-store")
    marker.write_bytes(plugged)
    get.until("resumed")
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256
