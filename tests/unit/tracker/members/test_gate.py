"""tracker/members/gate.py, and with it the whole list: no key comes in that the list does not have."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zchunk.clock import ManualClock, read
from zchunk.errors import StorageFailure, ZchunkError
from zchunk.node.serving.allow_list import AllowList
from zchunk.protocol.messages import MemberRecord
from zchunk.tracker.members.gate import EVENTS, REQUESTS, admitted
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.records import member_record
from zchunk.transport.keys import peer_id_of

NOW = 1_700_000_000
MINUTE_MS = 60_000


def key(number: int) -> bytes:
    return bytes([number]) * 32


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(wall=NOW)
        self.path = folder / "members.json"
        self.list = Membership(self.path, self.clock)

    def let_in(self, door: str, public_key: bytes) -> str | None:
        with suppress(StorageFailure):  # as the tracker's shell looks when it knows a key not
            self.list.refresh()
        return admitted(self.list.listed, door, public_key, read(self.clock))

    def expires(self) -> int:
        return int(self.clock.wall() * 1000) + MINUTE_MS


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_member_comes_in_at_both_doors_and_at_no_other(world: World) -> None:
    member = world.list.add_member(key(1), "A", "node")
    assert world.let_in(REQUESTS, key(1)) == world.let_in(EVENTS, key(1)) == member.peer_id
    assert world.let_in("", key(1)) is world.let_in("zchunk.node", key(1)) is None


def test_a_stranger_does_not(world: World) -> None:
    world.list.add_member(key(1), "A", "node")
    assert world.let_in(REQUESTS, key(2)) is world.let_in(EVENTS, key(2)) is None


def test_a_tokens_key_comes_in_where_one_joins_until_it_expires(world: World) -> None:
    world.list.add_token(key(1), "client", world.expires(), once=True)
    assert world.let_in(REQUESTS, key(1)) == peer_id_of(key(1))
    assert world.let_in(EVENTS, key(1)) is None
    world.list.join(key(1), key(2), "A", int(world.clock.wall() * 1000))
    assert world.let_in(REQUESTS, key(1)) == peer_id_of(key(1)), "to be told that it is used up"
    world.clock.advance(MINUTE_MS / 1000)
    assert world.let_in(REQUESTS, key(1)) is None


def test_a_revoked_or_replaced_key_does_not_come_in_and_the_id_stays(world: World) -> None:
    member = world.list.add_member(key(1), "A", "node")
    world.list.rotate(member.peer_id, key(2))
    assert world.let_in(REQUESTS, key(1)) is None
    assert world.let_in(REQUESTS, key(2)) == member.peer_id
    world.list.revoke(member.peer_id)
    assert world.let_in(REQUESTS, key(2)) is None


def test_a_change_by_another_process_lets_in_at_once(world: World) -> None:
    Membership(world.path, world.clock).add_member(key(1), "A", "node")
    assert world.let_in(REQUESTS, key(1)) == peer_id_of(key(1))


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_list_that_cannot_be_read_lets_nobody_new_in(world: World, damage: str) -> None:
    world.list.add_member(key(1), "A", "node")
    if damage == "gone":
        os.unlink(world.path)
    else:
        world.path.write_bytes(world.path.read_bytes()[:-9])
    assert world.let_in(REQUESTS, key(2)) is None
    assert world.let_in(REQUESTS, key(1)) == peer_id_of(key(1)), "who was known stays so"


# -- whatever is done to the list -------------------------------------------------------------

numbers = st.integers(1, 6)
STEPS = st.one_of(
    st.tuples(st.just("add"), numbers, st.sampled_from(["node", "client", "observer"])),
    st.tuples(st.just("token"), numbers, st.booleans()),
    st.tuples(st.just("join"), numbers, numbers),
    st.tuples(st.just("revoke"), numbers, st.none()),
    st.tuples(st.just("allow"), numbers, st.none()),
    st.tuples(st.just("rotate"), numbers, numbers),
    st.tuples(st.just("time"), st.sampled_from([1, 59, 61]), st.none()),
)


class Model:
    """Who may come in, said as simply as can be."""

    def __init__(self) -> None:
        self.members: dict[str, tuple[bytes, bool]] = {}
        self.tokens: dict[bytes, int] = {}
        #: a token's key -> ids of who joined with it
        self.used: dict[bytes, set[str]] = {}

    def may(self, door: str, public_key: bytes, now_ms: int) -> str | None:
        for peer_id, (own, revoked) in self.members.items():
            if own == public_key:
                return None if revoked else peer_id
        if door == REQUESTS and self.tokens.get(public_key, 0) > now_ms:
            return peer_id_of(public_key)
        return None


def carry_out(world: World, model: Model, what: str, one: int, other: Any) -> None:
    now_ms = int(world.clock.wall() * 1000)
    try:
        if what == "time":
            world.clock.advance(one)
        elif what == "add":
            member = world.list.add_member(key(one), f"M{one}", other)
            model.members.setdefault(member.peer_id, (key(one), False))
        elif what == "token":
            world.list.add_token(key(one), "client", world.expires(), other)
            model.tokens[key(one)], model.used[key(one)] = world.expires(), set()
        elif what == "join":
            member = world.list.join(key(one), key(other), f"M{other}", now_ms)
            model.members.setdefault(member.peer_id, (key(other), False))
            model.used[key(one)].add(member.peer_id)
        elif what == "rotate":
            world.list.rotate(peer_id_of(key(one)), key(other))
            model.members[peer_id_of(key(one))] = (key(other), False)
        else:
            peer_id = peer_id_of(key(one))
            if what == "revoke":
                world.list.revoke(peer_id)
                for public_key in [k for k, users in model.used.items() if peer_id in users]:
                    model.tokens.pop(public_key, None)
            else:
                world.list.allow(peer_id)
            model.members[peer_id] = (model.members[peer_id][0], what == "revoke")
    except ZchunkError:
        pass  # refused: nothing has changed


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
def test_no_key_comes_in_anywhere_that_the_list_does_not_have(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, Any]]
) -> None:
    """The tracker's doors, and a node's list that hears of each change."""
    world, model = World(tmp_path_factory.mktemp("list")), Model()
    node = AllowList()
    for what, one, other in steps:
        carry_out(world, model, what, one, other)
        for member in world.list.listed.members.values():
            node.put(member_record(member))
        now_ms = int(world.clock.wall() * 1000)
        for number in range(1, 7):
            for door in (REQUESTS, EVENTS, "other"):
                expected = model.may(door, key(number), now_ms) if door != "other" else None
                assert world.let_in(door, key(number)) == expected
            owner: MemberRecord | None = node.owner_of(key(number))
            let_in = owner.peer_id if owner is not None and not owner.revoked else None
            assert let_in == model.may(EVENTS, key(number), now_ms)
