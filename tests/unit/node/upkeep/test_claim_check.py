"""node/upkeep/claim_check.py: asking which manifests are files; `upkeep/claims.py` decides, a test plays the
tracker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from zchunk.clock import ManualClock
from zchunk.errors import ForeignStore, TrackerUnreachable, ZchunkError
from zchunk.node.upkeep import claim_check
from zchunk.node.upkeep.claim_check import ClaimCheck
from zchunk.protocol.messages import FilesFound, FindFiles, Message

FILES = [f"{number:064x}" for number in range(5)]
HOUR = 3600.0


def found(file_ids: Iterable[str] = (), number: int = 7) -> FilesFound:
    packed = b"".join(bytes.fromhex(f) for f in file_ids)
    return FilesFound(store_id="s", commit_number=number, file_ids=packed, removed=b"")


class Store:
    """What the check needs of one; the leases of all its manifests have ended."""

    def __init__(self) -> None:
        self.claimed = dict.fromkeys(FILES, 0.0)
        self.seen = 5
        self.dropped: list[str] = []

    def claimed_manifests(self) -> dict[str, float]:
        return dict(self.claimed)

    def is_claimed(self, file_id: str) -> bool:
        return file_id in self.claimed

    def seen_store(self, store_id: str, number: int) -> None:
        if number < self.seen:
            raise ForeignStore("older")
        self.seen = number

    def know_manifests(self, file_ids: Iterable[str]) -> None:
        for file_id in file_ids:
            self.claimed.pop(file_id, None)

    def drop_manifests(self, file_ids: Iterable[str], store_id: str, number: int) -> list[str]:
        self.seen_store(store_id, number)
        self.dropped += file_ids
        self.know_manifests(file_ids)
        return list(file_ids)


class Node:
    def __init__(self) -> None:
        self.clock, self.store = ManualClock(monotonic=0.0), Store()
        self.asked: deque[tuple[FindFiles, Callable[[Message | None, ZchunkError | None], None]]] = deque()
        self.freed = 0
        loop: Any = SimpleNamespace(clock=self.clock, add_timed=lambda timed: None)
        control: Any = SimpleNamespace(request=lambda m, t, loop, answer: self.asked.append((m, answer)))
        store: Any = self.store
        self.check = ClaimCheck(
            loop=loop,
            control=control,
            store=store,
            workers=SimpleNamespace(submit=_submit, close=lambda: None),
            on_dropped=self.on_dropped,
        )

    def on_dropped(self) -> None:
        self.freed += 1

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.check.on_time(self.clock.monotonic())

    def answer(self, reply: Message | None, error: ZchunkError | None = None) -> list[str]:
        """Returns what was asked."""
        message, answer = self.asked.popleft()
        answer(reply, error)
        packed = bytes(message.file_ids)
        return [packed[at : at + 32].hex() for at in range(0, len(packed), 32)]


def _submit(work: Callable[[], Any], done: Callable[[Any, ZchunkError | None], None]) -> None:
    try:
        value = work()
    except ZchunkError as error:
        done(None, error)
    else:
        done(value, None)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(claim_check, "MAX_FIND", 2)
    return Node()


def test_nothing_is_asked_before_the_node_is_sure_of_its_tracker(node: Node) -> None:
    node.turn(HOUR)
    assert not node.asked


def test_those_that_are_no_files_go_at_the_second_answer(node: Node) -> None:
    node.check.begin()
    node.turn()
    for at, files in ((0, FILES[:1]), (2, []), (4, FILES[4:])):
        assert node.answer(found(files)) == FILES[at : at + 2]
    assert (node.store.dropped, sorted(node.store.claimed)) == ([], FILES[1:4])
    node.turn(HOUR)
    assert node.answer(found()) == FILES[1:3]
    assert node.answer(found()) == FILES[3:4]
    assert (node.store.dropped, node.freed) == (FILES[1:4], 1)


def test_a_page_from_an_older_state_of_the_tracker_spoils_the_whole_answer(node: Node) -> None:
    """It was started anew with a backup while it was being asked."""
    node.check.begin()
    node.turn()
    for _ in range(3):
        node.answer(found(number=9))
    node.turn(HOUR)
    node.answer(found(number=9))
    node.answer(found(number=8))
    assert not node.asked
    assert (node.store.dropped, node.check.deadline()) == ([], HOUR + 60.0)


def test_an_answer_after_another_registration_does_not_count(node: Node) -> None:
    node.check.begin()
    node.turn()
    node.check.end()
    node.answer(found(FILES))
    assert sorted(node.store.claimed) == FILES
    assert (node.check.deadline(), list(node.asked)) == (None, [])


def test_a_tracker_that_does_not_answer_is_asked_later(node: Node) -> None:
    node.check.begin()
    node.turn()
    node.answer(None, TrackerUnreachable("gone"))
    assert node.check.deadline() == 60.0
    node.turn(60.0)
    assert node.answer(found()) == FILES[:2]


def test_the_event_of_a_commit_makes_a_manifest_a_files(node: Node) -> None:
    for file_id in (FILES[0], "ff" * 32, None, 7):
        node.check.distributed(file_id)
    assert sorted(node.store.claimed) == FILES[1:]


def test_without_a_claim_nobody_is_asked(node: Node) -> None:
    node.store.claimed.clear()
    node.check.begin()
    node.turn()
    assert not node.asked
    assert node.check.deadline() == 24 * HOUR
