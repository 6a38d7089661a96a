"""The `zchunk` command: its entry point, and what becomes of errors.

Each command raises `zchunk.errors.ZchunkError`; here, and only here, errors become one
line on stderr, the error object of `--json` on stdout, and the exit code (SPEC "Command
line"). Imports stay light: a command's module is imported when it is called, and the engine
by a command that needs it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from zchunk.cli import output
from zchunk.cli.common import everywhere
from zchunk.cli.text import visible
from zchunk.errors import Interrupted, InvalidUsage, ZchunkError
from zchunk.system.interrupts import ending_at_once
from zchunk.version import __version__

log = logging.getLogger(__name__)

_CONTEXT = {"help_option_names": ["-h", "--help"]}
EXIT_CODES = """\b
Exit codes:
  0  done                              6  tracker unreachable
  1  unexpected error or disk failure  7  not allowed
  2  wrong usage, or target exists     8  no space
  3  too few peers                     9  not found
  4  partial download (kept)          10  cancelled (nothing kept)
  5  integrity error                 130  interrupted (run again to continue)
"""

#: command -> the module that has it
_MODULES = {
    name: f"zchunk.cli.{module}"
    for module, names in {
        "access": ("peers", "rotate-key"),
        "cat": ("cat",),
        "events": ("events",),
        "files": ("info", "ls", "rm"),
        "get": ("get",),
        "put": ("put",),
        "jobs": ("cancel", "jobs", "pause", "resume"),
        "keys": ("key",),
        "members": ("join", "token"),
        "servers": ("node", "tracker"),
        "tokens": ("tokens",),
    }.items()
    for name in names
}


class Program(click.Group):
    """The command group; its `main` never lets an exception out."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        with ending_at_once():
            module = import_module(_MODULES[cmd_name])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        extra |= {"prog_name": "zchunk", "standalone_mode": False}
        as_json = _asks_for_json(sys.argv[1:] if args is None else args)
        _never_fail_to_print()
        try:
            result = super().main(args, *rest, **extra)
            output.check_written()
        except output.ReaderGone:
            sys.exit(0)
        except Exception as error:  # noqa: BLE001 - the last resort: no traceback reaches a user
            sys.exit(_fail(error, as_json))
        except KeyboardInterrupt:
            sys.exit(_fail(Interrupted("interrupted"), as_json))
        # `--help` and the like end with a number; a command's own value means nothing.
        sys.exit(result if isinstance(result, int) else 0)


def _asks_for_json(args: Sequence[str]) -> bool:
    """Known before the arguments are understood: they may be what is wrong."""
    before_names = args[: args.index("--")] if "--" in args else args
    return "--json" in before_names


def _never_fail_to_print() -> None:
    """Names may hold what the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: Exception, as_json: bool) -> int:
    """Tell it; returns the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        error.show()
        return InvalidUsage.exit_code
    if isinstance(error, click.Abort) and sys.stderr.isatty():
        click.echo(err=True)  # behind the question
    told = _as_ours(error)
    if as_json:
        output.emit_event(told.to_json())
    click.echo(f"zchunk: {visible(told.message)}", err=True)
    return told.exit_code


def _as_ours(error: Exception) -> ZchunkError:
    if isinstance(error, ZchunkError):
        log.debug("failed: %s", error.code, exc_info=error)
        return error
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return InvalidUsage("no command given; `zchunk --help` lists the commands")
    if isinstance(error, click.ClickException):
        return InvalidUsage(_usage(error))
    if isinstance(error, click.Abort):
        return Interrupted("interrupted")
    log.debug("unexpected", exc_info=error)
    if isinstance(error, OSError):
        return _from_os(error)
    what = " ".join(str(error).split())
    return ZchunkError(f"unexpected {type(error).__name__}: {what} (-vv shows where)")


def _usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    said, suggests, option = message.partition(". Did you mean ")
    message = f"{said} (did you mean {option})" if suggests else message
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _from_os(error: OSError) -> ZchunkError:
    """A folder that cannot be used, mostly; what the engine does to disks raises its own."""
    from zchunk.system.os_errors import as_ours

    return as_ours(error)


@click.group(cls=Program, context_settings=_CONTEXT, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="zchunk")
@everywhere(from_environment=True)
def cli() -> None:
    """Keep big files on the PCs of a LAN. A file is split into chunks, which are spread over
    several PCs; a download fetches them from all PCs at once and verifies each one.

    The tracker knows which PC holds which chunk; a node on each PC stores chunks. `zchunk
    COMMAND --help` describes a command.
    """


def main() -> None:
    """What `startup.main` runs."""
    with output.guarded():
        try:
            cli.main()
        except SystemExit as end:
            _leave(end.code)
            raise


def _leave(code: object) -> None:
    """Ends the process without taking the interpreter apart, which takes 30 ms and saves nothing:
    by now everything is closed. Returns where something is not, so that the usual end tells of it:
    a thread that must be waited for."""
    waited_for = [thread for thread in threading.enumerate() if not thread.daemon]
    if not isinstance(code, int) or waited_for != [threading.main_thread()]:
        return
    output.leave()
    logging.shutdown()
    os._exit(code)
