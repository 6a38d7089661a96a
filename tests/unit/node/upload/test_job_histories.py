"""An upload under any interleaving of what may happen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.node.upload.uploads import STALL, A, B, C, D
from zchunk.errors import (
    Busy,
    NoSpace,
    PeerUnreachable,
    TooFewPeers,
    ZchunkError,
)
from zchunk.node.bulk.peer_window import WINDOW_BLOCKS
from zchunk.node.upload.actions import (
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
    UploadState,
)
from zchunk.node.upload.job import UploadJob


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
        target = self.job.copies.rows[asked.chunk].targets.get(asked.peer_id)
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
        before, copies = self.spread(), [len(row) for row in self.job.places()]
        if holders is None:
            self.do(self.job.not_found(chunks, now))
        else:
            self.do(self.job.found(chunks, holders, now))
        assert self.spread() >= min(self.min_peers, before), "on fewer peers than before"
        assert [len(row) for row in self.job.places()] == copies, "a copy more, or less"

    def spread(self) -> int:
        return len({peer_id for row in self.job.places() for peer_id in row})

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
        for peer_id, window in job.copies.windows.items():
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
            targets = job.copies.rows[chunk].targets
            usable = [p for p in targets if p in self.up and p not in self.cannot]
            asked = {a.peer_id for a in self.asked if a.chunk == chunk}
            assert usable or asked or chunk in planning or job.blocked, f"chunk {chunk} has no place"
            idle = [p for p in usable if targets[p].copy.value == "planned"]
            twin = self.first_of.get(self.sizes[chunk])
            if chunk in self.finding or (twin != chunk and twin in self.memory and twin not in done):
                continue
            if self.memory.get(chunk) and job.copies.rows[chunk].holders is None:
                assert self.finding, f"chunk {chunk} is not looked for"
            elif self.memory.get(chunk):
                assert all(job.copies.window(p).paused_until > now for p in idle), (
                    f"chunk {chunk} stands still"
                )
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
        if self.job.waits_for_room() and self.job.plans.room_at <= self.now:
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
