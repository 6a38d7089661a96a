"""Who may ask the tracker what, who joins, and how much a member makes it hold (SPEC S4)."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from msgspec.structs import replace

from tests.strategies import simplest
from tests.unit.tracker.clusters import (
    CHUNK,
    EVENTS,
    LEASE,
    ROLES,
    UPLOAD,
    Cluster,
    beat,
    commit,
    digest,
    hello,
    joined,
    key,
    peer_id,
    plan,
    with_token,
)
from zchunk.clock import read
from zchunk.content.manifest import MAX_NEW_CHUNKS
from zchunk.protocol import columns
from zchunk.protocol.messages import (
    BY_TYPE,
    Abandon,
    CheckKey,
    Commit,
    ErrorReply,
    FindChunks,
    FindFiles,
    GetDoubts,
    GetEvents,
    GetMembers,
    GetRemovals,
    GetSnapshot,
    Goodbye,
    Heartbeat,
    Hello,
    Inventory,
    Join,
    Joined,
    ListFiles,
    Locate,
    Lost,
    Message,
    Ok,
    Plan,
    Release,
    Remove,
    Renew,
    ReportCorrupt,
    ReportHeld,
    Request,
    RotateKey,
    Stored,
    Welcome,
    Whole,
)
from zchunk.strategy import MAX_COPIES
from zchunk.tracker.requests import inventories

# -- who may ask what -------------------------------------------------------------------------

READERS = {"node", "client", "observer"}

WRITERS = {"node", "client"}

#: request -> (an example, the roles that may); nobody else's roles may
ALLOWED: dict[type[Request], tuple[Request, set[str]]] = {
    Hello: (hello(), {"node"}),
    Inventory: (Inventory(page=0, last=True, hashes=b""), {"node"}),
    Heartbeat: (beat(0), READERS),
    Goodbye: (Goodbye(incarnation=1), {"node"}),
    GetSnapshot: (GetSnapshot(), READERS),
    GetMembers: (GetMembers(page=""), {"node"}),
    CheckKey: (CheckKey(public_key=bytes(32)), {"node"}),
    RotateKey: (RotateKey(public_key=key("new")), READERS),
    GetEvents: (GetEvents(epoch="e", since=0), READERS),
    Plan: (plan(), WRITERS),
    FindChunks: (FindChunks(hashes=b""), WRITERS),
    Stored: (Stored(upload_id=UPLOAD, hashes=b""), {"node"}),
    Commit: (commit(), WRITERS),
    Abandon: (Abandon(upload_id=UPLOAD), WRITERS),
    Renew: (Renew(upload_id=UPLOAD), WRITERS),
    Locate: (Locate(name_or_id="film", unique=False), READERS),
    ListFiles: (ListFiles(page=""), READERS),
    Remove: (Remove(file_id="0" * 64), WRITERS),
    Release: (Release(hashes=b""), {"node"}),
    GetRemovals: (GetRemovals(since=0), {"node"}),
    FindFiles: (FindFiles(file_ids=b""), {"node"}),
    Lost: (Lost(hashes=b""), {"node"}),
    GetDoubts: (GetDoubts(), {"node"}),
    Whole: (Whole(hashes=b""), {"node"}),
    ReportHeld: (
        ReportHeld(member="10.0.0.7", purpose="downloads", size=1, budget=1, seconds=3.0),
        {"node"},
    ),
    ReportCorrupt: (ReportCorrupt(peer_id="a" * 32, sha256=bytes(32)), WRITERS),
}

#: between nodes, clients and commands; the tracker does not answer them
NOT_THE_TRACKERS = {
    *("get_block", "acknowledge", "offer", "put_block", "put_manifest", "conclude"),
    *("steer_job", "members_changed"),
}


def test_the_table_names_every_request() -> None:
    requests = {cls for cls in BY_TYPE.values() if issubclass(cls, Request)}
    assert {cls.TYPE for cls in requests} - NOT_THE_TRACKERS == {cls.TYPE for cls in ALLOWED} | {"join"}


@pytest.mark.parametrize("name", ["A", "client", "observer"])
@pytest.mark.parametrize("kind", ALLOWED, ids=lambda kind: kind.TYPE)
def test_each_role_may_ask_what_the_table_says(cluster: Cluster, kind: type[Request], name: str) -> None:
    message, roles = ALLOWED[kind]
    request_id = cluster.send(name, message)
    cluster.advance(6.0)  # a commit of chunks that nobody has waits for them
    reply = cluster.answer(name, request_id)
    if ROLES[name] not in roles:
        assert isinstance(reply, ErrorReply)
        assert reply.code == "not_allowed"
        assert kind.TYPE in reply.message
        assert cluster.topics() == []
    else:
        assert isinstance(reply, (kind.REPLY, ErrorReply))
        assert getattr(reply, "code", "") != "not_allowed"


@pytest.mark.parametrize("kind", ALLOWED, ids=lambda kind: kind.TYPE)
@pytest.mark.parametrize("who", ["stranger", "nobody", "revoked"])
def test_who_is_no_member_is_refused_and_leaves_no_trace(
    cluster: Cluster, kind: type[Request], who: str
) -> None:
    if who == "revoked":
        cluster.membership.revoke(peer_id("A"))
        cluster.look_at_members()
        cluster.events.clear()
    name = {"stranger": "stranger", "nobody": None, "revoked": "A"}[who]
    request_id = cluster.send(name, ALLOWED[kind][0])
    assert not cluster.works
    [reply] = cluster.replies[((name or "").encode(), request_id)]
    assert isinstance(reply, ErrorReply)
    assert reply.code == "not_allowed"
    assert cluster.topics() == []


@pytest.mark.parametrize(
    "cls", [cls for cls in BY_TYPE.values() if not issubclass(cls, Request)], ids=lambda cls: cls.TYPE
)
def test_an_answer_is_no_request(cluster: Cluster, cls: type[Message]) -> None:
    assert cluster.refused("A", simplest(cls)) == "unknown_message"


@pytest.mark.parametrize("kind", sorted(NOT_THE_TRACKERS))
def test_the_tracker_serves_no_chunks(cluster: Cluster, kind: str) -> None:
    assert cluster.refused("client", simplest(BY_TYPE[kind])) == "unknown_message"


# -- join -------------------------------------------------------------------------------------


def test_a_token_makes_a_member_which_may_then_ask(cluster: Cluster) -> None:
    with_token(cluster)
    reply = cluster.ask("token", Join(public_key=key("D"), name="LAB-PC4"))
    assert reply == Joined(
        peer_id=peer_id("D"), name="LAB-PC4", role="node", store_id=cluster.store.store_id, events=EVENTS
    )
    assert isinstance(cluster.ask("D", hello()), Welcome)
    assert cluster.statuses()["LAB-PC4"] == "up"


def test_a_token_may_join_and_nothing_else(cluster: Cluster) -> None:
    with_token(cluster)
    for message, _ in ALLOWED.values():
        assert cluster.refused("token", message) == "not_allowed"


def test_join_is_answered_the_same_again(cluster: Cluster) -> None:
    with_token(cluster)
    message = Join(public_key=key("D"), name="D")
    assert cluster.ask("token", message) == cluster.ask("token", message)


@pytest.mark.parametrize(
    ("who", "name", "code"),
    [("token", "A", "name_taken"), ("late", "D", "token_refused"), ("A", "D", "token_refused")],
)
def test_a_join_that_cannot_be(cluster: Cluster, who: str, name: str, code: str) -> None:
    with_token(cluster)
    cluster.membership.add_token(key("late"), "node", int(cluster.clock.wall() * 1000), once=False)
    assert cluster.refused(who, Join(public_key=key("D"), name=name)) == code
    assert cluster.membership.listed.member(peer_id("D")) is None


# -- limits on what a member makes the tracker hold (SPEC S4) ---------------------------------


@pytest.mark.row("S4")
@pytest.mark.parametrize(
    "greedy",
    [
        {"only": columns.pack(4, [0]) * 5, "held": columns.pack(2, [columns.NOBODY]) * 5},
        {"only": bytes(64 * 2**20)},
        {"only": columns.pack(4, [0]), "held": bytes(64 * 2**20)},
        {"size": MAX_NEW_CHUNKS * CHUNK, "replicas": 11},
        {"size": MAX_NEW_CHUNKS * CHUNK, "replicas": MAX_COPIES},
    ],
    ids=["repeated", "many", "held", "copies", "more copies"],
)
def test_a_plan_of_more_than_a_file_can_have_is_refused_before_it_is_made(
    cluster: Cluster, greedy: dict[str, Any]
) -> None:
    cluster.up("A", "B")
    message = plan(**greedy)
    tracemalloc.start()
    try:
        assert cluster.refused("client", message) in {"malformed", "usage"}
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [Stored, Lost, Whole, Release])
def test_more_digests_than_a_message_may_have_are_refused(cluster: Cluster, kind: type[Request]) -> None:
    cluster.up("A")
    values: dict[str, Any] = {"hashes": bytes(32 * (columns.MAX_HASHES + 1))}
    if kind is Stored:
        values["upload_id"] = UPLOAD
    request_id = cluster.send("A", kind(**values))
    assert not cluster.works, "refused before the database is asked"
    assert cluster.answer("A", request_id).code == "malformed"  # type: ignore[union-attr]


@pytest.mark.row("S4")
def test_commits_that_wait_are_so_many_of_a_member_and_then_refused_at_once(cluster: Cluster) -> None:
    cluster.up("A", "B")
    for number in range(200):
        cluster.send("client", commit(upload_id=f"{number:032x}"))
    cluster.work()
    assert 0 < len(cluster.core.uploads._parked) <= 128
    asked = cluster.send("A", commit(upload_id="f" * 32))
    cluster.work()
    assert cluster.answer("A", asked) is None, "another member's waits"
    cluster.advance(6.0)
    assert not cluster.core.uploads._parked
    assert cluster.answer("A", asked).code == "not_yet_stored"  # type: ignore[union-attr]


def test_a_commit_that_waits_is_not_pushed_out_by_another_members(cluster: Cluster) -> None:
    cluster.up("A", "B")
    first, second = cluster.send("client", commit()), cluster.send("B", commit())
    cluster.work()
    cluster.advance(6.0)
    assert cluster.answer("client", first).code == "not_yet_stored"  # type: ignore[union-attr]
    assert cluster.answer("B", second).code == "not_yet_stored"  # type: ignore[union-attr]


def test_inventories_under_way_are_so_large_together_and_end_with_their_node(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "_MAX_BYTES", 32 * 10)
    page = Inventory(page=0, last=False, hashes=joined(range(6)))
    for name in "AB":
        assert cluster.ask(name, hello(held=[digest(1)])).inventory_wanted
    assert cluster.ask("A", page) == Ok()
    assert cluster.refused("B", page) == "busy"
    assert cluster.refused("A", replace(page, page=1, hashes=b"")) == "malformed", "pages without end"
    cluster.advance(2 * LEASE)
    assert not cluster.core.presence.inventories
    assert cluster.ask("B", hello(held=[digest(1)])).inventory_wanted
    assert cluster.ask("B", page) == Ok()


def test_joins_of_one_batch_are_told_once_whoever_looks_at_the_list_meanwhile(cluster: Cluster) -> None:
    """The store's thread runs them together; the list has both before the first is answered."""
    with_token(cluster)
    cluster.look_at_members()
    cluster.events.clear()
    asked = [cluster.send("token", Join(public_key=key(name), name=name)) for name in ("D", "E")]
    works, now = list(cluster.works), read(cluster.clock)
    cluster.works.clear()
    members = [work.run(cluster.store) for work in works]
    cluster.look_at_members()
    for work, member in zip(works, members, strict=True):
        cluster.perform(work.then(member, None, now))
    assert cluster.topics() == ["member.joined", "member.joined"]
    assert cluster.cut_off == []
    assert all(isinstance(cluster.answer("token", request_id), Joined) for request_id in asked)
