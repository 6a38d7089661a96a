"""What all commands share: options, settings, logs, argument types.

Nothing here draws (render.py), writes results (output.py) or knows what a command does.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zchunk.cli.output import unharmed
from zchunk.cli.text import visible
from zchunk.errors import InvalidUsage, NotFound
from zchunk.runtime import log_ids
from zchunk.system.interrupts import ending_at_once

if TYPE_CHECKING:
    from zchunk.client import Client
    from zchunk.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


# -- options of every command ---------------------------------------------------------


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of the engine: its objects stay until the process ends, and to look
    through them for garbage again and again is a tenth of a short command."""
    gc.disable()
    try:
        with ending_at_once():
            yield
    finally:
        gc.freeze()
        gc.enable()


def _keep_freed_memory() -> None:
    """A message of megabytes is memory of glibc's, which would give it back to the system after
    each, and take it anew, page by page; in another place for each thread. Before threads start.
    Does nothing where there is another C library."""
    import ctypes

    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024**2)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 64 * 1024**2)


#: of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@dataclass
class Invocation:
    """What the options that every command takes say; a later one of the same name wins."""

    home_given: Path | None = None
    config_given: Path | None = None
    verbosity: int = 0
    #: JSON on stdout, and nothing but errors on stderr
    json: bool = False

    @property
    def home(self) -> Path:
        if self.home_given is not None:
            return self.home_given
        import platformdirs

        return Path(platformdirs.user_data_dir("zchunk"))

    @property
    def config(self) -> Path | None:
        """The configuration file; None where there is none."""
        if self.config_given is not None:
            return self.config_given
        default = self.home / "config.yaml"
        return default if default.exists() else None

    def settings(
        self, overrides: Mapping[str, Any] | None = None, remembered: Mapping[str, Any] | None = None
    ) -> Settings:
        """Options over environment over file over what an earlier start was given over
        defaults. Raises ConfigError."""
        with importing():
            from zchunk.config import load

        return load(self.config, overrides, remembered=remembered)

    def client(self, overrides: Mapping[str, Any] | None = None) -> Client:
        """This home as a member; to be used as a context manager. Raises NotJoined."""
        settings = self.settings(overrides)
        with importing():
            from zchunk.client import Client

            _keep_freed_memory()
        return Client(self.home, settings)

    def say(self, text: str) -> None:
        """Talk, on stderr; not for whoever reads JSON."""
        if not self.json:
            say(text)


def say(text: str) -> None:
    """One line on stderr; a name in it cannot break out of it."""
    click.echo(visible(text), err=True)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def everywhere(*, from_environment: bool = False) -> Callable[[F], F]:
    """`--home`, `--config` and `-v`: before the command's name and behind it."""

    def keep_home(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.ensure_object(Invocation).home_given = Path(value).expanduser()

    def keep_config(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.ensure_object(Invocation).config_given = Path(value).expanduser()

    def keep_verbosity(context: click.Context, _: click.Parameter, value: int) -> None:
        invocation = context.ensure_object(Invocation)
        invocation.verbosity += value
        set_up_logs(invocation.verbosity)

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "-v",
                "--verbose",
                count=True,
                expose_value=False,
                callback=keep_verbosity,
                help="Show log messages on stderr, not only warnings; -vv shows all of them.",
            ),
            click.option(
                "--config",
                metavar="FILE",
                envvar="ZCHUNK_CONFIG" if from_environment else None,
                expose_value=False,
                callback=keep_config,
                help="Configuration file (default: ZCHUNK_CONFIG, or config.yaml in the home).",
            ),
            click.option(
                "--home",
                metavar="DIR",
                envvar="ZCHUNK_HOME" if from_environment else None,
                expose_value=False,
                callback=keep_home,
                help="Folder for keys and state (default: ZCHUNK_HOME, or your data folder).",
            ),
        ):
            command = option(command)
        return command

    return decorate


