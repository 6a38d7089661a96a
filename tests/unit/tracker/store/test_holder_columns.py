"""tracker/store/holder_columns.py."""

from __future__ import annotations

from random import Random

import pytest

from zchunk.protocol import columns
from zchunk.tracker.store.holder_columns import ColumnsBuilder, HolderColumns, Row, mended

#: keys against the order of the ids
PEERS = {1: "dd", 2: "cc", 3: "bb", 4: "aa"}
Table = dict[int, list[Row]]


def told(packed: HolderColumns) -> list[list[tuple[int, str]]]:
    """Of each chunk, (stored at, peer id) of its copies."""
    peers, times = columns.unpack(2, packed.holder_peers), columns.unpack(8, packed.holder_times)
    copies = iter([(at, packed.peer_ids[place]) for place, at in zip(peers, times, strict=True)])
    counts = columns.unpack(2, packed.holder_counts)
    assert sum(counts) == len(peers)
    return [[next(copies) for _ in range(count)] for count in counts]


def expected(table: Table) -> list[list[tuple[int, str]]]:
    return [sorted((at, PEERS[key]) for _, at, key in table[index]) for index in sorted(table)]


def built(table: Table, run: int, rng: Random) -> HolderColumns:
    builder = ColumnsBuilder(PEERS)
    for first in range(0, len(table), run):
        chunks = range(first, min(first + run, len(table)))
        rows = [row for index in chunks for row in table[index]]
        builder.add(chunks, rng.sample(rows, len(rows)))
    return builder.built()


def some_rows(rng: Random, index: int, most: int = 3) -> list[Row]:
    return [(index, rng.randrange(3), key) for key in rng.sample([1, 2, 3], rng.randint(0, most))]


@pytest.mark.parametrize("seed", range(20))
def test_rows_in_any_order_become_the_earliest_then_lowest_first(seed: int) -> None:
    rng = Random(seed)
    table = {index: some_rows(rng, index) for index in range(rng.randint(0, 30))}
    packed = built(table, rng.randint(1, 10), rng)
    assert told(packed) == expected(table)
    assert packed.chunks == len(table)
    assert list(packed.peer_ids) == sorted({PEERS[key] for rows in table.values() for _, _, key in rows})


def test_one_holder_each_and_one_chunk_without_beside_one_with_two() -> None:
    one_each = {index: [(index, 7, 1 + index % 2)] for index in range(6)}
    assert told(built(one_each, 6, Random(1))) == expected(one_each)
    as_many_rows = {**one_each, 2: [], 3: [(3, 1, 2), (3, 2, 1)]}
    assert told(built(as_many_rows, 6, Random(1))) == expected(as_many_rows)


@pytest.mark.parametrize("seed", range(40))
def test_mended_columns_are_those_that_would_be_made_anew(seed: int) -> None:
    """Peers that come into the file, and that hold nothing of it any more, too."""
    rng = Random(seed)
    table = {index: some_rows(rng, index, rng.choice([1, 3])) for index in range(rng.randint(1, 30))}
    packed = built(table, 10, rng)
    for _ in range(5):
        changed = sorted(rng.sample(sorted(table), rng.randint(0, min(4, len(table)))))
        only = rng.choice([1, 2, 3, 4])
        fresh = {index: [(index, rng.randrange(3), only)] * rng.randint(0, 1) for index in changed}
        table.update(fresh)
        rows = [row for index in changed for row in fresh[index]]
        packed = mended(packed, changed, rng.sample(rows, len(rows)), PEERS)
        assert packed == built(table, 10, rng)
