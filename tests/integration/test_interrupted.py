"""Uploads and downloads that are stopped, disturbed or doubled in the middle.

Moments are not left to chance: an upload is held at its question, with the plan made and the
file open, until the test has done its part; a node that must not answer is frozen, and
the tracker with it, so that it is not taken for down.
"""

from __future__ import annotations

import mmap
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, Cluster, Event, Process, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.integration.test_edges import CHUNK, fresh


def held_put(cluster: Cluster, path: Path) -> tuple[Process, Event]:
    """An upload at its question, and its plan; `answer("y\\n")` lets it go on."""
    put = cluster.client.start("put", path, terminal=True)
    return put, put.until("plan")


def planned_bytes(plan: Event, cluster: Cluster, name: str) -> int:
    size: int = next(p["bytes"] for p in plan["peers"] if p["peer_id"] == cluster.nodes[name].peer_id)
    return size


# -- a file that changes while it is uploaded -----------------------------------------------


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def modify(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(3 * CHUNK)
        file.write(b"other")


def modify_and_put_the_time_back(path: Path) -> None:
    """As programs do that shall leave no trace of their containers' use, and `touch -r`."""
    before = path.stat()
    modify(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 5 * CHUNK)


def replace(path: Path) -> None:
    other = make_file(path.with_name("other"), path.stat().st_size)
    os.replace(other.path, path)


def remove(path: Path) -> None:
    path.unlink()


CHANGES = [append, modify, modify_and_put_the_time_back, truncate, replace, remove]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_not_published(
    change: Callable[[Path], None], bench: Cluster, folder: Path
) -> None:
    source = fresh(folder, 2 * MIB)
    put, _ = held_put(bench, source.path)
    change(source.path)
    put.answer("y\n")
    result = put.result().expect(5)
    assert (result.last["code"], result.last["exit_code"]) == ("file_changed", 5)
    assert str(source.path) in result.stderr
    assert source.path.name not in bench.client.names()


def test_a_file_that_changes_in_the_middle_is_not_published(bench: Cluster, folder: Path) -> None:
    source = fresh(folder, 4 * MIB)
    put, plan = held_put(bench, source.path)
    with bench.frozen(bench.nodes["B"].process, bench.tracker.process):
        put.answer("y\n")
        others = sum(p["chunks"] for p in plan["peers"] if p["name"] != "B")
        put.until(lambda e: e.get("event") == "progress" and e["chunks_completed"] == others)
        append(source.path)
    assert put.result().expect(5).last["code"] == "file_changed"
    bench.await_all_up()
    assert source.path.name not in bench.client.names()
    again = bench.client.put(source.path)
    assert again.last["size"] == source.size + 4


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A tmpfs, as /tmp may be, keeps no times of what is written through a mapping."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@contextmanager
def mapped(path: Path) -> Iterator[Callable[[], None]]:
    """A program, as a database or a virtual machine, that keeps two counters in the file, far apart
    and always equal; what raises both. They were raised once, and nobody has synced that."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        places = (0, len(mapping) - 8)

        def raise_both() -> None:
            value = int.from_bytes(mapping[:8], "little") + 1
            for at in places:
                mapping[at : at + 8] = value.to_bytes(8, "little")

        for at in places:
            mapping[at : at + 8] = bytes(8)
        raise_both()
        yield raise_both


def counters(path: Path) -> tuple[bytes, bytes]:
    content = path.read_bytes()
    return content[:8], content[-8:]


def test_a_file_that_changes_through_a_mapping_is_not_published(bench: Cluster, on_disk: Path) -> None:
    source = fresh(on_disk, 2 * MIB)
    with mapped(source.path) as raise_both:
        put, _ = held_put(bench, source.path)
        raise_both()
        put.answer("y\n")
        result = put.result().expect(5)
    assert result.last["code"] == "file_changed"
    assert source.path.name not in bench.client.names()


def test_a_writer_through_a_mapping_that_never_rests(bench: Cluster, on_disk: Path) -> None:
    """Nothing torn is published; once it rests, the file is."""
    source = fresh(on_disk, 4 * MIB)
    stop = threading.Event()

    def write_on(raise_both: Callable[[], None]) -> None:
        while not stop.is_set():
            raise_both()

    with mapped(source.path) as raise_both:
        writer = threading.Thread(target=write_on, args=(raise_both,))
        writer.start()
        try:
            result = bench.client.put(source.path, code=5)
        finally:
            stop.set()
            writer.join()
        assert result.last["code"] == "file_changed"
        assert source.path.name not in bench.client.names()
        bench.client.put(source.path)
    bench.client.get(source.path.name, on_disk / "copy")
    first, second = counters(on_disk / "copy")
    assert first == second != bytes(8)
    assert sha256_of(on_disk / "copy") == sha256_of(source.path)


# -- an upload that is stopped ---------------------------------------------------------------


@pytest.mark.row("U7")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_upload_goes_on_where_it_was(number: signal.Signals, bench: Cluster, folder: Path) -> None:
    """U7"""
    source = fresh(folder, 4 * MIB + 1000)
    put, plan = held_put(bench, source.path)
    missing = planned_bytes(plan, bench, "B")
    others = sum(p["chunks"] for p in plan["peers"] if p["name"] != "B")
    with bench.frozen(bench.nodes["B"].process, bench.tracker.process):
        put.answer("y\n")
        put.until(lambda e: e.get("event") == "progress" and e["chunks_completed"] == others)
        put.send(number)
        first = put.result()
    if number is signal.SIGKILL:
        assert first.code == -signal.SIGKILL
    else:
        first.expect(130)
        assert first.last["code"] == "interrupted"
        assert first.last["bytes_sent"] == source.size - missing
    bench.await_all_up()
    assert source.path.name not in bench.client.names(), "all or nothing (U5)"
    second = bench.client.put(source.path).last
    assert second["bytes_sent"] == missing
    assert second["sha256"] == source.sha256
    bench.client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


def test_a_peer_that_dies_before_it_is_sent_to(bench: Cluster, folder: Path) -> None:
    """U6: what is left of the cluster takes its chunks; the file is not on it alone."""
    source = fresh(folder, 4 * MIB)
    put, _ = held_put(bench, source.path)
    bench.kill("C")
    put.answer("y\n")
    done = put.result().expect(0).last
    assert done["bytes_sent"] == source.size
    info = bench.client.info(source.path.name)
    assert info["health"] == "complete"
    live = [bench.nodes[name].peer_id for name in ("A", "B")]
    assert set(info["distribution_map"].values()) == set(live)
    counts = [list(info["distribution_map"].values()).count(peer_id) for peer_id in live]
    assert abs(counts[0] - counts[1]) <= 1
    assert not bench.nodes["C"].holds(info["chunks_hashes"])


def test_a_small_file_stays_undivided_when_its_peer_dies(bench: Cluster, folder: Path) -> None:
    """U1, U6"""
    source = fresh(folder, MIB - 1)
    put, plan = held_put(bench, source.path)
    (peer,) = plan["peers"]
    bench.kill(peer["name"])
    put.answer("y\n")
    done = put.result().expect(0).last
    assert len(done["peers"]) == 1
    assert done["peers"] != [peer["peer_id"]]
    assert bench.client.info(source.path.name)["health"] == "complete"


@pytest.mark.row("U6")
def test_an_upload_waits_with_too_few_peers_left(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    """U6: no file on one peer alone that is to lie on two; the event brings it on."""
    source = fresh(folder, 2 * MIB)
    with Cluster(tmp_path_factory.mktemp("pair"), SMALL) as cluster:
        cluster.start_nodes("A", "B")
        put, _ = held_put(cluster, source.path)
        cluster.kill("B")
        put.answer("y\n")
        put.until("waiting")
        assert put.alive
        assert cluster.client.names() == []
        cluster.restart("B")
        done = put.result().expect(0).last
        assert sorted(done["peers"]) == sorted(node.peer_id for node in cluster.nodes.values())
        assert cluster.client.info(source.path.name)["health"] == "complete"


# -- a download that is stopped --------------------------------------------------------------


def test_one_download_per_target(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    client.put(source.path)
    target = folder / "out" / "copy"
    target.parent.mkdir()
    lost = bench.kill("B")
    first = client.start("get", source.path.name, "-o", target)
    job_id = first.until("plan")["job_id"]
    first.until("waiting")
    second = client.get(source.path.name, target, code=2).last
    assert (second["code"], second["job_id"]) == ("already_running", job_id)
    assert job_id in second["message"]
    # Another target is another job.
    other = client.get(source.path.name, folder / "other", "--no-wait", code=4).last
    assert other["job_id"] != job_id
    first.send(signal.SIGINT)
    ended = first.result().expect(130).last
    assert (ended["code"], ended["job_id"]) == ("interrupted", job_id)
    assert {path.name for path in target.parent.iterdir()} == {"copy.zpart", "copy.zjob"}
    bench.restart("B")
    again = client.get(source.path.name, target)
    assert again.of("plan")[0]["job_id"] == job_id
    assert set(again.last["bytes_received_by_peer"]) == {lost.peer_id}
    assert again.last["bytes_received"] == source.size - ended["bytes_received"]
    assert sha256_of(target) == source.sha256
    assert list(target.parent.iterdir()) == [target]


def test_a_second_ctrl_c_ends_at_once(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    client.put(source.path)
    bench.kill("B")
    get = client.start("get", source.path.name, "-o", folder / "copy")
    get.until("waiting")
    get.send(signal.SIGINT)
    get.send(signal.SIGTERM)
    assert get.result().expect(130).last["code"] == "interrupted"
    bench.restart("B")
    client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


def test_a_part_of_another_file_is_kept_aside(bench: Cluster, folder: Path) -> None:
    one, two, client = fresh(folder, 2 * MIB), fresh(folder, 2 * MIB), bench.client
    for source in (one, two):
        client.put(source.path)
    target = folder / "out" / "copy"
    target.parent.mkdir()
    bench.kill("B")
    client.get(one.path.name, target, "--no-wait", code=4)
    bench.restart("B")
    result = client.get(two.path.name, target)
    assert result.of("plan")[0]["chunks_kept"] == 0
    assert sha256_of(target) == two.sha256
    assert len(list(target.parent.iterdir())) == 3, "the target, and the other's part and job aside"


def test_no_chunk_on_a_dead_peer_is_lost_with_replicas(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    client.put(source.path, "--replicas", "2")
    bench.kill("A")
    got = client.get(source.path.name, folder / "copy", "--no-wait").last
    assert sha256_of(folder / "copy") == source.sha256
    assert bench.nodes["A"].peer_id not in got["bytes_received_by_peer"]
    info = client.info(source.path.name)
    assert info["health"] == "degraded"
    there = [row for row in info["chunks"] if row["peer_id"] == bench.nodes["A"].peer_id]
    assert there
    assert not any(row["is_available"] for row in there)
