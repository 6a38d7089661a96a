"""node/download/job.py: the usual course, answers that are late or wrong, flow, pause and end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.node.download.downloads import (
    BLOCK,
    CHUNK,
    SLOW,
    A,
    B,
    C,
    answer,
    blocks,
    make,
    requests,
    settle,
)
from zchunk.errors import (
    NoSpace,
    NotFound,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS, PeerWindow
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    BeginChunk,
    ChunkState,
    DropChunk,
    Failed,
    JobState,
    StateChanged,
    VerifyChunk,
    WriteChunk,
)
from zchunk.node.download.job import DownloadJob

MIB = 1024**2


# -- the usual course -------------------------------------------------------------------------


@pytest.mark.row("D3")
def test_a_chunk_is_begun_asked_for_checked_written_and_then_held() -> None:
    job = make([[A]])
    assert job.start(0.0) == [BeginChunk(0, 1), *blocks(A, 0)]
    for at in (4, 0, 12):
        assert job.block(0, 1, at, 4, SLOW) == []
    assert job.block(0, 1, 8, 4, SLOW) == [VerifyChunk(0, 1)]
    assert job.view.chunk_state(0) is ChunkState.VERIFYING
    assert job.verified(0, True, SLOW) == [WriteChunk(0, 1)]
    assert job.chunks_completed == 0
    assert job.written(0, False, SLOW) == [StateChanged(JobState.VERIFYING), AllHeld()]
    assert job.chunks_completed == 1
    assert job.begun_bytes == 0
    assert job.bytes_received == CHUNK
    assert job.complete(SLOW) == [StateChanged(JobState.COMPLETE)]


def test_an_empty_file_is_held_at_once() -> None:
    assert make([]).start(0.0) == [StateChanged(JobState.VERIFYING), AllHeld()]


def test_what_an_earlier_run_kept_is_not_asked_for() -> None:
    job = make([[A], [A], [A]], held={0, 2})
    assert job.start(0.0) == [BeginChunk(1, 1), *blocks(A, 1)]
    assert (job.chunks_completed, job.chunks_count) == (2, 3)


def test_all_kept_is_only_verified() -> None:
    assert make([[A], [B]], held={0, 1}).start(0.0) == [StateChanged(JobState.VERIFYING), AllHeld()]


@pytest.mark.row("D3")
def test_every_source_is_asked_at_once() -> None:
    job = make([[A], [B], [C]], budget=100 * CHUNK)
    assert {ask.peer_id for ask in requests(job.start(0.0))} == {A, B, C}


def test_the_rarest_chunk_goes_first_then_the_files_order() -> None:
    job = make([[A, B], [A, B], [A]], up=[A, B], budget=100 * CHUNK)
    begun = [action.chunk for action in job.start(0.0) if isinstance(action, BeginChunk)]
    assert begun == [2, 0, 1]


def test_one_peer_has_no_more_than_two_chunks_begun() -> None:
    job = make([[A]] * 10, budget=100 * CHUNK)
    assert [a for a in job.start(0.0) if isinstance(a, BeginChunk)] == [BeginChunk(0, 1), BeginChunk(1, 1)]


def test_a_chunk_is_begun_only_with_a_buffer_for_all_of_it() -> None:
    job = make([[A], [B], [C]], budget=2 * CHUNK + 1)
    actions = job.start(0.0)
    assert sum(isinstance(a, BeginChunk) for a in actions) == 2
    assert job.begun_bytes == 2 * CHUNK


def test_a_chunk_larger_than_the_budget_is_fetched_alone() -> None:
    job = make([[A], [B]], budget=CHUNK - 1)
    assert [a for a in job.start(0.0) if isinstance(a, BeginChunk)] == [BeginChunk(0, 1)]
    assert [a for a in settle(job, blocks(A, 0)) if isinstance(a, BeginChunk)] == [BeginChunk(1, 1)]


def test_requests_outstanding_at_one_peer_stay_within_its_window() -> None:
    job = make([[A]], size=100 * BLOCK, budget=1000)
    actions = job.start(0.0)
    assert len(requests(actions)) == WINDOW_BLOCKS
    assert len(requests(answer(job, requests(actions)[:3], SLOW))) == 3


def test_blocks_grow_while_the_link_is_fast_and_never_beyond_the_limit() -> None:
    job = make([[A]] * 4)
    lengths = [ask.length for ask in requests(settle(job, job.start(0.0), now=0.0))]
    assert lengths[0] == BLOCK
    assert lengths[-1] == CHUNK
    slow = make([[A]] * 4)
    assert {ask.length for ask in requests(settle(slow, slow.start(0.0), now=SLOW))} == {BLOCK}


def test_a_kept_buffer_counts_against_the_budget_until_it_is_freed() -> None:
    job = make([[A], [A]], budget=CHUNK)
    job.start(0.0)
    answer(job, blocks(A, 0), SLOW)
    job.verified(0, True, SLOW)
    assert job.written(0, True, SLOW) == []
    assert job.begun_bytes == CHUNK
    assert job.freed(0, SLOW) == [BeginChunk(1, 1), *blocks(A, 1)]


def test_it_waits_for_its_turn_where_all_it_asked_for_is_at_busy_peers() -> None:
    job = make([[A], [A], [B]])
    job.start(0.0)
    assert job.waits_for_turn([A]) == {}
    assert job.waits_for_turn([A, B]) == {A: 2, B: 1}
    answer(job, blocks(B, 2, 1), SLOW)
    assert job.waits_for_turn([A, B]) == {}, "a chunk is being checked"
    settle(job, [VerifyChunk(2, 1)])
    assert job.waits_for_turn([A, B]) == {A: 2}


def test_who_has_asked_for_nothing_waits_for_nobodys_turn() -> None:
    job = make([[A]], up=[])
    job.start(0.0)
    assert job.waits_for_turn([A]) == {}


def test_status_has_the_public_names() -> None:
    job = make([[A], [B]], up=[A])
    assert job.view.status(0) == ("pending", None)
    job.start(0.0)
    assert job.view.status(0) == ("downloading", A)
    assert job.view.status(1) == ("pending", None)
    settle(job, blocks(A, 0))
    assert job.view.status(0) == ("completed", A)


# -- late, doubled and wrong answers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "attempt", "offset", "length"),
    [(0, 2, 0, 4), (0, 0, 0, 4), (0, 1, 1, 4), (0, 1, 0, 3), (0, 1, 0, 5), (1, 1, 0, 4), (0, 1, 64, 4)],
)
def test_a_block_that_was_not_asked_for_changes_nothing(
    chunk: int, attempt: int, offset: int, length: int
) -> None:
    job = make([[A], [B]], up=[A])
    job.start(0.0)
    assert not job.expects(chunk, attempt, offset, length)
    assert job.block(chunk, attempt, offset, length, SLOW) == []
    assert job.bytes_received == 0


def test_a_doubled_block_counts_once() -> None:
    job = make([[A]])
    job.start(0.0)
    job.block(0, 1, 0, 4, SLOW)
    assert not job.expects(0, 1, 0, 4)
    assert job.block(0, 1, 0, 4, SLOW) == []
    assert job.bytes_received == 4


def test_a_doubled_check_or_write_changes_nothing() -> None:
    job = make([[A], [B]], up=[A])
    job.start(0.0)
    assert job.verified(0, True, 0.0) == []
    assert job.written(0, False, 0.0) == []
    answer(job, blocks(A, 0), SLOW)
    job.verified(0, True, SLOW)
    assert job.verified(0, False, SLOW) == []
    job.written(0, False, SLOW)
    assert job.written(0, False, SLOW) == []
    assert (job.chunks_completed, job.begun_bytes) == (1, 0)


# -- pause, resume, cancel, failure -----------------------------------------------------------


@pytest.mark.row("D6")
def test_pause_drops_what_is_in_flight_and_resume_asks_again() -> None:
    job = make([[A]])
    job.start(0.0)
    job.block(0, 1, 0, 4, SLOW)
    assert job.pause(1.0) == [DropChunk(0, 1), StateChanged(JobState.PAUSED)]
    assert job.begun_bytes == 0
    assert job.deadline() is None
    assert job.pause(1.0) == []
    assert job.block(0, 1, 4, 4, 1.0) == []
    assert job.on_time(1e9) == []
    assert job.resume(2.0) == [
        StateChanged(JobState.RUNNING),
        BeginChunk(0, 2),
        *blocks(A, 0, attempt=2),
    ]
    assert job.resume(2.0) == []


def test_what_is_being_checked_goes_on_while_paused() -> None:
    job = make([[A]])
    job.start(0.0)
    answer(job, blocks(A, 0), SLOW)
    assert job.pause(1.0) == [StateChanged(JobState.PAUSED)]
    assert job.verified(0, True, 1.0) == [WriteChunk(0, 1)]
    assert job.written(0, False, 1.0) == []
    assert job.chunks_completed == 1
    assert AllHeld() in job.resume(2.0)


def test_a_paused_job_asks_nobody_whatever_happens() -> None:
    job = make([[A], [B]], up=[A])
    settle(job, job.start(0.0))
    assert job.state is JobState.WAITING
    job.pause(1.0)
    assert job.peer_up(B, 1, 2.0) == []
    assert job.located([[B], [B]], 3.0) == []
    assert job.on_time(1000.0) == []
    assert requests(job.resume(1001.0)) == blocks(B, 1)


def test_without_auto_resume_a_peer_that_came_while_paused_is_asked_on_resume() -> None:
    job = make([[A], [B]], up=[A], auto_resume=False)
    settle(job, job.start(0.0))
    job.pause(1.0)
    job.peer_up(B, 1, 2.0)
    assert requests(job.resume(3.0)) == blocks(B, 1)


ENDS: list[tuple[Callable[[DownloadJob], list[Action]], JobState]] = [
    (lambda job: job.cancel(1.0), JobState.CANCELLED),
    (lambda job: job.fail(NoSpace("full"), 1.0), JobState.FAILED),
]


@pytest.mark.row("D6")
@pytest.mark.parametrize(("end", "state"), ENDS)
def test_an_ended_job_stays_ended(end: Callable[[DownloadJob], list[Action]], state: JobState) -> None:
    job = make([[A], [B], [C]], up=[A, B])
    job.start(0.0)
    answer(job, blocks(A, 0), SLOW)
    actions = end(job)
    assert [type(a) for a in actions[:2]] == [DropChunk, StateChanged]
    assert job.state is state
    assert job.deadline() is None
    later: list[list[Action]] = [
        job.peer_up(C, 1, 2.0),
        job.peer_down(B, 2.0),
        job.located([[A], [B], [C]], 2.0),
        job.block(1, 1, 0, 4, 2.0),
        job.refused(1, 1, NotFound("no"), 2.0),
        job.on_time(1000.0),
        job.pause(2.0),
        job.resume(2.0),
        job.want([0], 2.0),
        job.unwant([1, 2], 2.0),
        job.complete(2.0),
        end(job),
    ]
    assert later == [[]] * len(later)
    assert job.state is state


def test_a_failure_says_why() -> None:
    error = NoSpace("full")
    job = make([[A]])
    job.start(0.0)
    assert job.fail(error, 1.0) == [DropChunk(0, 1), StateChanged(JobState.FAILED), Failed(error)]


@pytest.mark.row("D5")
def test_chunks_whose_bytes_on_disk_were_wrong_are_fetched_again() -> None:
    job = make([[A], [A]])
    settle(job, job.start(0.0))
    assert job.state is JobState.VERIFYING
    assert job.want([1], 1.0) == [
        StateChanged(JobState.RUNNING),
        BeginChunk(1, 2),
        *blocks(A, 1, attempt=2),
    ]
    assert AllHeld() in settle(job, blocks(A, 1, attempt=2))


# -- a reader's chunks ------------------------------------------------------------------------


def test_a_reader_fetches_the_chunks_that_it_wants_and_no_other() -> None:
    job = make([[A]] * 5, held=range(5))
    assert job.start(0.0) == [StateChanged(JobState.VERIFYING), AllHeld()]
    assert (job.deadline(), job.view.missing_chunks()) == (None, [])
    actions = job.want([3], 1.0)
    assert actions == [StateChanged(JobState.RUNNING), BeginChunk(3, 1), *blocks(A, 3)]
    assert AllHeld() in settle(job, actions)
    again = job.want([3, 0], 2.0)
    assert [(a.chunk, a.attempt) for a in again if isinstance(a, BeginChunk)] == [(0, 1), (3, 2)]


def test_what_nobody_wants_any_more_is_dropped_and_makes_room() -> None:
    job = make([[A]] * 5, held=range(5), budget=2 * CHUNK)
    job.start(0.0)
    job.want([0, 1, 2], 1.0)
    assert job.begun_bytes == 2 * CHUNK
    actions = job.unwant([0, 1], 2.0)
    assert actions[:2] == [DropChunk(0, 1), DropChunk(1, 1)]
    assert [a.chunk for a in actions if isinstance(a, BeginChunk)] == [2]
    assert job.block(0, 1, 0, BLOCK, 3.0) == []
    assert job.unwant([2], 4.0) == [DropChunk(2, 1), StateChanged(JobState.VERIFYING), AllHeld()]
    assert job.begun_bytes == 0


def test_what_is_being_checked_is_not_dropped() -> None:
    """A thread is at its buffer."""
    job = make([[A]], held=[0])
    job.start(0.0)
    job.want([0], 1.0)
    answer(job, blocks(A, 0), SLOW)
    assert job.unwant([0], 2.0) == []
    assert job.view.chunk_state(0) is ChunkState.VERIFYING
    assert job.verified(0, True, 3.0) == [WriteChunk(0, 1)]


def test_a_reader_waits_only_for_who_holds_what_it_wants() -> None:
    job = make([[A], [B]], up=[A], held=[0, 1])
    job.start(0.0)
    assert job.want([1], 1.0) == [StateChanged(JobState.RUNNING), StateChanged(JobState.WAITING)]
    assert job.view.missing() == {B: 1}
    assert job.unwant([1], 2.0) == [StateChanged(JobState.VERIFYING), AllHeld()]
    assert job.view.missing() == {}


# -- flow -------------------------------------------------------------------------------------


def test_one_block_is_always_taken() -> None:
    window = PeerWindow(4, 16)
    assert window.takes(1000)
    window.sent(1000, 0.0)
    assert not window.takes(1)


def test_the_window_is_in_bytes() -> None:
    window = PeerWindow(4, 16)
    window.sent(4 * WINDOW_BLOCKS - 1, 0.0)
    assert window.takes(1)
    assert not window.takes(2)


def test_the_window_has_a_bound_but_always_room_for_two_blocks() -> None:
    fast = PeerWindow(2 * MIB, 2 * MIB)
    assert fast.size == 4 * MIB
    large = PeerWindow(16 * MIB, 16 * MIB)
    assert large.size == 32 * MIB


def test_a_long_silence_before_the_first_request_is_no_stall() -> None:
    window = PeerWindow(4, 16)
    assert not window.stalled(1.0, 1000.0)
    window.sent(4, 1000.0)
    assert not window.stalled(1.0, 1000.5)
    assert window.stalled(1.0, 1001.0)


# -- whole chunks that wait in memory for an earlier one --------------------------------------


def waited_for(rate_a: float, rate_b: float, budget: int = 4 * CHUNK) -> DownloadJob:
    """A has chunks 0 and 2 in flight, B chunks 1 and 3, since 0; both have more to send."""
    job = make([[A], [B]] * 4, up=[A, B], budget=budget)
    job.start(0.0)
    job.sources.peers[A].window.rate, job.sources.peers[B].window.rate = rate_a, rate_b
    job.sources.peers[B].took.append(1.0)
    for peer in job.sources.peers.values():
        assert peer.begun == 2
    job.sources.peers[B].begun = 1  # a chunk from there waits, and its memory is taken
    return job


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_memory_is_not_taken_from_chunks_that_wait_for_one_that_comes_soon(rate: float) -> None:
    job = waited_for(rate, 1.0)
    assert not job.cannot_wait(0, 2.0)
    assert job.cannot_wait(0, 2.1), "it takes too long"


@pytest.mark.row("D3")
def test_chunks_do_not_wait_in_memory_for_a_slow_peer_that_holds_up_a_fast_one() -> None:
    job = waited_for(0.4, 1.0)
    assert job.cannot_wait(0, 0.1)
    assert not job.cannot_wait(3, 0.1), "that one comes from the fast peer"
    job.sources.peers[B].begun = 2
    assert not job.cannot_wait(0, 0.1), "nobody could be asked for more"


def test_chunks_wait_for_a_slow_peer_while_there_is_memory() -> None:
    assert not waited_for(0.4, 1.0, budget=5 * CHUNK).cannot_wait(0, 9.0)


def test_with_nothing_in_work_nothing_is_waited_for() -> None:
    assert make([[A]], up=[]).cannot_wait(0, 0.0)
