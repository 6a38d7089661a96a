"""node/control/session.py (SPEC D4, D9, S4; DESIGN "Wire"): requests, heartbeats, the event stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from zchunk.errors import (
    Busy,
    HelloFirst,
    NotAllowed,
    NotFound,
    StaleIncarnation,
    StorageFailure,
    StorageUnavailable,
    TrackerUnreachable,
    ZchunkError,
)
from zchunk.node.control.session import (
    _SILENT_S,
    BUSY_S,
    RESEND_S,
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
from zchunk.protocol.messages import (
    Beat,
    Event,
    GetSnapshot,
    Heartbeat,
    Hello,
    ListFiles,
    Message,
    Ok,
    PeerRecord,
    Snapshot,
    Welcome,
    record_in,
)
from zchunk.protocol.wire import error_reply

A, B, C = "a" * 32, "b" * 32, "c" * 32
BEAT, LEASE = 1.0, 3.0
EPOCH = "e1"
EVENTS = ("tcp://10.0.0.9:7701",)
ASK = ListFiles(page="")

HELLO = Hello(
    instance="0" * 16,
    incarnation=1,
    bound="*",
    port=7700,
    advertise=(),
    interfaces=(),
    capacity=10,
    free=5,
    chunks=0,
    inventory_digest=bytes(32),
    refuses="",
)


def welcome(**other: Any) -> Welcome:
    values: dict[str, Any] = {
        "epoch": EPOCH,
        "seq": 0,
        "heartbeat_interval_s": BEAT,
        "lease_s": LEASE,
        "store_id": "s",
        "commit_number": 0,
        "endpoints": (),
        "inventory_wanted": False,
        "incarnation": 1,
    }
    return Welcome(**{**values, **other})


def peer(peer_id: str, status: str = "up", incarnation: int = 1) -> PeerRecord:
    return PeerRecord(
        peer_id=peer_id,
        name=peer_id[:1].upper(),
        role="node",
        status=status,
        incarnation=incarnation,
        endpoints=("tcp://10.0.0.1:7700",),
        capacity=10,
        free=5,
        chunks=0,
        last_seen_ms=1,
    )


def event(seq: int, record: PeerRecord | None = None, *, epoch: str = EPOCH, topic: str = "") -> Event:
    if record is None:
        return Event(topic=topic or "file.removed", epoch=epoch, seq=seq, time_ms=1, fields={})
    status = "peer.up" if record.status == "up" else "peer.down"
    return Event(topic=topic or status, epoch=epoch, seq=seq, time_ms=1, fields={"peer": asdict(record)})


def tick(seq: int, epoch: str = EPOCH) -> Event:
    return event(seq, epoch=epoch, topic="tick")


def snapshot(seq: int, *peers: PeerRecord, epoch: str = EPOCH) -> Snapshot:
    return Snapshot(epoch=epoch, seq=seq, events=EVENTS, peers=peers, unsure=())


def make(storing: bool = False) -> Session:
    return Session(storing=storing, heartbeat_s=BEAT, lease_s=LEASE, rng=Random(1), where="10.0.0.9:7700")


def sends(actions: Iterable[Action], kind: type[Message] = Message) -> list[Send]:
    return [a for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def following(seq: int = 5, *peers: PeerRecord) -> Session:
    """A client's session that is linked and complete as of `seq`."""
    session = make()
    [ask] = sends(session.link_up(0.0), GetSnapshot)
    session.reply(ask.request_id, snapshot(seq, *peers), 0.0)
    return session


def registered() -> Session:
    """A node's session that is registered and complete."""
    session = make(storing=True)
    actions = session.link_up(0.0)
    [ask] = sends(actions, GetSnapshot)
    [hello] = sends(session.register(HELLO, 0.0))
    session.reply(hello.request_id, welcome(), 0.0)
    session.reply(ask.request_id, snapshot(0), 0.0)
    return session


# -- requests ------------------------------------------------------------------------------


def test_a_request_is_sent_and_answered_once() -> None:
    session = following()
    request_id, actions = session.request(ASK, 10.0, 0.0)
    assert actions == [Send(request_id, ASK)]
    reply = Ok()
    assert session.reply(request_id, reply, 0.1) == [Outcome(request_id, reply, None)]
    assert session.reply(request_id, reply, 0.2) == []


