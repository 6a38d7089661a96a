"""node/serving/scheduler.py (DESIGN "Wire"): fairness and budgets of what a node sends and takes in."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zchunk.content.manifest import MAX_STORED_SIZE
from zchunk.errors import Busy
from zchunk.limits.memory_shares import HELD_S, SILENCE_S, STUCK_S, WAITED_FOR_S, Held
from zchunk.node.serving.scheduler import (
    MAX_ADMITTED,
    MAX_ASKS,
    MAX_BLOCKS,
    MAX_OFFERS,
    MAX_WAITING,
    Admission,
    BlockWanted,
    Incoming,
    Outgoing,
)
from zchunk.system.disk import ALIGNMENT

#: The most memory of a chunk.
LARGEST = -(-MAX_STORED_SIZE // ALIGNMENT) * ALIGNMENT
ONE, TWO, THREE, FOUR = b"one", b"two", b"three", b"four"
BLOCK = 100


def wanted(connection: bytes, request_id: int = 1, length: int = BLOCK) -> BlockWanted:
    return BlockWanted(connection, request_id, bytes(32), 0, length)


def ask(outgoing: Outgoing, connection: bytes, count: int, received: int = 0, now: float = 0.0) -> None:
    for request_id in range(count):
        outgoing.request(wanted(connection, request_id), connection, received, now)


def order(blocks: list[BlockWanted]) -> list[bytes]:
    return [block.connection for block in blocks]


# -- sending: fairness ----------------------------------------------------------------------


def test_connections_take_turns() -> None:
    outgoing = Outgoing(10_000)
    ask(outgoing, ONE, 5)
    ask(outgoing, TWO, 2)
    ask(outgoing, THREE, 1)
    assert order(outgoing.next()) == [ONE, TWO, THREE, ONE, TWO, ONE, ONE, ONE]


def test_who_asks_for_much_does_not_starve_who_comes_later() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, 1000)
    assert order(outgoing.next()) == [ONE]
    ask(outgoing, TWO, 1)
    outgoing.acknowledge(ONE, BLOCK, 1.0)
    served = order(outgoing.next())
    outgoing.acknowledge(ONE, 2 * BLOCK, 1.0)
    served += order(outgoing.next())
    assert TWO in served


def test_a_connections_own_requests_stay_in_order() -> None:
    outgoing = Outgoing(10_000)
    ask(outgoing, ONE, 5)
    assert [block.request_id for block in outgoing.next()] == [0, 1, 2, 3, 4]


def test_shares_are_even_while_all_ask() -> None:
    outgoing, served = Outgoing(3 * BLOCK), Counter[bytes]()
    for connection in (ONE, TWO, THREE):
        ask(outgoing, connection, 500)
    for _ in range(100):
        for block in outgoing.next():
            served[block.connection] += block.length
            outgoing.acknowledge(block.connection, served[block.connection], 0.0)
    assert max(served.values()) - min(served.values()) <= BLOCK
    assert sum(served.values()) >= 200 * BLOCK


def test_a_peer_may_not_pile_up_requests_without_end() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, MAX_WAITING)
    with pytest.raises(Busy):
        outgoing.request(wanted(ONE), ONE, 0, 0.0)
    outgoing.request(wanted(TWO), TWO, 0, 0.0)
    assert order(outgoing.next()) == [ONE]


# -- sending: the budget ------------------------------------------------------------------------


def test_no_more_is_on_its_way_than_the_budget() -> None:
    outgoing = Outgoing(3 * BLOCK + 50)
    ask(outgoing, ONE, 3)
    ask(outgoing, TWO, 3)
    assert len(outgoing.next()) == 3
    assert outgoing.on_the_way == 3 * BLOCK
    assert outgoing.next() == []


def test_a_block_larger_than_the_budget_goes_alone() -> None:
    outgoing = Outgoing(10)
    ask(outgoing, ONE, 2)
    assert len(outgoing.next()) == 1
    assert outgoing.next() == []
    outgoing.acknowledge(ONE, BLOCK, 0.0)
    assert len(outgoing.next()) == 1


def test_further_requests_free_the_budget_of_what_has_arrived() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 3)
    assert len(outgoing.next()) == 2
    outgoing.request(wanted(ONE, 9), ONE, BLOCK, 1.0)
    assert [block.request_id for block in outgoing.next()] == [2]
    assert outgoing.on_the_way == 2 * BLOCK


def test_what_a_connection_settled_before_we_counted_frees_nothing() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 3, received=1_000_000)
    assert len(outgoing.next()) == 2
    outgoing.acknowledge(ONE, 1_000_000, 1.0)
    assert outgoing.on_the_way == 2 * BLOCK
    outgoing.acknowledge(ONE, 1_000_000 + BLOCK, 1.0)
    assert outgoing.on_the_way == BLOCK


@pytest.mark.parametrize("claim", [10**9, 2**63, -5])
def test_a_receiver_that_lies_frees_no_more_than_its_own(claim: int) -> None:
    outgoing = Outgoing(4 * BLOCK)
    ask(outgoing, ONE, 2)
    ask(outgoing, TWO, 2)
    outgoing.next()
    outgoing.acknowledge(ONE, claim, 1.0)
    assert outgoing.on_the_way >= 2 * BLOCK
    outgoing.acknowledge(ONE, 0, 1.0)
    assert outgoing.on_the_way >= 2 * BLOCK


def test_what_could_not_be_read_is_not_on_its_way() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 3)
    first, _ = outgoing.next()
    outgoing.not_sent(first)
    assert outgoing.on_the_way == BLOCK
    assert len(outgoing.next()) == 1


def test_a_full_connection_waits_for_its_next_request_and_holds_up_nobody() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 3)
    for block in outgoing.next():
        outgoing.park(block, 0.0)
    assert outgoing.on_the_way == 0
    ask(outgoing, TWO, 1)
    assert order(outgoing.next()) == [TWO]
    outgoing.request(wanted(ONE, 9), ONE, 0, 1.0)
    assert order(outgoing.next()) == [ONE]


# -- sending: who goes -----------------------------------------------------------------------------


def test_a_connection_that_ends_frees_its_budget_and_its_requests() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 5)
    block, _ = outgoing.next()
    ask(outgoing, TWO, 1)
    outgoing.gone(ONE)
    assert order(outgoing.next()) == [TWO]
    for late in (outgoing.not_sent, lambda b: outgoing.park(b, 0.0), lambda b: outgoing.gone(b.connection)):
        late(block)
    outgoing.acknowledge(ONE, 100, 0.0)
    assert outgoing.on_the_way == BLOCK


def handed(outgoing: Outgoing, now: float = 0.0) -> list[bytes]:
    """Blocks are read, and handed to their connections."""
    blocks = outgoing.next()
    for block in blocks:
        outgoing.sent(block, now)
    return order(blocks)


def test_a_receiver_that_takes_nothing_is_treated_as_gone() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, 1)
    assert handed(outgoing, 5.0) == [ONE]
    assert outgoing.on_time(5.0 + SILENCE_S - 0.1) == []
    assert outgoing.deadline() == 5.0 + SILENCE_S
    assert outgoing.on_time(5.0 + SILENCE_S) == [ONE]


def test_it_is_gone_sooner_where_others_wait() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, 1)
    handed(outgoing)
    outgoing.on_time(4.0)
    ask(outgoing, TWO, 2, now=4.0)
    handed(outgoing, 4.0)
    assert outgoing.on_time(WAITED_FOR_S) == [ONE]


def test_a_message_that_settles_nothing_does_not_put_the_end_off() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, 2)
    handed(outgoing)
    for at in (8.0, 16.0, 24.0):
        outgoing.acknowledge(ONE, 0, at)
        ask(outgoing, ONE, 1, now=at)
    assert outgoing.on_time(SILENCE_S) == [ONE]


def test_a_byte_that_is_settled_puts_the_end_off() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 2)
    handed(outgoing)
    outgoing.acknowledge(ONE, 1, 20.0)
    assert outgoing.on_time(SILENCE_S) == []
    outgoing.on_time(20.0 + HELD_S)
    assert outgoing.deadline() == 20.0 + SILENCE_S


def test_what_is_still_being_read_is_not_the_receivers_silence() -> None:
    outgoing = Outgoing(BLOCK)
    ask(outgoing, ONE, 1)
    [block] = outgoing.next()
    assert outgoing.deadline() is None
    assert outgoing.on_time(1e6) == []
    outgoing.sent(block, 1e6)
    assert outgoing.on_time(1e6 + 1) == []


# -- sending: shares -----------------------------------------------------------------------------------


def test_who_comes_later_has_its_share_at_once_whatever_one_other_holds() -> None:
    outgoing = Outgoing(6 * BLOCK)
    ask(outgoing, ONE, 100)
    assert handed(outgoing) == 6 * [ONE]
    ask(outgoing, TWO, 10)
    assert handed(outgoing) == 3 * [TWO]
    ask(outgoing, THREE, 10)
    assert handed(outgoing) == 2 * [THREE]
    assert outgoing.on_the_way == 11 * BLOCK


def test_what_is_beyond_the_share_is_drained_and_not_filled_again() -> None:
    outgoing = Outgoing(6 * BLOCK)
    ask(outgoing, ONE, 100)
    handed(outgoing)
    ask(outgoing, TWO, 100)
    handed(outgoing)
    for settled in (1, 2, 3):
        outgoing.acknowledge(ONE, settled * BLOCK, 0.0)
        assert handed(outgoing) == []
    assert outgoing.on_the_way == 6 * BLOCK
    outgoing.acknowledge(ONE, 4 * BLOCK, 0.0)
    assert handed(outgoing) == [ONE]


def test_who_is_alone_has_all_of_it_again() -> None:
    outgoing = Outgoing(6 * BLOCK)
    ask(outgoing, ONE, 100)
    ask(outgoing, TWO, 3)
    assert sorted(handed(outgoing)) == 3 * [ONE] + 3 * [TWO]
    outgoing.acknowledge(TWO, 3 * BLOCK, 0.0)
    assert handed(outgoing) == 3 * [ONE]


def test_what_is_held_without_progress_is_not_held_against_others() -> None:
    outgoing = Outgoing(6 * BLOCK)
    ask(outgoing, ONE, 3)
    ask(outgoing, TWO, 100)
    handed(outgoing)
    assert outgoing.on_the_way == 6 * BLOCK
    assert outgoing.deadline() == STUCK_S
    outgoing.acknowledge(TWO, BLOCK, STUCK_S / 2)
    handed(outgoing, STUCK_S / 2)
    outgoing.on_time(STUCK_S)
    assert handed(outgoing, STUCK_S) == 3 * [TWO], "as if it were alone"
    outgoing.acknowledge(ONE, BLOCK, 1.0)
    outgoing.acknowledge(TWO, 3 * BLOCK, 1.0)
    assert handed(outgoing, 1.0) == [], "ONE goes on: 2 of it, 4 of TWO"


def test_connections_of_one_member_have_one_share() -> None:
    outgoing = Outgoing(6 * BLOCK)
    for number, connection in enumerate((ONE, TWO)):
        for _ in range(10):
            outgoing.request(wanted(connection, number), "a" * 32, 0, 0.0)
    assert handed(outgoing) == 3 * [ONE, TWO]
    ask(outgoing, THREE, 10)
    assert handed(outgoing) == 3 * [THREE]


def test_who_waits_hears_that_others_are_served() -> None:
    outgoing = Outgoing(2 * BLOCK)
    ask(outgoing, ONE, 3)
    handed(outgoing)
    assert not outgoing.waits_for_others(ONE), "for itself"
    ask(outgoing, TWO, 2)
    assert handed(outgoing) == [TWO]
    assert outgoing.waits_for_others(TWO)
    assert outgoing.waits_for_others(ONE)
    assert not outgoing.waits_for_others(THREE)


def test_who_holds_much_without_progress_is_told_once_and_only_while_others_ask() -> None:
    outgoing = Outgoing(4 * BLOCK)
    ask(outgoing, ONE, 4)
    handed(outgoing)
    outgoing.on_time(HELD_S)
    assert outgoing.held() == [], "nobody else asks"
    ask(outgoing, TWO, 1, now=HELD_S + 1)
    assert outgoing.held() == [Held(ONE, 4 * BLOCK, 0.0)]
    assert outgoing.held() == []
    outgoing.acknowledge(ONE, BLOCK, HELD_S + 2)
    assert outgoing.held() == []
    outgoing.on_time(2 * HELD_S + 2)
    assert outgoing.held() == [Held(ONE, 3 * BLOCK, HELD_S + 2)], "again"


def test_who_holds_little_is_not_told() -> None:
    outgoing = Outgoing(8 * BLOCK)
    ask(outgoing, ONE, 1)
    ask(outgoing, TWO, 1)
    handed(outgoing)
    outgoing.acknowledge(TWO, 1, HELD_S)
    outgoing.on_time(HELD_S)
    assert outgoing.held() == []


def test_who_has_all_it_asked_for_is_forgotten() -> None:
    outgoing = Outgoing(10 * BLOCK)
    for turn in range(100):
        connection = b"%d" % turn
        ask(outgoing, connection, 1)
        for block in outgoing.next():
            outgoing.sent(block, 0.0)
        outgoing.acknowledge(connection, BLOCK, 0.0)
    assert outgoing.deadline() is None
    assert not outgoing._receivers
    assert not outgoing._turns


MEMBER = {ONE: "a" * 32, TWO: "a" * 32, THREE: "b" * 32, FOUR: "c" * 32}
CONNECTIONS = st.sampled_from(sorted(MEMBER))


class Sending(RuleBasedStateMachine):
    """Any order of requests, acknowledgements, refusals, full and ended connections."""

    BUDGET = 350

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.outgoing = Outgoing(self.BUDGET)
        self.read: list[BlockWanted] = []
        self.sent: list[BlockWanted] = []
        self.received: Counter[bytes] = Counter()
        self.waiting: Counter[bytes] = Counter()

    @rule(connection=CONNECTIONS, length=st.one_of(st.just(60), st.just(60), st.integers(1, 400)))
    def request(self, connection: bytes, length: int) -> None:
        self.outgoing.request(
            wanted(connection, length=length), MEMBER[connection], self.received[connection], self.now
        )
        self.waiting[connection] += 1

    @rule()
    def pump(self) -> None:
        for block in self.outgoing.next():
            self.read.append(block)
            self.waiting[block.connection] -= 1
        self.nobody_is_kept_from_its_share()

    def nobody_is_kept_from_its_share(self) -> None:
        """Where all pieces are equal. A larger one in front may take its time."""
        has: dict[Any, int] = {member: 0 for c, member in MEMBER.items() if c in self.outgoing._receivers}
        for block in self.sent + self.read:
            has[MEMBER[block.connection]] += block.length
        share = self.BUDGET // max(1, len(has))
        heads = [self.outgoing._receivers[turns[0]] for turns in self.outgoing._turns.values()]
        lengths = {receiver.waiting[0].length for receiver in heads}
        if len(lengths) == 1:
            [length] = lengths
            assert not [r.who for r in heads if has[r.who] + length <= share], (has, share, length)

    @precondition(lambda self: self.read)
    @rule(data=st.data(), fate=st.sampled_from(["handed", "handed", "unread", "full"]))
    def hand(self, data: st.DataObject, fate: str) -> None:
        block = data.draw(st.sampled_from(self.read))
        self.read.remove(block)
        if fate == "handed":
            self.sent.append(block)
            self.outgoing.sent(block, self.now)
        elif fate == "unread":
            self.outgoing.not_sent(block)
        else:
            self.outgoing.park(block, self.now)
            self.waiting[block.connection] += 1

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.sent))
        self.sent.remove(block)
        self.received[block.connection] += block.length
        self.outgoing.acknowledge(block.connection, self.received[block.connection], self.now)

    @rule(connection=CONNECTIONS)
    def gone(self, connection: bytes) -> None:
        self.outgoing.gone(connection)
        self._forget(connection)

    @rule(seconds=st.sampled_from([0.4, 1.0, 9.0, 29.0, 31.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        for connection in self.outgoing.on_time(self.now):
            self.outgoing.gone(connection)
            self._forget(connection)
        deadline = self.outgoing.deadline()
        assert deadline is None or deadline > self.now

    def _forget(self, connection: bytes) -> None:
        self.sent = [block for block in self.sent if block.connection != connection]
        self.read = [block for block in self.read if block.connection != connection]
        self.received[connection] = self.waiting[connection] = 0

    @invariant()
    def within_the_budget(self) -> None:
        on_the_way = self.sent + self.read
        assert self.outgoing.on_the_way == sum(block.length for block in on_the_way)
        held = {c: len(r.waiting) for c, r in self.outgoing._receivers.items() if r.waiting}
        assert held == {c: n for c, n in self.waiting.items() if n}
        assert all(self.outgoing._turns.values())
        turns = [connection for turns in self.outgoing._turns.values() for connection in turns]
        assert len(set(turns)) == len(turns)
        assert all(self.outgoing._receivers[connection].waiting for connection in turns)
        assert self.outgoing._uses.members == len({r.who for r in self.outgoing._receivers.values()})

    def teardown(self) -> None:
        for connection in MEMBER:
            self.request(connection, 10)  # who was full takes its turn again
        for _ in range(500):
            self.pump()
            while self.read:
                self.sent.append(self.read.pop(0))
                self.outgoing.sent(self.sent[-1], self.now)
            if not self.sent:
                break
            block = self.sent.pop(0)
            self.received[block.connection] += block.length
            self.outgoing.acknowledge(block.connection, self.received[block.connection], self.now)
            self.within_the_budget()
        assert not +self.waiting
        assert self.outgoing.on_the_way == 0


TestSending = Sending.TestCase
TestSending.settings = settings(max_examples=100, stateful_step_count=40)


def test_blocks_being_read_count_like_those_that_wait() -> None:
    """S4: who asks for single bytes and says that they came would fill the disk's queue."""
    outgoing = Outgoing(10**9)
    for request in range(MAX_WAITING):
        outgoing.request(wanted(ONE, length=1), ONE, request, 0.0)
        outgoing.next()
    with pytest.raises(Busy):
        outgoing.request(wanted(ONE, length=1), ONE, MAX_WAITING, 0.0)
    outgoing.request(wanted(TWO, length=1), TWO, 0, 0.0)


