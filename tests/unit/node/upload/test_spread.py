"""node/upload/spread.py (SPEC U4, U7): which planned place gives way to a holder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.node.upload.spread import Spread

A, B, C, D = "abcd"


def test_the_fullest_place_gives_way_to_the_emptiest_holder_then_the_lowest_id() -> None:
    spread = Spread([[A, B], [A, C], [A, B]], min_peers=1)
    assert spread.better([A, B], [C, D]) == (A, D)
    assert spread.better([B, A], [C]) == (A, C)
    assert spread.better([B], [D, "e"]) == (B, D)
    assert spread.better([], [D]) is None
    assert spread.better([A], []) is None


def test_the_last_chunk_of_a_peer_does_not_leave_it_where_too_few_would_be_left() -> None:
    spread = Spread([[A], [A], [B]], min_peers=2)
    assert spread.better([B], [A]) is None
    assert spread.better([B], [A, C]) == (B, C), "to a third it may"
    assert spread.better([A], [B]) == (A, B)
    spread.move(A, B)
    assert spread.better([A], [B]) is None


def test_a_plan_on_fewer_peers_than_asked_never_comes_to_lie_on_fewer_still() -> None:
    """One chunk, or a file that lies on too few already: what there is stays."""
    assert Spread([[A]], min_peers=3).better([A], [B]) == (A, B)
    assert Spread([[A], [B]], min_peers=3).better([A], [B]) is None


PEERS = st.sampled_from("abcdef")
ROWS = st.lists(st.sets(PEERS, min_size=1, max_size=3), min_size=1, max_size=12)


@pytest.mark.row("U4")
@given(rows=ROWS, held=st.lists(st.sets(PEERS), min_size=12, max_size=12), min_peers=st.integers(1, 4))
def test_any_moves_keep_enough_peers_and_no_peer_gets_a_chunk_twice(
    rows: list[set[str]], held: list[set[str]], min_peers: int
) -> None:
    spread, before = Spread(rows, min_peers), len(set().union(*rows))
    for row, holders in zip(rows, held, strict=False):
        move = spread.better(row - holders, holders - row)
        if move is not None:
            row.remove(move[0])
            assert move[1] not in row
            row.add(move[1])
            spread.move(*move)
        left = len(set().union(*rows))
        assert spread.peers == left
        assert left >= min(min_peers, before)
