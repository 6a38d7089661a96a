"""One member that takes or holds all it can of a node: the others have their share, soon, and are
told. `python -m tests.hostile.shares` measures more rounds of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.hostile.shares import ASLEEP, HOLDERS, TAKERS, Shared, kinds, share, share_of_one, shared
from tests.integration.cluster import MIB, PATIENCE_S
from tests.waiting import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.slow]
_SIZE = 128 * MIB
_FAIR = 0.8
_SOON_S = 1.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(tmp_path_factory.mktemp("shares"), _SIZE) as made:
        yield made


@pytest.mark.parametrize("attack", [*HOLDERS, ASLEEP])
def test_others_keep_their_share_and_start_soon(made: Shared, attack: str) -> None:
    for what, run in kinds(made, attack).items():
        assert run().speed > 0, "warm"
        alone = [run() for _ in range(3)]
        with made.under(attack, 600.0):  # it ends with the block
            meanwhile = [run() for _ in range(3)]
        # The slowest of each: what is held ends some time.
        slowest = [min(runs, key=lambda run: run.speed) for runs in (alone, meanwhile)]
        assert share(attack, *slowest) >= _FAIR, f"{what} under {attack}: {meanwhile}, alone {alone}"
        assert max(run.first for run in meanwhile) <= _SOON_S + max(run.first for run in alone)


@pytest.mark.parametrize("attack", TAKERS)
def test_many_connections_bring_no_more_than_one(made: Shared, attack: str) -> None:
    assert statistics.median(share_of_one(made, attack) for _ in range(3)) >= _FAIR


def test_it_is_told_who_holds_what(made: Shared) -> None:
    watch = made.cluster.client.start("events", "--topic", "budget.held")
    holder = made.cluster.join("holder")  # of the others it may have been told within this minute
    with made.under("hold_downloads", 60.0, holder):
        get = made.get()
        assert get.speed > 0
        held = _held_while_others_ask(made, watch.until)
    node = made.cluster.node_of(held["peer_id"])
    assert (held["name"], held["held_by_name"], held["purpose"]) == (node.name, "holder", "downloads")
    assert 10 * MIB <= held["bytes"] <= 32 * MIB
    assert held["budget"] == 32 * MIB
    assert held["seconds"] >= 3.0
    assert "holder has held" in node.process.stderr
    watch.close()


def _held_while_others_ask(made: Shared, until: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """It is told as others ask: again and again here, until it has held for long enough."""

    def told() -> dict[str, Any] | None:
        made.get()
        try:
            return until(lambda event: event.get("topic") == "budget.held", 0.5)
        except AssertionError:
            return None

    found: dict[str, Any] = wait_for(told, PATIENCE_S, "it is told that memory is held")
    return found


def test_who_waits_for_others_is_told_so_and_goes_on(made: Shared) -> None:
    """Several members at once can hold all that there is, until their connections end."""
    with ExitStack() as stack:
        for other in made.others:
            stack.enter_context(made.under("hold_downloads", 60.0, other))
        target = made.path()
        get = made.cluster.client.start("get", "-o", target, made.source.path.name)
        waiting = get.until("waiting")
        done = get.result().expect(0).last
    names = {made.cluster.node_of(peer_id).name for peer_id in waiting["busy_peers"]}
    assert names
    assert names <= {"A", "B"}
    assert waiting["missing_peers"] == []
    assert {row["name"]: row["reason"] for row in waiting["missing"]} == dict.fromkeys(names, "busy")
    assert done["bytes_received"] == _SIZE
    target.unlink()
