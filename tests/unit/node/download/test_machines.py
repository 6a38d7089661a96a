"""The machines that a download job is made of, each alone: sources, chunks, order, hedging, view."""

from __future__ import annotations

import pytest

from zchunk.errors import IllegalEvent
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS
from zchunk.node.download.actions import BeginChunk, ChunkState, DropChunk, Limits, RequestBlock, VerifyChunk
from zchunk.node.download.chunks import Chunks
from zchunk.node.download.hedging import Hedging, p95
from zchunk.node.download.job import DownloadJob
from zchunk.node.download.order import AskOrder
from zchunk.node.download.sources import MAX_CORRUPT, Sources
from zchunk.node.download.view import View

A, B, C = "a" * 32, "b" * 32, "c" * 32
SIZE = 64
LIMITS = Limits(budget=4 * SIZE, block_min=16, block_max=64, stall_s=30.0, relocate_s=60.0)


class Machines:
    def __init__(self, holders: list[list[str]], up: list[str], budget: int = 4 * SIZE) -> None:
        self.sources = Sources(holders, LIMITS)
        self.sources.set_up(dict.fromkeys(up, 1))
        self.chunks = Chunks([SIZE] * len(holders), budget, self.sources)
        self.order = AskOrder(self.chunks, self.sources)
        self.hedging = Hedging(self.chunks, self.sources, self.order)
        self.view = View(self.chunks, self.sources)
        self.order.renew()

    def begin_next(self, now: float = 0.0) -> tuple[int, str] | None:
        chosen = self.order.take(now)
        if chosen is not None:
            self.chunks.begin(*chosen, now)
        return chosen

    def deliver(self, index: int, now: float) -> None:
        """All that was asked of it, and the rest."""
        (fetch,) = self.chunks.rows[index].fetches
        while not fetch.complete:
            self.chunks.ask_blocks(now)
            for offset in list(fetch.asked):
                self.chunks.arrived(fetch, offset, now)


# -- sources: who may be asked ------------------------------------------------------------


def test_only_those_that_are_up_and_reachable_are_asked() -> None:
    sources = Sources([[A, B, C]], LIMITS)
    sources.set_up({A: 1, B: 1}, unreachable=[B])
    assert sources.live(0) == [A]
    assert sorted(sources.askable(0)) == [A, B, C]


def test_who_sent_a_corrupt_copy_is_asked_last() -> None:
    sources = Sources([[A, B], [A]], LIMITS)
    sources.set_up({A: 1, B: 1})
    assert not sources.sent_corrupt(0, A, 0.0)
    assert sources.live(0) == [B]
    assert sources.live(1) == [A], "its others are still good"
    sources.peers[B].up = False
    assert sources.live(0) == [A], "rather than nobody"


def test_who_lies_twice_is_set_apart_and_each_further_chunk_is_asked_there_once() -> None:
    sources = Sources([[A, B]] * 4, LIMITS)
    sources.set_up({A: 1, B: 1})
    assert [sources.sent_corrupt(index, A, 0.0) for index in range(3)] == [False, True, False]
    assert sources.peers[A].corrupt > MAX_CORRUPT
    assert sources.live(3) == [B]
    assert sources.askable(2) == [B]
    assert A in sources.askable(0)


def test_who_has_none_of_a_chunk_is_not_asked_for_it_again() -> None:
    sources = Sources([[A]], LIMITS)
    sources.set_up({A: 1})
    sources.has_none(0, A)
    assert sources.live(0) == []
    assert sources.is_unavailable(0)
    assert list(sources.struck(0)) == [A]


# -- chunks: one state each, and the memory -------------------------------------------------


def test_a_chunk_is_wanted_then_in_flight_then_checked_then_held() -> None:
    machines = Machines([[A]], up=[A])
    chunks, (chunk,) = machines.chunks, machines.chunks.rows
    assert (chunk.state, chunks.wanted) == (ChunkState.WANTED, {0})
    assert chunks.begin(0, A, 0.0) == BeginChunk(0, 1)
    assert (chunk.state, chunks.in_work, chunks.begun_bytes) == (ChunkState.IN_FLIGHT, {0}, SIZE)
    machines.deliver(0, 1.0)
    assert chunks.complete(0, chunk.fetches[0], 1.0) == [VerifyChunk(0, 1)]
    chunks.hold(0, kept=True)
    assert (chunk.state, chunk.source, chunks.held, chunks.in_work) == (ChunkState.HELD, A, 1, set())
    assert chunks.begun_bytes == SIZE, "its buffer is still needed"
    chunks.free(0)
    assert chunks.begun_bytes == 0


