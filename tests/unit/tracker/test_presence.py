"""Hellos, heartbeats, leases: who is up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.tracker.clusters import (
    BEAT,
    LEASE,
    UPLOAD,
    Cluster,
    beat,
    digest,
    hello,
    joined,
    peer_id,
    plan,
)
from zchunk.clock import read
from zchunk.content.hashing import inventory_digest
from zchunk.protocol.messages import (
    Beat,
    ErrorReply,
    GetSnapshot,
    Goodbye,
    Inventory,
    Lost,
    Ok,
    Release,
    Snapshot,
    Stored,
    Welcome,
)


def test_a_node_is_announced_by_the_address_it_is_seen_at(cluster: Cluster) -> None:
    reply = cluster.ask("A", hello())
    assert reply.endpoints == ("tcp://10.0.0.7:7700",)
    assert (reply.epoch, reply.store_id) == ("e1", cluster.store.store_id)
    assert (reply.heartbeat_interval_s, reply.lease_s) == (BEAT, LEASE)
    [record] = cluster.ask("client", GetSnapshot()).peers
    assert (record.name, record.status, record.endpoints) == ("A", "up", reply.endpoints)


def test_a_node_is_up_only_when_its_inventory_is_known(cluster: Cluster) -> None:
    held = [digest(1), digest(2)]
    assert cluster.ask("A", hello(held=held)).inventory_wanted
    assert cluster.topics() == []
    assert cluster.statuses() == {"A": "down"}
    assert cluster.ask("A", Inventory(page=0, last=False, hashes=held[0])) == Ok()
    assert cluster.topics() == []
    cluster.log.clear()
    assert cluster.ask("A", Inventory(page=1, last=True, hashes=held[1])) == Ok()
    assert cluster.log == ["work", "reply", "peer.up"], "who is registered is up for all"
    assert cluster.store.inventory_summary(peer_id("A")) == (2, inventory_digest(held))
    assert not cluster.ask("A", hello(held=held)).inventory_wanted


def test_an_inventory_begins_anew_with_page_0_and_a_doubled_page_counts_once(cluster: Cluster) -> None:
    held = [digest(1), digest(2)]
    cluster.ask("A", hello(held=held))
    cluster.ask("A", Inventory(page=0, last=False, hashes=digest(9)))
    for _ in range(2):
        cluster.ask("A", Inventory(page=0, last=False, hashes=held[0]))
    for _ in range(2):
        cluster.send("A", Inventory(page=1, last=True, hashes=held[1]))
    cluster.work()
    assert cluster.store.inventory_summary(peer_id("A")) == (2, inventory_digest(held))
    assert cluster.topics() == ["peer.up"]


def test_a_page_that_was_left_out_is_told(cluster: Cluster) -> None:
    """Else the node would believe itself registered, and nobody else would, for ever."""
    held = [digest(1), digest(2)]
    cluster.ask("A", hello(held=held))
    cluster.ask("A", Inventory(page=0, last=False, hashes=held[0]))
    cluster.ask("A", hello(held=held))  # sent twice: it begins anew
    assert cluster.refused("A", Inventory(page=1, last=True, hashes=held[1])) == "hello_first"
    assert cluster.topics() == []


@pytest.mark.parametrize("connection", [b"", b"another"])
def test_an_inventory_that_nobody_asked_for_is_refused(cluster: Cluster, connection: bytes) -> None:
    if connection:
        cluster.ask("A", hello(held=[digest(1)]))
    reply = cluster.ask("A", Inventory(page=0, last=True, hashes=b""), connection)
    assert isinstance(reply, ErrorReply)
    assert reply.code == "hello_first"


@pytest.mark.parametrize("hashes", [b"x", bytes(33), bytes(31)])
def test_digests_of_a_wrong_length_are_refused(cluster: Cluster, hashes: bytes) -> None:
    cluster.up("A")
    cluster.ask("A", hello(2, held=[digest(1)]))
    for message in (
        Inventory(page=0, last=True, hashes=hashes),
        Stored(upload_id=UPLOAD, hashes=hashes),
        Release(hashes=hashes),
        Lost(hashes=hashes),
    ):
        assert cluster.refused("A", message) == "malformed"


def test_heartbeats_keep_a_node_up_and_silence_ends_it(cluster: Cluster) -> None:
    cluster.up("A", "B")
    for _ in range(6):
        cluster.advance(1.0)
        assert cluster.ask("A", beat()) == Beat(epoch="e1", seq=cluster.core.events.seq)
    assert cluster.topics() == ["peer.up", "peer.up", "peer.down"]
    gone = cluster.events[-1 - [e.topic for e in cluster.events][::-1].index("peer.down")]
    assert gone.fields["name"] == "B"
    assert gone.fields["reason"] == "lease"
    assert gone.fields["peer"]["status"] == "down"
    assert cluster.statuses() == {"A": "up", "B": "down"}


def test_a_heartbeat_updates_what_is_known_without_an_event(cluster: Cluster) -> None:
    cluster.up("A")
    before = len(cluster.events)
    cluster.ask("A", beat(free=123, chunks=7))
    [record] = cluster.ask("A", GetSnapshot()).peers
    assert (record.free, record.chunks) == (123, 7)
    assert len(cluster.events) == before


@pytest.mark.parametrize("case", ["never", "other connection", "older start", "after goodbye"])
def test_who_is_not_there_must_say_hello_first(cluster: Cluster, case: str) -> None:
    connection = b""
    if case == "other connection":
        cluster.up("A")
        connection = b"another"
    elif case == "older start":
        cluster.ask("A", hello(2))
    elif case == "after goodbye":
        cluster.up("A")
        cluster.ask("A", Goodbye(incarnation=1))
    reply = cluster.ask("A", beat(), connection)
    assert isinstance(reply, ErrorReply)
    assert reply.code == "hello_first"


def test_a_clients_heartbeat_is_answered_and_makes_no_peer(cluster: Cluster) -> None:
    assert cluster.ask("client", beat(0)) == Beat(epoch="e1", seq=0)
    assert cluster.statuses() == {}


def test_a_goodbye_is_left_and_stays_left_over_a_restart(cluster: Cluster) -> None:
    cluster.up("A")
    assert cluster.ask("A", Goodbye(incarnation=1)) == Ok()
    assert cluster.events[-1].fields["reason"] == "goodbye"
    assert cluster.statuses() == {"A": "left"}
    [known] = cluster.store.peers()
    assert known.left


@pytest.mark.parametrize("incarnation", [0, 2])
def test_a_goodbye_of_another_start_changes_nothing(cluster: Cluster, incarnation: int) -> None:
    cluster.up("A")
    assert cluster.ask("A", Goodbye(incarnation=incarnation)) == Ok()
    assert cluster.statuses() == {"A": "up"}


def test_an_older_start_is_told_why_it_must_stop(cluster: Cluster) -> None:
    cluster.ask("A", hello(5))
    before = cluster.ask("client", GetSnapshot())
    for older in (4, 5):
        assert cluster.refused("A", hello(older, instance="1" * 16)) == "stale_incarnation"
    assert cluster.ask("client", GetSnapshot()) == before


def test_a_home_that_was_put_back_is_welcomed_under_a_new_number_with_its_inventory(cluster: Cluster) -> None:
    cluster.ask("A", hello(5, held=[]))
    cluster.ask("A", Goodbye(incarnation=5))
    older = hello(2, held=[], instance="1" * 16)
    for _ in range(2):  # its answer may be lost
        reply = cluster.ask("A", older)
        assert (reply.incarnation, reply.inventory_wanted) == (6, True), "though the digests agree"
    assert cluster.statuses() == {"A": "down"}, "not before its inventory has come"
    assert cluster.ask("A", Inventory(page=0, last=True, hashes=joined([1]))) == Ok()
    assert cluster.statuses() == {"A": "up"}
    assert cluster.refused("A", beat(2)) == "hello_first"
    assert isinstance(cluster.ask("A", beat(6)), Beat)
    [known] = cluster.store.peers()
    assert (known.incarnation, known.inventory_count) == (6, 1)
    assert cluster.refused("A", hello(5)) == "stale_incarnation", "the newer start, woken up"


def test_a_connection_that_is_gone_takes_its_peer_down(cluster: Cluster) -> None:
    cluster.up("A", "B")
    cluster.perform(cluster.core.connection_gone(b"A", read(cluster.clock)))
    cluster.work()
    assert cluster.events[-1].fields["reason"] == "connection"
    assert cluster.statuses() == {"A": "down", "B": "up"}


def test_a_new_address_is_told_once(cluster: Cluster) -> None:
    cluster.up("A")
    for _ in range(2):
        cluster.ask("A", hello(advertise=("10.9.9.9",)))
    assert cluster.topics() == ["peer.up", "peer.updated"]
    assert cluster.events[-1].fields["peer"]["endpoints"] == ("tcp://10.9.9.9:7700",)


@pytest.mark.parametrize(
    "strange",
    [
        {"advertise": ("*",)},
        {"advertise": ("no host:x",)},
        {"bound": "not an address"},
        {"bound": "x" * 300},
        {"interfaces": ("x" * 300, "::zz")},
        {"interfaces": tuple(f"10.0.0.{i}" for i in range(16))},
        {"port": 2**40},
        {"capacity": 2**63 - 1, "free": 2**63 - 1},
        {"capacity": 2**63 - 1},
        {"incarnation": 2**63 - 1},
        {"chunks": 2**63 - 1},
    ],
)
def test_a_strange_hello_is_answered_and_breaks_nothing(cluster: Cluster, strange: dict[str, Any]) -> None:
    cluster.up("B")
    reply = cluster.ask("A", hello(**strange))
    assert isinstance(reply, (Welcome, ErrorReply))
    cluster.advance(2 * LEASE)
    assert isinstance(cluster.ask("client", GetSnapshot()), Snapshot)


def test_a_tracker_that_has_just_started_refuses_no_plan_for_good(tmp_path: Path) -> None:
    """Its nodes have a lease to say hello; what would be too few by then is too few now."""
    path = str(tmp_path / "tracker.sqlite")
    first = Cluster(tmp_path, path)
    first.up("A", "B")
    first.store.close()
    second = Cluster(tmp_path, path, epoch="e2")
    second.advance(1.0)
    unsure = second.ask("client", plan())
    assert isinstance(unsure, ErrorReply)
    assert (unsure.code, unsure.details["unsure"]) == ("peers_unsure", ["A", "B"])
    assert unsure.details["unsure_s"] == LEASE - 1.0
    assert second.refused("client", plan(min_peers=3)) == "too_few_peers"
    assert second.refused("client", plan(avoid=(peer_id("A"),))) == "too_few_peers"
    second.up("A")
    assert second.refused("client", plan()) == "peers_unsure"
    second.advance(LEASE)
    assert second.refused("client", plan()) == "too_few_peers"


def test_after_a_restart_known_peers_get_a_lease_to_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "tracker.sqlite")
    first = Cluster(tmp_path, path)
    first.up("A", "B")
    first.store.close()
    second = Cluster(tmp_path, path, epoch="e2")
    second.advance(LEASE - 0.5)
    assert second.topics() == []
    assert set(second.ask("client", GetSnapshot()).unsure) == {peer_id("A"), peer_id("B")}
    assert isinstance(second.ask("A", hello()), Welcome)
    assert second.ask("client", GetSnapshot()).unsure == (peer_id("B"),)
    second.advance(1.0)
    assert second.ask("client", GetSnapshot()).unsure == ()
    assert [(e.topic, e.fields["name"]) for e in second.events if e.topic != "tick"] == [
        ("peer.up", "A"),
        ("peer.down", "B"),
    ]
    assert second.ask("B", hello(0)).incarnation == 2, "above that of the newest start"
    second.store.close()
