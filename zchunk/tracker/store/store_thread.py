"""The store's thread: works that wait together share one transaction, and so one sync."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zchunk.errors import ZchunkError
from zchunk.runtime.loop import Loop
from zchunk.tracker.store.store import TrackerStore
from zchunk.tracker.store.work_queue import StoreQueue

Outcome = tuple[Any, ZchunkError | None]


class StoreRunner(Protocol):
    """Where `Work` runs: a thread, or in a simulation at once."""

    def submit(
        self,
        run: Callable[[TrackerStore], Any],
        done: Callable[[Outcome], None],
        reader: str | bytes | None = None,
    ) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    run: Callable[[TrackerStore], Any]
    done: Callable[[Outcome], None]


class StoreThread:
    """One writer. Works that wait together share one transaction and so one sync; their
    outcomes are told only after it is on disk."""

    def __init__(self, store: TrackerStore, loop: Loop) -> None:
        self._store = store
        self._loop = loop
        self._queue: StoreQueue[_Waiting] = StoreQueue()
        self._closing = False
        #: guards both, and tells of news in them
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tracker-store", daemon=True)
        self._thread.start()

    def submit(
        self,
        run: Callable[[TrackerStore], Any],
        done: Callable[[Outcome], None],
        reader: str | bytes | None = None,
    ) -> None:
        """`reader`: who asks, where it only reads."""
        with self._news:
            self._queue.add(_Waiting(run, done), reader)
            self._news.notify()

    def close(self) -> None:
        """Does what waits, then ends."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout=10)
        self._store.close()

    def _take(self) -> list[_Waiting]:
        with self._news:
            self._news.wait_for(lambda: self._closing or len(self._queue))
            return self._queue.take()

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._run_batch(batch)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which ends with it
            failure = error
            self._loop.post(lambda: _raise(failure))

    def _run_batch(self, batch: list[_Waiting]) -> None:
        outcomes = _outcomes(self._store, [one.run for one in batch])
        for one, outcome in zip(batch, outcomes, strict=True):
            self._loop.post(lambda done=one.done, outcome=outcome: done(outcome))  # type: ignore[misc]


def _outcomes(store: TrackerStore, runs: Sequence[Callable[[TrackerStore], Any]]) -> list[Outcome]:
    """Of all in one transaction. Where the database fails (its disk is full, it is locked) nothing of
    them is there: then each by itself, since those that only read may well succeed."""
    try:
        return store.together(lambda: [_attempt(store, run) for run in runs])
    except ZchunkError as error:
        if len(runs) == 1:
            return [(None, error)]
        return [outcome for run in runs for outcome in _outcomes(store, [run])]


def _attempt(store: TrackerStore, run: Callable[[TrackerStore], Any]) -> Outcome:
    try:
        return run(store), None
    except ZchunkError as error:
        return None, error


def _raise(error: BaseException) -> None:
    raise error
