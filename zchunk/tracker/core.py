"""What the tracker decides: a request and the time in, actions out. Pure.

What may not happen here: a reply or an event before the commit that it tells of; a
`seq` given out of order; an answer to a sender who is no member, or whose role does
not go that far; a block of the control loop (everything that touches the store or
grows with a file's size is `Work`, done in the store's thread).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from msgspec.structs import replace

from zchunk import outline
from zchunk.addresses import announced, unmapped
from zchunk.addresses import parse as parse_address
from zchunk.clock import Now
from zchunk.errors import (
    Busy,
    HelloFirst,
    InvalidUsage,
    MalformedMessage,
    NoSpace,
    NotAllowed,
    NotYetStored,
    UnknownMessage,
    ZchunkError,
)
from zchunk.protocol.columns import MAX_HASHES, split_hashes
from zchunk.protocol.messages import (
    MAX_ADDRESS,
    MAX_DOUBTS,
    MAX_FIND,
    MAX_FOUND_HOLDERS,
    Abandon,
    Beat,
    CheckFiles,
    CheckKey,
    ChunksFound,
    Commit,
    Committed,
    Doubts,
    Event,
    EventList,
    EventRecord,
    FileRecord,
    Files,
    FilesFound,
    FilesUnknown,
    FindChunks,
    FindFiles,
    GetDoubts,
    GetEvents,
    GetMembers,
    GetRemovals,
    GetSnapshot,
    Goodbye,
    Heartbeat,
    Hello,
    Inventory,
    Join,
    Joined,
    KeyKnown,
    ListFiles,
    Locate,
    Located,
    Lost,
    Members,
    Message,
    Ok,
    PeerRecord,
    Plan,
    Planned,
    Release,
    Released,
    Removals,
    Remove,
    Removed,
    Renew,
    ReportCorrupt,
    ReportHeld,
    Request,
    RotateKey,
    Snapshot,
    Stored,
    Welcome,
    Whole,
)
from zchunk.ratelimit import RateLimit
from zchunk.tracker.actions import Action, Ask, CutOff, Publish, Sender, Work, is_own
from zchunk.tracker.health import Counted, FileHealth
from zchunk.tracker.joinlimit import JoinLimit
from zchunk.tracker.liveness import Change, Life, Liveness
from zchunk.tracker.membership import Member, Membership
from zchunk.tracker.peerrecords import PeerRecords
from zchunk.tracker.planning import make_plan, refusal
from zchunk.tracker.promises import Asker, Promises
from zchunk.tracker.records import (
    file_fields,
    health_fields,
    held_fields,
    member_fields,
    member_record,
    peer_fields,
    restored,
    save,
)
from zchunk.tracker.reports import ENOUGH, CorruptReports
from zchunk.tracker.store import FoundRows, InventoryChange, LocatedRows, StoredPeer, TrackerStore

log = logging.getLogger(__name__)

#: Events kept for `--since` and for subscribers with a gap.
HISTORY = 10_000
#: Events in one answer.
_EVENTS_PAGE = 500
_TICK_S = 1.0
_MEMBERS_PAGE = 1_000
#: A commit waits so long for nodes whose `stored` is still on its way.
_COMMIT_PATIENCE_S = 5.0
#: the status of a node that is there without its disk
_OFFLINE = "offline-store"
_MAX_INVENTORY_BYTES = 32 * 4_000_000
#: Of one node's reports of members that keep its memory, so many are told at once, and then so
#: many a second.
_HELD_AT_ONCE = 10
_HELD_PER_S = 0.1
#: Commits that wait, and the bytes of their manifests: one large file, or many small ones.
_MAX_PARKED = 256
_MAX_PARKED_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timing:
    heartbeat_s: float
    lease_s: float


@dataclass(slots=True)
class _ParkedCommit:
    ask: Ask
    deadline: float
    #: the asking's, in the order in which commits were asked for
    number: int


@dataclass(slots=True)
class _Inventory:
    """Pages of a node's inventory as they come in."""

    incarnation: int
    next_page: int = 0
    parts: list[bytes] = field(default_factory=list)
    size: int = 0


_STORING = frozenset({"node"})
_WRITING = frozenset({"node", "client"})
_READING = frozenset({"node", "client", "observer"})


