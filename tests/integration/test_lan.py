"""Addresses: IPv6, host names, two PCs on a LAN, an address that changes.

The LAN is two network namespaces with a cable (veth) between them, made and removed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, make_file
from tests.integration.conftest import SMALL
from tests.waiting import wait_for

NAMES = (f"zc{os.getpid()}a", f"zc{os.getpid()}b")
FIRST, SECOND, CHANGED = "10.99.0.1", "10.99.0.2", "10.99.0.3"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces_work() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    probe = f"zc{os.getpid()}p"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return False
    ip("netns", "del", probe)
    return True


@pytest.fixture
def cable() -> Iterator[None]:
    if not namespaces_work():
        pytest.skip("needs network namespaces (root and iproute2)")
    with ExitStack() as stack:
        for name in NAMES:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "link",
            "add",
            "cable",
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            NAMES[1],
        )
        for name, address in zip(NAMES, (FIRST, SECOND), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield


class Lan:
    """A cluster whose processes run where, and listen at what, the test says."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.cluster = Cluster(root, SMALL)  # only its processes: it is not entered

    def run(self, *words: str, inside: str | None = None) -> list[Any]:
        """A command's JSON values, once it has ended well."""
        prefix = ["ip", "netns", "exec", inside] if inside else []
        return self.cluster.spawn([*words, "--json"], prefix=prefix).result().expect(0).events

    def serve(self, *words: str, inside: str | None = None) -> Any:
        """The `ready` object of a tracker or node in the background."""
        prefix = ["ip", "netns", "exec", inside] if inside else []
        return self.cluster.spawn(words, prefix=prefix).ready()

    def home(self, name: str) -> tuple[str, str]:
        return "--home", str(self.root / name)

    def token(self, role: str) -> str:
        words = ["token", *self.home("tracker"), "--role", role]
        return self.cluster.spawn(words).result().expect(0).lines[0]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    lan = Lan(tmp_path / "lan")
    yield lan
    lan.cluster.close()


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("cable")
def test_two_pcs_on_a_lan_and_an_address_that_changes(lan: Lan, tmp_path: Path) -> None:
    here, there = NAMES
    # Bound to every address by default: each tells the one that others can use.
    tracker = lan.serve("tracker", *lan.home("tracker"), inside=here)
    assert (tracker["endpoint"], tracker["events"]) == (f"tcp://{FIRST}:7700", f"tcp://{FIRST}:7701")
    for name, inside, address in (("near", here, FIRST), ("far", there, SECOND)):
        words = ("node", *lan.home(name), "--name", name, "--join", lan.token("node"))
        assert lan.serve(*words, inside=inside)["endpoint"] == f"tcp://{address}:7710"
    client = lan.home("client")
    lan.run("join", lan.token("client"), *client, inside=here)
    source = make_file(tmp_path / "scan.tif", 3_000_000)
    done = lan.run("put", str(source.path), "--yes", *client, inside=here)[-1]
    assert len(done["peers"]) == 2

    ip("-n", there, "addr", "del", f"{SECOND}/24", "dev", "cable")
    ip("-n", there, "addr", "add", f"{CHANGED}/24", "dev", "cable")

    def endpoints() -> dict[str, str]:
        return {row["name"]: row["endpoint"] for row in lan.run("peers", *client, inside=here)[0]}

    new = {"near": f"tcp://{FIRST}:7710", "far": f"tcp://{CHANGED}:7710"}
    wait_for(lambda: endpoints() == new, 30.0, "the new address is announced")
    target = tmp_path / "copy.tif"
    done = lan.run("get", "scan.tif", "-o", str(target), *client, inside=here)[-1]
    assert done["bytes_received"] == source.size
    assert target.read_bytes() == source.path.read_bytes()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("bind", "host"), [("[::1]:0", "[::1]"), ("localhost:0", None)])
def test_ipv6_and_host_names(lan: Lan, tmp_path: Path, bind: str, host: str | None) -> None:
    ready = [lan.serve("tracker", *lan.home("tracker"), "--bind", bind)["endpoint"]]
    for name in ("A", "B"):
        words = ("node", *lan.home(name), "--name", name, "--bind", bind, "--join", lan.token("node"))
        ready.append(lan.serve(*words)["endpoint"])
    assert all(host is None or endpoint.startswith(f"tcp://{host}:") for endpoint in ready), ready
    client = lan.home("client")
    lan.run("join", lan.token("client"), *client)
    source = make_file(tmp_path / "scan.tif", 2_000_000)
    done = lan.run("put", str(source.path), "--yes", *client)[-1]
    assert len(done["peers"]) == 2
    target = tmp_path / "copy.tif"
    lan.run("get", "scan.tif", "-o", str(target), *client)
    assert target.read_bytes() == source.path.read_bytes()


@pytest.mark.timeout(60)
def test_advertise_is_what_others_are_told(lan: Lan) -> None:
    lan.serve("tracker", *lan.home("tracker"), "--bind", "127.0.0.1:0")
    words = ("node", *lan.home("A"), "--name", "A", "--bind", "127.0.0.1:0", "--join", lan.token("node"))
    lan.serve(*words, "--advertise", "studio-a.example:9000")
    lan.run("join", lan.token("client"), *lan.home("client"))
    rows = lan.run("peers", *lan.home("client"))[0]
    assert [row["endpoint"] for row in rows] == ["tcp://studio-a.example:9000"]
