"""Blocking calls on a process's loops: each has a queue of its own, and hears how they end.

A thread that starts a job, or asks something, waits for events in its call's queue, whatever
other threads do meanwhile. Whoever waits is told when what it waits for cannot come any more: the
loops have ended, by a bug or because they were closed. Callers: client.py.

What may not happen here: an event of one call in the queue of another; a thread that waits for a
loop that has ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zchunk.errors import ZchunkError
from zchunk.runtime.loop import Loop

OnEvent = Callable[[dict[str, Any]], None]

#: Events that no job tells: see `Calls.interrupt`, `shut_out` and `end`.
INTERRUPT, SHUT_OUT, ENDED = "interrupt", "shut_out", "ended"


class Call:
    """What one thread waits for. Anybody may `emit`."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.emit: OnEvent = self._events.put

    def next(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next event. Raises queue.Empty after the time, and why the loops have ended."""
        event = self._events.get(timeout=timeout_s)
        if event["event"] == ENDED:
            self.emit(event)  # for whoever asks once more
            raise event["_why"].with_traceback(None)
        return event

    def take_pending(self, on_event: OnEvent) -> None:
        """For a thread that is busy itself before its job begins: shows what has come meanwhile.
        Raises KeyboardInterrupt after an interrupt, and why the loops have ended or shut us out."""
        with suppress(queue.Empty):
            while True:
                event = self.next(0)
                if event["event"] == SHUT_OUT:
                    raise event["_error"]
                on_event(event)
                if event["event"] == INTERRUPT:
                    raise KeyboardInterrupt

    def run(
        self, loop: Loop, start: Callable[[], None], stop: Callable[[], None], on_event: OnEvent | None
    ) -> dict[str, Any]:
        """Runs a job, in `loop`, to its end; its events go to `on_event`, in this thread. Returns
        the last one, `done`. Raises the job's error; after Ctrl-C it ends by itself, kept."""
        loop.post(start)
        why: ZchunkError | None = None
        while True:
            try:
                event = self.next()
                if event["event"] == "done":
                    return event
                error = event.pop("_error", None)
                if event["event"] == SHUT_OUT:
                    # The job's end comes as an event of its own; this is why.
                    why = error
                    loop.post(stop)
                    continue
                if error is not None:
                    raise why or error
                if event["event"] == INTERRUPT:
                    loop.post(stop)
                if on_event is not None:
                    self._show(event, on_event, loop, stop)
            except KeyboardInterrupt:
                # Its end comes as an event: the part is saved first.
                loop.post(stop)

    def _show(self, event: dict[str, Any], on_event: OnEvent, loop: Loop, stop: Callable[[], None]) -> None:
        """A caller whose function fails gets its exception, once the job has ended: until then
        its target is being written to."""
        try:
            on_event(event)
        except Exception:
            loop.post(stop)
            while self.next()["event"] not in ("done", "error"):
                pass
            raise


class Calls:
    """The calls of one process's loops. Thread-safe; `interrupt` also in a signal handler."""

    def __init__(self) -> None:
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
        loops have ended."""
        call = Call()
        with self._changed:
            if self._why is not None:
                raise self._why.with_traceback(None)
            self._open[call] = None
            if job:
                self._jobs[call] = threading.get_ident()
        return call

    def leave(self, call: Call) -> None:
        """A second time does nothing."""
        with self._changed:
            self._open.pop(call, None)
            self._jobs.pop(call, None)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Every job stops as by Ctrl-C, and what it has is kept."""
        for call in list(self._jobs):
            call.emit({"event": INTERRUPT})

    def shut_out(self, why: ZchunkError) -> None:
        """Jobs stop, and end with this error; so does whoever follows events."""
        self._emit_all({"event": SHUT_OUT, "_error": why})

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
        self._emit_all({"event": ENDED, "_why": why})

    def _jobs_of_others(self) -> set[int]:
        return set(self._jobs.values()) - {threading.get_ident()}

    def _emit_all(self, event: dict[str, Any]) -> None:
        for call in list(self._open):
            call.emit(dict(event))
