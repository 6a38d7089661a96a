"""node/upkeep/self_check.py (SPEC D8): what is asked, looked at and answered, in which order."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from blake3 import blake3

from tests.unit.node.store.stores import replaced
from zchunk.clock import ManualClock
from zchunk.errors import StoreOffline, TrackerUnreachable, ZchunkError
from zchunk.node.control.plane import ControlPlane
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.upkeep.self_check import SelfCheck
from zchunk.protocol.messages import MAX_DOUBTS, Doubts, GetDoubts, Lost, Message, Ok, Request, Whole
from zchunk.runtime.loop import Loop

UPLOAD = "1" * 32


class Node:
    """A self-check on a real store; the tracker and the worker act when told."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.store = ChunkStore.create_or_open(folder, capacity=None, reserve=0, clock=self.clock)
        self.asked: deque[tuple[Request, Callable[..., None]]] = deque()
        self.works: deque[tuple[Callable[[], Any], Callable[..., None]]] = deque()
        self.inventory: int | None = 1
        self.kept: list[bytes] = []
        self.outdated = 0
        self.check = SelfCheck(
            loop=cast(Loop, self),
            control=cast(ControlPlane, self),
            store=self.store,
            workers=cast(Any, self),
            inventory=lambda: self.inventory,
            on_kept=self.kept.extend,
            on_outdated=self._outdated,
        )

    def _outdated(self) -> None:
        self.outdated += 1

    # the control plane, its loop, and the workers

    def add_timed(self, timed: SelfCheck) -> None:
        assert timed.deadline() is None

    def request(self, message: Request, timeout_s: float, loop: Loop, answer: Callable[..., None]) -> None:
        self.asked.append((message, answer))

    def submit(self, work: Callable[[], Any], done: Callable[..., None]) -> None:
        self.works.append((work, done))

    # what a test does

    def put(self, number: int) -> bytes:
        data = bytes([number]) * 5000
        sha256 = hashlib.sha256(data).digest()
        self.store.put(sha256, blake3(data).digest(), data, UPLOAD)
        return sha256

    def path(self, sha256: bytes) -> Path:
        return self.store.root / "chunks" / sha256.hex()[:2] / sha256.hex()

    def damage(self, sha256: bytes) -> None:
        data = bytearray(self.path(sha256).read_bytes())
        data[1234] ^= 4
        self.path(sha256).write_bytes(data)

    def answer(self, reply: Message | None, error: ZchunkError | None = None) -> Request:
        message, answer = self.asked.popleft()
        answer(reply, error)
        return message

    def doubts(self, *hashes: bytes) -> None:
        assert isinstance(self.answer(Doubts(hashes=b"".join(hashes))), GetDoubts)

    def work(self) -> None:
        work, done = self.works.popleft()
        try:
            value = work()
        except ZchunkError as error:
            done(None, error)
        else:
            done(value, None)

    def told(self) -> Request:
        """The worker looks at a chunk; what the tracker is told of it."""
        assert len(self.works) == 1, "one at a time"
        self.work()
        return self.answer(Ok())

    def started(self) -> None:
        """Registered, and nothing is in doubt or set apart."""
        self.check.check()
        self.doubts()
        self.work()

    def refusing(self, sha256: bytes, number: int) -> Any:
        """Inside the block this chunk's file cannot be opened."""
        real, path = os.open, self.path(sha256)

        def refuse(name: Any, *rest: Any, **more: Any) -> int:
            if name == path:
                raise OSError(number, os.strerror(number))
            return real(name, *rest, **more)

        return replaced(os, "open", refuse)


@pytest.fixture
def node(tmp_path: Path) -> Any:
    made = Node(tmp_path / "store")
    made.started()
    yield made
    made.store.close()


def test_a_chunk_that_is_whole_is_said_to_be(node: Node) -> None:
    sha256 = node.put(1)
    node.check.check()
    node.doubts(sha256)
    assert node.told() == Whole(hashes=sha256)
    assert node.store.has(sha256)
    assert not node.check.busy
    assert not node.asked


@pytest.mark.row("D8")
def test_a_damaged_chunk_goes_to_the_trash_before_it_is_said_to_be_lost(node: Node) -> None:
    good, bad = node.put(1), node.put(2)
    node.damage(bad)
    node.check.check()
    node.doubts(bad, good)
    node.work()
    assert not node.store.has(bad)
    assert [path.name[11:] for path in (node.store.root / "trash" / "corrupt").iterdir()] == [bad.hex()]
    assert node.answer(Ok()) == Lost(hashes=bad)
    assert node.told() == Whole(hashes=good)
    assert (node.kept, node.outdated, node.check.busy) == ([], 0, False)


