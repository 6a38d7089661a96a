"""tracker/rules/health.py (SPEC I1, R9): what is counted when, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.tracker.rules.health import (
    SLICE_FILES,
    Copies,
    Counted,
    FileHealth,
    Health,
    HealthChange,
    Partial,
    Slice,
)

LIVE = frozenset({"A", "B"})
FIRST = 3.0


def copies(file_id: str = "f", unavailable: int = 0, below: int = 0) -> Copies:
    return Copies(file_id, file_id, 2, 10, unavailable, below)


COMPLETE, DEGRADED, UNAVAILABLE = copies(), copies(below=2), copies(unavailable=1, below=1)


def told(changes: list[HealthChange]) -> list[tuple[str, str, str]]:
    return [(c.topic, c.copies.file_id, c.copies.health.value) for c in changes]


def begun(now: float = FIRST) -> FileHealth:
    """After the first walk, which found nothing to tell."""
    health = FileHealth(FIRST)
    asked = health.next(LIVE, now)
    assert asked == Slice(LIVE, after=0)
    assert health.counted(asked, Counted(()), now) == []
    assert health.deadline() is None
    return health


def look(health: FileHealth, now: float, *found: Copies) -> list[tuple[str, str, str]]:
    """The next slice, of files by name; `found` is what the store says."""
    asked = health.next(LIVE, now)
    assert asked is not None
    assert asked.file_ids == tuple(f.file_id for f in found)
    return told(health.counted(asked, Counted(found), now))


def test_nothing_is_looked_at_before_the_first_moment() -> None:
    health = FileHealth(FIRST)
    health.changed(["f"], 0.0)
    health.peers_changed(1.0)
    assert health.deadline() == FIRST
    assert health.next(LIVE, FIRST - 0.01) is None
    assert health.next(LIVE, FIRST) == Slice(LIVE, ("f",))


@pytest.mark.row("I1")
def test_each_change_has_its_topic_and_is_told_once() -> None:
    health, now = begun(), 10.0
    course = [
        (COMPLETE, []),
        (DEGRADED, [("file.degraded", "f", "degraded")]),
        (DEGRADED, []),
        (copies(below=5), []),
        (UNAVAILABLE, [("file.unavailable", "f", "unavailable")]),
        (UNAVAILABLE, []),
        (DEGRADED, [("file.available", "f", "degraded")]),
        (COMPLETE, [("file.available", "f", "complete")]),
        (UNAVAILABLE, [("file.unavailable", "f", "unavailable")]),
        (COMPLETE, [("file.available", "f", "complete")]),
        (COMPLETE, []),
    ]
    for found, expected in course:
        now += 1.0
        health.changed(["f"], now)
        assert look(health, now, found) == expected


def test_one_slice_at_a_time() -> None:
    health = begun()
    health.changed(["f"], 10.0)
    asked = health.next(LIVE, 10.0)
    health.changed(["g"], 10.0)
    assert health.deadline() is None
    assert health.next(LIVE, 11.0) is None
    assert asked is not None
    health.counted(asked, Counted((COMPLETE,)), 11.0)
    assert health.next(LIVE, 11.0) == Slice(LIVE, ("g",))


def test_a_change_while_its_file_is_being_counted_is_looked_at_again() -> None:
    for change in (FileHealth.changed, FileHealth.gained):
        health = begun()
        health.changed(["f"], 10.0)
        asked = health.next(LIVE, 10.0)
        change(health, ["f"], 10.0)
        assert asked is not None
        assert told(health.counted(asked, Counted((DEGRADED,)), 10.0)) == [("file.degraded", "f", "degraded")]
        assert look(health, 11.0, COMPLETE) == [("file.available", "f", "complete")]


def test_more_copies_are_news_only_of_files_that_were_not_complete() -> None:
    health = begun()
    health.gained(["f"], 10.0)
    assert health.deadline() is None
    health.changed(["f"], 10.0)
    look(health, 10.0, DEGRADED)
    health.gained(["f", "g"], 11.0)
    assert look(health, 11.0, COMPLETE) == [("file.available", "f", "complete")]


def test_many_files_by_name_go_in_slices() -> None:
    health = begun()
    ids = [str(number) for number in range(SLICE_FILES + 1)]
    health.changed(ids, 10.0)
    health.changed(ids, 10.0)
    first = health.next(LIVE, 10.0)
    assert first == Slice(LIVE, tuple(ids[:SLICE_FILES]))
    # The store got to two of them alone; the rest comes behind what was waiting.
    health.counted(first, Counted((copies("0"), copies("1")), left=first.file_ids[2:]), 10.0)
    second = health.next(LIVE, 10.0)
    assert second is not None
    assert second.file_ids == (ids[-1], *ids[2:SLICE_FILES])


def test_a_walk_goes_on_behind_the_row_it_came_to() -> None:
    health = begun()
    health.peers_changed(10.0)
    at = health.deadline()
    assert at is not None
    assert health.next(LIVE, at) == Slice(LIVE, after=0)
    health.counted(Slice(LIVE, after=0), Counted((copies("1"),), after=7), at)
    assert health.next(LIVE, at) == Slice(LIVE, after=7)
    health.counted(Slice(LIVE, after=7), Counted((copies("2", below=1),), after=9), at)
    assert health.deadline() == at + 0.0005, "a told change gives subscribers a little time"
    assert health.next(LIVE, at + 1) == Slice(LIVE, after=9)
    health.counted(Slice(LIVE, after=9), Counted(()), at + 1)
    assert health.deadline() is None


def test_a_peer_that_changes_during_a_walk_makes_another_one() -> None:
    health = begun()
    health.peers_changed(10.0)
    asked = health.next(LIVE, 10.5)
    assert asked is not None
    health.peers_changed(10.5)
    health.counted(asked, Counted(()), 10.5)
    assert health.deadline() is not None
    assert health.next(LIVE, 11.0) == Slice(LIVE, after=0)


def test_a_peer_that_flaps_is_told_of_less_and_less_often() -> None:
    health, now, walks = begun(), 10.0, []
    while now < 70.0:
        now = round(now + 0.1, 1)
        health.peers_changed(now)
        if (asked := health.next(LIVE, now)) is not None:
            walks.append(now)
            health.counted(asked, Counted(()), now)
    gaps = [b - a for a, b in pairwise(walks)]
    assert len(walks) < 15
    assert max(gaps) <= 10.2, "but it is told"
    health.next(LIVE, now + 20)
    health.counted(Slice(LIVE), Counted(()), now + 20)
    health.peers_changed(now + 60)
    assert health.deadline() == now + 60 + 0.1, "quiet again: at once"


def test_a_file_too_large_for_a_slice_goes_on_where_it_was() -> None:
    health = begun()
    health.changed(["f", "g"], 10.0)
    first = health.next(LIVE, 10.0)
    assert first is not None
    part = Partial("f", LIVE, 4000, 0, 1)
    assert health.counted(first, Counted((), partial=part, left=("g",)), 10.0) == []
    second = health.next(LIVE, 10.0)
    assert second == Slice(LIVE, ("f",), partial=part)
    assert told(health.counted(second, Counted((DEGRADED,)), 10.0)) == [("file.degraded", "f", "degraded")]
    assert look(health, 11.0, copies("g")) == []


def test_with_other_peers_up_a_large_file_is_counted_from_its_start() -> None:
    health = begun()
    health.changed(["f"], 10.0)
    first = health.next(LIVE, 10.0)
    assert first is not None
    health.counted(first, Counted((), partial=Partial("f", LIVE, 4000, 3, 3)), 10.0)
    assert health.next({"A"}, 10.0) == Slice(frozenset({"A"}), ("f",))


def test_a_removed_file_is_forgotten() -> None:
    health = begun()
    health.changed(["f"], 10.0)
    look(health, 10.0, UNAVAILABLE)
    health.changed(["f"], 11.0)
    health.removed("f")
    assert health.deadline() is None
    # Committed again, it is a file like any other.
    health.changed(["f"], 12.0)
    assert look(health, 12.0, UNAVAILABLE) == [("file.unavailable", "f", "unavailable")]


def test_a_store_that_fails_is_asked_again_later() -> None:
    health = begun()
    health.changed(["f"], 10.0)
    asked = health.next(LIVE, 10.0)
    assert asked is not None
    health.failed(asked, 10.0)
    assert health.deadline() == 11.0
    assert look(health, 11.0, DEGRADED) == [("file.degraded", "f", "degraded")]
    health.peers_changed(20.0)
    walk = health.next(LIVE, 21.0)
    assert walk is not None
    health.failed(walk, 21.0)
    assert health.next(LIVE, 22.0) == walk


def test_very_many_files_by_name_become_a_walk() -> None:
    health = begun()
    health.changed((str(number) for number in range(10_001)), 10.0)
    assert health.next(LIVE, 10.0) == Slice(LIVE, after=0)


# -- any order ------------------------------------------------------------------------


@dataclass
class World:
    """Files with a health of their own, and what a subscriber believes."""

    truth: dict[str, Copies] = field(default_factory=lambda: {f: copies(f) for f in "abcd"})
    believed: dict[str, Health] = field(default_factory=dict)
    now: float = 0.0
    health: FileHealth = field(default_factory=lambda: FileHealth(FIRST))
    asked: Slice | None = None
    found: Counted = field(default_factory=lambda: Counted(()))

    def tell(self, changes: list[HealthChange]) -> None:
        for change in changes:
            file_id, health = change.copies.file_id, change.copies.health
            assert self.believed.get(file_id, Health.COMPLETE) is not health, "told twice"
            assert self.now >= FIRST
            self.believed[file_id] = health

    def change(self, what: str, file_id: str, number: int) -> None:
        """The file becomes as it becomes; the machine hears of the files or of a peer."""
        before = self.truth[file_id].health
        self.truth[file_id] = (copies(file_id), copies(file_id, below=1), copies(file_id, 1, 1))[number]
        if what == "peer":
            self.health.peers_changed(self.now)
        elif self.truth[file_id].health is Health.COMPLETE or before is Health.UNAVAILABLE:
            self.health.gained([file_id], self.now)
        else:
            self.health.changed([file_id], self.now)

    def step(self) -> None:
        """The result of the slice under way comes, and the next one is run."""
        if self.asked is not None:
            self.tell(self.health.counted(self.asked, self.found, self.now))
        self.asked = self.health.next(LIVE, self.now)
        self.found = Counted(()) if self.asked is None else self.count(self.asked)

    def count(self, asked: Slice) -> Counted:
        if asked.file_ids:
            return Counted(tuple(self.truth[f] for f in asked.file_ids[:2]), left=asked.file_ids[2:])
        row = "abcd"[asked.after : asked.after + 1]
        return Counted((self.truth[row],), after=asked.after + 1) if row else Counted(())


STEP = st.tuples(
    st.sampled_from(["name", "peer", "count", "time"]), st.sampled_from("abcd"), st.integers(0, 2)
)


@pytest.mark.row("I1")
@given(st.lists(STEP, max_size=60))
def test_whatever_changes_in_whatever_order_the_last_told_is_true(steps: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, file_id, number in steps:
        if what == "time":
            world.now += number
        elif what == "count":
            world.step()
        else:
            world.change(what, file_id, number)
    world.step()
    while world.asked is not None or world.health.deadline() is not None:
        world.now = max(world.now, world.health.deadline() or 0.0)
        world.step()
    for file_id, truth in world.truth.items():
        assert world.believed.get(file_id, Health.COMPLETE) is truth.health
