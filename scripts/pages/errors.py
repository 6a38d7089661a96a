"""errors.md: each class of zchunk/errors.py, with its code, its exit code and its docstring."""

from __future__ import annotations

from pages.template import Filler, code, one_line, table
from zchunk.cli import EXIT_CODES
from zchunk.errors import BY_CODE, ZchunkError


def _bases(cls: type[ZchunkError]) -> str:
    base = cls.__mro__[1]
    return code(base.__name__) if base is not ZchunkError and issubclass(base, ZchunkError) else ""


def _meaning(cls: type[ZchunkError]) -> str:
    return "Anything else" if cls is ZchunkError else one_line(vars(cls)["__doc__"])


def _errors(heading: str, words: str) -> str:
    rows = [
        [
            code(cls.code),
            str(cls.exit_code),
            "yes" if cls.retryable else "no",
            code(cls.__name__),
            _bases(cls),
            _meaning(cls),
        ]
        for cls in sorted(BY_CODE.values(), key=lambda cls: cls.exit_code)
    ]
    return table(["code", "exit", "retryable", "Python class", "is a", "meaning"], rows)


def _exits(heading: str, words: str) -> str:
    return "```\n" + EXIT_CODES.removeprefix("\b\n").rstrip() + "\n```"


FILLERS: dict[str, Filler] = {"errors": _errors, "exits": _exits}
