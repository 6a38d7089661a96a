"""zchunk/cli/table: rows as they come, whole names, aligned columns."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence

import pytest

from zchunk.cli import table
from zchunk.cli.table import PAGE, Table, print_table

HEADINGS = ("NAME", "SIZE", "ID")


def laid_out(rows: Sequence[Sequence[str]], width: int | None, right: Sequence[int] = (1,)) -> list[str]:
    made = Table(HEADINGS, rows, right=right, width=width)
    return [line for row in (HEADINGS, *rows) for line in made.lines(row)]


def test_columns_are_aligned_on_terminals_and_in_pipes() -> None:
    rows = [("a.bin", "1 B", "abc"), ("longer.bin", "999 MB", "d")]
    expected = [
        "NAME          SIZE  ID",
        "a.bin          1 B  abc",
        "longer.bin  999 MB  d",
    ]
    assert laid_out(rows, None) == expected
    assert laid_out(rows, 80) == expected


def test_wide_characters_take_two_columns() -> None:
    assert laid_out([("漢字", "1 B", "a"), ("abcd", "2 B", "b")], 80)[1:] == [
        "漢字   1 B  a",
        "abcd   2 B  b",
    ]


def test_a_name_without_room_stands_whole_in_a_line_of_its_own() -> None:
    long = "n" * 60
    assert laid_out([("short", "1 B", "abc"), (long, "2 B", "def")], 40) == [
        "NAME                           SIZE  ID",
        "short                           1 B  abc",
        long,
        "                                2 B  def",
    ]


@pytest.mark.parametrize("width", [1, 10, 15, 20])
def test_in_the_narrowest_terminal_nothing_is_lost(width: int) -> None:
    lines = laid_out([("some name", "999 MB", "0123456789ab")], width)
    assert lines == ["NAME", "    SIZE  ID", "some name", "  999 MB  0123456789ab"]


def test_in_a_pipe_each_row_is_one_line_however_long() -> None:
    made = Table(HEADINGS, [("a", "1 B", "x")], right=(1,), width=None)
    assert made.lines(("n" * 500, "2 B", "y")) == ["n" * 500 + "   2 B  y"]


def test_a_wider_cell_of_a_later_page_is_whole_and_the_next_ones_are_aligned_with_it() -> None:
    made = Table(HEADINGS, [("a", "1 B", "x")], right=(1,), width=80)
    wide, after = made.lines(("b", "1000000 TB", "y"))[0], made.lines(("c", "2 B", "z"))[0]
    assert wide == "b     1000000 TB  y"
    assert after.index("z") == wide.index("y")


# -- as a stream ---------------------------------------------------------------------------


def test_the_first_page_is_shown_before_the_second_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)

    def rows() -> Iterator[tuple[str, str, str]]:
        for number in range(3 * PAGE):
            written = shown.getvalue().count("\n")
            assert written >= number // PAGE * PAGE, f"row {number}, and {written} lines are out"
            yield f"file-{number}", "1 B", "x"

    assert print_table(HEADINGS, rows()) == 3 * PAGE
    assert shown.getvalue().count("\n") == 3 * PAGE + 1


def test_no_rows_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table(HEADINGS, []) == 0
    assert capsys.readouterr().out == ""


def test_headings_are_bold_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(HEADINGS, [("a", "b", "c")])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(table, "_width", lambda stream: 80)
    print_table(HEADINGS, [("a", "b", "c")])
    assert capsys.readouterr().out.splitlines()[0] == "\x1b[1mNAME  SIZE  ID\x1b[0m"
