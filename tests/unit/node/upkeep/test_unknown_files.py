"""node/upkeep/unknown_files.py: which of its files a node's tracker does not know."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from zchunk.clock import ManualClock
from zchunk.errors import TrackerUnreachable, ZchunkError
from zchunk.node.upkeep import unknown_files
from zchunk.node.upkeep.unknown_files import UnknownFiles
from zchunk.protocol.messages import FilesFound, FindFiles, Message, Ok, Welcome

FILES = [f"{number:064x}" for number in range(5)]


def packed(file_ids: list[str]) -> bytes:
    return b"".join(map(bytes.fromhex, file_ids))


def all_but(unknown: list[str], asked: list[str] = FILES) -> FilesFound:
    """Of those that the tracker knows the first was removed."""
    known = [file_id for file_id in asked if file_id not in unknown]
    return FilesFound(
        store_id="other", commit_number=3, file_ids=packed(known[1:]), removed=packed(known[:1])
    )


def welcome(store_id: str = "other", commit_number: int = 3) -> Welcome:
    return Welcome(
        epoch="e",
        seq=0,
        heartbeat_interval_s=1.0,
        lease_s=3.0,
        store_id=store_id,
        commit_number=commit_number,
        endpoints=("tcp://10.0.0.1:7710",),
        inventory_wanted=False,
        incarnation=1,
    )


class Node:
    """The check, on a store that is no disk, with a tracker that a test plays."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic=0.0)
        self.asked: deque[tuple[FindFiles, Callable[[Message | None, ZchunkError | None], None]]] = deque()
        self.known = 0
        self.adopted: list[tuple[str, int]] = []
        #: whether the store has lost its memory of the cluster
        self.lost = False
        loop: Any = SimpleNamespace(clock=self.clock, add_timed=lambda timed: None)
        control: Any = SimpleNamespace(request=lambda m, t, loop, answer: self.asked.append((m, answer)))
        store: Any = SimpleNamespace(manifests=lambda: list(FILES), adopt_store=self.adopt)
        workers: Any = SimpleNamespace(submit=lambda work, done: done(work(), None))
        self.check = UnknownFiles(
            loop=loop, control=control, store=store, workers=workers, on_known=self.on_known
        )

    def adopt(self, store_id: str, commit_number: int) -> bool:
        if self.lost:
            self.adopted.append((store_id, commit_number))
        return self.lost

    def on_known(self) -> None:
        self.known += 1

    def answer(self, reply: Message | None, error: ZchunkError | None = None) -> bytes:
        """Returns what was asked."""
        message, answer = self.asked.popleft()
        answer(reply, error)
        return bytes(message.file_ids)


@pytest.fixture
def node() -> Node:
    return Node()


def test_those_that_the_tracker_does_not_know_are_counted_page_by_page(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_files, "MAX_FIND", 2)
    node.check.begin(welcome())
    for at, unknown in ((0, FILES[:2]), (2, []), (4, FILES[4:])):
        assert node.check.unknown == 0, "not before all were asked about"
        assert node.answer(all_but(unknown, FILES[at : at + 2])) == packed(FILES[at : at + 2])
    assert (node.check.unknown, node.known) == (3, 0)
    assert not node.asked


def test_it_is_asked_again_now_and_then_while_the_store_is_another_one(node: Node) -> None:
    node.check.begin(welcome())
    node.answer(all_but(FILES))
    assert node.check.deadline() == 600.0
    node.clock.advance(600.0)
    node.check.on_time(600.0)
    node.answer(all_but(FILES[:1]))
    assert node.check.unknown == 1, "the others were put again"
    node.check.end()
    assert (node.check.unknown, node.check.deadline()) == (0, None)


def test_all_known_makes_another_trackers_store_not_the_own_one(node: Node) -> None:
    node.check.begin(welcome())
    node.answer(all_but([]))
    assert (node.known, node.adopted, node.check.unknown) == (0, [], 0)
    assert node.check.deadline() == 600.0


def test_a_node_that_lost_its_memory_goes_by_what_the_tracker_knows(node: Node) -> None:
    node.lost = True
    node.check.begin(welcome("s", 9))
    node.answer(all_but(FILES[:1]))
    assert (node.known, node.adopted, node.check.unknown) == (0, [], 1)
    node.check.begin(welcome("s", 10))
    node.answer(all_but([]))
    assert (node.known, node.adopted) == (1, [("s", 10)])
    assert (node.check.unknown, node.check.deadline()) == (0, None)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (None, TrackerUnreachable("no answer")),
        (Ok(), None),
        (FilesFound(store_id="other", commit_number=3, file_ids=bytes(31), removed=b""), None),
    ],
)
def test_no_answer_says_nothing(node: Node, reply: Message | None, error: ZchunkError | None) -> None:
    node.lost = True
    node.check.begin(welcome())
    node.answer(reply, error)
    assert (node.check.unknown, node.adopted, node.check.deadline()) == (0, [], 600.0)


def test_an_answer_to_an_earlier_registration_says_nothing(node: Node) -> None:
    node.check.begin(welcome())
    node.check.end()
    node.answer(all_but(FILES))
    assert node.check.unknown == 0
