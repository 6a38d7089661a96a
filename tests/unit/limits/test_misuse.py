"""limits/misuse.py (SPEC S4): what no zchunk sends is refused so often, then its sender is cut off."""

from __future__ import annotations

import pytest

from zchunk.errors import (
    Busy,
    MalformedMessage,
    NotAllowed,
    NotFound,
    NotJoined,
    UnknownMessage,
    UnsupportedVersion,
    ZchunkError,
)
from zchunk.limits.misuse import BURST, PER_SECOND, Misuse


@pytest.mark.row("S4")
@pytest.mark.parametrize("kind", [MalformedMessage, UnknownMessage, UnsupportedVersion, NotAllowed])
def test_nonsense_is_refused_so_often_and_then_too_much(kind: type[ZchunkError]) -> None:
    misuse = Misuse()
    assert [misuse.is_too_much(kind("x"), "a", 0.0) for _ in range(int(BURST) + 2)][-3:] == [
        False,
        True,
        True,
    ]
    assert not misuse.is_too_much(kind("x"), "b", 0.0)
    assert not misuse.is_too_much(kind("x"), "a", 1.01 / PER_SECOND)


@pytest.mark.parametrize("kind", [Busy, NotFound, NotJoined])
def test_what_honest_members_are_refused_never_counts(kind: type[ZchunkError]) -> None:
    misuse = Misuse()
    assert not any(misuse.is_too_much(kind("x"), "a", 0.0) for _ in range(10 * int(BURST)))
