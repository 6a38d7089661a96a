"""node/upload/job.py: the usual course, answers that are late or wrong, and peers that go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.node.upload.uploads import (
    BLOCK,
    CHUNK,
    SLOW,
    STALL,
    A,
    B,
    C,
    begin_sending,
    make,
    of,
    offered,
    sends,
    take,
)
from zchunk.errors import (
    Busy,
    NoSpace,
    PeerUnreachable,
    StorageFailure,
    StorageUnavailable,
    TooFewPeers,
    ZchunkError,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS
from zchunk.node.upload.actions import (
    Action,
    AllStored,
    OfferChunk,
    ReadChunk,
    ReleaseChunk,
    Replan,
    SendBlock,
    StateChanged,
    UploadState,
)
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.plans import ROOM_S

# -- the usual course -------------------------------------------------------------------------


def test_a_chunk_is_read_offered_sent_and_released() -> None:
    job = make([[A]])
    assert job.start(0.0) == [ReadChunk(0)]
    assert job.read(0, 0.0) == [OfferChunk(A, 0, 1)]
    assert job.digested(0, 0.0) == []
    assert job.offered(A, 0, 1, False, 0.0) == sends(A, 0, 1)
    for at in (8, 0, 4):
        assert job.taken(A, 0, 1, at, False, SLOW) == []
    assert job.chunks_completed == 0
    assert job.taken(A, 0, 1, 12, True, SLOW) == [
        ReleaseChunk(0, clean=True),
        StateChanged(UploadState.STORED),
        AllStored(),
    ]
    assert (job.chunks_completed, job.begun_bytes, job.bytes_sent) == (1, 0, CHUNK)
    assert job.holders(0) == job.all_holders() == [A]


def test_an_empty_file_is_stored_at_once() -> None:
    assert make([]).start(0.0) == [StateChanged(UploadState.STORED), AllStored()]


@pytest.mark.row("U7")
def test_what_a_node_has_is_not_sent() -> None:
    job = make([[A]])
    job.start(0.0)
    offered(job, 0)
    actions = job.offered(A, 0, 1, True, 0.0)
    assert actions == [ReleaseChunk(0, clean=True), StateChanged(UploadState.STORED), AllStored()]
    assert job.bytes_sent == 0


def test_a_plan_is_asked_for_again_while_a_node_that_is_up_takes_nothing() -> None:
    """It may take chunks again by itself, without an event that the job would hear of."""
    job = make([[A]])
    job.start(0.0)
    offered(job, 0)
    job.peer_down(A, 0.0)
    row = {"peer_id": B, "name": "B", "reason": "its disk is mounted read-only"}
    refusal = TooFewPeers("it takes 1 peer", online=[], needed=1, refusing=[row])
    assert job.not_replanned([0], refusal, 1.0) == [StateChanged(UploadState.WAITING)]
    assert job.deadline() == 1.0 + ROOM_S
    assert of(Replan, job.on_time(1.0 + ROOM_S)) == [Replan((0,), ((),), ())]


def test_a_chunk_stays_in_memory_until_the_files_digest_has_it() -> None:
    job = make([[A]])
    job.start(0.0)
    job.read(0, 0.0)
    assert job.offered(A, 0, 1, True, 0.0) == []
    assert job.begun_bytes == CHUNK
    assert ReleaseChunk(0, clean=True) in job.digested(0, 0.0)


def test_every_copy_must_be_stored() -> None:
    job = make([[A, B]], replicas=2)
    job.start(0.0)
    assert offered(job, 0) == [OfferChunk(A, 0, 1), OfferChunk(B, 0, 2)]
    assert job.offered(A, 0, 1, True, 0.0) == []
    assert job.chunks_completed == 0
    assert AllStored() in job.offered(B, 0, 2, True, 0.0)


def test_reading_stays_within_the_budget_and_in_order() -> None:
    job = make([[A]] * 10, budget=2 * CHUNK + 1)
    assert job.start(0.0) == [ReadChunk(0), ReadChunk(1)]
    offered(job, 0)
    assert of(ReadChunk, job.offered(A, 0, 1, True, 0.0)) == [ReadChunk(2)]


def test_a_chunk_larger_than_the_budget_is_read_alone() -> None:
    job = make([[A], [B]], budget=CHUNK - 1)
    assert job.start(0.0) == [ReadChunk(0)]


def test_a_doubled_read_changes_nothing() -> None:
    job = make([[A]])
    job.start(0.0)
    assert job.read(0, 0.0) == [OfferChunk(A, 0, 1)]
    assert job.read(0, 0.0) == []


def test_blocks_on_their_way_to_one_peer_stay_within_its_window() -> None:
    job = make([[A]], size=100 * BLOCK, budget=1000)
    actions = begin_sending(job)
    assert len(of(SendBlock, actions)) == WINDOW_BLOCKS
    assert len(of(SendBlock, job.taken(A, 0, 1, 0, False, SLOW))) == 1


def test_it_waits_for_its_turn_where_all_it_offered_is_at_busy_peers() -> None:
    job = make([[A], [B]])
    job.start(0.0)
    job.read(0, 0.0)
    assert job.waits_for_turn([A]) == {}, "a chunk is being read"
    job.read(1, 0.0)
    assert job.waits_for_turn([A]) == {}
    assert job.waits_for_turn([A, B]) == {A: 1, B: 1}
    job.offered(B, 1, 2, False, 0.0)
    assert job.waits_for_turn([A, B]) == {}, "a chunk is being sent"


# -- late, doubled and wrong answers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("peer_id", "attempt", "offset"), [(A, 2, 0), (A, 0, 0), (B, 1, 0), (A, 1, 1), (A, 1, 64)]
)
def test_an_answer_to_what_was_not_sent_changes_nothing(peer_id: str, attempt: int, offset: int) -> None:
    job = make([[A]])
    begin_sending(job)
    assert job.taken(peer_id, 0, attempt, offset, True, SLOW) == []
    assert job.offered(peer_id, 0, attempt, True, SLOW) == []
    assert (job.chunks_completed, job.bytes_sent) == (0, 0)


def test_a_doubled_answer_counts_once() -> None:
    job = make([[A]])
    begin_sending(job)
    job.taken(A, 0, 1, 0, False, SLOW)
    assert job.taken(A, 0, 1, 0, True, SLOW) == []
    assert (job.bytes_sent, job.chunks_completed) == (BLOCK, 0)


def test_all_bytes_of_a_stored_chunk_count_in_whatever_order_they_are_answered() -> None:
    job = make([[A]])
    begin_sending(job)
    assert AllStored() in job.taken(A, 0, 1, 8, True, SLOW)
    assert job.taken(A, 0, 1, 0, False, SLOW) == []
    assert job.bytes_sent == CHUNK


def test_a_stored_chunk_is_not_unstored_by_a_late_error() -> None:
    job = make([[A], [B]])
    job.start(0.0)
    offered(job, 0)
    job.offered(A, 0, 1, True, 0.0)
    assert job.refused(A, 0, 1, NoSpace("full"), 0.0) == []
    assert job.holders(0) == [A]


def test_a_peer_that_takes_all_and_stores_nothing_is_offered_the_chunk_again_later() -> None:
    """Not at once: a broken node would have the whole chunk sent to it without end."""
    job = make([[A]])
    sent = of(SendBlock, begin_sending(job))
    for ask in sent:
        assert job.taken(A, 0, 1, ask.offset, False, SLOW) == []
    wake = job.deadline()
    assert wake == SLOW + 1.0
    assert job.on_time(wake) == [OfferChunk(A, 0, 2)]


def the_link_breaks(job: UploadJob) -> float:
    job.refused(A, 0, 1, PeerUnreachable("the connection broke"), SLOW)
    return SLOW + 1.0


def nothing_comes(job: UploadJob) -> float:
    job.on_time(STALL + SLOW)
    return STALL + SLOW + 1.0


def the_peer_is_down_for_a_moment(job: UploadJob) -> float:
    job.peer_down(A, SLOW)
    job.peer_up(A, 1, SLOW)
    return SLOW


@pytest.mark.parametrize("given_up", [the_link_breaks, nothing_comes, the_peer_is_down_for_a_moment])
@pytest.mark.parametrize("answered", [0, 1, 3])
def test_a_chunk_whose_answer_was_lost_is_sent_if_its_peer_has_it(
    given_up: Callable[[UploadJob], float], answered: int
) -> None:
    """It was stored, and told too late: its bytes were this job's all the same, and count once."""
    job = make([[A]])
    for ask in of(SendBlock, begin_sending(job))[:answered]:
        job.taken(A, 0, 1, ask.offset, False, SLOW)
    now = given_up(job)
    job.on_time(now)
    assert AllStored() in job.offered(A, 0, 2, True, now)
    assert job.bytes_sent == CHUNK
    job.doubted(None, now)
    job.read(0, now)
    assert AllStored() in job.offered(A, 0, 3, True, now)
    assert job.bytes_sent == CHUNK


