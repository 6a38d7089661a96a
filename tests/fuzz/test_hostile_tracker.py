"""A tracker that says anything, valid by itself, at any time (SPEC S4): a member's session and
feed go on, hold what has an end, and never ask without a pause."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import asdict, replace

from tests.strategies import messages
from zchunk.node.control.event_feed import MAX_HELD, EventFeed, Fetch
from zchunk.node.control.session import AskHello, Outcome, Send, Session
from zchunk.protocol.messages import (
    BY_TYPE,
    Beat,
    Event,
    EventList,
    GetSnapshot,
    Heartbeat,
    Hello,
    Message,
    PeerRecord,
    Snapshot,
    Welcome,
)

ANSWERS = sorted(BY_TYPE.values(), key=lambda cls: cls.TYPE)
OFTEN = (Snapshot, Beat, Welcome, EventList)
steps = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
HELLO = Hello(
    incarnation=1,
    instance="0" * 16,
    bound="*",
    port=1,
    advertise=(),
    interfaces=(),
    capacity=1,
    free=1,
    chunks=0,
    inventory_digest=bytes(32),
    refuses="",
)


@st.composite
def answers(draw: st.DrawFn) -> Message:
    message: Any = draw(messages(draw(st.sampled_from((*OFTEN * 6, *ANSWERS)))))
    answer: Message = near(draw, message)
    return answer


@st.composite
def events(draw: st.DrawFn) -> Event:
    event = draw(messages(Event))
    record = draw(messages(PeerRecord))
    fields = draw(st.sampled_from((event.fields, {"peer": asdict(record)}, {"peer": {}}, {"peer": 3})))
    topic = draw(st.sampled_from(("tick", "peer.up", "peer.down", "file.removed", event.topic)))
    changed: Event = near(draw, replace(event, fields=fields, topic=topic))
    return changed


def near(draw: st.DrawFn, message: Any) -> Any:
    """Mostly of few runs and small numbers, so that one word of the tracker meets another."""
    changes: dict[str, Any] = {}
    if hasattr(message, "epoch"):
        changes["epoch"] = draw(st.sampled_from(["ee", "e2"]))
    if hasattr(message, "seq"):
        changes["seq"] = draw(st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1)))
    return replace(message, **changes)


class Tracked(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = Session(storing=True, heartbeat_s=1.0, lease_s=3.0, rng=Random(1), where="there")
        self.feed = EventFeed()
        self.asked: list[int] = []
        self.open: set[int] = set()
        self.sent = 0

    def perform(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.asked.append(action.request_id)
                self.sent += 1
            elif isinstance(action, Outcome):
                self.open.remove(action.request_id)
            elif isinstance(action, AskHello):
                self.perform(self.session.register(HELLO, self.now))

    @rule()
    def link(self) -> None:
        is_up = self.session.linked
        self.perform(self.session.link_down(self.now) if is_up else self.session.link_up(self.now))

    @rule()
    def ask(self) -> None:
        request_id, actions = self.session.request(GetSnapshot(), 5.0, self.now)
        self.open.add(request_id)
        self.perform(actions)

    @rule(message=answers(), data=st.data())
    def answer(self, message: Message, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.asked[-6:] or [1]))
        self.perform(self.session.reply(request_id, message, self.now))

    @rule(event=events())
    def event(self, event: Event) -> None:
        self.perform(self.session.event(event, self.now))

    @rule(seconds=st.sampled_from((0.0, 0.1, 1.0, 3.0, 10.0)))
    def time(self, seconds: float) -> None:
        self.now += seconds
        status = Heartbeat(
            incarnation=1, free=1, chunks=0, load=0.0, store_online=True, files_unknown=0, refuses=""
        )
        self.session.set_status(status)
        self.perform(self.session.on_time(self.now))

    @invariant()
    def held_things_end(self) -> None:
        assert len(self.session._early) <= 1000
        assert len(self.session._requests) <= len(self.open) + 3

    @invariant()
    def its_turns_have_pauses(self) -> None:
        """When its time has come it acts, and the next time lies ahead."""
        for _ in range(3):
            at = self.session.deadline()
            if at is None or at > self.now:
                return
            self.perform(self.session.on_time(self.now))
        at = self.session.deadline()
        assert at is None or at > self.now


TestTracked = Tracked.TestCase
TestTracked.settings = steps


@settings(deadline=None)
@given(data=st.data())
def test_a_feed_asks_only_for_what_is_new(data: st.DataObject) -> None:
    """Whatever the tracker answers: each answer brings it on, so that it comes to an end."""
    feed = EventFeed()
    feed.caught_up("e", 0)
    asked = [a for a in feed.seen(Event(topic="x", epoch="e", seq=9, time_ms=0, fields={})) if a]
    since = -1
    for _ in range(30):
        fetches = [action for action in asked if isinstance(action, Fetch)]
        assert len(fetches) <= 1
        assert len(feed._held) <= MAX_HELD
        if not fetches:
            return
        assert fetches[0].since > since
        since = fetches[0].since
        reply = data.draw(messages(EventList))
        numbers = data.draw(st.lists(st.integers(0, 12), max_size=4))
        records = tuple(replace(r, seq=n) for r, n in zip(reply.events, numbers, strict=False))
        asked = feed.fetched(replace(reply, epoch="e", seq=data.draw(st.integers(0, 12)), events=records))
