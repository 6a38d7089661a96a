"""limits/memory_shares.py: equal shares of a pool, and since when somebody makes no progress."""

from __future__ import annotations

from zchunk.limits.memory_shares import HELD_S, SILENCE_S, STUCK_S, WAITED_FOR_S, Stillness, Uses, Who


def uses(budget: int = 120, spare: int = 120, **has: int) -> Uses:
    made = Uses(budget, spare)
    for who, size in has.items():
        made.join(who)
        made.take(who, size)
    return made


def nothing() -> list[tuple[Who, int]]:
    return []


def test_one_alone_may_have_all_and_no_more() -> None:
    pool = uses(a=100)
    assert pool.fits("a", 20, nothing)
    assert not pool.fits("a", 21, nothing)


def test_anything_fits_an_empty_pool() -> None:
    assert uses(a=0).fits("a", 10**9, nothing)


def test_who_comes_has_its_share_of_what_another_has_beyond_its_own() -> None:
    pool = uses(a=120, b=0)
    assert pool.share == 60
    assert pool.fits("b", 60, nothing)
    assert not pool.fits("b", 61, nothing)


def test_what_is_held_without_progress_does_not_count_against_others() -> None:
    pool = uses(a=60, b=60)
    assert not pool.fits("b", 10, nothing)
    assert pool.fits("b", 60, lambda: [("a", 60)])
    assert not pool.fits("b", 61, lambda: [("a", 60)])
    assert not pool.fits("a", 10, lambda: [("a", 60)]), "its own"


def test_the_pool_is_overdrawn_by_so_much_at_most() -> None:
    pool = uses(spare=30, a=120, b=0)
    assert pool.fits("b", 30, lambda: [("a", 120)])
    assert not pool.fits("b", 31, lambda: [("a", 120)])


def test_while_all_keep_to_their_share_it_is_not_overdrawn() -> None:
    pool = uses(a=40, b=40, c=40)
    assert not any(pool.fits(who, 1, nothing) for who in "abc")


def test_a_share_less_than_a_piece_is_given_out_by_the_piece() -> None:
    members = {f"m{number}": 0 for number in range(20)}
    pool = uses(**members)
    given = 0
    for who in members:
        if pool.fits(who, 40, nothing):
            pool.take(who, 40)
            given += 1
    assert given == 3


def test_who_leaves_is_counted_no_more() -> None:
    pool = uses(a=0, b=50)
    pool.join("a")
    pool.leave("a")
    assert pool.members == 2
    pool.leave("a")
    assert pool.members == 1
    pool.give_back("b", 50)
    pool.leave("b")
    assert (pool.members, pool.total) == (0, 0)


def test_stillness_passes_its_stages_as_it_is_looked_at() -> None:
    still = Stillness(10.0)
    assert still.deadline(False) == 10.0 + STUCK_S
    still.look(10.0 + STUCK_S)
    assert (still.is_stuck, still.is_held) == (True, False)
    assert still.deadline(False) == 10.0 + HELD_S
    still.look(10.0 + HELD_S)
    assert still.is_held
    assert still.deadline(False) == 10.0 + SILENCE_S
    assert still.deadline(True) == 10.0 + WAITED_FOR_S
    assert not still.is_over(False, 10.0 + WAITED_FOR_S)
    assert still.is_over(True, 10.0 + WAITED_FOR_S)
    still.moved(20.0)
    assert (still.is_stuck, still.deadline(True)) == (False, 20.0 + STUCK_S)
