"""limits/admission.py (SPEC S4): who asks faster than he is answered waits, and takes no more memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.errors import Busy
from zchunk.limits.admission import MAX_BYTES, MAX_BYTES_OF_ALL, Outstanding, Ticket

MIB = 1024 * 1024


def test_one_who_asks_has_so_many_requests_and_the_others_theirs() -> None:
    outstanding = Outstanding(most=3)
    tickets = [outstanding.begin("A", 0) for _ in range(3)]
    with pytest.raises(Busy, match="3 of your requests"):
        outstanding.begin("A", 0)
    outstanding.begin("B", 0)
    outstanding.end(tickets[0])
    outstanding.begin("A", 0)
    assert outstanding.requests == 4


@pytest.mark.row("S4")
def test_one_who_asks_holds_so_many_bytes_but_may_always_have_one_request() -> None:
    outstanding = Outstanding()
    first = outstanding.begin("A", 2 * MAX_BYTES)
    with pytest.raises(Busy, match="your requests already hold"):
        outstanding.begin("A", MIB)
    outstanding.begin("A", 1000)  # a heartbeat is never refused for that
    outstanding.end(first)
    outstanding.begin("A", MIB)


def test_all_together_hold_so_many_bytes_and_small_requests_pass() -> None:
    outstanding = Outstanding()
    for at in range(MAX_BYTES_OF_ALL // (64 * MIB)):
        outstanding.begin(f"peer {at}", 64 * MIB)
    with pytest.raises(Busy, match="too many large requests"):
        outstanding.begin("late", MIB)
    outstanding.begin("late", 1000)


@given(sizes=st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from((0, 1000, MIB, 80 * MIB)))))
def test_what_began_and_ended_leaves_nothing(sizes: list[tuple[str, int]]) -> None:
    outstanding = Outstanding(most=4)
    tickets: list[Ticket] = []
    for who, size in sizes:
        try:
            tickets.append(outstanding.begin(who, size))
        except Busy:
            assert tickets
    for ticket in tickets:
        outstanding.end(ticket)
    assert (outstanding.requests, outstanding._size, outstanding._open) == (0, 0, {})
