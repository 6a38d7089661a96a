"""node/download/target.py: which file a path means, and how a finished part gets its name."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from zchunk.errors import TargetExists
from zchunk.node.download import target as module
from zchunk.node.download.target import followed, put_in_place
from zchunk.system import syscalls


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
    with pytest.raises(TargetExists, match=f"is {kind}, not a file"):
        followed(path)


# -- the last step --------------------------------------------------------------------------------


def refuse(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def part(path: Path) -> Path:
    part = path.with_name("part")
    part.write_bytes(b"new")
    return part


@pytest.fixture(params=["rename", "link", "neither"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has to give a name only where there is none."""
    if request.param != "rename":
        monkeypatch.setattr(syscalls, "rename_new", refuse(errno.EINVAL))
    if request.param == "neither":
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))


def test_a_link_to_what_has_no_name_is_no_target(path: Path) -> None:
    """As /dev/stderr is, where it is a pipe or a file that was deleted."""
    reader, writer = os.pipe()
    with open(path, "wb") as deleted:
        path.unlink()
        for number, words in ((writer, "is a pipe, not a file"), (deleted.fileno(), "that has no name")):
            with pytest.raises(TargetExists, match=words):
                followed(Path(f"/proc/self/fd/{number}"))
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("replace", [True, False])
def test_a_part_gets_its_name(path: Path, part: Path, replace: bool) -> None:
    number = part.stat().st_ino
    put_in_place(part, path, replace)
    assert (path.stat().st_ino, path.stat().st_nlink) == (number, 1)
    assert os.listdir(path.parent) == ["film.mkv"]


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("make", [Path.touch, pipe, door, device, Path.mkdir])
def test_nothing_is_replaced_that_was_not_asked_for(
    path: Path, part: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(TargetExists, match="was created by another program"):
        put_in_place(part, path, False)
    after = path.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert part.read_bytes() == b"new"


@pytest.mark.parametrize("make", [pipe, door, device, Path.mkdir])
def test_nothing_but_a_file_is_replaced(path: Path, part: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = path.lstat().st_ino
    with pytest.raises(TargetExists, match="not a file"):
        put_in_place(part, path, True)
    assert (path.lstat().st_ino, part.read_bytes()) == (before, b"new")


def test_a_file_is_replaced_where_it_was_asked_for(path: Path, part: Path) -> None:
    path.write_bytes(b"old")
    put_in_place(part, path, True)
    assert (path.read_bytes(), part.exists()) == (b"new", False)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_not_asked_another_way(
    path: Path, part: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "rename_new", refuse(number))
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        put_in_place(part, path, False)
    assert os.listdir(path.parent) == ["part"]


# -- the call -------------------------------------------------------------------------------------


def test_a_name_is_given_in_one_step_or_not_at_all(path: Path, part: Path) -> None:
    syscalls.rename_new(part, path)
    part.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        syscalls.rename_new(part, path)
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        syscalls.rename_new(path.with_name("none"), path.with_name("other"))


def test_a_system_without_the_call_is_as_a_disk_without_it(
    path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "_library", lambda: None)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSYS))):
        syscalls.rename_new(part, path)
    put_in_place(part, path, False)
    assert path.read_bytes() == b"new"
