"""node/download/job.py and node/bulk/peer_window.py (SPEC D2, D3, D4, D6, D8, D9): events in, actions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zchunk.errors import (
    Busy,
    IllegalEvent,
    IntegrityError,
    NoSpace,
    NotFound,
    PeerUnreachable,
    StorageFailure,
    Unreadable,
    ZchunkError,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS, PeerWindow
from zchunk.node.download.job import (
    Action,
    AllHeld,
    BeginChunk,
    CheckRemoved,
    ChunkState,
    DownloadJob,
    DropChunk,
    Failed,
    JobState,
    Limits,
    Relocate,
    ReportCorrupt,
    RequestBlock,
    Resumed,
    StateChanged,
    VerifyChunk,
    WriteChunk,
    p95,
)

A, B, C, NEW = "a" * 32, "b" * 32, "c" * 32, "d" * 32
CHUNK, BLOCK = 16, 4
STALL, RELOCATE = 10.0, 30.0
LIMITS = Limits(budget=4 * CHUNK, block_min=BLOCK, block_max=CHUNK, stall_s=STALL, relocate_s=RELOCATE)
MIB = 1024**2
#: slow enough that blocks do not grow
SLOW = 0.1


def make(
    holders: Sequence[Collection[str]],
    up: Iterable[str] = (A, B, C),
    *,
    size: int = CHUNK,
    held: Collection[int] = (),
    **limits: Any,
) -> DownloadJob:
    values = {name: getattr(LIMITS, name) for name in Limits.__slots__}
    return DownloadJob(
        sizes=[size] * len(holders),
        holders=holders,
        up=dict.fromkeys(up, 1),
        held=held,
        limits=Limits(**{**values, **limits}),
    )


def requests(actions: Iterable[Action]) -> list[RequestBlock]:
    return [action for action in actions if isinstance(action, RequestBlock)]


def blocks(peer_id: str, chunk: int, attempt: int = 1, size: int = CHUNK) -> list[RequestBlock]:
    """All requests for a chunk in blocks of the first size."""
    return [RequestBlock(peer_id, chunk, attempt, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]


def answer(job: DownloadJob, asked: Iterable[RequestBlock], now: float) -> list[Action]:
    actions: list[Action] = []
    for ask in asked:
        actions += job.block(ask.chunk, ask.attempt, ask.offset, ask.length, now)
    return actions


def settle(job: DownloadJob, asked: Iterable[Action], now: float = SLOW) -> list[Action]:
    """Answer every request, then those that follow, check and write: the honest world."""
    seen: list[Action] = []
    todo: list[Action] = list(asked)
    while todo:
        action = todo.pop(0)
        seen.append(action)
        if isinstance(action, RequestBlock):
            todo += answer(job, [action], now)
        elif isinstance(action, VerifyChunk):
            todo += job.verified(action.chunk, True, now)
        elif isinstance(action, WriteChunk):
            todo += job.written(action.chunk, False, now)
    return seen


# -- the usual course -------------------------------------------------------------------


def test_a_chunk_is_begun_asked_for_checked_written_and_then_held() -> None:
    job = make([[A]])
    assert job.start(0.0) == [BeginChunk(0, 1), *blocks(A, 0)]
    for at in (4, 0, 12):
        assert job.block(0, 1, at, 4, SLOW) == []
    assert job.block(0, 1, 8, 4, SLOW) == [VerifyChunk(0, 1)]
    assert job.chunk_state(0) is ChunkState.VERIFYING
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
    assert job.status(0) == ("pending", None)
    job.start(0.0)
    assert job.status(0) == ("downloading", A)
    assert job.status(1) == ("pending", None)
    settle(job, blocks(A, 0))
    assert job.status(0) == ("completed", A)


# -- late, doubled and wrong answers ------------------------------------------------------


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


# -- a peer goes down with blocks in flight: how the pending thing ends ---------------------


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
    assert job.chunk_state(0) is ChunkState.WANTED
    assert job.missing() == {A: 1}
    assert job.waiting_since == SLOW


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


# -- several holders ------------------------------------------------------------------------


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


# -- corrupt sources --------------------------------------------------------------------------


def corrupt(job: DownloadJob, chunk: int, now: float = SLOW) -> list[Action]:
    """All blocks of the chunk arrive, and the check fails."""
    peer_id, attempt = job.status(chunk)[1], job.attempts(chunk)[0]
    assert peer_id is not None
    answer(job, blocks(peer_id, chunk, attempt), now)
    return job.verified(chunk, False, now)


def test_a_corrupt_chunk_is_dropped_reported_and_taken_from_another_holder() -> None:
    job = make([[A, B]], up=[A, B])
    job.start(0.0)
    liar = job.status(0)[1]
    assert liar is not None
    [other] = {A, B} - {liar}
    assert corrupt(job, 0) == [
        DropChunk(0, 1),
        ReportCorrupt(liar, 0),
        BeginChunk(0, 2),
        *blocks(other, 0, attempt=2),
    ]
    assert job.chunks_completed == 0
    assert AllHeld() in settle(job, blocks(other, 0, attempt=2))


def test_a_chunk_that_stays_corrupt_at_its_only_holder_fails_when_nothing_else_is_left() -> None:
    job = make([[A], [B]], up=[A, B])
    job.start(0.0)
    settle(job, blocks(B, 1))
    for now in (10.0, 20.0):
        assert Failed not in {type(a) for a in corrupt(job, 0, now)}
        assert requests(job.on_time(now + 5))
    assert corrupt(job, 0, 30.0)[-1] == CheckRemoved()
    assert job.state is JobState.RUNNING
    actions = job.not_located(30.1)
    assert [type(a) for a in actions[-2:]] == [StateChanged, Failed]
    assert isinstance(actions[-1], Failed)
    assert isinstance(actions[-1].error, IntegrityError)
    assert A[:8] in actions[-1].error.message
    assert job.state is JobState.FAILED


def test_a_chunk_that_its_only_holder_does_not_have_fails() -> None:
    job = make([[A]])
    job.start(0.0)
    assert job.refused(0, 1, NotFound("no"), 1.0)[-1] == CheckRemoved()
    (_, failed) = job.located([[A]], 1.1)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, IntegrityError)


# -- a file that is removed -------------------------------------------------------------------------


def no_more(job: DownloadJob, now: float) -> str:
    """What the job ends with when the tracker knows of no such file."""
    (_, failed) = job.removed(now)
    assert isinstance(failed, Failed)
    assert job.state is JobState.FAILED
    return type(failed.error).__name__


def test_chunks_that_nobody_has_any_more_are_no_corruption_if_the_file_was_removed() -> None:
    job = make([[A], [B]], up=[A, B])
    asked = requests(job.start(0.0))
    actions = [action for ask in asked[::4] for action in job.refused(ask.chunk, 1, NotFound("no"), 1.0)]
    assert actions.count(CheckRemoved()) == 1
    assert job.checking
    assert CheckRemoved() not in job.on_time(2.0), "it is not asked twice"
    assert no_more(job, 3.0) == "NotFound"


def test_what_still_comes_of_a_removed_file_is_taken() -> None:
    job = make([[A], [A], [B]], up=[A])
    asked = requests(job.start(0.0))
    assert job.removed(0.1) == []
    actions = settle(job, asked)
    assert job.chunks_completed == 2
    assert isinstance(actions[-1], Failed)
    assert isinstance(actions[-1].error, NotFound)


def test_a_removed_file_that_came_whole_is_whole() -> None:
    job = make([[A], [A]], up=[A])
    asked = requests(job.start(0.0))
    job.removed(0.1)
    assert settle(job, asked)[-1] == AllHeld()


def test_a_job_that_waits_ends_when_the_file_is_removed() -> None:
    job = make([[A], [B]], up=[A])
    settle(job, job.start(0.0))
    assert job.state is JobState.WAITING
    assert no_more(job, 5.0) == "NotFound"


def test_a_job_that_stands_still_learns_of_it_when_it_goes_on() -> None:
    job = make([[A], [B]], up=[A])
    settle(job, job.start(0.0))
    job.pause(1.0)
    assert job.removed(2.0) == []
    assert job.state is JobState.PAUSED
    assert isinstance(job.resume(3.0)[-1], Failed)


def test_a_file_that_was_put_again_is_fetched_on() -> None:
    job = make([[A], [B]], up=[A])
    asked = requests(job.start(0.0))
    job.removed(0.1)
    assert job.located([[A], [B]], 0.2) == []
    settle(job, asked)
    assert job.state is JobState.WAITING


def test_a_holder_that_the_tracker_names_then_is_asked() -> None:
    job = make([[A]], up=[A, B])
    job.start(0.0)
    job.refused(0, 1, NotFound("no"), 1.0)
    assert requests(job.located([[A, B]], 1.1)) == blocks(B, 0, attempt=2)
    assert job.refused(0, 2, NotFound("no"), 2.0)[-1] == CheckRemoved(), "asked again of what is new"
    assert isinstance(job.not_located(2.1)[-1], Failed)


def test_a_holder_that_can_read_none_of_its_chunks_is_asked_for_each_at_once_and_then_told() -> None:
    job = make([[A]] * 20, up=[A])
    todo: list[Action] = job.start(0.0)
    seen: list[Action] = []
    while todo:
        action = todo.pop(0)
        seen.append(action)
        if isinstance(action, RequestBlock):
            todo += job.refused(action.chunk, action.attempt, StorageFailure("disk"), 0.0)
    assert {ask.chunk for ask in requests(seen)} == set(range(20))
    assert seen[-1] == CheckRemoved()
    failed = job.not_located(1.0)[-1]
    assert isinstance(failed, Failed)
    assert A[:8] in failed.error.message


def test_a_corrupt_chunk_waits_for_its_other_holder_that_is_down() -> None:
    job = make([[A, B]], up=[A])
    job.start(0.0)
    job.refused(0, 1, NotFound("no"), SLOW)
    assert job.state is JobState.WAITING
    assert job.missing() == {B: 1}
    assert Resumed(B) in job.peer_up(B, 1, 1.0)


def test_a_peer_with_two_corrupt_chunks_is_asked_only_for_what_nobody_else_has() -> None:
    job = make([[A, B], [A, B], [A, B], [A]], up=[A], budget=2 * CHUNK)
    job.start(0.0)
    begun = [index for index in range(4) if job.chunk_state(index) is ChunkState.IN_FLIGHT]
    for index in begun:
        corrupt(job, index)
    actions = settle(job, job.peer_up(B, 1, 100.0), 100.1)
    assert {ask.chunk for ask in requests(actions) if ask.peer_id == A} == {3}
    assert {ask.chunk for ask in requests(actions) if ask.peer_id == B} == {0, 1, 2}


def test_what_is_on_its_way_from_a_peer_with_two_corrupt_chunks_is_asked_of_the_other() -> None:
    job = make([[A, B]] * 4, up=[A])
    job.start(0.0)
    answer(job, blocks(A, 0, 1), SLOW)  # being checked, while others follow
    assert [i for i in range(4) if job.chunk_state(i) is ChunkState.IN_FLIGHT] == [1, 2]
    answer(job, blocks(A, 1, 1), SLOW)
    job.peer_up(B, 1, SLOW)
    job.verified(0, False, SLOW)
    actions = job.verified(1, False, SLOW)
    assert DropChunk(2, 1) in actions
    settle(job, actions, SLOW)
    assert {job.status(index)[1] for index in range(4)} == {B}


def test_a_peer_that_sends_nothing_but_wrong_bytes_costs_one_pass_and_no_pauses() -> None:
    count = 100
    job = make([[A]] * count, up=[A])
    job.start(0.0)
    now, passes, pauses = 0.0, 0, 0
    while job.state is not JobState.FAILED:
        now += SLOW
        in_flight = [index for index in range(count) if job.chunk_state(index) is ChunkState.IN_FLIGHT]
        if in_flight:
            corrupt(job, in_flight[0], now)
            passes += 1
        elif job.checking:
            job.not_located(now)
        else:
            pauses += 1
            now += 10.0
            job.on_time(now)
        assert passes <= count + 2
        assert pauses <= 2


def test_only_peers_that_are_down_and_may_have_it_are_missed() -> None:
    job = make([[A, B, C], [A]], up=[A, C])
    asked = requests(job.start(0.0))
    first = job.status(0)[1]
    job.refused(0, 1, NotFound("no"), 0.0)
    job.refused(0, 2, NotFound("no"), 0.0)
    assert {first, C, A} == {A, C}
    settle(job, [ask for ask in asked if ask.chunk == 1])
    assert job.state is JobState.WAITING
    assert job.missing() == {B: 1}
    assert job.missing_chunks() == [0]


def test_a_holder_named_later_saves_a_chunk_that_was_corrupt() -> None:
    job = make([[A, B]], up=[A])
    job.start(0.0)
    corrupt(job, 0)
    job.peer_up(C, 1, SLOW)
    assert requests(job.located([[A, B, C]], SLOW)) == blocks(C, 0, attempt=2)


# -- waiting, resuming, the tracker ------------------------------------------------------------


def test_the_job_waits_for_the_missing_peer_without_asking_anyone() -> None:
    job = make([[A], [B], [B]], up=[A])
    actions = settle(job, job.start(0.0), now=7.0)
    assert actions[-1] == StateChanged(JobState.WAITING)
    assert job.missing() == {B: 2}
    assert job.missing_chunks() == [1, 2]
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
    assert job.missing() == {B: 1, NEW: 1}


def test_a_table_of_another_file_is_illegal_and_changes_nothing() -> None:
    job = make([[B]], up=[A])
    job.start(0.0)
    with pytest.raises(IllegalEvent):
        job.located([[A], [A]], 1.0)
    assert job.missing() == {B: 1}


def test_a_chunk_without_any_holder_waits_until_the_tracker_names_one() -> None:
    job = make([[]])
    assert job.start(0.0) == [StateChanged(JobState.WAITING)]
    assert job.missing() == {}
    assert job.missing_chunks() == [0]
    assert requests(job.located([[A]], 1.0)) == blocks(A, 0)


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
    assert job.missing() == {B: 1}


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
    assert job.status(0) == ("downloading", A)
    job.refused(0, 1, NotFound("gone"), 1.0)
    assert job.status(0) == ("failed", None)
    job.located([[A, C], [B]], 2.0)
    assert job.status(0) == ("downloading", C)


# -- pause, resume, cancel, failure ----------------------------------------------------------------


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
        job.lost([0], 2.0),
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


def test_chunks_whose_bytes_on_disk_were_wrong_are_fetched_again() -> None:
    job = make([[A], [A]])
    settle(job, job.start(0.0))
    assert job.state is JobState.VERIFYING
    assert job.lost([1], 1.0) == [
        StateChanged(JobState.RUNNING),
        BeginChunk(1, 2),
        *blocks(A, 1, attempt=2),
    ]
    assert AllHeld() in settle(job, blocks(A, 1, attempt=2))


# -- a reader's chunks ---------------------------------------------------------------------------------


def test_a_reader_fetches_the_chunks_that_it_wants_and_no_other() -> None:
    job = make([[A]] * 5, held=range(5))
    assert job.start(0.0) == [StateChanged(JobState.VERIFYING), AllHeld()]
    assert (job.deadline(), job.missing_chunks()) == (None, [])
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
    assert job.chunk_state(0) is ChunkState.VERIFYING
    assert job.verified(0, True, 3.0) == [WriteChunk(0, 1)]


def test_a_reader_waits_only_for_who_holds_what_it_wants() -> None:
    job = make([[A], [B]], up=[A], held=[0, 1])
    job.start(0.0)
    assert job.want([1], 1.0) == [StateChanged(JobState.RUNNING), StateChanged(JobState.WAITING)]
    assert job.missing() == {B: 1}
    assert job.unwant([1], 2.0) == [StateChanged(JobState.VERIFYING), AllHeld()]
    assert job.missing() == {}


# -- flow --------------------------------------------------------------------------------------------


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


# -- peers that are up, but not for us -----------------------------------------------------------


def test_a_peer_that_cannot_be_reached_is_waited_for_and_named() -> None:
    job = make([[A], [B]], up=[A, B])
    asked = requests(job.start(0.0))
    actions = job.peer_reach(B, False, 1.0)
    assert DropChunk(1, 1) in actions
    settle(job, [ask for ask in asked if ask.peer_id == A])
    assert job.state is JobState.WAITING
    assert job.missing() == {B: 1}
    assert job.why_missing(B) == "unreachable"
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
    assert job.why_missing(A) == "offline"
    assert requests(job.peer_up(A, 2, 3.0)) == blocks(A, 0, attempt=2)


# -- peers that cannot read what they hold -----------------------------------------------------------


def test_what_a_peer_cannot_read_comes_from_another_at_once_and_it_still_gives_the_rest() -> None:
    job = make([[A], [A, B]], up=[A])
    job.start(0.0)
    job.peer_up(B, 1, 0.0)
    assert requests(job.refused(1, 1, Unreadable("a bad sector"), 0.0)) == blocks(B, 1, attempt=2)
    assert job.status(0) == ("downloading", A)


def test_what_nobody_else_has_is_asked_for_again_after_pauses_that_grow() -> None:
    job = make([[A]], up=[A])
    job.start(0.0)
    now, pauses, states = 0.0, [], []
    for attempt in range(1, 9):
        assert not requests(job.refused(0, attempt, Unreadable("now"), now))
        states.append(job.state)
        deadline = job._unread.deadline()
        assert deadline is not None
        assert (job.deadline() or 0.0) <= deadline
        pauses.append(deadline - now)
        assert not requests(job.on_time(deadline - 0.01))
        now = deadline
        assert requests(job.on_time(now)) == blocks(A, 0, attempt + 1)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert states == [JobState.RUNNING] * 2 + [JobState.WAITING] * 6, "a moment is no news"
    settle(job, blocks(A, 0, 9), now)
    assert job.state is JobState.VERIFYING
    assert job._unread.deadline() is None


def test_who_cannot_read_is_named_and_why() -> None:
    job = make([[A], [B]], up=[A, B])
    asked = requests(job.start(0.0))
    settle(job, [ask for ask in asked if ask.peer_id == B])
    for attempt, now in ((1, 0.0), (2, 1.0), (3, 3.0)):
        job.refused(0, attempt, Unreadable("now"), now)
        assert job.is_missing(0)
        assert job.is_waited_for(0) is (attempt == 3)
        job.on_time(now + attempt if attempt < 3 else now)
    assert job.state is JobState.WAITING
    assert (job.missing(), job.why_missing(A)) == ({A: 1}, "unreadable")


def test_once_a_peer_can_read_one_of_them_again_it_is_asked_for_the_others_at_once() -> None:
    """And people are told, who were told that it could not."""
    job = make([[A]] * 3, up=[A])
    job.start(0.0)
    attempts = Counter({0: 0, 1: 0, 2: 0})
    for now in (0.0, 1.0, 3.0):
        job.on_time(now)
        while begun := [index for index in range(3) if job.attempts(index)]:
            attempts[begun[0]] += 1
            job.refused(begun[0], job.attempts(begun[0])[0], Unreadable("now"), now)
    assert attempts == {0: 3, 1: 3, 2: 3}
    assert job.missing() == {A: 3}
    asked = requests(job.on_time(7.0))
    assert {ask.chunk for ask in asked} == {0, 1}
    assert [action for action in answer(job, asked[:1], 7.0) if isinstance(action, Resumed)] == [Resumed(A)]
    assert job.missing() == {}
    assert [action for action in settle(job, asked[1:], 7.0) if isinstance(action, Resumed)] == []
    assert job.state is JobState.VERIFYING


def test_a_new_start_of_a_peer_is_asked_for_what_the_old_one_could_not_read() -> None:
    job = make([[A]], up=[A])
    job.start(0.0)
    job.refused(0, 1, Unreadable("now"), 0.0)
    assert requests(job.peer_up(A, 2, 0.5)) == blocks(A, 0, attempt=2)


def test_a_reader_that_lost_interest_leaves_no_pause_behind() -> None:
    job = make([[A]], up=[A])
    job.start(0.0)
    job.refused(0, 1, Unreadable("now"), 0.0)
    job.unwant([0], 0.0)
    job.on_time(1.0)
    assert job.deadline() is None


# -- hedging -------------------------------------------------------------------------------------


def practised(took_a: float, took_b: float) -> DownloadJob:
    """A and B are known to take so many seconds for a chunk; the only chunk, which both hold,
    is in flight at one of them since 0."""
    job = make([[A, B]], up=[A, B])
    job._peers[A].took.extend([took_a] * 5)
    job._peers[B].took.extend([took_b] * 5)
    assert len(requests(job.start(0.0))) == CHUNK // BLOCK
    return job


def test_a_chunk_whose_source_is_overdue_is_asked_of_a_second_holder_too() -> None:
    job = practised(1.0, 1.0)
    source = job.status(0)[1]
    assert job.deadline() == 1.0
    assert job.on_time(0.99) == []
    actions = job.on_time(1.0)
    assert BeginChunk(0, 2) in actions
    assert {ask.peer_id for ask in requests(actions)} == {A, B} - {source}
    assert job.attempts(0) == [1, 2]
    assert job.on_time(5.0) == [], "one hedge is enough"


@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_answer_wins_and_the_other_does_no_harm(winner: int) -> None:
    job = practised(1.0, 1.0)
    job.on_time(1.0)
    both = {fetch.attempt: dict(fetch.asked) for fetch in job._chunks[0].fetches}
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
    assert all(peer.window.outstanding == peer.begun == 0 for peer in job._peers.values())


@pytest.mark.parametrize("lost", [A, B])
def test_one_of_two_attempts_may_be_lost(lost: str) -> None:
    job = practised(1.0, 1.0)
    job.on_time(1.0)
    (gone,) = [fetch.attempt for fetch in job._chunks[0].fetches if fetch.peer_id == lost]
    assert job.peer_down(lost, 1.5) == [DropChunk(0, gone)]
    assert job.attempts(0) == [3 - gone]


def test_a_holder_with_work_of_its_own_is_not_asked_for_a_hedge() -> None:
    job = make([[A]] * 5 + [[A, B]] + [[B]] * 20, up=[A, B], budget=100 * CHUNK)
    job.start(0.0)
    job._peers[A].took.extend([0.1] * 10)
    assert job._hedges() == []


def test_a_hedge_needs_memory_of_its_own() -> None:
    job = practised(1.0, 1.0)
    job._limits = replace(job._limits, budget=CHUNK)
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
    job._peers[A].window.rate, job._peers[B].window.rate = 100.0, 1.0
    begun = [action.chunk for action in job.start(0.0) if isinstance(action, BeginChunk)]
    assert begun == [3, 4]


def test_who_is_much_slower_than_an_idle_holder_is_not_waited_for() -> None:
    job = practised(1.0, 1.0)
    source = job._peers[job.status(0)[1] or ""]
    other = next(peer for peer in job._peers.values() if peer is not source)
    source.window.rate, other.window.rate = 1.0, 1.4
    assert job.deadline() == 1.0, "not for a little"
    source.window.rate = 0.5
    assert job.deadline() == 0.05
    last = job._chunks[0].fetches[0].asked
    while len(last) > 1:
        last.popitem()
    assert job.deadline() == 1.0, "it has nearly all"


# -- whole chunks that wait in memory for an earlier one ---------------------------------------------


def waited_for(rate_a: float, rate_b: float, budget: int = 4 * CHUNK) -> DownloadJob:
    """A has chunks 0 and 2 in flight, B chunks 1 and 3, since 0; both have more to send."""
    job = make([[A], [B]] * 4, up=[A, B], budget=budget)
    job.start(0.0)
    job._peers[A].window.rate, job._peers[B].window.rate = rate_a, rate_b
    job._peers[B].took.append(1.0)
    for peer in job._peers.values():
        assert peer.begun == 2
    job._peers[B].begun = 1  # a chunk from there waits, and its memory is taken
    return job


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_memory_is_not_taken_from_chunks_that_wait_for_one_that_comes_soon(rate: float) -> None:
    job = waited_for(rate, 1.0)
    assert not job.cannot_wait(0, 2.0)
    assert job.cannot_wait(0, 2.1), "it takes too long"


def test_chunks_do_not_wait_in_memory_for_a_slow_peer_that_holds_up_a_fast_one() -> None:
    job = waited_for(0.4, 1.0)
    assert job.cannot_wait(0, 0.1)
    assert not job.cannot_wait(3, 0.1), "that one comes from the fast peer"
    job._peers[B].begun = 2
    assert not job.cannot_wait(0, 0.1), "nobody could be asked for more"


def test_chunks_wait_for_a_slow_peer_while_there_is_memory() -> None:
    assert not waited_for(0.4, 1.0, budget=5 * CHUNK).cannot_wait(0, 9.0)


def test_with_nothing_in_work_nothing_is_waited_for() -> None:
    assert make([[A]], up=[]).cannot_wait(0, 0.0)


# -- any interleaving ------------------------------------------------------------------------------


class World:
    """Does what the shell does, and knows what it must never be told to do."""

    def __init__(self, sizes: Sequence[int], job: DownloadJob) -> None:
        self.sizes = sizes
        self.job = job
        #: (chunk, attempt) -> {offset: good}; here from BeginChunk until its buffer is back
        self.buffers: dict[tuple[int, int], dict[int, bool]] = {}
        self.lengths: dict[tuple[int, int], int] = {}
        self.asked: list[RequestBlock] = []
        #: answered or void: their answers may come again
        self.past: list[RequestBlock] = []
        self.verifying: dict[int, int] = {}
        self.writing: dict[int, int] = {}
        self.kept: set[int] = set()
        self.proven: set[int] = set()
        self.up: dict[str, int] = {}
        self.unreachable: set[str] = set()
        self.relocate = False
        self.checking = False
        self.all_held = 0
        self.hedges = 0
        #: peer -> bytes on their way when that was looked at last
        self.outstanding: dict[str, int] = {}
        self.failure: ZchunkError | None = None

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            getattr(self, f"_{type(action).__name__}")(action)

    def _BeginChunk(self, action: BeginChunk) -> None:
        key = action.chunk, action.attempt
        assert key not in self.buffers
        assert action.chunk not in self.proven
        others = [attempt for chunk, attempt in self.buffers if chunk == action.chunk]
        assert len(others) <= 1, "a hedge of a hedge"
        self.hedges += len(others)
        self.buffers[key] = {}
        self.lengths[key] = 0

    def _RequestBlock(self, ask: RequestBlock) -> None:
        key = ask.chunk, ask.attempt
        assert key in self.buffers
        assert ask.peer_id in self.up, "asked a peer that is down"
        assert ask.peer_id not in self.unreachable, "asked a peer that cannot be reached"
        assert ask.attempt in self.job.attempts(ask.chunk)
        assert ask.offset == self.lengths[key], "a gap or an overlap"
        self.lengths[key] += ask.length
        assert self.lengths[key] <= self.sizes[ask.chunk]
        assert {a.peer_id for a in self._asked_for(*key)} <= {ask.peer_id}
        self.asked.append(ask)
        attempts = {a.attempt: a.peer_id for a in self.asked if a.chunk == ask.chunk}
        assert len(set(attempts.values())) == len(attempts), "one peer asked twice for a chunk"

    def _asked_for(self, chunk: int, attempt: int) -> list[RequestBlock]:
        return [ask for ask in self.asked if (ask.chunk, ask.attempt) == (chunk, attempt)]

    def _DropChunk(self, action: DropChunk) -> None:
        assert action.chunk not in self.writing
        del self.buffers[action.chunk, action.attempt]
        void = self._asked_for(action.chunk, action.attempt)
        self.asked = [ask for ask in self.asked if ask not in void]
        self.past = (self.past + void)[-50:]

    def _VerifyChunk(self, action: VerifyChunk) -> None:
        key = action.chunk, action.attempt
        assert self.lengths[key] == self.sizes[action.chunk]
        assert not any(ask.chunk == action.chunk for ask in self.asked), "the other attempt goes on"
        assert [chunk for chunk, _ in self.buffers].count(action.chunk) == 1
        self.verifying[action.chunk] = action.attempt

    def _WriteChunk(self, action: WriteChunk) -> None:
        assert action.chunk in self.proven
        self.writing[action.chunk] = action.attempt

    def _ReportCorrupt(self, action: ReportCorrupt) -> None:
        assert action.chunk not in self.proven

    def _Relocate(self, action: Relocate) -> None:
        assert self.job.state in (JobState.RUNNING, JobState.WAITING)
        self.relocate = True

    def _CheckRemoved(self, action: CheckRemoved) -> None:
        assert self.job.state is JobState.RUNNING
        assert not self.checking, "asked twice"
        assert not self.buffers
        self.checking = True

    def _StateChanged(self, action: StateChanged) -> None:
        pass

    def _Resumed(self, action: Resumed) -> None:
        assert action.peer_id in self.up
        assert self.job.state is not JobState.PAUSED

    def _AllHeld(self, action: AllHeld) -> None:
        assert self.proven == set(range(len(self.sizes)))
        assert not self.writing
        self.all_held += 1

    def _Failed(self, action: Failed) -> None:
        self.failure = action.error

    # what comes back

    def answered(self, ask: RequestBlock, good: bool, now: float) -> None:
        if ask in self.asked:
            self.asked.remove(ask)
            assert self.job.expects(ask.chunk, ask.attempt, ask.offset, ask.length)
            self.buffers[ask.chunk, ask.attempt][ask.offset] = good
            self.past = [*self.past, ask][-50:]
        else:
            assert not self.job.expects(ask.chunk, ask.attempt, ask.offset, ask.length)
        self.do(self.job.block(ask.chunk, ask.attempt, ask.offset, ask.length, now))

    def verified(self, chunk: int, now: float) -> None:
        attempt = self.verifying.pop(chunk)
        good = all(self.buffers[chunk, attempt].values())
        if good:
            self.proven.add(chunk)
        self.do(self.job.verified(chunk, good, now))

    def written(self, chunk: int, keep: bool, now: float) -> None:
        del self.buffers[chunk, self.writing.pop(chunk)]
        if keep:
            self.kept.add(chunk)
        self.do(self.job.written(chunk, keep, now))

    def freed(self, chunk: int, now: float) -> None:
        self.kept.remove(chunk)
        self.do(self.job.freed(chunk, now))

    def lost(self, chunks: Collection[int], now: float) -> None:
        self.proven -= set(chunks)
        self.do(self.job.lost(chunks, now))

    def unwanted(self, chunks: Collection[int], now: float) -> None:
        """What is not being checked or written counts as held."""
        self.proven |= set(chunks) - self.verifying.keys() - self.writing.keys()
        self.do(self.job.unwant(chunks, now))

    # what must always hold

    def check(self, limits: Limits, now: float) -> None:
        job = self.job
        in_flight = {chunk for chunk, _ in self.buffers}
        expected = {
            index: (
                ChunkState.VERIFYING
                if index in self.verifying
                else ChunkState.WRITING
                if index in self.writing
                else ChunkState.IN_FLIGHT
                if index in in_flight
                else ChunkState.HELD
                if index in self.proven
                else ChunkState.WANTED
            )
            for index in range(len(self.sizes))
        }
        assert {index: job.chunk_state(index) for index in expected} == expected
        assert job.in_work == len(in_flight)
        assert job.chunks_completed == sum(state is ChunkState.HELD for state in expected.values())
        in_memory = [*(chunk for chunk, _ in self.buffers), *self.kept]
        assert job.begun_bytes == sum(self.sizes[index] for index in in_memory)
        assert job.begun_bytes <= limits.budget or len(in_memory) == 1
        self._check_windows()
        self._check_progress(limits, now)
        deadline = job.deadline()
        if self.asked and job.state in (JobState.RUNNING, JobState.WAITING):
            assert deadline is not None, "nothing would end a silence"

    def _check_windows(self) -> None:
        for peer_id, peer in self.job._peers.items():
            outstanding = [ask.length for ask in self.asked if ask.peer_id == peer_id]
            assert peer.window.outstanding == sum(outstanding)
            # The window of one that was set aside shrinks: what is on its way then may be more,
            # and nothing is added to it.
            most = max(WINDOW_BLOCKS * peer.window.block, self.outstanding.get(peer_id, 0))
            assert sum(outstanding) <= most or len(outstanding) == 1
            self.outstanding[peer_id] = sum(outstanding)
            in_flight = {i for i, _ in self.buffers if i not in self.verifying and i not in self.writing}
            fetches = [fetch for index in in_flight for fetch in self.job._chunks[index].fetches]
            assert peer.begun == sum(fetch.peer_id == peer_id for fetch in fetches) <= 2
            assert len(peer.queue) <= len(self.sizes)

    def _check_progress(self, limits: Limits, now: float) -> None:
        """Who could send something now is asked for something."""
        job = self.job
        if job.state not in (JobState.RUNNING, JobState.WAITING):
            return
        if job.begun_bytes and job.begun_bytes + max(self.sizes) > limits.budget:
            return
        for index, holders in enumerate(job._holders):
            if job.chunk_state(index) is not ChunkState.WANTED:
                continue
            for peer_id in (holders & self.up.keys()) - self.unreachable:
                peer = job._peers[peer_id]
                idle = peer.begun < 2 and peer.window.paused_until <= now
                assert not (idle and self._is_clean(index, peer_id)), f"chunk {index} stands still"

    def _is_clean(self, chunk: int, peer_id: str) -> bool:
        job = self.job
        clean = peer_id not in job._chunks[chunk].strikes and job._peers[peer_id].corrupt < 2
        return clean and peer_id not in job._unread.pausing(chunk)


PEERS = (A, B, C, NEW)
HONEST = A


class Downloads(RuleBasedStateMachine):
    """Peers come, go, lie, stall; blocks come late, twice, never; the job is paused, resumed."""

    world: World

    @initialize(
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
        budget=st.integers(1, 120),
        block_max=st.sampled_from([4, 8, 64]),
        honest=st.booleans(),
        data=st.data(),
    )
    def begin(self, sizes: list[int], budget: int, block_max: int, honest: bool, data: st.DataObject) -> None:
        self.now = 100.0
        self.honest = honest
        self.removed = False
        self.limits = Limits(budget, 4, block_max, STALL, RELOCATE)
        #: chunk -> peers that really hold it
        self.truth = [self._some_holders(data) for _ in sizes]
        held = data.draw(st.sets(st.sampled_from(range(len(sizes))), max_size=2))
        up = {p: 1 for p in PEERS if data.draw(st.booleans())}
        job = DownloadJob(sizes=sizes, holders=self.truth, up=up, held=held, limits=self.limits)
        self.world = World(sizes, job)
        self.world.up = dict(up)
        self.world.proven |= held
        self.incarnation = dict.fromkeys(PEERS, 1)
        self.world.do(job.start(self.now))

    def _some_holders(self, data: st.DataObject) -> set[str]:
        holders = data.draw(st.sets(st.sampled_from(PEERS[:3]), min_size=1))
        return holders | {HONEST} if self.honest else holders

    @property
    def job(self) -> DownloadJob:
        return self.world.job

    @rule(peer_id=st.sampled_from(PEERS), new=st.booleans())
    def peer_up(self, peer_id: str, new: bool) -> None:
        self.incarnation[peer_id] += new
        if self.world.up.get(peer_id) != self.incarnation[peer_id]:
            self.world.unreachable.discard(peer_id)  # a start anew is tried anew
        self.world.up[peer_id] = self.incarnation[peer_id]
        self.world.do(self.job.peer_up(peer_id, self.incarnation[peer_id], self.now))

    @rule(peer_id=st.sampled_from(PEERS), reachable=st.booleans())
    def peer_reach(self, peer_id: str, reachable: bool) -> None:
        (self.world.unreachable.discard if reachable else self.world.unreachable.add)(peer_id)
        self.world.do(self.job.peer_reach(peer_id, reachable, self.now))

    @rule(peer_id=st.sampled_from(PEERS))
    def peer_down(self, peer_id: str) -> None:
        self.world.up.pop(peer_id, None)
        self.world.do(self.job.peer_down(peer_id, self.now))

    @precondition(lambda self: self.world.asked)
    @rule(data=st.data(), honest=st.booleans(), took=st.sampled_from([0.0, 0.01, 0.2]))
    def block_arrives(self, data: st.DataObject, honest: bool, took: float) -> None:
        ask = data.draw(st.sampled_from(self.world.asked))
        self.now += took
        self.world.answered(ask, honest or self._must_be_honest(ask.peer_id), self.now)

    @precondition(lambda self: self.world.asked)
    @rule(count=st.integers(1, 30))
    def many_blocks_arrive(self, count: int) -> None:
        for _ in range(count):
            if self.world.asked:
                self.world.answered(self.world.asked[0], True, self.now)

    @precondition(lambda self: self.world.past)
    @rule(data=st.data())
    def block_arrives_late_or_twice(self, data: st.DataObject) -> None:
        self.world.answered(data.draw(st.sampled_from(self.world.past)), False, self.now)

    @precondition(lambda self: self.world.asked or self.world.past)
    @rule(
        data=st.data(),
        error=st.sampled_from(
            [Busy("b"), PeerUnreachable("p"), NotFound("n"), StorageFailure("s"), Unreadable("u")]
        ),
    )
    def block_is_refused(self, data: st.DataObject, error: ZchunkError) -> None:
        ask = data.draw(st.sampled_from(self.world.asked + self.world.past))
        if not error.retryable and self._must_be_honest(ask.peer_id):
            error = Busy("later")
        self.world.do(self.job.refused(ask.chunk, ask.attempt, error, self.now))

    @precondition(lambda self: self.world.verifying)
    @rule(data=st.data())
    def chunk_is_checked(self, data: st.DataObject) -> None:
        self.world.verified(data.draw(st.sampled_from(sorted(self.world.verifying))), self.now)

    @precondition(lambda self: self.world.writing)
    @rule(data=st.data(), keep=st.booleans())
    def chunk_is_written(self, data: st.DataObject, keep: bool) -> None:
        self.world.written(data.draw(st.sampled_from(sorted(self.world.writing))), keep, self.now)

    @precondition(lambda self: self.world.kept)
    @rule(data=st.data())
    def buffer_is_freed(self, data: st.DataObject) -> None:
        self.world.freed(data.draw(st.sampled_from(sorted(self.world.kept))), self.now)

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.world.do(self.job.on_time(self.now))

    @rule()
    def deadline_comes(self) -> None:
        deadline = self.job.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.world.do(self.job.on_time(self.now))
            again = self.job.deadline()
            assert again is None or again > self.now, "it would be woken at once, for ever"

    @rule(data=st.data())
    def tracker_names_holders(self, data: st.DataObject) -> None:
        holders = [data.draw(st.sets(st.sampled_from(PEERS))) for _ in self.truth]
        if self.honest:
            holders = [chunk | {HONEST} for chunk in holders]
        self.world.checking = False
        self.world.do(self.job.located(holders, self.now))

    @rule()
    def tracker_does_not_answer(self) -> None:
        self.world.checking = False
        self.world.do(self.job.not_located(self.now))

    @precondition(lambda self: not self.honest)
    @rule()
    def tracker_knows_no_such_file(self) -> None:
        self.world.checking = False
        self.removed = True
        self.world.do(self.job.removed(self.now))

    @rule()
    def pause(self) -> None:
        self.world.do(self.job.pause(self.now))

    @rule()
    def resume(self) -> None:
        self.world.do(self.job.resume(self.now))

    @precondition(lambda self: self.job.state is JobState.VERIFYING)
    @rule(data=st.data())
    def file_digest_is_wrong(self, data: st.DataObject) -> None:
        bad = data.draw(st.sets(st.sampled_from(range(len(self.truth))), min_size=1))
        for chunk in sorted(self.world.kept):
            self.world.freed(chunk, self.now)
        self.world.lost(bad, self.now)

    @precondition(lambda self: self.job.state in (JobState.RUNNING, JobState.WAITING, JobState.VERIFYING))
    @rule(data=st.data())
    def a_reader_goes_elsewhere(self, data: st.DataObject) -> None:
        some = st.sets(st.sampled_from(range(len(self.truth))))
        self.world.unwanted(data.draw(some), self.now)
        wanted = data.draw(some) - set(self.world.kept) - self.world.writing.keys()
        if self.job.state is not JobState.FAILED:  # what was left cannot come any more
            self.world.proven -= wanted
        self.world.do(self.job.want(wanted, self.now))

    def _must_be_honest(self, peer_id: str) -> bool:
        return self.honest and peer_id == HONEST

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check(self.limits, self.now)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for peer_id in PEERS:
            self.peer_up(peer_id, new=False)
            self.peer_reach(peer_id, reachable=True)
        self.tracker_names_all()
        self.holds()  # what is on its way now may be more than a window that shrinks next
        for _ in range(1000):
            self._one_good_step()
            self.holds()
            if self.job.state in (JobState.VERIFYING, JobState.FAILED):
                break
        self._check_end()

    def tracker_names_all(self) -> None:
        self.world.do(self.job.resume(self.now))
        self.world.checking = False
        self.world.do(self.job.located(self.truth, self.now))

    def _one_good_step(self) -> None:
        world = self.world
        if world.kept:
            world.freed(min(world.kept), self.now)
        elif world.writing:
            world.written(min(world.writing), True, self.now)
        elif world.verifying:
            world.verified(min(world.verifying), self.now)
        elif world.asked:
            world.answered(world.asked[0], True, self.now)
        elif world.checking:
            self.tracker_does_not_answer()
        elif self.job.state is not JobState.VERIFYING:
            self.deadline_comes()

    def _check_end(self) -> None:
        if self.honest:
            assert self.job.state is JobState.VERIFYING, self.job.state
        else:
            assert self.job.state in (JobState.VERIFYING, JobState.FAILED)
        if self.job.state is JobState.VERIFYING:
            assert self.world.all_held
            assert self.world.proven == set(range(len(self.truth)))
        else:
            kinds = (NotFound, IntegrityError) if self.removed else IntegrityError
            assert isinstance(self.world.failure, kinds)


TestAnyInterleaving = Downloads.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40)


def states(job: DownloadJob) -> Mapping[str, int]:
    return Counter(job.status(index)[0] for index in range(job.chunks_count))


def test_a_long_job_keeps_a_bounded_state() -> None:
    """Hundreds of comings and goings leave no more behind than a few do."""
    job = make([[A, B]] * 20, up=[A, B])
    job.start(0.0)
    sizes: list[int] = []
    for turn in range(300):
        job.peer_down(A, turn)
        job.peer_up(A, turn + 2, turn)
        job.located([[A, B]] * 20, turn)
        job.on_time(turn)
        peers = job._peers.values()
        sizes.append(sum(len(p.queue) for p in peers) + sum(len(c.fetches) for c in job._chunks))
    assert max(sizes) <= 2 * 20, "each chunk once in each peer's queue, or in flight"
    assert max(sizes[-50:]) <= max(sizes[50:100])
    assert states(job) == {"pending": 18, "downloading": 2}
