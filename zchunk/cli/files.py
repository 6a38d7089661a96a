"""`zchunk put`, `get`, `ls`, `info` and `rm`: files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from zchunk.cli import progress, render
from zchunk.cli.cat import write_whole
from zchunk.cli.common import (
    Invocation,
    agreed,
    as_chunk_size,
    check_can_ask,
    everywhere,
    json_option,
    pass_invocation,
    say,
)
from zchunk.cli.keys import key_file_option, keys_given, secret_options
from zchunk.cli.output import emit_event, emit_json, emit_json_list, emit_json_object, unharmed
from zchunk.cli.signals import interruptible
from zchunk.cli.table import print_table
from zchunk.errors import IntegrityError, Interrupted, InvalidUsage, NotFound, WrongKey, ZchunkError
from zchunk.strategy import MAX_COPIES, STRATEGIES

if TYPE_CHECKING:
    from zchunk.client import Client, PlannedUpload
    from zchunk.content.encryption import Secret
    from zchunk.errors import TooFewPeers
    from zchunk.node.bulk.location import Location
    from zchunk.node.manager import PutOptions
    from zchunk.protocol.messages import FileRecord

#: Where a file's content goes instead of a job's events.
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


# -- jobs: what put and get share ------------------------------------------------------


def _run_job(
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


# -- put ------------------------------------------------------------------------------


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--name", metavar="NAME", help="Name in the cluster (default: the file's own).")
@click.option(
    "--replicas",
    type=click.IntRange(1, MAX_COPIES),
    help="Number of copies of each chunk, on different peers.",
)
@click.option("--strategy", type=click.Choice(STRATEGIES), help="How to spread the chunks over the peers.")
@click.option(
    "--chunk-size",
    callback=as_chunk_size,
    metavar="SIZE",
    help="Size of a chunk, 64 KiB to 64 MiB, e.g. 10MiB.",
)
@click.option(
    "--min-peers",
    type=click.IntRange(1, MAX_COPIES),
    help="Minimum number of peers online; with fewer, the upload fails.",
)
@click.option("--encrypt", is_flag=True, help="Encrypt the file before it leaves this PC.")
@click.option("--hide-name", is_flag=True, help="With --encrypt: show others a neutral name.")
@secret_options
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--wait", is_flag=True, help="Wait for enough peers instead of failing.")
@json_option
@everywhere()
@pass_invocation
def put(
    invocation: Invocation,
    file: Path,
    name: str | None,
    replicas: int | None,
    strategy: str | None,
    chunk_size: int | None,
    min_peers: int | None,
    encrypt: bool,
    hide_name: bool,
    passphrase_file: str | None,
    key_file: Path | None,
    yes: bool,
    wait: bool,
) -> None:
    """Upload a file: spread its chunks over the peers.

    Shows the plan and its consequences, and asks before it sends a byte. Run an interrupted
    upload again: it sends only what is missing.

    With --encrypt, only someone with the passphrase or key file can read the file. The peers
    and the tracker see its size and, without --hide-name, its name. A lost passphrase or key
    file cannot be replaced.
    """
    check_can_ask(yes)
    options = _put_options(name, encrypt, hide_name, passphrase_file, key_file)
    given = {
        "chunk_size": chunk_size,
        "replicas": replicas,
        "distribution_strategy": strategy,
        "min_peers_for_distribution": min_peers,
    }
    # Said before the engine is even imported: nobody should look at nothing.
    invocation.say(f"{file}: asking the tracker for a plan")
    with invocation.client({"chunking": given}) as client:
        planned = _plan(invocation, client, file, options, wait)
        _agree(invocation, client, planned, yes)
        job = progress.JobView(planned.size * planned.planned.replicas, planned.chunks_count)
        done = _run_job(invocation, client, job, "put", planned.run)
    if invocation.json:
        emit_json(done)
    else:
        _show_put(done)


def _put_options(
    name: str | None, encrypt: bool, hide_name: bool, passphrase_file: str | None, key_file: Path | None
) -> PutOptions:
    """Asks for a passphrase where one is needed and none was given."""
    from zchunk.node.manager import PutOptions

    if not encrypt:
        if hide_name or passphrase_file is not None or key_file is not None:
            # Not taken for it: who forgot it would have put the file in the clear.
            raise InvalidUsage("--hide-name, --passphrase-file and --key-file need --encrypt")
        return PutOptions(name=name)
    keys = keys_given(passphrase_file, key_file)
    return PutOptions(name=name, encrypt=keys.for_put(), hide_name=hide_name)


def _plan(
    invocation: Invocation, client: Client, file: Path, options: PutOptions, wait: bool
) -> PlannedUpload:
    """A plan; with `wait` as soon as there are enough peers for one."""
    make = client.plan_when_possible if wait else client.plan_put
    return make(file, options, lambda error: _emit_too_few(invocation, client, file, error))


def _emit_too_few(invocation: Invocation, client: Client, file: Path, error: TooFewPeers) -> None:
    from zchunk.content.manifest import chunk_count
    from zchunk.placement import START_MORE

    if not invocation.json:
        why = f"waiting: {error.message.removesuffix(START_MORE)}"
        if isinstance(unsure := error.details.get("unsure"), (list, tuple)):
            why = render.hellos_text(list(map(str, unsure)))
        say(f"{why} (Ctrl-C stops)")
        return
    chunks = chunk_count(file.stat().st_size, client.settings.chunking.chunk_size)
    waiting = {"event": "waiting", "missing_peers": [], "chunks_missing": chunks, "message": error.message}
    emit_event(waiting | error.details)


def _agree(invocation: Invocation, client: Client, planned: PlannedUpload, yes: bool) -> None:
    """Show the plan and ask. Raises Interrupted where the answer is no."""
    try:
        if invocation.json:
            emit_event(planned.plan_event())
        else:
            render.plan_dialog(_plan_view(client, planned))
        if not yes and not agreed("Continue?", default=True):
            raise Interrupted("cancelled; nothing was stored")
    except BaseException:
        _abandon(planned)
        raise


def _abandon(planned: PlannedUpload) -> None:
    # The tracker forgets a plan by itself.
    with suppress(ZchunkError):
        planned.abandon()


def _show_put(done: dict[str, Any]) -> None:
    where = render.count_text(len(done["peers"]), "peer")
    if done.get("already"):
        text = f"the cluster already has {done['name']}; {render.size_text(done['bytes_sent'])} sent"
    else:
        spread = f"{render.count_text(done['chunks_count'], 'chunk')} on {where}"
        text = (
            f"{done['name']} is uploaded: {spread if done['chunks_count'] else 'empty'},"
            f" {render.size_text(done['bytes_sent'])} sent in {done['seconds']:.1f} s; id:"
        )
    say(text)
    click.echo(done["file_id"])


# -- what a plan says -----------------------------------------------------------------


def _plan_view(client: Client, planned: PlannedUpload) -> render.PlanView:
    return render.PlanView(
        name=planned.name,
        size=planned.size,
        chunk_size=planned.plan.chunk_size,
        chunks_count=planned.chunks_count,
        threshold=client.settings.chunking.min_file_size_for_distribution,
        distributed=planned.planned.distributed,
        strategy=planned.planned.strategy,
        replicas=planned.planned.replicas,
        online=tuple(record.name for record in client.peers() if record.status == "up"),
        shares=planned.shares(),
        encryption=_encryption_text(planned.options),
    )


def _encryption_text(options: PutOptions) -> str:
    """By what, and what others see all the same; empty where it is not encrypted."""
    secret = options.encrypt
    if secret is None:
        return ""
    from zchunk.content.encryption import KeyFile

    by = f"the key file {secret.key_id.hex()}" if isinstance(secret, KeyFile) else "a passphrase"
    return f"with {by}; others see its size{'' if options.hide_name else ' and name'}"


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

    done = _run_job(invocation, client, job, "get", sized)
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


# -- ls and info ----------------------------------------------------------------------


@click.command()
@key_file_option
@json_option
@everywhere()
@pass_invocation
def ls(invocation: Invocation, key_file: Path | None) -> None:
    """List the files of the cluster, newest first.

    With --key-file, shows the true names of the files encrypted with it.
    """
    key = keys_given(None, key_file).named
    with invocation.client() as client:
        from zchunk.node import views

        records = client.ls()
        if key is not None:
            records = (_opened_record(client, record, key) for record in records)
        strange = [record.name for record in client.peers() if record.files_unknown]
        if invocation.json:
            emit_json_list(map(views.file_info, records))
        elif not render.file_table(records) and not strange:
            say("no files yet; `zchunk put FILE` uploads one")
        if strange:
            say(_unknown_text(strange))


def _unknown_text(names: Sequence[str]) -> str:
    """Said to whoever reads JSON too: files are missing from this list."""
    hold = "holds" if len(names) == 1 else "hold"
    return (
        f"{render.count_text(len(names), 'node')} {hold} chunks of files that this tracker does not know:"
        f" {', '.join(names)}; its database was lost, replaced or restored from an older copy"
        " (docs/guide/deployment.md, What to back up)"
    )


def _opened_record(client: Client, record: FileRecord, key: Secret) -> FileRecord:
    """With its true name and SHA-256, if the key is that of the file."""
    if record.sha256 is not None:
        return record
    with suppress(WrongKey, NotFound, IntegrityError):  # removed meanwhile, or odd: as it was listed
        opened = client.opened(client.locate(record.file_id), key).manifest
        return replace(record, name=opened.name, sha256=opened.sha256)
    return record


@click.command()
@click.argument("name_or_id")
@secret_options
@json_option
@everywhere()
@pass_invocation
def info(invocation: Invocation, name_or_id: str, passphrase_file: str | None, key_file: Path | None) -> None:
    """Show a file: its chunks, their holders, its health.

    The health says whether the file can be read now. With --passphrase-file or --key-file, also
    shows the true name and SHA-256 of an encrypted file.
    """
    named = keys_given(passphrase_file, key_file).named
    with invocation.client() as client:
        where = client.locate(name_or_id, settled=True)
        if named is not None:
            where = client.opened(where, named)
    from zchunk.node import views

    if invocation.json:
        emit_json_object(views.file_details(where))
    else:
        _show_info(where)


def _encryption_rows(where: Location) -> list[tuple[str, str]]:
    if where.manifest.sealed is None:
        return []
    from zchunk.content.encryption import head_of

    rows = [("Encrypted", f"AES-256-GCM, with {head_of(where.manifest).lock.text}")]
    if where.manifest.name != where.file.name:
        rows.append(("Others see", where.file.name))
    return rows


def _why_unavailable(where: Location, chunks: str) -> str:
    lost = sum(not row for row in where.holders)
    waiting = where.live_copies().count(0) - lost
    reasons = [f"{waiting:,} of {chunks} wait for a peer that is off"] if waiting else []
    if lost:
        reasons.append(f"no peer has {lost:,} of {chunks} any more (upload the file again from its source)")
    return "; ".join(reasons)


def _show_info(where: Location) -> None:
    from zchunk.node.views import health

    record, sha256 = where.file, where.manifest.sha256
    per_peer = Counter(peer_id for row in where.holders for peer_id, _ in row)
    chunks = render.count_text(record.chunks_count, "chunk")
    health_text = {
        "complete": "complete",
        "degraded": f"degraded: readable, but some chunks have fewer than {record.replicas} copies online",
        "unavailable": f"unavailable: {_why_unavailable(where, chunks)}",
    }
    render.facts(
        [
            ("Name", where.manifest.name),
            ("Id", record.file_id),
            ("Size", f"{render.count_text(record.size, 'byte')} ({render.size_text(record.size)})"),
            ("SHA-256", sha256.hex() if sha256 is not None else "hidden: needs the passphrase or key file"),
            *_encryption_rows(where),
            ("Chunks", f"{chunks} of {render.binary_text(record.chunk_size)}"),
            ("Copies", str(record.replicas)),
            (
                "Spread",
                "over several peers"
                if record.is_distributed
                else "no, each copy is stored whole on one peer",
            ),
            ("Health", health_text[health(where)]),
        ]
    )
    if per_peer:
        click.echo()
        names = sorted(where.peers.values(), key=lambda peer: (peer.name, peer.peer_id))
        rows = [(peer.name, f"{per_peer[peer.peer_id]:,}", render.status_text(peer)) for peer in names]
        print_table(("PEER", "CHUNKS", "STATUS"), rows, right=(1,))


# -- rm -------------------------------------------------------------------------------


@click.command()
@click.argument("name_or_id")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@json_option
@everywhere()
@pass_invocation
def rm(invocation: Invocation, name_or_id: str, yes: bool) -> None:
    """Remove a file from the cluster.

    If several files have the name, give the id (see `zchunk ls`).
    """
    check_can_ask(yes)
    with invocation.client() as client:
        record = client.locate(name_or_id, unique=True).file
        short = record.file_id[: render.SHORT_ID]
        if not yes:
            invocation.say(f"{record.name}: {render.size_text(record.size)}, id {short}")
            if not agreed(f"Remove {record.name} from the cluster?", default=False):
                raise Interrupted("cancelled; nothing was removed")
        removed = client.remove(record.file_id)
    if invocation.json:
        emit_json(
            {"event": "done", "file_id": removed.file_id, "name": record.name, "size": record.size}
            | {"commit_number": removed.commit_number}
        )
    else:
        say(f"removed {record.name} (id {short})")
