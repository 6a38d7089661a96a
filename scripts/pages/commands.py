"""commands.md: what `zchunk COMMAND --help` prints, at 80 columns, common options once."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pages.template import Filler
from zchunk.cli import cli

_COMMON = {"--home", "--config", "--verbose", "--help"}
_WIDTH = 80


def walk(command: click.Command, name: str, parent: click.Context | None) -> Iterator[click.Context]:
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            if not found.hidden:
                yield from walk(found, inner, context)


def contexts() -> list[click.Context]:
    return list(walk(cli, "zchunk", None))


def _is_common(parameter: click.Parameter) -> bool:
    return not _COMMON.isdisjoint(parameter.opts)


def _options(context: click.Context, common: bool) -> list[tuple[str, str]]:
    records = [
        parameter.get_help_record(context)
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and _is_common(parameter) is common
    ]
    return [record for record in records if record is not None]


def _commands(context: click.Context) -> list[tuple[str, str]]:
    command = context.command
    if not isinstance(command, click.Group):
        return []
    found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [(name, inner.get_short_help_str(_WIDTH)) for name, inner in found if inner and not inner.hidden]


def _help(context: click.Context, common: bool) -> str:
    formatter = click.HelpFormatter(width=_WIDTH)
    context.command.format_usage(context, formatter)
    context.command.format_help_text(context, formatter)
    for title, rows in (("Options", _options(context, common)), ("Commands", _commands(context))):
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
    return f"```\n{formatter.getvalue().rstrip()}\n```"


def _all(heading: str, words: str) -> str:
    return "\n\n".join(f"## {context.command_path}\n\n{_help(context, False)}" for context in contexts()[1:])


def _common(heading: str, words: str) -> str:
    return _help(contexts()[0], True)


FILLERS: dict[str, Filler] = {"commands": _all, "common": _common}