# -- taking in ---------------------------------------------------------------------------------------

SIZE = 10
UPLOAD = "f" * 32


def key(number: int) -> tuple[str, bytes]:
    return UPLOAD, bytes([number]) * 32


def offer(
    incoming: Incoming,
    number: int,
    *,
    size: int = SIZE,
    connection: bytes = ONE,
    request_id: int = 1,
    now: float = 0.0,
) -> Admission | None:
    return incoming.offer(key(number), size, bytes(32), connection, connection, request_id, now)


def admitted(incoming: Incoming) -> list[int]:
    return [chunk.key[1][0] for chunk in incoming.admit_more()]


def begun(size: int = SIZE) -> Incoming:
    """Chunk 1 is offered by ONE and admitted, and its offer was answered."""
    incoming = Incoming(10 * ALIGNMENT)
    assert offer(incoming, 1, size=size) is None
    [chunk] = incoming.admit_more()
    incoming.answered(chunk, 0.0)
    return incoming


def test_an_offer_that_waits_for_memory_waits_for_us() -> None:
    incoming = Incoming(ALIGNMENT)
    for number in (1, 2):
        offer(incoming, number)
    assert incoming.deadline() is None
    assert incoming.on_time(1e6) == []


def test_a_number_of_an_earlier_connection_does_not_hold_the_budget() -> None:
    outgoing = Outgoing(100)
    first = BlockWanted(ONE, 1, key(1)[1], 0, 100)
    outgoing.request(first, ONE, 10**9, 0.0)
    assert outgoing.next() == [first]
    outgoing.acknowledge(ONE, 100, 0.0)
    assert outgoing.on_the_way == 100  # it counts from 0 now, and the block is not settled yet
    outgoing.request(BlockWanted(ONE, 2, key(1)[1], 0, 100), ONE, 200, 0.0)
    assert [wanted.request_id for wanted in outgoing.next()] == [2]


