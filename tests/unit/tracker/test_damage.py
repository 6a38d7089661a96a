"""Damaged copies (SPEC D8), memory that somebody keeps, and the health of files (SPEC I1, R9)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.tracker.clusters import (
    LEASE,
    ROLES,
    Cluster,
    beat,
    commit,
    digest,
    distributed,
    hello,
    joined,
    key,
    peer_id,
    stored,
    with_token,
)
from zchunk.errors import StorageFailure
from zchunk.node.bulk.location import location
from zchunk.protocol.messages import (
    Beat,
    CheckKey,
    Committed,
    Doubts,
    GetDoubts,
    GetMembers,
    GetSnapshot,
    Goodbye,
    Inventory,
    Join,
    Locate,
    Lost,
    Ok,
    Remove,
    ReportCorrupt,
    ReportHeld,
    RotateKey,
    Snapshot,
    Welcome,
    Whole,
)
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.requests import damage, members
from zchunk.tracker.rules import reports
from zchunk.tracker.rules.health import TOPICS

# -- damaged copies (SPEC D8) -----------------------------------------------------------------


def report(number: int = 1, at: str = "A") -> ReportCorrupt:
    return ReportCorrupt(peer_id=peer_id(at), sha256=digest(number))


def holders(cluster: Cluster) -> list[list[str]]:
    return location(cluster.ask("client", Locate(name_or_id="film", unique=False)), "film").holder_ids()


def doubts(cluster: Cluster, name: str) -> bytes:
    reply = cluster.ask(name, GetDoubts())
    assert isinstance(reply, Doubts)
    return bytes(reply.hashes)


@pytest.mark.row("D8")
def test_a_report_of_corruption_is_told_and_changes_no_location(cluster: Cluster) -> None:
    """Only the named node's own answer does, or a second member."""
    distributed(cluster)
    assert cluster.ask("client", report()) == Ok()
    event = cluster.events[-1]
    assert (event.topic, event.fields) == (
        "chunk.corrupt",
        {
            "peer_id": peer_id("A"),
            "sha256": digest(1).hex(),
            "reported_by": peer_id("client"),
            "reports": 1,
        },
    )
    assert holders(cluster) == [[peer_id("A")], [peer_id("B")]]
    told = len(cluster.events)
    assert cluster.ask("client", report()) == Ok()
    assert len(cluster.events) == told, "the same member again is no news"


@pytest.mark.row("D8")
def test_reports_by_two_members_take_the_location_away(cluster: Cluster) -> None:
    distributed(cluster)
    cluster.ask("client", report())
    cluster.ask("B", report())
    assert cluster.events[-1].fields["reports"] == 2
    assert holders(cluster) == [[], [peer_id("B")]]
    told = len(cluster.events)
    assert cluster.ask("client", report()) == Ok()
    assert len(cluster.events) == told, "that is known"


@pytest.mark.parametrize(
    ("who", "message", "code"),
    [
        ("client", report(2, at="A"), "not_found"),
        ("client", report(1, at="C"), "not_found"),
        ("client", report(1, at="nobody"), "not_found"),
        ("A", report(1, at="A"), "usage"),
    ],
    ids=["other chunk", "holds nothing", "no peer", "itself"],
)
def test_a_report_of_what_cannot_be_is_refused(
    cluster: Cluster, who: str, message: ReportCorrupt, code: str
) -> None:
    distributed(cluster)
    cluster.up("C")
    told = len(cluster.events)
    assert cluster.refused(who, message) == code
    assert len(cluster.events) == told
    assert doubts(cluster, "A") == b""


def test_a_node_learns_of_its_doubtful_chunks_whenever_it_asks(cluster: Cluster) -> None:
    """Also one that was away when it was told: of single reports and of what two made."""
    distributed(cluster)
    stored(cluster, "A", [3, 4])
    assert doubts(cluster, "A") == b""
    cluster.ask("client", report(3))
    cluster.ask("client", report(4))
    cluster.ask("B", report(4))
    assert doubts(cluster, "A") == b"".join(sorted([digest(3), digest(4)]))
    assert doubts(cluster, "B") == b""


@pytest.mark.row("D8")
def test_a_node_that_found_its_chunk_whole_voids_the_reports(cluster: Cluster) -> None:
    distributed(cluster)
    cluster.ask("client", report())
    assert cluster.ask("A", Whole(hashes=digest(1))) == Ok()
    assert doubts(cluster, "A") == b""
    cluster.ask("B", report())
    assert holders(cluster)[0] == [peer_id("A")], "the first report does not count any more"
    cluster.ask("client", report())
    assert holders(cluster)[0] == []
    cluster.ask("A", Whole(hashes=joined([1, 7])))
    assert holders(cluster)[0] == [peer_id("A")]
    assert cluster.store.inventory_summary(peer_id("A"))[0] == 1, "whole is not stored"


