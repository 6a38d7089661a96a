"""tracker/core.py and rules/planning.py (SPEC U2, U5, D8, S2, R7; DESIGN "Liveness", "Membership")."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.strategies import simplest
from zchunk.clock import ManualClock, Now, read
from zchunk.content.hashing import inventory_digest
from zchunk.content.manifest import MAX_NEW_CHUNKS, ChunkRow, Manifest, expected_bytes, kept_bytes
from zchunk.errors import Busy, NoSpace, StorageFailure, ZchunkError
from zchunk.node.bulk.location import location
from zchunk.protocol import columns
from zchunk.protocol.messages import (
    BY_TYPE,
    MAX_FIND,
    Abandon,
    Beat,
    CheckKey,
    ChunksFound,
    Commit,
    Committed,
    Doubts,
    ErrorReply,
    Event,
    Files,
    FilesFound,
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
    Located,
    Lost,
    Message,
    Ok,
    PeerRecord,
    Plan,
    Planned,
    Release,
    Released,
    Removals,
    Remove,
    Removed,
    Renew,
    ReportCorrupt,
    ReportHeld,
    Request,
    RotateKey,
    Snapshot,
    Stored,
    Welcome,
    Whole,
)
from zchunk.strategy import MAX_COPIES
from zchunk.tracker.actions import Action, CutOff, LookAtMembers, Publish, Reply, Sender, Work
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.requests import damage, inventories, members
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.rules import reports
from zchunk.tracker.rules.health import TOPICS
from zchunk.tracker.rules.promises import GONE_S, SILENT_S, STUCK_S
from zchunk.tracker.state.store_mark import StoreMark
from zchunk.tracker.store.store import TrackerStore
from zchunk.transport.keys import peer_id_of

CHUNK = 64 * 1024
BEAT, LEASE = 1.0, 3.0
EVENTS = ("tcp://10.0.0.9:7701",)
UPLOAD, OTHER_UPLOAD = "1" * 32, "2" * 32


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def peer_id(name: str) -> str:
    return peer_id_of(key(name))


NODES = ("A", "B", "C")
ROLES = {**dict.fromkeys(NODES, "node"), "client": "client", "observer": "observer"}


class Cluster:
    """A tracker's core with a real store and allow list. `Work` runs when told, in order."""

    def __init__(self, folder: Path, store: str = ":memory:", epoch: str = "e1") -> None:
        self.clock = ManualClock()
        self.membership = Membership(folder / "members.json", self.clock)
        for name, role in ROLES.items():
            self.membership.add_member(key(name), name, role)
        self.store = TrackerStore.open(store, self.clock)
        self.core = TrackerCore(
            members=self.membership,
            peers=self.store.peers(),
            timing=Timing(BEAT, LEASE),
            epoch=epoch,
            mark=StoreMark(self.store.store_id, self.store.commit_number),
            events_at=EVENTS,
            now=read(self.clock),
        )
        self.works: deque[Work] = deque()
        self.replies: dict[tuple[bytes, int], list[Message]] = {}
        self.events: list[Event] = []
        #: what happened, in order: "work", "reply", or an event's topic
        self.log: list[str] = []
        #: members whose connections were ended
        self.cut_off: list[str] = []
        #: when set, the store fails with it
        self.failure: ZchunkError | None = None
        self._next_id = 0

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Work):
                self.works.append(action)
            elif isinstance(action, Reply):
                self.replies.setdefault((action.connection, action.request_id), []).append(action.message)
                self.log.append("reply")
            elif isinstance(action, CutOff):
                self.cut_off.append(action.peer_id)
                self.log.append("cut off")
            elif isinstance(action, LookAtMembers):
                self.look_at_members()
            else:
                self._published(action)

    def look_at_members(self) -> None:
        """As the shell does at each tick, and when a command says that it has changed the list."""
        with suppress(StorageFailure):
            self.perform(self.core.members_changed(self.membership.refresh(), read(self.clock)))

    def _published(self, action: Publish) -> None:
        event = action.event
        last = self.events[-1].seq if self.events else 0
        assert event.seq == last + (event.topic != "tick"), "a number left out, or given twice"
        assert event.epoch == self.core.events.epoch
        self.events.append(event)
        if event.topic != "tick":
            self.log.append(event.topic)

    def work(self, count: int = 1000) -> None:
        """The store's thread runs up to `count` Works; each one's actions are carried out."""
        while self.works and count:
            count -= 1
            self.log.append("work")
            work = self.works.popleft()
            value, error = None, self.failure
            if error is None:
                try:
                    value = work.run(self.store)
                except ZchunkError as problem:
                    error = problem
            self.perform(work.then(value, error, read(self.clock)))

    def send(self, name: str | None, message: Message, connection: bytes = b"") -> int:
        """`name` asks; returns the request id. Works are left to `work`."""
        self._next_id += 1
        self.perform(self._handle(name, message, self._next_id, connection))
        return self._next_id

    def _handle(self, name: str | None, message: Message, request_id: int, connection: bytes) -> list[Action]:
        sender = Sender(
            connection or (name or "").encode(), None if name is None else peer_id(name), "10.0.0.7"
        )
        return self.core.handle(sender, request_id, message, read(self.clock))

    def direct(self, name: str, message: Message) -> list[Action]:
        """What the core answers before any Work is done; carried out as well."""
        self._next_id += 1
        actions = self._handle(name, message, self._next_id, b"")
        self.perform(actions)
        return actions

    def answer(self, name: str, request_id: int, connection: bytes = b"") -> Message | None:
        replies = self.replies.get((connection or name.encode(), request_id), [])
        assert len(replies) <= 1, "a request with two answers"
        return replies[0] if replies else None

    def ask(self, name: str, message: Message, connection: bytes = b"") -> Any:
        """Ask, let the store work, and return the answer."""
        request_id = self.send(name, message, connection)
        self.work()
        reply = self.answer(name, request_id, connection)
        assert reply is not None, "no answer"
        return reply

    def refused(self, name: str, message: Message) -> str:
        reply = self.ask(name, message)
        assert isinstance(reply, ErrorReply), reply
        return reply.code

    def advance(self, seconds: float) -> None:
        """Time passes in a loop that is never late."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end - 1e-9:
            self.clock.advance(min(0.25, end - self.clock.monotonic()))
            self.perform(self.core.advance(read(self.clock)))
            self.work()

    def up(self, *names: str) -> None:
        for name in names:
            assert isinstance(self.ask(name, hello()), Welcome)

    def topics(self) -> list[str]:
        return [event.topic for event in self.events if event.topic != "tick"]

    def statuses(self) -> dict[str, str]:
        snapshot = self.ask("observer", GetSnapshot())
        return {record.name: record.status for record in snapshot.peers}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.store.close()


def hello(incarnation: int = 1, held: Sequence[bytes] = (), **other: Any) -> Hello:
    values: dict[str, Any] = {
        "incarnation": incarnation,
        "instance": "0" * 16,
        "bound": "*",
        "port": 7700,
        "advertise": (),
        "interfaces": (),
        "capacity": 10**9,
        "free": 10**9,
        "chunks": len(held),
        "inventory_digest": inventory_digest(list(held)),
        "refuses": "",
    }
    return Hello(**{**values, **other})


def beat(incarnation: int = 1, **other: Any) -> Heartbeat:
    values: dict[str, Any] = {
        "free": 5,
        "chunks": 0,
        "load": 0.0,
        "store_online": True,
        "files_unknown": 0,
        "refuses": "",
    }
    return Heartbeat(**{"incarnation": incarnation, **values, **other})


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def joined(numbers: Sequence[int]) -> bytes:
    return b"".join(digest(number) for number in numbers)


def make_file(name: str = "film", chunks: Sequence[int] = (1, 2)) -> Manifest:
    rows = tuple(ChunkRow(CHUNK, "identity", digest(n), digest(n), None) for n in chunks)
    return Manifest(name, len(chunks) * CHUNK, digest(99), CHUNK, rows)


def commit(manifest: Manifest | None = None, **other: Any) -> Commit:
    values: dict[str, Any] = {"upload_id": UPLOAD, "replicas": 1, "min_peers": 2, "distribute": True}
    file = manifest or make_file()
    return Commit(**{**values, "file_id": file.file_id, "manifest": file.canonical, **other})


def plan(**other: Any) -> Plan:
    values: dict[str, Any] = {
        "upload_id": UPLOAD,
        "size": 4 * CHUNK,
        "chunk_size": CHUNK,
        "distribute": True,
        "replicas": 1,
        "min_peers": 2,
        "strategy": "round_robin",
        "own_peer": None,
        "avoid": (),
        "held_peers": (),
        "only": b"",
        "held": b"",
    }
    return Plan(**{**values, **other})


def stored(cluster: Cluster, name: str, numbers: Sequence[int], upload_id: str = UPLOAD) -> None:
    assert cluster.ask(name, Stored(upload_id=upload_id, hashes=joined(numbers))) == Ok()


def distributed(cluster: Cluster, manifest: Manifest | None = None) -> str:
    """A committed file with chunk 1 on A and chunk 2 on B."""
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    reply = cluster.ask("client", commit(manifest))
    assert isinstance(reply, Committed)
    return reply.file.file_id


# -- who may ask what ------------------------------------------------------------------------

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


# -- join --------------------------------------------------------------------------------------------


def with_token(cluster: Cluster, role: str = "node", expires_s: float = 60.0) -> None:
    expires_ms = int((cluster.clock.wall() + expires_s) * 1000)
    cluster.membership.add_token(key("token"), role, expires_ms, once=False)


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


# -- commit, then reply, then publish --------------------------------------------------------------------


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


# -- presence ---------------------------------------------------------------------------------------------


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


# -- plans -------------------------------------------------------------------------------------------------


def test_a_plan_names_peers_that_are_up(cluster: Cluster) -> None:
    cluster.up("A", "B", "C")
    cluster.ask("C", Goodbye(incarnation=1))
    reply = cluster.ask("client", plan())
    assert isinstance(reply, Planned)
    assert {peer.name for peer in reply.peers} == {"A", "B"}
    assert sorted(columns.unpack(2, reply.assignment)) == [0, 0, 1, 1]


def test_too_few_peers_are_said(cluster: Cluster) -> None:
    cluster.up("A")
    reply = cluster.ask("client", plan())
    assert isinstance(reply, ErrorReply)
    assert reply.code == "too_few_peers"
    assert "1 peer online (A)" in reply.message


FAILED = "writing /srv/store failed: Input/output error; check the disk, then restart the node"


def test_a_node_that_takes_no_chunks_gets_none_and_says_why(cluster: Cluster) -> None:
    """Not "no room", nor that files are to be removed: it has room, and nothing can be written."""
    cluster.up("A", "B", "C")
    cluster.ask("A", beat(1, free=0, refuses=FAILED))
    reply = cluster.ask("client", plan())
    assert isinstance(reply, Planned)
    assert {peer.name for peer in reply.peers} == {"B", "C"}
    refused = cluster.ask("client", plan(replicas=3))
    assert isinstance(refused, ErrorReply)
    assert refused.code == "too_few_peers"
    assert refused.message == (
        f"it takes 3 peers, and B, C can take chunks now; A is up, but refuses: {FAILED}"
    )
    row = {"peer_id": peer_id("A"), "name": "A", "reason": FAILED}
    assert refused.details == {"online": ["B", "C"], "needed": 3, "refusing": [row]}
    refused = cluster.ask("client", plan(replicas=3, avoid=(peer_id("A"),)))
    assert isinstance(refused, ErrorReply)
    assert "refuses" not in refused.message, "the client knows of it"


def test_without_room_elsewhere_a_node_that_takes_no_chunks_is_named(cluster: Cluster) -> None:
    cluster.up("A")
    for name in ("B", "C"):
        cluster.ask(name, hello(free=CHUNK))
    cluster.ask("A", beat(1, free=0, refuses=FAILED))
    refused = cluster.ask("client", plan())
    assert isinstance(refused, ErrorReply)
    assert refused.code == "no_space"
    assert refused.message.startswith("no room for the file: ")
    assert refused.message.endswith(f"); A is up, but refuses: {FAILED}")
    assert "remove files" not in refused.message


def test_that_a_node_takes_no_chunks_is_told_when_it_changes(cluster: Cluster) -> None:
    cluster.up("A", "B")
    before = cluster.core.events.seq

    def told() -> list[tuple[str, str]]:
        events = [e for e in cluster.core.events.history if e.seq > before]
        return [(e.topic, e.fields["peer"]["refuses"]) for e in events]

    for _ in range(2):
        cluster.ask("A", beat(1, refuses=FAILED))
    assert told() == [("peer.updated", FAILED)]
    assert cluster.refused("client", plan()) == "too_few_peers"
    cluster.ask("A", beat(1))
    assert told()[1:] == [("peer.updated", "")]
    assert isinstance(cluster.ask("client", plan(size=CHUNK, distribute=False)), Planned)
    cluster.ask("A", beat(1, refuses=FAILED))
    cluster.ask("A", hello(2))
    assert {r.name: r.refuses for r in cluster.ask("observer", GetSnapshot()).peers} == {"A": "", "B": ""}


def test_two_uploads_do_not_count_on_the_same_free_space(cluster: Cluster) -> None:
    for name in NODES[:2]:
        cluster.ask(name, hello(free=3 * CHUNK))
    assert isinstance(cluster.ask("client", plan()), Planned)
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    assert cluster.ask("client", Abandon(upload_id=UPLOAD)) == Ok()
    assert isinstance(cluster.ask("client", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_an_uploads_own_promise_does_not_stand_in_its_way(cluster: Cluster) -> None:
    for name in NODES[:2]:
        cluster.ask(name, hello(free=3 * CHUNK))
    for _ in range(3):
        assert isinstance(cluster.ask("client", plan()), Planned)


def test_whoever_takes_a_chunk_has_room_for_the_manifest_too(cluster: Cluster) -> None:
    """Else it takes its chunks, refuses the manifest, and all of them go elsewhere."""
    file = make_file(chunks=(1, 2, 3, 4))
    kept = kept_bytes(len(file.canonical))
    for free, expected in ((2 * CHUNK + kept, [2, 2]), (2 * CHUNK + kept - 1, [1, 3])):
        cluster.ask("A", hello(1, free=free))
        cluster.ask("B", hello(1, free=100 * CHUNK))
        reply = cluster.ask("client", plan())
        assert isinstance(reply, Planned)
        places = Counter(reply.peers[at].name for at in columns.unpack(2, reply.assignment))
        assert [places["A"], places["B"]] == expected
        cluster.ask("client", Abandon(upload_id=UPLOAD))


def test_two_uploads_do_not_count_on_the_same_room_for_manifests(cluster: Cluster) -> None:
    kept = kept_bytes(expected_bytes(4))
    for name in NODES[:2]:
        cluster.ask(name, hello(free=4 * CHUNK + 2 * kept - 1))
    assert isinstance(cluster.ask("client", plan()), Planned)
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"


def test_a_plan_for_single_chunks_adds_to_the_copies_that_stay(cluster: Cluster) -> None:
    cluster.up("A", "B", "C")
    reply = cluster.ask(
        "client",
        plan(
            replicas=2,
            only=columns.pack(4, [1, 3]),
            held_peers=(peer_id("A"),),
            held=columns.pack(2, [0, columns.NOBODY, 0, columns.NOBODY]),
        ),
    )
    assert isinstance(reply, Planned)
    rows = columns.rows(columns.unpack(2, reply.assignment), 2)
    names = [[reply.peers[at].name for at in row if at != columns.NOBODY] for row in rows]
    assert [len(row) for row in names] == [1, 1]
    assert {name for row in names for name in row} <= {"B", "C"}


@pytest.mark.parametrize(
    "strange",
    [
        {"only": columns.pack(4, [4])},
        {"only": b"xyz"},
        {"only": columns.pack(4, [0]), "held": b""},
        {"only": columns.pack(4, [0]), "held": columns.pack(2, [0])},
        {"only": columns.pack(4, [0]), "held": columns.pack(2, [columns.NOBODY] * 2)},
        {"only": columns.pack(4, [0]), "held": b"x"},
        {"size": 2**63 - 1, "chunk_size": CHUNK},
        {"size": 2**63 - 1, "chunk_size": 1},
        {"size": (MAX_NEW_CHUNKS + 1) * CHUNK},
        {"replicas": MAX_COPIES},
        {"min_peers": MAX_COPIES},
        {"avoid": tuple(peer_id(name) for name in NODES)},
    ],
)
def test_a_strange_plan_is_refused(cluster: Cluster, strange: dict[str, Any]) -> None:
    cluster.up("A", "B")
    assert cluster.refused("client", plan(**strange)) in {"malformed", "too_few_peers", "no_space", "usage"}


@pytest.mark.parametrize(
    "question",
    [FindChunks(hashes=b""), Locate(name_or_id="film", unique=False), ListFiles(page="")],
    ids=lambda question: question.TYPE,
)
def test_members_take_turns_at_what_they_may_ask_much_of(cluster: Cluster, question: Request) -> None:
    cluster.send("client", question)
    assert [work.reads for work in cluster.works] == [True]


def test_holders_that_are_up_are_found_chunk_by_chunk(cluster: Cluster) -> None:
    """U7: of any file, or of none."""
    cluster.up("A", "B", "C")
    stored(cluster, "A", [1])
    stored(cluster, "B", [1, 2], OTHER_UPLOAD)
    stored(cluster, "C", [2, 3])
    cluster.ask("C", Goodbye(incarnation=1))
    reply = cluster.ask("client", FindChunks(hashes=joined([3, 1, 2])))
    assert isinstance(reply, ChunksFound)
    assert list(columns.unpack(2, reply.holder_counts)) == [0, 2, 1]
    names = [reply.peers[at].name for at in columns.unpack(2, reply.holder_peers)]
    assert (sorted(names[:2]), names[2]) == (["A", "B"], "B")
    assert {peer.status for peer in reply.peers} == {"up"}
    cluster.ask("B", beat(1, store_online=False))
    reply = cluster.ask("client", FindChunks(hashes=joined([1, 2])))
    assert list(columns.unpack(2, reply.holder_counts)) == [1, 0], "B's disk is unplugged"


@pytest.mark.parametrize("hashes", [bytes(31), bytes(32 * (MAX_FIND + 1))], ids=["odd", "too many"])
def test_strange_questions_for_chunks_are_refused(cluster: Cluster, hashes: bytes) -> None:
    request_id = cluster.send("client", FindChunks(hashes=hashes))
    assert not cluster.works, "refused before the database is asked"
    assert cluster.answer("client", request_id).code == "malformed"  # type: ignore[union-attr]


#: of a file of 4 chunks
KEPT = kept_bytes(expected_bytes(4))


def full_but_for_one_file(cluster: Cluster) -> None:
    """A has 4 chunks free, B and C have none: a file of 4 chunks fits once."""
    for name in NODES[:2]:
        cluster.ask(name, hello(free=2 * CHUNK + KEPT))


def test_space_of_an_upload_that_was_killed_is_free_for_the_same_put_at_once(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    for name in NODES[:2]:
        cluster.ask(name, beat(free=CHUNK + KEPT, chunks=1))
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    again = plan(upload_id=OTHER_UPLOAD)
    assert cluster.refused("A", again) == "no_space", "another member's"
    assert isinstance(cluster.ask("client", again, b"second"), Planned)


def test_and_for_others_when_it_did_not_come_back(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    beats(cluster, GONE_S)
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def beats(cluster: Cluster, seconds: float, free: int = 2 * CHUNK + KEPT) -> None:
    """So long the nodes say that they are there."""
    for _ in range(int(seconds)):
        cluster.advance(1.0)
        for name in NODES[:2]:
            cluster.ask(name, beat(free=free))


def test_an_upload_that_renews_by_another_connection_keeps_its_space(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    cluster.ask("A", Renew(upload_id=UPLOAD), b"elsewhere")
    beats(cluster, GONE_S - 5)
    assert cluster.ask("client", Renew(upload_id=UPLOAD), b"second") == Ok()
    beats(cluster, 2 * GONE_S)
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD)) == "no_space"


def test_an_upload_whose_connection_stands_keeps_its_space(cluster: Cluster) -> None:
    """It may wait for a peer, or for an answer of who started it."""
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    for _ in range(3):
        beats(cluster, SILENT_S / 2)
        cluster.ask("client", beat(0, free=0), b"first")
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    beats(cluster, SILENT_S)
    assert isinstance(cluster.ask("client", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_space_of_a_revoked_member_is_free_at_once(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan())
    late = cluster.send("client", plan(upload_id="c" * 32))
    cluster.membership.revoke(peer_id("client"))
    cluster.look_at_members()
    cluster.work()
    assert cluster.answer("client", late).code in {"no_space", "not_allowed"}  # type: ignore[union-attr]
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_a_plan_that_was_made_when_its_member_was_revoked_is_no_promise(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    late = cluster.send("client", plan())
    cluster.membership.revoke(peer_id("client"))
    cluster.look_at_members()
    cluster.work()
    assert cluster.answer("client", late).code == "not_allowed"  # type: ignore[union-attr]
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_a_plan_for_all_there_is_leaves_others_their_share(cluster: Cluster) -> None:
    free = 8 * CHUNK + 2 * kept_bytes(expected_bytes(16))
    for name in NODES[:2]:
        cluster.ask(name, hello(free=free))
    assert isinstance(cluster.ask("client", plan(size=16 * CHUNK)), Planned)
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD, size=8 * CHUNK)) == "no_space"
    for _ in range(int(STUCK_S / 60)):
        beats(cluster, 60, free)
        cluster.ask("client", beat(0, free=0))
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD, size=9 * CHUNK)) == "no_space"
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD, size=8 * CHUNK)), Planned)


# -- commit ------------------------------------------------------------------------------------------------


def test_a_file_is_visible_when_every_chunk_is_confirmed(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    event = cluster.events[-1]
    assert (event.topic, event.fields["file_id"], event.fields["is_distributed"]) == (
        "file.distributed",
        file_id,
        True,
    )
    assert [file.file_id for file in cluster.ask("observer", ListFiles(page="")).files] == [file_id]


def test_a_commit_waits_for_a_report_that_is_on_its_way(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    assert isinstance(cluster.ask("client", Locate(name_or_id="film", unique=False)), ErrorReply)
    cluster.log.clear()
    stored(cluster, "B", [2])
    assert cluster.log == ["work", "reply", "work", "reply", "file.distributed"]
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_a_report_that_overtakes_the_commits_refusal_is_not_missed(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    request_id = cluster.send("client", commit())
    cluster.send("B", Stored(upload_id=UPLOAD, hashes=joined([2])))
    cluster.work()
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_a_commit_waits_for_a_peer_that_comes_back(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    cluster.perform(cluster.core.connection_gone(b"B", read(cluster.clock)))
    cluster.work()
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    cluster.ask("B", hello(2, held=[digest(2)]))
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_patience_ends(cluster: Cluster) -> None:
    cluster.up("A", "B")
    request_id = cluster.send("client", commit())
    cluster.work()
    for _ in range(4):
        cluster.advance(1.0)
        cluster.ask("A", beat())
        cluster.ask("B", beat())
    stored(cluster, "A", [1])
    assert cluster.answer("client", request_id) is None
    cluster.advance(1.1)
    reply = cluster.answer("client", request_id)
    assert isinstance(reply, ErrorReply)
    assert reply.code == "not_yet_stored"
    assert reply.details["first_missing"] == (1,) or reply.details["first_missing"] == [1]
    assert not cluster.core.uploads._parked


def test_asking_again_does_not_lengthen_the_patience(cluster: Cluster) -> None:
    cluster.up("A", "B")
    request_id = cluster.send("client", commit())
    cluster.work()
    for _ in range(12):
        cluster.advance(0.5)
        cluster.perform(cluster._handle("client", commit(), request_id, b""))
        cluster.work()
        if cluster.answer("client", request_id) is not None:
            break
    assert isinstance(cluster.answer("client", request_id), ErrorReply)


def test_a_commit_is_answered_the_same_again_and_told_once(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    reply = cluster.ask("client", commit())
    assert isinstance(reply, Committed)
    assert (reply.already, reply.file.file_id) == (True, file_id)
    assert cluster.topics().count("file.distributed") == 1


def test_a_commit_with_chunks_on_too_few_peers_is_refused_at_once(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1, 2])
    assert cluster.refused("client", commit()) == "too_few_peers"


def test_copies_on_peers_that_are_down_do_not_count(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    cluster.ask("B", Goodbye(incarnation=1))
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    assert "file.distributed" not in cluster.topics()


@pytest.mark.parametrize("manifest", [b"", b"nonsense", make_file().canonical + b"\0"])
def test_what_is_no_manifest_is_refused(cluster: Cluster, manifest: bytes) -> None:
    cluster.up("A", "B")
    assert cluster.refused("client", replace(commit(), manifest=manifest)) == "manifest_invalid"


# -- files, garbage ----------------------------------------------------------------------------------------


def test_locate_tells_who_holds_what(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    for asked in ("film", file_id, file_id[:8]):
        reply = cluster.ask("observer", Locate(name_or_id=asked, unique=True))
        assert isinstance(reply, Located)
        where = location(reply, asked)
        assert where.manifest == make_file()
        assert where.holder_ids() == [[peer_id("A")], [peer_id("B")]]
        assert {record.name for record in where.peers.values()} == {"A", "B"}


def test_what_is_not_there_is_not_found(cluster: Cluster) -> None:
    assert cluster.refused("client", Locate(name_or_id="film", unique=False)) == "not_found"
    assert cluster.refused("client", Remove(file_id="0" * 64)) == "not_found"
    assert cluster.ask("client", ListFiles(page="")) == Files(files=(), next_page="")
    assert cluster.refused("client", ListFiles(page="nonsense")) == "malformed"


def test_a_removal_is_told_once_and_answered_the_same_again(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    first = cluster.ask("client", Remove(file_id=file_id))
    assert isinstance(first, Removed)
    assert cluster.ask("client", Remove(file_id=file_id)) == first
    assert cluster.topics().count("file.removed") == 1
    removals = cluster.ask("A", GetRemovals(since=0))
    assert isinstance(removals, Removals)
    assert (removals.file_ids, removals.commit_number) == ((file_id,), first.commit_number)


def test_a_node_may_delete_only_what_no_file_names(cluster: Cluster) -> None:
    distributed(cluster)
    stored(cluster, "A", [5])
    reply = cluster.ask("A", Release(hashes=joined([1, 5])))
    assert isinstance(reply, Released)
    assert bytes(reply.hashes) == joined([5])
    assert reply.store_id == cluster.store.store_id
    assert cluster.store.inventory_summary(peer_id("A"))[0] == 1


# -- the tracker's own disk ----------------------------------------------------------------------


FULL = NoSpace("no space on the disk of /srv/tracker.sqlite", path="/srv/tracker.sqlite")


def told(cluster: Cluster, name: str, error: ZchunkError | None) -> None:
    """A node says what it stored; the tracker's store fails with that meanwhile."""
    cluster.failure = error
    cluster.ask(name, Stored(upload_id=UPLOAD, hashes=joined([1, 2])))
    cluster.failure = None


