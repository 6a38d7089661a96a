"""A download and its peers: they go, come back, are several, cannot be reached, or are slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.unit.node.download.downloads import (
    BLOCK,
    CHUNK,
    NEW,
    RELOCATE,
    SLOW,
    STALL,
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
    Busy,
    IllegalEvent,
    NotFound,
    PeerUnreachable,
)
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    BeginChunk,
    ChunkState,
    DropChunk,
    JobState,
    Relocate,
    RequestBlock,
    Resumed,
    StateChanged,
    VerifyChunk,
    WriteChunk,
)
from zchunk.node.download.hedging import p95
from zchunk.node.download.job import DownloadJob

# -- a peer goes down with blocks in flight: how the pending thing ends -----------------------


def ends_with_a_late_block(job: DownloadJob, now: float) -> list[Action]:
    return job.block(0, 1, 4, 4, now)


def ends_with_an_error(job: DownloadJob, now: float) -> list[Action]:
    return job.refused(0, 1, PeerUnreachable("gone"), now)


def ends_with_a_late_lie(job: DownloadJob, now: float) -> list[Action]:
    return job.refused(0, 1, NotFound("gone"), now)


def ends_in_silence(job: DownloadJob, now: float) -> list[Action]:
    return job.on_time(now + STALL)


LATE = [ends_with_a_late_block, ends_with_an_error, ends_with_a_late_lie, ends_in_silence]


@pytest.mark.parametrize("ending", LATE)
def test_a_lost_peers_late_answer_changes_nothing(ending: Callable[..., list[Action]]) -> None:
    job = make([[A]])
    job.start(0.0)
    job.block(0, 1, 0, 4, SLOW)
    assert job.peer_down(A, SLOW) == [DropChunk(0, 1), StateChanged(JobState.WAITING)]
    assert ending(job, SLOW) == []
    assert job.view.chunk_state(0) is ChunkState.WANTED
    assert job.view.missing() == {A: 1}
    assert job.waiting_since == SLOW


@pytest.mark.row("D4")
@pytest.mark.parametrize("ending", [None, *LATE[:3]])
@pytest.mark.parametrize("incarnation", [1, 2])
def test_the_lost_peer_is_asked_again_when_it_is_back(
    ending: Callable[..., list[Action]] | None, incarnation: int
) -> None:
    job = make([[A]])
    job.start(0.0)
    job.peer_down(A, 1.0)
    again: list[Action] = [BeginChunk(0, 2), *blocks(A, 0, attempt=2)]
    assert job.peer_up(A, incarnation, 2.0) == [Resumed(A), *again, StateChanged(JobState.RUNNING)]
    assert job.waiting_since is None
    if ending is not None:
        assert ending(job, 3.0) == []
    assert AllHeld() in settle(job, requests(again))


@pytest.mark.row("D2")
@pytest.mark.parametrize("ending", [None, *LATE[:3]])
def test_another_holder_takes_over_at_once(ending: Callable[..., list[Action]] | None) -> None:
    job = make([[A, B]], up=[A])
    job.start(0.0)
    assert job.peer_up(B, 1, 0.5) == []
    over: list[Action] = [BeginChunk(0, 2), *blocks(B, 0, attempt=2)]
    assert job.peer_down(A, 1.0) == [DropChunk(0, 1), *over]
    if ending is not None:
        assert ending(job, 2.0) == []
    assert AllHeld() in settle(job, requests(over))


def test_a_restart_between_two_events_voids_what_was_asked_of_the_older_start() -> None:
    job = make([[A]])
    job.start(0.0)
    assert job.peer_up(A, 1, 1.0) == []
    assert job.peer_up(A, 2, 1.0) == [DropChunk(0, 1), BeginChunk(0, 2), *blocks(A, 0, attempt=2)]
    assert job.block(0, 1, 0, 4, 1.0) == []


def test_a_peer_that_goes_while_its_chunk_is_checked_or_written_is_not_missed() -> None:
    job = make([[A]])
    job.start(0.0)
    answer(job, blocks(A, 0), SLOW)
    assert job.peer_down(A, SLOW) == []
    assert job.verified(0, True, SLOW) == [WriteChunk(0, 1)]
    assert AllHeld() in job.written(0, False, SLOW)


def test_silence_ends_a_request_after_the_stall_and_the_peer_rests() -> None:
    job = make([[A, B]], up=[A])
    job.start(5.0)
    assert job.deadline() == 5.0 + STALL
    assert job.on_time(5.0 + STALL - 0.1) == []
    assert job.on_time(5.0 + STALL) == [DropChunk(0, 1)]
    assert job.deadline() == 5.0 + STALL + 1.0
    assert job.on_time(5.0 + STALL + 1.0) == [BeginChunk(0, 2), *blocks(A, 0, attempt=2)]


def test_pauses_double_up_to_a_minute_and_end_with_progress() -> None:
    job = make([[A]])
    job.start(0.0)
    now, rests = 0.0, []
    for attempt in range(1, 10):
        job.refused(0, attempt, Busy("later"), now)
        wake = job.deadline()
        assert wake is not None
        rests.append(wake - now)
        now = wake
        assert requests(job.on_time(now))
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    job.block(0, 10, 0, 4, now + SLOW)
    job.refused(0, 10, Busy("later"), now)
    assert job.deadline() == now + 1


@pytest.mark.parametrize("start", [0.1, 1e-3 + 1e6 / 3, 12345.678901234567])
@pytest.mark.parametrize("stall_s", [0.7, 10.1, 1 / 3])
def test_at_its_deadline_there_is_something_to_do(start: float, stall_s: float) -> None:
    """A job woken at its own deadline must not ask to be woken at once, for ever."""
    job = make([[A]], stall_s=stall_s)
    job.start(start)
    wake = job.deadline()
    assert wake is not None
    assert job.on_time(wake) == [DropChunk(0, 1)]


# -- several holders --------------------------------------------------------------------------


def test_a_peer_that_is_set_aside_is_replaced_by_another_holder() -> None:
    job = make([[A, B]], up=[A, B])
    [first] = {ask.peer_id for ask in requests(job.start(0.0))}
    [other] = {A, B} - {first}
    actions = job.refused(0, 1, Busy("later"), 0.0)
    assert actions == [DropChunk(0, 1), BeginChunk(0, 2), *blocks(other, 0, attempt=2)]


def test_a_chunk_that_is_not_there_is_taken_elsewhere_and_the_tracker_is_asked() -> None:
    job = make([[A, B]], up=[A, B])
    [first] = {ask.peer_id for ask in requests(job.start(0.0))}
    [other] = {A, B} - {first}
    assert {a.peer_id for a in requests(job.refused(0, 1, NotFound("no"), 0.0))} == {other}
    assert job.deadline() == 1.0
    assert job.on_time(1.0) == [Relocate()]


@pytest.mark.row("D3")
def test_faster_sources_get_more() -> None:
    job = make([[A, B]] * 40, up=[A, B], budget=100 * CHUNK)
    waiting: list[tuple[float, int, Action]] = [(0.0, i, a) for i, a in enumerate(job.start(0.0))]
    count, now, served = len(waiting), 0.0, Counter[str]()
    while waiting:
        waiting.sort()
        now, _, action = waiting.pop(0)
        more: list[Action] = []
        if isinstance(action, RequestBlock):
            served[action.peer_id] += action.length
            more = answer(job, [action], now)
        elif isinstance(action, VerifyChunk):
            more = job.verified(action.chunk, True, now)
        elif isinstance(action, WriteChunk):
            more = job.written(action.chunk, False, now)
        for follow in more:
            count += 1
            delay = 0.06 if isinstance(follow, RequestBlock) and follow.peer_id == A else 0.6
            waiting.append((now + (delay if isinstance(follow, RequestBlock) else 0.0), count, follow))
    assert job.state is JobState.VERIFYING
    assert served[A] > 3 * served[B]


# -- waiting, resuming, the tracker -----------------------------------------------------------


@pytest.mark.row("D2", "D4")
def test_the_job_waits_for_the_missing_peer_without_asking_anyone() -> None:
    job = make([[A], [B], [B]], up=[A])
    actions = settle(job, job.start(0.0), now=7.0)
    assert actions[-1] == StateChanged(JobState.WAITING)
    assert job.view.missing() == {B: 2}
    assert job.view.missing_chunks() == [1, 2]
    assert job.waiting_since == 7.0
    assert job.deadline() == 7.0 + RELOCATE
    assert job.on_time(7.0 + RELOCATE) == [Relocate()]
    assert job.deadline() == 7.0 + 2 * RELOCATE


def test_a_new_holder_is_asked_as_soon_as_the_tracker_names_it() -> None:
    job = make([[B]], up=[A])
    job.start(0.0)
    assert requests(job.located([[A, B]], 1.0)) == blocks(A, 0)


def test_a_peer_that_came_before_it_held_anything_can_be_asked_later() -> None:
    """It joined while the job ran; a repair copied the chunk there since."""
    job = make([[B]], up=[])
    job.start(0.0)
    assert job.peer_up(NEW, 1, 1.0) == []
    assert requests(job.located([[B, NEW]], 2.0)) == blocks(NEW, 0)


def test_a_peer_that_went_before_it_held_anything_is_not_asked() -> None:
    job = make([[B]], up=[])
    job.start(0.0)
    job.peer_up(NEW, 1, 1.0)
    job.peer_down(NEW, 1.5)
    assert job.located([[B, NEW]], 2.0) == []
    assert job.view.missing() == {B: 1, NEW: 1}


def test_a_table_of_another_file_is_illegal_and_changes_nothing() -> None:
    job = make([[B]], up=[A])
    job.start(0.0)
    with pytest.raises(IllegalEvent):
        job.located([[A], [A]], 1.0)
    assert job.view.missing() == {B: 1}


def test_a_chunk_without_any_holder_waits_until_the_tracker_names_one() -> None:
    job = make([[]])
    assert job.start(0.0) == [StateChanged(JobState.WAITING)]
    assert job.view.missing() == {}
    assert job.view.missing_chunks() == [0]
    assert requests(job.located([[A]], 1.0)) == blocks(A, 0)


@pytest.mark.row("D4")
def test_without_auto_resume_the_job_waits_until_it_is_told() -> None:
    job = make([[A], [B]], up=[A], auto_resume=False)
    settle(job, job.start(0.0))
    assert job.peer_up(B, 1, 1.0) == []
    assert job.state is JobState.WAITING
    actions = job.resume(2.0)
    assert requests(actions) == blocks(B, 1)
    assert job.state is JobState.RUNNING


def test_without_auto_resume_a_peer_that_came_and_went_is_not_asked() -> None:
    job = make([[B]], up=[], auto_resume=False)
    job.start(0.0)
    job.peer_up(B, 1, 1.0)
    job.peer_down(B, 2.0)
    assert requests(job.resume(3.0)) == []
    assert job.view.missing() == {B: 1}


def test_without_auto_resume_who_came_back_is_known_and_named_on_resume() -> None:
    job = make([[A], [B]], up=[A], auto_resume=False)
    asked = job.start(0.0)
    assert job.came_back == frozenset()
    job.peer_up(B, 1, 0.5)
    assert job.came_back == {B}
    # Also while other chunks still come.
    actions = job.resume(1.0)
    assert Resumed(B) in actions
    assert requests(actions) == blocks(B, 1)
    assert job.came_back == frozenset()
    assert job.resume(1.0) == []
    assert AllHeld() in settle(job, [*asked, *actions])


def test_without_auto_resume_a_peer_that_can_be_reached_again_is_not_asked_either() -> None:
    job = make([[B]], up=[B], auto_resume=False)
    job.start(0.0)
    job.peer_reach(B, False, 1.0)
    assert job.state is JobState.WAITING
    assert job.peer_reach(B, True, 2.0) == []
    assert (job.state, job.came_back) == (JobState.WAITING, {B})
    job.peer_reach(B, False, 3.0)
    assert requests(job.resume(3.0)) == []
    job.peer_reach(B, True, 4.0)
    assert requests(job.resume(5.0)) == blocks(B, 0, attempt=2)


def test_without_auto_resume_another_running_chunk_does_not_hold_back_the_first_answer() -> None:
    job = make([[A], [B]], up=[A], auto_resume=False)
    asked = requests(job.start(0.0))
    assert job.peer_up(B, 1, 0.5) == []
    assert settle(job, asked)[-1] == StateChanged(JobState.WAITING)


def test_a_chunk_that_nobody_can_give_any_more_has_failed() -> None:
    job = make([[A], [B]])
    job.start(0.0)
    assert job.view.status(0) == ("downloading", A)
    job.refused(0, 1, NotFound("gone"), 1.0)
    assert job.view.status(0) == ("failed", None)
    job.located([[A, C], [B]], 2.0)
    assert job.view.status(0) == ("downloading", C)


# -- peers that are up, but not for us --------------------------------------------------------


def test_a_peer_that_cannot_be_reached_is_waited_for_and_named() -> None:
    job = make([[A], [B]], up=[A, B])
    asked = requests(job.start(0.0))
    actions = job.peer_reach(B, False, 1.0)
    assert DropChunk(1, 1) in actions
    settle(job, [ask for ask in asked if ask.peer_id == A])
    assert job.state is JobState.WAITING
    assert job.view.missing() == {B: 1}
    assert job.view.why_missing(B) == "unreachable"
    assert requests(job.on_time(1000.0)) == [], "nothing is tried until it can be reached"
    actions = job.peer_reach(B, True, 1001.0)
    assert Resumed(B) in actions
    assert requests(actions) == blocks(B, 1, attempt=2)


def test_another_holder_takes_over_from_a_peer_that_cannot_be_reached() -> None:
    job = make([[A, B]], up=[A, B])
    (first, *_) = requests(job.start(0.0))
    other = B if first.peer_id == A else A
    assert {ask.peer_id for ask in requests(job.peer_reach(first.peer_id, False, 1.0))} == {other}


def test_a_new_start_of_a_peer_is_tried_although_the_old_one_could_not_be_reached() -> None:
    job = make([[A]], up=[A])
    job.start(0.0)
    job.peer_reach(A, False, 1.0)
    job.peer_down(A, 2.0)
    assert job.view.why_missing(A) == "offline"
    assert requests(job.peer_up(A, 2, 3.0)) == blocks(A, 0, attempt=2)


# -- hedging ----------------------------------------------------------------------------------


def practised(took_a: float, took_b: float) -> DownloadJob:
    """A and B are known to take so many seconds for a chunk; the only chunk, which both hold,
    is in flight at one of them since 0."""
    job = make([[A, B]], up=[A, B])
    job.sources.peers[A].took.extend([took_a] * 5)
    job.sources.peers[B].took.extend([took_b] * 5)
    assert len(requests(job.start(0.0))) == CHUNK // BLOCK
    return job


@pytest.mark.row("D3")
def test_a_chunk_whose_source_is_overdue_is_asked_of_a_second_holder_too() -> None:
    job = practised(1.0, 1.0)
    source = job.view.status(0)[1]
    assert job.deadline() == 1.0
    assert job.on_time(0.99) == []
    actions = job.on_time(1.0)
    assert BeginChunk(0, 2) in actions
    assert {ask.peer_id for ask in requests(actions)} == {A, B} - {source}
    assert job.view.attempts(0) == [1, 2]
    assert job.on_time(5.0) == [], "one hedge is enough"


@pytest.mark.row("D3")
@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_answer_wins_and_the_other_does_no_harm(winner: int) -> None:
    job = practised(1.0, 1.0)
    job.on_time(1.0)
    both = {fetch.attempt: dict(fetch.asked) for fetch in job.chunks.rows[0].fetches}
    actions: list[Action] = []
    for offset, (length, _) in both[winner].items():
        actions += job.block(0, winner, offset, length, 2.0)
    loser = 3 - winner
    assert actions == [DropChunk(0, loser), VerifyChunk(0, winner)]
    for offset, (length, _) in both[loser].items():
        assert job.block(0, loser, offset, length, 2.0) == []
    assert job.verified(0, True, 2.0) == [WriteChunk(0, winner)]
    assert AllHeld() in job.written(0, False, 2.0)
    assert job.begun_bytes == 0
    assert all(peer.window.outstanding == peer.begun == 0 for peer in job.sources.peers.values())


@pytest.mark.parametrize("lost", [A, B])
def test_one_of_two_attempts_may_be_lost(lost: str) -> None:
    job = practised(1.0, 1.0)
    job.on_time(1.0)
    (gone,) = [fetch.attempt for fetch in job.chunks.rows[0].fetches if fetch.peer_id == lost]
    assert job.peer_down(lost, 1.5) == [DropChunk(0, gone)]
    assert job.view.attempts(0) == [3 - gone]


def test_a_holder_with_work_of_its_own_is_not_asked_for_a_hedge() -> None:
    job = make([[A]] * 5 + [[A, B]] + [[B]] * 20, up=[A, B], budget=100 * CHUNK)
    job.start(0.0)
    job.sources.peers[A].took.extend([0.1] * 10)
    assert job.hedging.planned() == []


def test_a_hedge_needs_memory_of_its_own() -> None:
    job = practised(1.0, 1.0)
    job.chunks._budget = CHUNK
    assert not any(isinstance(action, BeginChunk) for action in job.on_time(STALL - 1))


def test_a_source_that_is_always_slow_is_hedged_by_how_fast_the_other_is() -> None:
    assert practised(5.0, 0.1).deadline() == 0.2
    assert practised(0.1, 5.0).deadline() == 0.1
    assert practised(0.001, 0.001).deadline() == 0.05, "and not for noise"


def test_the_quantile_is_that_of_the_nearest_rank() -> None:
    assert p95([3.0]) == 3.0
    assert p95(range(1, 101)) == 95
    assert p95(range(1, 21)) == 19


def test_chunks_of_a_slow_peer_go_first_where_memory_is_short() -> None:
    job = make([[A], [A], [A], [B], [B], [B]], up=[A, B], budget=2 * CHUNK)
    job.sources.peers[A].window.rate, job.sources.peers[B].window.rate = 100.0, 1.0
    begun = [action.chunk for action in job.start(0.0) if isinstance(action, BeginChunk)]
    assert begun == [3, 4]


def test_who_is_much_slower_than_an_idle_holder_is_not_waited_for() -> None:
    job = practised(1.0, 1.0)
    source = job.sources.peers[job.view.status(0)[1] or ""]
    other = next(peer for peer in job.sources.peers.values() if peer is not source)
    source.window.rate, other.window.rate = 1.0, 1.4
    assert job.deadline() == 1.0, "not for a little"
    source.window.rate = 0.5
    assert job.deadline() == 0.05
    last = job.chunks.rows[0].fetches[0].asked
    while len(last) > 1:
        last.popitem()
    assert job.deadline() == 1.0, "it has nearly all"
