"""`zchunk put`: asks for a plan, shows what it means, uploads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zchunk.cli import progress, render
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
from zchunk.cli.keys import keys_given, secret_options
from zchunk.cli.output import emit_event, emit_json
from zchunk.errors import Interrupted, InvalidUsage, ZchunkError
from zchunk.strategy import MAX_COPIES, STRATEGIES

if TYPE_CHECKING:
    from zchunk.client import Client, PlannedUpload
    from zchunk.errors import TooFewPeers
    from zchunk.node.manager import PutOptions
from zchunk.cli.transfers import run_job

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
        done = run_job(invocation, client, job, "put", planned.run)
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
