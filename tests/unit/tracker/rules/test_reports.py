"""tracker/rules/reports.py (SPEC D8, S4)."""

from __future__ import annotations

import pytest

from zchunk.errors import Busy
from zchunk.tracker.rules import reports
from zchunk.tracker.rules.reports import CorruptReports

A, B = "a" * 32, "b" * 32


def chunk(number: int) -> bytes:
    return number.to_bytes(32)


def test_members_are_counted_once_each() -> None:
    corrupt = CorruptReports()
    assert corrupt.add("m", A, chunk(1)) == 1
    assert corrupt.add("m", A, chunk(1)) == 0
    assert corrupt.add("n", A, chunk(2)) == 1
    assert corrupt.add("n", B, chunk(1)) == 1
    assert corrupt.add("n", A, chunk(1)) == 2


def test_with_enough_it_is_settled() -> None:
    corrupt = CorruptReports()
    corrupt.add("m", A, chunk(1))
    corrupt.add("n", A, chunk(1))
    assert corrupt.open_at(A) == []
    assert corrupt.add("m", A, chunk(1)) == 1, "the copy was stored anew, and is bad again"


def test_the_nodes_answer_voids_what_was_reported() -> None:
    corrupt = CorruptReports()
    corrupt.add("m", A, chunk(2))
    corrupt.add("m", A, chunk(1))
    corrupt.add("m", B, chunk(3))
    assert corrupt.open_at(A) == [chunk(1), chunk(2)]
    corrupt.settle(A, [chunk(1), chunk(9)])
    assert corrupt.open_at(A) == [chunk(2)]
    assert corrupt.open_at(B) == [chunk(3)]
    assert corrupt.add("n", A, chunk(1)) == 1


def test_memory_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_MAX_COPIES", 3)
    corrupt = CorruptReports()
    for number in range(5):
        corrupt.add("m", A, chunk(number))
    assert corrupt.open_at(A) == [chunk(2), chunk(3), chunk(4)]
    assert corrupt._of_member == {"m": 3}


def test_a_member_with_too_many_open_reports_is_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_MAX_OF_MEMBER", 2)
    corrupt = CorruptReports()
    for number in range(2):
        corrupt.check("m")
        corrupt.add("m", A, chunk(number))
    with pytest.raises(Busy) as caught:
        corrupt.check("m")
    assert caught.value.retryable
    corrupt.check("n")
    corrupt.settle(A, [chunk(0)])
    corrupt.check("m")


def test_nothing_stays_of_what_is_settled() -> None:
    corrupt = CorruptReports()
    for member in ("m", "n"):
        for number in range(3):
            corrupt.add(member, A, chunk(number))
    corrupt.add("m", B, chunk(7))
    corrupt.settle(B, [chunk(7)])
    assert not corrupt._open
    assert not corrupt._of_member
