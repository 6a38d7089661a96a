"""What a request ended with: the typed reply, or the error."""

from __future__ import annotations

import pytest

from zchunk.errors import PeerUnreachable, UnknownMessage
from zchunk.node.control.plane import checked, expect
from zchunk.protocol.messages import Offered, Ok

GONE = PeerUnreachable("gone")


def test_the_reply_of_the_right_kind() -> None:
    reply = Offered(have=True)
    assert expect(Offered, reply, None) is reply
    assert checked(expect(Offered, reply, None)).have


def test_an_error_counts_more_than_a_reply() -> None:
    assert expect(Offered, None, GONE) is GONE
    assert expect(Offered, Offered(have=True), GONE) is GONE
    with pytest.raises(PeerUnreachable):
        checked(expect(Offered, None, GONE))


@pytest.mark.parametrize("reply", [Ok(), None])
def test_another_kind_of_reply_is_an_error(reply: Ok | None) -> None:
    answer = expect(Offered, reply, None)
    assert isinstance(answer, UnknownMessage)
    assert Offered.TYPE in answer.message
