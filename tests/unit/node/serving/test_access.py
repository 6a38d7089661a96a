"""node/serving/access.py with a gate, a socket and a tracker of the test's own: who is let in, who
is ended, what is asked, and which of two words of the tracker counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict, replace

from zchunk.clock import ManualClock
from zchunk.errors import NotAllowed, StorageFailure, TrackerUnreachable, ZchunkError
from zchunk.node.control.event_feed import Missed
from zchunk.node.serving import access, allow_list
from zchunk.node.serving.access import DOOR, NodeAccess
from zchunk.protocol.messages import (
    CheckKey,
    ErrorReply,
    Event,
    GetMembers,
    KeyKnown,
    MemberRecord,
    Members,
    Message,
    Request,
)
from zchunk.runtime.loop import Loop
from zchunk.transport.base import Knock, Received


def key(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def member(number: int, role: str = "client", revoked: bool = False) -> MemberRecord:
    return MemberRecord(f"{number:032x}", f"M{number}", role, key(number).hex(), revoked)


@dataclass
class Question:
    message: Request
    answer: Callable[[Message | None, ZchunkError | None], None]


class FakeControl:
    """The control plane as the gatekeeper uses it."""

    def __init__(self) -> None:
        self.linked = True
        self.asked: list[Question] = []
        self.on_event: Callable[[Event], None]
        self.on_missed: Callable[[Missed], None]
        self.on_caught_up: Callable[[], None]

    def request(self, message: Request, timeout_s: float, loop: Loop, answer: Any) -> None:
        assert timeout_s > 0
        self.asked.append(Question(message, answer))

    def watch_events(self, loop: Loop, on_event: Any, on_missed: Any) -> None:
        self.on_event, self.on_missed = on_event, on_missed

    def watch_peers(self, loop: Loop, on_peer: Any, on_caught_up: Any) -> None:
        self.on_caught_up = on_caught_up


class FakeGate:
    def __init__(self) -> None:
        self.answers: list[tuple[int, str | None]] = []

    def answer(self, knock: Knock, peer_id: str | None) -> None:
        number = int.from_bytes(knock.ticket[0], "big")
        assert number not in [n for n, _ in self.answers], "answered twice"
        self.answers.append((number, peer_id))


class FakeRouter:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def end(self, peer_id: str) -> None:
        self.ended.append(peer_id)


class FakeLoop:
    """Keeps the handler of the gate."""

    clock = ManualClock()

    def add_socket(self, socket: object, handler: Callable[[Any], None]) -> None:
        self.knock = handler

    def add_timed(self, timed: object) -> None:
        """No knock waits here; `runtime/test_handshakes.py` has those that do."""


class AtOnce:
    """Workers that have no threads."""

    def __init__(self) -> None:
        self.fails = False

    def submit(self, work: Callable[[], Any], done: Callable[[Any, ZchunkError | None], None]) -> None:
        if self.fails:
            done(None, StorageFailure("no disk"))
        else:
            done(work(), None)


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.control, self.gate, self.router = FakeControl(), FakeGate(), FakeRouter()
        self.loop, self.workers, self.knocks = FakeLoop(), AtOnce(), 0
        given: Any = {"loop": self.loop, "gate": self.gate, "router": self.router}
        given |= {"control": self.control, "workers": self.workers}
        self.keeper = NodeAccess(path=path, **given)

    def knock(self, number: int, address: str = "10.0.0.7", door: str = DOOR) -> int:
        """Someone with that key; returns the number of the answer."""
        self.knocks += 1
        ticket = (self.knocks.to_bytes(4, "big"),)
        self.loop.knock(Knock(door, key(number), address, ticket))
        return self.knocks

    def answered(self, knock: int) -> list[str | None]:
        return [peer_id for number, peer_id in self.gate.answers if number == knock]

    def event(self, topic: str, record: MemberRecord | None, **fields: Any) -> None:
        fields |= {"member": asdict(record)} if record is not None else {}
        self.control.on_event(Event(topic=topic, epoch="e", seq=1, time_ms=1, fields=fields))

    def take(self, kind: type[Request]) -> Question:
        question = self.control.asked.pop(0)
        assert isinstance(question.message, kind)
        return question

    def tell(self, *members: MemberRecord, next_page: str = "") -> None:
        self.take(GetMembers).answer(Members(members=members, next_page=next_page), None)

    def served(self, number: int) -> str:
        """ "" where it is served, else what it is told."""
        try:
            self.keeper.check(Received([b""], peer_id=member(number).peer_id))
        except NotAllowed as error:
            return error.message
        return ""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "members.json")


# -- knocks -----------------------------------------------------------------------------------


def test_whom_the_list_has_is_let_in_and_nobody_is_asked(rig: Rig) -> None:
    rig.control.on_caught_up()
    rig.tell(member(1), member(2, revoked=True))
    assert rig.answered(rig.knock(1)) == [member(1).peer_id]
    assert rig.answered(rig.knock(2)) == [None]
    assert rig.answered(rig.knock(1, door="zchunk.tracker")) == [None]
    assert rig.control.asked == []


def test_an_unknown_key_is_asked_about_and_waits_for_the_answer(rig: Rig) -> None:
    first, second = rig.knock(3), rig.knock(3)
    question = rig.take(CheckKey)
    assert rig.control.asked == [], "one question for both"
    assert question.message == CheckKey(public_key=key(3))
    assert rig.gate.answers == []
    question.answer(KeyKnown(member=member(3)), None)
    assert rig.answered(first) == rig.answered(second) == [member(3).peer_id]
    assert rig.served(3) == ""


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (KeyKnown(member=None), None),
        (KeyKnown(member=member(4)), None),
        (KeyKnown(member=member(3, revoked=True)), None),
        (ErrorReply(code="busy", message="", details={}), None),
        (None, TrackerUnreachable("no answer")),
        (None, NotAllowed("cut off")),
    ],
    ids=["nobody's", "of another key", "cut off", "an odd answer", "no answer", "refused"],
)
def test_without_a_good_answer_nobody_is_let_in(
    rig: Rig, reply: Message | None, error: ZchunkError | None
) -> None:
    knock = rig.knock(3)
    rig.take(CheckKey).answer(reply, error)
    assert rig.answered(knock) == [None]
    assert rig.answered(rig.knock(4)) == [], "nor is the other key taken for known"


def test_without_a_tracker_a_stranger_is_refused_at_once(rig: Rig) -> None:
    rig.control.linked = False
    assert rig.answered(rig.knock(3)) == [None]
    assert rig.control.asked == []


def test_a_stranger_who_tries_keys_keeps_no_newcomer_out(rig: Rig) -> None:
    tried = [rig.knock(100 + number, "10.0.0.66") for number in range(50)]
    assert len(rig.control.asked) == access._MOST_OF_ONE
    assert sum(rig.answered(knock) == [None] for knock in tried) == 50 - access._MOST_OF_ONE
    newcomer = rig.knock(3)
    rig.control.asked.pop().answer(KeyKnown(member=member(3)), None)
    assert rig.answered(newcomer) == [member(3).peer_id]


def test_questions_at_one_time_are_bounded_and_there_is_room_again(rig: Rig) -> None:
    for number in range(200):
        rig.knock(100 + number, f"10.0.1.{number}")
    assert len(rig.control.asked) == access._MOST_CHECKS
    for question in rig.control.asked:
        question.answer(KeyKnown(member=None), None)
    assert len(rig.gate.answers) == 200
    rig.control.asked.clear()
    rig.knock(3, "10.0.1.1")
    assert len(rig.control.asked) == 1


# -- events -----------------------------------------------------------------------------------


def test_of_one_unknown_key_only_so_many_knocks_wait(rig: Rig) -> None:
    knocks = [rig.knock(5, address=f"10.0.0.{number}") for number in range(20)]
    assert [rig.answered(knock) for knock in knocks] == [[]] * 8 + [[None]] * 12
    rig.take(CheckKey).answer(KeyKnown(member=member(5)), None)
    assert [rig.answered(knock) for knock in knocks[:8]] == [[member(5).peer_id]] * 8
    assert rig.control.asked == []


def test_who_is_cut_off_is_ended_at_once_and_served_no_longer(rig: Rig) -> None:
    rig.event("member.joined", member(1))
    assert rig.served(1) == ""
    rig.event("member.revoked", member(1, revoked=True))
    assert rig.router.ended == [member(1).peer_id]
    assert "no longer a member" in rig.served(1)
    assert rig.answered(rig.knock(1)) == [None]
    rig.event("member.allowed", member(1))
    assert rig.answered(rig.knock(1)) == [member(1).peer_id]


def test_a_new_key_ends_the_old_ones_lines_and_is_let_in(rig: Rig) -> None:
    rig.event("member.joined", member(1))
    rig.event("member.rotated", replace(member(1), public_key=key(9).hex()))
    assert rig.router.ended == [member(1).peer_id]
    assert rig.answered(rig.knock(9)) == [member(1).peer_id]
    assert rig.answered(rig.knock(1)) == [], "the old key is asked about like any other"


def test_a_newcomer_ends_nobody(rig: Rig) -> None:
    rig.event("member.joined", member(1))
    assert rig.router.ended == []


@pytest.mark.parametrize("fields", [{}, {"member": 7}, {"member": {"peer_id": "x"}}])
def test_an_event_that_cannot_be_read_changes_nothing(rig: Rig, fields: dict[str, Any]) -> None:
    rig.event("member.joined", member(1))
    rig.event("member.revoked", None, **fields)
    assert rig.served(1) == ""


def test_other_events_are_none_of_its_business(rig: Rig) -> None:
    rig.event("peer.up", member(1))
    assert rig.served(1) != ""


@pytest.mark.parametrize("what", ["revoked", "rotated"])
def test_an_event_that_overtakes_an_older_answer_counts(rig: Rig, what: str) -> None:
    """They come by different lines: the answer was given before."""
    rig.event("member.joined", member(3))
    rig.event("member.rotated", replace(member(3), public_key=key(5).hex()))
    knock = rig.knock(3) if what == "revoked" else rig.knock(6)
    question = rig.take(CheckKey)
    later = replace(member(3), public_key=key(5).hex(), revoked=what == "revoked")
    rig.event(f"member.{what}", later)
    stale = member(3) if what == "revoked" else replace(member(3), public_key=key(6).hex())
    question.answer(KeyKnown(member=stale), None)
    assert rig.answered(knock) == [None]
    assert (rig.served(3) == "") == (what == "rotated")


# -- the list ---------------------------------------------------------------------------------


def test_the_list_is_fetched_page_by_page_and_replaces_what_was_known(rig: Rig) -> None:
    rig.event("member.joined", member(7))
    rig.control.on_caught_up()
    rig.tell(member(1), next_page="p")
    assert member(1).peer_id not in {m.peer_id for m in rig.keeper._list.members}, "not by halves"
    assert rig.control.asked[0].message == GetMembers(page="p")
    rig.tell(member(2))
    assert rig.router.ended == [member(7).peer_id], "whom the list does not have"
    assert [rig.served(n) == "" for n in (1, 2, 7)] == [True, True, False]


@pytest.mark.parametrize("pages", ["repeated", "without end"])
def test_a_list_without_an_end_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch, pages: str) -> None:
    monkeypatch.setattr(access, "_MOST_MEMBERS", 50)
    rig.control.on_caught_up()
    rig.tell(member(1))
    rig.control.on_caught_up()
    told = 0
    while rig.control.asked:
        told += 1
        assert told <= 51
        rig.tell(member(told + 1), next_page="a" if pages == "repeated" else f"{told:08}")
    assert told == (2 if pages == "repeated" else 51)
    assert rig.answered(rig.knock(1)) == [member(1).peer_id], "what was known stays"
    rig.control.on_caught_up()
    rig.tell(member(2))
    assert rig.answered(rig.knock(2)) == [member(2).peer_id], "it can be fetched again"


def test_a_list_that_an_event_has_outdated_is_fetched_again(rig: Rig) -> None:
    rig.control.on_caught_up()
    rig.event("member.revoked", member(1, revoked=True))
    rig.tell(member(1))
    assert rig.served(1) != ""
    rig.tell(member(1, revoked=True))
    assert rig.served(1) != ""
    assert rig.control.asked == []


def test_a_gap_fetches_the_list_and_two_gaps_fetch_it_once_more(rig: Rig) -> None:
    rig.control.on_missed(Missed("e", 1, 5))
    rig.control.on_missed(Missed("e", 6, 7))
    assert len(rig.control.asked) == 1
    rig.tell(member(1))
    rig.tell(member(1))
    assert rig.control.asked == []
    assert rig.served(1) == ""


def test_a_list_that_did_not_come_is_asked_for_again(rig: Rig) -> None:
    rig.control.on_caught_up()
    rig.take(GetMembers).answer(None, TrackerUnreachable("no answer"))
    rig.tell(member(1))
    assert rig.served(1) == ""


def test_a_list_that_is_refused_is_not_asked_for_again_and_again(rig: Rig) -> None:
    rig.control.on_caught_up()
    rig.take(GetMembers).answer(None, NotAllowed("cut off"))
    assert rig.control.asked == []
    rig.control.on_caught_up()
    rig.tell(member(1))
    assert rig.served(1) == ""


def test_the_copy_lets_the_known_in_at_the_next_start(rig: Rig) -> None:
    rig.event("member.joined", member(1))
    rig.control.on_caught_up()
    rig.tell(member(1), member(2))
    again = Rig(rig.path)
    again.control.linked = False
    assert again.answered(again.knock(2)) == [member(2).peer_id]
    assert again.answered(again.knock(3)) == [None]


def test_a_revocation_is_in_the_copy(rig: Rig) -> None:
    rig.event("member.joined", member(1))
    rig.event("member.revoked", member(1, revoked=True))
    assert allow_list.load(rig.path).role_of(member(1).peer_id) is None


def test_a_copy_that_cannot_be_kept_does_not_keep_it_from_working(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.workers.fails = True
    rig.event("member.joined", member(1))
    assert rig.served(1) == ""
    assert "no disk" in caplog.text


# -- who is served -----------------------------------------------------------------------------


def test_an_observer_is_let_in_and_not_served(rig: Rig) -> None:
    rig.event("member.joined", member(1, "observer"))
    assert rig.answered(rig.knock(1)) == [member(1).peer_id]
    assert "observer" in rig.served(1)
    assert rig.router.ended == []


def test_who_is_no_member_any_more_is_ended_when_it_speaks(rig: Rig) -> None:
    assert "no longer a member" in rig.served(1)
    assert rig.router.ended == [member(1).peer_id]
