"""node/upload/job.py (SPEC U5, U6, U7): events in, actions out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zchunk.errors import (
    Busy,
    NoSpace,
    PeersUnsure,
    PeerUnreachable,
    StorageFailure,
    StorageUnavailable,
    TooFewPeers,
    ZchunkError,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS
from zchunk.node.upload.job import (
    FIND_PAUSE_S,
    ROOM_S,
    Action,
    AllStored,
    Failed,
    FindHolders,
    Limits,
    OfferChunk,
    ReadChunk,
    ReleaseChunk,
    Replan,
    Resumed,
    SendBlock,
    StateChanged,
    UploadJob,
    UploadState,
)

A, B, C, D = "a" * 32, "b" * 32, "c" * 32, "d" * 32
CHUNK, BLOCK = 16, 4
STALL, SLOW = 10.0, 0.1
LIMITS = Limits(budget=4 * CHUNK, block_min=BLOCK, block_max=CHUNK, stall_s=STALL)


class Fresh(UploadJob):
    """Of a file whose chunks nobody holds: the tracker says so at once."""

    def _advance(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for action in super()._advance(now):
            if isinstance(action, FindHolders):
                actions += self.found(action.chunks, [()] * len(action.chunks), now)
            else:
                actions.append(action)
        return actions


def make(
    assignment: Sequence[Collection[str]],
    up: Iterable[str] = (A, B, C),
    *,
    replicas: int = 1,
    min_peers: int = 1,
    size: int = CHUNK,
    kind: type[UploadJob] = Fresh,
    undivided: bool = False,
    own_peer: str | None = None,
    **limits: Any,
) -> UploadJob:
    values = {name: getattr(LIMITS, name) for name in Limits.__slots__}
    return kind(
        sizes=[size] * len(assignment),
        assignment=assignment,
        replicas=replicas,
        min_peers=min_peers,
        up=dict.fromkeys(up, 1),
        limits=Limits(**{**values, **limits}),
        undivided=undivided,
        own_peer=own_peer,
    )


def of(kind: type[Action], actions: Iterable[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def sends(peer_id: str, chunk: int, attempt: int) -> list[SendBlock]:
    return [SendBlock(peer_id, chunk, attempt, at, BLOCK) for at in range(0, CHUNK, BLOCK)]


def take(job: UploadJob, sent: Sequence[SendBlock], now: float = SLOW) -> list[Action]:
    """The node takes every block; the last one completes the chunk."""
    actions: list[Action] = []
    for ask in sent:
        last = ask is sent[-1]
        actions += job.taken(ask.peer_id, ask.chunk, ask.attempt, ask.offset, last, now)
    return actions


def offered(job: UploadJob, chunk: int, now: float = 0.0) -> list[Action]:
    """Read and digested; what the job then does."""
    return [*job.read(chunk, now), *job.digested(chunk, now)]


def begin_sending(job: UploadJob, peer_id: str = A) -> list[Action]:
    """A job of one chunk at `peer_id`, up to the blocks being on their way."""
    job.start(0.0)
    assert offered(job, 0) == [OfferChunk(peer_id, 0, 1)]
    return job.offered(peer_id, 0, 1, False, 0.0)


# -- the usual course -------------------------------------------------------------------


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


# -- late, doubled and wrong answers ------------------------------------------------------


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


# -- a peer goes down with blocks in flight: how the pending thing ends ---------------------


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


# -- plans ------------------------------------------------------------------------------------


def test_a_planned_peer_that_went_before_the_start_is_replaced_at_once() -> None:
    """Its `peer.down` came before this job listened: no further event would tell."""
    job = make([[A], [B]], up=[B, C])
    assert of(Replan, job.start(0.0)) == [Replan((0,), ((),), ())]


def test_a_new_plan_keeps_the_places_that_the_tracker_was_told_stay() -> None:
    """Its answer names new places only: without the old ones there would be no end of plans."""
    job = make([[A, B]] * 3, replicas=2, budget=CHUNK)
    job.start(0.0)
    actions = job.peer_down(B, 1.0)
    assert actions == [Replan((0, 1, 2), ((A,), (A,), (A,)), ())]
    assert of(Replan, job.replanned([0, 1, 2], [[C], [C], [C]], 2.0)) == []
    assert {o.peer_id for o in of(OfferChunk, job.read(0, 3.0))} == {A, C}


def test_a_place_that_was_lost_while_the_plan_was_made_is_planned_once_more() -> None:
    job = make([[A, B]], replicas=2)
    job.start(0.0)
    job.peer_down(B, 1.0)
    assert of(Replan, job.peer_down(A, 1.5)) == []
    assert of(Replan, job.replanned([0], [[C]], 2.0)) == [Replan((0,), ((C,),), ())]


def test_with_too_few_peers_the_job_waits_for_one() -> None:
    job = make([[A]], up=[A])
    begin_sending(job)
    job.peer_down(A, 1.0)
    assert job.not_replanned([0], TooFewPeers("one"), 2.0) == [StateChanged(UploadState.WAITING)]
    assert job.on_time(1000.0) == []
    assert job.missing() == {A: 1}
    assert job.peer_up(B, 1, 2000.0) == [
        Resumed(B),
        Replan((0,), ((),), ()),
        StateChanged(UploadState.RUNNING),
    ]
    assert job.replanned([0], [[B]], 2000.0) == [OfferChunk(B, 0, 2)]


def test_a_job_asks_again_while_the_tracker_does_not_know_who_is_up() -> None:
    """No event tells that a node which was expected is not there."""
    job = make([[A]], up=[A])
    begin_sending(job)
    job.peer_down(A, 1.0)
    unsure = PeersUnsure("one", unsure=["B"], unsure_s=3.0)
    assert job.not_replanned([0], unsure, 2.0) == [StateChanged(UploadState.WAITING)]
    assert job.deadline() == 2.0 + ROOM_S
    assert of(Replan, job.on_time(2.0 + ROOM_S)) == [Replan((0,), ((),), ())]
    job.not_replanned([0], TooFewPeers("one"), 5.0)
    assert (job.state, job.deadline()) == (UploadState.WAITING, None)


def test_a_job_without_room_ends_once_that_is_known() -> None:
    job = make([[A]], up=[A])
    begin_sending(job)
    job.peer_down(A, 1.0)
    job.not_replanned([0], PeersUnsure("no room", unsure=["B"], unsure_s=3.0), 2.0)
    job.on_time(2.0 + ROOM_S)
    full = NoSpace("no room")
    assert of(Failed, job.not_replanned([0], full, 5.0)) == [Failed(full)]


def test_an_upload_that_waits_for_a_peer_it_cannot_reach_names_it_and_goes_on_when_it_can() -> None:
    job = make([[A]], up=[A, B])
    begin_sending(job)
    assert of(Replan, job.peer_reach(A, False, 1.0)) == [Replan((0,), ((),), (A,))]
    job.not_replanned([0], TooFewPeers("one"), 2.0)
    assert (job.state, job.missing()) == (UploadState.WAITING, {A: 1})
    back = job.peer_reach(A, True, 3.0)
    assert back == [Resumed(A), OfferChunk(A, 0, 2), StateChanged(UploadState.RUNNING)]
    assert job.missing() == {}


@pytest.mark.parametrize("answer", [TooFewPeers("one"), NoSpace("none has room")])
def test_a_peer_that_had_no_room_is_planned_with_again_while_the_job_waits(answer: ZchunkError) -> None:
    """No event tells of space that was made on a disk. The job waits on while there is none."""
    job = make([[A]], up=[A])
    begin_sending(job)
    assert of(Replan, job.refused(A, 0, 1, NoSpace("full"), 1.0)) == [Replan((0,), ((),), (A,))]
    job.not_replanned([0], TooFewPeers("one"), 2.0)
    assert (job.state, job.deadline()) == (UploadState.WAITING, 2.0 + ROOM_S)
    assert job.on_time(2.0 + ROOM_S) == [Replan((0,), ((),), ())]
    assert job.not_replanned([0], answer, 5.0) == [], "it waits as before, and says nothing new"
    assert job.on_time(5.0 + ROOM_S) == [Replan((0,), ((),), ())]
    assert job.state is UploadState.WAITING


def test_an_upload_that_waited_for_room_goes_on() -> None:
    job = make([[A]], up=[A])
    begin_sending(job)
    job.refused(A, 0, 1, NoSpace("full"), 1.0)
    job.not_replanned([0], TooFewPeers("one"), 2.0)
    assert of(Replan, job.on_time(2.0 + ROOM_S))
    assert of(OfferChunk, job.replanned([0], [[A]], 4.1)) == [OfferChunk(A, 0, 2)]
    assert job.state is UploadState.RUNNING


def test_a_peer_that_came_while_the_plan_was_refused_is_not_waited_for() -> None:
    """The refusal and `peer.up` come by different ways: the later one may come first."""
    job = make([[A]], up=[A])
    begin_sending(job)
    job.peer_down(A, 1.0)
    assert job.peer_up(B, 1, 1.5) == []
    assert job.not_replanned([0], TooFewPeers("one"), 2.0) == [Replan((0,), ((),), ())]
    assert job.state is UploadState.RUNNING


def test_another_error_of_a_plan_ends_the_upload() -> None:
    job = make([[A]])
    begin_sending(job)
    job.peer_down(A, 1.0)
    error = NoSpace("nowhere")
    assert job.not_replanned([0], error, 2.0) == [StateChanged(UploadState.FAILED), Failed(error)]
    assert job.peer_up(A, 1, 3.0) == []
    assert job.deadline() is None


def test_a_copy_lost_before_the_commit_reopens_the_job() -> None:
    job = make([[A]])
    take(job, of(SendBlock, begin_sending(job)))
    assert job.state is UploadState.STORED
    assert job.peer_down(A, 1.0) == [StateChanged(UploadState.RUNNING), Replan((0,), ((),), ())]
    assert job.replanned([0], [[B]], 2.0) == [ReadChunk(0)]
    assert job.read(0, 3.0) == [OfferChunk(B, 0, 2)]
    assert AllStored() in job.offered(B, 0, 2, True, 4.0)


def test_the_loss_of_a_peer_that_holds_nothing_is_no_news() -> None:
    job = make([[A]])
    take(job, of(SendBlock, begin_sending(job)))
    assert AllStored() not in job.peer_up(C, 2, 1.0)
    actions = job.peer_down(C, 2.0)
    assert job.state is UploadState.STORED
    assert of(Replan, actions) == []


def stored(assignment: Sequence[Collection[str]] = ([A], [B]), **options: Any) -> UploadJob:
    """A job after `AllStored`: its peers had everything."""
    job = make(assignment, **options)
    actions = job.start(0.0)
    while job.state is not UploadState.STORED:
        for read in of(ReadChunk, actions):
            actions += offered(job, read.chunk)
        offers, actions = of(OfferChunk, actions), []
        for offer in offers:
            actions += job.offered(offer.peer_id, offer.chunk, offer.attempt, True, 0.0)
    return job


@pytest.mark.parametrize(("chunks", "again"), [([1], [1]), (None, [0, 1])])
def test_copies_that_the_tracker_does_not_know_are_offered_again(
    chunks: list[int] | None, again: list[int]
) -> None:
    job = stored()
    reopened = job.doubted(chunks, 1.0)
    assert reopened == [StateChanged(UploadState.RUNNING), *map(ReadChunk, again)]
    assert job.chunks_completed == 2 - len(again)
    [offer] = of(OfferChunk, job.read(1, 2.0))
    assert (offer.peer_id, offer.chunk) == (B, 1)
    assert len(of(SendBlock, job.offered(B, 1, offer.attempt, False, 2.0))) == CHUNK // BLOCK
    assert job.doubted(None, 3.0) == [], "it is being mended already"


def test_a_holder_that_cannot_keep_the_file_is_replaced() -> None:
    job = stored(([A, B], [A, B]), replicas=2)
    assert job.given_up(B, 1.0) == [
        StateChanged(UploadState.RUNNING),
        Replan((0, 1), ((A,), (A,)), (B,)),
    ]
    assert job.all_holders() == [A]
    assert of(ReadChunk, job.replanned([0, 1], [[C], [C]], 2.0)) == [ReadChunk(0), ReadChunk(1)]
    assert [offer.peer_id for offer in of(OfferChunk, job.read(0, 2.0))] == [C]


# -- who has it already (U7) -----------------------------------------------------------------------


def looked_for(job: UploadJob, *chunks: int) -> list[Action]:
    """These are read and digested; what the job then does."""
    actions: list[Action] = []
    for chunk in chunks:
        actions += offered(job, chunk)
    return actions


def test_who_holds_a_chunk_is_asked_before_it_is_offered() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    assert offered(job, 0) == [FindHolders((0,))]
    assert job.found([0], [[]], 0.0) == [OfferChunk(A, 0, 1)]


def test_what_was_hashed_meanwhile_is_asked_together() -> None:
    job = make([[A], [B], [C], [A]], kind=UploadJob)
    job.start(0.0)
    assert looked_for(job, 0, 2, 1) == [FindHolders((0,))], "one question at a time"
    assert job.found([0], [[]], 0.0) == [FindHolders((1, 2)), OfferChunk(A, 0, 1)]


def test_a_live_holder_is_a_chunks_place_and_nothing_is_sent() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert job.found([0], [[C]], 0.0) == [OfferChunk(C, 0, 1)]
    job.offered(C, 0, 1, True, 0.0)
    assert (job.holders(0), job.bytes_sent) == ([C], 0)
    assert job.copies() == [[C], [B]]


def test_a_holder_that_has_it_no_more_is_sent_it() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[C]], 0.0)
    assert job.offered(C, 0, 1, False, 0.0) == sends(C, 0, 1)


def test_a_holder_that_cannot_take_it_after_all_is_replaced_by_a_plan() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[C]], 0.0)
    assert job.refused(C, 0, 1, NoSpace("full"), 0.0) == [Replan((0,), ((),), (C,))]
    assert job.replanned([0], [[A]], 0.0) == [OfferChunk(A, 0, 2)]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_planned_peer_that_has_it_stays_its_place(replicas: int) -> None:
    plan = [A, B][:replicas]
    job = make([plan, plan], replicas=replicas, kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    actions = job.found([0], [[A, B, C]], 0.0)
    assert actions == [OfferChunk(peer_id, 0, at + 1) for at, peer_id in enumerate(plan)]


def test_each_copy_goes_to_a_holder_of_its_own() -> None:
    job = make([[A, B], [A, B]], replicas=2, up=[A, B, C, D], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert {o.peer_id for o in job.found([0], [[C, D]], 0.0)} == {C, D}  # type: ignore[union-attr]
    looked_for(job, 1)
    assert {o.peer_id for o in of(OfferChunk, job.found([1], [[D]], 0.0))} == {B, D}


def test_the_file_still_comes_to_lie_on_enough_peers() -> None:
    """All of it is on C; on C alone it may not be."""
    job = make([[A], [B], [A], [B]], min_peers=2, kind=UploadJob)
    job.start(0.0)
    assert of(FindHolders, looked_for(job, 0, 1, 2, 3)) == [FindHolders((0,))]
    job.found([0], [[C]], 0.0)
    job.found([1, 2, 3], [[C], [C], [C]], 0.0)
    assert job.copies() == [[C], [C], [C], [B]]


@pytest.mark.parametrize("why", ["down", "refused", "paused"])
def test_a_holder_that_is_of_no_use_now_is_no_place(why: str) -> None:
    job = make([[C], [A], [B]], up=[A, B, C], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[]], 0.0)
    if why == "down":
        job.peer_down(C, 0.0)
    else:
        job.refused(C, 0, 1, NoSpace("full") if why == "refused" else Busy("later"), 0.0)
    offered(job, 1)
    assert [o.peer_id for o in of(OfferChunk, job.found([1], [[C]], 0.0))] == [A]


def test_without_an_answer_the_upload_goes_on_as_planned_and_asks_again_later() -> None:
    job = make([[A], [B], [C], [A]], kind=UploadJob)
    job.start(0.0)
    looked_for(job, 0, 1)
    assert job.not_found([0], 1.0) == [OfferChunk(A, 0, 1), OfferChunk(B, 1, 2)]
    assert job.read(2, 1.0 + FIND_PAUSE_S - 0.1) == [OfferChunk(C, 2, 3)]
    assert job.read(3, 1.0 + FIND_PAUSE_S) == [FindHolders((3,))]


def test_an_answer_that_comes_while_a_new_plan_is_made_counts_with_the_plan() -> None:
    """Not before: the tracker was told which places stay, and would be answered with a wrong plan."""
    job = make([[A, B], [A, B]], replicas=2, up=[A, B, C, D], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert of(Replan, job.peer_down(B, 0.0)) == [Replan((0, 1), ((A,), (A,)), ())]
    assert [o.peer_id for o in of(OfferChunk, job.found([0], [[D]], 0.0))] == [A]
    assert [o.peer_id for o in of(OfferChunk, job.replanned([0, 1], [[C], [C]], 0.0))] == [D]
    assert job.copies() == [[A, D], [A, C]]


def test_a_chunk_that_is_read_again_is_looked_for_again() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[]], 0.0)
    job.offered(A, 0, 1, True, 0.0)
    job.peer_down(A, 1.0)
    assert job.replanned([0], [[B]], 2.0) == [ReadChunk(0)]
    assert job.read(0, 3.0) == [FindHolders((0,))]
    assert job.found([0], [[C]], 3.0) == [OfferChunk(C, 0, 2)]


def test_a_late_answer_about_a_chunk_that_is_done_changes_nothing() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[]], 0.0)
    job.offered(A, 0, 1, False, 0.0)
    take(job, sends(A, 0, 1)[:-1])
    assert job.found([0], [[C]], 0.0) == []
    assert job.copies() == [[A], [B]]


def test_a_chunk_of_the_same_bytes_waits_for_the_first_and_goes_where_that_is() -> None:
    """A node cannot be sent one chunk twice at a time, and need not be."""
    job = make([[A], [B], [C]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[]], 0.0)
    job.offered(A, 0, 1, False, 0.0)
    assert job.read(1, 0.0, twin=0) == []
    job.digested(1, 0.0)
    assert job.read(2, 0.0) == [FindHolders((2,))], "others do not wait"
    job.found([2], [[]], 0.0)
    assert FindHolders((1,)) in take(job, sends(A, 0, 1))
    assert job.found([1], [[]], 0.2) == [OfferChunk(A, 1, 3)], "the tracker has not heard of it yet"


def test_a_chunk_does_not_wait_for_a_twin_that_is_put_off() -> None:
    """Its peer went, and it is to be read again some time."""
    job = make([[A], [B]], up=[A, B, C], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    job.found([0], [[]], 0.0)
    job.offered(A, 0, 1, True, 0.0)
    job.peer_down(A, 0.0)
    assert job.read(1, 0.0, twin=0) == [FindHolders((1,))]


def test_an_undivided_file_goes_whole_to_where_most_of_it_is() -> None:
    """U1: it lies on one peer, whatever others have of it."""
    job = make([[A]] * 4, undivided=True, kind=UploadJob)
    job.start(0.0)
    looked_for(job, 0, 1, 2, 3)
    job.found([0], [[]], 0.0)
    assert job.copies() == [[A]] * 4, "the first answer knew of nobody, and A was offered chunk 0"
    job.found([1, 2, 3], [[B], [B], [B]], 0.0)
    assert job.copies() == [[A]] * 4
    other = make([[A]] * 4, undivided=True, kind=UploadJob)
    other.start(0.0)
    offered(other, 0)
    assert of(OfferChunk, other.found([0], [[C, B]], 0.0)) == [OfferChunk(B, 0, 1)]
    assert other.copies() == [[B]] * 4


def test_an_undivided_file_is_not_taken_from_the_own_peer() -> None:
    job = make([[A]] * 2, undivided=True, own_peer=A, kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert job.found([0], [[B]], 0.0) == [OfferChunk(A, 0, 1)]


# -- any interleaving ------------------------------------------------------------------------------


class World:
    """Does what the shell and the nodes do, and knows what it must never be told to do."""

    def __init__(
        self, sizes: Sequence[int], replicas: int, min_peers: int, job: UploadJob, up: dict[str, int]
    ) -> None:
        self.sizes, self.replicas, self.min_peers, self.job, self.up = sizes, replicas, min_peers, job, up
        #: chunks in memory -> whether they are read
        self.memory: dict[int, bool] = {}
        self.digested = 0
        self.offers: list[OfferChunk] = []
        self.sends: list[SendBlock] = []
        self.past: list[OfferChunk | SendBlock] = []
        #: chunks of which something was sent that will not be answered
        self.voided: set[int] = set()
        #: (peer, chunk, attempt) -> bytes that the node has taken
        self.got: dict[tuple[str, int, int], int] = {}
        #: what nodes really have, and what they have told the job
        self.stored: set[tuple[str, int]] = set()
        self.confirmed: set[tuple[str, int]] = set()
        self.cannot: set[str] = set()
        self.replans: list[tuple[Replan, list[list[str]] | TooFewPeers]] = []
        #: size -> the first chunk read of it
        self.first_of: dict[int, int] = {}
        #: chunks whose holders are asked for
        self.finding: tuple[int, ...] = ()
        self.all_stored = False
        self.failure: ZchunkError | None = None

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            getattr(self, f"_{type(action).__name__}")(action)
        self._bury()

    @property
    def asked(self) -> list[OfferChunk | SendBlock]:
        return [*self.offers, *self.sends]

    def _bury(self) -> None:
        """What the job no longer counts on."""
        for void in [a for a in self.asked if not self._counts(a)]:
            self.past = [*self.past, void][-50:]
            (self.offers if isinstance(void, OfferChunk) else self.sends).remove(void)  # type: ignore[arg-type]
            if isinstance(void, SendBlock):
                self.voided.add(void.chunk)

    def _counts(self, asked: OfferChunk | SendBlock) -> bool:
        target = self.job._chunks[asked.chunk].targets.get(asked.peer_id)
        if target is None or target.attempt != asked.attempt:
            return False
        if isinstance(asked, OfferChunk):
            return target.copy.value == "offered"
        return asked.offset in target.sent

    def copies(self, chunk: int) -> set[str]:
        return {p for p, c in self.confirmed if c == chunk and p in self.up}

    def _ReadChunk(self, action: ReadChunk) -> None:
        assert action.chunk not in self.memory
        self.memory[action.chunk] = False

    def _FindHolders(self, action: FindHolders) -> None:
        assert not self.finding, "a second question"
        assert all(self.memory[chunk] for chunk in action.chunks)
        self.finding = action.chunks

    def _Resumed(self, action: Resumed) -> None:
        assert action.peer_id in self.up

    def _OfferChunk(self, action: OfferChunk) -> None:
        assert self.memory[action.chunk]
        assert action.chunk not in self.finding, "offered before it is known who has it"
        assert action.peer_id in self.up, "offered to a peer that is down"
        assert action.peer_id not in self.cannot, "offered to a peer that said it cannot"
        assert (action.peer_id, action.chunk) not in self.confirmed, "a second copy at one peer"
        assert len(self.copies(action.chunk)) < self.replicas, "a copy more than asked"
        for other in self.asked:
            same = (other.peer_id, other.chunk) == (action.peer_id, action.chunk)
            assert not (same and self._counts(other)), "a copy is on its way there"
        self.offers.append(action)

    def _SendBlock(self, action: SendBlock) -> None:
        assert self.memory[action.chunk]
        assert action.peer_id in self.up
        assert action not in self.sends
        self.sends.append(action)

    def _ReleaseChunk(self, action: ReleaseChunk) -> None:
        assert self.memory.pop(action.chunk)
        assert action.chunk < self.digested
        assert len(self.copies(action.chunk)) >= self.replicas
        void = [s for s in self.sends if s.chunk == action.chunk]
        assert action.clean is not (action.chunk in self.voided or bool(void))
        self.voided.discard(action.chunk)
        self.past = [*self.past, *void][-50:]
        self.sends = [s for s in self.sends if s.chunk != action.chunk]

    def _Replan(self, action: Replan) -> None:
        waiting = {chunk for replan, _ in self.replans for chunk in replan.chunks}
        assert waiting.isdisjoint(action.chunks)
        assert set(action.avoid) == self.cannot
        assert all(set(held) <= self.up.keys() and len(held) < self.replicas for held in action.held)
        self.replans.append((action, self._plan(action)))

    def _plan(self, replan: Replan) -> list[list[str]] | TooFewPeers:
        """The tracker's answer, as things stand when it is asked."""
        rows = []
        for chunk, held in zip(replan.chunks, replan.held, strict=True):
            free = sorted(self.up.keys() - set(replan.avoid) - set(held))
            need = self.replicas - len(held)
            if len(free) < need:
                return TooFewPeers("too few")
            rows.append([free[(chunk + i) % len(free)] for i in range(need)])
        return rows

    def _StateChanged(self, action: StateChanged) -> None:
        self.all_stored = False

    def _AllStored(self, action: AllStored) -> None:
        assert all(len(self.copies(chunk)) >= self.replicas for chunk in range(len(self.sizes)))
        assert not self.memory
        self.all_stored = True

    def _Failed(self, action: Failed) -> None:
        self.failure = action.error

    # what comes back

    def read(self, chunk: int, now: float) -> None:
        """Chunks of one size count as of one content."""
        self.memory[chunk] = True
        first = self.first_of.setdefault(self.sizes[chunk], chunk)
        self.do(self.job.read(chunk, now, first if first != chunk else None))

    def digest(self, now: float) -> None:
        self.digested += 1
        self.do(self.job.digested(self.digested - 1, now))

    def answer(self, asked: OfferChunk | SendBlock, now: float, forgetful: bool = False) -> None:
        peer_id, chunk = asked.peer_id, asked.chunk
        counts = asked in self.offers or asked in self.sends
        if isinstance(asked, OfferChunk):
            have = (peer_id, chunk) in self.stored
            if counts:
                self.offers.remove(asked)
            if counts and have:
                self.confirmed.add((peer_id, chunk))
            self.do(self.job.offered(peer_id, chunk, asked.attempt, have, now))
            return
        key = (peer_id, chunk, asked.attempt)
        if counts:
            self.sends.remove(asked)
            self.got[key] = self.got.get(key, 0) + asked.length
        stored = counts and self.got[key] == self.sizes[chunk] and not forgetful
        if stored:
            self.stored.add((peer_id, chunk))
            self.confirmed.add((peer_id, chunk))
        self.do(self.job.taken(peer_id, chunk, asked.attempt, asked.offset, stored, now))

    def refuse(self, asked: OfferChunk | SendBlock, error: ZchunkError, now: float) -> None:
        counts = self._counts(asked)
        if counts and error.code == "no_space":
            self.cannot.add(asked.peer_id)
        self.do(self.job.refused(asked.peer_id, asked.chunk, asked.attempt, error, now))

    def plan_arrives(self, at: int, now: float) -> None:
        replan, reply = self.replans.pop(at)
        if isinstance(reply, TooFewPeers):
            self.do(self.job.not_replanned(replan.chunks, reply, now))
        else:
            self.do(self.job.replanned(replan.chunks, reply, now))

    def finding_ends(self, holders: list[list[str]] | None, now: float) -> None:
        """None: the tracker did not answer."""
        chunks, self.finding = self.finding, ()
        before, copies = self.spread(), [len(row) for row in self.job.copies()]
        if holders is None:
            self.do(self.job.not_found(chunks, now))
        else:
            self.do(self.job.found(chunks, holders, now))
        assert self.spread() >= min(self.min_peers, before), "on fewer peers than before"
        assert [len(row) for row in self.job.copies()] == copies, "a copy more, or less"

    def spread(self) -> int:
        return len({peer_id for row in self.job.copies() for peer_id in row})

    # what must always hold

    def check(self, limits: Limits, now: float) -> None:
        job = self.job
        assert self.failure is None
        assert job.begun_bytes == sum(self.sizes[chunk] for chunk in self.memory)
        assert job.begun_bytes <= limits.budget or len(self.memory) == 1
        done = {c for c in range(len(self.sizes)) if len(self.copies(c)) >= self.replicas}
        assert job.chunks_completed == len(done)
        assert (job.state is UploadState.STORED) == self.all_stored
        if self.all_stored:
            assert len(done) == len(self.sizes)
        for peer_id, window in job._windows.items():
            outstanding = [s.length for s in self.sends if s.peer_id == peer_id]
            assert window.outstanding == sum(outstanding)
            # Not of the present block size: a peer set aside begins with small ones again,
            # while larger ones are still on their way.
            assert sum(outstanding) <= WINDOW_BLOCKS * limits.block_max or len(outstanding) == 1
        if job.state in (UploadState.RUNNING, UploadState.WAITING):
            self._check_progress(limits, now, done)

    def _check_progress(self, limits: Limits, now: float, done: set[int]) -> None:
        job = self.job
        planning = {chunk for replan, _ in self.replans for chunk in replan.chunks}
        room = not job.begun_bytes or job.begun_bytes + max(self.sizes) <= limits.budget
        for chunk in range(len(self.sizes)):
            if chunk in done:
                continue
            targets = job._chunks[chunk].targets
            usable = [p for p in targets if p in self.up and p not in self.cannot]
            asked = {a.peer_id for a in self.asked if a.chunk == chunk}
            assert usable or asked or chunk in planning or job._blocked, f"chunk {chunk} has no place"
            idle = [p for p in usable if targets[p].copy.value == "planned"]
            twin = self.first_of.get(self.sizes[chunk])
            if chunk in self.finding or (twin != chunk and twin in self.memory and twin not in done):
                continue
            if self.memory.get(chunk) and job._chunks[chunk].holders is None:
                assert self.finding, f"chunk {chunk} is not looked for"
            elif self.memory.get(chunk):
                assert all(job._window(p).paused_until > now for p in idle), f"chunk {chunk} stands still"
            elif chunk not in self.memory:
                assert not (room and idle), f"chunk {chunk} is not read"
        if self.sends:
            assert job.deadline() is not None, "nothing would end a silence"


