"""`zchunk ls`, `info` and `rm`: files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from zchunk.cli import render
from zchunk.cli.common import (
    Invocation,
    agreed,
    check_can_ask,
    everywhere,
    json_option,
    pass_invocation,
    say,
)
from zchunk.cli.keys import key_file_option, keys_given, secret_options
from zchunk.cli.output import emit_json, emit_json_list, emit_json_object
from zchunk.cli.table import print_table
from zchunk.errors import IntegrityError, Interrupted, NotFound, WrongKey

if TYPE_CHECKING:
    from zchunk.client import Client
    from zchunk.content.encryption import Secret
    from zchunk.node.bulk.location import Location
    from zchunk.protocol.messages import FileRecord

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
