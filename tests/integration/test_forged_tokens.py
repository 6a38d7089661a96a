"""A token that somebody else wrote, given to a home that is a member: the tracker's public key is no
secret, so such a token is easily made. Nothing changes that the known tracker has not confirmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from tests.integration.cluster import Cluster, Process
from zchunk.protocol import wire
from zchunk.protocol.messages import Joined
from zchunk.transport.auth import parse_token

NOBODY = "tcp://127.0.0.1:1"


def forged(cluster: Cluster, role: str, address: str, transport: str) -> str:
    """Such a token as anybody can write who has seen one of that tracker's."""
    known = parse_token(cluster.token(role))
    return replace(known, addresses=(address,), transport=transport).encode()


@contextmanager
def impostor() -> Iterator[str]:
    """A plain tracker that welcomes everybody; its address."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            if socket.poll(50):
                connection, *frames = socket.recv_multipart()
                request_id = wire.decode(frames).request_id
                answer = Joined(peer_id="e" * 32, name="x", role="node", store_id="s", events=(NOBODY,))
                socket.send_multipart([connection, *wire.encode(answer, request_id)])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        ended.set()
        thread.join()
        socket.close()
        context.term()


def node_with(cluster: Cluster, name: str, token: str, *options: str) -> Process:
    node = cluster.nodes[name]
    words = ["node", "--home", str(node.home), "--bind", node.endpoint, "--join", token, *options]
    return cluster.spawn(words)


def goes_on(cluster: Cluster, name: str, process: Process) -> None:
    assert process.ready()["peer_id"] == cluster.nodes[name].peer_id
    cluster.await_status(name, "up")
    assert "nothing was changed" in process.stderr
    assert process.end() == 0
    cluster.await_status(name, "left")


def test_a_node_keeps_its_tracker_and_its_encryption(bench: Cluster) -> None:
    bench.stop("A")
    path = bench.nodes["A"].home / "node" / "membership.json"
    before = path.read_bytes()
    with impostor() as there:
        for address in (NOBODY, there, f"tcp://{bench.tracker.endpoint}"):
            result = node_with(bench, "A", forged(bench, "node", address, "plain")).result().expect(2)
            (line,) = result.stderr.splitlines()
            assert "--allow-plain" in line
            assert "nothing was changed" in line
            assert path.read_bytes() == before
        for token, options in (
            (forged(bench, "node", NOBODY, "curve"), []),
            (forged(bench, "node", there, "curve"), []),
            (forged(bench, "node", NOBODY, "plain"), ["--allow-plain"]),
        ):
            goes_on(bench, "A", node_with(bench, "A", token, *options))
            assert path.read_bytes() == before
    bench.restart("A")


def test_another_tracker_at_the_tokens_address_is_not_ours(bench: Cluster, folder: Path) -> None:
    bench.stop("B")
    path = bench.nodes["B"].home / "node" / "membership.json"
    before = path.read_bytes()
    with Cluster(folder / "other") as other:
        token = forged(bench, "node", f"tcp://{other.tracker.endpoint}", "curve")
        goes_on(bench, "B", node_with(bench, "B", token))
    assert path.read_bytes() == before
    bench.restart("B")


@pytest.mark.parametrize("transport", ["plain", "curve"])
def test_a_client_keeps_its_tracker_and_its_encryption(bench: Cluster, transport: str) -> None:
    client = bench.join(f"fooled-{transport}")
    path = client.home / "client" / "membership.json"
    before = path.read_bytes()
    with impostor() as there:
        for address in (NOBODY, there):
            result = client.run("join", forged(bench, "client", address, transport), code=None)
            assert result.code in ((2,) if transport == "plain" else (6, 7)), str(result)
            assert path.read_bytes() == before
    client.run("ls")


def test_a_cluster_that_gives_up_encryption_is_followed_when_that_is_said(folder: Path) -> None:
    """And one that takes it up is without a word."""
    with Cluster(folder / "cluster") as cluster:
        (node,) = cluster.start_nodes("A")
        for transport, options in (("plain", ["--allow-plain"]), ("curve", [])):
            cluster.stop("A")
            cluster.stop_tracker()
            cluster.settings = {"security.transport": transport}
            cluster.start_tracker()
            token = cluster.token("node")
            cluster.settings = {}
            process = node_with(cluster, "A", token, *options)
            assert process.ready()["peer_id"] == node.peer_id
            cluster.client.run("join", cluster_token(cluster, transport), *options)
            assert f"with {transport} transport" in process.stderr
            rows = cluster.client.run("peers").last
            assert [(row["name"], row["status"]) for row in rows] == [("A", "up")]
            node.process = process
            cluster.reset_watcher()


def cluster_token(cluster: Cluster, transport: str) -> str:
    words = ["token", "--home", str(cluster.tracker.home), "--role", "client"]
    settings = {"security.transport": transport}
    return cluster.spawn(words, settings=settings).result().expect(0).lines[0]


def test_a_tracker_that_moved_is_followed_once_it_has_answered(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        (node,) = cluster.start_nodes("A")
        cluster.stop("A")
        cluster.stop_tracker()
        earlier = cluster.tracker.endpoint
        cluster.tracker.endpoint = cluster.tracker.events = "127.0.0.1:0"
        cluster.start_tracker()
        assert cluster.tracker.endpoint != earlier
        process = node_with(cluster, "A", cluster.token("node"))
        assert process.ready()["peer_id"] == node.peer_id
        assert f"the tracker is now at tcp://{cluster.tracker.endpoint}" in process.stderr
        process.end()
        again = cluster.spawn(["node", "--home", str(node.home)])
        again.ready()
        assert again.end() == 0, "it remembers where its tracker is"