def test_chunks_are_admitted_first_come_first_served_within_the_budget() -> None:
    incoming = Incoming(4 * ALIGNMENT)
    for number in (3, 1, 2, 5, 4):
        offer(incoming, number)
    assert admitted(incoming) == [3, 1, 2, 5]
    assert incoming.reserved == 4 * ALIGNMENT
    assert admitted(incoming) == []
    incoming.done(key(3))
    assert admitted(incoming) == [4]


@pytest.mark.parametrize("pages", [2, 5])
def test_three_chunks_are_admitted_however_large_they_are(pages: int) -> None:
    """One comes, one is checked, one is written: else each waits for the one before it."""
    incoming = Incoming(4 * ALIGNMENT)
    for number in (1, 2, 3, 4):
        offer(incoming, number, size=pages * ALIGNMENT)
    assert admitted(incoming) == [1, 2, 3]
    offer(incoming, 5, size=1)
    incoming.done(key(1))
    assert admitted(incoming) == [4]
    assert incoming.reserved == 3 * pages * ALIGNMENT <= incoming.most


def test_one_who_has_all_three_does_not_keep_others_out() -> None:
    incoming = Incoming(ALIGNMENT)
    for number in (1, 2, 3):
        offer(incoming, number, size=MAX_STORED_SIZE)
    for number in (11, 12):
        offer(incoming, number, size=MAX_STORED_SIZE, connection=TWO)
    assert admitted(incoming) == [1, 11, 2], "members take turns"
    incoming.done(key(11))
    incoming.done(key(12))
    assert admitted(incoming) == [3]
    offer(incoming, 13, size=MAX_STORED_SIZE, connection=TWO)
    assert admitted(incoming) == [13], "one more than three"
    assert incoming.reserved == 4 * LARGEST == incoming.most
    offer(incoming, 21, connection=THREE)
    assert admitted(incoming) == []


