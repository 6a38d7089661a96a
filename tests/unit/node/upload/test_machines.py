"""The machines that an upload job is made of, each alone: copies, reading, finding, plans."""

from __future__ import annotations

import pytest

from zchunk.errors import Busy, IllegalEvent, NoSpace, TooFewPeers
from zchunk.node.upload.actions import (
    FindHolders,
    Limits,
    OfferChunk,
    ReadChunk,
    ReleaseChunk,
    Replan,
    SendBlock,
)
from zchunk.node.upload.copies import Copies, Memory
from zchunk.node.upload.finding import FIND_PAUSE_S, Finding
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.plans import ROOM_S, Plans
from zchunk.node.upload.reading import Reading

A, B, C = "a" * 32, "b" * 32, "c" * 32
SIZE = 32
LIMITS = Limits(budget=3 * SIZE, block_min=16, block_max=16, stall_s=30.0)


class Machines:
    def __init__(
        self, assignment: list[list[str]], up: list[str], *, replicas: int = 1, undivided: bool = False
    ) -> None:
        self.copies = Copies([SIZE] * len(assignment), assignment, replicas, LIMITS)
        self.copies.up.update(dict.fromkeys(up, 1))
        self.reading = Reading(self.copies, LIMITS.budget)
        self.plans = Plans(self.copies)
        self.finding = Finding(
            self.copies, self.plans, replicas=replicas, min_peers=1, undivided=undivided, own_peer=None
        )

    def read(self, *indexes: int) -> None:
        """In memory, hashed, and nobody has them."""
        self.reading.read_more()
        for index in indexes:
            self.copies.rows[index].memory = Memory.READY
            self.copies.rows[index].holders = ()

    def store(self, index: int, peer_id: str) -> None:
        (offer,) = self.copies.offer(index, 0.0)
        assert isinstance(offer, OfferChunk)
        assert self.copies.offered(peer_id, index, offer.attempt, have=True)


# -- copies -----------------------------------------------------------------------------------


def test_a_copy_counts_once_a_node_says_that_it_stores_it() -> None:
    machines = Machines([[A]], up=[A])
    copies = machines.copies
    machines.read(0)
    assert copies.offer(0, 0.0) == [OfferChunk(A, 0, 1)]
    assert copies.offered(A, 0, 1, have=False)
    assert copies.send(0, 0.0) == [SendBlock(A, 0, 1, 0, 16), SendBlock(A, 0, 1, 16, 16)]
    assert copies.taken(A, 0, 1, 0, False, 1.0)
    assert copies.done == set()
    assert copies.taken(A, 0, 1, 16, True, 1.0)
    assert (copies.done, copies.bytes_sent) == ({0}, SIZE)
    assert not copies.taken(A, 0, 1, 16, True, 1.0), "it was answered already"


def test_answers_of_an_attempt_that_is_void_do_not_count() -> None:
    machines = Machines([[A]], up=[A])
    machines.read(0)
    machines.copies.offer(0, 0.0)
    machines.copies.void(A)
    assert not machines.copies.offered(A, 0, 1, have=True)
    assert machines.copies.offer(0, 0.0) == [OfferChunk(A, 0, 2)]


def test_who_refuses_or_is_set_aside_is_offered_nothing() -> None:
    machines = Machines([[A, B]], up=[A, B], replicas=2)
    machines.read(0)
    machines.copies.refused.add(A)
    machines.copies.window(B).set_aside(0.0)
    assert machines.copies.offer(0, 0.5) == []
    assert machines.copies.offer(0, 1.0) == [OfferChunk(B, 0, 1)]


def test_a_peer_that_goes_takes_its_copies_with_it() -> None:
    machines = Machines([[A]], up=[A])
    machines.read(0)
    machines.store(0, A)
    assert machines.copies.done == {0}
    del machines.copies.up[A]
    machines.copies.recount()
    assert machines.copies.done == set()
    assert machines.copies.missing() == {A: 1}


# -- reading ------------------------------------------------------------------------------------


def test_chunks_are_read_in_order_as_far_as_there_is_memory() -> None:
    machines = Machines([[A]] * 5, up=[A])
    assert machines.reading.read_more() == [ReadChunk(0), ReadChunk(1), ReadChunk(2)]
    assert machines.reading.read_more() == []
    assert machines.reading.begun_bytes == 3 * SIZE


def test_memory_is_free_once_the_copies_are_there_and_the_digest_has_the_chunk() -> None:
    machines = Machines([[A]] * 4, up=[A])
    machines.read(0)
    machines.store(0, A)
    assert machines.reading.release_done() == []
    machines.copies.rows[0].digested = True
    assert machines.reading.release_done() == [ReleaseChunk(0, clean=True)]
    assert machines.reading.read_more() == [ReadChunk(3)]


