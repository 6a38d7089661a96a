"""A member that is cut off, or has another key: its connections end within a second at every
socket, whatever it does on them (SPEC S2); and it is let in again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any

import pytest

from tests.integration.cluster import PATIENCE_S, Cluster, Result
from tests.integration.doors import DOORS, SILENCE_S, Doors, set_revoked
from tests.integration.raw import Keys, Taking, keys_of, silent
from tests.waiting import wait_for
from zchunk.limits import misuse

pytestmark = pytest.mark.alone

ENDED_WITHIN_S = 1.0

Figure = Callable[[str, object], None]


def peers(cluster: Cluster, *words: str) -> Result:
    """`zchunk peers` on the tracker's PC."""
    return cluster.spawn(["peers", words[0], "--home", str(cluster.tracker.home), *words[1:]]).result()


def revoke(cluster: Cluster, name: str) -> None:
    peers(cluster, "revoke", name, "--yes").expect(0)


def allow(cluster: Cluster, name: str) -> None:
    peers(cluster, "allow", name).expect(0)


def let_in_again(doors: Doors, keys: Keys) -> None:
    """A gate hears of it in a quarter of a second; who was refused before that tries anew."""
    set_revoked(doors.cluster, keys.peer_id, False)
    for door in DOORS:
        wait_for(lambda door=door: is_let_in(doors, door, keys), PATIENCE_S, "it is let in again")  # type: ignore[misc]


def is_let_in(doors: Doors, door: str, keys: Keys) -> bool:
    with doors.line(door, keys) as line:
        return line.outcome() == "in"


# -- connections --------------------------------------------------------------------------


def blocks(doors: Doors) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in count():
        yield "get_block", {**doors.block(), "received": 1000 * number}


def snapshots() -> Iterator[tuple[str, dict[str, Any]]]:
    while True:
        yield "get_snapshot", {}


def last_signs(doors: Doors, keys: Keys, cut_off: Callable[[], None]) -> dict[str, float]:
    """Seconds from the return of `cut_off` to the last message or the end of each line, of one
    who takes blocks, answers and events as fast as they come."""
    with ExitStack() as stack:
        taking: dict[str, Taking] = {}
        for door, requests in (("node", blocks(doors)), ("tracker", snapshots()), ("events", None)):
            line = stack.enter_context(doors.inside(door, keys))
            taking[door] = stack.enter_context(Taking(line, requests))
        wait_for(lambda: all(t.count >= 1 for t in taking.values()), PATIENCE_S, "all of it flows")
        cut_off()
        done = time.monotonic()
        wait_for(lambda: all(t.ended_at for t in taking.values()), PATIENCE_S, "all lines have ended")
        wait_for(lambda: time.monotonic() > done + SILENCE_S, PATIENCE_S, "a tick later")
        return {door: max(t.last_at, t.ended_at or 0.0) - done for door, t in taking.items()}


@pytest.mark.row("S2")
@pytest.mark.parametrize(("by", "rounds"), [("command", 1), ("file", 5)])
def test_who_is_cut_off_gets_nothing_more_within_a_second(
    doors: Doors, by: str, rounds: int, record_property: Figure
) -> None:
    cluster, name = doors.cluster, f"taker-by-{by}"
    keys = keys_of(cluster.join(name).home / "client")
    cut_off = {
        "command": lambda: revoke(cluster, name),
        "file": lambda: set_revoked(cluster, keys.peer_id, True),
    }[by]
    figures: dict[str, list[float]] = {door: [] for door in DOORS}
    for _ in range(rounds):
        for door, seconds in last_signs(doors, keys, cut_off).items():
            figures[door].append(seconds)
        assert not any(is_let_in(doors, door, keys) for door in DOORS)
        let_in_again(doors, keys)
    told = {door: ", ".join(f"{1000 * s:.0f}" for s in seconds) for door, seconds in figures.items()}
    record_property("figures", f"ms from a revocation to the last sign: {told}")
    assert max(map(max, figures.values())) <= ENDED_WITHIN_S, told


@pytest.mark.row("S2")
@pytest.mark.parametrize("how", ["revoked", "rotated"])
def test_a_connection_that_kept_silent_is_worth_nothing_afterwards(doors: Doors, how: str) -> None:
    """Who has connected and not said a word is not known by its connection; what it says
    later is not heard, nor is anything told to it."""
    cluster = doors.cluster
    client = cluster.join(f"silent-{how}")
    keys = keys_of(client.home / "client")
    with (
        doors.inside("tracker", keys) as tracker,
        doors.inside("node", keys) as node,
        doors.inside("events", keys, subscribe=False) as events,
    ):
        if how == "revoked":
            set_revoked(cluster, keys.peer_id, True)
        else:
            client.run("rotate-key")
        seen = time.monotonic()
        wait_for(lambda: time.monotonic() > seen + ENDED_WITHIN_S, PATIENCE_S, "a second")
        tracker.send("get_snapshot")
        node.send("get_block", **doors.block())
        events.subscribe()
        wait_for(lambda: tracker.ended and node.ended and events.ended, PATIENCE_S, "all lines have ended")
        for line in (tracker, node):
            while (frames := line.arrival(0.0)) is not None:
                assert b"not_allowed" in frames[0]
        silent([events], SILENCE_S)


@pytest.mark.row("S4")
@pytest.mark.parametrize("door", ["tracker", "node"])
def test_who_asks_for_nonsense_without_end_is_cut_off_and_may_come_back(doors: Doors, door: str) -> None:
    keys = keys_of(doors.cluster.join(f"nonsense-{door}").home / "client")
    kind, values = next(snapshots() if door == "tracker" else blocks(doors))
    with doors.inside(door, doors.keys["member"]) as other:
        with doors.inside(door, keys) as line:
            for _ in range(int(misuse.BURST)):
                assert line.refusal("no_such_request") == "unknown_message"
            assert line.ask(kind, **values)["t"] in ("snapshot", "block")
            with suppress(AssertionError):  # some more, which came back to it meanwhile
                while line.reply(line.send("no_such_request"), 0.5):
                    pass
            wait_for(lambda: line.ended, PATIENCE_S, "its line has ended")
        with doors.inside(door, keys) as line:
            assert line.ask(kind, **values)["t"] in ("snapshot", "block")
        assert other.ask(kind, **values)["t"] in ("snapshot", "block")