def test_a_commit_whose_copies_could_not_be_noted_ends_with_the_cause(cluster: Cluster) -> None:
    cluster.up("A", "B")
    told(cluster, "A", FULL)
    reply = cluster.ask("client", commit(make_file(), min_peers=1, distribute=False))
    assert (reply.code, reply.details) == ("no_space", {}), "at once, not as copies that nobody has"
    assert "tracker's disk" in reply.message
    assert "/srv" not in reply.message
    told(cluster, "A", None)
    assert isinstance(cluster.ask("client", commit(make_file(), min_peers=1, distribute=False)), Committed)


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_commit_waits_for_copies_that_are_told_again(cluster: Cluster, ends_well: bool) -> None:
    """The database was locked for a moment, or longer."""
    cluster.up("A", "B")
    told(cluster, "A", Busy("/srv/tracker.sqlite is locked", path="/srv/tracker.sqlite"))
    asked = cluster.send("client", commit(make_file(), min_peers=1, distribute=False))
    cluster.work()
    assert cluster.answer("client", asked) is None
    if ends_well:
        told(cluster, "A", None)
        assert isinstance(cluster.answer("client", asked), Committed)
    else:
        for _ in range(6):
            cluster.advance(1.0)
            cluster.ask("A", beat())
        assert cluster.answer("client", asked).code == "busy"  # type: ignore[union-attr]


