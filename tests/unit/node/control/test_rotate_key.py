"""node/control/rotate_key.py: a new key under the old id; whoever dies on the way runs it again."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zchunk.clock import SystemClock
from zchunk.errors import NotAllowed, StorageFailure, TrackerUnreachable, ZchunkError
from zchunk.node.control import rotate_key
from zchunk.node.control.rotate_key import rotate
from zchunk.node.control.single_request import TrackerAt
from zchunk.node.home.membership import Membership, key_of
from zchunk.protocol.messages import Message, Ok, RotateKey
from zchunk.transport.auth import load_or_make_key
from zchunk.transport.keys import KeyPair

TRACKER: Any = None


@dataclass
class FakeTracker:
    """Knows one member by one key, as the real one does."""

    key: bytes
    fails: ZchunkError | None = None
    #: it takes the key, and its answer is lost
    answer_is_lost: bool = False
    asked: list[tuple[bytes, bytes]] = field(default_factory=list)

    def ask_once(self, tracker: TrackerAt, message: Any, *rest: Any) -> Message:
        assert isinstance(message, RotateKey)
        assert tracker.identity.key is not None
        own = tracker.identity.key.public
        self.asked.append((own, message.public_key))
        if self.fails is not None:
            raise self.fails
        if own != self.key:
            raise NotAllowed("the tracker does not let this PC in")
        self.key = message.public_key
        if self.answer_is_lost:
            self.answer_is_lost = False
            raise TrackerUnreachable("no answer")
        return Ok()


class Home:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.first = key_of(folder)
        self.tracker = FakeTracker(self.first.public)
        monkeypatch.setattr(rotate_key, "ask_once", self.tracker.ask_once)
        self.membership = Membership(
            peer_id=self.first.peer_id,
            name="A",
            role="client",
            store_id="s",
            tracker=("tcp://10.0.0.9:7700",),
            tracker_key="00" * 32,
            events=("tcp://10.0.0.9:7701",),
            transport="curve",
        )

    def rotate(self) -> str:
        return rotate(self.folder, self.membership, TRACKER, SystemClock(), 1.0)

    @property
    def key(self) -> KeyPair:
        return key_of(self.folder)

    @property
    def has_next(self) -> bool:
        return (self.folder / "key.next.json").exists()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path / "client", monkeypatch)


def test_the_tracker_takes_the_new_key_under_the_old_one(home: Home) -> None:
    told = home.rotate()
    assert home.key != home.first
    assert told == home.key.public.hex()
    assert home.tracker.asked == [(home.first.public, home.key.public)]
    assert home.tracker.key == home.key.public
    assert not home.has_next
    assert stat.S_IMODE((home.folder / "key.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [TrackerUnreachable("away"), StorageFailure("its disk")])
def test_without_the_trackers_word_the_old_key_stays_in_use(home: Home, error: ZchunkError) -> None:
    home.tracker.fails = error
    with pytest.raises(type(error)):
        home.rotate()
    assert home.key == home.first
    home.tracker.fails = None
    home.rotate()
    assert home.key.public == home.tracker.key
    assert len({new for _, new in home.tracker.asked}) == 1, "the same new key is offered again"


def test_an_answer_that_is_lost_is_made_good_by_the_new_key(home: Home) -> None:
    home.tracker.answer_is_lost = True
    with pytest.raises(TrackerUnreachable):
        home.rotate()
    assert home.key == home.first
    assert home.tracker.key != home.first.public
    home.rotate()
    assert home.key.public == home.tracker.key
    assert not home.has_next


def test_who_is_cut_off_keeps_its_key_and_can_go_on_when_it_is_let_in(home: Home) -> None:
    home.tracker.key = b"x" * 32
    with pytest.raises(NotAllowed):
        home.rotate()
    assert home.key == home.first
    home.tracker.key = home.first.public
    home.rotate()
    assert home.key.public == home.tracker.key


def test_the_new_key_is_on_disk_before_the_tracker_hears_of_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_once(tracker: TrackerAt, message: Any, *rest: Any) -> Message:
        assert load_or_make_key(home.folder / "key.next.json").public == message.public_key
        assert home.key == home.first
        return Ok()

    monkeypatch.setattr(rotate_key, "ask_once", ask_once)
    home.rotate()


def test_a_next_key_that_is_damaged_is_named_and_nothing_is_given_up(home: Home) -> None:
    (home.folder / "key.next.json").write_text("{")
    with pytest.raises(StorageFailure, match=r"key\.next\.json"):
        home.rotate()
    assert home.key == home.first
    assert home.tracker.asked == []
