"""What the tracker decides: a request and the time in, actions out. Pure.

The requests are answered in `requests/`; here they come in, from who may ask them, and here the
time passes.

What may not happen here: a reply or an event before the commit that it tells of; a `seq` given
out of order; an answer to a sender who is no member, or whose role does not go that far; a block
of the control loop (everything that touches the store or grows with a file's size is `Work`, done
in the store's thread).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.errors import NotAllowed, UnknownMessage, ZchunkError
from zchunk.protocol.messages import GetEvents, Join, Message
from zchunk.tracker.actions import Action, Ask, LookAtMembers, Sender, Work
from zchunk.tracker.members.member_list import MemberList
from zchunk.tracker.records import health_fields, restored
from zchunk.tracker.requests.damage import DamageRequests
from zchunk.tracker.requests.files import FileRequests
from zchunk.tracker.requests.garbage import GarbageRequests
from zchunk.tracker.requests.handlers import READING, Handlers
from zchunk.tracker.requests.members import MemberFile, MemberRequests
from zchunk.tracker.requests.presence import Presence, Timing
from zchunk.tracker.requests.uploads import UploadRequests
from zchunk.tracker.rules.health import Counted, FileHealth
from zchunk.tracker.rules.liveness import Liveness
from zchunk.tracker.rules.promises import Promises
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import Peers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.stored_peers import StoredPeer

_TICK_S = 1.0


class TrackerCore:
    def __init__(
        self,
        *,
        members: MemberFile,
        peers: Sequence[StoredPeer],
        timing: Timing,
        epoch: str,
        mark: StoreMark,
        events_at: tuple[str, ...],
        now: Now,
    ) -> None:
        """`peers` are the store's, from earlier runs; `events_at` is where PUB listens."""
        self.events = EventLog(epoch)
        self.promises = Promises()
        self.health = FileHealth(first_at=now.mono + timing.lease_s)
        liveness = Liveness(heartbeat_s=timing.heartbeat_s, lease_s=timing.lease_s, now=now.mono)
        self.peers = _known_peers(members.listed, peers, liveness, now)
        events, health, promises = self.events, self.health, self.promises
        self.uploads = UploadRequests(self.peers, events, health, promises, mark)
        retry = self.uploads.retry
        self.presence = Presence(self.peers, events, health, promises, mark, timing, events_at, retry)
        self._members = MemberRequests(members, self.peers, self.presence, events, promises, mark)
        self._next_tick = now.mono
        self._handlers: Handlers = {
            GetEvents: (READING, self._get_events),
            **self.presence.handlers(),
            **self._members.handlers(),
            **self.uploads.handlers(),
            **FileRequests(self.peers, events, health, mark).handlers(),
            **GarbageRequests(mark).handlers(),
            **DamageRequests(self.peers, events, health, retry).handlers(),
        }

    # -- the shell's calls ----------------------------------------------------------

    def handle(self, sender: Sender, request_id: int, message: Message, now: Now) -> list[Action]:
        ask = Ask(sender, sender.peer_id or "", request_id, message)
        try:
            if isinstance(message, Join):
                return self._members.join(ask, now)
            return self._dispatch(ask, now)
        except ZchunkError as error:
            return ask.refuse(error)

    def advance(self, now: Now) -> list[Action]:
        actions = self.presence.gone(self.peers.liveness.advance(now.mono), now)
        self.promises.expire(now.mono)
        actions += self.uploads.advance(now)
        look: list[Action] = []
        if self._next_tick <= now.mono:
            self._next_tick = now.mono + _TICK_S
            actions.append(self.events.tick(now))
            # Commands say what they change; a file may be put back by hand. Last: events follow of it.
            look.append(LookAtMembers())
        # Behind the changes of peers, which the store keeps and tells of first.
        return actions + self._count_copies(now) + look

    def members_changed(self, listed: MemberList, now: Now) -> list[Action]:
        """The allow list is this now: what follows of that."""
        return self._members.changed(listed, now)

    def connection_gone(self, connection: bytes, now: Now) -> list[Action]:
        self.promises.gone(connection, now.mono)
        return self.presence.gone(self.peers.liveness.connection_gone(connection, now.mono), now)

    def deadline(self) -> float:
        others = (self.peers.liveness.deadline(), self.health.deadline(), self.uploads.deadline())
        return min([self._next_tick, *(at for at in others if at is not None)])

    # -- decisions ------------------------------------------------------------------

    def _dispatch(self, ask: Ask, now: Now) -> list[Action]:
        entry = self._handlers.get(type(ask.message))
        if entry is None:
            raise UnknownMessage(f"the tracker does not answer {ask.message.TYPE!r}")
        roles, handler = entry
        member = self.peers.member(ask)
        if member.role not in roles:
            raise NotAllowed(f"{member.name} joined as {member.role}, which may not {ask.message.TYPE!r}")
        return handler(ask, now)

    def _get_events(self, ask: Ask, now: Now) -> list[Action]:
        return ask.reply(self.events.since(ask.message))

    def _count_copies(self, now: Now) -> list[Action]:
        """The next slice of files' health (SPEC R9), when it is due; one at a time, so that others
        get their turn."""
        due = self.health.deadline()
        if due is None or due > now.mono:
            return []
        asked = self.health.next(self.peers.live(), now.mono)
        if asked is None:
            return []

        def then(found: Counted, error: ZchunkError | None, now: Now) -> list[Action]:
            if error is not None:
                self.health.failed(asked, now.mono)
                return []
            changes = self.health.counted(asked, found, now.mono)
            return [self.events.publish(c.topic, health_fields(c.copies), now) for c in changes]

        return [Work(lambda store: store.count_copies(asked), then)]


def _known_peers(listed: MemberList, stored: Sequence[StoredPeer], liveness: Liveness, now: Now) -> Peers:
    """Those of earlier runs: each gets a lease to say hello."""
    peers = Peers(listed, liveness)
    for peer in stored:
        liveness.restore(peer.peer_id, peer.incarnation, peer.left, now.mono)
        peers.show(restored(peer, listed.member(peer.peer_id)))
    return peers
