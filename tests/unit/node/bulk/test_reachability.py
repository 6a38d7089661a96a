"""node/bulk/reachability.py: doubt after silence, a question before the verdict, the way back."""

from __future__ import annotations

import pytest

from zchunk.node.bulk.reachability import ANSWER_S, CONNECT_S, SILENCE_S, Reachability, Verdict


def linked(now: float = 0.0) -> Reachability:
    reachability = Reachability(now)
    assert not reachability.link(True, now)
    return reachability


def test_a_peer_that_owes_nothing_is_never_doubted() -> None:
    for reachability in (Reachability(0.0), linked()):
        assert reachability.deadline() is None
        assert reachability.on_time(1e9) is Verdict.FINE


def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    reachability = Reachability(0.0)
    reachability.wants(True, 10.0)
    assert reachability.deadline() == 10.0 + CONNECT_S
    assert reachability.on_time(10.0 + CONNECT_S - 0.01) is Verdict.FINE
    assert reachability.on_time(10.0 + CONNECT_S) is Verdict.UNREACHABLE
    assert reachability.deadline() is None, "told once"


def test_silence_leads_to_a_question_and_only_then_to_the_verdict() -> None:
    reachability = linked()
    reachability.wants(True, 5.0)
    assert reachability.on_time(5.0 + SILENCE_S) is Verdict.ASK
    assert reachability.on_time(5.0 + SILENCE_S) is Verdict.FINE, "asked once"
    assert reachability.deadline() == 5.0 + SILENCE_S + ANSWER_S
    assert reachability.on_time(5.0 + SILENCE_S + ANSWER_S) is Verdict.UNREACHABLE


@pytest.mark.parametrize("asked", [False, True])
def test_anything_that_comes_is_a_sign_of_life(asked: bool) -> None:
    reachability = linked()
    reachability.wants(True, 0.0)
    if asked:
        assert reachability.on_time(SILENCE_S) is Verdict.ASK
    reachability.heard(3.0)
    assert reachability.deadline() == 3.0 + SILENCE_S
    assert reachability.on_time(3.0 + SILENCE_S) is Verdict.ASK


def test_a_peer_that_answers_slowly_but_steadily_is_never_given_up() -> None:
    reachability, now = linked(), 0.0
    for _ in range(100):
        reachability.wants(True, now)
        assert reachability.on_time(now + SILENCE_S) is Verdict.ASK
        now += SILENCE_S + ANSWER_S - 0.1
        assert reachability.on_time(now) is Verdict.FINE
        reachability.heard(now)


def test_rest_between_requests_is_no_silence() -> None:
    reachability = linked()
    reachability.wants(True, 0.0)
    reachability.heard(1.0)
    reachability.wants(False, 1.0)
    reachability.wants(True, 100.0)
    assert reachability.deadline() == 100.0 + SILENCE_S


def test_an_unreachable_peer_is_back_when_its_connection_is() -> None:
    reachability = Reachability(0.0)
    reachability.wants(True, 0.0)
    reachability.on_time(CONNECT_S)
    assert reachability.link(True, 50.0)
    assert reachability.linked
    assert not reachability.link(False, 51.0)
    assert not reachability.link(True, 52.0), "it was not given up meanwhile"
