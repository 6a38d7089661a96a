"""node/serving/chunk_server.py: what a node's shell makes of `serving/scheduler.py`'s decisions on shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.shells import CHUNKS, HASHES, UPLOADS, NodeShell
from zchunk.content import hashing
from zchunk.limits.memory_shares import HELD_S, SILENCE_S, WAITED_FOR_S
from zchunk.node.serving.chunk_server import HeldMemory
from zchunk.node.serving.scheduler import MAX_BLOCK
from zchunk.protocol.messages import (
    Acknowledge,
    Acknowledged,
    Block,
    ErrorReply,
    GetBlock,
    Message,
    Offer,
    Offered,
)

HOG, OTHER, THIRD = b"1", b"2", b"3"
_LENGTH = len(CHUNKS[0])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeShell]:
    node = NodeShell(tmp_path / "store")
    for sha256, data in zip(HASHES, CHUNKS, strict=True):
        node.store.put(sha256, hashing.blake3(data), data, UPLOADS[0])
    yield node
    node.store.close()


def block(number: int = 0) -> GetBlock:
    return GetBlock(sha256=HASHES[number], offset=0, length=_LENGTH, received=0)


def answer(node: NodeShell, connection: bytes, request: int) -> Message | None:
    return next(iter(node.answers.get((connection, request), [])), None)


def fill(node: NodeShell, connection: bytes) -> None:
    """It asks for twice as much as there is, and takes nothing."""
    for number in range(2 * NodeShell.BUDGET // _LENGTH):
        node.ask(block(number % len(HASHES)), connection)
    node.work()


def test_who_waits_for_others_hears_it_and_who_is_served_does_not(node: NodeShell) -> None:
    fill(node, HOG)
    asked = [node.ask(block(), OTHER) for _ in range(NodeShell.BUDGET // _LENGTH)]
    node.work()
    served = [isinstance(answer(node, OTHER, request), Block) for request in asked]
    assert served == [True] * 8 + [False] * 8, "its share"
    told = node.ask(Acknowledge(received=0), OTHER)
    assert answer(node, OTHER, told) == Acknowledged(busy=True)
    told = node.ask(Acknowledge(received=0), THIRD)
    assert answer(node, THIRD, told) == Acknowledged(busy=False)


def test_an_offer_that_waits_for_others_hears_it_too(node: NodeShell) -> None:
    size = NodeShell.BUDGET // 2
    for number, connection in enumerate([HOG] * 3 + [OTHER] * 2):
        sha256 = bytes([number]) * 32
        node.ask(Offer(upload_id=UPLOADS[1], sha256=sha256, blake3=sha256, size=size), connection)
    node.work()
    told = node.ask(Acknowledge(received=0), OTHER)
    assert answer(node, OTHER, told) == Acknowledged(busy=True)


def test_a_receiver_that_takes_nothing_loses_its_connection(node: NodeShell) -> None:
    """Only so is the memory free that waits in its socket."""
    fill(node, HOG)
    node.advance(SILENCE_S)
    assert node.ended == [HOG]
    assert node.service._outgoing.on_the_way == 0


def test_it_loses_it_soon_where_others_wait(node: NodeShell) -> None:
    for connection in (HOG, OTHER):
        fill(node, connection)
    assert node.ended == []
    node.advance(WAITED_FOR_S)
    assert node.ended == [HOG, OTHER]


def test_who_keeps_much_is_told_once_while_others_are_served(node: NodeShell) -> None:
    fill(node, HOG)
    node.advance(HELD_S)
    assert node.held == []
    node.ask(block(), OTHER)
    assert node.held == [HeldMemory("10.0.0.1", "downloads", NodeShell.BUDGET, NodeShell.BUDGET, HELD_S)]
    node.ask(block(), OTHER)
    assert len(node.held) == 1


def test_who_offers_much_and_sends_nothing_is_told(node: NodeShell) -> None:
    budget = NodeShell.BUDGET // 2
    for number, connection in enumerate([HOG] * 3 + [OTHER]):
        sha256 = bytes([number]) * 32
        offer = Offer(upload_id=UPLOADS[1], sha256=sha256, blake3=sha256, size=budget)
        asked = node.ask(offer, connection)
        node.work()
        assert answer(node, connection, asked) == Offered(have=False)
        if number == 2:
            node.advance(HELD_S)
            assert node.held == [], "while nobody else asks"
    assert node.held == [HeldMemory("10.0.0.1", "uploads", 3 * budget, budget, HELD_S)]


def test_a_block_larger_than_any_is_refused(node: NodeShell) -> None:
    asked = node.ask(GetBlock(sha256=HASHES[0], offset=0, length=MAX_BLOCK + 1, received=0), HOG)
    reply = answer(node, HOG, asked)
    assert isinstance(reply, ErrorReply)
    assert reply.code == "malformed"