def test_a_chunk_that_was_sent_in_part_is_another_uploads_if_its_peer_has_it() -> None:
    job = make([[A]], size=100 * BLOCK, budget=1000)
    begin_sending(job)
    job.taken(A, 0, 1, 0, False, SLOW)
    now = the_link_breaks(job)
    assert job.on_time(now) == [OfferChunk(A, 0, 2)]
    job.offered(A, 0, 2, True, now)
    assert job.bytes_sent == BLOCK


def test_a_chunk_that_its_peer_has_not_counts_as_it_is_sent_again() -> None:
    job = make([[A]])
    begin_sending(job)
    now = the_link_breaks(job)
    job.on_time(now)
    assert AllStored() in take(job, of(SendBlock, job.offered(A, 0, 2, False, now)), now + SLOW)
    assert job.bytes_sent == CHUNK


# -- a peer goes down with blocks in flight: how the pending thing ends -----------------------


def ends_stored(job: UploadJob, now: float) -> list[Action]:
    return job.taken(A, 0, 1, 0, True, now)


def ends_taken(job: UploadJob, now: float) -> list[Action]:
    return job.taken(A, 0, 1, 4, False, now)


def ends_with_an_error(job: UploadJob, now: float) -> list[Action]:
    return job.refused(A, 0, 1, PeerUnreachable("gone"), now)