def test_memory_is_counted_in_whole_pages() -> None:
    incoming = Incoming(7 * ALIGNMENT)
    for number in (1, 2, 3, 4):
        offer(incoming, number, size=ALIGNMENT + 1)
    assert admitted(incoming) == [1, 2, 3]
    assert incoming.reserved == 6 * ALIGNMENT


def test_every_offer_of_a_waiting_chunk_is_answered() -> None:
    incoming = Incoming(ALIGNMENT)
    offer(incoming, 1, request_id=11)
    offer(incoming, 1, request_id=12, connection=TWO)
    [chunk] = incoming.admit_more()
    assert (chunk.asks, chunk.connection) == ([11, 12], TWO)


def test_a_repeated_offer_starts_the_chunk_over_on_its_connection() -> None:
    incoming = begun()
    assert incoming.block(key(1), 0, 4, ONE, 1.0)
    again = offer(incoming, 1, connection=TWO, request_id=2, now=2.0)
    assert again is incoming.get(key(1))
    assert again is not None
    assert (again.received, again.connection, again.who) == (0, TWO, TWO)
    assert incoming.deadline() == 1.0 + STUCK_S, "no progress"
    assert not incoming.block(key(1), 4, 6, ONE, 3.0)
    assert incoming.block(key(1), 0, 10, TWO, 3.0)
    assert again.complete


