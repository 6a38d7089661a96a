"""A tracker and a node, asked anything by anyone in any order (SPEC S4): each request gets one
answer that can be read, nothing else is raised, and what is held meanwhile has an end."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.fuzz.shells import (
    CHUNKS,
    CONNECTIONS,
    HASHES,
    NAMES,
    REQUESTS,
    UPLOADS,
    NodeShell,
    TrackerShell,
    peer_id,
    requests,
)
from tests.strategies import damaged
from zchunk.content import hashing
from zchunk.limits.admission import MAX_REQUESTS
from zchunk.node.serving.scheduler import MAX_ASKS, MAX_WAITING
from zchunk.protocol import wire
from zchunk.protocol.messages import (
    Acknowledge,
    Commit,
    Conclude,
    Files,
    GetBlock,
    GetSnapshot,
    Hello,
    Inventory,
    ListFiles,
    Offer,
    PutBlock,
    PutManifest,
    Snapshot,
)
from zchunk.transport.base import Delivery

OFTEN = (GetBlock, Acknowledge, Offer, PutBlock, PutManifest, Conclude)
steps = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class _Asked(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.folder = Path(tempfile.mkdtemp())
        self.asked: set[tuple[bytes, int]] = set()
        self.shell: TrackerShell | NodeShell

    @rule(message=requests(), data=st.data())
    def damage(self, message: object, data: st.DataObject) -> None:
        """On a connection of its own: what it is answered under, nobody knows."""
        frames = [bytes(frame) for frame in wire.encode(message, 2**40)]  # type: ignore[arg-type]
        frames[0] = data.draw(damaged(frames[0]))
        self.shell.hand_in(frames, b"damaged")

    @rule(count=st.integers(1, 5))
    def work(self, count: int) -> None:
        self.shell.work(count)

    @rule(seconds=st.sampled_from((0.0, 0.3, 1.0, 4.0, 31.0)))
    def time(self, seconds: float) -> None:
        self.shell.advance(seconds)

    @rule(delivery=st.sampled_from((Delivery.SENT, Delivery.SENT, Delivery.FULL, Delivery.GONE)))
    def line(self, delivery: Delivery) -> None:
        self.shell.delivery = delivery

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        for asked, answers in self.shell.answers.items():
            if asked in self.asked:
                assert len(answers) == 1

    def teardown(self) -> None:
        self.shell.store.close()
        shutil.rmtree(self.folder)
        logging.disable(logging.NOTSET)


class Tracker(_Asked):
    def __init__(self) -> None:
        super().__init__()
        self.shell: TrackerShell = TrackerShell(self.folder)

    @rule(name=st.sampled_from((*NAMES, None)), connection=st.sampled_from(CONNECTIONS), message=requests())
    def ask(self, name: str | None, connection: bytes, message: object) -> None:
        claim = None if name is None else peer_id(name)
        self.asked.add((connection, self.shell.ask(message, connection, claim)))  # type: ignore[arg-type]

    @rule(name=st.sampled_from(NAMES[:2]), connection=st.sampled_from(CONNECTIONS))
    def arrive(self, name: str, connection: bytes) -> None:
        """So that there is a node of which things are true."""
        hello = Hello(
            incarnation=3,
            instance="0" * 16,
            bound="*",
            port=7710,
            advertise=(),
            interfaces=("10.0.0.9",),
            capacity=10**12,
            free=10**12,
            chunks=len(HASHES),
            inventory_digest=hashing.inventory_digest(list(HASHES)),
            refuses="",
        )
        self.asked.add((connection, self.shell.ask(hello, connection, peer_id(name))))
        self.shell.work()
        page = Inventory(page=0, last=True, hashes=b"".join(sorted(HASHES)))
        self.asked.add((connection, self.shell.ask(page, connection, peer_id(name))))

    @invariant()
    def what_is_held_ends(self) -> None:
        server, core = self.shell.server, self.shell.core
        assert server._outstanding.requests <= len(self.shell.works)
        assert len(core.uploads._parked) <= 10
        assert set(core.presence.inventories._pages) <= {peer_id("A"), peer_id("B")}
        assert len(core.promises) <= 100

    def teardown(self) -> None:
        self.shell.delivery = Delivery.SENT
        for _ in range(4):
            self.shell.work()
            self.shell.advance(2.0)
        self.shell.work()  # the last turn of time may have asked for some
        assert not self.shell.works
        assert not self.shell.server._outstanding.requests
        assert not self.shell.core.uploads._parked
        super().teardown()


class Node(_Asked):
    def __init__(self) -> None:
        super().__init__()
        self.shell: NodeShell = NodeShell(self.folder / "store")
        for number in (1, 2):
            data = CHUNKS[number]
            self.shell.store.put(HASHES[number], hashing.blake3(data), data, UPLOADS[0])

    @rule(connection=st.sampled_from(CONNECTIONS), message=requests((*OFTEN, *REQUESTS)))
    def ask(self, connection: bytes, message: object) -> None:
        self.asked.add((connection, self.shell.ask(message, connection)))  # type: ignore[arg-type]

    @rule(connection=st.sampled_from(CONNECTIONS), number=st.integers(0, 3), upload=st.sampled_from(UPLOADS))
    def send_a_chunk(self, connection: bytes, number: int, upload: str) -> None:
        """As an honest client does, among all the others."""
        data = CHUNKS[number]
        offer = Offer(upload_id=upload, sha256=HASHES[number], blake3=hashing.blake3(data), size=len(data))
        self.asked.add((connection, self.shell.ask(offer, connection)))
        self.shell.work()
        block = PutBlock(upload_id=upload, sha256=HASHES[number], offset=0, data=data)
        self.asked.add((connection, self.shell.ask(block, connection)))

    @invariant()
    def what_is_held_ends(self) -> None:
        service = self.shell.service
        incoming, outgoing = service._incoming, service._outgoing
        assert service._pool.reserved <= incoming.most
        admitted = {key for key, chunk in incoming._admissions.items() if chunk.admitted}
        assert set(service._buffers) <= admitted
        assert sum(incoming._offered.values()) == len(incoming._admissions)
        assert all(len(chunk.asks) <= MAX_ASKS for chunk in incoming._admissions.values())
        assert all(chunk.received == sum(chunk.blocks.values()) for chunk in incoming._admissions.values())
        assert all(r.reading >= 0 for r in outgoing._receivers.values())
        assert all(len(r.waiting) + r.reading <= MAX_WAITING for r in outgoing._receivers.values())
        waiting = len(service._storing._turns) + len(service._reading._turns)
        assert service._outstanding.requests <= len(self.shell.works) + waiting

    @invariant()
    def what_is_stored_is_right(self) -> None:
        for sha256 in self.shell.stored:
            assert sha256 in HASHES

    def teardown(self) -> None:
        self.shell.delivery = Delivery.SENT
        for _ in range(4):
            self.shell.work()
            self.shell.advance(31.0)
        self.shell.work()
        service = self.shell.service
        assert not self.shell.works
        assert not service._outstanding.requests
        assert service._pool.reserved == 0, "who went silent holds no memory"
        assert not service._incoming._admissions
        assert not service._outgoing._receivers
        for sha256 in HASHES:
            if self.shell.store.has(sha256):
                assert self.shell.store.verify(sha256)
        super().teardown()


TestTracker = Tracker.TestCase
TestTracker.settings = steps
TestNode = Node.TestCase
TestNode.settings = steps


def test_a_member_that_does_not_wait_for_answers_is_told_to(tmp_path: Path) -> None:
    shell = TrackerShell(tmp_path)
    asked = [shell.ask(ListFiles(page=""), b"1", peer_id("client")) for _ in range(MAX_REQUESTS + 20)]
    other = shell.ask(ListFiles(page=""), b"2", peer_id("observer"))
    shell.work()
    codes = [getattr(shell.answers[b"1", request_id][0], "code", "") for request_id in asked]
    assert codes == [""] * MAX_REQUESTS + ["busy"] * 20
    assert isinstance(shell.answers[b"2", other][0], Files)
    again = shell.ask(ListFiles(page=""), b"1", peer_id("client"))
    shell.work()
    assert isinstance(shell.answers[b"1", again][0], Files)
    assert shell.server.refused == 20
    shell.store.close()


def test_a_request_that_meets_a_bug_is_held_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = TrackerShell(tmp_path)

    def broken(*_: object) -> NoReturn:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr(shell.core, "handle", broken)
    for _ in range(MAX_REQUESTS + 1):
        with pytest.raises(KeyError):
            shell.ask(ListFiles(page=""), b"1", peer_id("client"))
    monkeypatch.undo()
    asked = shell.ask(ListFiles(page=""), b"1", peer_id("client"))
    shell.work()
    assert isinstance(shell.answers[b"1", asked][0], Files)
    shell.store.close()


def test_large_requests_are_held_only_so_far(tmp_path: Path) -> None:
    """Of each 6 MiB, for chunks that nobody has."""
    shell = TrackerShell(tmp_path)
    commit = Commit(
        upload_id=UPLOADS[0],
        replicas=1,
        min_peers=1,
        distribute=False,
        file_id="f" * 64,
        manifest=bytes(6 * 2**20),
    )
    asked = [shell.ask(commit, b"1", peer_id("client")) for _ in range(5)]
    beat = shell.ask(GetSnapshot(), b"1", peer_id("client"))
    assert isinstance(shell.answers[b"1", beat][0], Snapshot), "small ones pass"
    shell.work()
    codes = [getattr(shell.answers[b"1", request_id][0], "code", "") for request_id in asked]
    assert codes == ["manifest_invalid"] * 3 + ["busy"] * 2
    shell.store.close()
