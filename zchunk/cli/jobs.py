"""`zchunk jobs`, `pause`, `resume` and `cancel`: the downloads of this home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zchunk.cli import render
from zchunk.cli.common import Invocation, everywhere, json_option, pass_invocation, say
from zchunk.cli.get import run_get
from zchunk.cli.keys import keys_given, secret_options
from zchunk.cli.output import emit_json
from zchunk.errors import ZchunkError

if TYPE_CHECKING:
    from zchunk.client import Client
    from zchunk.node.bulk.location import Location
    from zchunk.node.jobs.desk import JobDesk
    from zchunk.node.jobs.records import JobRecord, JobStatus

_JOB_IDS = click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)


def _desk(invocation: Invocation) -> JobDesk:
    from zchunk.node.jobs.desk import desk_of

    return desk_of(invocation.home)


@click.command()
@json_option
@everywhere()
@pass_invocation
def jobs(invocation: Invocation) -> None:
    """List the downloads of this home.

    Lists those running in any terminal, those that can be resumed, and the last ones that have
    ended.
    """
    found = _desk(invocation).all()
    if invocation.json:
        from zchunk.node import views

        emit_json([views.job(job) for job in found])
    elif found:
        render.job_table(found)
    else:
        say("no downloads yet; `zchunk get NAME` starts one")


@click.command()
@_JOB_IDS
@json_option
@everywhere()
@pass_invocation
def pause(invocation: Invocation, job_ids: Sequence[str]) -> None:
    """Pause running downloads, until `zchunk resume`.

    JOB is an id from `zchunk jobs`, or the beginning of one.
    """
    desk = _desk(invocation)
    _each(desk, job_ids, lambda record: _told(invocation, "pause", desk.pause(record)))


@click.command()
@_JOB_IDS
@secret_options
@json_option
@everywhere()
@pass_invocation
def resume(
    invocation: Invocation, job_ids: Sequence[str], passphrase_file: str | None, key_file: Path | None
) -> None:
    """Continue downloads that are paused, interrupted or failed.

    A download whose process still runs continues there. The others run here, one after the
    other, as with `zchunk get`, and keep what they have. For an encrypted file, give its
    passphrase or key file again.
    """
    keys = keys_given(passphrase_file, key_file)
    desk = _desk(invocation)
    standing: list[JobRecord] = []

    def one(record: JobRecord) -> None:
        found = desk.resume(record)
        if found.active:
            _told(invocation, "resume", found)
        else:
            standing.append(record)

    _each(desk, job_ids, one)
    if standing:
        with invocation.client() as client:
            for record in standing:
                invocation.say(f"{record.name} to {render.shown_path(record.target)}: continuing")
                _run(invocation, client, record, client.locate_job(record, keys.for_get))


def _run(invocation: Invocation, client: Client, record: JobRecord, where: Location) -> None:
    run_get(invocation, client, lambda emit: client.run_job(record, where, on_event=emit))


@click.command()
@_JOB_IDS
@json_option
@everywhere()
@pass_invocation
def cancel(invocation: Invocation, job_ids: Sequence[str]) -> None:
    """Cancel downloads and delete what they have so far. The `zchunk get` of a running one
    ends with exit code 10.
    """
    desk = _desk(invocation)
    _each(desk, job_ids, lambda record: _told(invocation, "cancel", desk.cancel(record)))


def _each(desk: JobDesk, job_ids: Sequence[str], do: Callable[[JobRecord], None]) -> None:
    """All are known before one is touched; one that fails does not keep the others back.
    Raises the first failure."""
    records = {record.job_id: record for record in map(desk.find, job_ids)}
    failures: list[ZchunkError] = []
    for record in records.values():
        try:
            do(record)
        except ZchunkError as error:
            failures.append(error)
    for failure in failures[1:]:
        say(f"zchunk: {failure.message}")
    if failures:
        raise failures[0]


def _told(invocation: Invocation, action: str, job: JobStatus) -> None:
    if invocation.json:
        from zchunk.node import views

        emit_json({"event": "done", "action": action, **views.job(job)})
    else:
        say(_outcome(action, job))


def _outcome(action: str, job: JobStatus) -> str:
    done = f"{job.chunks_completed:,} of {render.count_text(job.chunks_count, 'chunk')}"
    what = f"job {job.job_id} ({job.name})"
    if action == "cancel":
        return f"{what} is cancelled; nothing is kept"
    if not job.active:
        return f"{what} is not running: it is {job.state}, with {done}"
    if action == "pause":
        return f"{what} is paused, with {done}; `zchunk resume {job.job_id}` continues"
    if job.state == "waiting":
        return f"{what} still waits for {', '.join(job.missing_names)}, with {done}"
    return f"{what} continues in the process that runs it, with {done}"
