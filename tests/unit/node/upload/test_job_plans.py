"""Where an upload puts its chunks: its plan, what is there already (U7), who else may take them."""

from __future__ import annotations

import pytest

from tests.unit.node.upload.uploads import (
    BLOCK,
    CHUNK,
    A,
    B,
    C,
    D,
    begin_sending,
    make,
    of,
    offered,
    sends,
    stored,
    take,
)
from zchunk.errors import (
    Busy,
    NoSpace,
    PeersUnsure,
    TooFewPeers,
    ZchunkError,
)
from zchunk.node.upload.actions import (
    Action,
    AllStored,
    Failed,
    FindHolders,
    OfferChunk,
    ReadChunk,
    Replan,
    Resumed,
    SendBlock,
    StateChanged,
    UploadState,
)
from zchunk.node.upload.finding import FIND_PAUSE_S
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.plans import ROOM_S

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


@pytest.mark.row("U6")
def test_with_too_few_peers_the_job_waits_for_one() -> None:
    job = make([[A]], up=[A])
    begin_sending(job)
    job.peer_down(A, 1.0)
    assert job.not_replanned([0], TooFewPeers("one"), 2.0) == [StateChanged(UploadState.WAITING)]
    assert job.on_time(1000.0) == []
    assert job.copies.missing() == {A: 1}
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
    assert (job.state, job.copies.missing()) == (UploadState.WAITING, {A: 1})
    back = job.peer_reach(A, True, 3.0)
    assert back == [Resumed(A), OfferChunk(A, 0, 2), StateChanged(UploadState.RUNNING)]
    assert job.copies.missing() == {}


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


@pytest.mark.row("U5")
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


@pytest.mark.row("U6")
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


@pytest.mark.row("U6")
def test_a_holder_that_cannot_keep_the_file_is_replaced() -> None:
    job = stored(([A, B], [A, B]), replicas=2)
    assert job.given_up(B, 1.0) == [
        StateChanged(UploadState.RUNNING),
        Replan((0, 1), ((A,), (A,)), (B,)),
    ]
    assert job.all_holders() == [A]
    assert of(ReadChunk, job.replanned([0, 1], [[C], [C]], 2.0)) == [ReadChunk(0), ReadChunk(1)]
    assert [offer.peer_id for offer in of(OfferChunk, job.read(0, 2.0))] == [C]


# -- who has it already (U7) ------------------------------------------------------------------


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


@pytest.mark.row("U7")
def test_a_live_holder_is_a_chunks_place_and_nothing_is_sent() -> None:
    job = make([[A], [B]], kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert job.found([0], [[C]], 0.0) == [OfferChunk(C, 0, 1)]
    job.offered(C, 0, 1, True, 0.0)
    assert (job.holders(0), job.bytes_sent) == ([C], 0)
    assert job.places() == [[C], [B]]


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


@pytest.mark.row("U4")
def test_the_file_still_comes_to_lie_on_enough_peers() -> None:
    """All of it is on C; on C alone it may not be."""
    job = make([[A], [B], [A], [B]], min_peers=2, kind=UploadJob)
    job.start(0.0)
    assert of(FindHolders, looked_for(job, 0, 1, 2, 3)) == [FindHolders((0,))]
    job.found([0], [[C]], 0.0)
    job.found([1, 2, 3], [[C], [C], [C]], 0.0)
    assert job.places() == [[C], [C], [C], [B]]


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
    assert job.places() == [[A, D], [A, C]]


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
    assert job.places() == [[A], [B]]


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


@pytest.mark.row("U1")
def test_an_undivided_file_goes_whole_to_where_most_of_it_is() -> None:
    """U1: it lies on one peer, whatever others have of it."""
    job = make([[A]] * 4, undivided=True, kind=UploadJob)
    job.start(0.0)
    looked_for(job, 0, 1, 2, 3)
    job.found([0], [[]], 0.0)
    assert job.places() == [[A]] * 4, "the first answer knew of nobody, and A was offered chunk 0"
    job.found([1, 2, 3], [[B], [B], [B]], 0.0)
    assert job.places() == [[A]] * 4
    other = make([[A]] * 4, undivided=True, kind=UploadJob)
    other.start(0.0)
    offered(other, 0)
    assert of(OfferChunk, other.found([0], [[C, B]], 0.0)) == [OfferChunk(B, 0, 1)]
    assert other.places() == [[B]] * 4


def test_an_undivided_file_is_not_taken_from_the_own_peer() -> None:
    job = make([[A]] * 2, undivided=True, own_peer=A, kind=UploadJob)
    job.start(0.0)
    offered(job, 0)
    assert job.found([0], [[B]], 0.0) == [OfferChunk(A, 0, 1)]
