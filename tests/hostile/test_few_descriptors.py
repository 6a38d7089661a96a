"""A node with few descriptors: what bounds its connections goes on when there are none left."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.hostile import zmtp
from tests.hostile.rig import PLAIN
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file
from tests.waiting import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.slow]
_DESCRIPTORS = 128
#: Three eighths.
_MOST = 48


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    tmp_path.chmod(0o755)
    with Cluster(tmp_path / "few", PLAIN) as cluster:
        cluster.start_node("A", prefix=("prlimit", f"--nofile={_DESCRIPTORS}"))
        yield cluster


def standing(pid: int, port: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


def test_connections_are_bounded_after_each_time_that_no_descriptor_was_left(cluster: Cluster) -> None:
    """Of those whose handshake is over, which nothing else would end."""
    node = cluster.nodes["A"]
    source = make_file(cluster.root / "file", MIB)
    cluster.client.put(source.path)
    host, _, port = node.endpoint.rpartition(":")
    for _ in range(3):
        with ExitStack() as stack:
            for number in range(4 * _DESCRIPTORS):
                line = stack.enter_context(socket.socket())
                line.bind((f"127.0.0.{2 + number % 12}", 0))
                line.setblocking(False)
                with suppress(BlockingIOError):
                    line.connect((host, int(port)))
                with suppress(OSError):
                    line.send(zmtp.greeting(b"NULL") + zmtp.ready())
            wait_for(lambda: standing(node.process.pid, int(port)) > 0, PATIENCE_S, "connections stand")
            wait_for(lambda: standing(node.process.pid, int(port)) <= _MOST, PATIENCE_S, "the rest ended")
        cluster.client.get(source.path.name, cluster.root / "copy")
        (cluster.root / "copy").unlink()
    assert node.process.alive
