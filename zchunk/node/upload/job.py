"""The upload job: which chunk to read, whom to offer it, what to send, when all is safe. Pure.

What may not happen here: `AllStored` while a chunk has fewer live copies than asked; an upload that
stands still while something could be done for it.

Events come in through the methods, with the monotonic time; each returns the actions (actions.py)
for the shell (`runner.py`) to carry out in order. What it is made of: `Copies` (where each chunk's
copies are, and what is on its way), `Reading` (which chunk is read next), `Finding` (who has it
already), `Plans` (new places for chunks that need some).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from zchunk.errors import IllegalEvent, ZchunkError
from zchunk.node.bulk.history import History
from zchunk.node.upload.actions import (
    Action,
    AllStored,
    Failed,
    Limits,
    Resumed,
    StateChanged,
    UploadState,
)
from zchunk.node.upload.copies import Copies, Memory
from zchunk.node.upload.finding import Finding
from zchunk.node.upload.plans import ROOM_S, Plans
from zchunk.node.upload.reading import Reading

#: Errors by which a peer says that it can take nothing; after others it is tried again.
CANNOT = frozenset({"no_space", "storage_failure", "store_offline", "not_allowed"})
#: ... that it cannot for now: it is tried once more after a pause, then others take its chunks.
_FOR_NOW = "storage_unavailable"

_UNDER_WAY = (UploadState.RUNNING, UploadState.WAITING)


class UploadJob:
    def __init__(
        self,
        *,
        sizes: Sequence[int],
        assignment: Sequence[Collection[str]],
        replicas: int,
        min_peers: int,
        up: Mapping[str, int],
        limits: Limits,
        unreachable: Collection[str] = (),
        undivided: bool = False,
        own_peer: str | None = None,
    ) -> None:
        """`assignment`: the plan's peer ids per chunk. `min_peers`: on how many different
        peers the file is to lie. `up`: peer id -> incarnation; `unreachable`: those that
        cannot be reached from here. An `undivided` file has the same places for every chunk
        (SPEC U1); from `own_peer` it is not taken away."""
        self.state = UploadState.RUNNING
        #: its last transitions, for people
        self.history = History()
        self.copies = Copies(sizes, assignment, replicas, limits)
        self.plans = Plans(self.copies)
        self.finding = Finding(
            self.copies,
            self.plans,
            replicas=replicas,
            min_peers=min_peers,
            undivided=undivided,
            own_peer=own_peer,
        )
        self.reading = Reading(self.copies, limits.budget)
        self._stall_s = limits.stall_s
        self._started = False
        self.know(up=up, unreachable=unreachable)

    def know(self, *, up: Mapping[str, int], unreachable: Collection[str]) -> None:
        """Before `start`: what was not known yet when the job was made."""
        if self._started:
            raise IllegalEvent("what is known, after the start", self.history)
        self.copies.up.update(up)
        self.copies.refused.update(unreachable)

    # -- what is known --------------------------------------------------------------

    @property
    def chunks_count(self) -> int:
        return len(self.copies.rows)

    @property
    def chunks_completed(self) -> int:
        return len(self.copies.done)

    @property
    def bytes_sent(self) -> int:
        """See `Copies`."""
        return self.copies.bytes_sent

    @property
    def begun_bytes(self) -> int:
        return self.reading.begun_bytes

    def holders(self, index: int) -> list[str]:
        """Peers that store the chunk and are up."""
        return self.copies.live(self.copies.rows[index])

    def all_holders(self) -> list[str]:
        """Every peer that stores some chunk and is up, sorted."""
        return sorted({p for chunk in self.copies.rows for p in self.copies.live(chunk)})

    def places(self) -> list[list[str]]:
        """Per chunk the peers that have, or will get, a copy as things stand."""
        return [self.copies.kept(chunk) for chunk in self.copies.rows]

    def waits_for_turn(self, busy: Collection[str]) -> dict[str, int]:
        """See `JobDriver`'s `Job`."""
        return {} if self.finding.busy else self.copies.waits_for_turn(busy)

    @property
    def blocked(self) -> ZchunkError | None:
        """Why there are no places for some chunks, while that is so."""
        return self.plans.blocked

    @property
    def refusing(self) -> list[str]:
        """Peers that are up and take nothing, sorted."""
        return sorted(self.copies.refused & self.copies.up.keys())

    # -- events ---------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        self._note(now, "start")
        self._started = True
        return self._advance(now)

    def read(self, index: int, now: float, twin: int | None = None) -> list[Action]:
        """The chunk is in memory and hashed. `twin`: the one of the same bytes that was
        hashed first, if that is another."""
        chunk = self.copies.rows[index]
        if chunk.memory is not Memory.READING:
            return []
        chunk.memory, chunk.holders, chunk.twin = Memory.READY, None, twin
        return self._advance(now)

    def found(self, chunks: Sequence[int], holders: Sequence[Sequence[str]], now: float) -> list[Action]:
        """Who holds these chunks, as far as the tracker knows."""
        if self.finding.found(chunks, holders, now):
            self._look_again()
        return self._advance(now)

    def not_found(self, chunks: Sequence[int], now: float) -> list[Action]:
        """The tracker did not say: these chunks, and others for a while, go as planned."""
        self._note(now, "not_found", len(chunks))
        self.finding.failed(now)
        return self.found(chunks, [()] * len(chunks), now)

    def digested(self, index: int, now: float) -> list[Action]:
        """The file's running digest has taken the chunk in."""
        self.copies.rows[index].digested = True
        return self._advance(now)

    def offered(self, peer_id: str, index: int, attempt: int, have: bool, now: float) -> list[Action]:
        return self._advance(now) if self.copies.offered(peer_id, index, attempt, have) else []

    def taken(
        self, peer_id: str, index: int, attempt: int, offset: int, stored: bool, now: float
    ) -> list[Action]:
        """A block was answered; `stored` with the one that completed the chunk."""
        counts = self.copies.taken(peer_id, index, attempt, offset, stored, now)
        return self._advance(now) if counts else []

    def refused(self, peer_id: str, index: int, attempt: int, error: ZchunkError, now: float) -> list[Action]:
        """An offer or a block was answered with an error, or the link broke. The peer is
        given nothing more where it says that it cannot (no space, store broken), or a second
        time that it cannot for now."""
        if not self.copies.is_on_the_way(peer_id, index, attempt):
            return []
        self._note(now, "refused", peer_id, index, error)
        self.copies.withdraw(peer_id, index)
        window = self.copies.window(peer_id)
        if error.code in CANNOT or (error.code == _FOR_NOW and window.fails_again(now)):
            self.copies.refused.add(peer_id)
            self._look_again()
        else:
            window.set_aside(now)
            self.copies.plan_again(peer_id, self.copies.rows[index])
        return self._advance(now)

    def peer_up(self, peer_id: str, incarnation: int, now: float) -> list[Action]:
        """Its stored copies count again; what was on its way to an older start is void."""
        self._note(now, "peer_up", peer_id, incarnation)
        if self.copies.up.get(peer_id) == incarnation:
            return []
        if peer_id in self.copies.up:
            self.copies.void(peer_id)
        self.copies.up[peer_id] = incarnation
        return self._arrived(peer_id, now)

    def peer_down(self, peer_id: str, now: float) -> list[Action]:
        self._note(now, "peer_down", peer_id)
        if self.copies.up.pop(peer_id, None) is None:
            return []
        self.copies.void(peer_id)
        self._look_again()
        # Also after `AllStored`: before the commit a copy may still be lost.
        reopened = self._enter(UploadState.RUNNING) if self.state is UploadState.STORED else []
        return reopened + self._advance(now)

    def peer_reach(self, peer_id: str, reachable: bool, now: float) -> list[Action]:
        """A peer that is up cannot be reached from here, or can again: until then its chunks
        go elsewhere. What it stored counts all the same."""
        self._note(now, "peer_reach", peer_id, reachable)
        if reachable:
            return self._arrived(peer_id, now)
        self.copies.refused.add(peer_id)
        self.copies.void(peer_id)
        self._look_again()
        return self._advance(now)

    def _arrived(self, peer_id: str, now: float) -> list[Action]:
        resumed: list[Action] = [Resumed(peer_id)] if self.state is UploadState.WAITING else []
        self.copies.refused.discard(peer_id)
        self.copies.window(peer_id).welcome_back(now)
        self.plans.arrived()
        self._look_again()
        return resumed + self._advance(now)

    def replanned(self, chunks: Sequence[int], peers: Sequence[Collection[str]], now: float) -> list[Action]:
        self._note(now, "replanned", len(chunks))
        self.plans.planned(chunks, peers)
        self._look_again()
        for index in chunks:
            self.finding.go_to_holders(index, now)
        return self._advance(now)

    def not_replanned(self, chunks: Collection[int], error: ZchunkError, now: float) -> list[Action]:
        """With too few peers left the job waits for the event that brings one."""
        self._note(now, "not_replanned", len(chunks), error)
        if not self.plans.refused(chunks, error, now):
            return self.fail(error, now)
        return self._advance(now)

    def doubted(self, chunks: Collection[int] | None, now: float) -> list[Action]:
        """After `AllStored`: the tracker does not know of all copies. Those of `chunks`, or
        all, are offered again: a node that has one says so to both, one that lost it is sent it."""
        self._note(now, "doubted", chunks)
        if self.state is not UploadState.STORED:
            return []
        self.copies.doubt(range(self.chunks_count) if chunks is None else chunks)
        return self._reopened(now)

    def given_up(self, peer_id: str, now: float) -> list[Action]:
        """After `AllStored`: the peer cannot keep the file after all, so its copies do not count."""
        self._note(now, "given_up", peer_id)
        if self.state is not UploadState.STORED:
            return []
        self.copies.give_up(peer_id)
        return self._reopened(now)

    def _reopened(self, now: float) -> list[Action]:
        self._look_again()
        return [*self._enter(UploadState.RUNNING), *self._advance(now)]

    def fail(self, error: ZchunkError, now: float) -> list[Action]:
        self._note(now, "fail", error)
        if self.state in (UploadState.FAILED, UploadState.STORED):
            return []
        return [*self._enter(UploadState.FAILED), Failed(error)]

    def on_time(self, now: float) -> list[Action]:
        for peer_id, window in sorted(self.copies.windows.items()):
            window.end_pause(now)
            if window.stalled(self._stall_s, now):
                self._note(now, "stalled", peer_id)
                self.copies.void(peer_id)
                window.set_aside(now)
        if self.waits_for_room() and self.plans.room_at <= now:
            self._note(now, "look_for_room")
            self.plans.look_for_room(now)
            self._look_again()
        return self._advance(now)

    def waits_for_room(self) -> bool:
        return self.state is UploadState.WAITING and self.plans.waits_for_room()

    def deadline(self) -> float | None:
        if self.state not in _UNDER_WAY:
            return None
        windows = self.copies.windows.values()
        times = [t for window in windows for t in window.wakes_at(self._stall_s)]
        if self.waits_for_room():
            times.append(self.plans.room_at)
        return min(times, default=None)

    # -- going on -------------------------------------------------------------------

    def _advance(self, now: float) -> list[Action]:
        if self.state not in _UNDER_WAY:
            return []
        copies = self.copies
        actions = [*self.reading.release_done(), *self.plans.ask(), *self.reading.read_more()]
        actions += self.finding.ask(now)
        for index in sorted(copies.active):
            actions += copies.offer(index, now)
            actions += copies.send(index, now)
        if len(copies.done) == len(copies.rows) and not copies.active:
            return [*actions, *self._enter(UploadState.STORED), AllStored()]
        waiting = self.plans.blocked is not None and not (self.finding.busy or copies.is_moving())
        if waiting and self.state is not UploadState.WAITING:
            self.plans.room_at = now + ROOM_S  # it may have been blocked for long while it moved
        return actions + self._enter(UploadState.WAITING if waiting else UploadState.RUNNING)

    def _look_again(self) -> None:
        """Peers or places changed: recount what is done, what must be read again."""
        self.finding.places_changed()
        self.copies.recount()
        self.reading.look_again()

    def _enter(self, state: UploadState) -> list[Action]:
        if state is self.state:
            return []
        self.state = state
        return [StateChanged(state)]

    def _note(self, now: float, event: str, *facts: object) -> None:
        self.history.note(now, self.state.value, event, *facts)