def test_a_doubled_offer_does_not_undo_the_blocks_behind_it() -> None:
    incoming = Incoming(10 * ALIGNMENT)
    offer(incoming, 1, request_id=7)
    incoming.admit_more()
    incoming.block(key(1), 0, 4, ONE, 1.0)
    offer(incoming, 1, request_id=7, now=1.0)
    chunk = incoming.get(key(1))
    assert chunk is not None
    assert chunk.received == 4


def test_blocks_in_any_order_complete_the_chunk() -> None:
    incoming = begun()
    chunk = incoming.get(key(1))
    assert chunk is not None
    for offset, length in ((6, 4), (0, 3), (3, 3)):
        assert not chunk.complete
        assert incoming.block(key(1), offset, length, ONE, 1.0)
    assert chunk.complete


def test_a_doubled_block_does_no_harm() -> None:
    incoming = begun()
    for _ in range(3):
        assert incoming.block(key(1), 0, 5, ONE, 1.0)
    chunk = incoming.get(key(1))
    assert chunk is not None
    assert (chunk.received, chunk.complete) == (5, False)


@pytest.mark.parametrize(
    "strange",
    [
        {"offset": 10, "length": 1},
        {"offset": 0, "length": 11},
        {"offset": 6, "length": 5},
        {"offset": 0, "length": 0},
        {"offset": 2**62, "length": 1},
        {"offset": 3, "length": 4},  # overlaps the end of the first
        {"offset": 0, "length": 4},  # the same place, another length
        {"offset": 1, "length": 1},
        {"connection": TWO},
        {"number": 2},
    ],
)
def test_a_block_that_is_no_part_of_the_chunk_is_refused(strange: dict[str, Any]) -> None:
    incoming = begun()
    incoming.block(key(1), 0, 5, ONE, 1.0)
    values: dict[str, Any] = {"number": 1, "offset": 5, "length": 5, "connection": ONE, **strange}
    taken = incoming.block(key(values["number"]), values["offset"], values["length"], values["connection"], 2)
    assert not taken
    chunk = incoming.get(key(1))
    assert chunk is not None
    assert chunk.blocks == {0: 5}