@pytest.mark.parametrize("how", ["never held", "file gone"])
def test_a_chunk_that_is_not_there_is_lost(node: Node, how: str) -> None:
    sha256 = node.put(1)
    if how == "never held":
        sha256 = bytes(32)
    else:
        node.path(sha256).unlink()
    node.check.check()
    node.doubts(sha256)
    assert node.told() == Lost(hashes=sha256)
    assert not node.store.has(sha256)


def test_asked_again_meanwhile_it_runs_once_more(node: Node) -> None:
    sha256 = node.put(1)
    node.check.check()
    node.check.check()
    node.doubts(sha256)
    node.check.check()
    node.told()
    node.doubts()
    assert not node.check.busy
    assert not node.asked


def test_a_full_answer_is_followed_by_the_next_question(node: Node) -> None:
    node.check.check()
    node.doubts(*(number.to_bytes(32) for number in range(MAX_DOUBTS + 5)))
    for number in range(MAX_DOUBTS):
        assert node.told() == Lost(hashes=number.to_bytes(32))
    node.doubts()
    assert not node.check.busy


def test_before_registration_nothing_is_asked(node: Node) -> None:
    node.inventory = None
    node.check.check()
    assert not node.asked


@pytest.mark.parametrize("reply", [None, Ok(), Doubts(hashes=b"x")], ids=["error", "other", "malformed"])
def test_an_answer_of_no_use_ends_the_run_and_the_next_one_begins_anew(
    node: Node, reply: Message | None
) -> None:
    sha256 = node.put(1)
    node.check.check()
    node.answer(reply, TrackerUnreachable("gone") if reply is None else None)
    assert not node.check.busy
    node.check.check()
    node.doubts(sha256)
    node.work()
    node.answer(None, TrackerUnreachable("gone"))
    assert not node.check.busy
    node.check.check()
    node.doubts(sha256)
    assert node.told() == Whole(hashes=sha256)


def test_a_chunk_that_could_not_be_read_is_looked_at_without_a_report(node: Node) -> None:
    cut, fine, reported = node.put(1), node.put(2), node.put(3)
    with open(node.path(cut), "r+b") as file:
        file.truncate(10)
    node.check.suspect(cut)
    node.check.suspect(fine)
    node.doubts(reported, fine)
    assert [node.told() for _ in range(3)] == [
        Whole(hashes=reported),
        Whole(hashes=fine),
        Lost(hashes=cut),
    ]
    node.doubts()  # it was suspected while a run was under way
    assert not node.check.busy
    assert not node.works


def test_what_could_not_be_read_is_kept_in_mind_until_it_is_told(node: Node) -> None:
    sha256 = node.put(1)
    node.path(sha256).unlink()
    node.inventory = None
    node.check.suspect(sha256)
    node.inventory = 1
    node.check.check()
    node.answer(None, TrackerUnreachable("gone"))
    node.check.suspect(sha256)
    assert not node.asked, "not again for everyone who asks for the chunk"
    node.check.on_time(node.check.deadline() or 0.0)
    node.doubts()
    assert node.told() == Lost(hashes=sha256)
    node.check.check()
    node.doubts()
    assert not node.check.busy


def test_after_an_error_it_is_asked_again_later(node: Node) -> None:
    node.check.check()
    node.answer(None, TrackerUnreachable("gone"))
    deadline = node.check.deadline()
    assert deadline == node.clock.monotonic() + 60
    node.check.on_time(deadline)
    assert node.check.deadline() is None
    node.doubts()
    assert node.check.deadline() is None, "nothing was wrong"
    assert not node.asked


def test_an_unplugged_disk_makes_no_chunk_corrupt(node: Node) -> None:
    sha256 = node.put(1)
    node.damage(sha256)
    marker = node.store.root / "zchunk-store.json"
    marker.rename(marker.with_suffix(".away"))
    node.check.check()
    node.doubts(sha256)
    with pytest.raises(StoreOffline):
        node.store.verify(sha256)
    node.work()
    assert not node.asked
    assert not node.check.busy
    marker.with_suffix(".away").rename(marker)
    assert node.store.has(sha256)


@pytest.mark.parametrize("inventory", [None, 2])
def test_a_loss_that_crossed_an_inventory_is_told_by_a_new_hello(node: Node, inventory: int | None) -> None:
    """The tracker may have taken the chunk from the inventory after it heard of the loss."""
    sha256 = node.put(1)
    node.damage(sha256)
    node.check.check()
    node.doubts(sha256)
    node.work()
    node.inventory = inventory
    node.answer(Ok())
    assert node.outdated == 1


