"""Copies that were lost, found whole or reported as damaged (SPEC D8), and members that keep a
node's memory. Pure.

What may not happen here: a copy that no longer counts for one member's word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.errors import InvalidUsage, ZchunkError
from zchunk.limits.rate_limit import RateLimit
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import MAX_DOUBTS, Doubts, GetDoubts, Lost, Ok, ReportCorrupt, ReportHeld, Whole
from zchunk.tracker.actions import Action, Ask, Work
from zchunk.tracker.records import corrupt_fields, held_fields
from zchunk.tracker.requests.handlers import STORING, WRITING, Handlers
from zchunk.tracker.rules.health import FileHealth
from zchunk.tracker.rules.reports import ENOUGH, CorruptReports
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import Peers

if TYPE_CHECKING:
    from zchunk.tracker.store.store import TrackerStore

log = logging.getLogger(__name__)

#: Of one node's reports of members that keep its memory, so many are told at once, and then so
#: many a second.
_HELD_AT_ONCE = 10
_HELD_PER_S = 0.1


class DamageRequests:
    def __init__(
        self,
        peers: Peers,
        events: EventLog,
        health: FileHealth,
        retry_commits: Callable[[], list[Action]],
    ) -> None:
        self._peers = peers
        self._events = events
        self._health = health
        self._retry_commits = retry_commits
        self._corrupt = CorruptReports()
        #: events about memory that somebody keeps, of each node
        self._held_told = RateLimit(_HELD_AT_ONCE, _HELD_PER_S)

    def handlers(self) -> Handlers:
        return {
            Lost: (STORING, self._lost),
            GetDoubts: (STORING, self._doubts),
            Whole: (STORING, self._whole),
            ReportCorrupt: (WRITING, self._report_corrupt),
            ReportHeld: (STORING, self._report_held),
        }

    def _lost(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> list[str]:
            return store.files_of(hashes) if store.drop_holdings(ask.peer_id, hashes) else []

        def dropped(file_ids: list[str], now: Now) -> list[Action]:
            self._corrupt.settle(ask.peer_id, hashes)
            self._health.changed(file_ids, now.mono)
            return ask.reply(Ok())

        return ask.work(run, dropped)

    def _whole(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> list[str]:
            return store.files_of(store.mark_whole(ask.peer_id, hashes))

        def marked(file_ids: list[str], now: Now) -> list[Action]:
            self._corrupt.settle(ask.peer_id, hashes)
            self._health.gained(file_ids, now.mono)
            return ask.reply(Ok()) + self._retry_commits()

        return ask.work(run, marked)

    def _doubts(self, ask: Ask, now: Now) -> list[Action]:
        def found(marked: list[bytes], _: Now) -> list[Action]:
            hashes = sorted({*marked, *self._corrupt.open_at(ask.peer_id)})
            return ask.reply(Doubts(hashes=b"".join(hashes[:MAX_DOUBTS])))

        return ask.work(lambda store: store.unavailable_on(ask.peer_id, MAX_DOUBTS), found)

    # -- reports ----------------------------------------------------------------------

    def _report_corrupt(self, ask: Ask, now: Now) -> list[Action]:
        """Tell the cluster once for each member; the named node hears it and checks itself."""
        report: ReportCorrupt = ask.message
        if report.peer_id == ask.peer_id:
            raise InvalidUsage("a node cannot report its own copy as corrupt; use `lost`")
        self._corrupt.check(ask.peer_id)

        def looked_up(counts: bool, now: Now) -> list[Action]:
            return ask.reply(Ok()) + (self._reported(ask.peer_id, report, now) if counts else [])

        return ask.work(lambda store: store.counts_on(report.peer_id, report.sha256), looked_up)

    def _reported(self, member: str, report: ReportCorrupt, now: Now) -> list[Action]:
        members = self._corrupt.add(member, report.peer_id, report.sha256)
        if not members:
            return []
        fields = corrupt_fields(member, report, members)
        told: list[Action] = [self._events.publish("chunk.corrupt", fields, now)]
        return told if members < ENOUGH else [*told, self._unavailable_work(report)]

    def _unavailable_work(self, report: ReportCorrupt) -> Work:
        def run(store: TrackerStore) -> list[str]:
            marked = store.mark_unavailable(report.peer_id, report.sha256)
            return store.files_of([report.sha256]) if marked else []

        def then(file_ids: list[str], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                log.warning("a copy that two members reported corrupt could not be marked: %s", error.message)
                return []
            self._health.changed(file_ids, now.mono)
            return []

        return Work(run, then)

    def _report_held(self, ask: Ask, now: Now) -> list[Action]:
        report: ReportHeld = ask.message
        if not self._held_told.take(ask.peer_id, now.mono):
            return ask.reply(Ok())
        fields = held_fields(self._peers.member(ask), report, self._peers.listed.member(report.member))
        return [*ask.reply(Ok()), self._events.publish("budget.held", fields, now)]
