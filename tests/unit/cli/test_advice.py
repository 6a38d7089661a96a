"""What messages, help and log lines tell people to run: each command and option of it exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import zchunk
from zchunk.cli import cli

SOURCES = sorted(Path(zchunk.__file__).parent.rglob("*.py"))
#: Of `zchunk put FILE --yes`: everything between the quotes.
ADVICE = re.compile(r"`zchunk( [^`]*)?`")


def texts(path: Path) -> Iterator[str]:
    """Strings of a module, each whole: what is filled in is X. Docstrings of commands are help."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def advised() -> list[tuple[str, str]]:
    found = {
        (path.name, " ".join(match.split()))
        for path in SOURCES
        for t in texts(path)
        for match in ADVICE.findall(t)
    }
    return sorted(found)


def problem(words: list[str]) -> str | None:
    """Why that cannot be run; None where it can."""
    command: click.Command = cli
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            option = options(command).get(word)
            if option is None and word != "--help":
                return f"{command.name} has no option {word}"
            if option is not None and not option.is_flag and not option.count and words:
                words.pop(0)
        elif word.isupper() and not takes_arguments(command):
            continue  # X, filled in later: an option, say
        elif isinstance(command, click.Group) and (found := subcommand(command, word)) is not None:
            command = found
        elif not takes_arguments(command):
            return f"{command.name} takes no {word}"
    return None


def takes_arguments(command: click.Command) -> bool:
    return any(isinstance(parameter, click.Argument) for parameter in command.params)


def options(command: click.Command) -> dict[str, click.Option]:
    return {name: p for p in command.params if isinstance(p, click.Option) for name in p.opts}


def subcommand(group: click.Group, word: str) -> click.Command | None:
    return group.get_command(click.Context(group), word)


def test_there_is_advice() -> None:
    assert len(advised()) > 40


@pytest.mark.parametrize(("where", "advice"), advised())
def test_what_is_advised_can_be_run(where: str, advice: str) -> None:
    assert problem(advice.split()) is None


@pytest.mark.parametrize(
    "wrong", ["tracker rebuild", "nosuch", "peers revok X", "put FILE --nosuch", "trash"]
)
def test_what_cannot_be_run_is_found(wrong: str) -> None:
    assert problem(wrong.split()) is not None