def test_a_chunk_stored_anew_meanwhile_is_reported_again(node: Node) -> None:
    sha256 = node.put(1)
    node.damage(sha256)
    node.check.check()
    node.doubts(sha256)
    node.work()
    node.put(1)
    node.answer(Ok())
    assert node.kept == [sha256]


# -- what cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("doubted_by", ["itself", "a member"])
def test_a_chunk_that_cannot_be_read_is_not_told_lost_and_is_looked_at_again(
    node: Node, number: int, doubted_by: str
) -> None:
    sha256 = node.put(1)
    by_member = [sha256] if doubted_by == "a member" else []
    node.check.check() if by_member else node.check.suspect(sha256)
    pauses = []
    with node.refusing(sha256, number):
        for _ in range(12):
            node.doubts(*by_member)
            node.work()
            assert not node.asked, "nothing is told of it"
            assert not node.check.busy
            pauses.append((node.check.deadline() or 0.0) - node.clock.monotonic())
            node.clock.advance(pauses[-1])
            node.check.on_time(node.clock.monotonic())
    assert pauses == [5.0 * 2**n for n in range(10)] + [3600.0] * 2
    node.doubts(*by_member)
    assert node.told() == Whole(hashes=sha256)
    assert node.store.has(sha256)
    assert node.check.deadline() is None
    assert not list((node.store.root / "trash").iterdir())


def test_its_pause_holds_up_nothing_else(node: Node) -> None:
    """Neither by who asks for it, nor by who doubts it, is it looked at sooner; others are."""
    unread, damaged = node.put(1), node.put(2)
    node.damage(damaged)
    with node.refusing(unread, errno.EIO):
        node.check.suspect(unread)
        node.doubts()
        node.work()
        node.check.suspect(unread)
        assert not node.asked
        node.check.suspect(damaged)
        node.doubts(unread)
        assert node.told() == Lost(hashes=damaged)
    assert not node.works
    assert node.check.deadline() == node.clock.monotonic() + 5.0


def test_an_unreadable_chunk_that_turns_out_damaged_is_lost_then(node: Node) -> None:
    sha256 = node.put(1)
    with node.refusing(sha256, errno.EIO):
        node.check.suspect(sha256)
        node.doubts()
        node.work()
    node.damage(sha256)
    node.clock.advance(5.0)
    node.check.on_time(node.clock.monotonic())
    node.doubts()
    assert node.told() == Lost(hashes=sha256)
    assert not node.store.has(sha256)


def test_while_not_registered_no_look_is_due(node: Node) -> None:
    sha256 = node.put(1)
    with node.refusing(sha256, errno.EIO):
        node.check.suspect(sha256)
        node.doubts()
        node.work()
    node.inventory = None
    assert node.check.deadline() is None


# -- what an earlier run set apart ---------------------------------------------------------------


def with_set_apart(folder: Path) -> tuple[Node, bytes]:
    """A node started anew on a store that set a sound chunk apart, and one that is damaged."""
    node = Node(folder)
    sound, bad = node.put(1), node.put(2)
    for sha256 in (sound, bad):
        node.damage(sha256)
        node.store.drop_corrupt(sha256)
    (corrupt,) = (node.store.root / "trash").iterdir()
    (path,) = corrupt.glob(f"*-{sound.hex()}")
    path.write_bytes(bytes([1]) * 5000)
    node.store.close()
    return Node(folder), sound


def test_a_sound_chunk_is_taken_back_at_the_start_and_told(tmp_path: Path) -> None:
    node, sound = with_set_apart(tmp_path / "store")
    node.check.check()
    node.doubts()
    for _ in range(3):
        node.work()
    assert node.kept == [sound]
    assert node.store.hashes() == [sound]
    assert not node.check.busy
    node.check.check()
    node.doubts()
    assert not node.works, "once each start"
    node.store.close()


def test_what_cannot_be_read_there_is_looked_at_again(tmp_path: Path) -> None:
    node, sound = with_set_apart(tmp_path / "store")
    real = os.open

    def refuse(name: Any, *rest: Any, **more: Any) -> int:
        if str(name).endswith(sound.hex()):
            raise OSError(errno.EIO, "no")
        return real(name, *rest, **more)

    node.check.check()
    node.doubts()
    with replaced(os, "open", refuse):
        for _ in range(3):
            node.work()
    assert node.kept == []
    assert node.check.deadline() == node.clock.monotonic() + 5.0
    node.clock.advance(5.0)
    node.check.on_time(node.clock.monotonic())
    node.doubts()
    for _ in range(2):
        node.work()
    assert node.kept == [sound]
    assert node.check.deadline() is None
    node.store.close()
