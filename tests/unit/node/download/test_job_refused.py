"""A download whose sources are corrupt, gone, or cannot read what they hold."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.unit.node.download.downloads import (
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
    IntegrityError,
    NotFound,
    StorageFailure,
    Unreadable,
)
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    BeginChunk,
    CheckRemoved,
    ChunkState,
    DropChunk,
    Failed,
    JobState,
    ReportCorrupt,
    RequestBlock,
    Resumed,
    StateChanged,
)
from zchunk.node.download.job import DownloadJob

# -- corrupt sources --------------------------------------------------------------------------


def corrupt(job: DownloadJob, chunk: int, now: float = SLOW) -> list[Action]:
    """All blocks of the chunk arrive, and the check fails."""
    peer_id, attempt = job.view.status(chunk)[1], job.view.attempts(chunk)[0]
    assert peer_id is not None
    answer(job, blocks(peer_id, chunk, attempt), now)
    return job.verified(chunk, False, now)


@pytest.mark.row("D8")
def test_a_corrupt_chunk_is_dropped_reported_and_taken_from_another_holder() -> None:
    job = make([[A, B]], up=[A, B])
    job.start(0.0)
    liar = job.view.status(0)[1]
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


# -- a file that is removed -------------------------------------------------------------------


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
    assert job.view.missing() == {B: 1}
    assert Resumed(B) in job.peer_up(B, 1, 1.0)


@pytest.mark.row("D8")
def test_a_peer_with_two_corrupt_chunks_is_asked_only_for_what_nobody_else_has() -> None:
    job = make([[A, B], [A, B], [A, B], [A]], up=[A], budget=2 * CHUNK)
    job.start(0.0)
    begun = [index for index in range(4) if job.view.chunk_state(index) is ChunkState.IN_FLIGHT]
    for index in begun:
        corrupt(job, index)
    actions = settle(job, job.peer_up(B, 1, 100.0), 100.1)
    assert {ask.chunk for ask in requests(actions) if ask.peer_id == A} == {3}
    assert {ask.chunk for ask in requests(actions) if ask.peer_id == B} == {0, 1, 2}


def test_what_is_on_its_way_from_a_peer_with_two_corrupt_chunks_is_asked_of_the_other() -> None:
    job = make([[A, B]] * 4, up=[A])
    job.start(0.0)
    answer(job, blocks(A, 0, 1), SLOW)  # being checked, while others follow
    assert [i for i in range(4) if job.view.chunk_state(i) is ChunkState.IN_FLIGHT] == [1, 2]
    answer(job, blocks(A, 1, 1), SLOW)
    job.peer_up(B, 1, SLOW)
    job.verified(0, False, SLOW)
    actions = job.verified(1, False, SLOW)
    assert DropChunk(2, 1) in actions
    settle(job, actions, SLOW)
    assert {job.view.status(index)[1] for index in range(4)} == {B}


def test_a_peer_that_sends_nothing_but_wrong_bytes_costs_one_pass_and_no_pauses() -> None:
    count = 100
    job = make([[A]] * count, up=[A])
    job.start(0.0)
    now, passes, pauses = 0.0, 0, 0
    while job.state is not JobState.FAILED:
        now += SLOW
        in_flight = [index for index in range(count) if job.view.chunk_state(index) is ChunkState.IN_FLIGHT]
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
    first = job.view.status(0)[1]
    job.refused(0, 1, NotFound("no"), 0.0)
    job.refused(0, 2, NotFound("no"), 0.0)
    assert {first, C, A} == {A, C}
    settle(job, [ask for ask in asked if ask.chunk == 1])
    assert job.state is JobState.WAITING
    assert job.view.missing() == {B: 1}
    assert job.view.missing_chunks() == [0]


def test_a_holder_named_later_saves_a_chunk_that_was_corrupt() -> None:
    job = make([[A, B]], up=[A])
    job.start(0.0)
    corrupt(job, 0)
    job.peer_up(C, 1, SLOW)
    assert requests(job.located([[A, B, C]], SLOW)) == blocks(C, 0, attempt=2)


# -- peers that cannot read what they hold ----------------------------------------------------


def test_what_a_peer_cannot_read_comes_from_another_at_once_and_it_still_gives_the_rest() -> None:
    job = make([[A], [A, B]], up=[A])
    job.start(0.0)
    job.peer_up(B, 1, 0.0)
    assert requests(job.refused(1, 1, Unreadable("a bad sector"), 0.0)) == blocks(B, 1, attempt=2)
    assert job.view.status(0) == ("downloading", A)


def test_what_nobody_else_has_is_asked_for_again_after_pauses_that_grow() -> None:
    job = make([[A]], up=[A])
    job.start(0.0)
    now, pauses, states = 0.0, [], []
    for attempt in range(1, 9):
        assert not requests(job.refused(0, attempt, Unreadable("now"), now))
        states.append(job.state)
        deadline = job.sources.unread.deadline()
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
    assert job.sources.unread.deadline() is None


def test_who_cannot_read_is_named_and_why() -> None:
    job = make([[A], [B]], up=[A, B])
    asked = requests(job.start(0.0))
    settle(job, [ask for ask in asked if ask.peer_id == B])
    for attempt, now in ((1, 0.0), (2, 1.0), (3, 3.0)):
        job.refused(0, attempt, Unreadable("now"), now)
        assert job.view.is_missing(0)
        assert job.view.is_waited_for(0) is (attempt == 3)
        job.on_time(now + attempt if attempt < 3 else now)
    assert job.state is JobState.WAITING
    assert (job.view.missing(), job.view.why_missing(A)) == ({A: 1}, "unreadable")


def test_once_a_peer_can_read_one_of_them_again_it_is_asked_for_the_others_at_once() -> None:
    """And people are told, who were told that it could not."""
    job = make([[A]] * 3, up=[A])
    job.start(0.0)
    attempts = Counter({0: 0, 1: 0, 2: 0})
    for now in (0.0, 1.0, 3.0):
        job.on_time(now)
        while begun := [index for index in range(3) if job.view.attempts(index)]:
            attempts[begun[0]] += 1
            job.refused(begun[0], job.view.attempts(begun[0])[0], Unreadable("now"), now)
    assert attempts == {0: 3, 1: 3, 2: 3}
    assert job.view.missing() == {A: 3}
    asked = requests(job.on_time(7.0))
    assert {ask.chunk for ask in asked} == {0, 1}
    assert [action for action in answer(job, asked[:1], 7.0) if isinstance(action, Resumed)] == [Resumed(A)]
    assert job.view.missing() == {}
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