def test_no_more_is_asked_of_a_peer_than_its_window_takes() -> None:
    machines = Machines([[A]] * 4, up=[A], budget=100 * SIZE)
    for index in range(4):
        machines.chunks.begin(index, A, 0.0)
    asked = machines.chunks.ask_blocks(0.0)
    assert len(asked) == WINDOW_BLOCKS
    assert all(isinstance(ask, RequestBlock) and ask.length == LIMITS.block_min for ask in asked)


def test_a_block_counts_once_and_only_for_its_attempt() -> None:
    chunks = Machines([[A]], up=[A]).chunks
    chunks.begin(0, A, 0.0)
    chunks.ask_blocks(0.0)
    assert chunks.awaits(0, 2, 0, 16) is None
    assert chunks.awaits(0, 1, 0, 15) is None
    fetch = chunks.awaits(0, 1, 0, 16)
    assert fetch is not None
    chunks.arrived(fetch, 0, 1.0)
    assert chunks.awaits(0, 1, 0, 16) is None


def test_what_was_asked_of_a_peer_that_went_is_wanted_again() -> None:
    machines = Machines([[A], [A]], up=[A])
    chunks = machines.chunks
    for index in (0, 1):
        chunks.begin(index, A, 0.0)
    chunks.ask_blocks(0.0)
    assert chunks.take_back(A) == [DropChunk(0, 1), DropChunk(1, 1)]
    assert (chunks.wanted, chunks.in_work, chunks.begun_bytes) == ({0, 1}, set(), 0)
    assert machines.sources.peers[A].window.outstanding == machines.sources.peers[A].begun == 0


def test_the_second_attempt_keeps_a_chunk_in_flight_when_the_first_is_lost() -> None:
    chunks = Machines([[A, B]], up=[A, B]).chunks
    chunks.begin(0, A, 0.0)
    chunks.begin(0, B, 1.0)
    assert chunks.take_back(A) == [DropChunk(0, 1)]
    assert chunks.rows[0].state is ChunkState.IN_FLIGHT
    assert chunks.begun_bytes == SIZE


def test_one_chunk_fits_any_budget() -> None:
    chunks = Machines([[A], [A]], up=[A], budget=1).chunks
    assert chunks.fits(SIZE)
    chunks.begin(0, A, 0.0)
    assert not chunks.fits(1)


def test_what_is_here_is_not_wanted_until_it_is_again() -> None:
    chunks = Machines([[A]] * 3, up=[A]).chunks
    chunks.have([0, 2])
    assert (chunks.held, chunks.wanted) == (2, {1})
    chunks.want([2])
    assert (chunks.held, chunks.wanted) == (1, {1, 2})
    assert chunks.unwant([1, 2]) == []
    assert (chunks.held, chunks.wanted) == (3, set())


# -- order: which comes next ------------------------------------------------------------------


def test_the_rarest_comes_first_then_the_files_order() -> None:
    machines = Machines([[A, B], [A, B], [A]], up=[A, B])
    assert machines.begin_next() == (2, A)
    assert machines.begin_next() == (0, A)
    assert machines.begin_next() == (1, B)
    assert machines.begin_next() is None


def test_a_chunk_that_several_could_send_goes_to_the_fastest() -> None:
    machines = Machines([[A, B]], up=[A, B])
    machines.sources.peers[A].window.rate, machines.sources.peers[B].window.rate = 1.0, 2.0
    assert machines.begin_next() == (0, B)


def test_chunks_of_slow_peers_come_before_others_as_rare() -> None:
    machines = Machines([[A]] * 3 + [[B]] * 3, up=[A, B])
    machines.sources.peers[A].window.rate, machines.sources.peers[B].window.rate = 100.0, 1.0
    assert machines.begin_next() == (3, B)


def test_two_are_begun_at_one_peer_and_none_while_it_is_set_aside() -> None:
    machines = Machines([[A]] * 4, up=[A])
    assert [machines.begin_next() for _ in range(3)] == [(0, A), (1, A), None]
    aside = Machines([[A]], up=[A])
    aside.sources.peers[A].window.set_aside(0.0)
    assert aside.begin_next(0.5) is None
    assert aside.order.has_work(), "later"


def test_without_memory_none_is_begun() -> None:
    machines = Machines([[A], [B]], up=[A, B], budget=SIZE)
    assert machines.begin_next() == (0, A)
    assert machines.begin_next() is None
    assert machines.order.is_memory_bound(0.0)