def test_a_block_before_admission_and_one_after_the_end_are_refused() -> None:
    incoming = Incoming(ALIGNMENT)
    offer(incoming, 1)
    assert not incoming.block(key(1), 0, SIZE, ONE, 0.0)
    incoming.admit_more()
    assert incoming.block(key(1), 0, SIZE, ONE, 0.0)
    assert not incoming.block(key(1), 0, SIZE, ONE, 0.0)


def test_a_reservation_ends_when_its_sender_is_silent() -> None:
    incoming = begun()
    incoming.block(key(1), 0, 4, ONE, 5.0)
    assert incoming.on_time(5.0 + SILENCE_S - 0.1) == []
    assert incoming.deadline() == 5.0 + SILENCE_S
    [silent] = incoming.on_time(5.0 + SILENCE_S)
    assert silent.key == key(1)
    incoming.done(key(1))
    assert (incoming.reserved, incoming.deadline(), incoming.get(key(1))) == (0, None, None)


def test_it_ends_sooner_where_others_wait() -> None:
    incoming = begun(size=12 * ALIGNMENT)
    for number in (2, 3):
        offer(incoming, number)
    assert admit(incoming, WAITED_FOR_S) == [2, 3]
    offer(incoming, 4, size=100 * ALIGNMENT, connection=TWO)
    assert incoming.admit_more() == []
    assert [chunk.key for chunk in incoming.on_time(WAITED_FOR_S)] == [key(1)]


def test_neither_an_offer_again_nor_a_block_again_puts_the_end_off() -> None:
    incoming = begun()
    incoming.block(key(1), 0, 4, ONE, 1.0)
    incoming.block(key(1), 0, 4, ONE, 20.0)
    offer(incoming, 1, request_id=9, now=25.0)
    assert incoming.on_time(1.0 + SILENCE_S) != []


# -- taking in: shares -----------------------------------------------------------------------------


def admit(incoming: Incoming, now: float = 0.0) -> list[int]:
    chunks = incoming.admit_more()
    for chunk in chunks:
        incoming.answered(chunk, now)
    return [chunk.key[1][0] for chunk in chunks]


