"""The download job: which block of which chunk to ask from whom, and when it is done. Pure.

What may not happen here: a chunk accepted unverified; a chunk lost (one without a live holder waits
for the event that revives it); a standstill while a peer that holds a wanted chunk is up and not set
aside.

Events come in through the methods, with the monotonic time; each returns the actions
(actions.py) for the shell (`fetcher.py`) to carry out in order. What it is made of: `Chunks` (what
each is at, its blocks, the memory), `Sources` (who may be asked for which), `AskOrder` (which comes
next, and from whom), `Hedging` (which is asked of a second holder), `View` (what others see of it).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from zchunk.errors import IllegalEvent, Unreadable, ZchunkError
from zchunk.node.bulk.history import History
from zchunk.node.download.actions import (
    Action,
    AllHeld,
    CheckRemoved,
    ChunkState,
    Failed,
    JobState,
    Limits,
    Relocate,
    ReportCorrupt,
    Resumed,
    StateChanged,
    WriteChunk,
    corrupt_everywhere,
    removed_meanwhile,
)
from zchunk.node.download.chunks import Chunks
from zchunk.node.download.hedging import Hedging
from zchunk.node.download.order import AskOrder
from zchunk.node.download.sources import Sources
from zchunk.node.download.view import View

_UNDER_WAY = (JobState.RUNNING, JobState.WAITING)
_ENDED = (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED)


class DownloadJob:
    def __init__(
        self,
        *,
        sizes: Sequence[int],
        holders: Sequence[Collection[str]],
        up: Mapping[str, int],
        held: Collection[int],
        limits: Limits,
        unreachable: Collection[str] = (),
    ) -> None:
        """`sizes`: stored bytes per chunk. `holders`: peer ids per chunk. `up`: peer id ->
        incarnation of those that are up; `unreachable`: those among them that cannot be
        reached from here. `held`: chunks that an earlier run kept."""
        self.state = JobState.RUNNING
        self.waiting_since: float | None = None
        self.bytes_received = 0
        #: its last transitions, for people
        self.history = History()
        self._limits = limits
        self.sources = Sources(holders, limits)
        self.chunks = Chunks(sizes, limits.budget, self.sources)
        self.order = AskOrder(self.chunks, self.sources)
        self.hedging = Hedging(self.chunks, self.sources, self.order)
        self.view = View(self.chunks, self.sources)
        self._started = False
        #: peers waited for that came back and, without auto-resume, are not asked yet
        self._back: dict[str, int] = {}
        self._relocate_at: float | None = None
        #: the tracker says that there is no such file (any more)
        self._removed = False
        #: it was asked whether there is; and it has answered, or cannot
        self._checking = self._checked = False
        self.know(up=up, held=held, unreachable=unreachable)

    def know(self, *, up: Mapping[str, int], held: Collection[int], unreachable: Collection[str]) -> None:
        """Before `start`: what was not known yet when the job was made."""
        if self._started:
            raise IllegalEvent("what is known, after the start", self.history)
        self.chunks.have(held)
        self.sources.set_up(up, unreachable)
        self.order.renew()

    # -- what is known --------------------------------------------------------------

    @property
    def chunks_completed(self) -> int:
        return self.chunks.held

    @property
    def chunks_count(self) -> int:
        return len(self.chunks.rows)

    @property
    def begun_bytes(self) -> int:
        """Bytes of buffers in use: never over the budget, but for a single chunk."""
        return self.chunks.begun_bytes

    @property
    def checking(self) -> bool:
        """Whether it waits to be told if the file is still there."""
        return self._checking

    @property
    def came_back(self) -> frozenset[str]:
        """Peers that are up and, without auto-resume, are asked only after `resume`."""
        return frozenset(self._back)

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """See `JobDriver`'s `Job`."""
        return self.view.waits_for_turn(busy)

    def cannot_wait(self, index: int, now: float) -> bool:
        """Whether whole chunks that wait in memory for this one to come hold up the rest: nothing
        else is in work, or memory is short for a peer that could send more, and it comes late."""
        if not self.chunks.in_work:
            return True
        return self.order.is_memory_bound(now) and self.hedging.comes_late(index, now)

    # -- events ---------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        self._note(now, "start")
        self._started = True
        return self._advance(now)

    def peer_up(self, peer_id: str, incarnation: int, now: float) -> list[Action]:
        """It is up; with a new incarnation what was asked of the old one is void."""
        self._note(now, "peer_up", peer_id, incarnation)
        peer = self.sources.peer(peer_id)  # it may become a holder later
        if peer.up and peer.incarnation == incarnation:
            return []
        actions = self.chunks.take_back(peer_id) if peer.up else []
        waited_for = not peer.up and peer_id in self.view.missing()
        if waited_for and not self._limits.auto_resume:
            self._back[peer_id] = incarnation
            return []
        self.sources.set_up({peer_id: incarnation})
        return actions + self._welcome_back(peer_id, waited_for, now)

    def peer_reach(self, peer_id: str, reachable: bool, now: float) -> list[Action]:
        """A peer that is up cannot be reached from here, or can again."""
        self._note(now, "peer_reach", peer_id, reachable)
        peer = self.sources.peer(peer_id)
        if not reachable:
            self._back.pop(peer_id, None)
        if peer.reachable == reachable:
            return []
        if reachable:
            waited_for = peer.up and peer_id in self.view.missing()
            if waited_for and not self._limits.auto_resume:
                self._back[peer_id] = peer.incarnation
                return []
            peer.reachable = True
            return self._welcome_back(peer_id, waited_for, now)
        peer.reachable = False
        return self._went(peer_id, now)

    def _welcome_back(self, peer_id: str, waited_for: bool, now: float) -> list[Action]:
        self.sources.peers[peer_id].window.welcome_back(now)
        self.sources.unread.started_anew(peer_id)
        self.order.renew()
        told: list[Action] = []
        if waited_for and self.state in _UNDER_WAY:
            told.append(Resumed(peer_id))
        return told + self._advance(now)

    def peer_down(self, peer_id: str, now: float) -> list[Action]:
        self._note(now, "peer_down", peer_id)
        self._back.pop(peer_id, None)
        peer = self.sources.peers.get(peer_id)
        if peer is None or not peer.up:
            return []
        peer.up = False
        return self._went(peer_id, now)

    def _went(self, peer_id: str, now: float) -> list[Action]:
        actions = self.chunks.take_back(peer_id)
        self.order.renew()
        return actions + self._advance(now)

    def located(self, holders: Sequence[Collection[str]], now: float) -> list[Action]:
        """The tracker's present answer to who holds what."""
        self._note(now, "located", len(holders))
        if len(holders) != len(self.chunks.rows):
            raise IllegalEvent("holders of another file", self.history)
        self.sources.set_holders(holders)
        self._removed = False  # put again, perhaps
        self.order.renew()
        return self._answered(now)

    def not_located(self, now: float) -> list[Action]:
        """The tracker did not say who holds what."""
        self._note(now, "not_located")
        return self._answered(now)

    def removed(self, now: float) -> list[Action]:
        """The tracker knows of no such file. What still comes is taken; when nothing does any
        more the job has failed."""
        self._note(now, "removed")
        self._removed = True
        return self._answered(now)

    def _answered(self, now: float) -> list[Action]:
        if self._checking:
            self._checking, self._checked = False, True
        return self._advance(now)

    def block(self, chunk_index: int, attempt: int, offset: int, length: int, now: float) -> list[Action]:
        """A block arrived; the shell has put its bytes into the chunk's buffer if, and
        only if, `expects` said so before."""
        if not self.expects(chunk_index, attempt, offset, length):
            return []
        fetch = self.chunks.rows[chunk_index].fetch(attempt)
        assert fetch is not None
        self.chunks.arrived(fetch, offset, now)
        self.bytes_received += length
        actions = self._was_read(chunk_index, fetch.peer_id)
        if fetch.complete:
            actions += self.chunks.complete(chunk_index, fetch, now)
        return actions + self._advance(now)

    def _was_read(self, chunk_index: int, peer_id: str) -> list[Action]:
        waited_for = self.sources.unread.was_read(chunk_index, peer_id)
        if waited_for is None:
            return []
        self.order.renew()
        return [Resumed(peer_id)] if waited_for else []

    def expects(self, chunk_index: int, attempt: int, offset: int, length: int) -> bool:
        """Whether this is an answer to a request that still counts."""
        return self.chunks.awaits(chunk_index, attempt, offset, length) is not None

    def refused(self, chunk_index: int, attempt: int, error: ZchunkError, now: float) -> list[Action]:
        """The peer answered a block request with an error, or the link to it broke."""
        fetch = self.chunks.rows[chunk_index].fetch(attempt)
        if fetch is None:
            return []
        self._note(now, "refused", chunk_index, attempt, error)
        actions = self.chunks.give_up(chunk_index, fetch)
        if isinstance(error, Unreadable):
            # Of this chunk alone: the others may lie on a better part of its disk.
            self.sources.unread.refused(chunk_index, fetch.peer_id, now)
        elif error.retryable:
            self.sources.peers[fetch.peer_id].window.set_aside(now)
        else:
            self.sources.has_none(chunk_index, fetch.peer_id)
            self._checked = False
            self._relocate_at = now + 1.0
        self.order.renew()
        return actions + self._advance(now)

    def verified(self, chunk_index: int, good: bool, now: float) -> list[Action]:
        chunk = self.chunks.rows[chunk_index]
        if chunk.state is not ChunkState.VERIFYING:
            return []
        (fetch,) = chunk.fetches
        if good:
            chunk.state = ChunkState.WRITING
            return [WriteChunk(chunk_index, fetch.attempt)]
        self._note(now, "verified", chunk_index, good)
        self._checked = False
        set_apart = self.sources.sent_corrupt(chunk_index, fetch.peer_id, now)
        actions = [*self.chunks.give_up(chunk_index, fetch), ReportCorrupt(fetch.peer_id, chunk_index)]
        if set_apart:
            actions += self.chunks.take_back(fetch.peer_id)
        self.order.renew()
        return actions + self._advance(now)

    def written(self, chunk_index: int, kept: bool, now: float) -> list[Action]:
        """Verified and at its place. `kept`: its buffer is still needed (the file's digest
        will get to it soon) and counts against the budget until `freed`."""
        if self.chunks.rows[chunk_index].state is not ChunkState.WRITING:
            return []
        self.chunks.hold(chunk_index, kept)
        self.sources.unread.forget(chunk_index)
        return self._advance(now)

    def freed(self, chunk_index: int, now: float) -> list[Action]:
        """The buffer of a chunk that was `kept` is free."""
        self.chunks.free(chunk_index)
        return self._advance(now)

    def want(self, chunk_indexes: Collection[int], now: float) -> list[Action]:
        """Fetch these chunks, which counted as held until now: somebody reads them, or the whole
        file's SHA-256 was wrong and they are why."""
        self._note(now, "want", *chunk_indexes)
        if self.state in (JobState.FAILED, JobState.CANCELLED):
            return []
        self.chunks.want(chunk_indexes)
        self.order.renew()
        actions = self._enter(JobState.RUNNING, now)
        return actions + self._advance(now)

    def unwant(self, chunk_indexes: Collection[int], now: float) -> list[Action]:
        """Nobody needs these chunks any more: they count as held. What is in flight of them is
        dropped; what is being checked goes on, and is written."""
        self._note(now, "unwant", *chunk_indexes)
        actions = self.chunks.unwant(chunk_indexes)
        self.order.renew()
        return actions + self._advance(now)

    def complete(self, now: float) -> list[Action]:
        self._note(now, "complete")
        if self.state in (JobState.FAILED, JobState.CANCELLED):
            return []
        return self._enter(JobState.COMPLETE, now)

    def fail(self, error: ZchunkError, now: float) -> list[Action]:
        """Something the job cannot go on without (disk full, no permission)."""
        self._note(now, "fail", error)
        if self.state in _ENDED:
            return []
        return [*self._drop_all(), *self._enter(JobState.FAILED, now), Failed(error)]

    def pause(self, now: float) -> list[Action]:
        self._note(now, "pause")
        if self.state not in _UNDER_WAY:
            return []
        return [*self._drop_all(), *self._enter(JobState.PAUSED, now)]

    def resume(self, now: float) -> list[Action]:
        """Go on after a pause, and ask the peers that came back meanwhile."""
        self._note(now, "resume")
        going = self.state in _UNDER_WAY
        if self.state is not JobState.PAUSED and not (going and self._back):
            return []
        back, self._back = self._back, {}
        self.sources.set_up(back)
        for peer_id in back:
            self.sources.peers[peer_id].window.welcome_back(now)
        self.order.renew()
        resumed = [Resumed(peer_id) for peer_id in sorted(back)]
        return [*self._enter(JobState.RUNNING, now), *resumed, *self._advance(now)]

    def cancel(self, now: float) -> list[Action]:
        self._note(now, "cancel")
        if self.state in (JobState.COMPLETE, JobState.FAILED):
            return []
        return [*self._drop_all(), *self._enter(JobState.CANCELLED, now)]

    def on_time(self, now: float) -> list[Action]:
        """Stalled requests, ended pauses, and the safety reconcile with the tracker."""
        if self.state not in _UNDER_WAY:
            return []
        actions: list[Action] = []
        if self.sources.unread.end_pauses(now):
            self.order.renew()
        for peer_id, peer in sorted(self.sources.peers.items()):
            peer.window.end_pause(now)
            if peer.window.stalled(self._limits.stall_s, now):
                self._note(now, "stalled", peer_id)
                actions += self.chunks.take_back(peer_id)
                peer.window.set_aside(now)
                self.order.renew()
        if self._relocate_at is not None and self._relocate_at <= now:
            self._relocate_at = now + self._limits.relocate_s
            actions.append(Relocate())
        return actions + self._advance(now)

    def deadline(self) -> float | None:
        if self.state not in _UNDER_WAY:
            return None
        stall_s = self._limits.stall_s
        times = [t for peer in self.sources.peers.values() for t in peer.window.wakes_at(stall_s)]
        others = (self.hedging.deadline(), self._relocate_at, self.sources.unread.deadline())
        times += [at for at in others if at is not None]
        return min(times, default=None)

    # -- going on -------------------------------------------------------------------

    def _advance(self, now: float) -> list[Action]:
        if self.state not in _UNDER_WAY:
            return []
        actions: list[Action] = []
        while (chosen := self.order.take(now) or self.hedging.take(now)) is not None:
            actions += [self.chunks.begin(*chosen, now), *self.chunks.ask_blocks(now)]
        actions += self.chunks.ask_blocks(now)
        if self.chunks.held == len(self.chunks.rows):
            return [*actions, *self._enter(JobState.VERIFYING, now), AllHeld()]
        return actions + self._waiting_or_running(now)

    def _waiting_or_running(self, now: float) -> list[Action]:
        if self.chunks.in_work or self.order.has_work():
            return self._enter(JobState.RUNNING, now)
        if not self.chunks.wanted.isdisjoint(self.sources.unread.brief()):
            return self._enter(JobState.RUNNING, now)
        if self._removed:
            return self.fail(removed_meanwhile("the file"), now)
        unavailable = self.view.unavailable()
        if unavailable and len(unavailable) == self.chunks_count - self.chunks.held:
            if not self._checked:
                asked, self._checking = self._checking, True
                return [*self._enter(JobState.RUNNING, now), *([] if asked else [CheckRemoved()])]
            peers = sorted({p for i in unavailable for p in self.sources.struck(i)})
            return self.fail(corrupt_everywhere(len(unavailable), peers, [p[:8] for p in peers]), now)
        return self._enter(JobState.WAITING, now)

    def _drop_all(self) -> list[Action]:
        """Give up what is being fetched, to stand still or to end."""
        actions = self.chunks.take_back_all()
        self.order.renew()
        return actions

    def _enter(self, state: JobState, now: float) -> list[Action]:
        if state is self.state:
            return []
        self.state = state
        if state is JobState.WAITING:
            self.waiting_since = now
            self._relocate_at = now + self._limits.relocate_s
        elif state is JobState.RUNNING:
            self.waiting_since = None
            self._relocate_at = None
        return [StateChanged(state)]

    def _note(self, now: float, event: str, *facts: object) -> None:
        self.history.note(now, self.state.value, event, *facts)
