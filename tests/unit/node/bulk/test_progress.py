"""node/bulk/progress.py (SPEC, "Machine-readable output"): told when something changed, asleep in between."""

from __future__ import annotations

import pytest

from zchunk.node import job_events
from zchunk.node.bulk.progress import ALIVE_S, Progress


class Rig:
    """Wakes at each deadline, as a loop does."""

    def __init__(self) -> None:
        self.told: list[job_events.Progress] = []
        self.progress = Progress(self.told.append, "0123abcd", 1000, 10)
        self.now = 0.0
        self.chunks, self.bytes, self.peers = 0, 0, {"a": {"completed": 0}}
        self.wakes = 0
        self._look()

    def _look(self) -> None:
        self.progress.on_time(self.now, self.chunks, self.bytes, self.peers)

    def run(self, seconds: float) -> int:
        """How many events came in this time."""
        before, end = len(self.told), self.now + seconds
        while (at := self.progress.deadline()) <= end:
            self.now = max(self.now, at)
            self.wakes += 1
            self._look()
        self.now = end
        return len(self.told) - before

    def change(self, chunks: int, moved: int) -> None:
        self.chunks, self.bytes = chunks, moved
        self.progress.touch()


def test_ten_a_second_at_most_while_something_changes() -> None:
    rig = Rig()
    for step in range(1, 1001):
        rig.change(0, step)
        rig.run(0.002)
    assert 18 <= len(rig.told) <= 21
    assert rig.told[-1].bytes_per_second == pytest.approx(500, rel=0.02)


def test_a_change_after_a_rest_is_told_at_once() -> None:
    rig = Rig()
    rig.run(10)
    rig.change(1, 100)
    assert rig.run(0.001) == 1
    assert rig.told[-1].chunks_completed == 1


def test_when_nothing_changes_it_sleeps_but_for_signs_of_life() -> None:
    rig = Rig()
    rig.change(3, 300)
    rig.run(5.0)
    settled, wakes = len(rig.told), rig.wakes
    assert rig.told[-1].bytes_per_second == 0, "the speed falls by itself"
    assert rig.run(10 * ALIVE_S) == 10
    assert rig.wakes - wakes == 10
    assert all(event == rig.told[settled - 1] for event in rig.told[settled:])


def test_what_was_looked_at_and_had_not_changed_is_not_told() -> None:
    rig = Rig()
    rig.run(1.0)
    for _ in range(5):
        rig.progress.touch()
        assert rig.run(0.5) == 0


def test_a_change_of_a_peer_alone_is_told() -> None:
    rig = Rig()
    rig.run(1.0)
    rig.peers = {"a": {"completed": 1}}
    rig.progress.touch()
    assert rig.run(0.5) == 1


def test_the_speed_of_bytes_that_come_now_and_then_is_that_of_the_window() -> None:
    rig = Rig()
    rig.run(100.0)
    rig.change(0, 300)
    rig.run(0.001)
    assert rig.told[-1].bytes_per_second == pytest.approx(100, rel=0.01)
    rig.run(2.9)
    assert rig.told[-1].bytes_per_second > 0
    rig.run(0.5)
    assert rig.told[-1].bytes_per_second == 0


def test_the_end_is_told_whatever_the_time() -> None:
    rig = Rig()
    rig.progress.last(10, 1000, 0.0)
    rig.progress.last(10, 1000, 0.0)
    assert [event.chunks_completed for event in rig.told] == [0, 10]
