"""What is kept is said after it is kept: commit, then reply, then publish. Each request has one answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.tracker.clusters import (
    LEASE,
    UPLOAD,
    Cluster,
    beat,
    commit,
    digest,
    distributed,
    hello,
    joined,
    make_file,
    names,
    peer_id,
    plan,
)
from zchunk.clock import Now, read
from zchunk.errors import StorageFailure
from zchunk.protocol.messages import (
    GetDoubts,
    GetEvents,
    GetSnapshot,
    Goodbye,
    Inventory,
    Locate,
    Lost,
    PeerRecord,
    Planned,
    Release,
    Remove,
    ReportCorrupt,
    Request,
    Stored,
    Whole,
)
from zchunk.tracker.actions import Work

# -- commit, then reply, then publish ---------------------------------------------------------


def test_hello_is_answered_and_told_only_after_the_store_has_it(cluster: Cluster) -> None:
    actions = cluster.direct("A", hello())
    assert [type(action) for action in actions] == [Work]
    assert cluster.log == []
    cluster.work()
    assert cluster.log == ["work", "reply", "peer.up"], "one commit, and who is registered is up for all"
    [known] = cluster.store.peers()
    assert (known.peer_id, known.incarnation, known.left) == (peer_id("A"), 1, False)


DURABLE: list[tuple[str, Request, list[str]]] = [
    ("A", Stored(upload_id=UPLOAD, hashes=joined([1])), ["work", "reply"]),
    ("A", Lost(hashes=joined([1])), ["work", "reply"]),
    ("A", Release(hashes=joined([5])), ["work", "reply"]),
    ("A", Goodbye(incarnation=1), ["work", "reply", "peer.down"]),
    ("client", commit(), ["work", "reply", "file.distributed"]),
    ("client", Remove(file_id=make_file("other").file_id), ["work", "reply", "file.removed"]),
]


def ready(cluster: Cluster) -> None:
    """A and B hold chunks 1 and 2; "other" is a file of them, "film" is not yet."""
    distributed(cluster, make_file("other"))
    cluster.log.clear()


@pytest.mark.parametrize(("name", "message", "course"), DURABLE)
def test_what_changes_the_store_is_answered_after_its_commit(
    cluster: Cluster, name: str, message: Request, course: list[str]
) -> None:
    ready(cluster)
    actions = cluster.direct(name, message)
    assert {type(action) for action in actions} == {Work}
    assert cluster.log == []
    cluster.work()
    assert cluster.log == course


@pytest.mark.parametrize(("name", "message", "course"), [row for row in DURABLE if row[1].TYPE != "goodbye"])
def test_what_the_store_could_not_keep_is_refused_and_not_published(
    cluster: Cluster, name: str, message: Request, course: list[str]
) -> None:
    ready(cluster)
    cluster.failure = StorageFailure("EIO")
    assert cluster.refused(name, message) == "storage_failure"
    assert cluster.log == ["work", "reply"]


def test_a_failing_store_hides_from_nobody_that_a_peer_went(cluster: Cluster) -> None:
    ready(cluster)
    cluster.failure = StorageFailure("EIO")
    cluster.send("A", Goodbye(incarnation=1))
    cluster.work()
    assert cluster.topics()[-1] == "peer.down"


def test_numbers_rise_by_one_and_ticks_repeat_the_last(cluster: Cluster) -> None:
    cluster.up("A", "B", "C")
    cluster.advance(LEASE + 1)
    assert len(cluster.topics()) == 6
    numbers = [event.seq for event in cluster.events if event.topic != "tick"]
    assert numbers == list(range(1, 7))
    assert cluster.events[-1].topic == "tick"
    assert cluster.core.events.seq == 6
    assert [event.seq for event in cluster.core.events.history] == numbers


@pytest.mark.row("R8")
def test_a_node_without_its_disk_is_no_holder_and_takes_nothing(cluster: Cluster) -> None:
    cluster.up("A", "B")
    cluster.ask("A", beat(1, store_online=False))
    cluster.ask("A", beat(1, store_online=False))
    assert cluster.events[-1].topic == "peer.updated"
    assert cluster.events[-1].fields["peer"]["status"] == "offline-store"
    assert cluster.topics().count("peer.updated") == 1, "told once"
    assert cluster.core.peers.live() == {peer_id("B")}
    assert cluster.refused("client", plan()) == "too_few_peers"
    cluster.ask("A", hello(1))  # over a new connection, say
    assert cluster.statuses()["A"] == "offline-store"
    cluster.ask("A", beat(1, free=10**9))
    assert cluster.events[-1].fields["peer"]["status"] == "up"
    assert isinstance(cluster.ask("client", plan()), Planned)


def test_missed_events_can_be_asked_for_page_by_page(cluster: Cluster) -> None:
    core = cluster.core
    for number in range(1, 1203):
        core.events.publish("chunk.corrupt", {"number": number}, Now(0.0, number))
    first = cluster.ask("observer", GetEvents(epoch=core.events.epoch, since=0))
    assert [(r.seq, r.fields["number"]) for r in first.events] == [(n, n) for n in range(1, 501)]
    assert (first.epoch, first.seq) == (core.events.epoch, 1202)
    last = cluster.ask("observer", GetEvents(epoch=core.events.epoch, since=1200))
    assert [r.seq for r in last.events] == [1201, 1202]
    assert cluster.ask("observer", GetEvents(epoch=core.events.epoch, since=1202)).events == ()
    assert cluster.ask("observer", GetEvents(epoch=core.events.epoch, since=9999)).events == ()
    other = cluster.ask("observer", GetEvents(epoch="other", since=0))
    assert (other.epoch, other.events) == (core.events.epoch, ())


def test_ten_thousand_events_are_kept(cluster: Cluster) -> None:
    core = cluster.core
    for number in range(12_000):
        core.events.publish("chunk.corrupt", {}, Now(0.0, number))
    page = cluster.ask("observer", GetEvents(epoch=core.events.epoch, since=0))
    assert page.events[0].seq == 2001, "and who asks sees that what is before is gone"


def test_it_ticks_once_a_second(cluster: Cluster) -> None:
    cluster.advance(10.0)
    assert 10 <= sum(event.topic == "tick" for event in cluster.events) <= 11


# -- any order --------------------------------------------------------------------------------

incarnations = st.integers(1, 3)

chunk_numbers = st.lists(st.integers(1, 4), max_size=4)

STEPS = st.one_of(
    st.builds(
        lambda name, n, held: (name, hello(n, [digest(i) for i in held])),
        names,
        incarnations,
        chunk_numbers,
    ),
    st.builds(lambda name, n: (name, beat(n)), names, incarnations),
    st.builds(lambda name, n: (name, Goodbye(incarnation=n)), names, incarnations),
    st.builds(
        lambda name, page, last, held: (name, Inventory(page=page, last=last, hashes=joined(sorted(held)))),
        names,
        st.integers(0, 1),
        st.booleans(),
        chunk_numbers,
    ),
    st.builds(lambda name, held: (name, Stored(upload_id=UPLOAD, hashes=joined(held))), names, chunk_numbers),
    st.builds(lambda name, held: (name, Lost(hashes=joined(held))), names, chunk_numbers),
    st.builds(lambda name, held: (name, Whole(hashes=joined(held))), names, chunk_numbers),
    st.builds(
        lambda name, peer, n: (name, ReportCorrupt(peer_id=peer_id(peer), sha256=digest(n))),
        st.sampled_from(["A", "client"]),
        names,
        st.integers(1, 4),
    ),
    st.builds(lambda name: (name, GetDoubts()), names),
    st.builds(lambda name, held: (name, Release(hashes=joined(held))), names, chunk_numbers),
    st.just(("client", commit())),
    st.just(("client", plan())),
    st.just(("client", Remove(file_id=make_file().file_id))),
    st.just(("client", Locate(name_or_id="film", unique=False))),
    st.just(("observer", GetSnapshot())),
    st.builds(lambda seconds: ("time", seconds), st.sampled_from([0.5, 2.0, 6.0])),
    st.builds(lambda count: ("work", count), st.integers(1, 3)),
    st.builds(lambda name: ("gone", name.encode()), names),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_comes_in_whatever_order_each_request_has_one_answer(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    cluster = Cluster(tmp_path_factory.mktemp("tracker"))
    asked: list[tuple[str, int]] = []
    for what, value in steps:
        if what == "time":
            cluster.clock.advance(value)
            cluster.perform(cluster.core.advance(read(cluster.clock)))
        elif what == "work":
            cluster.work(value)
        elif what == "gone":
            cluster.perform(cluster.core.connection_gone(value, read(cluster.clock)))
        else:
            asked.append((what, cluster.send(what, value)))
    cluster.work()
    cluster.advance(6.0)
    for name, request_id in asked:
        # A commit that was asked again while it waited is answered to the last asker.
        answer = cluster.answer(name, request_id)
        assert answer is not None or any(n == name for n, later in asked if later > request_id)
    told: dict[str, str] = {}
    for event in cluster.events:
        if event.topic in ("peer.up", "peer.down"):
            told[event.fields["peer_id"]] = event.fields["peer"]["status"]
    records: tuple[PeerRecord, ...] = cluster.ask("observer", GetSnapshot()).peers
    for record in records:
        assert told.get(record.peer_id, "down") == record.status
        assert (record.status == "up") == cluster.core.peers.liveness.is_up(record.peer_id)
    cluster.store.close()
