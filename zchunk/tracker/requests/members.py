"""Who belongs to the cluster: joining, keys, and what follows of a change in the allow list. Pure.

What may not happen here: an event about a member whose change is not durable; a member that was
revoked and keeps its connection.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from zchunk.clock import Now
from zchunk.protocol.messages import CheckKey, GetMembers, Join, Joined, KeyKnown, Members, Ok, RotateKey
from zchunk.tracker.actions import Action, Ask, CutOff
from zchunk.tracker.members.join_limit import JoinLimit
from zchunk.tracker.members.member_list import Member, MemberList
from zchunk.tracker.records import member_fields, member_record, peer_fields
from zchunk.tracker.requests.handlers import READING, STORING, Handlers
from zchunk.tracker.requests.presence import Presence
from zchunk.tracker.rules.promises import Promises
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import Peers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.store import TrackerStore

_MEMBERS_PAGE = 1_000


class MemberFile(Protocol):
    """The allow list on disk (`Membership`). Its changes are durable on return, and block."""

    @property
    def listed(self) -> MemberList: ...

    def join(self, token: bytes | str, public_key: bytes, name: str, now_ms: int) -> Member: ...

    def rotate(self, peer_id: str, public_key: bytes) -> Member: ...


class MemberRequests:
    def __init__(
        self,
        file: MemberFile,
        peers: Peers,
        presence: Presence,
        events: EventLog,
        promises: Promises,
        mark: StoreMark,
    ) -> None:
        self._file = file
        self._peers = peers
        self._presence = presence
        self._events = events
        self._promises = promises
        self._mark = mark
        self._limit = JoinLimit()

    def handlers(self) -> Handlers:
        """`Join` is not among them: who asks it is no member yet."""
        return {
            GetMembers: (STORING, self._members),
            CheckKey: (STORING, self._check_key),
            RotateKey: (READING, self._rotate_key),
        }

    def join(self, ask: Ask, now: Now) -> list[Action]:
        message: Join = ask.message
        self._limit.attempt(ask.sender.address or "", now.mono)

        def run(_: TrackerStore) -> Member:
            return self._file.join(ask.peer_id, message.public_key, message.name, now.wall_ms)

        def joined(member: Member, now: Now) -> list[Action]:
            # As it is by now: another change may have been told before this one.
            return self.changed(self._file.listed, now) + ask.reply(
                Joined(
                    peer_id=member.peer_id,
                    name=member.name,
                    role=member.role,
                    store_id=self._mark.store_id,
                    events=self._presence.events_at,
                )
            )

        return ask.work(run, joined)

    def _members(self, ask: Ask, now: Now) -> list[Action]:
        after: str = ask.message.page
        members = self._peers.listed.members.values()
        listed = sorted((m for m in members if m.peer_id > after), key=lambda m: m.peer_id)
        page = listed[:_MEMBERS_PAGE]
        next_page = page[-1].peer_id if len(listed) > len(page) else ""
        return ask.reply(Members(members=tuple(map(member_record, page)), next_page=next_page))

    def _check_key(self, ask: Ask, now: Now) -> list[Action]:
        owner = self._peers.listed.owner_of(ask.message.public_key)
        member = None if owner is None or owner.revoked else member_record(owner)
        return ask.reply(KeyKnown(member=member))

    def _rotate_key(self, ask: Ask, now: Now) -> list[Action]:
        public_key: bytes = ask.message.public_key

        def rotated(_: Member, now: Now) -> list[Action]:
            # The answer first: what follows ends the connection that it goes by.
            return ask.reply(Ok()) + self.changed(self._file.listed, now)

        return ask.work(lambda store: self._file.rotate(ask.peer_id, public_key), rotated)

    # -- what follows of a change -------------------------------------------------------

    def changed(self, listed: MemberList, now: Now) -> list[Action]:
        """The allow list is this now: tell the cluster what changed in it."""
        before, self._peers.listed = self._peers.listed, listed
        if listed is before:
            return []
        actions: list[Action] = []
        for peer_id, member in listed.members.items():
            if before.member(peer_id) != member:
                actions += self._member_changed(before.member(peer_id), member, now)
        for peer_id in before.members.keys() - listed.members.keys():  # another list was put in its place
            gone = dataclasses.replace(before.members[peer_id], revoked=True)
            actions += self._member_changed(before.members[peer_id], gone, now)
        # Whoever is connected with a token that was withdrawn has no business here.
        withdrawn = sorted(before.tokens.keys() - listed.tokens.keys())
        return [*actions, *map(CutOff, withdrawn)]

    def _member_changed(self, before: Member | None, member: Member, now: Now) -> list[Action]:
        topic = "member.joined" if before is None else "member.rotated"
        if before is not None and before.revoked != member.revoked:
            topic = "member.revoked" if member.revoked else "member.allowed"
        actions: list[Action] = [self._events.publish(topic, member_fields(member), now)]
        if member.revoked:
            self._promises.revoke(member.peer_id, now.mono)
        if before is not None:
            # Behind the event: a subscriber may hear of its own end.
            actions.append(CutOff(member.peer_id))
        return actions + self._member_shown(member, now)

    def _member_shown(self, member: Member, now: Now) -> list[Action]:
        """A node of its own is shown to others as what it is now."""
        record = self._peers.records.get(member.peer_id)
        if record is None:
            return []
        allowed = record.status == "revoked" and not member.revoked
        status = "down" if allowed else record.status
        shown = self._peers.show(replace(record, public_key=member.public_key.hex(), status=status))
        changes = self._peers.liveness.cut_off(member.peer_id, now.mono) if member.revoked else []
        if changes:
            return self._presence.gone(changes, now)
        return [] if shown == record else [self._events.publish("peer.updated", peer_fields(shown), now)]
