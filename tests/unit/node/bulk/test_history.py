"""The last transitions of a job, in the error of a bug and for people."""

from __future__ import annotations

from zchunk.errors import IllegalEvent, PeerUnreachable
from zchunk.node.bulk.history import History, Transition


def test_it_says_when_in_which_state_what_happened() -> None:
    history = History()
    history.note(1.5, "running", "refused", 3, 1, PeerUnreachable("the link broke"))
    assert str(history) == "1.500 running: refused(3, 1, PeerUnreachable: the link broke)"
    assert history.transitions[0].event == "refused"


def test_only_the_last_fifty_are_kept() -> None:
    history = History()
    for number in range(200):
        history.note(float(number), "running", "want", number)
    assert history.transitions == [Transition(float(n), "want", (n,), "running") for n in range(150, 200)]


def test_long_facts_are_shortened() -> None:
    history = History()
    history.note(0.0, "running", "peer_up", "x" * 400)
    assert len(str(history)) < 100


def test_an_illegal_event_tells_what_led_to_it() -> None:
    history = History()
    history.note(2.0, "waiting", "peer_down", "ab")
    error = IllegalEvent("holders of another file", history)
    assert str(error) == "holders of another file; what led to it:\n2.000 waiting: peer_down(ab)"
    assert str(IllegalEvent("alone")) == "alone"
