"""What tests of the tracker's core share: a core with members, without sockets or time of its own."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from zchunk.clock import ManualClock, read
from zchunk.content.hashing import inventory_digest
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import StorageFailure, ZchunkError
from zchunk.protocol.messages import (
    Commit,
    Committed,
    ErrorReply,
    Event,
    GetSnapshot,
    Heartbeat,
    Hello,
    Message,
    Ok,
    Plan,
    Stored,
    Welcome,
)
from zchunk.tracker.actions import Action, CutOff, LookAtMembers, Publish, Reply, Sender, Work
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.requests.presence import Timing
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


def with_token(cluster: Cluster, role: str = "node", expires_s: float = 60.0) -> None:
    expires_ms = int((cluster.clock.wall() + expires_s) * 1000)
    cluster.membership.add_token(key("token"), role, expires_ms, once=False)


def told(cluster: Cluster, name: str, error: ZchunkError | None) -> None:
    """A node says what it stored; the tracker's store fails with that meanwhile."""
    cluster.failure = error
    cluster.ask(name, Stored(upload_id=UPLOAD, hashes=joined([1, 2])))
    cluster.failure = None


names = st.sampled_from(NODES)
