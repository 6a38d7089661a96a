"""node/target.py: which file a path means, and how a finished part gets its name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from zchunk.errors import TargetExists
from zchunk.node import target as module
from zchunk.node.target import followed, put_in_place


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "film.mkv"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "real.mkv"


def test_a_file_and_what_is_not_there_are_meant_as_they_are(path: Path) -> None:
    assert followed(path) == path
    path.touch()
    assert followed(path) == path
    assert followed(path.parent) == path.parent


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_an_own_link_is_followed_to_its_end(path: Path, elsewhere: Path, there: bool, absolute: bool) -> None:
    second = path.with_name("second")
    path.symlink_to(second if absolute else "second")
    second.symlink_to(elsewhere if absolute else "elsewhere/real.mkv")
    if there:
        elsewhere.touch()
    assert followed(path) == elsewhere


def test_a_link_to_a_folder_is_that_folder(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere.parent)
    assert followed(path) == elsewhere.parent


def test_links_in_a_circle_are_an_error(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        followed(path)


@pytest.mark.parametrize("first", [True, False])
def test_a_link_of_somebody_else_is_not_followed(
    path: Path, elsewhere: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an own one leads to it."""
    theirs = path.with_name("theirs")
    path.symlink_to(theirs)
    theirs.symlink_to(elsewhere)
    elsewhere.write_bytes(b"precious")
    number = (path if first else theirs).lstat().st_ino
    real = os.lstat

    def lstat(at: Path) -> os.stat_result:
        found = real(at)
        return _owned(found, 65534) if found.st_ino == number else found

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(TargetExists, match="is a link of the user"):
        followed(path)


def _owned(found: os.stat_result, uid: int) -> os.stat_result:
    fields = list(found)
    fields[4] = uid
    return os.stat_result(fields)


@pytest.mark.parametrize("leads_to", ["folder", "file", "nothing"])
def test_a_link_of_root_is_followed_to_a_folder_alone(
    path: Path, elsewhere: Path, leads_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As disks are made known: /data -> /mnt/data."""
    path.symlink_to(elsewhere.parent if leads_to == "folder" else elsewhere)
    if leads_to == "file":
        elsewhere.touch()
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda at: _owned(real(at), 0))
    monkeypatch.setattr(module, "own_uid", lambda: 1000)
    if leads_to == "folder":
        assert followed(path) == elsewhere.parent
    else:
        with pytest.raises(TargetExists, match="root"):
            followed(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def door(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(("make", "kind"), [(pipe, "a pipe"), (door, "a socket"), (device, "a device")])
@pytest.mark.parametrize("linked", [True, False])
def test_what_is_no_file_is_no_target(
    path: Path, make: Callable[[Path], None], kind: str, linked: bool
) -> None:
    there = path.with_name("odd") if linked else path
    make(there)
    if linked:
        path.symlink_to(there)
    with pytest.raises(TargetExists, match=f"is {kind} and no file"):
        followed(path)


@pytest.mark.parametrize("make", [pipe, door, device, Path.mkdir])
def test_nothing_but_a_file_is_replaced(path: Path, make: Callable[[Path], None]) -> None:
    part = path.with_name("part")
    part.write_bytes(b"new")
    make(path)
    before = path.lstat().st_ino
    with pytest.raises(TargetExists, match="and no file"):
        put_in_place(part, path)
    assert (path.lstat().st_ino, part.read_bytes()) == (before, b"new")


def test_a_file_is_replaced(path: Path) -> None:
    part = path.with_name("part")
    part.write_bytes(b"new")
    path.write_bytes(b"old")
    put_in_place(part, path)
    assert (path.read_bytes(), part.exists()) == (b"new", False)
