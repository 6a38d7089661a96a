"""limits/refusal_log.py (SPEC S4): every refusal is counted, and a flood of them is a line a minute."""

from __future__ import annotations

from zchunk.errors import MalformedMessage, UnknownMessage
from zchunk.limits.refusal_log import RefusalLog

BAD = MalformedMessage("a header of 9 bytes\nand a second line")


def test_the_first_is_told_at_once_with_its_address_in_one_line() -> None:
    line = RefusalLog().note(BAD, "10.0.0.7", 0.0)
    assert line == "refused malformed to 10.0.0.7: 'a header of 9 bytes\\nand a second line'"


def test_a_flood_is_one_line_a_minute_that_says_how_many_came_from_where() -> None:
    refusals = RefusalLog()
    assert refusals.note(BAD, "10.0.0.7", 0.0)
    assert not [n for n in range(5000) if refusals.note(BAD, "10.0.0.7", n / 100)]
    assert not refusals.note(UnknownMessage("x"), None, 59.0)
    line = refusals.note(BAD, "10.0.0.8", 60.0)
    assert line is not None
    assert line.endswith(
        "also refused since the last such line: malformed to 10.0.0.7 5000 times,"
        " unknown_message to unknown 1 times"
    ), line
    assert refusals.count == 5003


def test_many_addresses_take_no_more_memory() -> None:
    refusals = RefusalLog()
    for number in range(1000):
        refusals.note(BAD, f"10.0.0.{number}", 1.0)
    assert len(refusals._since) <= 21
    line = refusals.note(BAD, None, 100.0)
    assert line is not None
    assert "others 979 times" in line