def test_an_error_reply_is_an_outcome_with_the_error_it_stands_for() -> None:
    session = following()
    request_id, _ = session.request(ASK, 10.0, 0.0)
    [outcome] = session.reply(request_id, error_reply(NotFound("no such file")), 0.1)
    assert isinstance(outcome, Outcome)
    assert outcome.reply is None
    assert isinstance(outcome.error, NotFound)
    assert outcome.error.message == "no such file"


def test_one_that_the_tracker_is_too_busy_for_is_asked_again_and_ends_with_that_if_it_stays_so() -> None:
    session = following()
    request_id, _ = session.request(ASK, 5.0, 0.0)
    for at in (0.0, 1.0):
        assert session.reply(request_id, error_reply(Busy("come again")), at) == []
        assert sends(session.on_time(at + BUSY_S / 2), ListFiles) == []
        assert session.deadline() is not None
        assert sends(session.on_time(at + BUSY_S), ListFiles) == [Send(request_id, ASK)]
    other, _ = session.request(ASK, 5.0, 2.0)
    session.reply(other, error_reply(Busy("come again")), 2.0)
    assert session.reply(other, Ok(), 2.5) == [Outcome(other, Ok(), None)]
    (outcome,) = [a for a in session.on_time(5.0) if isinstance(a, Outcome)]
    assert outcome.request_id == request_id
    assert isinstance(outcome.error, Busy)
    assert outcome.error.message == "come again"


def test_an_unanswered_request_is_sent_again_and_ends_at_its_deadline() -> None:
    session = following()
    request_id, _ = session.request(ASK, 5.0, 0.0)
    assert sends(session.on_time(RESEND_S), ListFiles) == [Send(request_id, ASK)]
    assert sends(session.on_time(2 * RESEND_S), ListFiles) == [Send(request_id, ASK)]
    outcomes = [a for a in session.on_time(5.0) if isinstance(a, Outcome)]
    assert [type(o.error) for o in outcomes] == [TrackerUnreachable]
    assert "10.0.0.9:7700" in str(outcomes[0].error)
    assert session.reply(request_id, Ok(), 5.1) == [TrackerSeen(True)]


def test_requests_made_without_a_link_are_sent_when_it_is_there() -> None:
    session = make()
    request_id, actions = session.request(ASK, 5.0, 0.0)
    assert actions == []
    assert session.on_time(RESEND_S) == []
    assert sends(session.link_up(3.0), ListFiles) == [Send(request_id, ASK)]


def test_a_request_outlives_a_broken_link() -> None:
    session = following()
    request_id, _ = session.request(ASK, 50.0, 0.0)
    assert session.link_down(1.0) == [TrackerSeen(False)]
    assert sends(session.on_time(10.0)) == []
    assert sends(session.link_up(11.0), ListFiles) == [Send(request_id, ASK)]
    assert Outcome(request_id, Ok(), None) in session.reply(request_id, Ok(), 12.0)


def test_ids_are_never_used_twice() -> None:
    session = following()
    ids = [session.request(ASK, 1.0, 0.0)[0] for _ in range(5)]
    session.on_time(2.0)
    ids += [session.request(ASK, 1.0, 2.0)[0] for _ in range(5)]
    assert len(set(ids)) == 10


@dataclass
class Asked:
    """The requests of one run, and what became of them."""

    open: list[int] = field(default_factory=list)
    ended: Counter[int] = field(default_factory=Counter)

    def note(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Outcome):
                assert (action.reply is None) != (action.error is None)
                self.ended[action.request_id] += 1


STEPS = st.lists(st.sampled_from(["ask", "up", "down", "time", "reply", "reply", "error"]), max_size=60)


