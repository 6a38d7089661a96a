"""T10 and T12: lines that carry one direction only, and events that never arrive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.faults.proxy import Proxy
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.waiting import wait_for
from zchunk.transport.auth import parse_token

pytestmark = pytest.mark.alone

#: Three heartbeats, the scheduling of them, and a busy machine.
_NOTICED_S = 3 * 1.0 + 1.0 + 3.0
#: Bytes of the first message of a handshake: who only subscribes sends no other.
_CURVE_HELLO = 200


# -- between a node and the tracker -------------------------------------------------------------


@pytest.fixture
def lined(small: Cluster) -> Iterator[tuple[Cluster, Proxy]]:
    """The node A reaches the tracker through a proxy; everybody else does directly."""
    with Proxy(small.tracker.endpoint) as proxy:
        move(small, "A", proxy.address)
        yield small, proxy
        proxy.open_way()
        move(small, "A", small.tracker.endpoint)


def move(cluster: Cluster, name: str, address: str) -> None:
    """The node starts anew, with a token that gives the tracker another address."""
    token = replace(parse_token(cluster.token("node")), addresses=(f"tcp://{address}",)).encode()
    node = cluster.nodes[name]
    assert node.process.end() == 0
    node.options = ("--join", token)
    cluster.restart(name)
    node.options = ()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_line_that_carries_one_way_is_noticed_at_both_ends(
    way: str, lined: tuple[Cluster, Proxy], record_property: Figure
) -> None:
    """T10: then the node is down, and says that the tracker does not answer."""
    cluster, proxy = lined
    node = cluster.nodes["A"]
    said = "the tracker does not answer"
    before = node.process.stderr.count(said)
    began = node.process.seconds
    proxy.close_way(**{way: True})
    cluster.await_status("A", "down", _NOTICED_S)
    down_after = node.process.seconds - began
    wait_for(lambda: node.process.stderr.count(said) > before, _NOTICED_S, "the node says so")
    told_after = node.process.seconds - began
    proxy.open_way()
    cluster.await_status("A", "up", PATIENCE_S)
    record_property("figures", f"down after {down_after:.2f} s, the node told after {told_after:.2f} s")


# -- between the tracker's events and everybody ---------------------------------------------------


def free_pair() -> int:
    """A port that is free, and so is the next one."""
    for _ in range(100):
        with closing(socket.create_server(("127.0.0.1", 0))) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port
    raise AssertionError("no two free ports in a row")


class Behind(Cluster):
    """The tracker tells everybody the addresses of proxies before it."""

    def __init__(self, root: Path, inner: int, outer: int) -> None:
        super().__init__(root, {**SMALL, "chunking.resume_check_interval": 3600})
        self.settings["tracker.advertise"] = f"127.0.0.1:{outer}"
        self._first = (f"127.0.0.1:{inner}", f"127.0.0.1:{inner + 1}")

    def first_bind(self, host: str) -> tuple[str, str]:
        return self._first


@pytest.fixture(scope="module")
def deaf_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Behind, Proxy]]:
    inner, outer = free_pair(), free_pair()
    with (
        Proxy(f"127.0.0.1:{inner}", port=outer),
        Proxy(f"127.0.0.1:{inner + 1}", port=outer + 1) as events,
        Behind(tmp_path_factory.mktemp("deaf"), inner, outer) as cluster,
    ):
        cluster.start_nodes("A", "B")
        yield cluster, events


def test_a_stream_of_events_that_leads_nowhere_is_made_anew(
    deaf_cluster: tuple[Behind, Proxy], record_property: Figure
) -> None:
    """T12: a tick comes each second, or the connection is of no use."""
    cluster, events = deaf_cluster
    node = cluster.nodes["A"]
    said = "the tracker's events stopped: subscribing again"
    before = node.process.stderr.count(said)
    began = node.process.seconds
    events.close_way(down=True)
    wait_for(lambda: node.process.stderr.count(said) > before, _NOTICED_S, "the node says so")
    record_property("figures", f"noticed after {node.process.seconds - began:.2f} s")
    up, down = events.carried
    events.open_way()
    wait_for(lambda: events.carried[0] >= up + _CURVE_HELLO, PATIENCE_S, "it connects again")
    wait_for(lambda: events.carried[1] > down + _CURVE_HELLO, PATIENCE_S, "something comes")


@pytest.mark.row("D4")
@pytest.mark.parametrize("moment", ["from the start", "in the middle"])
def test_a_waiting_download_resumes_though_every_event_is_lost(
    moment: str, deaf_cluster: tuple[Behind, Proxy], folder: Path, record_property: Figure
) -> None:
    """T12: the heartbeat's answer tells that there is something to be asked for."""
    cluster, events = deaf_cluster
    source = make_file(folder / f"{moment}.bin", 4 * MIB)
    cluster.client.put(source.path)
    if moment == "from the start":
        events.close_way(down=True)
    cluster.kill("B")
    get = cluster.client.start("get", source.path.name, "-o", folder / "copy")
    get.until("waiting")
    events.close_way(down=True)
    carried = events.carried[1]
    cluster.restart("B")
    back_at = get.seconds
    get.until("resumed", 2 * 1.0 + _NOTICED_S)
    resumed_after = get.seconds - back_at
    get.result().expect(0)
    assert events.carried[1] == carried, "no event came through"
    events.open_way()
    assert sha256_of(folder / "copy") == source.sha256
    record_property("figures", f"resumed {resumed_after:.2f} s after the node was ready")
    assert resumed_after < 2 * 1.0 + 2.0, "two heartbeats, and a busy machine"
