"""Each row of the contract has a test, or says what is missing; each mark names a row."""

from __future__ import annotations

from tests.rows import NOT_YET, ROWS, marked


def test_each_row_has_a_test_or_is_said_to_be_missing() -> None:
    tests = marked()
    assert [name for name, row in ROWS.items() if name not in tests and row.missing != NOT_YET] == []


def test_no_row_that_has_a_test_is_called_not_yet() -> None:
    assert [name for name in marked() if name in ROWS and ROWS[name].missing == NOT_YET] == []


def test_no_mark_is_unknown() -> None:
    assert not set(marked()) - set(ROWS)
