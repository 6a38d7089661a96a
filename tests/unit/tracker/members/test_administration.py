"""tracker/members/administration.py: whom a name means, and which files would stop without a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.unit.tracker.store.rows import commit, digests, make, register
from zchunk.clock import ManualClock
from zchunk.errors import AmbiguousName, NotFound
from zchunk.tracker.members import administration
from zchunk.tracker.members.administration import files_that_stop, find_member
from zchunk.tracker.members.member_list import Member
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.store.store import TrackerStore


class Home:
    """A tracker's store and list, with the nodes A, B, C and a client."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.store = TrackerStore.open(":memory:", self.clock)
        self.membership = Membership(folder / "members.json", self.clock)
        self.nodes: dict[str, Member] = {}
        for number, name in enumerate("ABC"):
            member = self.membership.add_member(bytes([number + 1]) * 32, name, "node")
            self.nodes[name] = member
            register(self.store, member.peer_id)
        self.client = self.membership.add_member(bytes([9]) * 32, "client", "client")

    def put(self, name: str, chunks: Sequence[int], **holders: Sequence[int]) -> None:
        for node, held in holders.items():
            self.store.add_holdings(self.nodes[node].peer_id, digests(held), 1)
        live = frozenset(member.peer_id for member in self.nodes.values())
        commit(self.store, make(name, chunks), live=live, min_peers=1)

    def stopped_without(self, node: str) -> list[tuple[str, int]]:
        found = files_that_stop(self.store, self.membership, self.nodes[node].peer_id)
        return [(file.name, file.chunks_lost) for file in found]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.store.close()


def test_a_member_is_found_by_name_id_or_beginning_of_the_id(home: Home) -> None:
    member = home.nodes["B"]
    for text in ("B", member.peer_id, member.peer_id[:8], member.peer_id[:8].upper()):
        assert find_member(home.membership, text) == member


@pytest.mark.parametrize("text", ["nobody", "", "b"])
def test_who_is_nobody_is_not_found(home: Home, text: str) -> None:
    with pytest.raises(NotFound, match="peers list --all"):
        find_member(home.membership, text)


def test_a_beginning_that_is_too_short_names_nobody(home: Home) -> None:
    with pytest.raises(NotFound):
        find_member(home.membership, home.nodes["B"].peer_id[:7])


def test_a_name_of_two_is_told_with_their_ids(home: Home) -> None:
    other = home.membership.add_member(bytes([8]) * 32, "client", "client")
    with pytest.raises(AmbiguousName) as caught:
        find_member(home.membership, "client")
    assert caught.value.details["candidates"] == sorted([home.client.peer_id, other.peer_id])


def test_a_file_stops_whose_chunks_nobody_else_has(home: Home) -> None:
    home.put("alone", [1, 2, 3], A=[1, 2], B=[3])
    home.put("twice", [4, 5], A=[4, 5], B=[4, 5])
    home.put("elsewhere", [6], C=[6])
    assert home.stopped_without("A") == [("alone", 2)]
    assert home.stopped_without("B") == [("alone", 1)]
    assert home.stopped_without("C") == [("elsewhere", 1)]


def test_copies_on_a_node_that_is_cut_off_do_not_count(home: Home) -> None:
    home.put("twice", [4, 5], A=[4, 5], B=[4, 5])
    home.membership.revoke(home.nodes["B"].peer_id)
    assert home.stopped_without("A") == [("twice", 2)]


def test_what_cannot_be_had_anyway_does_not_stop(home: Home) -> None:
    home.put("broken", [1, 2], A=[1], B=[2])
    home.membership.revoke(home.nodes["B"].peer_id)
    assert home.stopped_without("A") == []


def test_a_node_that_was_never_there_stops_nothing(home: Home) -> None:
    member = home.membership.add_member(bytes([7]) * 32, "new", "node")
    assert files_that_stop(home.store, home.membership, member.peer_id) == []


def test_many_files_are_told_by_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "_BATCH", 3)
    for number in range(10):
        home.put(f"file {9 - number}", [number], A=[number])
    assert home.stopped_without("A") == [(f"file {number}", 1) for number in range(10)]
