"""The events that were published: numbered without a gap, and kept for whoever missed some. Pure."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from zchunk.clock import Now
from zchunk.protocol.messages import Event, EventList, EventRecord, GetEvents
from zchunk.tracker.actions import Publish

#: Events kept for `--since` and for subscribers with a gap.
HISTORY = 10_000
#: Events in one answer.
_EVENTS_PAGE = 500


class EventLog:
    """`epoch` is this run of the tracker, `seq` the number of the last event in it."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.seq = 0
        self.history: deque[Event] = deque(maxlen=HISTORY)

    def publish(self, topic: str, fields: dict[str, Any], now: Now) -> Publish:
        self.seq += 1
        event = self._event(topic, fields, now)
        self.history.append(event)
        return Publish(event)

    def tick(self, now: Now) -> Publish:
        """Says which number was the last; has none of its own."""
        return Publish(self._event("tick", {}, now))

    def since(self, ask: GetEvents) -> EventList:
        """Nothing of another run."""
        if ask.epoch != self.epoch or not self.history:
            return EventList(epoch=self.epoch, seq=self.seq, events=())
        skipped = max(0, ask.since + 1 - self.history[0].seq)
        page = islice(self.history, skipped, skipped + _EVENTS_PAGE)
        records = [EventRecord(topic=e.topic, seq=e.seq, time_ms=e.time_ms, fields=e.fields) for e in page]
        return EventList(epoch=self.epoch, seq=self.seq, events=tuple(records))

    def _event(self, topic: str, fields: dict[str, Any], now: Now) -> Event:
        return Event(topic=topic, epoch=self.epoch, seq=self.seq, time_ms=now.wall_ms, fields=fields)
