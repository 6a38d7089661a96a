"""limits/fair_queue.py and loop.FairWorkers: the work of one does not wait behind all that another asks
for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zchunk.errors import Busy, ZchunkError
from zchunk.limits.fair_queue import FairQueue
from zchunk.runtime.loop import FairWorkers

MEMBERS = st.sampled_from("abc")


def test_members_take_turns_and_each_has_its_own_order() -> None:
    turns: FairQueue[str] = FairQueue()
    for thing in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.add(thing[0], thing)
    assert [turns.next() for _ in range(len(turns))] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not len(turns)


@given(st.lists(st.one_of(MEMBERS, st.none())))
def test_nobody_is_passed_twice_by_another(steps: list[str | None]) -> None:
    """`None`: the next thing is taken; else that member adds one."""
    turns: FairQueue[str] = FairQueue()
    waiting: Counter[str] = Counter()
    passed: dict[str, Counter[str]] = {member: Counter() for member in "abc"}
    for step in steps:
        if step is not None:
            turns.add(step, step)
            waiting[step] += 1
        elif len(turns):
            taken = turns.next()
            waiting[taken] -= 1
            passed[taken].clear()
            for member in "abc":
                if waiting[member] and member != taken:
                    passed[member][taken] += 1
                    assert passed[member][taken] == 1
        assert len(turns) == waiting.total()


class Bench:
    """Workers that do what they have when told."""

    def __init__(self) -> None:
        self.works: deque[tuple[Callable[[], Any], Callable[..., None]]] = deque()

    def submit(self, work: Callable[[], Any], done: Callable[..., None]) -> None:
        self.works.append((work, done))

    def do(self) -> None:
        work, done = self.works.popleft()
        try:
            value = work()
        except ZchunkError as error:
            done(None, error)
        else:
            done(value, None)

    def close(self) -> None:
        pass


def test_another_members_work_comes_next_however_much_waits() -> None:
    bench = Bench()
    fair = FairWorkers(bench, at_once=2)
    did: list[str] = []
    for number in range(1000):
        fair.submit("a", lambda number=number: did.append(f"a{number}"), lambda value, error: None)  # type: ignore[misc]
    fair.submit("b", lambda: did.append("b"), lambda value, error: None)
    assert len(bench.works) == 2
    for _ in range(4):
        bench.do()
    assert did == ["a0", "a1", "a2", "b"] or did == ["a0", "a1", "b", "a2"]


def test_what_becomes_of_a_work_is_told_and_the_next_begins() -> None:
    bench = Bench()
    fair = FairWorkers(bench, at_once=1)
    told: list[object] = []

    def fails() -> None:
        raise Busy("not now")

    fair.submit("a", fails, lambda value, error: told.append(error and error.code))
    fair.submit("a", lambda: 7, lambda value, error: told.append(value))
    bench.do()
    bench.do()
    assert told == ["busy", 7]