class TrackerCore:
    def __init__(
        self,
        *,
        membership: Membership,
        peers: Sequence[StoredPeer],
        timing: Timing,
        epoch: str,
        store_id: str,
        commit_number: int,
        events_at: tuple[str, ...],
        now: Now,
    ) -> None:
        """`peers` are the store's, from earlier runs; `events_at` is where PUB listens."""
        self.epoch = epoch
        self.seq = 0
        self.history: deque[Event] = deque(maxlen=HISTORY)
        self._membership = membership
        #: what the cluster knows of the allow list
        self._told: dict[str, Member] = dict(membership.members)
        self._tokens = frozenset(membership.tokens)
        self._timing = timing
        self._store_id = store_id
        self._commit_number = commit_number
        self._events_at = events_at
        self._liveness = Liveness(heartbeat_s=timing.heartbeat_s, lease_s=timing.lease_s, now=now.mono)
        self._records = PeerRecords()
        #: bytes per second that each node served and stored lately
        self._loads: dict[str, float] = {}
        self._inventories: dict[str, _Inventory] = {}
        #: nodes of which it was said that they hold chunks of files that are not known here
        self._strange: set[str] = set()
        #: peers whose change is being stored: how many events of each are still to come
        self._untold: Counter[str] = Counter()
        self._promises = Promises()
        self._health = FileHealth(first_at=now.mono + timing.lease_s)
        self._corrupt = CorruptReports()
        #: why what nodes told last could not be stored; None where it could
        self._store_problem: ZchunkError | None = None
        #: events about memory that somebody keeps, of each node
        self._held_told = RateLimit(_HELD_AT_ONCE, _HELD_PER_S)
        #: (who, upload id) -> a commit that waits for copies
        self._parked: dict[tuple[str, str], _ParkedCommit] = {}
        self._commits = 0
        self._next_tick = now.mono
        self._members_problem = ""
        self._join_limit = JoinLimit()
        for peer in peers:
            self._liveness.restore(peer.peer_id, peer.incarnation, peer.left, now.mono)
            member = self._told.get(peer.peer_id)
            self._records[peer.peer_id] = self._shown(restored(peer, member))
        #: request -> (who may, what it does)
        self._handlers: dict[type[Request], tuple[frozenset[str], Callable[[Ask, Now], list[Action]]]] = {
            Hello: (_STORING, self._hello),
            Inventory: (_STORING, self._inventory),
            Heartbeat: (_READING, self._heartbeat),
            GetMembers: (_STORING, self._members),
            CheckKey: (_STORING, self._check_key),
            RotateKey: (_READING, self._rotate_key),
            Goodbye: (_STORING, self._goodbye),
            GetSnapshot: (_READING, self._snapshot),
            GetEvents: (_READING, self._get_events),
            Plan: (_WRITING, self._plan),
            FindChunks: (_WRITING, self._find_chunks),
            Stored: (_STORING, self._stored),
            Commit: (_WRITING, self._commit),
            Abandon: (_WRITING, self._abandon),
            Renew: (_WRITING, self._renew),
            Locate: (_READING, self._locate),
            ListFiles: (_READING, self._list_files),
            Remove: (_WRITING, self._remove),
            Release: (_STORING, self._release),
            GetRemovals: (_STORING, self._removals),
            CheckFiles: (_STORING, self._check_files),
            FindFiles: (_STORING, self._find_files),
            Lost: (_STORING, self._lost),
            GetDoubts: (_STORING, self._doubts),
            Whole: (_STORING, self._whole),
            ReportCorrupt: (_WRITING, self._report_corrupt),
            ReportHeld: (_STORING, self._report_held),
        }

    # -- the shell's calls ----------------------------------------------------------

    def handle(self, sender: Sender, request_id: int, message: Message, now: Now) -> list[Action]:
        ask = Ask(sender, sender.peer_id or "", request_id, message)
        try:
            if isinstance(message, Join):
                return self._join(ask, now)
            return self._dispatch(ask, now)
        except ZchunkError as error:
            return ask.refuse(error)

    def advance(self, now: Now) -> list[Action]:
        actions = self._changed(self._liveness.advance(now.mono), now)
        self._promises.expire(now.mono)
        for key, parked in list(self._parked.items()):
            if parked.deadline <= now.mono:
                del self._parked[key]
                actions.append(self._commit_work(parked.ask, now.mono, parked.number))
        if self._next_tick <= now.mono:
            self._next_tick = now.mono + _TICK_S
            actions += self._look_at_members(now)
            actions.append(Publish(self._event("tick", {}, self.seq, now)))
        # Behind the changes of peers, which the store keeps and tells of first.
        return actions + self._count_copies(now)

    def members_changed(self, now: Now) -> list[Action]:
        """Another process has changed the list: what follows of that. Raises what keeps it from being
        read; it stays as it was then."""
        self._membership.refresh()
        return [*self._members_changed(now), *self._tokens_changed()]

    def _look_at_members(self, now: Now) -> list[Action]:
        """Commands say what they change (`members_changed`); a file may be put back by hand."""
        try:
            actions = self.members_changed(now)
        except ZchunkError as error:
            known, self._members_problem = self._members_problem, error.message
            if error.message != known:
                log.warning("the allow list stays as it was: %s", error.message)
            return []
        self._members_problem = ""
        return actions

    def connection_gone(self, connection: bytes, now: Now) -> list[Action]:
        self._promises.gone(connection, now.mono)
        return self._changed(self._liveness.connection_gone(connection, now.mono), now)

    def deadline(self) -> float:
        times = [self._next_tick, self._liveness.deadline(), self._health.deadline()]
        times += [parked.deadline for parked in self._parked.values()]
        return min(t for t in times if t is not None)

    # -- who may do what ------------------------------------------------------------

    def _dispatch(self, ask: Ask, now: Now) -> list[Action]:
        entry = self._handlers.get(type(ask.message))
        if entry is None:
            raise UnknownMessage(f"the tracker does not answer {ask.message.TYPE!r}")
        roles, handler = entry
        member = self._member(ask)
        if member.role not in roles:
            raise NotAllowed(f"{member.name} joined as {member.role}, which may not {ask.message.TYPE!r}")
        return handler(ask, now)

    def _member(self, ask: Ask) -> Member:
        member = self._membership.member(ask.peer_id)
        if member is None or member.revoked:
            raise NotAllowed(
                "this PC is no member of the cluster; join it with a token "
                "(`zchunk token` on the tracker's PC prints one)"
            )
        return member

    def _join(self, ask: Ask, now: Now) -> list[Action]:
        message: Join = ask.message
        self._join_limit.attempt(ask.sender.address or "", now.mono)

        def run(_: TrackerStore) -> Member:
            return self._membership.join(ask.peer_id, message.public_key, message.name, now.wall_ms)

        def then(member: Member, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return self._members_changed(now) + ask.reply(
                Joined(
                    peer_id=member.peer_id,
                    name=member.name,
                    role=member.role,
                    store_id=self._store_id,
                    events=self._events_at,
                )
            )

        return [Work(run, then)]

    # -- the allow list ---------------------------------------------------------------

    def _members_changed(self, now: Now) -> list[Action]:
        """Tell the cluster what changed in the allow list since it was told last."""
        members = self._membership.members
        if members == self._told:
            return []
        told, self._told = self._told, dict(members)
        actions: list[Action] = []
        for peer_id, member in members.items():
            if told.get(peer_id) != member:
                actions += self._member_changed(told.get(peer_id), member, now)
        for peer_id in told.keys() - members.keys():  # another list was put in its place
            actions += self._member_changed(
                told[peer_id], dataclasses.replace(told[peer_id], revoked=True), now
            )
        return actions

    def _tokens_changed(self) -> list[Action]:
        """Whoever is connected with a token that was withdrawn has no business here."""
        before, self._tokens = self._tokens, frozenset(self._membership.tokens)
        return [CutOff(token_id) for token_id in sorted(before - self._tokens)]

    def _member_changed(self, before: Member | None, member: Member, now: Now) -> list[Action]:
        topic = "member.joined" if before is None else "member.rotated"
        if before is not None and before.revoked != member.revoked:
            topic = "member.revoked" if member.revoked else "member.allowed"
        actions: list[Action] = [self._publish(topic, member_fields(member), now)]
        if member.revoked:
            self._promises.revoke(member.peer_id, now.mono)
        if before is not None:
            # Behind the event: a subscriber may hear of its own end.
            actions.append(CutOff(member.peer_id))
        return actions + self._member_shown(member, now)

    def _member_shown(self, member: Member, now: Now) -> list[Action]:
        """A node of its own is shown to others as what it is now."""
        record = self._records.get(member.peer_id)
        if record is None:
            return []
        shown = self._shown(replace(record, public_key=member.public_key.hex()))
        if record.status == "revoked" and not member.revoked:
            shown = replace(shown, status="down")
        self._records[member.peer_id] = shown
        changes = self._liveness.cut_off(member.peer_id, now.mono) if member.revoked else []
        if changes:
            return self._changed(changes, now)
        return [] if shown == record else [self._publish("peer.updated", peer_fields(shown), now)]

    def _shown(self, record: PeerRecord) -> PeerRecord:
        member = self._told.get(record.peer_id)
        is_revoked = member is not None and member.revoked
        return replace(record, status="revoked", unsure=False) if is_revoked else record

    def _members(self, ask: Ask, now: Now) -> list[Action]:
        after: str = ask.message.page
        listed = sorted((m for m in self._told.values() if m.peer_id > after), key=lambda m: m.peer_id)
        page = listed[:_MEMBERS_PAGE]
        next_page = page[-1].peer_id if len(listed) > len(page) else ""
        return ask.reply(Members(members=tuple(map(member_record, page)), next_page=next_page))

    def _check_key(self, ask: Ask, now: Now) -> list[Action]:
        owner = self._membership.owner_of(ask.message.public_key)
        member = None if owner is None or owner.revoked else member_record(owner)
        return self._members_changed(now) + ask.reply(KeyKnown(member=member))

    def _rotate_key(self, ask: Ask, now: Now) -> list[Action]:
        public_key: bytes = ask.message.public_key

        def then(_: Member, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            # The answer first: what follows ends the connection that it goes by.
            return ask.reply(Ok()) + self._members_changed(now)

        return [Work(lambda store: self._membership.rotate(ask.peer_id, public_key), then)]

    # -- presence -------------------------------------------------------------------

    def _hello(self, ask: Ask, now: Now) -> list[Action]:
        hello: Hello = ask.message
        # First what may be refused: a life without a record would be nobody's.
        record = self._hello_record(ask, now)
        hail = self._liveness.hello(
            ask.peer_id, hello.incarnation, ask.sender.connection, now.mono, hello.instance
        )
        arriving, renumbered = hail.arriving, hail.incarnation != hello.incarnation
        record = replace(record, incarnation=hail.incarnation)
        before = self._records.get(ask.peer_id)
        if before is not None:
            record = replace(record, files_unknown=before.files_unknown)
        record = replace(
            record,
            status="down" if arriving or before is None else before.status,
            unsure=arriving,
        )
        self._records[ask.peer_id] = record

        def run(store: TrackerStore) -> tuple[int, bytes]:
            save(store, record, left=False)
            return store.inventory_summary(ask.peer_id)

        def then(known: tuple[int, bytes], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            # A home that was put back may say of itself what was true when it was copied.
            differs = renumbered or known != (hello.chunks, bytes(hello.inventory_digest))
            answer = ask.reply(self._welcome(record, inventory_wanted=differs))
            if not arriving:
                answer += self._updated(record, before, now)
            if differs:
                self._inventories[ask.peer_id] = _Inventory(hail.incarnation)
                return answer
            return self._arrived(ask.peer_id, hail.incarnation, answer, now)

        return [Work(run, then)]

    def _hello_record(self, ask: Ask, now: Now) -> PeerRecord:
        hello: Hello = ask.message
        seen_from = unmapped(ask.sender.address) if ask.sender.address else None
        member = self._member(ask)
        endpoints = announced(
            bound=hello.bound,
            port=hello.port,
            advertise=hello.advertise,
            seen_from=seen_from,
            interfaces=hello.interfaces,
        )
        for endpoint in endpoints:
            parse_address(endpoint)  # others would fail to connect: refused as InvalidUsage here
        if max(map(len, endpoints)) > MAX_ADDRESS:
            raise MalformedMessage("a hello with an address that is too long to be told")
        return PeerRecord(
            peer_id=ask.peer_id,
            name=member.name,
            role="node",
            status="down",
            incarnation=hello.incarnation,
            endpoints=endpoints,
            capacity=hello.capacity,
            free=hello.free,
            chunks=hello.chunks,
            last_seen_ms=now.wall_ms,
            public_key=member.public_key.hex(),
        )

    def _welcome(self, record: PeerRecord, inventory_wanted: bool) -> Welcome:
        return Welcome(
            epoch=self.epoch,
            seq=self.seq,
            heartbeat_interval_s=self._timing.heartbeat_s,
            lease_s=self._timing.lease_s,
            store_id=self._store_id,
            commit_number=self._commit_number,
            endpoints=record.endpoints,
            inventory_wanted=inventory_wanted,
            incarnation=record.incarnation,
        )

    def _updated(self, record: PeerRecord, before: PeerRecord | None, now: Now) -> list[Action]:
        """A node that was up said hello again: news only when its address changed."""
        if before is not None and before.endpoints == record.endpoints:
            return []
        return [self._publish("peer.updated", peer_fields(record), now)]

    def _inventory(self, ask: Ask, now: Now) -> list[Action]:
        page: Inventory = ask.message
        pages = self._inventories.get(ask.peer_id)
        if pages is None or self._liveness.connection(ask.peer_id) != ask.sender.connection:
            raise HelloFirst("an inventory comes after a hello that asked for it")
        if page.page == 0:
            pages.parts, pages.size, pages.next_page = [], 0, 0
        if page.page > pages.next_page:
            # A repeated hello began it anew: an Ok would leave the node waiting for ever.
            raise HelloFirst("a page of the inventory is missing; say hello again")
        if page.page == pages.next_page:
            self._take_page(ask.peer_id, pages, page)
        if not page.last or page.page != pages.next_page - 1:
            return ask.reply(Ok())
        return [self._inventory_work(ask, pages)]

    def _take_page(self, peer_id: str, pages: _Inventory, page: Inventory) -> None:
        if len(page.hashes) > 32 * MAX_HASHES or not (len(page.hashes) or page.last):
            raise MalformedMessage(f"a page of an inventory has from 1 to {MAX_HASHES} chunks")
        others = sum(other.size for other in self._inventories.values() if other is not pages)
        size = pages.size + len(page.hashes)
        if size > _MAX_INVENTORY_BYTES:
            del self._inventories[peer_id]
            raise NotAllowed("an inventory of more than 4,000,000 chunks is not taken")
        if others and others + size > _MAX_INVENTORY_BYTES:
            raise Busy("the tracker takes in other nodes' inventories; send this one again later")
        pages.parts.append(bytes(page.hashes))
        pages.size = size
        pages.next_page += 1

    def _inventory_work(self, ask: Ask, pages: _Inventory) -> Work:
        def run(store: TrackerStore) -> InventoryChange:
            hashes = [sha256 for part in pages.parts for sha256 in split_hashes(part)]
            return store.replace_inventory(ask.peer_id, hashes, store.now_ms())

        def then(change: InventoryChange, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            if change.added or change.lost:
                self._health.peers_changed(now.mono)
            if self._inventories.get(ask.peer_id) is pages:
                del self._inventories[ask.peer_id]
            return self._arrived(ask.peer_id, pages.incarnation, ask.reply(Ok()), now)

        return Work(run, then)

    def _arrived(self, peer_id: str, incarnation: int, answer: list[Action], now: Now) -> list[Action]:
        """A node that is told that it is registered is up for everyone."""
        changes = self._liveness.arrived(peer_id, incarnation, now.mono)
        return [self._changed_work(change, answer) for change in changes] or answer

    def _heartbeat(self, ask: Ask, now: Now) -> list[Action]:
        beat: Heartbeat = ask.message
        self._promises.heard(ask.sender.connection, now.mono)
        if self._member(ask).role == "node" and beat.incarnation:
            known = self._liveness.beat(ask.peer_id, beat.incarnation, ask.sender.connection, now.mono)
            if not known:
                raise HelloFirst("say hello first")
            self._loads[ask.peer_id] = beat.load
            self._records.heard(ask.peer_id, beat.free, beat.chunks, now.wall_ms)
            told = self._store_beat(ask.peer_id, beat.store_online, now)
            told += self._unknown_beat(ask.peer_id, beat.files_unknown, now)
            return [*told, *ask.reply(Beat(epoch=self.epoch, seq=self.seq))]
        return ask.reply(Beat(epoch=self.epoch, seq=self.seq))

    def _store_beat(self, peer_id: str, online: bool, now: Now) -> list[Action]:
        """A node's disk was unplugged, or is back (SPEC R8)."""
        before, status = self._records.status(peer_id), "up" if online else _OFFLINE
        if before == status or before not in ("up", _OFFLINE):
            return []
        record = self._records[peer_id] = replace(self._records[peer_id], status=status)
        self._health.peers_changed(now.mono)
        return [self._publish("peer.updated", peer_fields(record), now)]

    def _unknown_beat(self, peer_id: str, files_unknown: int, now: Now) -> list[Action]:
        """A node holds chunks of files that this tracker does not know, or not of as many any more."""
        if files_unknown == self._records.files_unknown(peer_id):
            return []
        record = self._records[peer_id] = replace(self._records[peer_id], files_unknown=files_unknown)
        if record.files_unknown and record.peer_id not in self._strange:
            self._strange.add(record.peer_id)
            log.error(
                "%s holds chunks of %d files that this tracker does not know: its database was lost or"
                " replaced, or an older one put back; put the newest copy of it back, or the files again",
                record.name,
                record.files_unknown,
            )
        return [self._publish("peer.updated", peer_fields(record), now)]

    def _live(self) -> frozenset[str]:
        """Peers whose chunks can be had: up, as the cluster was told, and with their store."""
        return frozenset(p for p in self._liveness.up() if self._records.status(p) == "up")

    def _goodbye(self, ask: Ask, now: Now) -> list[Action]:
        changes = self._liveness.goodbye(ask.peer_id, ask.message.incarnation, now.mono)
        return [self._changed_work(change, ask.reply(Ok())) for change in changes] or ask.reply(Ok())

    def _changed(self, changes: Sequence[Change], now: Now) -> list[Action]:
        """Liveness changed: keep it in the store, then publish."""
        return [self._changed_work(change) for change in changes]

    def _changed_work(self, change: Change, answer: Sequence[Action] = ()) -> Work:
        status = {Life.UP: "up", Life.LEFT: "left"}.get(change.life, "down")
        saved = replace(self._records[change.peer_id], status=status, unsure=False)
        self._untold[change.peer_id] += 1
        if change.life is not Life.UP:
            self._inventories.pop(change.peer_id, None)

        def run(store: TrackerStore) -> None:
            save(store, saved, left=change.life is Life.LEFT)

        def then(_: Any, error: ZchunkError | None, now: Now) -> list[Action]:
            # A store that cannot write must not hide that a peer came or went. The record
            # changes in the turn of its event: a snapshot is true as of one `seq`.
            self._untold -= Counter([change.peer_id])
            # It may be saying hello again by now.
            unsure = status == "down" and change.peer_id in self._liveness.unsure()
            record = self._shown(replace(self._records[change.peer_id], status=status, unsure=unsure))
            self._records[change.peer_id] = record
            topic = "peer.up" if change.life is Life.UP else "peer.down"
            event = self._publish(topic, peer_fields(record, reason=change.reason), now)
            self._health.peers_changed(now.mono)
            return [*answer, event, *self._retry_parked()]

        return Work(run, then)

    def _snapshot(self, ask: Ask, now: Now) -> list[Action]:
        records = tuple(self._records[peer_id] for peer_id in sorted(self._records))
        undecided = self._liveness.unsure() | self._untold.keys()
        unsure = tuple(sorted(undecided & self._records.keys()))
        return ask.reply(
            Snapshot(epoch=self.epoch, seq=self.seq, events=self._events_at, peers=records, unsure=unsure)
        )

    def _get_events(self, ask: Ask, now: Now) -> list[Action]:
        return ask.reply(self._event_list(ask.message))

    def _event_list(self, ask: GetEvents) -> EventList:
        if ask.epoch != self.epoch or not self.history:
            return EventList(epoch=self.epoch, seq=self.seq, events=())
        skipped = max(0, ask.since + 1 - self.history[0].seq)
        page = islice(self.history, skipped, skipped + _EVENTS_PAGE)
        records = [EventRecord(topic=e.topic, seq=e.seq, time_ms=e.time_ms, fields=e.fields) for e in page]
        return EventList(epoch=self.epoch, seq=self.seq, events=tuple(records))

    # -- uploads --------------------------------------------------------------------

    def _plan(self, ask: Ask, now: Now) -> list[Action]:
        plan: Plan = ask.message
        online = [self._records[peer_id] for peer_id in sorted(self._live())]
        unsure = self._unsure(plan.avoid)
        unsure_s = max(0.0, self._liveness.unsure_until() - now.mono)
        asker = Asker(
            plan.upload_id,
            ask.peer_id,
            ask.sender.connection,
            plan.size,
            plan.chunk_size,
            anew=not len(plan.only),
        )
        taken = self._promises.taken(asker, {record.peer_id: record.free for record in online}, now.mono)
        loads = dict(self._loads)

        def run(store: TrackerStore) -> tuple[Planned, dict[str, int]]:
            store.check_space()  # what could not be committed is not begun
            return make_plan(plan, online, taken, loads)

        def then(result: tuple[Planned, dict[str, int]], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(refusal(error, unsure, unsure_s))
            planned, wanted = result
            try:
                self._member(ask)
            except NotAllowed as revoked_meanwhile:
                return ask.refuse(revoked_meanwhile)
            self._promises.add(asker, wanted, now.mono)
            return ask.reply(planned)

        return [Work(run, then)]

    def _unsure(self, avoid: Collection[str]) -> list[str]:
        """Names of the nodes that may be up, for all that this tracker has heard yet, without
        those of `avoid`."""
        unsure = [r for r in self._records.values() if r.unsure and r.peer_id not in avoid]
        return sorted(record.name for record in unsure)

    def _find_chunks(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)
        if len(hashes) > MAX_FIND:
            raise MalformedMessage(f"{len(hashes)} chunks asked about at once, more than {MAX_FIND}")
        live = self._live()

        def then(rows: FoundRows, error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return ask.reply(
                ChunksFound(
                    peers=tuple(self._records[peer_id] for peer_id in rows.peer_ids),
                    holder_counts=rows.holder_counts,
                    holder_peers=rows.holder_peers,
                )
            )

        return [Work(lambda store: store.find_chunks(hashes, live, MAX_FOUND_HOLDERS), then, reads=True)]

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
            return ask.reply(Ok()) + self._retry_parked()

        return [Work(run, then)]

    def _commit(self, ask: Ask, now: Now) -> list[Action]:
        # Asked again while it waits, it waits no longer for that.
        parked = self._parked.get((ask.peer_id, ask.message.upload_id))
        # Holders, too, that have not said hello to a tracker that has just started are on their way.
        patience_ends = max(now.mono + _COMMIT_PATIENCE_S, self._liveness.unsure_until())
        patience_ends = patience_ends if parked is None else parked.deadline
        self._commits += 1
        return [self._commit_work(ask, patience_ends, self._commits)]

    def _commit_work(self, ask: Ask, patience_ends: float, number: int) -> Work:
        """`number` is that of the asking: of two that wait for one upload the later is answered."""
        commit: Commit = ask.message
        live = self._live()

        def run(store: TrackerStore) -> tuple[FileRecord, bool, int]:
            record, already = store.commit_file(
                outline.read(commit.manifest, commit.file_id),
                replicas=commit.replicas,
                min_peers=commit.min_peers,
                distributed=commit.distribute,
                live=live,
                now_ms=store.now_ms(),
            )
            return record, already, store.commit_number

        def then(result: tuple[FileRecord, bool, int], error: ZchunkError | None, later: Now) -> list[Action]:
            if isinstance(error, NotYetStored) and isinstance(self._store_problem, NoSpace):
                error = self._store_problem
            if isinstance(error, NotYetStored) and later.mono < patience_ends and self._may_park(ask):
                # Some node's `stored` is on its way here: try again when one arrives.
                waits = self._parked.get((ask.peer_id, commit.upload_id))
                if waits is None or waits.number < number:
                    self._parked[ask.peer_id, commit.upload_id] = _ParkedCommit(ask, patience_ends, number)
                return []
            if isinstance(error, NotYetStored) and self._store_problem is not None:
                error = self._store_problem  # its nodes have told, and it could not be kept
            if error is not None:
                return ask.refuse(error)
            record, already, self._commit_number = result
            self._promises.committed(commit.upload_id, later.mono)
            self._health.changed([record.file_id], later.mono)
            actions = ask.reply(Committed(file=record, already=already))
            if not already:
                actions.append(self._publish("file.distributed", file_fields(record), later))
            return actions

        return Work(run, then)

    def _may_park(self, ask: Ask) -> bool:
        """Whether there is room for one that waits; else it is refused as it would be later."""
        held = [p.ask for p in self._parked.values() if p.ask.peer_id == ask.peer_id]
        mine = sum(len(other.message.manifest) for other in held)
        of_all = sum(len(p.ask.message.manifest) for p in self._parked.values())
        room = len(ask.message.manifest) + max(of_all, 2 * mine) <= _MAX_PARKED_BYTES
        return room and len(self._parked) < _MAX_PARKED and len(held) < _MAX_PARKED // 2

    def _retry_parked(self) -> list[Action]:
        parked, self._parked = self._parked, {}
        return [self._commit_work(p.ask, p.deadline, p.number) for p in parked.values()]

    def _abandon(self, ask: Ask, now: Now) -> list[Action]:
        self._promises.abandon(ask.message.upload_id, ask.peer_id, now.mono)
        return ask.reply(Ok())

    def _renew(self, ask: Ask, now: Now) -> list[Action]:
        self._promises.renew(ask.message.upload_id, ask.peer_id, ask.sender.connection, now.mono)
        return ask.reply(Ok())

    # -- files ----------------------------------------------------------------------

    def _locate(self, ask: Ask, now: Now) -> list[Action]:
        locate: Locate = ask.message

        def run(store: TrackerStore) -> LocatedRows:
            return store.locate(store.resolve(locate.name_or_id, locate.unique).file_id)

        def then(rows: LocatedRows, error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return ask.reply(
                Located(
                    file=rows.file,
                    peers=tuple(self._records[peer_id] for peer_id in rows.peer_ids),
                    manifest=rows.manifest,
                    holder_counts=rows.holder_counts,
                    holder_peers=rows.holder_peers,
                    holder_times=rows.holder_times,
                )
            )

        return [Work(run, then, reads=True)]

    def _list_files(self, ask: Ask, now: Now) -> list[Action]:
        def then(page: tuple[list[FileRecord], str], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return ask.reply(Files(files=tuple(page[0]), next_page=page[1]))

        return [Work(lambda store: store.list_files(ask.message.page), then, reads=True)]

    def _remove(self, ask: Ask, now: Now) -> list[Action]:
        file_id: str = ask.message.file_id

        def then(result: tuple[int, bool], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            commit_number, fresh = result
            self._commit_number = max(self._commit_number, commit_number)
            actions = ask.reply(Removed(file_id=file_id, commit_number=commit_number))
            if fresh:
                self._health.removed(file_id)
                fields = {"file_id": file_id, "commit_number": commit_number}
                actions.append(self._publish("file.removed", fields, now))
            return actions

        def run(store: TrackerStore) -> tuple[int, bool]:
            before = store.commit_number
            number = store.remove_file(file_id, store.now_ms())
            return number, number > before

        return [Work(run, then)]

    # -- garbage --------------------------------------------------------------------

    def _release(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> tuple[list[bytes], int]:
            return store.release(ask.peer_id, hashes), store.commit_number

        def then(result: tuple[list[bytes], int], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            free, commit_number = result
            return ask.reply(
                Released(store_id=self._store_id, commit_number=commit_number, hashes=b"".join(free))
            )

        return [Work(run, then)]

    def _removals(self, ask: Ask, now: Now) -> list[Action]:
        def then(result: tuple[list[str], int, bool], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            file_ids, up_to, more = result
            return ask.reply(
                Removals(store_id=self._store_id, commit_number=up_to, file_ids=tuple(file_ids), more=more)
            )

        return [Work(lambda store: store.removals(ask.message.since), then)]

    def _check_files(self, ask: Ask, now: Now) -> list[Action]:
        file_ids = [file_id.hex() for file_id in split_hashes(ask.message.file_ids, MAX_FIND)]

        def then(unknown: list[str], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return ask.reply(FilesUnknown(file_ids=b"".join(map(bytes.fromhex, unknown))))

        return [Work(lambda store: store.unknown_files(file_ids), then)]

    def _find_files(self, ask: Ask, now: Now) -> list[Action]:
        file_ids = [file_id.hex() for file_id in split_hashes(ask.message.file_ids, MAX_FIND)]

        def run(store: TrackerStore) -> tuple[list[str], int]:
            return store.files_among(file_ids), store.commit_number

        def then(found: tuple[list[str], int], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            files, commit_number = found
            packed = b"".join(map(bytes.fromhex, files))
            return ask.reply(
                FilesFound(store_id=self._store_id, commit_number=commit_number, file_ids=packed)
            )

        return [Work(run, then)]

    # -- damaged copies (SPEC D8) -----------------------------------------------------

    def _lost(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> list[str]:
            return store.files_of(hashes) if store.drop_holdings(ask.peer_id, hashes) else []

        def then(file_ids: list[str], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            self._corrupt.settle(ask.peer_id, hashes)
            self._health.changed(file_ids, now.mono)
            return ask.reply(Ok())

        return [Work(run, then)]

    def _whole(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> list[str]:
            return store.files_of(store.mark_whole(ask.peer_id, hashes))

        def then(file_ids: list[str], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            self._corrupt.settle(ask.peer_id, hashes)
            self._health.gained(file_ids, now.mono)
            return ask.reply(Ok()) + self._retry_parked()

        return [Work(run, then)]

    def _doubts(self, ask: Ask, now: Now) -> list[Action]:
        def then(marked: list[bytes], error: ZchunkError | None, _: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            hashes = sorted({*marked, *self._corrupt.open_at(ask.peer_id)})
            return ask.reply(Doubts(hashes=b"".join(hashes[:MAX_DOUBTS])))

        return [Work(lambda store: store.unavailable_on(ask.peer_id, MAX_DOUBTS), then)]

    def _report_corrupt(self, ask: Ask, now: Now) -> list[Action]:
        """Tell the cluster once for each member; the named node hears it and checks itself."""
        report: ReportCorrupt = ask.message
        if report.peer_id == ask.peer_id:
            raise InvalidUsage("a node reports others; of its own chunks it says `lost`")
        self._corrupt.check(ask.peer_id)

        def then(counts: bool, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                return ask.refuse(error)
            return ask.reply(Ok()) + (self._reported(ask.peer_id, report, now) if counts else [])

        return [Work(lambda store: store.counts_on(report.peer_id, report.sha256), then)]

    def _reported(self, member: str, report: ReportCorrupt, now: Now) -> list[Action]:
        members = self._corrupt.add(member, report.peer_id, report.sha256)
        if not members:
            return []
        fields = {"peer_id": report.peer_id, "sha256": report.sha256.hex(), "reported_by": member}
        told: list[Action] = [self._publish("chunk.corrupt", {**fields, "reports": members}, now)]
        return told if members < ENOUGH else [*told, self._unavailable_work(report)]

    def _unavailable_work(self, report: ReportCorrupt) -> Work:
        def run(store: TrackerStore) -> list[str]:
            marked = store.mark_unavailable(report.peer_id, report.sha256)
            return store.files_of([report.sha256]) if marked else []

        def then(file_ids: list[str], error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                log.warning("a copy that two members reported still counts: %s", error.message)
                return []
            self._health.changed(file_ids, now.mono)
            return []

        return Work(run, then)

    # -- memory of nodes that somebody keeps ----------------------------------------------

    def _report_held(self, ask: Ask, now: Now) -> list[Action]:
        report: ReportHeld = ask.message
        if not self._held_told.take(ask.peer_id, now.mono):
            return ask.reply(Ok())
        fields = held_fields(self._member(ask), report, self._told.get(report.member))
        return [*ask.reply(Ok()), self._publish("budget.held", fields, now)]

    # -- health of files (SPEC R9) ------------------------------------------------------

    def _count_copies(self, now: Now) -> list[Action]:
        """The next slice, when it is due; one at a time, so that others get their turn."""
        due = self._health.deadline()
        if due is None or due > now.mono:
            return []
        asked = self._health.next(self._live(), now.mono)
        if asked is None:
            return []

        def then(found: Counted, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                self._health.failed(asked, now.mono)
                return []
            changes = self._health.counted(asked, found, now.mono)
            return [self._publish(change.topic, health_fields(change.copies), now) for change in changes]

        return [Work(lambda store: store.count_copies(asked), then)]

    # -- events ---------------------------------------------------------------------

    def _publish(self, topic: str, fields: dict[str, Any], now: Now) -> Publish:
        self.seq += 1
        event = self._event(topic, fields, self.seq, now)
        self.history.append(event)
        return Publish(event)

    def _event(self, topic: str, fields: dict[str, Any], seq: int, now: Now) -> Event:
        return Event(topic=topic, epoch=self.epoch, seq=seq, time_ms=now.wall_ms, fields=fields)
