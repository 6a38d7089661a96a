"""scripts/benchmarks/range.py: where it reads, and what its figures say."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from benchmarks.range import HEAD, Reads, cold_offsets, table
from servers import Failed

from zchunk.node.reading.read_ahead import ChunkWindow, ReadAhead, chunks_of

SIZE, CHUNK, LENGTH, ROOM = 1_000, 10, 3, 5


def test_no_read_finds_a_chunk_in_memory_or_has_one_fetched_ahead() -> None:
    window, ahead = ChunkWindow(ROOM), ReadAhead(ROOM - 1)
    straddling = 0
    for offset in islice(cold_offsets(Random(1), SIZE, CHUNK, LENGTH, ROOM), 500):
        touched = chunks_of(offset, LENGTH, SIZE, CHUNK)
        assert 0 <= offset <= SIZE - LENGTH
        assert not set(window.there).intersection(touched)
        assert not ahead.behind(touched, SIZE // CHUNK)
        window.move(touched)
        for index in touched:
            window.take(index)
        straddling += len(touched) - 1
    assert 50 < straddling < 150, "two of ten places touch two chunks"


def test_a_file_without_enough_chunks_is_refused() -> None:
    with pytest.raises(Failed, match="20 chunks"):
        next(cold_offsets(Random(1), 19 * CHUNK, CHUNK, LENGTH, ROOM))


def test_figures_are_of_all_reads_and_next_to_the_floor() -> None:
    floor, reads = Reads("floor", 10**6), Reads("it", 10**6)
    for seconds in (0.004, 0.005, 0.006):
        floor.add(seconds, 10**7)
    for seconds in (0.01, 0.02, 0.07):
        reads.add(seconds, 10**7)
    assert reads.as_json(floor) == {
        "name": "it",
        "reads": 3,
        "median_ms": 20.0,
        "p99_ms": 70.0,
        "max_ms": 70.0,
        "payload_megabytes_per_s": 30.0,
        "chunks_megabytes_per_s": 300.0,
        "floor_over_this": 0.25,
        "peak_bytes": None,
    }
    whole = Reads("command", 10**9)
    whole.add(2.0, 0)
    whole.peak = 120 * 10**6
    rows = table([floor, reads, whole], floor)
    assert rows == [
        HEAD,
        ["floor", "3", "5.0", "6.0", "200", "2000", "1.00", ""],
        ["it", "3", "20.0", "70.0", "30", "300", "0.25", ""],
        ["command", "1", "2000.0", "2000.0", "500", "", "", "120"],
    ]
