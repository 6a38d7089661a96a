"""Who may connect to a node: its allow list, kept true by the tracker's events.

What may not happen here: a key let in that neither the list nor the tracker knows; a knock
without an answer; a member that was cut off served any longer, or let in by an answer of the
tracker that is older than an event. All of it runs in the bulk loop, where the node's ROUTER
lives.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from zchunk.errors import NotAllowed, ZchunkError
from zchunk.limits.refusal_log import RefusalLog
from zchunk.node.control.plane import ControlPlane, expect
from zchunk.node.serving import allow_list
from zchunk.protocol.messages import (
    CheckKey,
    Event,
    GetMembers,
    KeyKnown,
    MemberRecord,
    Members,
    Message,
    record_in,
)
from zchunk.runtime.handshakes import Handshakes
from zchunk.runtime.loop import Loop, Workers
from zchunk.transport.base import BoundSocket, Gate, Knock, Received

log = logging.getLogger(__name__)

DOOR = "zchunk.node"

#: Who asks waits in its handshake meanwhile, for three seconds at most.
_CHECK_S = 1.0
#: Keys that the tracker is being asked about, at most; and of one address, so that a
#: stranger who tries keys keeps no newcomer out. As many knocks of one key wait.
_MOST_CHECKS = 64
_MOST_OF_ONE = 8
_LIST_S = 10.0
#: A list that is longer has no end: a tracker takes 10,000 members.
_MOST_MEMBERS = 20_000
_SERVED = frozenset({"node", "client"})


class NodeAccess:
    def __init__(
        self,
        *,
        loop: Loop,
        gate: Gate,
        router: BoundSocket,
        control: ControlPlane,
        path: Path,
        workers: Workers,
    ) -> None:
        """`path` is where the copy of the list is kept; `workers` write it."""
        self._loop = loop
        self._gate = gate
        self._router = router
        self._control = control
        self._path = path
        self._workers = workers
        self._list = allow_list.load(path)
        self._checked: dict[bytes, list[Knock]] = {}
        self._by_address: Counter[str] = Counter()
        self._refused_keys = RefusalLog()
        self._fetching = False
        self._fetched: list[MemberRecord] = []
        #: something was heard while the list was fetched: it may be older than that
        self._outdated = False
        #: events of members so far, and the latest of each member
        self._events = 0
        self._latest: dict[str, int] = {}
        Handshakes(loop, gate, self._on_knock)
        control.watch_events(loop, self._on_event, lambda missed: self._fetch())
        control.watch_peers(loop, lambda record: None, self._fetch)

    def check(self, received: Received) -> None:
        """Raises NotAllowed where the sender may not have chunks from here, or bring them."""
        peer_id = received.peer_id or ""
        role = self._list.role_of(peer_id)
        if role in _SERVED:
            return
        if role is None:
            self._router.end(peer_id)
            raise NotAllowed("this PC is no longer a member of the cluster")
        raise NotAllowed(f"this PC joined as {role}, which may not download or upload chunks")

    def name_of(self, peer_id: str) -> str:
        """For people; empty where nothing is known of it."""
        return self._list.name_of(peer_id)

    # -- knocks ---------------------------------------------------------------------

    def _on_knock(self, knock: Knock) -> None:
        owner = self._list.owner_of(knock.public_key)
        if owner is None:
            self._ask_tracker(knock)
        else:
            self._answer(knock, owner)

    def _ask_tracker(self, knock: Knock) -> None:
        """It may be a member that joined a moment ago."""
        waiting = self._checked.get(knock.public_key)
        if waiting is not None and len(waiting) < _MOST_OF_ONE:
            waiting.append(knock)
            return
        too_many = len(self._checked) >= _MOST_CHECKS or self._by_address[knock.address] >= _MOST_OF_ONE
        if waiting is not None or too_many or not self._control.linked:
            self._answer(knock, None)
            return
        self._checked[knock.public_key] = [knock]
        self._by_address[knock.address] += 1
        asked = self._events

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            member = reply.member if isinstance(reply, KeyKnown) else None
            if member is not None and self._is_news(member, knock.public_key, asked):
                self._heard(member)
            self._by_address -= Counter([knock.address])
            for waiting in self._checked.pop(knock.public_key):
                self._answer(waiting, self._list.owner_of(knock.public_key))

        self._control.request(CheckKey(public_key=knock.public_key), _CHECK_S, self._loop, answer)

    def _is_news(self, member: MemberRecord, public_key: bytes, asked: int) -> bool:
        """Events come by another line, and may overtake an answer: then they are right."""
        same_key = bytes.fromhex(member.public_key) == public_key
        return same_key and self._latest.get(member.peer_id, 0) <= asked

    def _answer(self, knock: Knock, owner: MemberRecord | None) -> None:
        let_in = owner is not None and not owner.revoked and knock.door == DOOR
        if not let_in:
            error = NotAllowed(f"the key of {owner.name if owner else 'an unknown PC'}")
            self._refused_keys.log(error, knock.address, self._loop.clock.monotonic(), log.info)
        self._gate.answer(knock, owner.peer_id if owner is not None and let_in else None)

    # -- the list -------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if not event.topic.startswith("member."):
            return
        self._outdated = True
        member = record_in(event.fields.get("member"), MemberRecord)
        if member is not None:
            self._events += 1
            self._latest[member.peer_id] = self._events
            self._heard(member)
            self._save()

    def _heard(self, member: MemberRecord) -> None:
        if self._list.put(member):
            self._router.end(member.peer_id)
            log.info("%s is no longer admitted with its old key", member.name)

    def _fetch(self) -> None:
        """The whole list: after a gap in the events, or at first."""
        if not self._fetching:
            self._fetching, self._fetched, self._outdated = True, [], False
            self._fetch_page("")
        else:
            self._outdated = True

    def _fetch_page(self, page: str) -> None:
        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            members = expect(Members, reply, error)
            if isinstance(members, ZchunkError):
                self._fetching = False
                log.info("the list of members could not be fetched: %s", members)
                if members.retryable:
                    self._fetch()
                return
            self._fetched += members.members
            if len(self._fetched) > _MOST_MEMBERS or "" < members.next_page <= page:
                self._fetching, self._fetched = False, []
                log.warning("the list of members does not end; keeping the previous list")
            elif members.next_page:
                self._fetch_page(members.next_page)
            else:
                self._fetched_all()

        self._control.request(GetMembers(page=page), _LIST_S, self._loop, answer)

    def _fetched_all(self) -> None:
        self._fetching = False
        if self._outdated:
            self._fetch()
            return
        listed = {member.peer_id for member in self._fetched}
        gone = [member for member in self._list.members if member.peer_id not in listed]
        self._list = allow_list.AllowList([m for m in self._list.members if m.peer_id in listed])
        for member in self._fetched:
            self._heard(member)
        for member in gone:
            self._router.end(member.peer_id)
        self._save()

    def _save(self) -> None:
        members = self._list.members

        def done(_: None, error: ZchunkError | None) -> None:
            if error is not None:
                log.warning("the list of members could not be saved: %s", error.message)

        self._workers.submit(lambda: allow_list.save(self._path, members), done)