def ends_refused(job: UploadJob, now: float) -> list[Action]:
    return job.refused(A, 0, 1, NoSpace("full"), now)


def ends_in_silence(job: UploadJob, now: float) -> list[Action]:
    return job.on_time(now + STALL)


LATE = [ends_stored, ends_taken, ends_with_an_error, ends_refused, ends_in_silence]

Ending = Callable[[UploadJob, float], list[Action]]


@pytest.mark.parametrize("ending", LATE)
def test_a_lost_peers_late_answer_changes_nothing(ending: Ending) -> None:
    job = make([[A]])
    begin_sending(job)
    assert job.peer_down(A, 1.0) == [Replan((0,), ((),), ())]
    assert ending(job, 2.0) == []
    assert job.chunks_completed == 0


@pytest.mark.row("U6")
@pytest.mark.parametrize("ending", [None, *LATE])
def test_what_was_only_there_is_sent_elsewhere_by_a_new_plan(ending: Ending | None) -> None:
    job = make([[A]])
    begin_sending(job)
    job.peer_down(A, 1.0)
    assert job.replanned([0], [[B]], 2.0) == [OfferChunk(B, 0, 2)]
    if ending is not None:
        assert ending(job, 2.0) == []
    assert job.offered(B, 0, 2, False, 2.0) == sends(B, 0, 2)
    actions = take(job, sends(B, 0, 2), 2.1)
    assert ReleaseChunk(0, clean=False) in actions  # A's socket may still read it
    assert AllStored() in actions


@pytest.mark.parametrize("incarnation", [1, 2])
def test_a_peer_that_is_back_before_the_new_plan_is_offered_the_chunk_again(incarnation: int) -> None:
    job = make([[A]])
    begin_sending(job)
    job.peer_down(A, 1.0)
    assert job.peer_up(A, incarnation, 2.0) == [OfferChunk(A, 0, 2)]
    assert AllStored() in job.offered(A, 0, 2, True, 2.0)