def json_option(command: F) -> F:
    def keep(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(Invocation).json = True

    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, callback=keep, help="Print JSON."
    )(command)


# -- logs -----------------------------------------------------------------------------


class _OneLine(logging.Formatter):
    """One safe line a record; tracebacks only where everything is wanted."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        record.about = log_ids.current()
        text = visible(self.formatMessage(record))
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return text
        if self._tracebacks and record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            return "\n".join([text, *map(visible, trace)])
        return f"{text}: {visible(repr(error))}"


class _Stderr(logging.Handler):
    """Looks stderr up for each record: a progress bar may stand in for it. Never raises: whoever
    logs has work to do."""

    def emit(self, record: logging.LogRecord) -> None:
        with unharmed("a log line"):
            click.echo(self.format(record), err=True)


def set_up_logs(verbosity: int) -> None:
    """Warnings only; with -v what is done; with -vv everything."""
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    handler = _Stderr()
    handler.setFormatter(_OneLine(tracebacks=verbosity >= 2))
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(levels[min(verbosity, 2)])


# -- arguments ------------------------------------------------------------------------

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_DURATION_S = 10 * 366 * 86400


def parse_duration(text: str) -> float:
    """`30m`, `24h`, `7d`, `1.5h` -> seconds; more than 0, at most ten years. Raises InvalidUsage."""
    from fractions import Fraction  # few commands are given a duration

    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(Fraction(match[1]) * _SECONDS[match[2]]) if match else 0.0
    if not 0 < seconds <= _MAX_DURATION_S:
        raise InvalidUsage(
            f"{text!r} is not a valid duration; use a form like 30m, 24h or 7d, up to ten years"
        )
    return seconds


def as_duration(_: click.Context, parameter: click.Parameter, value: str) -> float:
    """An option's callback."""
    with _bad_parameter(parameter):
        return parse_duration(value)


def as_size(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """An option's callback: bytes, `20GB`, `1MiB`."""
    if value is None:
        return None
    from zchunk.config import parse_size

    with _bad_parameter(parameter):
        return parse_size(value)


def as_chunk_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """An option's callback: a size that a chunk may have (SPEC U3)."""
    size = as_size(context, parameter, value)
    if size is None:
        return None
    from zchunk.content.manifest import chunk_size_problem

    if (problem := chunk_size_problem(size)) is not None:
        raise click.BadParameter(problem, param=parameter)
    return size


@contextmanager
def _bad_parameter(parameter: click.Parameter) -> Iterator[None]:
    """Names the option that the mistake stands behind."""
    try:
        yield
    except InvalidUsage as error:
        raise click.BadParameter(error.message, param=parameter) from None


def token_text(argument: str) -> str:
    """A token as given, asked for (or from stdin) for `-`, from a file for `@file`."""
    if argument == "-" and sys.stdin.isatty():
        return str(click.prompt("Join token", hide_input=True, err=True))
    if argument == "-":
        return sys.stdin.read()
    if not argument.startswith("@"):
        return argument
    path = Path(argument[1:]).expanduser()
    try:
        return path.read_text()
    except FileNotFoundError:
        raise NotFound(f"the token file {path} does not exist") from None
    except OSError as error:
        from zchunk.system.os_errors import storage_error

        raise storage_error(error, path, "reading the token file") from None
    except UnicodeDecodeError:
        raise InvalidUsage(f"{path} is not a token file: it is not text") from None


# -- questions and signals ------------------------------------------------------------


def check_can_ask(yes: bool) -> None:
    """Raises InvalidUsage (exit 2) where a question would find nobody to answer it."""
    if not yes and not sys.stdin.isatty():
        raise InvalidUsage("cannot ask for confirmation without a terminal; add --yes")


def agreed(question: str, *, default: bool) -> bool:
    """Asks on stderr; a name in the question cannot break out of it."""
    return click.confirm(visible(question), default=default, prompt_suffix=" ", err=True)
