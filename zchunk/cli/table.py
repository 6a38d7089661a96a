"""Tables for people, as a stream: the first rows at once, memory for a page of rows.

The first page decides the widths. Later cells may be wider: then the column grows from there on.
A first cell (a name) that has no room beside the others stands in a line of its own, whole: it
can be copied from any terminal. Into a pipe a row is a line, however long.

Cells come from others: they are made visible here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import TextIO

import click

from zchunk.cli.text import visible

#: Rows that are looked at before the first is shown, and written at a time.
PAGE = 100
_GAP = "  "
#: With less than this beside the other columns, first cells stand in lines of their own.
_LEAST_FIRST = 12

Row = Sequence[str]


def print_table(headings: Row, rows: Iterable[Row], *, right: Collection[int] = (), err: bool = False) -> int:
    """Aligned columns; those of index in `right` to the right. Returns the number of rows; where
    there are none nothing is shown."""
    stream = sys.stderr if err else sys.stdout
    each, count = iter(rows), 0
    table: Table | None = None
    while page := [tuple(map(visible, row)) for row in islice(each, PAGE)]:
        lines = []
        if table is None:
            table = Table(headings, page, right=right, width=_width(stream))
            lines = [click.style(line, bold=True) for line in table.lines(headings)]
        for row in page:
            lines += table.lines(row)
        click.echo("\n".join(lines), file=stream)
        count += len(page)
    return count


class Table:
    """Lays rows out; pure."""

    def __init__(
        self, headings: Row, first: Sequence[Row], *, right: Collection[int], width: int | None
    ) -> None:
        """`first`: the rows that decide the widths; `width`: of the terminal, None for a pipe."""
        self._right = right
        self._terminal = width
        self._widths = [max(map(cell_width, column)) for column in zip(headings, *first, strict=True)]
        self._wanted = self._widths[0]

    def lines(self, row: Row) -> list[str]:
        """One line, or two where the first cell has no room."""
        rest = self._rest(row[1:])
        room = self._room()
        if room is None or cell_width(row[0]) <= room:
            width = self._wanted if room is None else min(room, self._wanted)
            return [(self._padded(0, row[0], width) + rest).rstrip()]
        indent = " " * (min(room, self._wanted) if room >= _LEAST_FIRST else 0)
        return [row[0], (indent + rest).rstrip()]

    def _rest(self, cells: Row) -> str:
        for column, cell in enumerate(cells, start=1):
            self._widths[column] = max(self._widths[column], cell_width(cell))
        return "".join(
            _GAP + self._padded(column, cell, self._widths[column])
            for column, cell in enumerate(cells, start=1)
        )

    def _room(self) -> int | None:
        """For the first column; None where there is any."""
        if self._terminal is None:
            return None
        return self._terminal - sum(self._widths[1:]) - len(_GAP) * (len(self._widths) - 1)

    def _padded(self, column: int, cell: str, width: int) -> str:
        fill = " " * (width - cell_width(cell))
        return fill + cell if column in self._right else cell + fill


def cell_width(text: str) -> int:
    """Columns that it takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _width(stream: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if stream.isatty() else None