@pytest.mark.row("U6")
def test_copies_of_a_peer_that_is_back_count_and_are_not_sent_again() -> None:
    job = make([[A], [B]])
    job.start(0.0)
    offered(job, 0)
    job.offered(A, 0, 1, True, 0.0)
    assert of(Replan, job.peer_down(A, 1.0)) == [Replan((0,), ((),), ())]
    assert job.chunks_completed == 0
    assert job.peer_up(A, 2, 2.0) == []
    assert job.holders(0) == [A]
    actions = job.replanned([0], [[C]], 3.0)
    assert of(OfferChunk, actions) == []
    assert of(ReadChunk, actions) == []


def test_a_chunk_whose_buffer_was_freed_is_read_again_for_its_new_place() -> None:
    job = make([[A], [B]])
    job.start(0.0)
    offered(job, 0)
    job.offered(A, 0, 1, True, 0.0)
    job.peer_down(A, 1.0)
    assert job.replanned([0], [[B]], 2.0) == [ReadChunk(0)]
    assert job.read(0, 3.0) == [OfferChunk(B, 0, 2)]


def test_a_restart_between_two_events_voids_what_was_sent_to_the_older_start() -> None:
    job = make([[A]])
    begin_sending(job)
    assert job.peer_up(A, 2, 1.0) == [OfferChunk(A, 0, 2)]
    assert job.taken(A, 0, 1, 0, True, 1.0) == []
    assert job.chunks_completed == 0


def test_a_repeated_word_of_the_same_start_changes_nothing() -> None:
    job = make([[A], [B]])
    begin = begin_sending(make([[A]]))
    assert begin
    job.start(0.0)
    job.read(0, 0.0)
    job.refused(A, 0, 1, NoSpace("full"), 0.0)
    assert job.peer_up(A, 1, 1.0) == []
    assert job.replanned([0], [[A]], 2.0) == [Replan((0,), ((),), (A,))]


def test_silence_ends_what_was_sent_and_the_peer_rests() -> None:
    job = make([[A]])
    begin_sending(job)
    assert job.deadline() == STALL
    assert job.on_time(STALL - 0.1) == []
    assert job.on_time(STALL) == []
    assert job.deadline() == STALL + 1.0
    assert job.on_time(STALL + 1.0) == [OfferChunk(A, 0, 2)]


@pytest.mark.parametrize("error", [Busy("later"), PeerUnreachable("gone")])
def test_a_busy_peer_is_offered_the_chunk_again_after_a_rest(error: ZchunkError) -> None:
    job = make([[A]])
    job.start(0.0)
    job.read(0, 0.0)
    assert job.refused(A, 0, 1, error, 0.0) == []
    assert job.deadline() == 1.0
    assert job.on_time(1.0) == [OfferChunk(A, 0, 2)]


@pytest.mark.parametrize("error", [NoSpace("full"), StorageFailure("EIO")])
def test_a_peer_that_cannot_take_it_is_avoided_by_the_new_plan(error: ZchunkError) -> None:
    job = make([[A], [A], [B]])
    job.start(0.0)
    job.read(0, 0.0)
    assert job.refused(A, 0, 1, error, 0.0) == [Replan((0, 1), ((), ()), (A,))]
    assert of(OfferChunk, job.read(1, 0.0)) == []
    assert job.replanned([0, 1], [[B], [C]], 0.0) == [OfferChunk(B, 0, 2), OfferChunk(C, 1, 3)]


def test_a_peer_that_cannot_for_now_is_avoided_when_it_says_so_again() -> None:
    job, error = make([[A]]), StorageUnavailable("no memory")
    job.start(0.0)
    job.read(0, 0.0)
    assert job.refused(A, 0, 1, error, 0.0) == []
    assert job.on_time(1.0) == [OfferChunk(A, 0, 2)]
    assert job.refused(A, 0, 2, error, 1.1) == [Replan((0,), ((),), (A,))]
