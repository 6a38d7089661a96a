"""What a download does before it fetches: on disks that promise no space, on slow ones, and when it
is interrupted there. An ext3 disk on a loop device (root only); strace makes reads slow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.smalldisk import loop
from tests.faults.tracing import needs_strace
from tests.integration.cluster import MIB, Client, Cluster, Source, make_file, sha256_of

SETTINGS = {"chunking.min_file_size_for_distribution": "1MiB", "chunking.chunk_size": "256KiB"}
CHUNKS = 160
#: A read of a chunk takes so long; all of them together a minute.
SLOW_S = 0.4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("preparing"), SETTINGS) as cluster:
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.fixture(autouse=True)
def _mended(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.mend()


@pytest.fixture(scope="module")
def source(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Source:
    source = make_file(tmp_path_factory.mktemp("source") / "film.bin", CHUNKS * MIB // 4)
    cluster.client.put(source.path)
    return source


@contextmanager
def ext3(folder: Path, size: int) -> Iterator[Path]:
    with loop(folder, size, "mkfs.ext3", "-q", "-m", "0") as disk:
        yield disk


def test_a_disk_that_promises_no_space_is_not_written_to_for_it(
    cluster: Cluster, source: Source, tmp_path: Path
) -> None:
    """The length is set, and the plan is told at once: there is nothing to be looked at."""
    with ext3(tmp_path / "disk", 128 * MIB) as disk:
        cluster.kill("B")
        get = cluster.client.start("get", source.path.name, "-o", disk / "copy")
        first = get.until(lambda event: True)
        assert (first["event"], first["chunks_kept"]) == ("plan", 0)
        get.until("waiting")
        part = os.stat(disk / "copy.zpart")
        assert part.st_size == source.size
        assert part.st_blocks * 512 < 0.6 * source.size
        cluster.restart("B")
        get.result().expect(0)
        assert sha256_of(disk / "copy") == source.sha256


def test_a_disk_that_promises_no_space_and_has_none_is_said_at_the_start(
    cluster: Cluster, source: Source, tmp_path: Path
) -> None:
    with ext3(tmp_path / "disk", 32 * MIB) as disk:
        result = cluster.client.get(source.path.name, disk / "copy", code=8)
        assert result.last["code"] == "no_space"
        assert result.of("progress") == []


def slow(client: Client, calls: str, path: Path) -> Client:
    """A client whose calls of these names on that file take their time."""
    delay = f"inject={calls}:delay_enter={int(SLOW_S * 1e6)}"
    words = ["strace", "-D", "-f", "-q", "-o", "/dev/null", "-e", f"trace={calls}"]
    return Client(client.cluster, client.home, [*words, "-P", str(path), "-e", delay])


@needs_strace
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_part_is_looked_at(
    cluster: Cluster, source: Source, tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "copy"
    cluster.kill("B")
    cluster.client.get(source.path.name, target, "--no-wait", code=4)
    journal = tmp_path / "copy.zjob"
    before = json.loads(journal.read_text())["completed"]
    get = slow(cluster.client, "preadv,preadv2", tmp_path / "copy.zpart").start(
        "get", source.path.name, "-o", target
    )
    told = [get.until("preparing") for _ in range(3)]
    assert [event["size"] for event in told] == [source.size] * 3
    done = [event["bytes_checked"] for event in told]
    assert done == sorted(set(done))
    assert (done[0], done[2] < source.size) == (0, True)
    began = time.monotonic()
    get.send(number)
    result = get.result().expect(130)
    assert time.monotonic() - began < 10 * SLOW_S
    assert result.last["code"] == "interrupted"
    assert result.of("plan") == []
    assert json.loads(journal.read_text())["completed"] == before, "it is as true as it was"
    cluster.restart("B")
    again = cluster.client.get(source.path.name, target)
    assert again.of("plan")[0]["chunks_kept"] == CHUNKS // 2
    assert sha256_of(target) == source.sha256


@needs_strace
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_target_is_looked_at(
    cluster: Cluster, source: Source, tmp_path: Path, number: signal.Signals
) -> None:
    """It is of the same size, so it may be the same."""
    target = tmp_path / "copy"
    target.write_bytes(bytes(source.size))
    get = slow(cluster.client, "read", target).start("get", source.path.name, "-o", target)
    event = get.until(lambda event: event.get("event") == "preparing" and event["bytes_checked"] > 0)
    assert event["bytes_checked"] < source.size
    began = time.monotonic()
    get.send(number)
    result = get.result().expect(130)
    assert time.monotonic() - began < 10 * SLOW_S
    assert result.last["code"] == "interrupted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@needs_strace
def test_a_person_sees_what_is_done(cluster: Cluster, source: Source, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    cluster.kill("B")
    cluster.client.get(source.path.name, target, "--no-wait", code=4)
    get = slow(cluster.client, "preadv,preadv2", tmp_path / "copy.zpart").start(
        "get", source.path.name, "-o", target, json=False
    )
    deadline = time.monotonic() + 60
    while "checking existing data: " not in get.stderr:
        assert time.monotonic() < deadline, get.stderr
        assert get.ends_within(0.05) is False, get.stderr
    get.send(signal.SIGINT)
    get.result().expect(130)
