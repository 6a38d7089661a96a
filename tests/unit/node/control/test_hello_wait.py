"""control/hello_wait.py: how long who asks waits for nodes that a tracker, just started, has not heard
from."""

from __future__ import annotations

import pytest

from zchunk.errors import PeersUnsure, TooFewPeers
from zchunk.node.control.hello_wait import HelloWait, PlanPatience

LEASE = 3.0


def test_nobody_waits_where_all_is_known() -> None:
    wait = HelloWait()
    assert not wait.waits(False, LEASE, 0.0)
    assert wait.deadline() is None


def test_a_wait_ends_a_moment_after_the_lease_and_does_not_begin_again() -> None:
    wait = HelloWait()
    assert wait.waits(True, LEASE, 10.0)
    assert wait.deadline() == 14.0
    assert wait.waits(True, LEASE, 13.9), "more time is not given for asking again"
    assert not wait.waits(True, LEASE, 14.0)
    assert wait.deadline() is None
    assert not wait.waits(True, LEASE, 14.1)


def test_what_is_known_ends_it() -> None:
    wait = HelloWait()
    assert wait.waits(True, LEASE, 0.0)
    assert not wait.waits(False, LEASE, 1.0)
    assert wait.deadline() is None
    assert wait.waits(True, LEASE, 100.0), "another start of the tracker"


def test_nothing_is_due_while_nothing_is_waited_for() -> None:
    wait = HelloWait()
    assert wait.waits(True, LEASE, 0.0)
    wait.rest()
    assert wait.deadline() is None


def test_a_plan_waits_as_long_as_the_tracker_says() -> None:
    patience = PlanPatience()
    assert not patience.waits(TooFewPeers("0 peers online"), 0.0)
    unsure = PeersUnsure("0 peers online", unsure=["A"], unsure_s=2.5)
    assert patience.waits(unsure, 1.0)
    assert patience.deadline() == 4.5
    assert not patience.waits(unsure, 4.5)


@pytest.mark.parametrize("odd", ["long", None, -1.0, float("nan"), 1e9])
def test_a_tracker_that_speaks_nonsense_is_not_waited_for(odd: object) -> None:
    patience = PlanPatience()
    patience.waits(PeersUnsure("?", unsure_s=odd), 0.0)
    assert patience.deadline() == 1.0


def test_who_waits_for_peers_waits_on_without_a_deadline() -> None:
    patience = PlanPatience(for_peers=True)
    assert patience.waits(PeersUnsure("?", unsure_s=1.0), 0.0)
    assert patience.waits(PeersUnsure("?", unsure_s=1.0), 5.0)
    assert patience.deadline() is None
    assert patience.waits(TooFewPeers("0 peers online"), 6.0)
