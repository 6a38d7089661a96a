"""tracker/members/admin_socket.py: a command's word to the tracker of its home, and the answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.descriptors import open_descriptors
from zchunk.errors import NotAllowed, StorageFailure, TrackerUnreachable, ZchunkError
from zchunk.protocol import wire
from zchunk.protocol.messages import MembersChanged, Message, Ok
from zchunk.tracker.members.admin_socket import members_changed, open_socket
from zchunk.transport import unix_socket
from zchunk.transport.base import Received


@contextmanager
def tracker(folder: Path, answer: Message | None) -> Iterator[list[Message]]:
    """One that gives this answer; what it was told."""
    door, told, ended = open_socket(folder), [], threading.Event()

    def serve() -> None:
        while not ended.wait(0.01):
            received = door.receive()
            if isinstance(received, Received):
                envelope = wire.decode(received.frames)
                told.append(envelope.message)
                if answer is not None:
                    door.send(wire.encode(answer, envelope.request_id), received.connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()
        door.close()


def test_the_tracker_hears_it_and_its_answer_is_waited_for(tmp_path: Path) -> None:
    with tracker(tmp_path, Ok()) as told:
        members_changed(tmp_path, 30.0)
        assert told == [MembersChanged()]
    members_changed(tmp_path, 30.0)  # none runs any more


def test_a_home_is_found_from_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with tracker(Path("home"), Ok()) as told:
        monkeypatch.chdir(tmp_path / "elsewhere")
        members_changed(tmp_path / "home", 30.0)
        members_changed(Path("../home"), 30.0)
        assert len(told) == 2


@pytest.mark.parametrize("error", [StorageFailure("members.json is gone"), NotAllowed("not permitted")])
def test_what_keeps_the_list_from_being_read_is_told(tmp_path: Path, error: Any) -> None:
    with (
        tracker(tmp_path, wire.error_reply(error)),
        pytest.raises(type(error), match=f"the change is saved.*{error.message}"),
    ):
        members_changed(tmp_path, 30.0)


def test_a_tracker_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with tracker(tmp_path, None), pytest.raises(TrackerUnreachable, match="the change is saved"):
        members_changed(tmp_path, 0.3)


def test_a_place_that_cannot_be_noted_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    (tmp_path / "home").write_text("a file: no socket, and no note, can be made in it")
    before = open_descriptors()
    with pytest.raises(ZchunkError, match=r"home/socket\.json"):
        open_socket(tmp_path / "home")
    assert open_descriptors() <= before
    assert list(runtime.iterdir()) == []


def test_a_folder_that_can_hold_no_socket_names_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network and FUSE file systems."""
    home, runtime = tmp_path / "home", tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    bind = unix_socket._bind

    def refuse(path: Path) -> Any:
        if path.parent == home:
            raise OSError(95, "Operation not supported")
        return bind(path)

    monkeypatch.setattr(unix_socket, "_bind", refuse)
    with tracker(home, Ok()) as told:
        members_changed(home, 30.0)
        assert told == [MembersChanged()]
    members_changed(home, 30.0)
    monkeypatch.undo()
    with tracker(home, Ok()) as told:
        assert sorted(os.listdir(home)) == ["tracker.sock"], "the note of another place is gone"
        members_changed(home, 30.0)
        assert len(told) == 1
