"""A node that may have 128 descriptors open: connections have a part of them, the disk keeps its own."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.announced import announced
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Source, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.waiting import wait_for

DESCRIPTORS = 128


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("few"), SMALL) as cluster:
        cluster.start_node("A", prefix=("prlimit", f"--nofile={DESCRIPTORS}"))
        cluster.start_node("B")
        yield cluster


@pytest.fixture
def stored(cluster: Cluster, folder: Path, request: pytest.FixtureRequest) -> Iterator[Source]:
    """A file whose chunks lie on A and B, once each. In the end A has all of its own, and says so."""
    source = make_file(folder / f"{request.node.name}.bin", 8 * MIB)
    cluster.client.put(source.path)
    node = cluster.nodes["A"]
    mine = node.holds(cluster.client.info(source.path.name)["chunks_hashes"])
    assert len(mine) == 64
    yield source
    cluster.await_all_up()
    assert node.holds(list(mine)) == mine <= announced(cluster, node)
    assert not list((node.store / "trash").iterdir()), "nothing was set apart"


def test_twenty_downloads_at_once_get_all_their_bytes(cluster: Cluster, stored: Source, folder: Path) -> None:
    name = stored.path.name
    gets = [cluster.client.start("get", "-o", folder / str(n), "--", name) for n in range(20)]
    for n, get in enumerate(gets):
        get.result(2 * PATIENCE_S).expect(0)
        assert sha256_of(folder / str(n)) == stored.sha256


@contextmanager
def stranger(at: tuple[str, int]) -> Iterator[list[int]]:
    """Without a key, from a dozen addresses, opens connections as fast as it can, and keeps them.
    Yields how many there were so far."""
    stop, opened = threading.Event(), [0]

    def flood() -> None:
        with ExitStack() as lines, selectors.DefaultSelector() as ended:
            while not stop.is_set():
                for address in range(2, 14):
                    line = socket.socket()
                    line.setblocking(False)
                    line.bind((f"127.0.0.{address}", 0))
                    line.connect_ex(at)
                    ended.register(lines.enter_context(line), selectors.EVENT_READ)
                    opened[0] += 1
                for key, _ in ended.select(0.02):
                    ended.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]

    thread = threading.Thread(target=flood, name="stranger")
    thread.start()
    try:
        yield opened
    finally:
        stop.set()
        thread.join()


def test_a_stranger_that_takes_all_connections_costs_no_chunk(
    cluster: Cluster, stored: Source, folder: Path
) -> None:
    host, _, port = cluster.nodes["A"].endpoint.rpartition(":")
    with stranger((host, int(port))) as opened:
        wait_for(lambda: opened[0] > 5 * DESCRIPTORS, PATIENCE_S, "many connections were opened")
        gets = [cluster.client.start("get", "-o", folder / str(n), "--", stored.path.name) for n in range(4)]
        gets[0].ends_within(4.0)
    for n, get in enumerate(gets):
        get.result().expect(0)
        assert sha256_of(folder / str(n)) == stored.sha256
