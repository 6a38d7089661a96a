"""Pages with holes, and tables to put there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

#: what fills a hole: given the heading that it is under, and the words in it
Filler = Callable[[str, str], str]

_HOLE = re.compile(r"\{\{(\w+)\s*(.*?)\}\}", re.DOTALL)
_HEADING = re.compile(r"^#{2,4} (.*)$", re.MULTILINE)


def fill(text: str, fillers: dict[str, Filler]) -> str:
    def filled(hole: re.Match[str]) -> str:
        headings = _HEADING.findall(text, 0, hole.start())
        return fillers[hole[1]](headings[-1].strip("`") if headings else "", hole[2])

    return _HOLE.sub(filled, text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


def meanings(text: str) -> dict[str, str]:
    """Lines `name: what it means`, in a hole."""
    pairs = (line.partition(":") for line in text.splitlines() if line.strip())
    return {name.strip(): what.strip() for name, _, what in pairs}


def code(name: str) -> str:
    return f"`{name}`"


def one_line(docstring: str | None) -> str:
    return " ".join((docstring or "").split())
