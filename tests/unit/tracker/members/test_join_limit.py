"""tracker/members/join_limit.py: how often an address may try to join."""

from __future__ import annotations

import pytest

from zchunk.errors import Busy
from zchunk.tracker.members.join_limit import BURST, PER_SECOND, JoinLimit


def tried(limit: JoinLimit, address: str, now: float) -> bool:
    try:
        limit.attempt(address, now)
    except Busy:
        return False
    return True


def test_a_burst_is_taken_and_then_so_many_a_second() -> None:
    limit = JoinLimit()
    assert [tried(limit, "10.0.0.1", 5.0) for _ in range(25)] == [True] * int(BURST) + [False] * 5
    with pytest.raises(Busy, match=r"10\.0\.0\.1"):
        limit.attempt("10.0.0.1", 5.0 + 0.9 / PER_SECOND)
    assert tried(limit, "10.0.0.1", 5.0 + 1.1 / PER_SECOND)
    assert not tried(limit, "10.0.0.1", 5.0 + 1.1 / PER_SECOND)


def test_addresses_do_not_pay_for_each_other() -> None:
    limit = JoinLimit()
    while tried(limit, "10.0.0.1", 0.0):
        pass
    assert tried(limit, "10.0.0.2", 0.0)


def test_many_who_ask_again_behind_one_address_get_their_turns() -> None:
    """Thirty PCs behind one router, each asking once a second until it is in."""
    limit, waiting = JoinLimit(), 30
    for tenth in range(80):
        asking = waiting // 10 + (tenth % 10 < waiting % 10)
        waiting -= sum(tried(limit, "10.0.0.1", tenth / 10) for _ in range(asking))
    assert waiting == 0


def test_it_does_not_save_up_more_than_a_burst() -> None:
    limit = JoinLimit()
    assert tried(limit, "10.0.0.1", 0.0)
    assert sum(tried(limit, "10.0.0.1", 1e6) for _ in range(100)) == BURST
