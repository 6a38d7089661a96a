"""A node whose address is a name, and a name server that says nothing: what has a number goes on."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, Client, Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare"
)
_SERVER = "127.9.9.9"
_NAME = "pc-c.zchunk.test"
#: Where everything has a number these take a second. A name is given up after 2 to 3 seconds.
_SOON_S = 12.0


@contextmanager
def silent_name_server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((_SERVER, 53))
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with silent_name_server(), Cluster(tmp_path_factory.mktemp("names"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C")
        for replicas in (1, 2):
            source = make_file(cluster.root / f"{replicas}.bin", 6 * MIB)
            cluster.client.put(source.path, "--replicas", str(replicas))
        cluster.stop("C")
        cluster.nodes["C"].options = ("--advertise", _NAME)
        cluster.restart("C")
        cluster.await_status("C", "up")
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Client:
    """On a PC with that name server and no other."""
    configuration = cluster.root / "resolv.conf"
    configuration.write_text(f"nameserver {_SERVER}\noptions timeout:20 attempts:3\n")
    script = f'mount --bind {configuration} /etc/resolv.conf && exec "$@"'
    return cluster.join("named", prefix=("unshare", "--mount", "sh", "-c", script, "--"))


def test_a_download_takes_what_has_two_copies_from_the_others(
    cluster: Cluster, client: Client, folder: Path
) -> None:
    got = client.get("2.bin", folder / "copy")
    assert got.seconds < _SOON_S
    assert sha256_of(folder / "copy") == sha256_of(cluster.root / "2.bin")


def test_only_the_node_without_a_number_is_missing(cluster: Cluster, client: Client, folder: Path) -> None:
    found = client.get("1.bin", folder / "copy", "--no-wait", code=4)
    assert found.seconds < _SOON_S
    assert found.last["missing_peers"] == [cluster.nodes["C"].peer_id]


def test_an_upload_goes_to_the_others(cluster: Cluster, client: Client, folder: Path) -> None:
    source = make_file(folder / "new.bin", 6 * MIB)
    put = client.put(source.path)
    assert put.seconds < _SOON_S
    held = set(client.info("new.bin")["distribution_map"].values())
    assert held == {cluster.nodes[name].peer_id for name in ("A", "B")}


def test_a_tracker_by_a_name_is_told_to_be_out_of_reach(cluster: Cluster, client: Client) -> None:
    membership = client.home / "client" / "membership.json"
    before = membership.read_text()
    try:
        membership.write_text(before.replace("127.0.0.1", "tracker.zchunk.test"))
        found = client.run("ls", code=6)
    finally:
        membership.write_text(before)
    assert found.seconds < _SOON_S
    assert "tracker.zchunk.test" in found.stderr
    assert "name does not resolve" in found.stderr
