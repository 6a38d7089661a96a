"""`zchunk get`: downloads a file, or writes it to standard output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zchunk.cli import progress, render
from zchunk.cli.cat import write_whole
from zchunk.cli.common import (
    Invocation,
    everywhere,
    json_option,
    pass_invocation,
    say,
)
from zchunk.cli.keys import keys_given, secret_options
from zchunk.cli.output import emit_json
from zchunk.errors import InvalidUsage

if TYPE_CHECKING:
    from zchunk.client import Client
    from zchunk.node.bulk.location import Location
from zchunk.cli.transfers import run_job

#: Where a file's content goes instead of a job's events.
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


# -- get ------------------------------------------------------------------------------


@click.command()
@click.argument("name_or_id")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="Target file or folder (default: here, under its name); - for stdout.",
)
@click.option(
    "--no-wait",
    is_flag=True,
    help="Do not wait for missing peers: exit with code 4, and keep what is downloaded.",
)
@click.option("--force", is_flag=True, help="Replace an existing file that has other content.")
@secret_options
@json_option
@everywhere()
@pass_invocation
def get(
    invocation: Invocation,
    name_or_id: str,
    output: str | None,
    no_wait: bool,
    force: bool,
    passphrase_file: str | None,
    key_file: Path | None,
) -> None:
    """Download a file from all its holders at once.

    Verifies every chunk. Waits for missing peers, and continues by itself when they are back.
    Run an interrupted download again: it keeps what is downloaded. `zchunk pause`, `resume` and
    `cancel` control it from any terminal. A cancelled download keeps nothing and ends with exit
    code 10.

    With -o - (or /dev/stdout), writes the content to stdout in order, each chunk after it is
    verified. Such a download has no job: run again, it starts over.
    """
    to_stdout = output in _STDOUT
    if to_stdout and invocation.json:
        raise InvalidUsage("the file and --json cannot both go to stdout; choose a file with -o")
    keys = keys_given(passphrase_file, key_file)
    invocation.say(f"{name_or_id}: asking the tracker for its holders")
    if output is not None and Path(output).is_file():
        invocation.say(f"{output} exists: checking whether it has the same content")
    with invocation.client() as client:
        # Before anything is drawn: it may ask for the passphrase.
        where = client.opened(client.locate(name_or_id), keys.named or keys.for_get)

        def run(emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            return client.get_located(where, output, wait=not no_wait, force=force, on_event=emit)

        if to_stdout:
            _get_to_stdout(client, where, wait=not no_wait)
        else:
            run_get(invocation, client, run)


def _get_to_stdout(client: Client, where: Location, *, wait: bool) -> None:
    """No part and no job: what was written cannot be taken back, so it begins anew each time."""
    say(f"id {where.manifest.file_id}")
    received = write_whole(client, where, wait=wait)
    text = f"{render.size_text(where.manifest.size)}, {render.size_text(received)} received"
    say(f"{where.manifest.name} is complete and verified: {text}")


def run_get(
    invocation: Invocation,
    client: Client,
    run: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]],
) -> None:
    """Runs a download, drawn or told as JSON, and says how it ended."""
    job = progress.JobView(0, 0, begun=False)

    def sized(on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        def emit(event: dict[str, Any]) -> None:
            job.total_bytes = event.get("size", job.total_bytes)
            on_event(event)

        return run(emit)

    done = run_job(invocation, client, job, "get", sized)
    if invocation.json:
        emit_json(done)
    else:
        _show_got(done)


def _show_got(done: dict[str, Any]) -> None:
    target = os.path.relpath(done["target"]) if os.path.isabs(done["target"]) else done["target"]
    if done.get("already"):
        say(f"id {done['file_id']}")
        say(f"{target} already has this content")
        return
    speed = done["bytes_received"] / done["seconds"] if done["seconds"] else 0
    say(
        f"{target} is complete and verified: {render.size_text(done['size'])},"
        f" {render.size_text(done['bytes_received'])} received in {done['seconds']:.1f} s"
        f" ({render.size_text(speed)}/s)"
    )
