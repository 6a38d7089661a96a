"""Blocking calls on a process's loops: each has a queue of its own, and hears how they end.

A thread that starts a job, or asks something, waits for events in its call's queue, whatever
other threads do meanwhile. Whoever waits is told when what it waits for cannot come any more: the
loops have ended, by a bug or because they were closed. Callers: client.py; jobs/blocking.py runs a job.

What may not happen here: an event of one call in the queue of another; a thread that waits for a
loop that has ended.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zchunk.errors import ForeignProcess, ZchunkError


@dataclass(frozen=True)
class Interrupt:
    """See `Calls.interrupt`."""


@dataclass(frozen=True)
class ShutOut:
    """See `Calls.shut_out`."""

    why: ZchunkError


@dataclass(frozen=True)
class Ended:
    """See `Calls.end`."""

    why: BaseException


class Call:
    """What one thread waits for. Anybody may `emit`."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before each wait, and raises where nothing can come."""
        self._check = check
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.emit: Callable[[object], None] = self._events.put

    def next(self, timeout_s: float | None = None) -> object:
        """The next event: what somebody emitted, `Interrupt` or `ShutOut`. Raises queue.Empty after
        the time, and why the loops have ended."""
        self._check()
        event = self._events.get(timeout=timeout_s)
        if isinstance(event, Ended):
            self.emit(event)  # for whoever asks once more
            raise event.why.with_traceback(None)
        return event


class Calls:
    """The calls of one process's loops. Thread-safe; `interrupt` also in a signal handler."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._open: dict[Call, None] = {}
        #: calls that run a job -> by which thread
        self._jobs: dict[Call, int] = {}
        #: why no call can begin any more
        self._why: BaseException | None = None
        self._changed = threading.Condition()

    @contextmanager
    def call(self, *, job: bool = False) -> Iterator[Call]:
        """For the time of the block. Raises as `begin`."""
        call = self.begin(job=job)
        try:
            yield call
        finally:
            self.leave(call)

    def begin(self, *, job: bool = False) -> Call:
        """To be left. `job`: who ends the loops waits for it (see `stop_jobs`). Raises why the
        loops have ended, and as `check_process`."""
        self.check_process()
        call = Call(self.check_process)
        with self._changed:
            if self._why is not None:
                raise self._why.with_traceback(None)
            self._open[call] = None
            if job:
                self._jobs[call] = threading.get_ident()
        return call

    @property
    def is_foreign(self) -> bool:
        """Whether this is a fork of the process whose loops they are, which has none."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises ForeignProcess."""
        if self.is_foreign:
            raise ForeignProcess(
                f"this client belongs to process {self._pid} and does not work after a fork;"
                " create a zchunk.Client in each process"
            )

    def leave(self, call: Call) -> None:
        """A second time does nothing."""
        with self._changed:
            self._open.pop(call, None)
            self._jobs.pop(call, None)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Every job stops as by Ctrl-C, and what it has is kept."""
        for call in list(self._jobs):
            call.emit(Interrupt())

    def shut_out(self, why: ZchunkError) -> None:
        """Jobs stop, and end with this error; so does whoever follows events."""
        self._emit_all(ShutOut(why))

    def stop_jobs(self, why: ZchunkError, timeout_s: float) -> None:
        """As `shut_out`, and no call begins any more. Waits for the jobs of other threads."""
        with self._changed:
            self._why = self._why or why
        self.shut_out(why)
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs_of_others(), timeout_s)

    def end(self, why: BaseException) -> None:
        """The loops have ended: every call that is open, or begins, raises `why`."""
        with self._changed:
            self._why = self._why or why
        self._emit_all(Ended(why))

    def _jobs_of_others(self) -> set[int]:
        return set(self._jobs.values()) - {threading.get_ident()}

    def _emit_all(self, event: object) -> None:
        for call in list(self._open):
            call.emit(event)
