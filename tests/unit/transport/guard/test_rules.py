"""transport/guard/rules.py: which connections end, and that others stay."""

from __future__ import annotations

import pytest

from zchunk.transport.guard.rules import MIB, Guard, Limits, Seen

LIMITS = Limits(
    connections=6, of_an_address=4, held=10 * MIB, held_by_strangers=4 * MIB, held_by_all=15 * MIB
)


def seen(number: int, address: str = "a", received: int = 0) -> Seen:
    return Seen((number, number), address, received)


def numbers(
    guard: Guard, found: list[Seen], delivered: dict[int, int] | None = None, now: float = 0
) -> set[int]:
    brought = {(number, number): size for number, size in (delivered or {}).items()}
    return {end.key[0] for end in guard.look(found, brought, now)}


def test_within_the_limits_nobody_ends() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(n) for n in range(4)] + [seen(9, "b", 3 * MIB)])


@pytest.mark.row("S4")
def test_of_an_address_the_oldest_that_said_nothing_end() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(1), seen(2)], {1: 10}, now=1)
    assert not numbers(guard, [seen(n) for n in (1, 2, 3, 4)], now=2)
    assert numbers(guard, [seen(n) for n in (1, 2, 3, 4, 5, 6)], now=3) == {2, 3}


def test_where_all_have_spoken_the_newest_end() -> None:
    guard = Guard(LIMITS)
    for n in range(1, 5):
        assert not numbers(guard, [seen(m) for m in range(1, n + 1)], {n: 1}, now=n)
    assert numbers(guard, [seen(m) for m in range(1, 6)], {5: 1}, now=9) == {5}


def test_of_all_those_of_the_address_with_most_end() -> None:
    guard = Guard(LIMITS)
    found = [seen(n, "a") for n in range(4)] + [seen(10, "b"), seen(11, "c"), seen(12, "d")]
    ended = numbers(guard, found)
    assert len(ended) == 1
    assert ended < {0, 1, 2, 3}


def test_what_was_handed_on_is_not_held() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(1, received=3 * MIB)], {1: 1})
    assert not numbers(guard, [seen(1, received=40 * MIB)], {1: 38 * MIB}, now=1)


def test_a_message_without_an_end_ends() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(1, received=100)], {1: 100})
    assert not numbers(guard, [seen(1, received=9 * MIB)], now=1)
    assert numbers(guard, [seen(1, received=11 * MIB)], now=2) == {1}


def test_who_never_had_a_whole_message_holds_less_together() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(1, received=2 * MIB), seen(2, "b", MIB)])
    assert numbers(guard, [seen(1, received=2 * MIB), seen(2, "b", 3 * MIB)], now=1) == {2}


def test_members_hold_so_much_together() -> None:
    guard = Guard(LIMITS)
    both = {1: 1, 2: 1}
    assert not numbers(guard, [seen(1, received=1), seen(2, received=1)], both)
    assert numbers(guard, [seen(1, received=9 * MIB), seen(2, received=8 * MIB)], now=1) == {1}


def test_those_of_one_address_hold_so_much_together() -> None:
    """Frames that stop short of their end, on many connections of one member."""
    guard = Guard(Limits())
    sizes = {1: 15, 2: 9, 3: 12, 4: 1}
    assert not numbers(guard, [seen(n) for n in sizes] + [seen(9, "b")], dict.fromkeys((*sizes, 9), 1))
    found = [seen(n, received=size * MIB) for n, size in sizes.items()]
    assert numbers(guard, [*found, seen(9, "b", 16 * MIB)], now=1) == {1}


def test_heartbeats_of_a_year_are_no_message() -> None:
    guard = Guard(LIMITS)
    for day in range(366):
        assert not numbers(guard, [seen(1, received=day * 86400 * 200)], now=day * 86400.0)


def test_a_number_that_is_used_again_is_another_connection() -> None:
    guard = Guard(LIMITS)
    assert not numbers(guard, [seen(1, received=3 * MIB)], {1: 1})
    assert not numbers(guard, [Seen((1, 99), "a", 3 * MIB)], now=1)