PEERS = (A, B, C, D)


class Uploads(RuleBasedStateMachine):
    """Peers come, go, restart, refuse, forget; answers and plans come late; chunks are read slowly."""

    world: World

    @initialize(
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
        replicas=st.integers(1, 3),
        min_peers=st.integers(1, 3),
        budget=st.integers(1, 120),
        block_max=st.sampled_from([4, 8, 64]),
        data=st.data(),
    )
    def begin(
        self,
        sizes: list[int],
        replicas: int,
        min_peers: int,
        budget: int,
        block_max: int,
        data: st.DataObject,
    ) -> None:
        self.now = 100.0
        self.incarnation = dict.fromkeys(PEERS, 1)
        self.limits = Limits(budget, 4, block_max, STALL)
        exactly = st.sets(st.sampled_from(PEERS), min_size=replicas, max_size=replicas)
        up = {p: 1 for p in PEERS if data.draw(st.sampled_from([True, True, True, False]))}
        job = UploadJob(
            sizes=sizes,
            assignment=[data.draw(exactly) for _ in sizes],
            replicas=replicas,
            min_peers=min_peers,
            up=up,
            limits=self.limits,
        )
        stored = data.draw(st.sets(st.tuples(st.sampled_from(PEERS), st.integers(0, 7)), max_size=4))
        self.world = World(sizes, replicas, min_peers, job, dict(up))
        self.world.stored = stored
        self.world.do(job.start(self.now))

    @property
    def job(self) -> UploadJob:
        return self.world.job

    @rule(peer_id=st.sampled_from(PEERS), new=st.booleans())
    def peer_up(self, peer_id: str, new: bool) -> None:
        self.incarnation[peer_id] += new
        if self.world.up.get(peer_id) != self.incarnation[peer_id]:
            self.world.cannot.discard(peer_id)
        self.world.up[peer_id] = self.incarnation[peer_id]
        self.world.do(self.job.peer_up(peer_id, self.incarnation[peer_id], self.now))

    @rule(peer_id=st.sampled_from(PEERS))
    def peer_down(self, peer_id: str) -> None:
        self.world.up.pop(peer_id, None)
        self.world.do(self.job.peer_down(peer_id, self.now))

    @precondition(lambda self: False in self.world.memory.values())
    @rule(data=st.data())
    def chunk_is_read(self, data: st.DataObject) -> None:
        unread = [chunk for chunk, ready in self.world.memory.items() if not ready]
        self.world.read(data.draw(st.sampled_from(unread)), self.now)

    @precondition(lambda self: self.world.memory.get(self.world.digested))
    @rule()
    def chunk_is_digested(self) -> None:
        self.world.digest(self.now)

    @precondition(lambda self: self.world.offers or self.world.sends)
    @rule(data=st.data(), took=st.sampled_from([0.0, 0.01, 0.2]), forgetful=st.booleans())
    def answer_arrives(self, data: st.DataObject, took: float, forgetful: bool) -> None:
        asked = data.draw(st.sampled_from(self.world.asked))
        self.now += took
        self.world.answer(asked, self.now, forgetful)

    @rule(count=st.integers(1, 30))
    def many_answers_arrive(self, count: int) -> None:
        for _ in range(count):
            asked = self.world.asked
            if asked:
                self.world.answer(asked[0], self.now)

    @precondition(lambda self: self.world.past)
    @rule(data=st.data())
    def answer_arrives_late_or_twice(self, data: st.DataObject) -> None:
        self.world.answer(data.draw(st.sampled_from(self.world.past)), self.now)

    @precondition(lambda self: self.world.offers or self.world.sends or self.world.past)
    @rule(data=st.data(), error=st.sampled_from([Busy("b"), PeerUnreachable("p"), NoSpace("n")]))
    def it_is_refused(self, data: st.DataObject, error: ZchunkError) -> None:
        pool = [*self.world.offers, *self.world.sends, *self.world.past]
        self.world.refuse(data.draw(st.sampled_from(pool)), error, self.now)

    @precondition(lambda self: self.world.replans)
    @rule(data=st.data())
    def plan_arrives(self, data: st.DataObject) -> None:
        self.world.plan_arrives(data.draw(st.sampled_from(range(len(self.world.replans)))), self.now)

    @precondition(lambda self: False in self.world.memory.values())
    @rule()
    def all_are_read(self) -> None:
        for chunk in [chunk for chunk, ready in self.world.memory.items() if not ready]:
            self.world.read(chunk, self.now)

    @precondition(lambda self: self.world.finding)
    @rule(data=st.data(), answered=st.sampled_from([True, True, True, False]))
    def holders_are_told(self, data: st.DataObject, answered: bool) -> None:
        """Of some of the chunks, and not always rightly: it is a hint."""
        some = st.lists(st.sampled_from(PEERS), unique=True, min_size=1, max_size=2)
        holders = [data.draw(some) for _ in self.world.finding]
        self.world.finding_ends(holders if answered else None, self.now)

    @precondition(lambda self: self.job.state is UploadState.STORED)
    @rule(data=st.data())
    def copies_are_doubted(self, data: st.DataObject) -> None:
        """The tracker misses some; of these nodes may have lost some, too."""
        chunks = data.draw(st.sets(st.integers(0, len(self.world.sizes) - 1), min_size=1))
        self.world.confirmed = {(p, c) for p, c in self.world.confirmed if c not in chunks}
        lost = data.draw(st.sets(st.sampled_from(sorted(self.world.stored)))) if self.world.stored else set()
        self.world.stored -= {(p, c) for p, c in lost if c in chunks}
        self.world.do(self.job.doubted(sorted(chunks), self.now))

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._wake()

    def _wake(self) -> None:
        if self.job._waits_for_room() and self.job._room_at <= self.now:
            self.world.cannot.clear()  # there may be room by now: whoever had none is tried again
        self.world.do(self.job.on_time(self.now))

    @rule()
    def deadline_comes(self) -> None:
        deadline = self.job.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self._wake()
            again = self.job.deadline()
            assert again is None or again > self.now, "it would be woken at once, for ever"

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check(self.limits, self.now)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for peer_id in PEERS:
            self.peer_up(peer_id, new=True)
        for _ in range(1000):
            if self.job.state is UploadState.STORED:
                break
            self._one_good_step()
            self.holds()
        assert self.job.state is UploadState.STORED, self.job.state
        assert self.world.digested == len(self.world.sizes)

    def _one_good_step(self) -> None:
        world = self.world
        unread = [chunk for chunk, ready in world.memory.items() if not ready]
        if world.replans:
            world.plan_arrives(0, self.now)
        elif world.finding:
            holders = [[p for p in PEERS if (p, chunk) in world.stored] for chunk in world.finding]
            world.finding_ends(holders, self.now)
        elif unread:
            world.read(unread[0], self.now)
        elif world.memory.get(world.digested):
            world.digest(self.now)
        elif world.offers or world.sends:
            world.answer(world.asked[0], self.now)
        else:
            self.deadline_comes()


TestAnyInterleaving = Uploads.TestCase
TestAnyInterleaving.settings = settings(max_examples=200, stateful_step_count=40)