def test_who_offers_later_has_its_share_at_once_whatever_one_other_holds() -> None:
    incoming = Incoming(4 * ALIGNMENT)
    for number in range(1, 10):
        offer(incoming, number)
    assert admit(incoming) == [1, 2, 3, 4]
    for number in range(11, 20):
        offer(incoming, number, connection=TWO)
    assert admit(incoming) == [11, 12]
    offer(incoming, 21, connection=THREE)
    assert admit(incoming) == [21]
    incoming.done(key(1))
    assert admit(incoming) == []


def test_chunks_that_do_not_come_are_not_held_against_others() -> None:
    incoming = Incoming(4 * ALIGNMENT)
    for number in (1, 2):
        offer(incoming, number)
    admit(incoming)
    for number in range(11, 20):
        offer(incoming, number, connection=TWO)
    assert admit(incoming) == [11, 12]
    incoming.on_time(STUCK_S)
    assert admit(incoming, STUCK_S) == [13, 14]
    assert incoming.reserved <= incoming.most
    assert incoming.held() == []
    incoming.on_time(HELD_S)
    held = [Held(member, 2 * ALIGNMENT, 0.0) for member in (ONE, TWO)]
    assert incoming.held() == held, "two chunks of TWO are newer"


def test_members_that_offer_at_once_are_admitted_in_equal_parts() -> None:
    incoming = Incoming(4 * ALIGNMENT)
    for number in range(1, 10):
        offer(incoming, number)
    for number in range(11, 20):
        offer(incoming, number, connection=TWO)
    assert sorted(admit(incoming)) == [1, 2, 11, 12]


def test_who_waits_with_an_offer_hears_that_others_are_served() -> None:
    incoming = Incoming(3 * ALIGNMENT)
    offer(incoming, 1, size=3 * ALIGNMENT)
    offer(incoming, 2)
    offer(incoming, 3)
    admit(incoming)
    offer(incoming, 4)
    assert not incoming.waits_for_others(ONE), "for itself"
    offer(incoming, 11, size=9 * ALIGNMENT, connection=TWO)
    assert admit(incoming) == []
    assert incoming.waits_for_others(TWO)
    assert not incoming.waits_for_others(THREE)
    incoming.done(key(1))
    assert admit(incoming)[0] == 11, "who has the least"


def test_a_member_sends_so_many_chunks_at_a_time_however_small() -> None:
    incoming = Incoming(2**40)
    for number in range(MAX_ADMITTED + 10):
        incoming.offer((UPLOAD, number.to_bytes(32, "big")), 1, bytes(32), ONE, ONE, number, 0.0)
    assert len(incoming.admit_more()) == MAX_ADMITTED
    offer(incoming, 200, connection=TWO)
    assert admit(incoming) == [200]


def test_a_complete_chunk_waits_for_the_disk_and_not_for_its_sender() -> None:
    incoming = begun()
    incoming.block(key(1), 0, SIZE, ONE, 0.0)
    assert incoming.on_time(1e6) == []
    assert incoming.deadline() is None
    assert incoming.reserved == ALIGNMENT


def test_a_waiting_offer_that_is_given_up_leaves_the_queue() -> None:
    incoming = Incoming(3 * ALIGNMENT)
    for number in (1, 2, 3, 4, 5):
        offer(incoming, number)
    incoming.done(key(4))
    assert admitted(incoming) == [1, 2, 3]
    incoming.done(key(1))
    incoming.done(key(1))
    assert admitted(incoming) == [5]