def test_an_upload_is_not_begun_on_a_full_disk(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FULL

    cluster.up("A", "B")
    monkeypatch.setattr(cluster.store, "check_space", refuse)
    reply = cluster.ask("client", plan())
    assert (reply.code, "/srv" in reply.message) == ("no_space", False)


def test_the_welcome_names_the_newest_commit(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    assert cluster.ask("C", hello()).commit_number == 1
    cluster.ask("client", Remove(file_id=file_id))
    assert cluster.ask("C", hello()).commit_number == 2


def test_a_node_is_told_which_of_its_manifests_are_files(cluster: Cluster) -> None:
    """One that was removed is none, and yet known: nothing was lost, and it may go."""
    known = distributed(cluster)
    removed = distributed(cluster, make_file("removed"))
    cluster.ask("client", Remove(file_id=removed))
    asked = [digest(77), bytes.fromhex(removed), bytes.fromhex(known)]
    reply = cluster.ask("A", FindFiles(file_ids=b"".join(asked)))
    assert isinstance(reply, FilesFound)
    assert (reply.store_id, reply.commit_number) == (cluster.store.store_id, 3)
    assert (bytes(reply.file_ids).hex(), bytes(reply.removed).hex()) == (known, removed)
    cluster.ask("client", commit(make_file("removed")))
    again = cluster.ask("A", FindFiles(file_ids=bytes.fromhex(removed)))
    assert (bytes(again.file_ids).hex(), bytes(again.removed)) == (removed, b""), "it was put again"
    assert cluster.refused("A", FindFiles(file_ids=bytes(32) * 4097)) == "malformed"


def test_a_node_with_unknown_files_is_an_error_in_the_log_and_news(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.up("A", "B")

    def shown() -> dict[str, int]:
        return {r.name: r.files_unknown for r in cluster.ask("observer", GetSnapshot()).peers}

    for count in (3, 3, 2):
        cluster.ask("A", beat(1, files_unknown=count))
    assert shown() == {"A": 2, "B": 0}
    assert cluster.topics().count("peer.updated") == 2
    cluster.ask("A", hello(1))
    assert shown() == {"A": 2, "B": 0}, "of a hello it is not known yet"
    cluster.ask("A", beat(1))
    assert shown() == {"A": 0, "B": 0}
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.message.startswith("A holds chunks of 3 files that this tracker does not know")


def test_what_a_node_lost_is_located_there_no_more(cluster: Cluster) -> None:
    distributed(cluster)
    cluster.ask("A", Lost(hashes=joined([1])))
    where = location(cluster.ask("client", Locate(name_or_id="film", unique=False)), "film")
    assert where.holder_ids() == [[], [peer_id("B")]]


# -- damaged copies (SPEC D8) ------------------------------------------------------------------------


def report(number: int = 1, at: str = "A") -> ReportCorrupt:
    return ReportCorrupt(peer_id=peer_id(at), sha256=digest(number))


def holders(cluster: Cluster) -> list[list[str]]:
    return location(cluster.ask("client", Locate(name_or_id="film", unique=False)), "film").holder_ids()


def doubts(cluster: Cluster, name: str) -> bytes:
    reply = cluster.ask(name, GetDoubts())
    assert isinstance(reply, Doubts)
    return bytes(reply.hashes)


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


# -- memory of a node that somebody keeps ---------------------------------------------------------


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


# -- health of files (SPEC I1, R9) -------------------------------------------------------------------


def health_events(cluster: Cluster) -> list[tuple[str, str]]:
    return [(e.topic, e.fields["health"]) for e in cluster.events if e.topic in TOPICS]


def lasting(cluster: Cluster, seconds: float, *names: str) -> None:
    """Time passes, and these nodes stay up."""
    for _ in range(int(seconds / 0.5)):
        cluster.advance(0.5)
        for name in names:
            cluster.ask(name, beat())


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


# -- any order ---------------------------------------------------------------------------------------

names = st.sampled_from(NODES)
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


# -- limits on what a member makes the tracker hold (SPEC S4) ------------------------------------------


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
