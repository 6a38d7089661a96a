"""The tracker's events for who wants each of them: in order, once, without a hole. Pure.

A session's view of the peers jumps over a hole by a snapshot; who follows events (tools, a
node that frees what was removed) wants those in the hole as well. The tracker keeps its
latest events, so they are fetched, and what comes meanwhile is held back.

What may not happen here: an event delivered twice or out of order; a hole that is neither
filled nor told of as `Missed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from zchunk.protocol.messages import Event, EventList

#: Events held back while earlier ones are fetched; what is dropped beyond is fetched too.
MAX_HELD = 1000


@dataclass(frozen=True, slots=True)
class Deliver:
    event: Event


@dataclass(frozen=True, slots=True)
class Missed:
    """The tracker no longer has these events of its run."""

    epoch: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the tracker for the events after `since`; answer with `fetched`, or `failed`."""

    epoch: str
    since: int


Action = Deliver | Missed | Fetch


class EventFeed:
    def __init__(self, since: int | None = None) -> None:
        """`since`: begin behind this event of the present run; None: with what comes now."""
        self._since = since
        #: (epoch, seq) of the event delivered last
        self._position: tuple[str, int] | None = None
        #: the highest seq of this epoch that is known to exist
        self._latest = 0
        self._held: dict[int, Event] = {}
        self._asked: Fetch | None = None

    def caught_up(self, epoch: str, seq: int) -> list[Action]:
        """The session's view is that of this event: the first time, or behind a hole."""
        if self._position is None:
            self._position = epoch, seq if self._since is None else min(self._since, seq)
        elif self._position[0] != epoch:
            self._position = epoch, 0
            self._held, self._latest = {}, 0
        self._latest = max(self._latest, seq)
        return self._advance()

    def seen(self, event: Event) -> list[Action]:
        """An event that the session found to be in order."""
        if self._position is None or self._position[0] != event.epoch:
            return []  # `caught_up` comes first
        self._latest = max(self._latest, event.seq)
        if event.seq > self._position[1] and len(self._held) < MAX_HELD:
            self._held[event.seq] = event
        return self._advance()

    def fetched(self, reply: EventList) -> list[Action]:
        asked, self._asked = self._asked, None
        if asked is None or self._position is None or asked.epoch != self._position[0]:
            return self._advance()
        epoch, seq = self._position
        if reply.epoch != epoch:
            return []  # a new run of the tracker: the session will say so
        actions: list[Action] = []
        before = seq
        for event in _events(reply):
            if event.seq <= seq:
                continue
            if event.seq > seq + 1:
                actions.append(Missed(epoch, seq + 1, event.seq - 1))
            actions.append(Deliver(event))
            seq = event.seq
        # A tracker that contradicts itself, asked again at once, would do so for ever.
        known = reply.seq if reply.seq > seq else self._latest
        if seq == before and known > seq:
            first = min((n for n in self._held if n > seq), default=known + 1)
            if first > seq + 1:
                actions.append(Missed(epoch, seq + 1, first - 1))
            seq = first - 1
        self._position = epoch, seq
        return actions + self._advance()

    def failed(self, retryable: bool) -> list[Action]:
        """The tracker did not answer (then it is asked again), or refused."""
        self._asked = None
        actions: list[Action] = []
        if not retryable and self._position is not None:
            epoch, seq = self._position
            first = min(self._held, default=self._latest + 1)
            if first > seq + 1:
                actions.append(Missed(epoch, seq + 1, first - 1))
            self._position = epoch, max(seq, first - 1)
        return actions + self._advance()

    def _advance(self) -> list[Action]:
        """Deliver what is next, ask for what is missing."""
        if self._position is None or self._asked is not None:
            return []
        epoch, seq = self._position
        actions: list[Action] = []
        while (event := self._held.pop(seq + 1, None)) is not None:
            actions.append(Deliver(event))
            seq += 1
        self._position = epoch, seq
        self._held = {number: event for number, event in self._held.items() if number > seq}
        if seq < self._latest:
            self._asked = Fetch(epoch, seq)
            actions.append(self._asked)
        return actions


def _events(reply: EventList) -> list[Event]:
    events = [
        Event(topic=r.topic, epoch=reply.epoch, seq=r.seq, time_ms=r.time_ms, fields=r.fields)
        for r in reply.events
    ]
    return sorted(events, key=lambda event: event.seq)