def test_only_an_answer_about_the_copy_settles_it(cluster: Cluster) -> None:
    """`stored` is none: a node says it of a chunk that it has, unread, when it is offered."""
    distributed(cluster)
    cluster.ask("client", report())
    stored(cluster, "A", [1])
    assert doubts(cluster, "A") == digest(1)
    cluster.ask("B", report())
    stored(cluster, "A", [1])
    assert holders(cluster)[0] == []
    assert doubts(cluster, "A") == digest(1)
    cluster.ask("A", Lost(hashes=digest(1)))
    assert doubts(cluster, "A") == b""
    stored(cluster, "A", [1])
    assert holders(cluster)[0] == [peer_id("A")]


def test_a_mark_that_could_not_be_kept_is_no_answer_but_breaks_nothing(cluster: Cluster) -> None:
    distributed(cluster)
    cluster.ask("client", report())
    cluster.send("B", report())
    cluster.work(1)
    cluster.failure = StorageFailure("the disk is full")
    cluster.work()
    cluster.failure = None
    assert holders(cluster)[0] == [peer_id("A")]


def test_too_many_reports_of_one_member(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_MAX_OF_MEMBER", 1)
    distributed(cluster)
    cluster.ask("client", report())
    assert cluster.refused("client", report(2, at="B")) == "busy"
    assert cluster.ask("C", report(2, at="B")) == Ok()


# -- memory of a node that somebody keeps -----------------------------------------------------


def test_who_keeps_a_nodes_memory_is_told_by_name_and_not_without_end(cluster: Cluster) -> None:
    cluster.up("A")
    report = ReportHeld(member=peer_id("client"), purpose="downloads", size=5, budget=8, seconds=3.5)
    assert cluster.ask("A", report) == Ok()
    assert cluster.events[-1].topic == "budget.held"
    assert cluster.events[-1].fields == {
        "peer_id": peer_id("A"),
        "name": "A",
        "held_by": peer_id("client"),
        "held_by_name": "client",
        "purpose": "downloads",
        "bytes": 5,
        "budget": 8,
        "seconds": 3.5,
    }
    for _ in range(100):
        assert cluster.ask("A", replace(report, member="10.0.0.7")) == Ok()
    assert cluster.topics().count("budget.held") == damage._HELD_AT_ONCE
    assert cluster.events[-1].fields["held_by_name"] == "10.0.0.7"


# -- health of files (SPEC I1, R9) ------------------------------------------------------------


def health_events(cluster: Cluster) -> list[tuple[str, str]]:
    return [(e.topic, e.fields["health"]) for e in cluster.events if e.topic in TOPICS]


def lasting(cluster: Cluster, seconds: float, *names: str) -> None:
    """Time passes, and these nodes stay up."""
    for _ in range(int(seconds / 0.5)):
        cluster.advance(0.5)
        for name in names:
            cluster.ask(name, beat())


@pytest.mark.row("I1")
def test_a_peer_that_goes_and_comes_changes_the_health_of_its_files(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    lasting(cluster, LEASE + 1, "A", "B")
    assert health_events(cluster) == [], "it is complete, as every file is until it is told otherwise"
    lasting(cluster, LEASE + 1, "A")
    assert health_events(cluster) == [("file.unavailable", "unavailable")]
    told = next(e for e in cluster.events if e.topic == "file.unavailable")
    assert told.fields == {
        "file_id": file_id,
        "name": "film",
        "health": "unavailable",
        "replicas": 1,
        "chunks_count": 2,
        "chunks_unavailable": 1,
        "chunks_below_replicas": 1,
    }
    assert cluster.topics().index("peer.down") < cluster.topics().index("file.unavailable")
    cluster.ask("B", hello(incarnation=2, held=[digest(2)]))
    lasting(cluster, 2, "A")
    assert health_events(cluster)[1:] == [("file.available", "complete")]


def test_a_file_with_fewer_copies_than_asked_is_degraded(cluster: Cluster) -> None:
    cluster.up("A", "B")
    lasting(cluster, LEASE + 1, "A", "B")
    stored(cluster, "A", [1, 2])
    stored(cluster, "B", [2])
    assert isinstance(cluster.ask("client", commit(replicas=2)), Committed)
    lasting(cluster, 1, "A", "B")
    assert health_events(cluster) == [("file.degraded", "degraded")]
    assert cluster.topics()[-2:] == ["file.distributed", "file.degraded"]
    stored(cluster, "B", [1])
    lasting(cluster, 1, "A", "B")
    assert health_events(cluster)[1:] == [("file.available", "complete")]
    cluster.ask("A", Lost(hashes=digest(1)))
    lasting(cluster, 1, "A", "B")
    assert health_events(cluster)[2:] == [("file.degraded", "degraded")]
    cluster.ask("client", report(1, at="B"))
    cluster.ask("C", report(1, at="B"))
    lasting(cluster, 1, "A", "B")
    assert health_events(cluster)[3:] == [("file.unavailable", "unavailable")]
    cluster.ask("B", Whole(hashes=digest(1)))
    lasting(cluster, 1, "A", "B")
    assert health_events(cluster)[4:] == [("file.available", "degraded")]


def test_an_inventory_of_a_node_that_stays_up_changes_health(cluster: Cluster) -> None:
    distributed(cluster)
    lasting(cluster, LEASE + 1, "A", "B")
    cluster.ask("B", hello(held=[]))
    cluster.ask("B", Inventory(page=0, last=True, hashes=b""))
    lasting(cluster, 2, "A", "B")
    assert health_events(cluster) == [("file.unavailable", "unavailable")]


def test_a_removed_file_is_told_of_no_more(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    lasting(cluster, LEASE + 1, "A", "B")
    cluster.ask("B", Goodbye(incarnation=1))
    lasting(cluster, 1, "A")
    cluster.ask("client", Remove(file_id=file_id))
    cluster.ask("B", hello(incarnation=2, held=[digest(2)]))
    lasting(cluster, 2, "A", "B")
    assert health_events(cluster) == [("file.unavailable", "unavailable")]


def test_after_a_restart_the_peers_have_a_lease_to_come_back(tmp_path: Path) -> None:
    """Then what is not complete is told once."""
    first = Cluster(tmp_path, store=str(tmp_path / "t.sqlite"))
    distributed(first)
    first.store.close()
    again = Cluster(tmp_path, store=str(tmp_path / "t.sqlite"), epoch="e2")
    again.advance(LEASE - 0.5)
    again.ask("A", hello(incarnation=2, held=[digest(1)]))
    again.advance(0.25)
    assert health_events(again) == []
    lasting(again, 4, "A")
    assert health_events(again) == [("file.unavailable", "unavailable")]
    assert again.topics().index("peer.down") < again.topics().index("file.unavailable")
    again.store.close()


def test_a_store_that_fails_in_a_slice_is_asked_again(cluster: Cluster) -> None:
    distributed(cluster)
    lasting(cluster, LEASE + 1, "A", "B")
    cluster.ask("B", Goodbye(incarnation=1))
    cluster.failure = StorageFailure("the disk is full")
    cluster.advance(0.5)
    cluster.failure = None
    assert health_events(cluster) == []
    lasting(cluster, 2, "A")
    assert health_events(cluster) == [("file.unavailable", "unavailable")]


def test_a_snapshot_shows_nobody_up_before_that_is_told(cluster: Cluster) -> None:
    cluster.direct("A", hello())
    snapshot = cluster.direct("observer", GetSnapshot())[0].message  # type: ignore[union-attr]
    assert isinstance(snapshot, Snapshot)
    assert [(record.status, snapshot.seq) for record in snapshot.peers] == [("down", 0)]
    assert snapshot.unsure == (peer_id("A"),), "its event is yet to come"
    cluster.work()
    assert cluster.topics() == ["peer.up"]
    assert cluster.statuses() == {"A": "up"}


def test_a_revoked_member_is_refused_within_a_tick_though_it_was_up(cluster: Cluster) -> None:
    cluster.up("A", "B")
    Membership(cluster.membership._path, cluster.clock).revoke(peer_id("A"))
    cluster.advance(1.1)
    assert cluster.refused("A", beat()) == "not_allowed"


def changed(cluster: Cluster, change: Callable[[Membership], object]) -> list[str]:
    """Another process changes the list, and says so; what the core does."""
    cluster.log.clear()
    change(Membership(cluster.membership._path, cluster.clock))
    cluster.look_at_members()
    cluster.work()
    return [what for what in cluster.log if what != "work"]


def test_a_revocation_is_told_and_then_the_member_is_cut_off(cluster: Cluster) -> None:
    cluster.up("A", "B")
    log = changed(cluster, lambda listed: listed.revoke(peer_id("A")))
    assert log[:2] == ["member.revoked", "cut off"]
    assert "peer.down" in log, "a node that is cut off is no holder"
    assert cluster.cut_off == [peer_id("A")]
    event = next(event for event in cluster.events if event.topic == "member.revoked")
    assert event.fields["member"]["revoked"] is True
    assert cluster.statuses() == {"A": "revoked", "B": "up"}


def test_a_member_that_is_let_in_again_is_told_and_says_hello(cluster: Cluster) -> None:
    cluster.up("A", "B")
    changed(cluster, lambda listed: listed.revoke(peer_id("A")))
    assert changed(cluster, lambda listed: listed.allow(peer_id("A")))[0] == "member.allowed"
    assert cluster.statuses()["A"] == "down"
    assert isinstance(cluster.ask("A", hello(2)), Welcome)
    assert cluster.statuses()["A"] == "up"


def test_a_join_is_told_and_cuts_nobody_off(cluster: Cluster) -> None:
    assert changed(cluster, lambda listed: listed.add_member(key("new"), "new", "client")) == [
        "member.joined"
    ]
    assert cluster.cut_off == []


def test_a_join_is_told_before_it_is_answered(cluster: Cluster) -> None:
    """Who has its answer is known to whoever has heard the events."""
    with_token(cluster)
    cluster.ask("token", Join(public_key=key("new"), name="new"))
    assert cluster.log == ["work", "member.joined", "reply"]


def test_a_new_key_is_answered_before_its_line_is_ended(cluster: Cluster) -> None:
    cluster.up("A", "B")
    cluster.log.clear()
    assert cluster.ask("A", RotateKey(public_key=key("A, later"))) == Ok()
    assert cluster.log == ["work", "reply", "member.rotated", "cut off", "peer.updated"]
    assert cluster.cut_off == [peer_id("A")]
    [record] = [r for r in cluster.ask("observer", GetSnapshot()).peers if r.name == "A"]
    assert record.public_key == key("A, later").hex(), "whoever connects there expects the new one"


def test_a_key_that_another_has_is_refused_and_ends_nothing(cluster: Cluster) -> None:
    assert cluster.refused("A", RotateKey(public_key=key("B"))) == "usage"
    assert cluster.cut_off == []
    assert cluster.topics() == []


def test_a_list_that_was_put_in_anothers_place_cuts_off_whom_it_lacks(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.up("A", "B")
    other = Membership(tmp_path / "other.json", cluster.clock)
    for name in ("B", "C", "client", "observer"):
        other.add_member(key(name), name, ROLES[name])
    (tmp_path / "other.json").replace(cluster.membership._path)
    cluster.advance(1.0)  # nobody has said so: at the next tick
    assert cluster.cut_off == [peer_id("A")]
    assert cluster.refused("A", beat()) == "not_allowed"


def test_a_list_that_cannot_be_read_cuts_nobody_off(cluster: Cluster) -> None:
    cluster.up("A", "B")
    cluster.membership._path.write_bytes(b"{")
    with pytest.raises(StorageFailure):
        cluster.membership.refresh()
    cluster.advance(1.0)
    assert cluster.cut_off == []
    assert isinstance(cluster.ask("A", beat()), Beat)


def test_a_node_asks_whose_key_it_is(cluster: Cluster) -> None:
    known = cluster.ask("A", CheckKey(public_key=key("client"))).member
    assert (known.peer_id, known.role, known.revoked) == (peer_id("client"), "client", False)
    assert cluster.ask("A", CheckKey(public_key=key("nobody"))).member is None
    changed(cluster, lambda listed: listed.revoke(peer_id("client")))
    assert cluster.ask("A", CheckKey(public_key=key("client"))).member is None
    with_token(cluster)
    assert cluster.ask("A", CheckKey(public_key=key("token"))).member is None, "a token's key is no member's"


def test_a_key_that_another_process_has_listed_is_known_once_it_is_told(cluster: Cluster) -> None:
    assert changed(cluster, lambda listed: listed.add_member(key("new"), "new", "client")) == [
        "member.joined"
    ]
    assert cluster.ask("A", CheckKey(public_key=key("new"))).member.name == "new"


def test_the_list_is_told_page_by_page_revoked_members_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_MEMBERS_PAGE", 2)
    changed(cluster, lambda listed: listed.revoke(peer_id("B")))
    names, page = [], ""
    while True:
        answer = cluster.ask("A", GetMembers(page=page))
        names += [(member.name, member.revoked) for member in answer.members]
        page = answer.next_page
        if not page:
            break
    assert sorted(names) == [(name, name == "B") for name in sorted(ROLES)]
