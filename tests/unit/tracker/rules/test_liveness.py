"""tracker/rules/liveness.py (DESIGN "Liveness"): who is up, and why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zchunk.errors import Busy, StaleIncarnation
from zchunk.tracker.rules.liveness import Change, Hail, Life, Liveness

A, B = "a" * 32, "b" * 32
BEAT, LEASE = 1.0, 3.0
ONE, TWO = b"one", b"two"


def make(now: float = 0.0) -> Liveness:
    return Liveness(heartbeat_s=BEAT, lease_s=LEASE, now=now)


def up(liveness: Liveness, peer_id: str = A, incarnation: int = 1, connection: bytes = ONE) -> Liveness:
    """`peer_id` says hello at 0 and is up."""
    liveness.hello(peer_id, incarnation, connection, 0.0)
    liveness.arrived(peer_id, incarnation, 0.0)
    return liveness


def ticks(liveness: Liveness, start: float, end: float) -> list[tuple[float, Change]]:
    """A loop that is never late; what changed, and when."""
    changes, now = [], start
    while now < end:
        now = round(now + 0.5, 3)
        changes += [(now, change) for change in liveness.advance(now)]
    return changes


# -- coming ------------------------------------------------------------------------------


def test_a_peer_is_up_only_when_its_inventory_is_known() -> None:
    liveness = make()
    assert liveness.hello(A, 1, ONE, 0.0) == Hail(1, arriving=True)
    assert liveness.life(A) is Life.ARRIVING
    assert liveness.up() == frozenset()
    assert liveness.connection(A) == ONE
    assert liveness.arrived(A, 1, 0.5) == [Change(A, Life.UP, "hello")]
    assert liveness.is_up(A)
    assert liveness.up() == {A}
    assert liveness.arrived(A, 1, 0.6) == []


def test_a_hello_over_a_new_connection_of_the_same_start_keeps_it_up() -> None:
    liveness = up(make())
    assert liveness.hello(A, 1, TWO, 1.0) == Hail(1, arriving=False)
    assert liveness.is_up(A)
    assert liveness.connection(A) == TWO


def test_a_newer_start_arrives_anew() -> None:
    liveness = up(make())
    assert liveness.hello(A, 2, TWO, 1.0).arriving
    assert not liveness.is_up(A)
    assert liveness.arrived(A, 1, 1.1) == []
    assert liveness.arrived(A, 2, 1.2) == [Change(A, Life.UP, "hello")]


@pytest.mark.parametrize("ending", ["goodbye", "lease", "connection"])
def test_a_peer_that_went_may_come_again(ending: str) -> None:
    liveness = up(make())
    if ending == "goodbye":
        liveness.goodbye(A, 1, 1.0)
    elif ending == "lease":
        ticks(liveness, 0.0, LEASE)
    else:
        liveness.connection_gone(ONE, 1.0)
    assert not liveness.is_up(A)
    assert liveness.hello(A, 1, TWO, 4.0).arriving
    assert liveness.arrived(A, 1, 4.0) == [Change(A, Life.UP, "hello")]


def test_who_never_came_is_down() -> None:
    liveness = make()
    assert liveness.life(A) is Life.DOWN
    assert liveness.connection(A) == b""
    assert liveness.deadline() is None


# -- an older start changes nothing ----------------------------------------------------------


def old_hello(liveness: Liveness) -> list[Change]:
    with pytest.raises(StaleIncarnation, match="newer start"):
        liveness.hello(A, 1, ONE, 1.0)
    return []


OLD: list[Callable[[Liveness], Any]] = [
    old_hello,
    lambda liveness: liveness.arrived(A, 1, 1.0),
    lambda liveness: liveness.goodbye(A, 1, 1.0),
    lambda liveness: liveness.beat(A, 1, TWO, 1.0) or [],
    lambda liveness: liveness.beat(A, 2, ONE, 1.0) or [],
    lambda liveness: liveness.connection_gone(ONE, 1.0),
]


@pytest.mark.parametrize("older", OLD)
@pytest.mark.parametrize("arrived", [True, False])
def test_an_older_start_changes_nothing(older: Callable[[Liveness], Any], arrived: bool) -> None:
    liveness = up(make())
    liveness.hello(A, 2, TWO, 0.5)
    if arrived:
        liveness.arrived(A, 2, 0.5)
    life = liveness.life(A)
    assert older(liveness) == []
    assert liveness.life(A) is life
    assert liveness.connection(A) == TWO
    assert [when for when, _ in ticks(liveness, 1.0, 10.0)] == [0.5 + LEASE]


def test_an_older_start_waits_until_a_tracker_that_just_started_knows_who_is_there() -> None:
    liveness = make()
    liveness.restore(A, 7, left=False, now=0.0)
    with pytest.raises(Busy):
        liveness.hello(A, 6, ONE, 0.1)
    assert liveness.life(A) is Life.UNKNOWN
    assert liveness.hello(A, 7, ONE, 0.1) == Hail(7, arriving=True)


# -- leases ---------------------------------------------------------------------------------------


def test_a_lease_ends_once_and_says_so() -> None:
    assert ticks(up(make()), 0.0, 20.0) == [(LEASE, Change(A, Life.DOWN, "lease"))]


def test_a_heartbeat_renews_the_lease() -> None:
    liveness = up(make())
    for now in (1.0, 2.0, 3.0, 4.0):
        assert liveness.advance(now) == []
        assert liveness.beat(A, 1, ONE, now)
    assert ticks(liveness, 4.0, 20.0) == [(4.0 + LEASE, Change(A, Life.DOWN, "lease"))]


def test_an_arriving_peers_lease_runs_too() -> None:
    liveness = make()
    liveness.hello(A, 1, ONE, 0.0)
    assert ticks(liveness, 0.0, 10.0) == [(LEASE, Change(A, Life.DOWN, "lease"))]


@pytest.mark.parametrize("life", ["unknown", "down", "left", "never"])
def test_a_heartbeat_of_who_is_not_there_must_say_hello_first(life: str) -> None:
    liveness = make()
    if life == "unknown":
        liveness.restore(A, 1, left=False, now=0.0)
    elif life == "down":
        up(liveness).connection_gone(ONE, 0.5)
    elif life == "left":
        up(liveness).goodbye(A, 1, 0.5)
    before = liveness.life(A)
    assert not liveness.beat(A, 1, ONE, 1.0)
    assert liveness.life(A) is before


# -- going ----------------------------------------------------------------------------------------


def test_a_goodbye_is_left_not_down_and_counts_once() -> None:
    liveness = up(make())
    assert liveness.goodbye(A, 1, 1.0) == [Change(A, Life.LEFT, "goodbye")]
    assert liveness.goodbye(A, 1, 1.0) == []
    assert liveness.connection_gone(ONE, 1.0) == []
    assert ticks(liveness, 1.0, 10.0) == []


def test_a_connection_that_is_gone_takes_only_its_own_peer_down() -> None:
    liveness = up(up(make()), B, 1, TWO)
    assert liveness.connection_gone(ONE, 1.0) == [Change(A, Life.DOWN, "connection")]
    assert liveness.up() == {B}
    assert liveness.connection_gone(ONE, 1.0) == []
    assert liveness.connection_gone(b"", 1.0) == []


def test_an_older_connection_of_a_peer_that_reconnected_is_no_loss() -> None:
    liveness = up(make())
    liveness.hello(A, 1, TWO, 1.0)
    assert liveness.connection_gone(ONE, 1.5) == []
    assert liveness.is_up(A)


def test_changes_of_one_moment_come_in_order_of_the_ids() -> None:
    liveness = make()
    for peer_id in ("c" * 32, B, A):
        up(liveness, peer_id)
    assert [change.peer_id[0] for _, change in ticks(liveness, 0.0, 5.0)] == ["a", "b", "c"]


# -- the tracker's own start, its own lateness -------------------------------------------------------


def test_nobody_is_called_down_within_a_lease_of_the_trackers_start() -> None:
    liveness = make(100.0)
    liveness.restore(A, 1, left=False, now=100.0)
    assert ticks(liveness, 100.0, 120.0) == [(100.0 + LEASE, Change(A, Life.DOWN, "lease"))]


def test_who_had_left_is_not_called_down_after_a_restart() -> None:
    liveness = make()
    liveness.restore(A, 1, left=True, now=0.0)
    assert liveness.life(A) is Life.LEFT
    assert ticks(liveness, 0.0, 10.0) == []


@pytest.mark.parametrize("asleep", [2.5, 10.0, 3600.0])
def test_our_own_sleep_ends_no_lease(asleep: float) -> None:
    liveness = up(make())
    assert liveness.advance(0.5) == []
    assert liveness.advance(0.5 + asleep) == []
    assert liveness.is_up(A)
    assert [c for _, c in ticks(liveness, 0.5 + asleep, 0.5 + asleep + 10)] == [Change(A, Life.DOWN, "lease")]


@pytest.mark.parametrize("asleep", [1.6, 10.0])
def test_a_connection_that_ended_while_we_slept_is_no_news(asleep: float) -> None:
    """Its node gave up waiting for our answer, and says hello again."""
    liveness = up(make())
    liveness.advance(0.5)
    woke = 0.5 + asleep
    assert liveness.advance(woke) == []
    assert liveness.connection_gone(ONE, woke) == []
    assert not liveness.hello(A, 1, TWO, woke + 0.3).arriving, "the same life"
    assert ticks(liveness, woke + 0.3, woke + 2.5) == []
    assert liveness.beat(A, 1, TWO, woke + 2.5)
    ticks(liveness, woke + 2.5, woke + 4.0)
    assert liveness.connection_gone(TWO, woke + 4.1) == [Change(A, Life.DOWN, "connection")]


def test_who_does_not_come_back_after_our_sleep_is_down_when_the_lease_ends() -> None:
    liveness = up(make())
    liveness.advance(0.5)
    assert liveness.connection_gone(ONE, 10.5) == []
    [(at, change)] = ticks(liveness, 10.5, 20.0)
    assert (change, at <= 10.5 + 2 * LEASE) == (Change(A, Life.DOWN, "lease"), True)


# -- copies ---------------------------------------------------------------------------------


def test_a_second_process_of_one_start_is_refused_while_the_first_is_there() -> None:
    liveness = make()
    liveness.hello(A, 2, ONE, 0.0, "first")
    liveness.arrived(A, 2, 0.0)
    with pytest.raises(StaleIncarnation, match="another process"):
        liveness.hello(A, 2, TWO, 1.0, "copy")
    assert liveness.connection(A) == ONE
    assert not liveness.hello(A, 2, TWO, 1.5, "first").arriving, "its own new connection goes on"
    assert [change.life for _, change in ticks(liveness, 1.5, 5.0)] == [Life.DOWN]
    assert liveness.hello(A, 2, TWO, 6.0, "copy") == Hail(3, arriving=True), "nobody else is there any more"


# -- a home that was put back from a backup ------------------------------------------------


@pytest.mark.parametrize("ending", ["goodbye", "lease", "connection"])
@pytest.mark.parametrize("behind", [1, 4, 7])
def test_a_home_that_was_put_back_gets_a_new_number_once_the_newer_start_is_gone(
    ending: str, behind: int
) -> None:
    liveness = make()
    liveness.hello(A, 7, ONE, 0.0, "newer")
    liveness.arrived(A, 7, 0.0)
    with pytest.raises(StaleIncarnation, match="remove the copy"):
        liveness.hello(A, behind, TWO, 0.5, "older")
    assert liveness.is_up(A)
    if ending == "goodbye":
        liveness.goodbye(A, 7, 1.0)
    elif ending == "connection":
        liveness.connection_gone(ONE, 1.0)
    ticks(liveness, 1.0, 5.0)
    assert liveness.hello(A, behind, TWO, 5.0, "older") == Hail(8, arriving=True)
    assert liveness.arrived(A, behind, 5.0) == [], "of that number there was another start"
    assert liveness.hello(A, behind, TWO, 5.1, "older") == Hail(8, arriving=True), "its answer was lost"
    assert liveness.arrived(A, 8, 5.2) == [Change(A, Life.UP, "hello")]
    assert not liveness.beat(A, behind, TWO, 5.3)
    assert liveness.beat(A, 8, TWO, 5.3)
    assert liveness.hello(A, 8, ONE, 5.4, "older") == Hail(8, arriving=False), "over another connection"
    with pytest.raises(StaleIncarnation, match="newer start"):
        liveness.hello(A, 7, TWO, 5.5, "newer")


@pytest.mark.parametrize(("number", "given"), [(7, 8), (3, 8), (8, 8), (9, 9)])
def test_who_had_left_before_our_start_may_come_back_under_any_number(number: int, given: int) -> None:
    liveness = make()
    liveness.restore(A, 7, left=True, now=0.0)
    assert liveness.hello(A, number, ONE, 0.1, "x") == Hail(given, arriving=True)


def test_a_node_that_was_only_away_during_our_restart_stays_the_same_start() -> None:
    liveness = make()
    liveness.restore(A, 7, left=False, now=0.0)
    ticks(liveness, 0.0, 5.0)
    assert liveness.life(A) is Life.DOWN
    assert liveness.hello(A, 7, ONE, 5.0, "x") == Hail(7, arriving=True)


def test_no_number_is_greater_than_a_message_holds() -> None:
    liveness = make()
    liveness.hello(A, 2**63 - 1, ONE, 0.0, "newer")
    liveness.connection_gone(ONE, 1.0)
    assert liveness.hello(A, 1, TWO, 2.0, "older") == Hail(2**63 - 1, arriving=True)


# -- lines that break ----------------------------------------------------------------------


def test_a_line_that_breaks_all_the_time_is_left_to_the_lease() -> None:
    liveness, told = make(), []
    for number in range(10):
        now = 0.5 * number
        liveness.hello(A, 1, b"%d" % number, now)
        told += liveness.arrived(A, 1, now)
        told += liveness.connection_gone(b"%d" % number, now + 0.2)
    assert [change.reason for change in told] == ["hello", "connection"] * 3 + ["hello"]
    assert [(at, change.reason) for at, change in ticks(liveness, 4.5, 9.0)] == [(7.5, "lease")]


def test_a_node_that_is_killed_again_and_again_is_down_at_once_each_time() -> None:
    liveness = make()
    for incarnation in range(1, 10):
        liveness.hello(A, incarnation, b"%d" % incarnation, 0.0)
        liveness.arrived(A, incarnation, 0.0)
        assert liveness.connection_gone(b"%d" % incarnation, 0.0) == [Change(A, Life.DOWN, "connection")]


def test_breaks_long_ago_do_not_count() -> None:
    liveness = make()
    for number in range(10):
        now = 11.0 * number
        liveness.hello(A, 1, b"%d" % number, now)
        liveness.arrived(A, 1, now)
        assert liveness.connection_gone(b"%d" % number, now)
        ticks(liveness, now, now + 11.0)


@pytest.mark.parametrize("first", ["beat", "hello", "goodbye", "gone"])
def test_our_sleep_is_noticed_whatever_comes_first_after_it(first: str) -> None:
    liveness = up(up(make()), B, 1, TWO)
    if first == "beat":
        liveness.beat(B, 1, TWO, 100.0)
    elif first == "hello":
        liveness.hello(B, 2, TWO, 100.0)
    elif first == "goodbye":
        liveness.goodbye(B, 1, 100.0)
    else:
        liveness.connection_gone(TWO, 100.0)
    assert liveness.advance(100.0) == []
    assert liveness.is_up(A)


def test_it_wants_to_be_woken_once_per_heartbeat_and_at_the_end_of_a_lease() -> None:
    liveness = up(make())
    assert liveness.deadline() == BEAT
    ticks(liveness, 0.0, 2.5)
    assert liveness.deadline() == LEASE


def test_nobody_is_to_be_waited_for_where_all_have_left() -> None:
    liveness = make()
    liveness.restore(A, 1, True, 0.0)
    assert liveness.deadline() is None
    liveness.restore(B, 1, False, 0.0)
    assert liveness.deadline() == BEAT
    assert ticks(liveness, 0.0, LEASE) == [(LEASE, Change(B, Life.DOWN, "lease"))]
    assert liveness.deadline() is None


@pytest.mark.parametrize("peers", [10, 1000])
def test_when_to_wake_costs_no_look_at_each_peer(peers: int) -> None:
    """It is asked for with each turn, and each peer brings one a second."""
    liveness, looks = make(), 0

    class Looked(dict[str, Any]):
        def values(self) -> Any:
            nonlocal looks
            looks += 1
            return super().values()

    liveness._peers = Looked()
    for number in range(peers):
        up(liveness, f"{number:032x}", connection=b"%d" % number)
    for beat in range(1, 101):
        for number in range(peers):
            liveness.beat(f"{number:032x}", 1, b"%d" % number, beat + number / peers)
            assert liveness.deadline() == beat + number / peers + BEAT
    assert looks <= 110


# -- any order -----------------------------------------------------------------------------------------

PEERS = st.sampled_from([A, B])
INCARNATIONS = st.integers(1, 6)
INSTANCES = st.sampled_from(["x", "y", "z"])
THERE = (Life.ARRIVING, Life.UP)
CONNECTIONS = st.sampled_from([ONE, TWO, b"three"])


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.liveness = make()
        self.newest: dict[str, int] = {}
        #: (peer, number) -> the process that had it
        self.starts: dict[tuple[str, int], str] = {}
        self.signs: dict[str, float] = {}
        self.told: dict[str, Life] = {}

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            assert change.reason in {"hello", "lease", "connection", "goodbye"}
            assert (change.life is Life.UP) == (change.reason == "hello")
            assert (change.life is Life.LEFT) == (change.reason == "goodbye")
            if change.reason == "lease":
                assert self.now - self.signs[change.peer_id] >= LEASE - 1e-9
            self.told[change.peer_id] = change.life

    @rule(peer_id=PEERS, incarnation=INCARNATIONS, connection=CONNECTIONS, instance=INSTANCES)
    def hello(self, peer_id: str, incarnation: int, connection: bytes, instance: str) -> None:
        newest, is_there = self.newest.get(peer_id, 0), self.liveness.life(peer_id) in THERE
        same = self.starts.get((peer_id, newest)) == instance
        if incarnation <= newest and not same and is_there:
            with pytest.raises(StaleIncarnation):
                self.liveness.hello(peer_id, incarnation, connection, self.now, instance)
            return
        hail = self.liveness.hello(peer_id, incarnation, connection, self.now, instance)
        expected = incarnation if incarnation > newest else newest if same else newest + 1
        assert hail == Hail(expected, self.liveness.life(peer_id) is Life.ARRIVING)
        self.newest[peer_id], self.signs[peer_id] = hail.incarnation, self.now
        assert self.starts.setdefault((peer_id, hail.incarnation), instance) == instance, (
            "one number, two starts"
        )

    @rule(peer_id=PEERS, incarnation=INCARNATIONS)
    def arrived(self, peer_id: str, incarnation: int) -> None:
        changes = self.liveness.arrived(peer_id, incarnation, self.now)
        assert not changes or incarnation == self.newest[peer_id]
        self._tell(changes)

    @rule(peer_id=PEERS, incarnation=INCARNATIONS, connection=CONNECTIONS)
    def beat(self, peer_id: str, incarnation: int, connection: bytes) -> None:
        if self.liveness.beat(peer_id, incarnation, connection, self.now):
            assert incarnation == self.newest[peer_id]
            self.signs[peer_id] = self.now

    @rule(peer_id=PEERS, incarnation=INCARNATIONS)
    def goodbye(self, peer_id: str, incarnation: int) -> None:
        changes = self.liveness.goodbye(peer_id, incarnation, self.now)
        assert not changes or incarnation == self.newest[peer_id]
        self._tell(changes)

    @rule(connection=CONNECTIONS)
    def gone(self, connection: bytes) -> None:
        self._tell(self.liveness.connection_gone(connection, self.now))

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.9, 5.0, 1000.0]))
    def time(self, seconds: float) -> None:
        fresh = {p for p in self.liveness.up() if self.now - self.signs[p] < LEASE - BEAT}
        self.now += seconds
        self._tell(self.liveness.advance(self.now))
        if seconds > LEASE:  # the loop itself slept: only a heartbeat of that counts
            assert fresh <= self.liveness.up()

    @invariant()
    def it_is_woken_in_time(self) -> None:
        watched = (Life.UNKNOWN, Life.ARRIVING, Life.UP)
        ends = [peer.lease_end for peer in self.liveness._peers.values() if peer.life in watched]
        soonest = min(*ends, self.liveness._last_turn + BEAT) if ends else None
        assert self.liveness.deadline() == soonest

    @invariant()
    def an_up_peer_was_told_of_and_has_a_connection(self) -> None:
        for peer_id in self.liveness.up():
            assert self.told[peer_id] is Life.UP
            assert self.liveness.connection(peer_id)
        assert (self.liveness.deadline() is None) == all(
            self.liveness.life(p) in (Life.DOWN, Life.LEFT) for p in (A, B)
        )


TestAnyOrder = Lives.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40)
