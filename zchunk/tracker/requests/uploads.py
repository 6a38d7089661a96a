"""Uploads: plans, which chunks are there already, what was stored, and the commit. Pure.

What may not happen here: a file committed before its chunks are stored where its put was told; space
promised to who is no member any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.content import manifest_outline
from zchunk.errors import MalformedMessage, NoSpace, NotAllowed, NotYetStored, ZchunkError
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import (
    MAX_FIND,
    MAX_FOUND_HOLDERS,
    Abandon,
    ChunksFound,
    Commit,
    Committed,
    FileRecord,
    FindChunks,
    Ok,
    Plan,
    Planned,
    Renew,
    Stored,
)
from zchunk.tracker.actions import Action, Ask, Work, is_own
from zchunk.tracker.records import file_fields
from zchunk.tracker.requests.handlers import STORING, WRITING, Handlers
from zchunk.tracker.rules.health import FileHealth
from zchunk.tracker.rules.planning import make_plan, refusal
from zchunk.tracker.rules.promises import Asker, Promises
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import Peers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.store import FoundRows, TrackerStore

#: A commit waits so long for nodes whose `stored` is still on its way.
_COMMIT_PATIENCE_S = 5.0
#: Commits that wait, and the bytes of their manifests: one large file, or many small ones.
_MAX_PARKED = 256
_MAX_PARKED_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class _ParkedCommit:
    ask: Ask
    deadline: float
    #: the asking's, in the order in which commits were asked for
    number: int


class UploadRequests:
    def __init__(
        self, peers: Peers, events: EventLog, health: FileHealth, promises: Promises, mark: StoreMark
    ) -> None:
        self._peers = peers
        self._events = events
        self._health = health
        self._promises = promises
        self._mark = mark
        #: why what nodes told last could not be stored; None where it could
        self._store_problem: ZchunkError | None = None
        #: (who, upload id) -> a commit that waits for copies
        self._parked: dict[tuple[str, str], _ParkedCommit] = {}
        self._commits = 0

    @property
    def waiting(self) -> int:
        """Commits that wait for copies."""
        return len(self._parked)

    def handlers(self) -> Handlers:
        return {
            Plan: (WRITING, self._plan),
            FindChunks: (WRITING, self._find_chunks),
            Stored: (STORING, self._stored),
            Commit: (WRITING, self._commit),
            Abandon: (WRITING, self._abandon),
            Renew: (WRITING, self._renew),
        }

    def deadline(self) -> float | None:
        return min((parked.deadline for parked in self._parked.values()), default=None)

    def advance(self, now: Now) -> list[Action]:
        """Commits that have waited long enough are answered as they stand."""
        actions: list[Action] = []
        for key, parked in list(self._parked.items()):
            if parked.deadline <= now.mono:
                del self._parked[key]
                actions.append(self._commit_work(parked.ask, now.mono, parked.number))
        return actions

    # -- before -----------------------------------------------------------------------

    def _plan(self, ask: Ask, now: Now) -> list[Action]:
        plan: Plan = ask.message
        online = self._peers.online()
        unsure = self._peers.unsure(plan.avoid)
        unsure_s = max(0.0, self._peers.liveness.unsure_until() - now.mono)
        asker = Asker(
            plan.upload_id,
            ask.peer_id,
            ask.sender.connection,
            plan.size,
            plan.chunk_size,
            anew=not len(plan.only),
        )
        taken = self._promises.taken(asker, {record.peer_id: record.free for record in online}, now.mono)
        loads = dict(self._peers.loads)

        def run(store: TrackerStore) -> tuple[Planned, dict[str, int]]:
            store.check_space()  # what could not be committed is not begun
            return make_plan(plan, online, taken, loads)

        def then(result: tuple[Planned, dict[str, int]], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(refusal(error, unsure, unsure_s))
            planned, wanted = result
            try:
                self._peers.member(ask)
            except NotAllowed as revoked_meanwhile:
                return ask.refuse(revoked_meanwhile)
            self._promises.add(asker, wanted, now.mono)
            return ask.reply(planned)

        return [Work(run, then)]

    def _find_chunks(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)
        if len(hashes) > MAX_FIND:
            raise MalformedMessage(f"the request is about {len(hashes)} chunks, more than {MAX_FIND}")
        live = self._peers.live()

        def found(rows: FoundRows, _: Now) -> list[Action]:
            return ask.reply(
                ChunksFound(
                    peers=self._peers.named(rows.peer_ids),
                    holder_counts=rows.holder_counts,
                    holder_peers=rows.holder_peers,
                )
            )

        return ask.work(lambda store: store.find_chunks(hashes, live, MAX_FOUND_HOLDERS), found, reads=True)

    # -- under way --------------------------------------------------------------------

    def _stored(self, ask: Ask, now: Now) -> list[Action]:
        stored: Stored = ask.message
        hashes = split_hashes(stored.hashes)
        self._promises.stored(stored.upload_id, ask.peer_id, len(hashes), now.mono)

        def run(store: TrackerStore) -> list[str]:
            added = store.add_holdings(ask.peer_id, hashes, store.now_ms())
            return store.files_of(hashes) if added else []

        def then(file_ids: list[str], error: ZchunkError | None, now: Now) -> list[Action]:
            self._store_problem = error if error is not None and is_own(error) else None
            if error is not None:
                return ask.refuse(error)
            self._health.gained(file_ids, now.mono)
            return ask.reply(Ok()) + self.retry()

        return [Work(run, then)]

    def _abandon(self, ask: Ask, now: Now) -> list[Action]:
        self._promises.abandon(ask.message.upload_id, ask.peer_id, now.mono)
        return ask.reply(Ok())

    def _renew(self, ask: Ask, now: Now) -> list[Action]:
        self._promises.renew(ask.message.upload_id, ask.peer_id, ask.sender.connection, now.mono)
        return ask.reply(Ok())

    # -- the commit -------------------------------------------------------------------

    def _commit(self, ask: Ask, now: Now) -> list[Action]:
        # Asked again while it waits, it waits no longer for that.
        parked = self._parked.get((ask.peer_id, ask.message.upload_id))
        # Holders, too, that have not said hello to a tracker that has just started are on their way.
        patience_ends = max(now.mono + _COMMIT_PATIENCE_S, self._peers.liveness.unsure_until())
        patience_ends = patience_ends if parked is None else parked.deadline
        self._commits += 1
        return [self._commit_work(ask, patience_ends, self._commits)]

    def _commit_work(self, ask: Ask, patience_ends: float, number: int) -> Work:
        """`number` is that of the asking: of two that wait for one upload the later is answered."""
        commit: Commit = ask.message
        live = self._peers.live()

        def run(store: TrackerStore) -> tuple[FileRecord, bool, int]:
            record, already = store.commit_file(
                manifest_outline.read(commit.manifest, commit.file_id),
                replicas=commit.replicas,
                min_peers=commit.min_peers,
                distributed=commit.distribute,
                live=live,
                now_ms=store.now_ms(),
            )
            return record, already, store.commit_number

        def then(result: tuple[FileRecord, bool, int], error: ZchunkError | None, later: Now) -> list[Action]:
            if error is not None:
                return self._not_committed(ask, error, _ParkedCommit(ask, patience_ends, number), later)
            record, already, self._mark.commit_number = result
            self._promises.committed(commit.upload_id, later.mono)
            self._health.changed([record.file_id], later.mono)
            actions = ask.reply(Committed(file=record, already=already))
            if not already:
                actions.append(self._events.publish("file.distributed", file_fields(record), later))
            return actions

        return Work(run, then)

    def _not_committed(self, ask: Ask, error: ZchunkError, again: _ParkedCommit, now: Now) -> list[Action]:
        """Refused, or parked as `again`."""
        if not isinstance(error, NotYetStored):
            return ask.refuse(error)
        if isinstance(self._store_problem, NoSpace):
            return ask.refuse(self._store_problem)
        if now.mono < again.deadline and self._may_park(ask):
            # Some node's `stored` is on its way here: try again when one arrives.
            key = (ask.peer_id, ask.message.upload_id)
            waits = self._parked.get(key)
            if waits is None or waits.number < again.number:
                self._parked[key] = again
            return []
        # Its nodes have told, and it could not be kept; or they have not.
        return ask.refuse(self._store_problem or error)

    def _may_park(self, ask: Ask) -> bool:
        """Whether there is room for one that waits; else it is refused as it would be later."""
        held = [p.ask for p in self._parked.values() if p.ask.peer_id == ask.peer_id]
        mine = sum(len(other.message.manifest) for other in held)
        of_all = sum(len(p.ask.message.manifest) for p in self._parked.values())
        room = len(ask.message.manifest) + max(of_all, 2 * mine) <= _MAX_PARKED_BYTES
        return room and len(self._parked) < _MAX_PARKED and len(held) < _MAX_PARKED // 2

    def retry(self) -> list[Action]:
        """Commits that wait are tried again: a copy came, or a peer."""
        parked, self._parked = self._parked, {}
        return [self._commit_work(p.ask, p.deadline, p.number) for p in parked.values()]
