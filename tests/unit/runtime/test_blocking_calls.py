"""zchunk/node/calls: each call hears its own events, and how the loops have ended."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from zchunk.errors import ClientClosed, Interrupted, NotAllowed, NotFound
from zchunk.runtime.blocking_calls import Call, Calls

CLOSED = ClientClosed("closed")
DONE = {"event": "done"}


class Job:
    """Tells its events when it is started; ends when it is stopped, if not before."""

    def __init__(self, call: Call, *events: dict[str, Any]) -> None:
        self.call = call
        self.events = events
        self.stopped = 0
        self.loop: Any = SimpleNamespace(post=lambda what: what())

    def start(self) -> None:
        for event in self.events:
            self.call.emit(dict(event))

    def stop(self) -> None:
        self.stopped += 1
        error = Interrupted("stopped")
        self.call.emit({**error.to_json(), "_error": error})

    def run(self, on_event: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        return self.call.run(self.loop, self.start, self.stop, on_event)


def in_thread(run: Callable[[], Any]) -> queue.SimpleQueue[Any]:
    """Where its outcome comes: a value or an error."""
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def thread() -> None:
        try:
            outcome.put(run())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.put(error)

    threading.Thread(target=thread, daemon=True).start()
    return outcome


# -- one job ------------------------------------------------------------------------------


def test_a_job_s_events_come_in_order_and_its_end_is_the_value() -> None:
    seen: list[str] = []
    job = Job(Call(), {"event": "plan"}, {"event": "progress"}, DONE)
    assert job.run(lambda event: seen.append(event["event"])) == DONE
    assert seen == ["plan", "progress"]


def test_a_job_s_error_is_raised() -> None:
    error = NotFound("no such file")
    with pytest.raises(NotFound, match="no such file"):
        Job(Call(), {**error.to_json(), "_error": error}).run()


def test_who_is_shut_out_hears_why_once_the_job_has_ended() -> None:
    job = Job(Call(), {"event": "shut_out", "_error": NotAllowed("revoked")})
    with pytest.raises(NotAllowed, match="revoked"):
        job.run()
    assert job.stopped == 1


def test_an_exception_of_the_caller_s_function_comes_once_the_job_has_ended() -> None:
    job = Job(Call(), {"event": "plan"}, {"event": "progress"})

    def fails(event: dict[str, Any]) -> None:
        raise KeyError("the caller's")

    with pytest.raises(KeyError):
        job.run(fails)
    assert job.stopped == 1


def test_ctrl_c_stops_the_job_and_its_end_is_waited_for() -> None:
    job = Job(Call(), {"event": "plan"})

    def interrupted(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        job.run(interrupted)
    assert job.stopped == 1


# -- several calls ------------------------------------------------------------------------


def test_each_call_hears_its_own_events() -> None:
    calls = Calls()
    with calls.call() as first, calls.call() as second:
        first.emit({"event": "a"})
        second.emit({"event": "b"})
        assert (second.next(0.1), first.next(0.1)) == ({"event": "b"}, {"event": "a"})


def test_a_job_may_run_in_the_midst_of_another() -> None:
    calls = Calls()

    def inner(event: dict[str, Any]) -> None:
        with calls.call(job=True) as call:
            assert Job(call, {"event": "done", "which": "inner"}).run()["which"] == "inner"

    with calls.call(job=True) as call:
        assert (
            Job(call, {"event": "plan"}, {"event": "done", "which": "outer"}).run(inner)["which"] == "outer"
        )


def test_an_interrupt_reaches_jobs_and_nobody_else() -> None:
    calls, seen = Calls(), []
    with calls.call() as other, calls.call(job=True) as call:
        calls.interrupt()
        job = Job(call)
        with pytest.raises(Interrupted):
            job.run(lambda event: seen.append(event["event"]))
        with pytest.raises(queue.Empty):
            other.next(0.01)
    assert (seen, job.stopped) == (["interrupt"], 1)


# -- the end ------------------------------------------------------------------------------


def test_who_waits_is_told_that_the_loops_have_ended_and_nobody_begins_any_more() -> None:
    calls, begun = Calls(), threading.Event()

    def wait() -> Any:
        with calls.call() as call:
            begun.set()
            return call.next(10)

    outcome = in_thread(wait)
    assert begun.wait(5)
    calls.end(RuntimeError("a bug"))
    assert isinstance(outcome.get(timeout=5), RuntimeError)
    with pytest.raises(RuntimeError, match="a bug"):
        calls.begin()


def test_an_end_is_heard_however_often_it_is_asked_for() -> None:
    calls = Calls()
    with calls.call() as call:
        calls.end(CLOSED)
        for _ in range(3):
            with pytest.raises(ClientClosed):
                call.next(0.1)


def test_jobs_of_other_threads_end_before_the_loops_do() -> None:
    calls, begun = Calls(), threading.Event()

    def run() -> Any:
        with calls.call(job=True) as call:
            begun.set()
            return Job(call).run()

    outcome = in_thread(run)
    assert begun.wait(5)
    calls.stop_jobs(CLOSED, 5)
    assert outcome.get(timeout=0) is CLOSED, "it has ended when `stop_jobs` returns"


def test_who_closes_in_the_midst_of_its_own_job_does_not_wait_for_itself() -> None:
    calls = Calls()

    def close(event: dict[str, Any]) -> None:
        calls.stop_jobs(CLOSED, 60)
        calls.end(CLOSED)

    with calls.call(job=True) as call, pytest.raises(ClientClosed):
        Job(call, {"event": "plan"}).run(close)
