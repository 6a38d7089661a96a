"""node/jobs/blocking.py: a job that a thread waits for; its events, its end, and how it is stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.runtime.test_blocking_calls import CLOSED, in_thread
from zchunk.errors import ClientClosed, Interrupted, NotAllowed, NotFound
from zchunk.node.job_events import Continued, Downloaded, Failed, Paused
from zchunk.node.jobs.blocking import run, take_pending
from zchunk.runtime.blocking_calls import Call, Calls, ShutOut

JOB = "0123abcd"
PAUSED = Paused(job_id=JOB, chunks_completed=1, chunks_count=3)
CONTINUED = Continued(job_id=JOB, chunks_completed=1, chunks_count=3)
DONE = Downloaded(
    job_id=JOB,
    file_id="f" * 64,
    name="film.mkv",
    size=10,
    sha256=None,
    seconds=1.0,
    chunks_count=3,
    target="/film.mkv",
    bytes_received=10,
    bytes_received_by_peer={},
)


class Job:
    """Tells its events when it is started; ends when it is stopped, if not before."""

    def __init__(self, call: Call, *events: object) -> None:
        self.call = call
        self.events = events
        self.stopped = 0
        self.loop: Any = SimpleNamespace(post=lambda what: what())

    def start(self) -> None:
        for event in self.events:
            self.call.emit(event)

    def stop(self) -> None:
        self.stopped += 1
        self.call.emit(Failed(job_id=JOB, error=Interrupted("stopped")))

    def run(self, on_event: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        return run(self.call, self.loop, self.start, self.stop, on_event)


def test_a_job_s_events_come_in_order_and_its_end_is_the_value() -> None:
    seen: list[str] = []
    job = Job(Call(), PAUSED, CONTINUED, DONE)
    assert job.run(lambda event: seen.append(event["event"])) == DONE.to_json()
    assert seen == ["paused", "continued"]


def test_a_job_s_error_is_raised() -> None:
    error = NotFound("no such file")
    with pytest.raises(NotFound, match="no such file"):
        Job(Call(), Failed(job_id=JOB, error=error)).run()


def test_who_is_shut_out_hears_why_once_the_job_has_ended() -> None:
    job = Job(Call(), ShutOut(NotAllowed("revoked")))
    with pytest.raises(NotAllowed, match="revoked"):
        job.run()
    assert job.stopped == 1


def test_an_exception_of_the_caller_s_function_comes_once_the_job_has_ended() -> None:
    job = Job(Call(), PAUSED, CONTINUED)

    def fails(event: dict[str, Any]) -> None:
        raise KeyError("the caller's")

    with pytest.raises(KeyError):
        job.run(fails)
    assert job.stopped == 1


def test_ctrl_c_stops_the_job_and_its_end_is_waited_for() -> None:
    job = Job(Call(), PAUSED)

    def interrupted(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        job.run(interrupted)
    assert job.stopped == 1


def test_a_job_may_run_in_the_midst_of_another() -> None:
    calls = Calls()

    def inner(event: dict[str, Any]) -> None:
        with calls.call(job=True) as call:
            assert Job(call, replace(DONE, name="inner")).run()["name"] == "inner"

    with calls.call(job=True) as call:
        assert Job(call, PAUSED, replace(DONE, name="outer")).run(inner)["name"] == "outer"


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
        Job(call, PAUSED).run(close)


def test_a_thread_that_is_busy_before_its_job_hears_what_came_meanwhile() -> None:
    calls = Calls()
    seen: list[dict[str, Any]] = []
    with calls.call(job=True) as call:
        take_pending(call, seen.append)
        assert seen == []
        calls.interrupt()
        with pytest.raises(KeyboardInterrupt):
            take_pending(call, seen.append)
        assert seen == [{"event": "interrupt"}]
        calls.shut_out(NotAllowed("revoked"))
        with pytest.raises(NotAllowed, match="revoked"):
            take_pending(call, seen.append)
