"""Placement (SPEC U2, U4, U6, U9): every promise of `zchunk.placement` as a property."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, groupby, product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zchunk.consequence import PeerConsequence, consequence, describe_chunks, lost_without, minimum_peers
from zchunk.errors import InvalidUsage, NoSpace, TooFewPeers
from zchunk.placement import WHOLE, Candidate, Placement, place, place_missing, place_whole
from zchunk.strategy import STRATEGIES

UNIT = 1000
Case = dict[str, Any]

strategies = st.sampled_from(STRATEGIES)
even_strategies = st.sampled_from(["round_robin", "contiguous"])


def peers_with(*free: int, load: float = 0.0) -> list[Candidate]:
    return [Candidate(f"p{i:02}", f"PC-{i}", room, load) for i, room in enumerate(free)]


def file_sizes(count: int, short: int) -> list[int]:
    """`count` chunks, the last of `short` bytes: what a file looks like."""
    return [UNIT] * (count - 1) + [short] if count else []


def most_chunks(free: Sequence[int], replicas: int) -> int:
    """How many full chunks fit, each on `replicas` different peers."""
    places = [room // UNIT for room in free]
    counts = range(sum(places) // replicas, -1, -1)
    return next(n for n in counts if sum(min(place, n) for place in places) >= n * replicas)


@st.composite
def cases(draw: st.DrawFn, strategy: st.SearchStrategy[str] = strategies, tight: bool = False) -> Case:
    """Arguments of `place`. Every peer could take the whole file; or `tight`: it only just fits."""
    peers = draw(st.integers(1, 8))
    replicas = draw(st.integers(1, min(3, peers)))
    count = draw(st.integers(1, 40))
    rooms = st.integers(0, 12 * UNIT) if tight else st.integers(count * UNIT, (count + 5) * UNIT)
    free = draw(st.lists(rooms, min_size=peers, max_size=peers))
    if tight:
        fitting = most_chunks(free, replicas)
        count = draw(st.integers(max(1, fitting - 3), fitting + 1))
    able = sum(room >= UNIT for room in free)
    loads = draw(st.lists(st.floats(0, 4), min_size=peers, max_size=peers))
    return {
        "strategy": draw(strategy),
        "sizes": file_sizes(count, draw(st.integers(1, UNIT))),
        "candidates": [replace(p, load=x) for p, x in zip(peers_with(*free), loads, strict=True)],
        "replicas": replicas,
        "min_peers": draw(st.integers(1, max(1, able))),
    }


roomy = cases()
short_of_room = cases(tight=True)


def copies(plan: Placement) -> Counter[str]:
    return Counter(peer for row in plan.holders() for peer in row)


def stored(plan: Placement, sizes: Sequence[int]) -> Counter[str]:
    total: Counter[str] = Counter()
    for size, row in zip(sizes, plan.holders(), strict=True):
        total.update(dict.fromkeys(row, size))
    return total


def planned(case: Case, planner: Callable[..., Placement] = place) -> Placement:
    try:
        return planner(**case)
    except NoSpace:
        assume(False)
        raise


def distinct(holders: Sequence[Sequence[str]]) -> set[str]:
    return set().union(*holders)


# -- every plan -----------------------------------------------------------------------


@pytest.mark.row("U4")
@given(roomy | short_of_room)
def test_each_chunk_has_as_many_copies_as_asked_on_different_peers(case: Case) -> None:
    plan = planned(case)
    assert len(plan.assignment) == len(case["sizes"])
    assert all(len(row) == len(set(row)) == case["replicas"] for row in plan.assignment)


@given(short_of_room)
def test_no_peer_is_filled_over_its_free_space(case: Case) -> None:
    used = stored(planned(case), case["sizes"])
    assert all(used[peer.peer_id] <= peer.free for peer in case["candidates"])


@given(short_of_room, st.data())
def test_no_peer_is_filled_over_its_free_space_by_chunks_of_many_sizes(
    case: Case, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, UNIT), min_size=1, max_size=40))
    plan = planned({**case, "sizes": sizes})
    used = stored(plan, sizes)
    assert all(used[peer.peer_id] <= peer.free for peer in case["candidates"])
    assert all(len(set(row)) == case["replicas"] for row in plan.assignment)


@pytest.mark.row("U4")
@given(roomy | short_of_room)
def test_a_file_lies_on_at_least_min_peers_peers(case: Case) -> None:
    plan = planned(case)
    possible = len(case["sizes"]) * case["replicas"]
    assert len(distinct(plan.holders())) >= min(case["min_peers"], possible)


@given(roomy | short_of_room)
def test_peers_are_exactly_those_that_take_a_copy_sorted(case: Case) -> None:
    plan = planned(case)
    assert set(plan.peers) == distinct(plan.holders())
    assert list(plan.peers) == sorted(plan.peers)


@given(roomy | short_of_room, st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing(case: Case, random: Any) -> None:
    shuffled = list(case["candidates"])
    random.shuffle(shuffled)
    assert planned({**case, "candidates": shuffled}) == planned(case)


@given(roomy | short_of_room)
def test_chunks_of_a_peer_are_the_rows_it_stands_in(case: Case) -> None:
    plan = planned(case)
    held = [(peer, chunk) for peer in range(len(plan.peers)) for chunk in plan.chunks_of(peer)]
    led = [(peer, chunk) for peer in range(len(plan.peers)) for chunk in plan.primaries_of(peer)]
    assert sorted(held) == sorted((peer, i) for i, row in enumerate(plan.assignment) for peer in row)
    assert sorted(led) == sorted((row[0], i) for i, row in enumerate(plan.assignment))


# -- round_robin and contiguous -------------------------------------------------------


@pytest.mark.row("U4")
@given(cases(even_strategies))
def test_copies_are_even_to_within_one(case: Case) -> None:
    counts = copies(planned(case))
    each = [counts[peer.peer_id] for peer in case["candidates"]]
    assert max(each) - min(each) <= 1


@given(cases(even_strategies, tight=True))
def test_with_little_room_copies_are_even_among_peers_with_room(case: Case) -> None:
    """A peer has fewer than others only if it has no room for another full chunk."""
    plan = planned(case)
    # With room for the last chunk only at its real size, every full place is taken anyway.
    places = [min(peer.free // UNIT, len(case["sizes"])) for peer in case["candidates"]]
    assume(sum(places) >= len(case["sizes"]) * case["replicas"])
    assume(sum(place > 0 for place in places) >= case["min_peers"])
    counts = copies(plan)
    most = max(counts.values())
    for peer, room in zip(case["candidates"], places, strict=True):
        assert counts[peer.peer_id] >= min(most - 1, room)


@given(cases(even_strategies))
def test_primaries_are_even_to_within_one(case: Case) -> None:
    plan = planned(case)
    counts = Counter(row[0] for row in plan.holders())
    each = [counts[peer.peer_id] for peer in case["candidates"]]
    assert max(each) - min(each) <= 1


@pytest.mark.row("U4")
@given(cases(st.just("contiguous")) | cases(st.just("contiguous"), tight=True))
def test_contiguous_gives_each_peer_one_run_of_primaries(case: Case) -> None:
    primaries = [row[0] for row in planned(case).assignment]
    runs = [peer for peer, _ in groupby(primaries)]
    assert len(runs) == len(set(runs))


@given(cases(st.just("contiguous")))
def test_contiguous_replicas_are_the_runs_shifted_by_peers(case: Case) -> None:
    assume(len(case["sizes"]) >= len(case["candidates"]))
    plan = planned(case)
    for row in plan.assignment:
        assert row == tuple((row[0] + shift) % len(plan.peers) for shift in range(case["replicas"]))


@pytest.mark.row("U4")
@given(cases(st.just("round_robin")))
def test_round_robin_deals_primaries_in_turn(case: Case) -> None:
    plan = planned(case)
    primaries = [row[0] for row in plan.holders()]
    turn = [peer.peer_id for peer in case["candidates"]]
    assert primaries == [turn[chunk % len(turn)] for chunk in range(len(primaries))]


@given(cases(st.just("round_robin"), tight=True))
def test_round_robin_with_one_copy_goes_on_in_turn_without_the_peers_that_ran_full(case: Case) -> None:
    case = {**case, "replicas": 1, "min_peers": 1, "sizes": [UNIT] * len(case["sizes"])}
    primaries = [row[0] for row in planned(case).holders()]
    seen: Counter[str] = Counter()
    rounds = []
    for peer in primaries:
        rounds.append((seen[peer], peer))
        seen[peer] += 1
    assert rounds == sorted(rounds)


# -- balanced -------------------------------------------------------------------------


def ideal_shares(total: float, weights: list[float], caps: list[int], low: list[int]) -> list[float]:
    """A common level times the weight, cut to the bounds; the level found by halving."""
    bottom, top = 0.0, 1e9
    for _ in range(200):
        level = (bottom + top) / 2
        shares = [min(c, max(b, level * w)) for w, c, b in zip(weights, caps, low, strict=True)]
        bottom, top = (level, top) if sum(shares) < total else (bottom, level)
    return shares


@pytest.mark.row("U4")
@given(cases(st.just("balanced")) | cases(st.just("balanced"), tight=True))
def test_balanced_is_within_one_chunk_of_the_share_by_free_space_and_load(case: Case) -> None:
    case = {**case, "min_peers": 1, "sizes": [UNIT] * len(case["sizes"])}
    plan = planned(case)
    peers = case["candidates"]
    caps = [min(peer.free // UNIT, len(case["sizes"])) for peer in peers]
    weights = [peer.free / (1 + peer.load) for peer in peers]
    heaviest = max((i for i in range(len(peers)) if caps[i]), key=lambda i: int(1000 * weights[i] / 1000))
    low = [int(i == heaviest) for i in range(len(peers))]
    ideal = ideal_shares(len(case["sizes"]) * case["replicas"], weights, caps, low)
    counts = copies(plan)
    # Weights are whole numbers of bytes and loads thousandths; hence the small tolerance.
    assert all(abs(counts[peer.peer_id] - share) <= 1.1 for peer, share in zip(peers, ideal, strict=True))


def test_balanced_fills_in_proportion_to_free_space() -> None:
    plan = place(
        strategy="balanced",
        sizes=[UNIT] * 60,
        candidates=peers_with(100 * UNIT, 200 * UNIT, 300 * UNIT),
        replicas=1,
        min_peers=2,
    )
    assert copies(plan) == {"p00": 10, "p01": 20, "p02": 30}


def test_balanced_halves_the_share_of_a_peer_with_load_one() -> None:
    idle, busy = peers_with(100 * UNIT, 100 * UNIT)
    plan = place(
        strategy="balanced",
        sizes=[UNIT] * 30,
        candidates=[idle, replace(busy, load=1.0)],
        replicas=1,
        min_peers=2,
    )
    assert copies(plan) == {"p00": 20, "p01": 10}


def test_balanced_spreads_each_peers_chunks_over_the_file() -> None:
    plan = place(
        strategy="balanced",
        sizes=[UNIT] * 40,
        candidates=peers_with(300 * UNIT, 100 * UNIT),
        replicas=1,
        min_peers=2,
    )
    assert {
        after - before for before, after in zip(plan.chunks_of(1), plan.chunks_of(1)[1:], strict=False)
    } == {4}


@pytest.mark.parametrize("load", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_load_that_makes_no_sense_does_no_harm(load: float) -> None:
    a, b = peers_with(100 * UNIT, 100 * UNIT)
    plan = place(
        strategy="balanced", sizes=[UNIT] * 8, candidates=[a, replace(b, load=load)], replicas=1, min_peers=2
    )
    assert len(plan.peers) == 2


def test_balanced_uses_min_peers_peers_even_if_one_has_nearly_all_the_room() -> None:
    plan = place(
        strategy="balanced",
        sizes=[UNIT] * 8,
        candidates=peers_with(10**9, 2 * UNIT, 2 * UNIT),
        replicas=1,
        min_peers=3,
    )
    assert copies(plan) == {"p00": 6, "p01": 1, "p02": 1}


# -- refusals -------------------------------------------------------------------------


@pytest.mark.row("U2")
@given(roomy, st.integers(1, 5))
def test_too_few_peers_are_refused_with_who_is_online_and_how_many_it_takes(case: Case, more: int) -> None:
    online = [peer.name for peer in case["candidates"]]
    needed = len(online) + more
    with pytest.raises(TooFewPeers) as caught:
        place(**{**case, "min_peers": needed})
    assert caught.value.details == {"online": online, "needed": needed}
    with pytest.raises(TooFewPeers) as caught:
        place(**{**case, "replicas": needed})
    assert caught.value.details == {"online": online, "needed": needed}
    with pytest.raises(TooFewPeers) as caught:
        place_whole(sizes=case["sizes"], candidates=case["candidates"], replicas=needed)
    assert caught.value.details == {"online": online, "needed": needed}


@pytest.mark.row("U2")
def test_the_message_for_too_few_peers() -> None:
    with pytest.raises(TooFewPeers) as caught:
        place(strategy="balanced", sizes=[1], candidates=peers_with(9), replicas=1, min_peers=2)
    assert caught.value.message == ("1 peer online (PC-0), but 2 needed: start more nodes, or use --wait")


def test_the_message_for_no_space() -> None:
    with pytest.raises(NoSpace) as caught:
        place(
            strategy="round_robin",
            sizes=[10**9] * 5,
            candidates=peers_with(1 * 10**9, 2 * 10**9),
            replicas=1,
            min_peers=2,
        )
    assert caught.value.details == {"needed": 5 * 10**9, "free": 3 * 10**9}
    assert caught.value.message == (
        "no space for the file: 5.00 GB needed on at least 2 peers, 3.00 GB free (PC-1 2.00 GB, PC-0 1.00"
        " GB); remove files, raise a node's capacity, add a node or ask for fewer replicas"
    )


def fits(sizes: Sequence[int], free: Sequence[int], replicas: int, wanted: int) -> bool:
    """Whether any plan at all fits, by trying all."""
    rows = list(combinations(range(len(free)), replicas))
    for plan in product(rows, repeat=len(sizes)):
        used = [0] * len(free)
        for size, row in zip(sizes, plan, strict=True):
            for peer in row:
                used[peer] += size
        if all(u <= f for u, f in zip(used, free, strict=True)) and sum(u > 0 for u in used) >= wanted:
            return True
    return False


@given(
    strategies,
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_a_plan_is_found_exactly_when_one_fits(
    strategy: str, count: int, short: int, free: list[int], replicas: int, min_peers: int
) -> None:
    """For the sizes a file has: equal ones and a last chunk that may be shorter (3 is full)."""
    assume(max(replicas, min_peers) <= len(free))
    sizes = [3] * (count - 1) + [short]
    possible = fits(sizes, free, replicas, min(min_peers, count * replicas))
    try:
        place(
            strategy=strategy,
            sizes=sizes,
            candidates=peers_with(*free),
            replicas=replicas,
            min_peers=min_peers,
        )
        found = True
    except NoSpace:
        found = False
    assert found == possible


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidUsage, match="round_robin, contiguous, balanced"):
        place(strategy="random", sizes=[1], candidates=peers_with(9), replicas=1, min_peers=1)


# -- no chunks ------------------------------------------------------------------------


@given(roomy)
def test_a_file_without_chunks_belongs_to_the_own_peer_or_the_one_with_most_room(case: Case) -> None:
    peers = case["candidates"]
    most = min(peers, key=lambda peer: (-peer.free, peer.peer_id)).peer_id
    for own, expected in [(None, most), ("elsewhere", most), (peers[-1].peer_id, peers[-1].peer_id)]:
        plan = place(**{**case, "sizes": [], "own_peer": own})
        assert (plan.peers, plan.assignment) == ((expected,), ())


# -- files under the threshold --------------------------------------------------------


@pytest.mark.row("U1")
@given(roomy | short_of_room, st.integers(0, 9))
def test_a_whole_file_lies_undivided_on_the_own_peer_then_those_with_most_room(case: Case, own: int) -> None:
    sizes, peers, replicas = case["sizes"], case["candidates"], case["replicas"]
    able = [peer for peer in peers if peer.free >= sum(sizes)]
    assume(len(able) >= replicas)
    able.sort(key=lambda peer: (peer.peer_id != f"p{own:02}", -peer.free, peer.peer_id))
    plan = place_whole(sizes=sizes, candidates=peers, replicas=replicas, own_peer=f"p{own:02}")
    assert plan.strategy == WHOLE
    assert plan.peers == tuple(peer.peer_id for peer in able[:replicas])
    assert plan.holders() == [plan.peers] * len(sizes)


@given(short_of_room)
def test_a_whole_file_that_too_few_peers_have_room_for_is_refused(case: Case) -> None:
    sizes, peers, replicas = case["sizes"], case["candidates"], case["replicas"]
    assume(sum(peer.free >= sum(sizes) for peer in peers) < replicas)
    with pytest.raises(NoSpace) as caught:
        place_whole(sizes=sizes, candidates=peers, replicas=replicas)
    assert caught.value.details["needed"] == sum(sizes) * replicas


def test_one_peer_is_enough_for_a_whole_file() -> None:
    plan = place_whole(sizes=[UNIT] * 3, candidates=peers_with(3 * UNIT))
    assert plan.assignment == ((0,),) * 3


# -- copies that are still to be made -------------------------------------------------


@st.composite
def unfinished(draw: st.DrawFn, tight: bool = False) -> Case:
    """A case of `place` with holders of some copies, a few of which are no candidates."""
    case = draw(cases(tight=tight))
    ids = [peer.peer_id for peer in case["candidates"]] + ["z98", "z99"]
    some = st.lists(st.sampled_from(ids), unique=True, max_size=3)
    return {**case, "held": [draw(some) for _ in case["sizes"]], "min_peers": draw(st.integers(1, 3))}


def missing(case: Case) -> Placement:
    try:
        return planned(case, place_missing)
    except TooFewPeers:
        assume(False)
        raise


@pytest.mark.row("R1")
@given(unfinished() | unfinished(tight=True))
def test_missing_copies_are_made_up_to_the_number_asked(case: Case) -> None:
    for row, held in zip(missing(case).assignment, case["held"], strict=True):
        assert len(row) == len(set(row)) == max(0, case["replicas"] - len(held))


@pytest.mark.row("R1")
@given(unfinished() | unfinished(tight=True))
def test_no_new_copy_goes_to_a_peer_that_holds_the_chunk(case: Case) -> None:
    for row, held in zip(missing(case).holders(), case["held"], strict=True):
        assert not set(row) & set(held)


@given(unfinished(tight=True))
def test_new_copies_fit_into_the_free_space(case: Case) -> None:
    used = stored(missing(case), case["sizes"])
    assert all(used[peer.peer_id] <= peer.free for peer in case["candidates"])


@given(unfinished())
def test_old_and_new_holders_together_are_min_peers_if_there_are_enough_copies(case: Case) -> None:
    plan = missing(case)
    before = distinct(case["held"])
    new = sum(map(len, plan.assignment))
    assert len(before | distinct(plan.holders())) >= min(case["min_peers"], len(before) + new)


@given(unfinished(), st.randoms(use_true_random=False))
def test_missing_copies_do_not_depend_on_the_order_of_candidates(case: Case, random: Any) -> None:
    shuffled = list(case["candidates"])
    random.shuffle(shuffled)
    assert missing({**case, "candidates": shuffled}) == missing(case)


@given(unfinished())
def test_a_chunk_with_too_few_peers_to_go_to_is_refused(case: Case) -> None:
    ids = {peer.peer_id for peer in case["candidates"]}
    replicas = 1 + min(len(set(held) | ids) for held in case["held"])
    with pytest.raises(TooFewPeers) as caught:
        place_missing(**{**case, "replicas": replicas})
    assert caught.value.details["needed"] > len(ids)


@given(roomy)
def test_nothing_held_is_planned_like_a_new_file(case: Case) -> None:
    held: list[list[str]] = [[] for _ in case["sizes"]]
    assert place_missing(**case, held=held) == place(**case)


@given(roomy)
def test_a_complete_file_needs_nothing(case: Case) -> None:
    plan = place(**case)
    again = place_missing(**case, held=plan.holders())
    assert (again.peers, set(again.assignment)) == ((), {()})


@pytest.mark.row("U6")
@given(cases(even_strategies))
def test_after_a_peer_was_lost_the_whole_file_is_even_among_the_rest(case: Case) -> None:
    """U6: what was confirmed counts, what went down is sent to the others."""
    assume(len(case["candidates"]) >= 3)
    case = {**case, "replicas": 1, "min_peers": 2}
    lost = case["candidates"][0].peer_id
    held = [[peer for peer in row if peer != lost] for row in place(**case).holders()]
    assume(any(held))
    rest = case["candidates"][1:]
    plan = place_missing(**{**case, "candidates": rest}, held=held)
    total = copies(plan) + Counter(peer for row in held for peer in row)
    each = [total[peer.peer_id] for peer in rest]
    assert lost not in plan.peers
    assert max(each) - min(each) <= 1


def test_a_second_replica_of_a_full_cluster_finds_the_one_way_that_fits() -> None:
    plan = place_missing(
        strategy="round_robin",
        sizes=[UNIT, UNIT],
        held=[["p00"], ["p01"]],
        candidates=peers_with(UNIT, UNIT, 0),
        replicas=2,
    )
    assert plan.holders() == [("p01",), ("p00",)]


def test_missing_copies_without_room_are_refused() -> None:
    with pytest.raises(NoSpace, match="the missing copies") as caught:
        place_missing(
            strategy="contiguous",
            sizes=[UNIT, UNIT],
            held=[["p00"], ["p00"]],
            candidates=peers_with(9 * UNIT, UNIT),
            replicas=2,
        )
    assert caught.value.details["needed"] == 2 * UNIT


# -- consequences ---------------------------------------------------------------------

holder_lists = st.lists(st.sets(st.sampled_from("abcdef"), max_size=3), max_size=12)


@pytest.mark.row("U9")
@given(holder_lists, st.sets(st.sampled_from("abcdefg")))
def test_lost_are_the_chunks_with_no_holder_left(holders: list[set[str]], off: set[str]) -> None:
    assert lost_without(holders, off) == sum(not row - off for row in holders)


@given(holder_lists)
def test_the_consequence_of_each_peer_is_what_is_lost_without_it(holders: list[set[str]]) -> None:
    assert consequence(holders, "abcdefg") == [
        PeerConsequence(peer, sum(peer in row for row in holders), lost_without(holders, {peer}))
        for peer in "abcdefg"
    ]


@pytest.mark.row("U9")
@given(roomy)
def test_the_consequence_of_a_plan_names_its_peers(case: Case) -> None:
    plan = place(**case)
    found = consequence(plan)
    assert [part.peer_id for part in found] == list(plan.peers)
    assert found == consequence(plan.holders())
    if case["replicas"] > 1:
        assert all(part.chunks_lost == 0 for part in found)
    else:
        assert all(part.chunks_lost == part.chunks for part in found)


@given(holder_lists)
def test_minimum_peers_is_the_smallest_set_that_holds_every_chunk(holders: list[set[str]]) -> None:
    held = [row for row in holders if row]
    smallest = next(
        count
        for count in range(7)
        if any(all(row & set(chosen) for row in held) for chosen in combinations("abcdef", count))
    )
    assert minimum_peers(holders) == smallest


@given(st.lists(st.sets(st.integers(0, 30), min_size=2, max_size=4), max_size=40))
def test_with_many_peers_minimum_peers_is_never_too_few(holders: list[set[int]]) -> None:
    rows = [{f"p{peer}" for peer in row} for row in holders]
    apart: set[str] = set()
    at_least = 0
    for row in rows:  # chunks without a common holder need a peer each
        if not row & apart:
            apart |= row
            at_least += 1
    assert at_least <= minimum_peers(rows) <= len(rows)


def test_minimum_peers_of_files_people_have() -> None:
    assert minimum_peers([]) == 0
    assert minimum_peers([("a",), ("b",), ("a",)]) == 2
    assert minimum_peers([("a", "b"), ("b", "c"), ("c", "a")]) == 2
    assert minimum_peers([(f"p{i}",) for i in range(40)]) == 40


# -- words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indexes", "words"),
    [
        ([], "no chunks"),
        ([4], "chunk 4"),
        (range(10), "0-9"),
        ([3, 4], "3-4"),
        (range(2, 38, 3), "first 2, every 3rd, 12 chunks"),
        ([0, 2, 4], "first 0, every 2nd, 3 chunks"),
        ([0, 11, 22], "first 0, every 11th, 3 chunks"),
        ([5, 27], "first 5, every 22nd, 2 chunks"),
        ([0, 21, 42], "first 0, every 21st, 3 chunks"),
        ([0, 112, 224], "first 0, every 112th, 3 chunks"),
        ([0, 1, 3], "3 chunks"),
        ([3, 1, 2, 0], "0-3"),
        ([1, 1, 1], "3 chunks"),
    ],
)
def test_chunks_in_words(indexes: Sequence[int], words: str) -> None:
    assert describe_chunks(indexes) == words
