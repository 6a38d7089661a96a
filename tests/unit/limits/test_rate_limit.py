"""limits/rate_limit.py: so many at once, and then so many a second, for each one who asks."""

from __future__ import annotations

import pytest

from zchunk.limits import rate_limit
from zchunk.limits.rate_limit import RateLimit


def test_a_burst_and_then_so_many_a_second() -> None:
    limit = RateLimit(3, 2)
    assert [limit.take("a", 5.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not limit.take("a", 5.4)
    assert limit.take("a", 5.6)
    assert not limit.take("a", 5.6)
    assert limit.take("b", 5.6)


def test_it_saves_up_no_more_than_a_burst() -> None:
    limit = RateLimit(3, 2)
    limit.take("a", 0.0)
    assert sum(limit.take("a", 1e6) for _ in range(100)) == 3


def test_those_it_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_REMEMBERED", 3)
    limit = RateLimit(3, 2)
    for number in (*range(10), 7):
        limit.take(f"10.0.0.{number}", 0.0)
    assert list(limit._left) == ["10.0.0.8", "10.0.0.9", "10.0.0.7"]