def test_a_chunk_that_must_go_elsewhere_is_read_again_before_the_others() -> None:
    machines = Machines([[A]] * 9, up=[A, B])
    machines.read(0)
    machines.store(0, A)
    machines.copies.rows[0].digested = True
    machines.reading.release_done()
    machines.copies.give_up(A)
    machines.copies.plan_again(B, machines.copies.rows[0])
    machines.copies.recount()
    machines.reading.look_again()
    assert machines.reading.read_more() == [ReadChunk(0)]


# -- finding ------------------------------------------------------------------------------------


def hashed(machines: Machines, *indexes: int) -> None:
    machines.reading.read_more()
    for index in indexes:
        machines.copies.rows[index].memory = Memory.READY


def test_one_question_at_a_time_about_all_that_were_hashed() -> None:
    machines = Machines([[A]] * 3, up=[A, B])
    hashed(machines, 0, 2)
    assert machines.finding.ask(0.0) == [FindHolders((0, 2))]
    hashed(machines, 1)
    assert machines.finding.ask(0.0) == []
    machines.finding.found([0, 2], [[B], []], 0.0)
    assert [list(chunk.targets) for chunk in machines.copies.rows] == [[B], [A], [A]]
    assert machines.finding.ask(0.0) == [FindHolders((1,))]


def test_a_tracker_that_does_not_say_is_not_asked_for_a_while() -> None:
    machines = Machines([[A]] * 2, up=[A])
    hashed(machines, 0)
    machines.finding.ask(0.0)
    machines.finding.failed(0.0)
    machines.finding.found([0], [()], 0.0)
    hashed(machines, 1)
    assert machines.finding.ask(FIND_PAUSE_S - 1) == []
    assert machines.copies.rows[1].holders == ()


def test_twins_are_not_looked_for_while_the_first_is_on_its_way() -> None:
    machines = Machines([[A]] * 2, up=[A])
    hashed(machines, 0, 1)
    machines.copies.rows[1].twin = 0
    assert machines.finding.ask(0.0) == [FindHolders((0,))]


def test_an_undivided_file_moves_as_a_whole() -> None:
    machines = Machines([[A]] * 3, up=[A, B], undivided=True)
    hashed(machines, 0, 1)
    machines.finding.ask(0.0)
    assert machines.finding.found([0, 1], [[B], [B]], 0.0)
    assert [list(chunk.targets) for chunk in machines.copies.rows] == [[B]] * 3


# -- plans --------------------------------------------------------------------------------------


def test_new_places_are_asked_for_once_and_old_ones_that_were_to_stay_do() -> None:
    machines = Machines([[A, B]], up=[A], replicas=2)
    assert machines.plans.ask() == [Replan((0,), ((A,),), ())]
    assert machines.plans.ask() == []
    machines.copies.places_changed = True
    assert machines.plans.ask() == [], "one plan at a time for a chunk"
    machines.plans.planned([0], [[C]])
    assert sorted(machines.copies.rows[0].targets) == [A, C]


def test_without_enough_peers_it_is_blocked_until_one_comes() -> None:
    machines = Machines([[A]], up=[])
    machines.plans.ask()
    assert machines.plans.refused([0], TooFewPeers("too few"), 0.0)
    assert machines.plans.blocked is not None
    machines.copies.places_changed = True
    assert machines.plans.ask() == []
    machines.plans.arrived()
    assert machines.plans.ask() == [Replan((0,), ((),), ())]


def test_a_peer_that_came_while_the_plan_was_asked_for_is_not_missed() -> None:
    machines = Machines([[A]], up=[])
    machines.plans.ask()
    machines.plans.arrived()
    assert machines.plans.refused([0], TooFewPeers("too few"), 0.0)
    assert machines.plans.blocked is None
    assert machines.copies.places_changed


def test_room_is_looked_for_again_where_a_peer_had_none() -> None:
    machines = Machines([[A]], up=[A])
    machines.copies.refused.add(A)
    machines.plans.ask()
    machines.plans.refused([0], TooFewPeers("too few"), 5.0)
    assert machines.plans.waits_for_room()
    assert machines.plans.room_at == 5.0 + ROOM_S
    machines.plans.look_for_room(7.0)
    assert machines.copies.refused == set()


@pytest.mark.parametrize("error", [Busy("busy"), NoSpace("full")])
def test_other_errors_end_the_upload(error: Busy | NoSpace) -> None:
    machines = Machines([[A]], up=[])
    machines.plans.ask()
    assert not machines.plans.refused([0], error, 0.0)


# -- the job: what it remembers -------------------------------------------------------------------


def test_the_job_remembers_its_last_transitions() -> None:
    job = UploadJob(sizes=[SIZE], assignment=[[A]], replicas=1, min_peers=1, up={A: 1}, limits=LIMITS)
    job.start(0.0)
    job.peer_down(A, 1.0)
    assert [step.event for step in job.history.transitions] == ["start", "peer_down"]
    with pytest.raises(IllegalEvent, match="peer_down"):
        job.know(up={}, unreachable=())
