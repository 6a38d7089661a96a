"""Who is there: hello, inventory, heartbeats, goodbye, and the snapshot of it. Pure.

What may not happen here: a peer told to be up before what it holds is in the store.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zchunk.clock import Now
from zchunk.errors import HelloFirst, MalformedMessage, ZchunkError
from zchunk.protocol.messages import (
    MAX_ADDRESS,
    Beat,
    GetSnapshot,
    Goodbye,
    Heartbeat,
    Hello,
    Inventory,
    Ok,
    PeerRecord,
    Snapshot,
    Welcome,
)
from zchunk.system.addresses import announced, unmapped
from zchunk.system.addresses import parse as parse_address
from zchunk.tracker.actions import Action, Ask, Work
from zchunk.tracker.records import peer_fields, save
from zchunk.tracker.requests.handlers import READING, STORING, Handlers
from zchunk.tracker.requests.inventories import Inventories
from zchunk.tracker.rules.health import FileHealth
from zchunk.tracker.rules.liveness import Change, Life
from zchunk.tracker.rules.promises import Promises
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import OFFLINE, Peers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.store import InventoryChange, TrackerStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    heartbeat_s: float
    lease_s: float


class Presence:
    def __init__(
        self,
        peers: Peers,
        events: EventLog,
        health: FileHealth,
        promises: Promises,
        mark: StoreMark,
        timing: Timing,
        events_at: tuple[str, ...],
        retry_commits: Callable[[], list[Action]],
    ) -> None:
        """`events_at` is where PUB listens; `retry_commits`: those that wait, once a peer came or went."""
        self.events_at = events_at
        self.inventories = Inventories()
        self._peers = peers
        self._liveness = peers.liveness
        self._events = events
        self._health = health
        self._promises = promises
        self._mark = mark
        self._timing = timing
        self._retry_commits = retry_commits
        #: nodes of which it was said that they hold chunks of files that are not known here
        self._strange: set[str] = set()

    def handlers(self) -> Handlers:
        return {
            Hello: (STORING, self._hello),
            Inventory: (STORING, self._inventory),
            Heartbeat: (READING, self._heartbeat),
            Goodbye: (STORING, self._goodbye),
            GetSnapshot: (READING, self._snapshot),
        }

    # -- hello ------------------------------------------------------------------------

    def _hello(self, ask: Ask, now: Now) -> list[Action]:
        hello: Hello = ask.message
        # First what may be refused: a life without a record would be nobody's.
        record = self._hello_record(ask, now)
        hail = self._liveness.hello(
            ask.peer_id, hello.incarnation, ask.sender.connection, now.mono, hello.instance
        )
        arriving, renumbered = hail.arriving, hail.incarnation != hello.incarnation
        before = self._peers.records.get(ask.peer_id)
        record = replace(
            record,
            incarnation=hail.incarnation,
            status="down" if arriving or before is None else before.status,
            unsure=arriving,
            files_unknown=record.files_unknown if before is None else before.files_unknown,
        )
        self._peers.records[ask.peer_id] = record

        def run(store: TrackerStore) -> tuple[int, bytes]:
            save(store, record, left=False)
            return store.inventory_summary(ask.peer_id)

        def registered(known: tuple[int, bytes], now: Now) -> list[Action]:
            # A home that was put back may say of itself what was true when it was copied.
            differs = renumbered or known != (hello.chunks, bytes(hello.inventory_digest))
            answer = ask.reply(self._welcome(record, inventory_wanted=differs))
            if not arriving:
                answer += self._updated(record, before, now)
            if differs:
                self.inventories.begin(ask.peer_id, hail.incarnation)
                return answer
            return answer + self._arrived(ask.peer_id, hail.incarnation, now)

        return ask.work(run, registered)

    def _hello_record(self, ask: Ask, now: Now) -> PeerRecord:
        hello: Hello = ask.message
        member = self._peers.member(ask)
        return PeerRecord(
            peer_id=ask.peer_id,
            name=member.name,
            role="node",
            status="down",
            incarnation=hello.incarnation,
            endpoints=_endpoints(hello, ask.sender.address),
            capacity=hello.capacity,
            free=hello.free,
            chunks=hello.chunks,
            last_seen_ms=now.wall_ms,
            public_key=member.public_key.hex(),
            refuses=hello.refuses,
        )

    def _welcome(self, record: PeerRecord, inventory_wanted: bool) -> Welcome:
        return Welcome(
            epoch=self._events.epoch,
            seq=self._events.seq,
            heartbeat_interval_s=self._timing.heartbeat_s,
            lease_s=self._timing.lease_s,
            store_id=self._mark.store_id,
            commit_number=self._mark.commit_number,
            endpoints=record.endpoints,
            inventory_wanted=inventory_wanted,
            incarnation=record.incarnation,
        )

    def _updated(self, record: PeerRecord, before: PeerRecord | None, now: Now) -> list[Action]:
        """A node that was up said hello again: news only when its address changed, or whether it
        takes chunks."""
        if before is not None and (before.endpoints, before.refuses) == (record.endpoints, record.refuses):
            return []
        return [self._events.publish("peer.updated", peer_fields(record), now)]

    def _inventory(self, ask: Ask, now: Now) -> list[Action]:
        if self._liveness.connection(ask.peer_id) != ask.sender.connection:
            raise HelloFirst("unexpected inventory; say hello first")
        pages = self.inventories.take(ask.peer_id, ask.message)
        if pages is None:
            return ask.reply(Ok())

        def run(store: TrackerStore) -> InventoryChange:
            return store.replace_inventory(ask.peer_id, pages.hashes(), store.now_ms())

        def replaced(change: InventoryChange, now: Now) -> list[Action]:
            if change.added or change.lost:
                self._health.peers_changed(now.mono)
            self.inventories.end(ask.peer_id, pages)
            return ask.reply(Ok()) + self._arrived(ask.peer_id, pages.incarnation, now)

        return ask.work(run, replaced)

    def _arrived(self, peer_id: str, incarnation: int, now: Now) -> list[Action]:
        """A node that is told that it is registered is up for everyone. Its hello has kept it in the
        store already."""
        changes = self._liveness.arrived(peer_id, incarnation, now.mono)
        return [action for change in changes for action in self._told(change, now)]

    # -- heartbeats -------------------------------------------------------------------

    def _heartbeat(self, ask: Ask, now: Now) -> list[Action]:
        beat: Heartbeat = ask.message
        self._promises.heard(ask.sender.connection, now.mono)
        news: list[Action] = []
        if self._peers.member(ask).role == "node" and beat.incarnation:
            news = self._node_beat(ask, beat, now)
        return [*news, *ask.reply(Beat(epoch=self._events.epoch, seq=self._events.seq))]

    def _node_beat(self, ask: Ask, beat: Heartbeat, now: Now) -> list[Action]:
        known = self._liveness.beat(ask.peer_id, beat.incarnation, ask.sender.connection, now.mono)
        if not known:
            raise HelloFirst("say hello first")
        self._peers.loads[ask.peer_id] = beat.load
        self._peers.records.heard(ask.peer_id, beat.free, beat.chunks, now.wall_ms)
        news = self._store_beat(ask.peer_id, beat.store_online, now)
        news += self._unknown_beat(ask.peer_id, beat.files_unknown, now)
        return news + self._refusing_beat(ask.peer_id, beat.refuses, now)

    def _store_beat(self, peer_id: str, online: bool, now: Now) -> list[Action]:
        """A node's disk was unplugged, or is back (SPEC R8)."""
        records = self._peers.records
        before, status = records.status(peer_id), "up" if online else OFFLINE
        if before == status or before not in ("up", OFFLINE):
            return []
        record = records[peer_id] = replace(records[peer_id], status=status)
        self._health.peers_changed(now.mono)
        return [self._events.publish("peer.updated", peer_fields(record), now)]

    def _unknown_beat(self, peer_id: str, files_unknown: int, now: Now) -> list[Action]:
        """A node holds chunks of files that this tracker does not know, or not of as many any more."""
        records = self._peers.records
        if files_unknown == records.files_unknown(peer_id):
            return []
        record = records[peer_id] = replace(records[peer_id], files_unknown=files_unknown)
        if record.files_unknown and record.peer_id not in self._strange:
            self._strange.add(record.peer_id)
            log.error(
                "%s holds chunks of %d files that this tracker does not know: its database was lost, replaced"
                " or restored from an older copy; restore the newest copy, or upload the files again",
                record.name,
                record.files_unknown,
            )
        return [self._events.publish("peer.updated", peer_fields(record), now)]

    def _refusing_beat(self, peer_id: str, refuses: str, now: Now) -> list[Action]:
        """A node takes no chunks any more, or takes them again."""
        records = self._peers.records
        if refuses == records.refuses(peer_id):
            return []
        record = records[peer_id] = replace(records[peer_id], refuses=refuses)
        return [self._events.publish("peer.updated", peer_fields(record), now)]

    # -- who came and went ------------------------------------------------------------

    def _goodbye(self, ask: Ask, now: Now) -> list[Action]:
        changes = self._liveness.goodbye(ask.peer_id, ask.message.incarnation, now.mono)
        return self.gone(changes, now, ask.reply(Ok())) if changes else ask.reply(Ok())

    def gone(self, changes: Sequence[Change], now: Now, answer: Sequence[Action] = ()) -> list[Action]:
        """Peers went: keep that in the store, then give `answer` and publish it."""
        return [self._gone(change, answer) for change in changes]

    def _gone(self, change: Change, answer: Sequence[Action]) -> Work:
        left = change.life is Life.LEFT
        saved = replace(self._peers.records[change.peer_id], status="left" if left else "down", unsure=False)
        self._peers.untold[change.peer_id] += 1
        self.inventories.drop(change.peer_id)

        def run(store: TrackerStore) -> None:
            save(store, saved, left=left)

        def then(_: None, error: ZchunkError | None, now: Now) -> list[Action]:
            # A store that cannot write must not hide that a peer went.
            self._peers.untold -= Counter([change.peer_id])
            return [*answer, *self._told(change, now)]

        return Work(run, then)

    def _told(self, change: Change, now: Now) -> list[Action]:
        """The record changes in the turn of its event: a snapshot is true as of one `seq`."""
        status = {Life.UP: "up", Life.LEFT: "left"}.get(change.life, "down")
        # It may be saying hello again by now.
        unsure = status == "down" and change.peer_id in self._liveness.unsure()
        record = replace(self._peers.records[change.peer_id], status=status, unsure=unsure)
        record = self._peers.show(record)
        topic = "peer.up" if change.life is Life.UP else "peer.down"
        event = self._events.publish(topic, peer_fields(record, reason=change.reason), now)
        self._health.peers_changed(now.mono)
        return [event, *self._retry_commits()]

    def _snapshot(self, ask: Ask, now: Now) -> list[Action]:
        records = self._peers.named(sorted(self._peers.records))
        return ask.reply(
            Snapshot(
                epoch=self._events.epoch,
                seq=self._events.seq,
                events=self.events_at,
                peers=records,
                unsure=tuple(self._peers.undecided()),
            )
        )


def _endpoints(hello: Hello, address: str | None) -> tuple[str, ...]:
    """Where others reach a node that says hello from `address`."""
    endpoints = announced(
        bound=hello.bound,
        port=hello.port,
        advertise=hello.advertise,
        seen_from=unmapped(address) if address else None,
        interfaces=hello.interfaces,
    )
    for endpoint in endpoints:
        parse_address(endpoint)  # others would fail to connect: refused as InvalidUsage here
    if max(map(len, endpoints)) > MAX_ADDRESS:
        raise MalformedMessage("the hello has an address that is too long")
    return endpoints
