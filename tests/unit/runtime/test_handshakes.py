"""runtime/handshakes.py: an address that tries our doors too often waits for each answer, and gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from zchunk.clock import ManualClock
from zchunk.runtime.handshakes import BURST, HOLD_S, PER_SECOND, Handshakes
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Gate, Knock


class FakeLoop:
    def __init__(self) -> None:
        self.clock = ManualClock()

    def add_socket(self, socket: object, handler: Callable[[Any], None]) -> None:
        self.knock = handler

    def add_timed(self, timed: Handshakes) -> None:
        self.timed = timed


class Rig:
    def __init__(self) -> None:
        self.loop, self.decided = FakeLoop(), list[int]()
        decide = self.decided.append
        Handshakes(cast(Loop, self.loop), cast(Gate, None), lambda knock: decide(knock.ticket[0][0]))

    def knock(self, number: int, address: str = "10.0.0.7") -> None:
        self.loop.knock(Knock("door", bytes(32), address, (bytes([number]),)))

    def pass_time(self, seconds: float) -> None:
        self.loop.clock.advance(seconds)
        self.loop.timed.on_time(self.loop.clock.monotonic())


@pytest.mark.row("S4")
def test_those_above_a_burst_wait_and_are_all_decided_in_their_order() -> None:
    rig = Rig()
    for _ in range(int(BURST)):
        rig.knock(0)
    assert rig.decided == [0] * int(BURST)
    assert rig.loop.timed.deadline() is None
    rig.decided.clear()
    for number in (1, 2):
        rig.knock(number)
        rig.pass_time(0.5 / PER_SECOND)
    assert rig.decided == []
    rig.pass_time(HOLD_S - 0.9 / PER_SECOND)
    assert rig.decided == [1]
    rig.pass_time(0.5 / PER_SECOND)
    assert rig.decided == [1, 2]
    assert rig.loop.timed.deadline() is None


def test_another_address_does_not_wait() -> None:
    rig = Rig()
    for _ in range(int(BURST) + 1):
        rig.knock(0)
    rig.decided.clear()
    rig.knock(9, "10.0.0.8")
    assert rig.decided == [9]


def test_who_knocks_seldom_does_not_wait() -> None:
    rig = Rig()
    for _ in range(3 * int(BURST)):
        rig.knock(0)
        rig.pass_time(1.01 / PER_SECOND)
    assert len(rig.decided) == 3 * int(BURST)
