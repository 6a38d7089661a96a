"""node/home/connection_errors.py: what it means that no connection can be had."""

from __future__ import annotations

import pytest

from zchunk.errors import NotAllowed, TransportMismatch, WrongServer
from zchunk.node.home.connection_errors import closed_door
from zchunk.transport.base import Link

WHO = "the tracker at tcp://10.0.0.9:7700"


@pytest.mark.parametrize(
    ("link", "encrypted", "kind", "says"),
    [
        (Link.REFUSED, True, NotAllowed, "revoked"),
        (Link.MISMATCH, True, TransportMismatch, "uses plain"),
        (Link.MISMATCH, False, TransportMismatch, "uses curve"),
        (Link.STRANGE, True, WrongServer, "another key"),
        (Link.STRANGE, False, WrongServer, "another program"),
    ],
)
def test_each_says_who_and_what_to_do_in_one_line(
    link: Link, encrypted: bool, kind: type[NotAllowed], says: str
) -> None:
    error = closed_door(link, WHO, encrypted)
    assert type(error) is kind
    assert error.exit_code == 7
    assert not error.retryable
    assert WHO in error.message
    assert says in error.message
    assert ("docs/guide/security.md" if link is Link.STRANGE else "zchunk token") in error.message
    assert "\n" not in error.message
