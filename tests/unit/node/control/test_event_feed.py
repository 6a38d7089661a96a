"""node/control/event_feed.py (SPEC I1): whoever follows the events gets each one, once, in order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.node.control.event_feed import MAX_HELD, Action, Deliver, EventFeed, Fetch, Missed
from zchunk.protocol.messages import Event, EventList, EventRecord

EPOCH = "e1"


def event(seq: int, epoch: str = EPOCH) -> Event:
    return Event(topic="peer.up", epoch=epoch, seq=seq, time_ms=seq, fields={})


def listed(first: int, last: int, seq: int, epoch: str = EPOCH) -> EventList:
    records = [EventRecord(topic="peer.up", seq=n, time_ms=n, fields={}) for n in range(first, last + 1)]
    return EventList(epoch=epoch, seq=seq, events=tuple(records))


def delivers(first: int, last: int, epoch: str = EPOCH) -> list[Action]:
    return [Deliver(event(seq, epoch)) for seq in range(first, last + 1)]


def following(seq: int = 5) -> EventFeed:
    feed = EventFeed()
    assert feed.caught_up(EPOCH, seq) == []
    return feed


def test_it_begins_with_what_comes_now() -> None:
    feed = following(5)
    assert feed.seen(event(6)) == [Deliver(event(6))]
    assert feed.seen(event(6)) == []
    assert feed.seen(event(7)) == [Deliver(event(7))]


def test_since_begins_in_the_past_of_this_run() -> None:
    feed = EventFeed(since=2)
    assert feed.seen(event(6)) == []
    assert feed.caught_up(EPOCH, 5) == [Fetch(EPOCH, 2)]
    assert feed.fetched(listed(3, 5, 5)) == delivers(3, 5)
    assert EventFeed(since=9).caught_up(EPOCH, 5) == [], "what does not exist yet is waited for"


def test_events_in_a_hole_are_fetched_and_later_ones_held_back() -> None:
    feed = following(5)
    assert feed.caught_up(EPOCH, 8) == [Fetch(EPOCH, 5)]
    assert feed.seen(event(9)) == []
    assert feed.fetched(listed(6, 8, 8)) == delivers(6, 9)


def test_a_long_hole_is_fetched_page_by_page() -> None:
    feed = following(0)
    feed.caught_up(EPOCH, 5)
    assert feed.fetched(listed(1, 2, 7)) == [*delivers(1, 2), Fetch(EPOCH, 2)]
    assert feed.fetched(listed(3, 7, 7)) == delivers(3, 7)
    assert feed.seen(event(7)) == []


def test_what_the_tracker_no_longer_has_is_told() -> None:
    feed = following(5)
    feed.caught_up(EPOCH, 30)
    assert feed.fetched(listed(21, 30, 30)) == [Missed(EPOCH, 6, 20), *delivers(21, 30)]
    feed.caught_up(EPOCH, 40)
    assert feed.fetched(EventList(epoch=EPOCH, seq=40, events=())) == [Missed(EPOCH, 31, 40)]


def test_a_new_run_is_followed_from_its_first_event() -> None:
    feed = following(5)
    assert feed.caught_up("e2", 2) == [Fetch("e2", 0)]
    assert feed.fetched(listed(1, 2, 2, "e2")) == delivers(1, 2, "e2")
    assert feed.seen(event(6)) == [], "the old run's"


def test_an_answer_for_the_run_before_counts_for_nothing() -> None:
    feed = following(5)
    feed.caught_up(EPOCH, 8)
    assert feed.caught_up("e2", 3) == [], "one question at a time"
    assert feed.fetched(listed(6, 8, 8)) == [Fetch("e2", 0)]


def test_an_answer_of_a_newer_run_is_waited_out() -> None:
    feed = following(5)
    feed.caught_up(EPOCH, 8)
    assert feed.fetched(EventList(epoch="e2", seq=3, events=())) == []
    assert feed.caught_up("e2", 3) == [Fetch("e2", 0)]


def test_without_an_answer_it_asks_again_and_after_a_refusal_it_goes_on() -> None:
    feed = following(5)
    feed.caught_up(EPOCH, 8)
    feed.seen(event(9))
    assert feed.failed(retryable=True) == [Fetch(EPOCH, 5)]
    assert feed.failed(retryable=False) == [Missed(EPOCH, 6, 8), Deliver(event(9))]


def test_what_is_held_back_is_bounded_and_the_rest_is_fetched() -> None:
    feed = following(0)
    feed.caught_up(EPOCH, 1)
    last = 3 * MAX_HELD
    for seq in range(2, last + 1):
        assert feed.seen(event(seq)) == []
    assert len(feed._held) <= MAX_HELD
    assert feed.fetched(listed(1, 1, 1)) == [*delivers(1, MAX_HELD + 1), Fetch(EPOCH, MAX_HELD + 1)]


class Story:
    """A tracker that restarts and forgets, answers that are late, a session that jumps."""

    def __init__(self, rng: Random, since: int | None) -> None:
        self.rng = rng
        self.feed = EventFeed(since)
        self.number, self.seq, self.oldest = 1, rng.randrange(4), 1
        self.begin = self.seq if since is None else min(since, self.seq)
        self.asked: list[Fetch] = []
        #: epoch -> numbers that were delivered or told to be missed
        self.told: dict[str, list[int]] = {}
        self.session_jumps()

    @property
    def epoch(self) -> str:
        return f"e{self.number}"

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Deliver):
                self.told.setdefault(action.event.epoch, []).append(action.event.seq)
            elif isinstance(action, Missed):
                self.told.setdefault(action.epoch, []).extend(range(action.first, action.last + 1))
            else:
                self.asked.append(action)

    def published(self) -> None:
        self.seq += 1
        self.do(self.feed.seen(event(self.seq, self.epoch)))

    def lost(self) -> None:
        self.seq += 1

    def session_jumps(self) -> None:
        self.do(self.feed.caught_up(self.epoch, self.seq))

    def restart(self) -> None:
        self.number, self.seq, self.oldest = self.number + 1, self.rng.randrange(3), 1
        self.session_jumps()

    def forget(self) -> None:
        self.oldest = min(self.seq + 1, self.oldest + self.rng.randrange(3))

    def answer(self) -> None:
        if not self.asked:
            return
        ask = self.asked.pop(0)
        reply = EventList(epoch=self.epoch, seq=self.seq, events=())
        if ask.epoch == self.epoch:
            first = max(ask.since + 1, self.oldest)
            reply = listed(first, min(self.seq, first + 2), self.seq, self.epoch)
        self.do(self.feed.fetched(reply))

    def no_answer(self) -> None:
        if self.asked:
            self.asked.pop(0)
            self.do(self.feed.failed(retryable=True))

    def end(self) -> None:
        self.session_jumps()
        while self.asked:
            self.answer()


HAPPENINGS = (
    *(Story.published, Story.published, Story.lost, Story.session_jumps, Story.restart),
    *(Story.forget, Story.answer, Story.answer, Story.no_answer),
)


@pytest.mark.row("I1")
@given(
    happenings=st.lists(st.sampled_from(HAPPENINGS), max_size=60),
    rng=st.randoms(use_true_random=False),
    since=st.one_of(st.none(), st.integers(0, 5)),
)
def test_every_event_comes_once_in_order_or_is_told_to_be_missed(
    happenings: list[Callable[[Story], None]], rng: Random, since: int | None
) -> None:
    story = Story(rng, since)
    for happening in happenings:
        happening(story)
    story.end()
    for numbers in story.told.values():
        assert numbers == sorted(set(numbers)), "twice, or out of order"
    first = story.begin + 1 if story.number == 1 else 1
    assert story.told.get(story.epoch, []) == list(range(first, story.seq + 1))
