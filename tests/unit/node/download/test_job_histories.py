"""A download under any interleaving of what may happen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.node.download.downloads import NEW, RELOCATE, STALL, A, B, C, make, states
from zchunk.errors import (
    Busy,
    IntegrityError,
    NotFound,
    PeerUnreachable,
    StorageFailure,
    Unreadable,
    ZchunkError,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    BeginChunk,
    CheckRemoved,
    ChunkState,
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
)
from zchunk.node.download.job import DownloadJob


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
        assert ask.attempt in self.job.view.attempts(ask.chunk)
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
        self.do(self.job.want(chunks, now))

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
        assert {index: job.view.chunk_state(index) for index in expected} == expected
        assert len(job.chunks.in_work) == len(in_flight)
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
        for peer_id, peer in self.job.sources.peers.items():
            outstanding = [ask.length for ask in self.asked if ask.peer_id == peer_id]
            assert peer.window.outstanding == sum(outstanding)
            # The window of one that was set aside shrinks: what is on its way then may be more,
            # and nothing is added to it.
            most = max(WINDOW_BLOCKS * peer.window.block, self.outstanding.get(peer_id, 0))
            assert sum(outstanding) <= most or len(outstanding) == 1
            self.outstanding[peer_id] = sum(outstanding)
            in_flight = {i for i, _ in self.buffers if i not in self.verifying and i not in self.writing}
            fetches = [fetch for index in in_flight for fetch in self.job.chunks.rows[index].fetches]
            assert peer.begun == sum(fetch.peer_id == peer_id for fetch in fetches) <= 2
            assert len(self.job.order.queues.get(peer_id, ())) <= len(self.sizes)

    def _check_progress(self, limits: Limits, now: float) -> None:
        """Who could send something now is asked for something."""
        job = self.job
        if job.state not in (JobState.RUNNING, JobState.WAITING):
            return
        if job.begun_bytes and job.begun_bytes + max(self.sizes) > limits.budget:
            return
        for index, holders in enumerate(job.sources._holders):
            if job.view.chunk_state(index) is not ChunkState.WANTED:
                continue
            for peer_id in (holders & self.up.keys()) - self.unreachable:
                peer = job.sources.peers[peer_id]
                idle = peer.begun < 2 and peer.window.paused_until <= now
                assert not (idle and self._is_clean(index, peer_id)), f"chunk {index} stands still"

    def _is_clean(self, chunk: int, peer_id: str) -> bool:
        job = self.job
        clean = peer_id not in job.sources.struck(chunk) and job.sources.peers[peer_id].corrupt < 2
        return clean and peer_id not in job.sources.unread.pausing(chunk)


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
        sizes.append(sum(map(len, job.order.queues.values())) + sum(len(c.fetches) for c in job.chunks.rows))
    assert max(sizes) <= 2 * 20, "each chunk once in each peer's queue, or in flight"
    assert max(sizes[-50:]) <= max(sizes[50:100])
    assert states(job) == {"pending": 18, "downloading": 2}
