"""A job that a thread runs and waits for: its events to a function of the caller, its end as a value
or an error.

What may not happen here: an error raised while the job still works on its file.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from zchunk.errors import ZchunkError
from zchunk.node.job_events import Done, Failed, JobEvent
from zchunk.runtime.blocking_calls import Call, Interrupt, ShutOut
from zchunk.runtime.loop import Loop

OnEvent = Callable[[dict[str, Any]], None]

#: Told beside the events of the job: it was asked to stop.
INTERRUPTED: dict[str, Any] = {"event": "interrupt"}


def take_pending(call: Call, on_event: OnEvent) -> None:
    """For a thread that is busy itself before its job begins. Raises KeyboardInterrupt after an
    interrupt, and why the loops have ended or shut us out."""
    with suppress(queue.Empty):
        while True:
            event = call.next(0)
            if isinstance(event, ShutOut):
                raise event.why
            if isinstance(event, Interrupt):
                on_event(dict(INTERRUPTED))
                raise KeyboardInterrupt


def run(
    call: Call, loop: Loop, start: Callable[[], None], stop: Callable[[], None], on_event: OnEvent | None
) -> dict[str, Any]:
    """Runs a job, in `loop`, to its end; its events go to `on_event`, in this thread. Returns
    the last one, `done`. Raises the job's error; after Ctrl-C it ends by itself, kept."""
    loop.post(start)
    why: ZchunkError | None = None
    while True:
        try:
            event = call.next()
            if isinstance(event, Done):
                return event.to_json()
            if isinstance(event, Failed):
                raise why or event.error
            if isinstance(event, ShutOut):
                # The job's end comes as an event of its own; this is why.
                why = event.why
                loop.post(stop)
            elif isinstance(event, Interrupt):
                loop.post(stop)
                _show(call, dict(INTERRUPTED), on_event, loop, stop)
            elif isinstance(event, JobEvent):
                _show(call, event.to_json(), on_event, loop, stop)
        except KeyboardInterrupt:
            # Its end comes as an event: the part is saved first.
            loop.post(stop)


def _show(
    call: Call, event: dict[str, Any], on_event: OnEvent | None, loop: Loop, stop: Callable[[], None]
) -> None:
    """A caller whose function fails gets its exception, once the job has ended: until then
    its target is being written to."""
    if on_event is None:
        return
    try:
        on_event(event)
    except Exception:
        loop.post(stop)
        while not isinstance(call.next(), Done | Failed):
            pass
        raise
