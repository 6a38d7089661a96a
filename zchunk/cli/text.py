"""Text from others, made safe for a terminal: the one way in which names, messages and paths are
shown (SPEC S4). Log lines, tables, questions, errors and progress all go through `visible`."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text with everything that is not plainly visible escaped: control characters,
    line ends, terminal sequences, direction marks, lone surrogates, odd spaces."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, most: int = 80) -> str:
    """A name as a listing shows it: begin and end of a very long one."""
    shown = visible(text)
    return shown if len(shown) <= most else f"{shown[: most - 21]}…{shown[-20:]}"
