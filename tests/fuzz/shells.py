"""A tracker's and a node's shell without sockets and threads: messages are handed in as frames,
work is done when told, and every answer is read as its receiver would read it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st
from msgspec.structs import replace

from tests.strategies import messages
from zchunk.clock import ManualClock, read
from zchunk.content import hashing
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import ZchunkError
from zchunk.node.serving.chunk_server import ChunkServer, HeldMemory
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.protocol import wire
from zchunk.protocol.messages import BY_TYPE, PAYLOAD_FIELDS, Message, Request
from zchunk.runtime.loop import Loop
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.server import TrackerServer
from zchunk.tracker.state.store_mark import StoreMark
from zchunk.tracker.store.store import TrackerStore
from zchunk.transport.base import Buffer, Delivery, Received
from zchunk.transport.keys import peer_id_of

REQUESTS = sorted((c for c in BY_TYPE.values() if issubclass(c, Request)), key=lambda c: c.TYPE)
NAMES = ("A", "B", "client", "observer", "stranger")
CONNECTIONS = (b"1", b"2", b"3")
#: of chunks that exist, so that questions meet answers
CHUNKS = tuple(bytes([number]) * 4096 for number in range(1, 5))
HASHES = tuple(hashing.sha256(chunk) for chunk in CHUNKS)
UPLOADS = ("1" * 32, "2" * 32)


def key(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


def peer_id(name: str) -> str:
    return peer_id_of(key(name))


def manifest_of(numbers: Sequence[int]) -> Manifest:
    rows = tuple(ChunkRow(4096, "identity", HASHES[n], hashing.blake3(CHUNKS[n]), None) for n in numbers)
    # Of one chunk each: a file's chunks are all full but the last.
    return Manifest(f"file {numbers}", 4096 * len(rows), b"s" * 32, 65536, rows)


MANIFESTS = tuple(manifest_of([number]) for number in range(len(CHUNKS)))


@st.composite
def requests(draw: st.DrawFn, classes: Sequence[type[Message]] = REQUESTS) -> Message:
    """A request that is valid by itself, mostly about things that exist."""
    message = draw(messages(draw(st.sampled_from(classes))))
    pool: dict[str, st.SearchStrategy[Any]] = {
        "upload_id": st.sampled_from(UPLOADS),
        "sha256": st.sampled_from(HASHES),
        "hashes": st.lists(st.sampled_from(HASHES), max_size=4).map(b"".join),
        "peer_id": st.sampled_from(NAMES).map(peer_id),
        "incarnation": st.integers(1, 3),
        "size": st.sampled_from((1, 4096, 65536, 10**9)),
        "chunk_size": st.sampled_from((65536, 10 * 2**20)),
        "replicas": st.integers(1, 3),
        "min_peers": st.integers(1, 3),
        "offset": st.sampled_from((0, 1, 2048, 4096)),
        "length": st.sampled_from((1, 2048, 4096)),
        "data": st.sampled_from((b"", b"x", CHUNKS[0][:2048], CHUNKS[0])),
        "blake3": st.just(hashing.blake3(CHUNKS[0])),
        "page": st.integers(0, 2) if draw(st.booleans()) else st.just(getattr(message, "page", 0)),
    }
    changes: dict[str, Any] = {}
    for name in message.__struct_fields__:
        if name in pool and draw(st.integers(0, 4)):
            value = draw(pool[name])
            if isinstance(value, type(getattr(message, name))):
                changes[name] = value
    if {"file_id", "manifest"} <= {*message.__struct_fields__}:
        manifest = draw(st.sampled_from(MANIFESTS))
        changes |= {"file_id": manifest.file_id, "manifest": manifest.canonical}
    changed: Message = replace(message, **changes)
    return changed


class _Shell:
    """The loop, the socket and the workers of what is tested."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.works: deque[tuple[Callable[[], Any], Callable[..., None]]] = deque()
        self.timed: list[Any] = []
        #: (connection, request id) -> its answers
        self.answers: dict[tuple[bytes, int], list[Message]] = {}
        self.delivery = Delivery.SENT
        #: connections that it ended
        self.ended: list[bytes] = []
        self._next_id = 0
        self.on_message: Callable[[Received], None]

    # as a loop, a socket and workers

    def add_socket(self, socket: Any, handler: Callable[[Received], None]) -> None:
        if socket is self:
            self.on_message = handler

    def add_timed(self, timed: Any) -> None:
        self.timed.append(timed)

    def on_close(self, closer: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass

    def end(self, peer_id: str) -> None:
        pass

    def end_connection(self, connection: bytes) -> None:
        self.ended.append(connection)

    def submit(self, work: Callable[[], Any], done: Callable[..., None]) -> None:
        self.works.append((work, done))

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        envelope = wire.decode([bytes(frame) for frame in frames])
        if self.delivery is Delivery.SENT and envelope.request_id:
            self.answers.setdefault((connection, envelope.request_id), []).append(envelope.message)
        return self.delivery

    # what a test does

    def hand_in(self, frames: Sequence[bytes], connection: bytes) -> None:
        self.on_message(Received(frames, connection, None, self.address(connection)))

    def address(self, connection: bytes) -> str:
        return "10.0.0.7"

    def ask(self, message: Message, connection: bytes, claim: str | None = None) -> int:
        self._next_id += 1
        frames = [bytes(frame) for frame in wire.encode(message, self._next_id, claim)]
        self.hand_in(frames, connection)
        return self._next_id

    def work(self, count: int = 10_000) -> None:
        while self.works and count:
            count -= 1
            work, done = self.works.popleft()
            try:
                value, error = work(), None
            except ZchunkError as problem:
                if type(problem) is ZchunkError:  # a bug in work that was asked for
                    raise
                value, error = None, problem
            done(value, error)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.monotonic()
        for timed in self.timed:
            at = timed.deadline()
            if at is not None and at <= now:
                timed.on_time(now)


class TrackerShell(_Shell):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        membership = Membership(folder / "members.json", self.clock)
        for name in NAMES[:4]:
            role = name if name in ("client", "observer") else "node"
            membership.add_member(key(name), name, role)
        self.store = TrackerStore.open(":memory:", self.clock)
        self.core = TrackerCore(
            members=membership,
            peers=(),
            timing=Timing(1.0, 3.0),
            epoch="e",
            mark=StoreMark(self.store.store_id, 0),
            events_at=("tcp://10.0.0.1:7701",),
            now=read(self.clock),
        )
        self.server = TrackerServer(
            core=self.core,
            router=cast(Any, self),
            publisher=cast(Any, _Publisher()),
            loop=cast(Loop, self),
            store=cast(Any, _Runner(self)),
            membership=membership,
            gate=None,
        )


class _Publisher:
    """Reads each event as its subscribers do."""

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        assert wire.decode(frames[1:]).message.TYPE == "event"
        return Delivery.SENT

    def end(self, peer_id: str) -> None:
        pass

    def end_connection(self, connection: bytes) -> None:
        pass


class _Runner:
    """The store's thread: its works are done when the test says so."""

    def __init__(self, shell: TrackerShell) -> None:
        self._shell = shell

    def submit(
        self, run: Callable[[TrackerStore], Any], done: Callable[..., None], reader: Any = None
    ) -> None:
        self._shell.submit(lambda: run(self._shell.store), lambda value, error: done((value, error)))

    def close(self) -> None:
        pass


class NodeShell(_Shell):
    BUDGET = 16 * 4096

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.store = ChunkStore.create_or_open(folder, capacity=10**6, reserve=0, clock=self.clock)
        self.stored: list[bytes] = []
        self.held: list[HeldMemory] = []
        self.service = ChunkServer(
            loop=cast(Loop, self),
            router=cast(Any, self),
            store=self.store,
            receive_chunk=lambda *chunk: self.store.put(*chunk),
            reading=cast(Any, self),
            storing=cast(Any, self),
            admitting=cast(Any, self),
            threads=2,
            send_budget=self.BUDGET,
            receive_budget=self.BUDGET,
            on_stored=lambda upload_id, sha256: self.stored.append(sha256),
            on_unreadable=lambda sha256: None,
            on_held=self.held.append,
        )

    def address(self, connection: bytes) -> str:
        return f"10.0.0.{connection.decode()}"


def payload_bytes(message: Message) -> int:
    return sum(len(getattr(message, name)) for name in PAYLOAD_FIELDS[type(message)])