def test_a_chunk_that_came_meanwhile_is_not_offered() -> None:
    machines = Machines([[A], [A]], up=[A])
    machines.chunks.have([0])
    assert machines.begin_next() == (1, A)
    assert not machines.order.has_work()
    assert machines.order.idle() == [A]


# -- hedging: what is late ----------------------------------------------------------------------


def practised(seconds: float) -> Machines:
    """Both peers are known to take so long; the one chunk is in flight at A since 0, asked for."""
    machines = Machines([[A, B]], up=[A, B])
    for peer in machines.sources.peers.values():
        peer.took.extend([seconds] * 5)
    machines.chunks.begin(0, A, 0.0)
    machines.chunks.ask_blocks(0.0)
    return machines


def test_a_late_chunk_is_asked_of_an_idle_holder() -> None:
    hedging = practised(1.0).hedging
    assert hedging.deadline() == 1.0
    assert hedging.take(0.9) is None
    assert hedging.take(1.0) == (0, B)


def test_one_hedge_is_enough() -> None:
    machines = practised(1.0)
    machines.chunks.begin(0, B, 1.0)
    assert machines.hedging.planned() == []


def test_a_peer_with_something_else_to_send_gets_no_hedge() -> None:
    machines = Machines([[A, B], [B]], up=[A, B])
    machines.sources.peers[A].took.extend([1.0] * 5)
    machines.chunks.begin(0, A, 0.0)
    assert machines.hedging.deadline() is None


def test_without_experience_nothing_is_late() -> None:
    machines = Machines([[A, B]], up=[A, B])
    machines.chunks.begin(0, A, 0.0)
    assert machines.hedging.deadline() is None
    assert not machines.hedging.comes_late(0, 100.0)


@pytest.mark.parametrize(("rate", "late"), [(0.4, True), (0.5, False), (2.0, False)])
def test_a_source_at_less_than_half_the_usual_speed_is_late(rate: float, late: bool) -> None:
    machines = practised(1.0)
    machines.sources.peers[A].window.rate, machines.sources.peers[B].window.rate = rate, 1.0
    assert machines.hedging.comes_late(0, 0.1) is late


def test_so_is_one_that_has_taken_twice_as_long() -> None:
    hedging = practised(1.0).hedging
    assert not hedging.comes_late(0, 2.0)
    assert hedging.comes_late(0, 2.1)


def test_the_quantile_is_of_the_nearest_rank() -> None:
    assert p95([1.0, 2.0, 3.0]) == 3.0
    assert p95(range(1, 101)) == 95


# -- view: what waits for whom --------------------------------------------------------------------


def test_what_waits_for_whom() -> None:
    machines = Machines([[A], [B], [A, B]], up=[A])
    assert machines.view.missing_chunks() == [1]
    assert machines.view.missing() == {B: 1}
    assert machines.view.why_missing(B) == "offline"
    machines.sources.peers[A].reachable = False
    assert machines.view.missing() == {A: 2, B: 2}
    assert machines.view.why_missing(A) == "unreachable"


def test_a_chunk_that_nobody_has_is_failed_and_unavailable() -> None:
    machines = Machines([[A], [A]], up=[A])
    machines.sources.has_none(1, A)
    assert [machines.view.status(index) for index in (0, 1)] == [("pending", None), ("failed", None)]
    assert machines.view.unavailable() == [1]


def test_all_in_work_waits_for_its_turn_only_where_nothing_moves() -> None:
    machines = Machines([[A], [B]], up=[A, B])
    machines.chunks.begin(0, A, 0.0)
    assert machines.view.waits_for_turn([A]) == {A: 1}
    machines.chunks.begin(1, B, 0.0)
    assert machines.view.waits_for_turn([A]) == {}
    assert machines.view.by_peer() == {
        A: {"completed": 0, "in_progress": 1},
        B: {"completed": 0, "in_progress": 1},
    }


# -- the job: what it remembers -------------------------------------------------------------------


def test_the_job_remembers_what_led_to_an_illegal_event() -> None:
    job = DownloadJob(sizes=[SIZE], holders=[[A]], up={A: 1}, held=(), limits=LIMITS)
    job.start(0.0)
    job.peer_down(A, 1.0)
    with pytest.raises(IllegalEvent, match=r"(?s)another file.*running: start\(\).*running: peer_down\(a+\)"):
        job.located([], 2.0)
    with pytest.raises(IllegalEvent, match="after the start"):
        job.know(up={}, held=(), unreachable=())
