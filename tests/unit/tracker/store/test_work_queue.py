"""tracker/store/work_queue.py and StoreThread: whoever asks much keeps nobody waiting for the database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from zchunk.runtime.loop import Loop
from zchunk.tracker.store.store import TrackerStore
from zchunk.tracker.store.store_thread import Outcome, StoreThread
from zchunk.tracker.store.work_queue import StoreQueue


def test_changes_keep_their_order_and_members_take_turns_at_reads() -> None:
    queue: StoreQueue[str] = StoreQueue()
    for thing in ("a1", "a2", "w1", "a3", "b1", "w2"):
        queue.add(thing, None if thing[0] == "w" else thing[0])
    assert len(queue) == 6
    assert queue.take() == ["w1", "w2", "a1", "b1"]
    assert queue.take() == ["a2"]
    assert queue.take() == ["a3"]
    assert queue.take() == []
    assert not len(queue)


def test_so_many_changes_are_done_together_and_no_more() -> None:
    queue: StoreQueue[int] = StoreQueue()
    for number in range(600):
        queue.add(number)
    assert [len(queue.take()) for _ in range(4)] == [256, 256, 88, 0]


class Store:
    """The first work waits until it is told to go on: what comes meanwhile, waits together."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.did: list[list[str]] = []

    def together(self, run: Callable[[], list[Any]]) -> list[Any]:
        self.did.append([])
        return run()

    def close(self) -> None:
        pass

    def work(self, name: str) -> str:
        self.began.set()
        assert self.go_on.wait(20.0)
        self.did[-1].append(name)
        return name


class Posted:
    """A loop of which only `post` is used: it carries out at once."""

    def post(self, call: Callable[[], None]) -> None:
        call()


def test_a_members_read_comes_next_however_much_another_asked_before() -> None:
    store, told = Store(), list[str]()
    thread = StoreThread(cast(TrackerStore, store), cast(Loop, Posted()))

    def submit(name: str, reader: str | None) -> None:
        def done(outcome: Outcome) -> None:
            told.append(outcome[0])

        thread.submit(lambda _: store.work(name), done, reader)

    submit("a0", "a")
    assert store.began.wait(20.0)
    for number in range(1, 200):
        submit(f"a{number}", "a")
    submit("write", None)
    submit("b", "b")
    store.go_on.set()
    thread.close()
    assert told[:4] == ["a0", "write", "a1", "b"]
    assert len(told) == 202, "all that waited was done before it ended"
    assert max(len(batch) for batch in store.did) == 3, "a is not answered in one batch"
