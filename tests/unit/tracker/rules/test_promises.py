"""tracker/rules/promises.py: how long space is kept for an upload, and for whom."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zchunk.tracker.rules.promises import (
    GONE_S,
    LEFT_S,
    MAX_LEFT,
    MAX_PROMISES,
    SILENT_S,
    STUCK_S,
    Asker,
    Promises,
)

CHUNK = 10
FREE = {"a": 100, "b": 100}
LINE, OTHER_LINE = b"line", b"other line"


def upload(
    number: int = 1, member: str = "me", line: bytes = LINE, size: int = 150, anew: bool = True
) -> Asker:
    return Asker(f"{number:032x}", member, line, size, CHUNK, anew)


ID = upload().upload_id
OTHER = upload(99, "you", b"yours")


def taken(promises: Promises, asker: Asker = OTHER, now: float = 0.0) -> dict[str, int]:
    """Without what is zero."""
    return {peer: size for peer, size in promises.taken(asker, FREE, now).items() if size}


def promised(now: float = 0.0) -> Promises:
    promises = Promises()
    promises.add(upload(), {"a": 100, "b": 50}, now)
    return promises


def test_what_is_stored_is_promised_no_more() -> None:
    promises = promised()
    assert taken(promises) == {"a": 100, "b": 50}
    assert taken(promises, upload()) == {}, "its own"
    promises.stored(ID, "a", 3, 0.0)
    assert taken(promises) == {"a": 70, "b": 50}
    promises.stored(ID, "a", 1000, 0.0)
    promises.stored(upload(7).upload_id, "b", 1, 0.0)
    assert taken(promises) == {"b": 50}


def test_a_promise_ends_without_a_sign_of_its_upload() -> None:
    promises = promised()
    promises.expire(SILENT_S - 1)
    assert taken(promises)
    promises.stored(ID, "a", 1, SILENT_S - 1)
    promises.heard(OTHER_LINE, SILENT_S)
    promises.expire(2 * SILENT_S - 2)
    assert taken(promises)
    promises.heard(LINE, 2 * SILENT_S - 2)
    promises.expire(3 * SILENT_S - 3)
    assert taken(promises)
    promises.expire(3 * SILENT_S - 2)
    assert not taken(promises)
    assert not len(promises)


def test_it_ends_soon_where_the_connection_ended() -> None:
    promises = promised()
    promises.gone(LINE, 1.0)
    promises.heard(LINE, 2.0)
    promises.expire(GONE_S)
    assert taken(promises), "it may come back"
    promises.expire(GONE_S + 1)
    assert not taken(promises)


@pytest.mark.parametrize("sign", ["renew", "plan"])
def test_an_upload_that_comes_back_by_another_connection_keeps_it(sign: str) -> None:
    promises = promised()
    promises.gone(LINE, 1.0)
    if sign == "renew":
        promises.renew(ID, "me", OTHER_LINE, GONE_S)
    else:
        promises.add(upload(line=OTHER_LINE, anew=False), {"b": 60}, GONE_S)
    promises.gone(LINE, GONE_S)
    promises.expire(SILENT_S)
    assert taken(promises)["a"] == 100
    promises.gone(OTHER_LINE, SILENT_S)
    promises.expire(SILENT_S + GONE_S)
    assert not taken(promises)


def test_nobody_renews_or_ends_what_another_was_promised() -> None:
    promises = promised()
    promises.gone(LINE, 0.0)
    promises.renew(ID, "you", b"yours", 1.0)
    promises.abandon(ID, "you", 1.0)
    promises.add(upload(member="you"), {"a": 100}, 1.0)
    assert taken(promises) == {"a": 100, "b": 50}
    promises.expire(GONE_S)
    assert not taken(promises)


def test_ones_own_dead_uploads_are_in_nobodys_way_but_others() -> None:
    promises = promised()
    promises.gone(LINE, 1.0)
    assert taken(promises, upload(2, size=33), 1.0) == {}
    assert taken(promises, OTHER, 1.0) == {"a": 100, "b": 50}


def test_the_same_put_counts_on_what_is_stored_of_it() -> None:
    promises = promised()
    promises.stored(ID, "a", 4, 1.0)
    assert taken(promises, upload(2)) == {"a": 60, "b": 50}, "while the first one runs"
    promises.gone(LINE, 1.0)
    assert taken(promises, upload(2)) == {"a": -40}
    assert taken(promises, upload(2, size=151)) == {}, "another file"
    assert taken(promises, upload(2, "you")) == {"a": 60, "b": 50}, "another member"
    assert taken(promises, upload(2, anew=False)) == {}, "it says itself what is held"


@pytest.mark.parametrize("end", ["abandon", "expire"])
def test_also_after_its_promise_has_ended(end: str) -> None:
    promises = promised()
    promises.stored(ID, "a", 4, 1.0)
    if end == "abandon":
        promises.abandon(ID, "me", 1.0)
    else:
        promises.expire(SILENT_S + 1)
    assert taken(promises, upload(2)) == {"a": -40}
    promises.expire(LEFT_S)
    assert taken(promises, upload(2)) == {"a": -40}
    promises.expire(LEFT_S + SILENT_S + 1)
    assert taken(promises, upload(2)) == {}, "nodes keep it no longer"
    assert not promises._left


def test_killed_again_and_again_it_counts_on_the_most_that_was_stored() -> None:
    promises = promised()
    promises.stored(ID, "a", 4, 0.0)
    promises.gone(LINE, 0.0)
    promises.add(upload(2, line=OTHER_LINE), {"a": 100}, 0.0)
    assert len(promises) == 1, "in place of the first"
    assert taken(promises, upload(2)) == {"a": -40}, "the same answer to the same question"
    assert taken(promises, upload(3)) == {"a": 100}, "the second one runs"
    promises.stored(upload(2).upload_id, "a", 1, 0.0)  # what is there is told again
    promises.gone(OTHER_LINE, 0.0)
    assert taken(promises, upload(3)) == {"a": -40}
    promises.add(upload(3), {"a": 100}, 0.0)
    promises.stored(upload(3).upload_id, "a", 6, 0.0)
    promises.gone(LINE, 0.0)
    assert taken(promises, upload(4)) == {"a": -60}


def test_what_was_committed_is_there_for_good() -> None:
    promises = promised()
    promises.stored(ID, "a", 4, 0.0)
    promises.committed(ID, 1.0)
    assert taken(promises, upload(2)) == {}
    assert not promises._left


def test_of_one_who_is_revoked_nothing_is_kept() -> None:
    promises = promised()
    promises.stored(ID, "a", 4, 0.0)
    promises.add(upload(2), {"b": 1}, 0.0)
    promises.add(OTHER, {"b": 1}, 0.0)
    promises.revoke("me", 1.0)
    assert taken(promises, upload(3)) == {"b": 1}
    assert not promises._left


# -- shares ---------------------------------------------------------------------------------


def test_a_member_of_whose_uploads_nothing_is_stored_has_its_share() -> None:
    promises = promised()
    promises.heard(LINE, STUCK_S)
    assert taken(promises, OTHER, STUCK_S - 1) == {"a": 100, "b": 50}
    assert taken(promises, OTHER, STUCK_S) == {"a": 50, "b": 50}
    promises.add(upload(3, "third", b"third"), {"a": 10}, STUCK_S)
    assert taken(promises, OTHER, STUCK_S) == {"a": 33 + 10, "b": 33}
    promises.stored(ID, "a", 1, STUCK_S)
    assert taken(promises, OTHER, STUCK_S) == {"a": 90 + 10, "b": 50}


def test_asking_anew_makes_nobody_new() -> None:
    promises = promised()
    for number in range(int(STUCK_S)):
        promises.abandon(upload(1 + number).upload_id, "me", float(number))
        promises.expire(float(number))
        promises.add(upload(2 + number), {"a": 100}, float(number))
    assert taken(promises, OTHER, STUCK_S) == {"a": 50}


def test_who_comes_back_after_a_while_is_new() -> None:
    promises = promised()
    promises.committed(ID, 1.0)
    promises.expire(STUCK_S + 1)
    assert not promises._members
    promises.add(upload(2), {"a": 100}, STUCK_S + 1)
    assert taken(promises, OTHER, STUCK_S + 2) == {"a": 100}


# -- bounds ---------------------------------------------------------------------------------


def test_a_member_is_promised_space_for_so_many_uploads_and_others_for_theirs() -> None:
    promises = Promises()
    promises.add(OTHER, {"a": 5}, 0.0)
    for number in range(MAX_PROMISES + 100):
        promises.add(upload(number, size=number), {"a": 1}, 0.0)
    assert taken(promises, upload(5000, "third")) == {"a": 5 + MAX_PROMISES}
    promises.expire(1e9)
    promises.expire(2e9)
    assert not len(promises)
    assert not promises._members
    assert not promises._by


def test_of_one_member_so_many_interrupted_puts_are_known() -> None:
    promises = Promises()
    for number in range(MAX_LEFT + 10):
        promises.add(upload(number, size=number), {"a": 1}, 0.0)
        promises.stored(upload(number).upload_id, "a", 1, 0.0)
        promises.abandon(upload(number).upload_id, "me", 0.0)
    assert len(promises._left["me"]) == MAX_LEFT
    assert taken(promises, upload(5000, size=9)) == {}
    assert taken(promises, upload(5000, size=10)) == {"a": -CHUNK}


class Any(RuleBasedStateMachine):
    """In any order: nothing is kept for who gave no sign, and the tables agree."""

    LINES = st.sampled_from([b"1", b"2"])
    NUMBERS = st.integers(1, 4)
    MEMBERS = st.sampled_from(["me", "you"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.promises = Promises()

    @rule(number=NUMBERS, member=MEMBERS, line=LINES, size=st.integers(1, 2), anew=st.booleans())
    def plan(self, number: int, member: str, line: bytes, size: int, anew: bool) -> None:
        asker = upload(number, member, line, size, anew)
        self.promises.taken(asker, FREE, self.now)
        self.promises.add(asker, {"a": 60, "b": 20}, self.now)

    @rule(number=NUMBERS, member=MEMBERS, line=LINES, what=st.sampled_from("srhgca"))
    def sign(self, number: int, member: str, line: bytes, what: str) -> None:
        upload_id, promises, now = upload(number).upload_id, self.promises, self.now
        {
            "s": lambda: promises.stored(upload_id, "a", 1, now),
            "r": lambda: promises.renew(upload_id, member, line, now),
            "h": lambda: promises.heard(line, now),
            "g": lambda: promises.gone(line, now),
            "c": lambda: promises.committed(upload_id, now),
            "a": lambda: promises.abandon(upload_id, member, now),
        }[what]()

    @rule(member=MEMBERS)
    def revoke(self, member: str) -> None:
        self.promises.revoke(member, self.now)
        assert all(promise.asker.member != member for promise in self.promises._promises.values())

    @rule(seconds=st.sampled_from([1.0, GONE_S, SILENT_S, STUCK_S, LEFT_S]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.promises.expire(self.now)

    @invariant()
    def the_tables_agree(self) -> None:
        promises = self.promises
        standing = {(p.connection, u) for u, p in promises._promises.items() if not p.gone}
        assert standing == {(line, u) for line, uploads in promises._by.items() for u in uploads}
        numbers = {m: s.promises for m, s in promises._members.items() if s.promises}
        members = [p.asker.member for p in promises._promises.values()]
        assert numbers == {member: members.count(member) for member in members}

    @invariant()
    def no_more_is_taken_than_was_promised(self) -> None:
        everybody = self.promises.taken(upload(9, "third"), FREE, self.now)
        promised = sum(sum(p.peers.values()) for p in self.promises._promises.values())
        assert 0 <= sum(everybody.values()) <= promised

    def teardown(self) -> None:
        self.now += LEFT_S + SILENT_S
        for _ in range(2):
            self.promises.expire(self.now)
            self.now += LEFT_S
        self.promises.expire(self.now)
        p = self.promises
        assert [p._promises, p._by, p._members, p._left] == [{}, {}, {}, {}]


TestAny = Any.TestCase
TestAny.settings = settings(max_examples=100, stateful_step_count=40)
