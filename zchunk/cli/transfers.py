"""What `zchunk put`, `get` and `resume` show while a job runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zchunk.cli import progress, render
from zchunk.cli.common import (
    Invocation,
)
from zchunk.cli.output import emit_event, unharmed
from zchunk.cli.signals import interruptible

if TYPE_CHECKING:
    from zchunk.client import Client

# -- jobs: what put and get share ------------------------------------------------------


def run_job(
    invocation: Invocation,
    client: Client,
    job: progress.JobView,
    what: str,
    run: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]],
) -> dict[str, Any]:
    """Runs a job that tells its events; returns its `done` event. Draws, or prints JSON."""
    with progress.ProgressLine(job, what) if not invocation.json else _Silent() as line:

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "interrupt":
                invocation.say("stopping; press Ctrl-C again to stop at once")
                return
            if invocation.json:
                emit_event(event)
                return
            with unharmed("the progress"):
                job.take(event)
                _show_event(line, event)
                line.show(time.monotonic())

        # Between the engine's events, and not in the middle of one.
        with interruptible(invocation, client.interrupt):
            done = run(on_event)
            job.done = True
            return done


class _Silent(progress.ProgressLine):
    """For `--json`: nothing on stderr."""

    def __init__(self) -> None:
        super().__init__(progress.JobView(0, 0), "")

    def __enter__(self) -> _Silent:
        return self


def _show_event(line: progress.ProgressLine, event: dict[str, Any]) -> None:
    """What of an event is worth a line that stays."""
    kind = event["event"]
    if kind == "plan":
        kept = event.get("chunks_kept", 0)
        line.note(f"id {event['file_id']}")
        if "job_id" in event:
            line.note(f"job {event['job_id']}: `zchunk pause`, `resume` and `cancel` control it")
        if kept:
            line.note(f"{kept:,} of {render.count_text(event['chunks_count'], 'chunk')} are already here")
    elif kind == "waiting":
        line.note(f"{render.waiting_text(event)} ({_waiting_hint(event)})")
    elif kind == "resumed":
        line.note(f"{event.get('name', event['peer_id'])} is back: continuing")
    elif kind == "peer_back":
        line.note(f"{event['name']} is back: `zchunk resume {event['job_id']}` continues")
    elif kind == "paused":
        line.note(f"paused: `zchunk resume {event['job_id']}` continues (Ctrl-C stops, nothing is lost)")
    elif kind == "continued":
        line.note("continuing")
    elif kind == "corrupt":
        line.note(render.corrupt_text(event))


def _waiting_hint(event: dict[str, Any]) -> str:
    if event.get("busy_peers"):
        return "continues by itself in its turn; Ctrl-C stops, nothing is lost"
    if event.get("auto_resume", True):
        return "continues by itself when it is back; Ctrl-C stops, nothing is lost"
    return f"auto-resume is off: `zchunk resume {event['job_id']}` continues when it is back"
