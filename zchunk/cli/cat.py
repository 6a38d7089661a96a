"""`zchunk cat`: a file, or a range of it, to stdout; and `zchunk get -o -`, all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zchunk.cli import render
from zchunk.cli.common import Invocation, as_size, everywhere, pass_invocation, say
from zchunk.cli.keys import keys_given, secret_options
from zchunk.errors import IntegrityError

if TYPE_CHECKING:
    from zchunk.client import Client
    from zchunk.content.hashing import FileDigest
    from zchunk.node.bulk.location import Location


@click.command()
@click.argument("name_or_id")
@click.option("--offset", metavar="N", default="0", callback=as_size, help="First byte (default: 0).")
@click.option("--length", metavar="N", callback=as_size, help="Number of bytes (default: to the end).")
@click.option("--no-wait", is_flag=True, help="Do not wait for missing peers: exit with code 4.")
@secret_options
@everywhere()
@pass_invocation
def cat(
    invocation: Invocation,
    name_or_id: str,
    offset: int,
    length: int | None,
    no_wait: bool,
    passphrase_file: str | None,
    key_file: Path | None,
) -> None:
    """Write a file, or a range of it, to standard output.

    Fetches only the chunks of the range, and verifies each one before writing any of it. A
    range past the end of the file is empty. Offset and length may have units, e.g. 10MiB.
    """
    keys = keys_given(passphrase_file, key_file)
    with invocation.client() as client:
        where = client.opened(client.locate(name_or_id), keys.named or keys.for_get)
        rest = where.manifest.size if length is None else length
        with closing(client.stream(where, wait=not no_wait, on_event=_show_event)) as stream:
            _write(stream.pieces(offset, rest))


def write_whole(client: Client, where: Location, *, wait: bool) -> int:
    """All of a file to stdout, each chunk verified before a byte of it is written; the bytes that
    came over the wire. Raises IntegrityError where the whole is not what its manifest says,
    PartialDownload without `wait`, and as `output.Results` does."""
    from zchunk.content.hashing import FileDigest

    digest = FileDigest()
    with closing(client.stream(where, wait=wait, on_event=_show_event)) as stream:
        _write(_digested(stream.pieces(0, where.manifest.size), digest))
        if where.manifest.sha256 not in (None, digest.digest()):
            raise IntegrityError(
                f"all chunks of {where.manifest.name!r} are intact, but the file's SHA-256 does not match:"
                " its manifest is wrong; upload the file again from its source"
            )
        return stream.bytes_received


def _digested(pieces: Iterable[memoryview], digest: FileDigest) -> Iterator[memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _write(pieces: Iterable[memoryview]) -> None:
    out = sys.stdout.buffer
    for piece in pieces:
        out.write(piece)
    out.flush()


def _show_event(event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "waiting":
        say(f"{render.waiting_text(event)} (continues by itself when it is back; Ctrl-C stops)")
    elif kind == "resumed":
        say(f"{event['name']} is back: continuing")
    elif kind == "corrupt":
        say(render.corrupt_text(event))