@given(steps=STEPS, storing=st.booleans(), rng=st.randoms(use_true_random=False))
def test_each_request_has_exactly_one_outcome(steps: list[str], storing: bool, rng: Random) -> None:
    session, asked, now, sent = make(storing), Asked(), 0.0, [0]

    def do(actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                sent.append(action.request_id)
            if isinstance(action, AskHello):
                do(session.register(HELLO, now))
        asked.note(actions)

    def ask() -> list[Action]:
        request_id, actions = session.request(ASK, 3.0, now)
        asked.open.append(request_id)
        return actions

    happens: dict[str, Callable[[], list[Action]]] = {
        "ask": ask,
        "up": lambda: [] if session.linked else session.link_up(now),
        "down": lambda: session.link_down(now),
        "time": lambda: session.on_time(now),
        "reply": lambda: session.reply(rng.choice(sent), Ok(), now),
        "error": lambda: session.reply(rng.choice(sent), error_reply(HelloFirst("hello")), now),
    }
    for step in steps:
        now += rng.random()
        do(happens[step]())
    do(session.on_time(now + 100.0))
    assert asked.ended == Counter(asked.open)


def test_a_session_woken_at_its_deadline_has_something_to_do() -> None:
    session, now = registered(), 0.0
    session.request(ASK, 7.3, 0.0)
    for _ in range(100):
        wake = session.deadline()
        assert wake is not None
        assert wake >= now
        now = wake
        session.on_time(now)
        again = session.deadline()
        assert again is None or again > now


def test_requests_that_nobody_answers_leave_nothing_behind() -> None:
    session, now = registered(), 0.0
    sizes = []
    for turn in range(500):
        now += 0.5
        session.on_time(now)
        session.event(event(1000 + turn), now)
        sizes.append(len(session._requests) + len(session._early))
    assert max(sizes) <= 1000 + 10
    assert len(session._requests) < 10


def test_events_that_come_before_a_snapshot_are_kept_within_a_bound() -> None:
    session = make()
    session.link_up(0.0)
    for seq in range(5000):
        session.event(event(seq), 0.0)
    assert len(session._early) <= 1000


# -- the tracker is there, or not ------------------------------------------------------------


def test_the_tracker_is_seen_with_its_first_answer_and_gone_with_the_link() -> None:
    session = make()
    [ask] = sends(session.link_up(0.0))
    assert session.reply(ask.request_id, snapshot(1), 0.1) == [TrackerSeen(True), CaughtUp(EPOCH, 1, EVENTS)]
    assert session.link_down(1.0) == [TrackerSeen(False)]
    assert session.link_down(1.1) == []


def test_a_tracker_that_is_silent_for_a_lease_is_gone() -> None:
    session = following()
    assert TrackerSeen(False) not in session.on_time(LEASE)
    assert TrackerSeen(False) in session.on_time(LEASE + 0.1)
    assert TrackerSeen(False) not in session.on_time(LEASE + 0.2)


def test_the_view_of_the_peers_outlives_the_tracker() -> None:
    """SPEC D9: known sources stay known."""
    session = following(5, peer(A), peer(B))
    session.link_down(1.0)
    actions = session.on_time(100.0)
    assert session.peers == {A: peer(A), B: peer(B)}
    assert not [a for a in actions if isinstance(a, PeerChanged)]


# -- registration, heartbeats ------------------------------------------------------------------


def test_a_node_says_hello_first_on_every_link() -> None:
    session = make(storing=True)
    actions = session.link_up(0.0)
    assert actions[0] == AskHello()
    [hello] = session.register(HELLO, 0.0)
    assert isinstance(hello, Send)
    reply = welcome()
    assert session.reply(hello.request_id, reply, 0.1) == [TrackerSeen(True), Registered(reply)]
    session.link_down(1.0)
    assert session.link_up(2.0)[0] == AskHello()


def test_a_hello_of_an_older_link_is_not_sent_on_the_next() -> None:
    session = make(storing=True)
    session.link_up(0.0)
    session.register(HELLO, 0.0)
    session.link_down(1.0)
    assert sends(session.link_up(2.0), Hello) == []


def test_a_client_says_no_hello_but_sends_heartbeats() -> None:
    session = following()
    actions = session.on_time(BEAT)
    assert AskHello() not in actions
    assert len(sends(actions, Heartbeat)) == 1


def test_a_node_sends_its_status_once_per_heartbeat_after_it_is_registered() -> None:
    session = registered()
    status = Heartbeat(
        incarnation=1, free=7, chunks=3, load=0.5, store_online=True, files_unknown=2, refuses=""
    )
    session.set_status(status)
    assert [s.message for s in sends(session.on_time(BEAT))] == [status]
    assert sends(session.on_time(BEAT + 0.1)) == []
    assert [s.message for s in sends(session.on_time(2 * BEAT))] == [status]


def beats(session: Session, ticks: Sequence[float], until: float) -> list[float]:
    """When heartbeats go, where the tracker's ticks come at `ticks`."""
    found: list[float] = []
    waiting = sorted(ticks)
    while (wake := session.deadline()) is not None:
        now = min([wake, *waiting[:1]])
        if now > until:
            return found
        if waiting and now == waiting[0]:
            session.event(tick(0), waiting.pop(0))
        if sends(session.on_time(now), Heartbeat):
            found.append(round(now, 3))
            [beat] = [i for i, r in session._requests.items() if isinstance(r.message, Heartbeat)]
            session.reply(beat, Beat(epoch=EPOCH, seq=0), now)
    return found


@pytest.mark.parametrize("phase", [0.0, 0.2, 0.4, 0.6, 0.999])
def test_heartbeats_go_with_the_ticks_once_these_come(phase: float) -> None:
    """A node at rest wakes up for both at once."""
    session = following(0)
    # A tick is always a little late.
    ticks = [1.0 + phase + number * 1.003 for number in range(20)]
    found = beats(session, ticks, 20.0)
    assert found[3:] == [round(at, 3) for at in ticks if at > found[2] and at <= 20.0]
    assert max(after - before for before, after in pairwise(found)) < 1.6


def test_without_ticks_heartbeats_go_on() -> None:
    session = following(0)
    found = beats(session, [1.3, 2.3, 3.3], 10.0)
    assert len(found) >= 9
    assert max(after - before for before, after in pairwise(found)) <= 1.5


def test_ticks_without_end_bring_no_heartbeats_without_end() -> None:
    session = following(0)
    assert len(beats(session, [number / 100 for number in range(1000)], 10.0)) <= 20


@pytest.mark.parametrize("other", ["many peers", "another interval"])
def test_heartbeats_of_many_or_at_another_interval_keep_their_own_time(other: str) -> None:
    session = following(0)
    if other == "many peers":
        session.peers = {f"{number:032x}": peer(f"{number:032x}") for number in range(100)}
    else:
        session._heartbeat_s = 0.5
    found = beats(session, [number + 0.3 for number in range(10)], 10.0)
    assert not {round(at % 1, 3) for at in found} & {0.3}


def test_an_unanswered_heartbeat_gives_way_to_the_next() -> None:
    """Each is sent once: a tracker that was away is not met by a heap of old ones."""
    session = registered()
    for beat in range(1, 20):
        [sent] = sends(session.on_time(beat * BEAT), Heartbeat)
        assert [i for i, r in session._requests.items() if isinstance(r.message, Heartbeat)] == [
            sent.request_id
        ]


def test_the_trackers_intervals_count() -> None:
    session = make(storing=True)
    session.link_up(0.0)
    [hello] = sends(session.register(HELLO, 0.0))
    session.reply(hello.request_id, welcome(heartbeat_interval_s=0.25, lease_s=1.0), 0.0)
    session.on_time(BEAT)
    wake = session.deadline()
    assert wake == BEAT + 0.25


def test_a_tracker_that_forgot_a_node_is_told_of_it_again() -> None:
    session = registered()
    [beat] = sends(session.on_time(BEAT), Heartbeat)
    assert session.reply(beat.request_id, error_reply(HelloFirst("hello")), BEAT) == [AskHello()]
    session.register(HELLO, BEAT)
    assert sends(session.on_time(2 * BEAT), Heartbeat) == []


def test_one_hello_at_a_time() -> None:
    session = registered()
    [beat] = sends(session.on_time(BEAT), Heartbeat)
    session.register(HELLO, BEAT)
    assert session.reply(beat.request_id, error_reply(HelloFirst("hello")), BEAT) == []


def test_a_refused_registration_is_told_and_ends() -> None:
    session = make(storing=True)
    session.link_up(0.0)
    [hello] = sends(session.register(HELLO, 0.0))
    actions = session.reply(hello.request_id, error_reply(StaleIncarnation("newer")), 0.1)
    [refused] = [a for a in actions if isinstance(a, RegistrationRefused)]
    assert isinstance(refused.error, StaleIncarnation)
    assert AskHello() not in actions


@pytest.mark.parametrize("error", [Busy("later"), HelloFirst("?")])
def test_a_registration_that_may_go_later_is_tried_with_the_next_heartbeat(error: ZchunkError) -> None:
    """Not at once: the answer to it may be the same for a while."""
    session = make(storing=True)
    session.link_up(0.0)
    [hello] = sends(session.register(HELLO, 0.0))
    assert AskHello() not in session.reply(hello.request_id, error_reply(error), 0.1)
    assert AskHello() in session.on_time(BEAT)


@pytest.mark.parametrize("error", [Busy("later"), StorageUnavailable("its disk"), StorageFailure("its disk")])
def test_a_node_that_says_hello_anew_in_vain_goes_on_until_it_is_answered(error: ZchunkError) -> None:
    """Its heartbeats would keep it arriving at the tracker, which waits for it, for ever."""
    session = registered()
    [hello] = sends(session.register(HELLO, 0.5))
    assert AskHello() not in session.reply(hello.request_id, error_reply(error), 0.6)
    actions = session.on_time(BEAT)
    assert AskHello() in actions
    assert sends(actions, Heartbeat) == []


def test_a_hello_without_an_answer_is_said_again() -> None:
    session = make(storing=True)
    session.link_up(0.0)
    session.register(HELLO, 0.0)
    session.on_time(2 * LEASE)
    assert AskHello() in session.on_time(2 * LEASE + BEAT)


# -- the event stream ----------------------------------------------------------------------------


def test_events_in_order_change_the_view_and_are_seen_once() -> None:
    session = following(5, peer(A))
    first, second = event(6, peer(B)), event(7, peer(A, "down"))
    assert session.event(first, 1.0) == [PeerChanged(peer(B), None), EventSeen(first)]
    assert session.event(second, 1.0) == [PeerChanged(peer(A, "down"), peer(A)), EventSeen(second)]
    assert session.event(first, 1.0) == session.event(second, 1.0) == []
    assert session.peers == {A: peer(A, "down"), B: peer(B)}


def test_an_event_that_changes_no_peer_is_seen_all_the_same() -> None:
    session = following()
    removed = event(6)
    assert session.event(removed, 1.0) == [EventSeen(removed)]


def answered(session: Session, now: float) -> list[StreamSilent]:
    request_id, _ = session.request(ASK, 10.0, now)
    return [a for a in session.reply(request_id, Ok(), now) if isinstance(a, StreamSilent)]


def test_a_stream_by_which_no_tick_comes_is_made_anew_where_the_tracker_answers() -> None:
    session = following()
    session.stream_up(0.0)
    session.event(tick(5), 1.0)
    assert answered(session, 1.1) == []
    assert answered(session, 2.1) == []
    assert answered(session, 2.5) == []
    assert answered(session, 2.6) == [StreamSilent()]
    assert answered(session, 10.0) == []  # until there is another
    session.stream_up(11.0)
    assert answered(session, 12.1) == []
    assert answered(session, 12.6) == [StreamSilent()]


@pytest.mark.parametrize("stopped_s", [1.2, 3.0, 100.0])
def test_a_tracker_that_was_stopped_answers_and_then_ticks(stopped_s: float) -> None:
    session = following()
    session.stream_up(0.0)
    for late in range(1, 4):
        session.event(tick(5), late * stopped_s)
        assert answered(session, (late + 1) * stopped_s - 0.02) == []
        assert answered(session, (late + 1) * stopped_s - 0.01) == []


def test_a_stream_by_which_ticks_come_stays() -> None:
    session = following()
    session.stream_up(0.0)
    for second in range(1, 20):
        session.event(tick(5), second + 0.4)
        assert answered(session, second + 0.9) == []


def test_a_tracker_that_is_late_with_everything_loses_no_stream() -> None:
    session = following()
    session.stream_up(0.0)
    for second in range(1, 20):
        assert StreamSilent() not in session.on_time(second)
    session.event(tick(5), 20.0)
    assert answered(session, 20.1) == []


@pytest.mark.parametrize(("silent_s", "lost"), [(0.9, False), (_SILENT_S, True)])
def test_a_line_that_broke_for_both_is_given_up_for_both(silent_s: float, lost: bool) -> None:
    session = following()
    session.stream_up(0.0)
    session.event(tick(5), 1.0)
    assert (StreamSilent() in session.link_down(1.0 + silent_s)) is lost


def test_a_stream_that_has_ended_is_not_ended_again() -> None:
    session = following()
    session.stream_up(0.0)
    session.stream_down()
    assert answered(session, 10.0) == []


def test_a_tick_is_not_seen_and_its_number_is_the_last_ones() -> None:
    session = following(5)
    assert session.event(tick(5), 1.0) == []
    assert session.event(event(6), 1.0) != []
    assert session.event(tick(5), 1.0) == []
    assert session._snapshot_at is None


@pytest.mark.parametrize("far", [event(7), event(100), tick(6), event(6, epoch="e2"), tick(5, epoch="e2")])
def test_a_gap_or_a_new_epoch_is_followed_by_a_snapshot(far: Event) -> None:
    session = following(5, peer(A))
    assert session.event(far, 0.5) == []
    asked: list[Send] = []
    while not asked:  # a tick also asks for a heartbeat
        wake = session.deadline()
        assert wake is not None
        assert 0.5 <= wake <= 0.55
        asked = sends(session.on_time(wake), GetSnapshot)
    [ask] = asked
    assert session.event(event(8, peer(C)), 1.1) == []  # while it is asked, events wait
    actions = session.reply(ask.request_id, snapshot(7, peer(B), epoch=EPOCH), 1.2)
    assert actions == [
        PeerChanged(peer(B), None),
        PeerChanged(replace(peer(A), status="down"), peer(A)),
        CaughtUp(EPOCH, 7, EVENTS),
        PeerChanged(peer(C), None),
        EventSeen(event(8, peer(C))),
    ]
    assert session.peers == {B: peer(B), C: peer(C)}


def test_subscribers_do_not_all_ask_at_once() -> None:
    wakes = set()
    for seed in range(20):
        session = Session(storing=False, heartbeat_s=BEAT, lease_s=LEASE, rng=Random(seed), where="t")
        [ask] = sends(session.link_up(0.0))
        session.reply(ask.request_id, snapshot(0), 0.0)
        session.event(event(9), 0.5)
        wakes.add(session.deadline())
    assert len(wakes) > 10


def test_what_is_older_than_the_snapshot_is_dropped() -> None:
    session = make()
    [ask] = sends(session.link_up(0.0))
    session.event(event(4, peer(A, "down")), 0.0)
    session.event(event(6, peer(B)), 0.0)
    session.event(event(3, peer(C), epoch="old"), 0.0)
    session.event(event(9, peer(C), epoch="old"), 0.0)
    session.reply(ask.request_id, snapshot(5, peer(A)), 0.1)
    assert session.peers == {A: peer(A), B: peer(B)}
    assert sends(session.on_time(0.5), GetSnapshot) == []  # nothing is missing


def test_what_came_out_of_order_before_the_snapshot_is_put_in_order() -> None:
    session = make()
    [ask] = sends(session.link_up(0.0))
    events = [event(6), event(7, peer(A)), event(8, peer(A, "down"))]
    for at in (2, 0, 1, 0):
        session.event(events[at], 0.0)
    actions = session.reply(ask.request_id, snapshot(5), 0.1)
    assert [a.event for a in actions if isinstance(a, EventSeen)] == events
    assert session.peers == {A: peer(A, "down")}
    assert sends(session.on_time(0.5), GetSnapshot) == []


def test_a_new_tracker_run_is_followed_by_its_snapshot() -> None:
    session = following(500, peer(A))
    session.link_down(1.0)
    [ask] = sends(session.link_up(2.0), GetSnapshot)
    actions = session.reply(ask.request_id, snapshot(1, peer(A, "up", 2), epoch="e2"), 2.1)
    assert CaughtUp("e2", 1, EVENTS) in actions
    seen = event(2, peer(B), epoch="e2")
    assert EventSeen(seen) in session.event(seen, 3.0)
    assert session.peers == {A: peer(A, "up", 2), B: peer(B)}


@pytest.mark.row("D9")
@pytest.mark.parametrize(
    ("before", "incarnation", "kept"), [("up", 1, True), ("down", 1, False), ("up", 2, False)]
)
def test_who_was_up_counts_as_up_until_a_tracker_that_just_started_knows(
    before: str, incarnation: int, kept: bool
) -> None:
    session = following(500, peer(A, before))
    session.link_down(1.0)
    [ask] = sends(session.link_up(2.0), GetSnapshot)
    told = peer(A, "down", incarnation)
    answer = Snapshot(epoch="e2", seq=1, events=EVENTS, peers=(told,), unsure=(A,))
    actions = session.reply(ask.request_id, answer, 2.1)
    assert session.peers == {A: peer(A, "up") if kept else told}
    if kept:
        assert not [action for action in actions if isinstance(action, PeerChanged)]
    session.event(event(2, told, epoch="e2"), 5.0)
    assert session.peers == {A: told}


def test_a_lost_event_is_found_by_the_heartbeats_answer() -> None:
    session = following(5)
    [beat] = sends(session.on_time(1.0), Heartbeat)
    session.reply(beat.request_id, Beat(epoch=EPOCH, seq=6), 1.0)
    assert sends(session.on_time(1.05), GetSnapshot) == []
    assert len(sends(session.on_time(1.2), GetSnapshot)) == 1


def test_an_event_that_a_heartbeats_answer_overtook_needs_no_snapshot() -> None:
    session = following(5)
    [beat] = sends(session.on_time(1.0), Heartbeat)
    session.reply(beat.request_id, Beat(epoch=EPOCH, seq=6), 1.0)
    session.event(event(6), 1.05)
    assert sends(session.on_time(1.2), GetSnapshot) == []


def test_a_lost_snapshot_is_asked_for_again() -> None:
    session = make()
    session.link_up(0.0)
    asked = 0
    now = 0.0
    while now < 20.0:
        wake = session.deadline()
        assert wake is not None
        now = wake
        asked += len(sends(session.on_time(now), GetSnapshot))
    assert asked >= 5


def test_a_refused_snapshot_is_asked_for_again_but_not_at_once() -> None:
    session = make()
    [ask] = sends(session.link_up(0.0))
    actions = session.reply(ask.request_id, error_reply(Busy("later")), 0.1)
    assert sends(actions) == []
    assert len(sends(session.on_time(0.1 + BEAT), GetSnapshot)) == 1


@pytest.mark.parametrize(
    "fields",
    [{}, {"peer": None}, {"peer": {}}, {"peer": {**asdict(peer(A)), "peer_id": "x"}}, {"peer": [1]}],
)
def test_an_event_without_its_peer_tells_of_none(fields: dict[str, Any]) -> None:
    strange = Event(topic="peer.up", epoch=EPOCH, seq=6, time_ms=1, fields=fields)
    assert record_in(fields.get("peer"), PeerRecord) is None
    session = following(5, peer(A))
    assert session.event(strange, 1.0) == [EventSeen(strange)]
    assert session.peers == {A: peer(A)}


# -- a faulty network -----------------------------------------------------------------------------


class Cluster:
    """A tracker, its stream and its answers, on a network that loses, doubles and reorders."""

    def __init__(self, rng: Random, storing: bool) -> None:
        self.rng = rng
        self.session = make(storing)
        self.epoch, self.seq = "e0", 0
        self.peers: dict[str, PeerRecord] = {}
        self.now = 0.0
        self.faulty = True
        self.stream: list[Event] = []
        self.requests: list[Send] = []
        self.replies: list[tuple[int, Message]] = []
        self.seen: list[tuple[str, int]] = []
        self.told: dict[str, PeerRecord] = {}

    def publish(self, record: PeerRecord) -> None:
        self.seq += 1
        self.peers[record.peer_id] = record
        self._put(event(self.seq, record, epoch=self.epoch))

    def tick(self) -> None:
        self._put(tick(self.seq, self.epoch))

    def restart(self) -> None:
        self.epoch, self.seq = f"e{int(self.epoch[1:]) + 1}", 0
        self.do(self.session.link_down(self.now))

    def _put(self, published: Event) -> None:
        copies = self.rng.choice([0, 1, 1, 1, 2]) if self.faulty else 1
        self.stream += [published] * copies

    def deliver(self) -> None:
        """Something that is on its way arrives."""
        pools: list[list[Any]] = [p for p in (self.stream, self.requests, self.replies) if p]
        if not pools:
            return
        pool = self.rng.choice(pools)
        at = self.rng.randrange(len(pool)) if self.faulty else 0
        item = pool.pop(at)
        if isinstance(item, Event):
            self.do(self.session.event(item, self.now))
        elif isinstance(item, Send):
            if not self.faulty or self.rng.random() < 0.8:
                self.replies.append((item.request_id, self._answer(item.message)))
        else:
            self.do(self.session.reply(item[0], item[1], self.now))

    def _answer(self, message: Message) -> Message:
        if isinstance(message, Hello):
            return welcome(epoch=self.epoch, seq=self.seq)
        if isinstance(message, GetSnapshot):
            peers = tuple(self.peers.values())
            return Snapshot(epoch=self.epoch, seq=self.seq, events=EVENTS, peers=peers, unsure=())
        return Beat(epoch=self.epoch, seq=self.seq)

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.requests.append(action)
            elif isinstance(action, AskHello):
                self.do(self.session.register(HELLO, self.now))
            elif isinstance(action, EventSeen):
                self.seen.append((action.event.epoch, action.event.seq))
            elif isinstance(action, PeerChanged):
                assert self.told.get(action.record.peer_id) == action.before or action.before is None
                self.told[action.record.peer_id] = action.record

    def time(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.session.on_time(self.now))

    def settle(self) -> None:
        """No faults any more, for a few seconds."""
        self.faulty = False
        if not self.session.linked:
            self.do(self.session.link_up(self.now))
        for _ in range(100):
            while self.stream or self.requests or self.replies:
                self.deliver()
            self.tick()
            self.time(0.1)


STATUSES = st.sampled_from(["up", "down", "left"])
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("peer"), st.sampled_from([A, B, C]), STATUSES, st.integers(1, 3)),
        st.just(("deliver",)),
        st.just(("deliver",)),
        st.just(("tick",)),
        st.just(("restart",)),
        st.just(("forget",)),
        st.just(("link",)),
        st.tuples(st.just("time"), st.sampled_from([0.01, 0.2, 1.0, 4.0])),
    ),
    max_size=80,
)


