"""The control plane of a node or client: its sockets to the tracker, around `Session`.

Requests and listeners may come from any thread: they are posted into this plane's loop,
and answers are posted back into the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from zchunk.errors import UnknownMessage, ZchunkError
from zchunk.node.control.event_feed import Deliver, EventFeed, Fetch, Missed
from zchunk.node.control.session import (
    Action,
    AskHello,
    CaughtUp,
    EventSeen,
    Outcome,
    PeerChanged,
    Registered,
    RegistrationRefused,
    Send,
    Session,
    ShutOut,
    StreamSilent,
    TrackerSeen,
)
from zchunk.node.home.connection_errors import closed_door
from zchunk.node.home.membership import Identity
from zchunk.protocol import wire
from zchunk.protocol.messages import (
    Event,
    EventList,
    GetEvents,
    Heartbeat,
    Hello,
    Message,
    PeerRecord,
    Request,
    Welcome,
)
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Arrival, Link, Received, Socket, SocketOptions

log = logging.getLogger(__name__)

CONTROL = SocketOptions(max_frame_bytes=wire.MAX_FRAME_BYTES, heartbeats=True)

M = TypeVar("M", bound=Message)

Answer = Callable[[Message | None, ZchunkError | None], None]
OnPeer = Callable[[PeerRecord], None]
OnEvent = Callable[[Event], None]
OnMissed = Callable[[Missed], None]

#: After the tracker did not talk to us it is tried again so much later.
_AGAIN_S = 1.0
#: The tracker has so long for a page of its history.
_HISTORY_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class _Watcher:
    """Someone who follows the events; called in `loop`."""

    feed: EventFeed
    loop: Loop
    on_event: OnEvent
    on_missed: OnMissed


class Registrar(Protocol):
    """What a storing node adds to its control plane; `node/registration.py` is one. Called in its loop."""

    def hello(self) -> Hello:
        """What the tracker is told of this node now."""

    def status(self) -> Heartbeat:
        """What the next heartbeats say."""

    def registered(self, welcome: Welcome) -> None: ...

    def refused(self, error: ZchunkError) -> None:
        """The tracker will not have this node, whatever is tried."""

    def caught_up(self) -> None: ...

    def event(self, event: Event) -> None:
        """Each event once, in order."""


class ControlPlane:
    def __init__(
        self,
        *,
        loop: Loop,
        session: Session,
        connect: Callable[[], Socket],
        subscribe: Callable[[tuple[str, ...]], Socket],
        events_at: tuple[str, ...],
        identity: Identity,
        registrar: Registrar | None = None,
    ) -> None:
        """`events_at`: where the tracker published when last heard of; `connect` makes the
        socket for requests, `subscribe` that for events there."""
        self.loop = loop
        self.session = session
        self._connect = connect
        self._tracker = connect()
        #: when to try again, after the tracker did not talk to us
        self._again_at: float | None = None
        #: what was said of that last
        self._complaint = ""
        self._identity = identity
        self._registrar = registrar
        self._waiting: dict[int, tuple[Loop, Answer]] = {}
        self._on_peer: list[tuple[Loop, OnPeer]] = []
        self._on_caught_up: list[tuple[Loop, Callable[[], None]]] = []
        self._watchers: list[_Watcher] = []
        #: told when the tracker does not let this process in, and never will by itself
        self.on_shut_out: Callable[[ZchunkError], None] = lambda error: None
        self._subscribe = subscribe
        self._events_at = events_at
        self._events = subscribe(events_at)
        loop.add_socket(self._tracker, self._on_tracker)
        loop.add_socket(self._events, self._on_event)
        loop.add_timed(self)
        if registrar is not None:
            self._add_watcher(_Watcher(EventFeed(), loop, registrar.event, _log_missed))

    # -- for any thread -------------------------------------------------------------

    @property
    def linked(self) -> bool:
        """Whether there is a connection to the tracker now."""
        return self.session.linked

    def request(self, message: Request, timeout_s: float, loop: Loop, answer: Answer) -> None:
        """Ask the tracker; `answer(reply, error)` runs once, in `loop`."""
        self.loop.post(lambda: self._request(message, timeout_s, loop, answer))

    def watch_peers(
        self, loop: Loop, on_peer: OnPeer, on_caught_up: Callable[[], None]
    ) -> Callable[[], None]:
        """`on_peer(record)` runs in `loop` for each peer known now, and for each change;
        `on_caught_up()` when the view is complete (at once if it is). The returned function
        ends it."""
        self.loop.post(lambda: self._watch(loop, on_peer, on_caught_up))
        return lambda: self.loop.post(lambda: self._unwatch(loop, on_peer, on_caught_up))

    def watch_events(
        self, loop: Loop, on_event: OnEvent, on_missed: OnMissed, since: int | None = None
    ) -> Callable[[], None]:
        """`on_event(event)` runs in `loop` for each event, once, in order; those that were
        lost on their way are fetched. `on_missed` tells of those that the tracker no longer
        has. `since`: begin behind that event of the tracker's present run (0: with the first
        it still has); None: with what comes now. The returned function ends it."""
        watcher = _Watcher(EventFeed(since), loop, on_event, on_missed)
        self.loop.post(lambda: self._add_watcher(watcher))
        return lambda: self.loop.post(lambda: self._watchers.remove(watcher))

    def say_hello(self) -> None:
        """Tell the tracker of us again, because something in our hello changed."""
        if self._registrar is not None and self.session.linked:
            self._perform_one(AskHello())

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        times = (self.session.deadline(), self._again_at)
        return min((at for at in times if at is not None), default=None)

    def on_time(self, now: float) -> None:
        if self._registrar is not None:
            self.session.set_status(self._registrar.status())
        if self._again_at is not None and self._again_at <= now:
            self._connect_again()
        self._perform(self.session.on_time(now))

    # -- inside the loop ------------------------------------------------------------

    def _now(self) -> float:
        return self.loop.clock.monotonic()

    def _request(self, message: Request, timeout_s: float, loop: Loop, answer: Answer) -> None:
        request_id, actions = self.session.request(message, timeout_s, self._now())
        self._waiting[request_id] = (loop, answer)
        self._perform(actions)

    def _watch(self, loop: Loop, on_peer: OnPeer, on_caught_up: Callable[[], None]) -> None:
        self._on_peer.append((loop, on_peer))
        self._on_caught_up.append((loop, on_caught_up))
        for record in list(self.session.peers.values()):
            loop.post(lambda record=record: on_peer(record))  # type: ignore[misc]
        if self.session.caught_up:
            loop.post(on_caught_up)

    def _unwatch(self, loop: Loop, on_peer: OnPeer, on_caught_up: Callable[[], None]) -> None:
        self._on_peer.remove((loop, on_peer))
        self._on_caught_up.remove((loop, on_caught_up))

    def _on_tracker(self, received: Arrival) -> None:
        now = self._now()
        if received is Link.UP:
            self._complaint = ""
            self._perform(self.session.link_up(now))
        elif received is Link.DOWN:
            self._perform(self.session.link_down(now))
        elif isinstance(received, Link):
            who = f"the tracker at {self.session.where}"
            error = closed_door(
                received, who, encrypted=self._identity.encrypts, rotating=self._identity.rotating
            )
            self._complain(error)
            self._again_at = now + _AGAIN_S
            sure, final = received in (Link.REFUSED, Link.MISMATCH), received is Link.REFUSED
            self._perform(self.session.link_failed(error, sure, final, now))
        else:
            self._on_reply(received, now)

    def _on_reply(self, received: Arrival, now: float) -> None:
        assert isinstance(received, Received)
        try:
            envelope = wire.decode(received.frames)
        except ZchunkError as error:
            log.warning("the tracker sent a message that cannot be read: %s", error.message)
            request_id = error.details.get("request_id")
            if request_id is not None:
                self._perform(self.session.reply(request_id, wire.error_reply(error), now))
            return
        self._perform(self.session.reply(envelope.request_id, envelope.message, now))

    def _complain(self, error: ZchunkError) -> None:
        """Once, and not with each attempt. A command ends with it anyway, a node goes on."""
        known, self._complaint = self._complaint, error.message
        if error.message != known:
            log.log(logging.INFO if self._registrar is None else logging.WARNING, "%s", error.message)

    def _connect_again(self) -> None:
        """A socket that met a closed door may have given up: others take their place."""
        self._again_at = None
        if not self.session.linked:
            self.loop.remove_socket(self._tracker)
            self._tracker = self._connect()
            self.loop.add_socket(self._tracker, self._on_tracker)
        self._follow_at(self._events_at)

    def _on_event(self, received: Arrival) -> None:
        if received is Link.UP:
            self.session.stream_up(self._now())
        elif isinstance(received, Link):
            self.session.stream_down()
            if received is not Link.DOWN:
                self._again_at = self._again_at or self._now() + _AGAIN_S
        if not isinstance(received, Received):
            return
        try:
            envelope = wire.decode(received.frames[1:])
        except ZchunkError as error:
            log.warning("the tracker sent an event that cannot be read: %s", error.message)
            return
        if isinstance(envelope.message, Event):
            self._perform(self.session.event(envelope.message, self._now()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            self._perform_one(action)

    def _perform_one(self, action: Action) -> None:
        if isinstance(action, Send):
            # Not connected, or full: the session sends it again.
            self._tracker.send(wire.encode(action.message, action.request_id, self._identity.claim))
        elif isinstance(action, Outcome):
            self._answer(action)
        elif isinstance(action, StreamSilent):
            log.info("the tracker's events stopped: subscribing again")
            self._events.reject(Link.DOWN)
        elif isinstance(action, TrackerSeen):
            log.info("the tracker %s", "answers" if action.reachable else "does not answer")
        elif isinstance(action, PeerChanged | CaughtUp | EventSeen):
            self._show(action)
        elif isinstance(action, ShutOut):
            self._shut_out(action.error)
        elif self._registrar is not None:
            self._register(action, self._registrar)

    def _show(self, action: PeerChanged | CaughtUp | EventSeen) -> None:
        """What the cluster looks like now, to those who follow it."""
        if isinstance(action, PeerChanged):
            for loop, on_peer in self._on_peer:
                loop.post(partial(on_peer, action.record))
        elif isinstance(action, CaughtUp):
            self._follow(action.events_at)
            self._emit_caught_up()
            for watcher in self._watchers:
                self._feed(watcher, watcher.feed.caught_up(action.epoch, action.seq))
        else:
            for watcher in self._watchers:
                self._feed(watcher, watcher.feed.seen(action.event))

    def _shut_out(self, error: ZchunkError) -> None:
        self.on_shut_out(error)
        if self._registrar is not None:
            self._registrar.refused(error)

    def _answer(self, outcome: Outcome) -> None:
        loop, answer = self._waiting.pop(outcome.request_id)
        loop.post(lambda: answer(outcome.reply, outcome.error))

    def _add_watcher(self, watcher: _Watcher) -> None:
        self._watchers.append(watcher)
        if self.session.position is not None:
            self._feed(watcher, watcher.feed.caught_up(*self.session.position))

    def _feed(self, watcher: _Watcher, actions: Sequence[Deliver | Missed | Fetch]) -> None:
        for action in actions:
            if isinstance(action, Deliver):
                _call(self.loop, watcher.loop, partial(watcher.on_event, action.event))
            elif isinstance(action, Missed):
                _call(self.loop, watcher.loop, partial(watcher.on_missed, action))
            else:
                ask = GetEvents(epoch=action.epoch, since=action.since)
                self._request(ask, _HISTORY_S, self.loop, partial(self._fetched, watcher))

    def _fetched(self, watcher: _Watcher, reply: Message | None, error: ZchunkError | None) -> None:
        if watcher not in self._watchers:
            return
        events = expect(EventList, reply, error)
        if isinstance(events, ZchunkError):
            log.info("missed events could not be fetched: %s", events)
            self._feed(watcher, watcher.feed.failed(events.retryable))
        else:
            self._feed(watcher, watcher.feed.fetched(events))

    def _follow(self, events_at: tuple[str, ...]) -> None:
        """A tracker that was started anew may publish elsewhere. What is missed while the
        subscription moves shows as a gap."""
        if events_at and events_at != self._events_at:
            self._follow_at(events_at)

    def _follow_at(self, events_at: tuple[str, ...]) -> None:
        self._events_at = events_at
        self.loop.remove_socket(self._events)
        self.session.stream_down()
        self._events = self._subscribe(events_at)
        self.loop.add_socket(self._events, self._on_event)

    def _emit_caught_up(self) -> None:
        for loop, on_caught_up in self._on_caught_up:
            loop.post(on_caught_up)
        if self._registrar is not None:
            self._registrar.caught_up()

    def _register(self, action: Action, registrar: Registrar) -> None:
        if isinstance(action, AskHello):
            self._perform(self.session.register(registrar.hello(), self._now()))
        elif isinstance(action, Registered):
            registrar.registered(action.welcome)
        elif isinstance(action, RegistrationRefused):
            registrar.refused(action.error)


def _call(here: Loop, there: Loop, call: Callable[[], None]) -> None:
    """At once where that is the same loop, so that what follows finds it done."""
    if here is there:
        call()
    else:
        there.post(call)


def _log_missed(missed: Missed) -> None:
    log.warning("events %d to %d of the tracker are lost", missed.first, missed.last)


def expect(kind: type[M], reply: Message | None, error: ZchunkError | None) -> M | ZchunkError:
    """What a request ended with, as an `Answer` is told: the reply, if it is of the one kind that
    this request may be answered with, else the error."""
    if error is not None:
        return error
    if isinstance(reply, kind):
        return reply
    return UnknownMessage(
        f"an answer of type {getattr(reply, 'TYPE', None)!r} to a request for {kind.TYPE!r}"
    )


def checked(answer: M | ZchunkError) -> M:
    """What `expect` found, for callers that handle errors all in one place. Raises the error."""
    if isinstance(answer, ZchunkError):
        raise answer
    return answer
