"""runtime/blocking_calls.py: each call hears its own events, and how the loops have ended."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from zchunk.errors import ClientClosed
from zchunk.runtime.blocking_calls import Calls

CLOSED = ClientClosed("closed")


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


# -- several calls ------------------------------------------------------------------------


def test_each_call_hears_its_own_events() -> None:
    calls = Calls()
    with calls.call() as first, calls.call() as second:
        first.emit("a")
        second.emit("b")
        assert (second.next(0.1), first.next(0.1)) == ("b", "a")


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