@given(happenings=HAPPENINGS, storing=st.booleans(), rng=st.randoms(use_true_random=False))
def test_whatever_is_lost_doubled_or_reordered_the_view_becomes_the_trackers(
    happenings: list[tuple[Any, ...]], storing: bool, rng: Random
) -> None:
    cluster = Cluster(rng, storing)
    cluster.do(cluster.session.link_up(0.0))
    for happening in happenings:
        if happening[0] == "peer":
            cluster.publish(peer(*happening[1:]))
        elif happening[0] == "deliver":
            cluster.deliver()
        elif happening[0] == "tick":
            cluster.tick()
        elif happening[0] == "restart":
            cluster.restart()
        elif happening[0] == "forget":
            cluster.peers.pop(A, None)
            cluster.restart()
        elif happening[0] == "link" and not cluster.session.linked:
            cluster.do(cluster.session.link_up(cluster.now))
        elif happening[0] == "time":
            cluster.time(happening[1])
    cluster.settle()
    assert cluster.session.peers == cluster.peers
    assert cluster.session._position == (cluster.epoch, cluster.seq)
    up = {p for p, record in cluster.told.items() if record.status == "up"}
    assert up == {p for p, record in cluster.peers.items() if record.status == "up"}
    assert len(set(cluster.seen)) == len(cluster.seen), "an event was seen twice"
    for epoch in {epoch for epoch, _ in cluster.seen}:
        numbers = [seq for e, seq in cluster.seen if e == epoch]
        assert numbers == sorted(numbers), "an event was seen out of order"


