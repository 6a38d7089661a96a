"""Carries out what the tracker's core decides: sockets, and the store's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from zchunk.clock import Now, read
from zchunk.errors import NotAllowed, UnknownMessage, ZchunkError
from zchunk.limits.admission import Outstanding, Ticket
from zchunk.limits.misuse import Misuse
from zchunk.limits.refusal_log import RefusalLog
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, MembersChanged, Message, Ok
from zchunk.runtime import log_ids
from zchunk.runtime.disconnects import Disconnects
from zchunk.runtime.handshakes import Handshakes
from zchunk.runtime.loop import Loop, contained
from zchunk.tracker.actions import Action, CutOff, LookAtMembers, Publish, Reply, Sender, Work, is_own
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.members.gate import admitted
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.store.store_thread import Outcome, StoreRunner
from zchunk.transport.base import Arrival, BoundSocket, Delivery, Gate, Knock, Received, Socket, Suspects

log = logging.getLogger(__name__)

#: A disk that stays full is told of so often.
_PROBLEM_S = 60.0


def _weight(frames: Sequence[wire.Buffer]) -> int:
    """Bytes that a request holds while it is worked on. What its header became is larger."""
    return sum(map(len, frames)) + 15 * len(frames[0])


class TrackerServer:
    """Carries out what `TrackerCore` decides, on one loop."""

    def __init__(
        self,
        *,
        core: TrackerCore,
        router: BoundSocket,
        publisher: BoundSocket,
        loop: Loop,
        store: StoreRunner,
        membership: Membership,
        gate: Gate | None,
    ) -> None:
        """`gate` is None in plain transport: a message's word on its sender is believed there."""
        self.core = core
        self._membership = membership
        self._gate = gate
        self._router = router
        self._publisher = publisher
        self._loop = loop
        self._store = store
        self._refusals, self._refused_keys = RefusalLog(), RefusalLog()
        self._misuse = Misuse()
        #: what was said last of our own files, and when it is said again
        self._problem_told, self._problem_again = "", 0.0
        #: why the allow list cannot be read
        self._members_problem = ""
        self._outstanding = Outstanding()
        self._disconnects = Disconnects(loop, router, self._gone)
        if gate is not None:
            Handshakes(loop, gate, self._on_knock)
        loop.add_socket(router, self._on_message)
        loop.add_socket(publisher, lambda _: None)
        loop.add_timed(self)
        loop.on_close(store.close)

    @property
    def refused(self) -> int:
        """Requests that could not be read, or were answered with an error."""
        return self._refusals.count

    def listen_to_commands(self, door: Socket) -> None:
        """`door` is a Unix socket in the tracker's home (members/admin_socket.py)."""
        self._loop.add_socket(door, partial(self._on_command, door))

    def _on_command(self, door: Socket, received: Arrival) -> None:
        if not isinstance(received, Received):
            return
        request_id: int | None = None
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
            request_id = envelope.request_id
            if not isinstance(envelope.message, MembersChanged):
                raise UnknownMessage(f"unexpected message {envelope.message.TYPE!r} from a command")
        except ZchunkError as error:
            self._answer_command(door, received, error.details.get("request_id", request_id), error)
        else:
            self._read_members(partial(self._answer_command, door, received, request_id))

    def _answer_command(
        self, door: Socket, received: Received, request_id: int | None, error: ZchunkError | None
    ) -> None:
        if request_id is None:
            door.reject(received)  # it cannot be answered
        else:
            answer: Message = Ok() if error is None else wire.error_reply(error)
            door.send(wire.encode(answer, request_id), received.connection)

    def deadline(self) -> float | None:
        return self.core.deadline()

    def on_time(self, now: float) -> None:
        self._perform(self.core.advance(self._now()))

    def _now(self) -> Now:
        return read(self._loop.clock)

    def _gone(self, connection: bytes) -> None:
        self._perform(self.core.connection_gone(connection, self._now()))

    # -- the allow list ---------------------------------------------------------------

    def _read_members(self, then: Callable[[ZchunkError | None], None]) -> None:
        """In the store's thread, since it may block; what follows of it is carried out before `then`."""

        def done(outcome: Outcome) -> None:
            _, error = outcome
            if error is None:  # as it is by now: another change may have been told meanwhile
                self._perform(self.core.members_changed(self._membership.listed, self._now()))
            then(error)

        self._store.submit(lambda _: self._membership.refresh(), done)

    def look_at_members(self, then: Callable[[], None] = lambda: None) -> None:
        """Reads the list if it is another than last time. Until it can be read it stays as it was."""

        def looked(error: ZchunkError | None) -> None:
            if error is not None and error.message != self._members_problem:
                log.warning("keeping the previous allow list: %s", error.message)
            self._members_problem = "" if error is None else error.message
            then()

        try:
            is_current = self._membership.is_current()
        except ZchunkError as error:
            looked(error)
        else:
            if not is_current:
                self._read_members(looked)
                return
            self._perform(self.core.members_changed(self._membership.listed, self._now()))
            looked(None)

    def _on_knock(self, knock: Knock) -> None:
        if self._admitted(knock) is None:  # perhaps of a list that was put back by hand
            self.look_at_members(partial(self._answer_knock, knock))
        else:
            self._answer_knock(knock)

    def _admitted(self, knock: Knock) -> str | None:
        return admitted(self.core.peers.listed, knock.door, knock.public_key, self._now())

    def _answer_knock(self, knock: Knock) -> None:
        assert self._gate is not None
        peer_id = self._admitted(knock)
        if peer_id is None:
            error = NotAllowed(f"an unknown or revoked key ({knock.door})")
            self._refused_keys.log(error, knock.address, self._now().mono, log.info)
        self._gate.answer(knock, peer_id)

    # -- requests ---------------------------------------------------------------------

    def _on_message(self, received: Arrival) -> None:
        if isinstance(received, Suspects):
            self._disconnects.suspect(received.connections)
        if not isinstance(received, Received):
            return
        sender = Sender(received.connection, received.peer_id, received.address)
        request_id: int | None = None
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
            request_id = envelope.request_id
            if self._gate is None:
                sender = Sender(received.connection, envelope.claim, received.address)
            ticket = self._outstanding.begin(sender.peer_id or sender.connection, _weight(received.frames))
        except ZchunkError as error:
            request_id = error.details.get("request_id", request_id)
            if request_id is None:
                self._refused(error, sender)
            else:
                self._reply(Reply(sender.connection, request_id, wire.error_reply(error)), sender)
            return
        before = log_ids.begin((request_id, sender.peer_id or sender.address))
        try:
            actions = self.core.handle(sender, request_id, envelope.message, self._now())
            self._perform(actions, ticket, sender)
        finally:
            log_ids.end(before)
            if not ticket.works:
                self._outstanding.end(ticket)

    def _refused(self, error: ZchunkError, sender: Sender | None) -> bool:
        """Counts it. Whether the sender is cut off, and so needs no answer."""
        now = self._now().mono
        self._refusals.log(error, sender.address if sender else None, now, log.info)
        if self._gate is None or sender is None or sender.peer_id is None:
            return False
        if cut_off := self._misuse.is_too_much(error, sender.peer_id, now):
            self._router.end(sender.peer_id)
        return cut_off

    def _problem(self, error: ZchunkError) -> None:
        """An error of our own files: those who asked are told of it without its path."""
        now = self._now().mono
        if error.message != self._problem_told or now >= self._problem_again:
            log.error("%s", error.message)
            self._problem_told, self._problem_again = error.message, now + _PROBLEM_S

    def _perform(
        self, actions: list[Action], ticket: Ticket | None = None, sender: Sender | None = None
    ) -> None:
        """`ticket` and `sender` are those of the request that led to them."""
        for action in actions:
            if isinstance(action, Reply):
                self._reply(action, sender)
            elif isinstance(action, Publish):
                event = action.event
                self._publisher.send([event.topic.encode(), *wire.encode(event)])
            elif isinstance(action, CutOff):
                self._router.end(action.peer_id)
                self._publisher.end(action.peer_id)
            elif isinstance(action, LookAtMembers):
                self.look_at_members()
            else:
                self._work(action, ticket, sender)

    def _work(self, action: Work, ticket: Ticket | None, sender: Sender | None) -> None:
        request = log_ids.ongoing()

        def done(outcome: Outcome) -> None:
            log_ids.during(request, lambda: finish(outcome))

        def finish(outcome: Outcome) -> None:
            value, error = outcome
            if error is not None and is_own(error):
                self._problem(error)
            self._perform(action.then(value, error, self._now()), ticket, sender)
            if ticket is not None:
                ticket.works -= 1
                if not ticket.works:
                    self._outstanding.end(ticket)

        if ticket is not None:
            ticket.works += 1
        run = contained(action.run) if sender is not None else action.run
        self._store.submit(run, done, ticket.who if ticket is not None and action.reads else None)

    def _reply(self, action: Reply, sender: Sender | None) -> None:
        if isinstance(action.message, ErrorReply):
            # What another waited for may end with this request: that is not the sender's doing.
            theirs = sender if sender and sender.connection == action.connection else None
            if self._refused(wire.raised(action.message), theirs):
                return
        # A requester that is gone or full asks again: requests are idempotent.
        frames = wire.encode(action.message, action.request_id)
        if self._router.send(frames, action.connection) is Delivery.GONE:
            self._gone(action.connection)