class TakingIn(RuleBasedStateMachine):
    """Any order of offers, blocks, ends and silences: memory stays within its bound."""

    BUDGET = 4 * ALIGNMENT

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.incoming = Incoming(self.BUDGET)
        self.requests = 0
        self.answering: list[Admission] = []

    @rule(number=st.integers(1, 6), connection=CONNECTIONS, pages=st.integers(1, 4))
    def offer(self, number: int, connection: bytes, pages: int) -> None:
        self.requests += 1
        self.incoming.offer(
            key(number),
            pages * ALIGNMENT,
            bytes(32),
            MEMBER[connection],
            connection,
            self.requests,
            self.now,
        )

    @rule()
    def admit(self) -> None:
        for chunk in self.incoming.admit_more():
            assert chunk.admitted
            assert chunk.asks
            self.answering.append(chunk)
        self.nobody_is_kept_from_its_share()

    def nobody_is_kept_from_its_share(self) -> None:
        chunks = self.incoming._admissions.values()
        has = dict.fromkeys((chunk.who for chunk in chunks), 0)
        for chunk in chunks:
            has[chunk.who] += chunk.cost if chunk.admitted else 0
        share = self.BUDGET // max(1, len(has))
        heads = [self.incoming._admissions[queue[0]] for queue in self.incoming._queues.values()]
        costs = {chunk.cost for chunk in heads}
        if len(costs) == 1:
            assert not [c for c in heads if has[c.who] + c.cost <= share]

    @precondition(lambda self: self.answering)
    @rule()
    def answer(self) -> None:
        self.incoming.answered(self.answering.pop(0), self.now)

    @rule(
        number=st.integers(1, 6),
        connection=CONNECTIONS,
        offset=st.integers(0, 4),
        length=st.integers(0, 5),
    )
    def block(self, number: int, connection: bytes, offset: int, length: int) -> None:
        page = ALIGNMENT
        self.incoming.block(key(number), offset * page, length * page, connection, self.now)

    @rule(number=st.integers(1, 6))
    def done(self, number: int) -> None:
        self.incoming.done(key(number))

    @rule(connection=CONNECTIONS)
    def gone(self, connection: bytes) -> None:
        for chunk in self.incoming.gone(connection):
            self.incoming.done(chunk.key)

    @rule(seconds=st.sampled_from([0.4, 1.0, 9.0, 31.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        for chunk in self.incoming.on_time(self.now):
            self.incoming.done(chunk.key)
        deadline = self.incoming.deadline()
        assert deadline is None or deadline > self.now

    @invariant()
    def within_the_budget(self) -> None:
        chunks = list(self.incoming._admissions.values())
        in_memory = [chunk for chunk in chunks if chunk.admitted]
        assert self.incoming.reserved == sum(chunk.cost for chunk in in_memory)
        assert self.incoming.reserved <= self.incoming.most
        queued = [key for queue in self.incoming._queues.values() for key in queue]
        assert sorted(queued) == sorted(c.key for c in chunks if not c.admitted)
        assert self.incoming._admitted == {c.key: c for c in in_memory}
        assert self.incoming._number == Counter(c.who for c in in_memory)
        assert self.incoming._uses.members == len({c.who for c in chunks})
        for chunk in chunks:
            ends = sorted((at, at + length) for at, length in chunk.blocks.items())
            assert all(first[1] <= second[0] for first, second in pairwise(ends))
            assert chunk.complete == (chunk.received == chunk.size)


TestTakingIn = TakingIn.TestCase
TestTakingIn.settings = settings(max_examples=100, stateful_step_count=40)


def test_a_connection_offers_so_many_chunks_and_others_theirs() -> None:
    incoming = Incoming(10)
    for number in range(MAX_OFFERS):
        incoming.offer((UPLOAD, number.to_bytes(32, "big")), SIZE, b"b" * 32, ONE, ONE, number, 0.0)
    more = (UPLOAD, b"m" * 32)
    with pytest.raises(Busy):
        incoming.offer(more, SIZE, b"b" * 32, ONE, ONE, 0, 0.0)
    incoming.offer((UPLOAD, bytes(32)), SIZE, b"b" * 32, ONE, ONE, 1, 0.0)  # once more is no further one
    for number in range(MAX_OFFERS):  # chunks that another offered too are its own then
        incoming.offer((UPLOAD, number.to_bytes(32, "big")), SIZE, b"b" * 32, TWO, TWO, number, 0.0)
    with pytest.raises(Busy):
        incoming.offer(more, SIZE, b"b" * 32, TWO, TWO, 0, 0.0)
    incoming.gone(ONE)
    incoming.gone(TWO)
    assert not incoming._queues
    assert not incoming._uses.members
    assert not incoming._admissions
    assert not incoming._offered


def test_one_chunk_offered_again_and_again_is_answered_for_the_last_few() -> None:
    incoming = Incoming(10)
    incoming.offer(key(1), SIZE, b"b" * 32, ONE, ONE, 0, 0.0)
    incoming.admit_more()
    for request in range(1000):
        incoming.offer(key(2), SIZE, b"b" * 32, ONE, ONE, request, 0.0)
    waiting = incoming.get(key(2))
    assert waiting is not None
    assert waiting.asks == list(range(1000))[-MAX_ASKS:]


@pytest.mark.row("S4")
def test_a_chunk_in_single_bytes_ends_early() -> None:
    """S4: a table of 64 million blocks would take gigabytes."""
    incoming = Incoming(2**30)
    incoming.offer(key(1), 2**26, b"b" * 32, ONE, ONE, 0, 0.0)
    incoming.admit_more()
    taken = sum(incoming.block(key(1), at, 1, ONE, 0.0) for at in range(MAX_BLOCKS + 100))
    assert taken == MAX_BLOCKS
