"""node/reading/read_ahead.py (SPEC D11): which chunks a range touches, what is read ahead, what stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.node.reading.read_ahead import ChunkWindow, ReadAhead, chunks_of, room_for

#: a file of 3 chunks, the last one short
SIZE, CHUNK = 25, 10


@pytest.mark.row("D11")
@pytest.mark.parametrize(
    ("offset", "length", "chunks"),
    [
        (0, 0, []),
        (7, 0, []),
        (0, 1, [0]),
        (0, 10, [0]),
        (9, 1, [0]),
        (9, 2, [0, 1]),
        (10, 10, [1]),
        (0, 25, [0, 1, 2]),
        (5, 10**9, [0, 1, 2]),
        (20, 5, [2]),
        (24, 100, [2]),
        (25, 1, []),
        (10**9, 1, []),
    ],
)
def test_a_range_touches_these_chunks(offset: int, length: int, chunks: list[int]) -> None:
    assert list(chunks_of(offset, length, SIZE, CHUNK)) == chunks


def test_an_empty_file_has_nothing_to_touch() -> None:
    assert not chunks_of(0, 10, 0, CHUNK)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 90), st.integers(1, 30))
def test_a_chunk_is_touched_if_a_byte_of_it_is_read(offset: int, length: int, size: int, chunk: int) -> None:
    touched = sorted({at // chunk for at in range(offset, min(offset + length, size))})
    assert list(chunks_of(offset, length, size, chunk)) == touched


def test_there_is_room_for_one_chunk_less_than_the_budget_holds_and_for_one_always() -> None:
    assert [room_for(budget, 10) for budget in (5, 10, 19, 20, 30, 64)] == [1, 1, 1, 1, 2, 5]


# -- read ahead --------------------------------------------------------------------------


def read_on(ahead: ReadAhead, first: int, last: int, count: int = 100) -> list[list[int]]:
    """Chunk by chunk: what is fetched ahead each time."""
    return [list(ahead.behind(range(at, at + 1), count)) for at in range(first, last + 1)]


def test_who_reads_in_order_has_twice_as_much_fetched_ahead_each_time() -> None:
    found = read_on(ReadAhead(most=4), 0, 5)
    assert found == [[], [], [3], [4, 5], [5, 6, 7, 8], [6, 7, 8, 9]]


@pytest.mark.parametrize("first", [0, 7])
def test_nothing_is_fetched_ahead_of_a_read_or_of_one_across_two_chunks(first: int) -> None:
    assert read_on(ReadAhead(most=4), first, first + 1) == [[], []]
    assert not ReadAhead(most=4).behind(range(first, first + 2), 100)


def test_a_jump_ends_it() -> None:
    ahead = ReadAhead(most=4)
    assert read_on(ahead, 0, 3)[-1] == [4, 5]
    assert read_on(ahead, 50, 51) == [[], []]
    assert read_on(ahead, 4, 6) == [[], [], [7]]


def test_reading_on_in_the_same_chunk_changes_nothing() -> None:
    ahead = ReadAhead(most=4)
    assert read_on(ahead, 0, 2) == [[], [], [3]]
    assert list(ahead.behind(range(2, 3), 100)) == [3]
    assert list(ahead.behind(range(2, 4), 100)) == [4, 5]


def test_it_ends_with_the_file_and_at_its_limit() -> None:
    assert read_on(ReadAhead(most=4), 0, 7, count=8)[-2:] == [[7], []]
    assert not any(read_on(ReadAhead(most=0), 0, 7))


# -- what stays in memory ------------------------------------------------------------------


def filled(room: int, *chunks: int) -> ChunkWindow:
    window = ChunkWindow(room)
    for index in chunks:
        assert window.move([index]) == []
        assert window.take(index)
    return window


def test_the_longest_unused_chunks_go_first() -> None:
    window = filled(3, 0, 1, 2)
    assert window.move([0]) == []
    assert window.missing() == []
    assert window.move([7]) == [1]
    assert window.take(7)
    assert window.move([8, 9]) == [2, 0]
    assert sorted(window.there) == [7]


def test_no_more_is_wanted_than_there_is_room_for() -> None:
    window = ChunkWindow(2)
    window.move([3, 4, 5])
    assert window.wanted == {3, 4}
    assert window.missing() == [3, 4]


def test_what_comes_when_nobody_wants_it_any_more_does_not_stay() -> None:
    window = ChunkWindow(2)
    window.move([1])
    window.move([2])
    assert not window.take(1)
    assert window.take(2)
    assert list(window.there) == [2]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, unique=True), st.booleans())),
)
def test_there_is_never_more_than_there_is_room_for(room: int, moves: list[tuple[list[int], bool]]) -> None:
    window = ChunkWindow(room)
    for wanted, come in moves:
        before = set(window.there)
        gone = window.move(wanted)
        assert set(gone) == before - set(window.there)
        assert not window.wanted.intersection(gone)
        assert wanted[0] in window.wanted
        for index in window.missing() if come else ():
            assert window.take(index)
        assert len(window.wanted.union(window.there)) <= room
