"""Passphrases and key files: where commands take them from, and `zchunk key`.

A secret never stands on the command line, where every process could read it: it comes from
a file, from stdin, from the environment or from the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zchunk.cli.common import Invocation, everywhere, json_option, pass_invocation, say
from zchunk.cli.output import emit_json
from zchunk.errors import InvalidUsage, KeyNeeded

if TYPE_CHECKING:
    from zchunk.content.encryption import Lock, Secret

F = TypeVar("F", bound=Callable[..., Any])

VARIABLE = "ZCHUNK_PASSPHRASE"
_WAYS = f"--passphrase-file, --key-file or {VARIABLE}"


def key_file_option(command: F) -> F:
    """`--key-file`, as `key_file`."""
    return click.option(
        "--key-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Key file of an encrypted file (see `zchunk key new`).",
    )(command)


def secret_options(command: F) -> F:
    """`--passphrase-file` and `--key-file`, as `passphrase_file` and `key_file`."""
    return click.option(
        "--passphrase-file",
        metavar="FILE",
        help=f"File with the passphrase of an encrypted file, - for stdin (default: {VARIABLE}).",
    )(key_file_option(command))


@dataclass(frozen=True)
class Keys:
    """What the command line and the environment say about secrets."""

    #: by an option
    named: Secret | None
    #: from the environment: there for every command, so it gives way to an option
    ambient: Secret | None

    @property
    def given(self) -> Secret | None:
        return self.named or self.ambient

    def for_put(self) -> Secret:
        """Asks twice where nothing was given. Raises KeyNeeded where nobody can be asked."""
        if self.given is not None:
            return self.given
        _check_terminal(f"--encrypt needs a passphrase or a key file: give {_WAYS}")
        return _asked("Passphrase for the file", twice=True)

    def for_get(self, lock: Lock) -> Secret:
        """Asks once where nothing was given. Raises KeyNeeded where nobody can be asked."""
        if self.given is not None:
            return self.given
        if lock.key_id is not None:
            raise KeyNeeded(f"the file is encrypted with {lock.text}: give it with --key-file")
        _check_terminal(f"the file is encrypted with a passphrase: give --passphrase-file or {VARIABLE}")
        return _asked("Passphrase of the file", twice=False)


def keys_given(passphrase_file: str | None, key_file: Path | None) -> Keys:
    """Reads what is named, once: stdin cannot be read again. Raises InvalidUsage, NotFound,
    NotAllowed."""
    from zchunk.content.encryption import Passphrase

    if passphrase_file is not None and key_file is not None:
        raise InvalidUsage("--passphrase-file and --key-file cannot be used together")
    text = os.environ.get(VARIABLE)
    return Keys(_named(passphrase_file, key_file), Passphrase(text) if text else None)


def _named(passphrase_file: str | None, key_file: Path | None) -> Secret | None:
    from zchunk.content import key_files

    if key_file is not None:
        return key_files.read_key_file(key_file.expanduser())
    if passphrase_file == "-":
        return key_files.passphrase_of(sys.stdin.buffer.read(), "stdin")
    if passphrase_file is not None:
        return key_files.read_passphrase(Path(passphrase_file).expanduser())
    return None


def _check_terminal(message: str) -> None:
    if not sys.stdin.isatty():
        raise KeyNeeded(message)


def _asked(question: str, *, twice: bool) -> Secret:
    from zchunk.content.encryption import Passphrase

    text = click.prompt(question, hide_input=True, confirmation_prompt=twice, err=True)
    return Passphrase(text)


# -- zchunk key -----------------------------------------------------------------------


@click.group()
@everywhere()
def key() -> None:
    """Create key files for `zchunk put --encrypt --key-file`."""


@key.command("new")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@everywhere()
@pass_invocation
def new_key_file(invocation: Invocation, file: Path) -> None:
    """Create a key file.

    It has 32 random bytes, and only you can read it (mode 0600). Never replaces a file.

    Keep a copy in a safe place: files encrypted with it cannot be read without it.
    """
    from zchunk.content.key_files import make_key_file

    made = make_key_file(file.expanduser())
    if invocation.json:
        emit_json({"event": "done", "path": str(file), "key_id": made.key_id.hex()})
        return
    say(f"created {file}; keep a copy in a safe place: files encrypted with it cannot be read without it")
    click.echo(made.key_id.hex())