# -- a tracker that does not talk to us -----------------------------------------------------------

CLOSED = NotAllowed("it does not let this PC in")


def failed(session: Session, sure: bool = True, final: bool = True, now: float = 1.0) -> list[Action]:
    return session.link_failed(CLOSED, sure, final, now)


@pytest.mark.parametrize("storing", [False, True])
def test_who_is_refused_is_shut_out_and_what_it_asked_is_answered(storing: bool) -> None:
    session = registered() if storing else following()
    request_id, _ = session.request(ASK, 50.0, 0.5)
    actions = failed(session)
    assert Outcome(request_id, None, CLOSED) in actions
    assert actions[-1] == ShutOut(CLOSED)
    assert not session.linked
    assert [a for a in session.on_time(200.0) if isinstance(a, Outcome)] == [], "answered once"


def test_what_is_asked_later_is_answered_at_once() -> None:
    session = following()
    failed(session)
    request_id, actions = session.request(ASK, 50.0, 2.0)
    assert actions == [Outcome(request_id, None, CLOSED)]
    assert session.request(ASK, 50.0, 2.0)[0] != request_id


@pytest.mark.parametrize("storing", [False, True])
def test_who_never_had_a_link_is_shut_out_by_another_transport(storing: bool) -> None:
    assert failed(make(storing), sure=True, final=False)[-1] == ShutOut(CLOSED)


def test_who_had_a_link_waits_for_the_tracker_to_speak_as_before() -> None:
    session = registered()
    session.link_down(0.5)
    assert not any(isinstance(a, ShutOut) for a in failed(session, sure=True, final=False))
    request_id, actions = session.request(ASK, 5.0, 2.0)
    assert actions == [Outcome(request_id, None, CLOSED)]
    assert any(isinstance(a, AskHello) for a in session.link_up(3.0))
    _, actions = session.request(ASK, 5.0, 3.0)
    assert sends(actions, ListFiles), "it is asked again"


def test_a_line_that_is_broken_for_a_while_ends_only_who_never_had_one() -> None:
    assert failed(following(), sure=False, final=False) == []
    assert failed(make(storing=True), sure=False, final=False) == []
    assert failed(make(), sure=False, final=False)[-1] == ShutOut(CLOSED)


def test_a_snapshot_is_asked_for_again_after_a_closed_door() -> None:
    session = make()
    session.link_up(0.0)
    failed(session, sure=True, final=False)
    assert sends(session.link_up(2.0), GetSnapshot)
