"""Addresses: IPv6, host names, two PCs on a LAN, an address that changes.

The LAN is that of scripts/lan.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lan import Lan

from tests.integration.cluster import ROOT, Cluster, make_file
from tests.integration.conftest import SMALL
from tests.integration.lan import lan_of
from tests.waiting import wait_for


class Hosts:
    """A cluster whose processes run where, and listen at what, the test says."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.cluster = Cluster(root, SMALL)  # only its processes: it is not entered

    def run(self, *words: str, inside: Sequence[str] = ()) -> list[Any]:
        """A command's JSON values, once it has ended well."""
        return self.cluster.spawn([*words, "--json"], prefix=inside).result().expect(0).events

    def serve(self, *words: str, inside: Sequence[str] = ()) -> Any:
        """The `ready` object of a tracker or node in the background."""
        return self.cluster.spawn(words, prefix=inside).ready()

    def home(self, name: str) -> tuple[str, str]:
        return "--home", str(self.root / name)

    def token(self, role: str) -> str:
        words = ["token", *self.home("tracker"), "--role", role]
        return self.cluster.spawn(words).result().expect(0).lines[0]


@pytest.fixture
def cables() -> Iterator[Lan]:
    with lan_of() as lan:
        yield lan


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path / "lan")
    yield hosts
    hosts.cluster.close()


@pytest.mark.timeout(90)
def test_two_pcs_on_a_lan_and_an_address_that_changes(cables: Lan, hosts: Hosts, tmp_path: Path) -> None:
    here, there = cables.prefix("here"), cables.prefix("there")
    first, second = cables.address("here"), cables.address("there")
    # Bound to every address by default: each tells the one that others can use.
    tracker = hosts.serve("tracker", *hosts.home("tracker"), inside=here)
    assert (tracker["endpoint"], tracker["events"]) == (f"tcp://{first}:7700", f"tcp://{first}:7701")
    for name, inside, address in (("near", here, first), ("far", there, second)):
        words = ("node", *hosts.home(name), "--name", name, "--join", hosts.token("node"))
        assert hosts.serve(*words, inside=inside)["endpoint"] == f"tcp://{address}:7710"
    client = hosts.home("client")
    hosts.run("join", hosts.token("client"), *client, inside=here)
    source = make_file(tmp_path / "scan.tif", 3_000_000)
    done = hosts.run("put", str(source.path), "--yes", *client, inside=here)[-1]
    assert len(done["peers"]) == 2

    changed = cables.move("there")

    def endpoints() -> dict[str, str]:
        return {row["name"]: row["endpoint"] for row in hosts.run("peers", *client, inside=here)[0]}

    new = {"near": f"tcp://{first}:7710", "far": f"tcp://{changed}:7710"}
    wait_for(lambda: endpoints() == new, 30.0, "the new address is announced")
    target = tmp_path / "copy.tif"
    done = hosts.run("get", "scan.tif", "-o", str(target), *client, inside=here)[-1]
    assert done["bytes_received"] == source.size
    assert target.read_bytes() == source.path.read_bytes()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("bind", "host"), [("[::1]:0", "[::1]"), ("localhost:0", None)])
def test_ipv6_and_host_names(hosts: Hosts, tmp_path: Path, bind: str, host: str | None) -> None:
    ready = [hosts.serve("tracker", *hosts.home("tracker"), "--bind", bind)["endpoint"]]
    for name in ("A", "B"):
        words = ("node", *hosts.home(name), "--name", name, "--bind", bind, "--join", hosts.token("node"))
        ready.append(hosts.serve(*words)["endpoint"])
    assert all(host is None or endpoint.startswith(f"tcp://{host}:") for endpoint in ready), ready
    client = hosts.home("client")
    hosts.run("join", hosts.token("client"), *client)
    source = make_file(tmp_path / "scan.tif", 2_000_000)
    done = hosts.run("put", str(source.path), "--yes", *client)[-1]
    assert len(done["peers"]) == 2
    target = tmp_path / "copy.tif"
    hosts.run("get", "scan.tif", "-o", str(target), *client)
    assert target.read_bytes() == source.path.read_bytes()


@pytest.mark.timeout(60)
def test_advertise_is_what_others_are_told(hosts: Hosts) -> None:
    hosts.serve("tracker", *hosts.home("tracker"), "--bind", "127.0.0.1:0")
    words = ("node", *hosts.home("A"), "--name", "A", "--bind", "127.0.0.1:0", "--join", hosts.token("node"))
    hosts.serve(*words, "--advertise", "studio-a.example:9000")
    hosts.run("join", hosts.token("client"), *hosts.home("client"))
    rows = hosts.run("peers", *hosts.home("client"))[0]
    assert [row["endpoint"] for row in rows] == ["tcp://studio-a.example:9000"]


# -- scripts/lan ------------------------------------------------------------------------


def rig(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "lan"), "--lan", f"zct{os.getpid()}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_makes_a_lan_runs_on_its_pcs_and_removes_it(cables: Lan) -> None:
    try:
        up = rig("up", "A=100", "B")
        assert up.stdout.splitlines() == ["A\t10.213.1.1\t100 Mbit/s", "B\t10.213.1.2\tno limit"], up.stderr
        assert "is already up" in rig("up", "A").stderr
        assert "inet 10.213.1.2/24" in rig("exec", "B", "ip", "addr").stdout
        assert "rate 100Mbit" in rig("exec", "A", "tc", "qdisc").stdout
        assert rig("exec", "A", "false").returncode == 1
    finally:
        assert rig("down").returncode == 0
    gone = rig("exec", "A", "true")
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "no PC has the name 'A'" in gone.stderr


@pytest.mark.parametrize(
    "words", [["up"], ["up", "a/b"], ["up", "A=fast"], ["up", "switches"], ["exec", "A"]]
)
def test_a_wrong_command_says_so(words: list[str]) -> None:
    wrong = rig(*words)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
