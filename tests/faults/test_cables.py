"""T8 and T9: pulled cables, between PCs in network namespaces of their own.

scripts/soak also isolates a PC for a minute.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.integration.cluster import MIB, PATIENCE_S, Event, Process, Source, make_file, sha256_of
from tests.integration.lan import LanCluster, lan_of
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

SETTINGS = {
    "chunking.chunk_size": "1MiB",
    "chunking.min_file_size_for_distribution": "32MiB",
    "chunking.resume_check_interval": 3600,
    "transfer.receive_budget": "8MiB",
}
_SIZE = 128 * MIB
#: What SPEC and PITFALLS ask for, and what a busy machine may add.
_NAMED_S, _BUSY_S = 5.0, 5.0
#: of /proc/net/tcp
_ESTABLISHED = "01"


@pytest.fixture(scope="module")
def office_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanCluster]:
    with lan_of() as lan, LanCluster(tmp_path_factory.mktemp("office"), lan, SETTINGS) as cluster:
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.fixture
def office(office_cluster: LanCluster) -> Iterator[LanCluster]:
    """A switch; behind it the PCs tracker, A, B and client."""
    yield office_cluster
    for pc in ("tracker", "A", "B", "client"):
        office_cluster.lan.plug(pc)
    office_cluster.mend()
    office_cluster.await_all_up()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_file(tmp_path_factory.mktemp("cables") / "file.bin", _SIZE)


def under_way(get: Process) -> Event:
    """Some chunks have come, and some have not."""
    return get.until(lambda e: e.get("event") == "progress" and 0 < e["chunks_completed"] < e["chunks_count"])


@pytest.mark.row("D4")
@pytest.mark.parametrize(("pc", "seconds"), [("A", 1.0), ("A", 4.5), ("client", 4.5)])
def test_a_pc_that_was_isolated_goes_on(
    pc: str, seconds: float, office: LanCluster, source: Source, folder: Path, record_property: Figure
) -> None:
    """T8: shorter and longer than a lease."""
    back_after = isolate(office, source, folder / "copy", pc, seconds)
    record_property("figures", f"complete {back_after:.2f} s after the cable was back")


def isolate(office: LanCluster, source: Source, target: Path, pc: str, seconds: float) -> float:
    """Seconds from the cable's return to the end of the download."""
    if source.path.name not in office.client.names():
        office.client.put(source.path)
    get = office.client.start("get", source.path.name, "-o", target)
    under_way(get)
    office.lan.pull(pc)
    assert not get.ends_within(seconds), "half of it is on the other side"
    office.lan.plug(pc)
    plugged_at = get.seconds
    get.result(PATIENCE_S).expect(0)
    assert sha256_of(target) == source.sha256
    return get.seconds - plugged_at


def test_a_subscriber_that_cannot_be_reached_is_let_go(office: LanCluster, record_property: Figure) -> None:
    """A tick is sent to it each second, and its PC does not say that it came. Else the tracker
    keeps for it all that it publishes."""
    assert subscriptions(office, "A") == 1
    office.lan.pull("A")
    pulled_at = office.tracker.process.seconds
    wait_for(lambda: not subscriptions(office, "A"), _NAMED_S + _BUSY_S, "its connection is ended")
    record_property("figures", f"let go after {office.tracker.process.seconds - pulled_at:.2f} s")
    office.lan.plug("A")
    wait_for(lambda: subscriptions(office, "A") == 1, PATIENCE_S, "it subscribes again")


def subscriptions(office: LanCluster, pc: str) -> int:
    """Connections of that PC to where the tracker publishes, as the system has them there."""
    port = int(office.tracker.events.rpartition(":")[2])
    address = ipaddress.IPv4Address(office.lan.address(pc)).packed[::-1].hex().upper()
    table = Path(f"/proc/{office.tracker.process.pid}/net/tcp").read_text().splitlines()[1:]
    rows = [row.split() for row in table]
    ours = [row for row in rows if row[1].endswith(f":{port:04X}") and row[2].startswith(f"{address}:")]
    return sum(row[3] == _ESTABLISHED for row in ours)


# -- the tracker sees both, and they do not see each other --------------------------------------


class TwoNets(LanCluster):
    """The tracker is reached by the network "control", chunks go over the network "data"."""

    def place(self, name: str) -> tuple[tuple[str, ...], str]:
        return self.lan.prefix(name), self.lan.address(name, "control" if name == "tracker" else "data")


@pytest.fixture(scope="module")
def split_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNets]:
    with (
        lan_of("control", "data") as lan,
        TwoNets(tmp_path_factory.mktemp("split"), lan, SETTINGS) as cluster,
    ):
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.fixture
def split(split_cluster: TwoNets) -> Iterator[TwoNets]:
    yield split_cluster
    split_cluster.lan.plug("A", "data")
    split_cluster.mend()


def test_another_holder_is_asked_when_one_cannot_be_reached(
    split: TwoNets, source: Source, folder: Path, record_property: Figure
) -> None:
    """T9"""
    split.client.put(source.path, "--replicas", "2", "--name", "twice")
    get = split.client.start("get", "twice", "-o", folder / "copy", "--no-wait")
    under_way(get)
    split.lan.pull("A", "data")
    pulled_at = get.seconds
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256
    assert split.statuses() == {"A": "up", "B": "up"}
    record_property("figures", f"complete {get.seconds - pulled_at:.2f} s after the cable was pulled")


@pytest.mark.row("D4")
def test_a_peer_that_the_tracker_sees_and_we_do_not_is_named_and_not_pestered(
    split: TwoNets, folder: Path, record_property: Figure
) -> None:
    """T9"""
    source = make_file(folder / "once", _SIZE)  # its chunks lie on one node each
    split.client.put(source.path)
    get = split.client.start("get", "once", "-o", folder / "copy")
    under_way(get)
    split.lan.pull("A", "data")
    pulled_at = get.seconds
    waiting = get.until("waiting", _NAMED_S + _BUSY_S)
    named_after = get.seconds - pulled_at
    assert [row["name"] for row in waiting["missing"]] == ["A"]
    assert split.statuses() == {"A": "up", "B": "up"}
    sent = split.lan.packets_sent("client", "data")
    assert not get.ends_within(3.0)
    pestered = split.lan.packets_sent("client", "data") - sent
    assert pestered < 100, f"{pestered} packets in 3 s"
    split.lan.plug("A", "data")
    plugged_at = get.seconds
    get.result().expect(0)
    assert sha256_of(folder / "copy") == source.sha256
    record_property(
        "figures",
        f"named after {named_after:.2f} s, {pestered} packets sent in 3 s of waiting, "
        f"complete {get.seconds - plugged_at:.2f} s after the cable was back",
    )
