"""file_rights.py: a refusal for want of rights says who may not do what, and to which file."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zchunk.errors import NotAllowed
from zchunk.node.upload.source_file import SourceFile
from zchunk.system.file_owners import own_uid, owner_name
from zchunk.system.file_rights import missing
from zchunk.system.os_errors import storage_error, storage_errors

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of another user where the tests run as root, and for this process an ordinary user's."""
    path = Path(tempfile.mkdtemp())
    (path / "inner").mkdir()
    for name in ("file", "inner/file"):
        (path / name).write_text("x")
    path.chmod(0o755)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(NOBODY)
    yield path
    os.seteuid(uid)
    for each in (path, path / "inner"):
        each.chmod(0o700)
    shutil.rmtree(path)


def set_mode(path: Path, mode: int) -> None:
    uid = os.geteuid()
    os.seteuid(path.stat().st_uid)
    path.chmod(mode)
    os.seteuid(uid)


def expected(what: str, at: Path, mode: str) -> str:
    return (
        f"{owner_name(own_uid())} may not {what} {at} (of {owner_name(at.stat().st_uid)}, mode {mode}):"
        " have its owner or mode changed (chown, chmod), or run this as its owner"
    )


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    path = folder / "file"
    set_mode(path, 0)
    with pytest.raises(NotAllowed) as caught, storage_errors(path, "reading"):
        path.read_bytes()
    why = expected("read or write to", path, "0000")
    assert caught.value.message == f"reading {path} is not permitted: {why}"
    with pytest.raises(NotAllowed, match=re.escape(why)):
        SourceFile(path)


def test_a_file_that_may_not_be_written_to(folder: Path) -> None:
    path = folder / "file"
    set_mode(path, 0o444)
    why = expected("write to", path, "0444")
    with pytest.raises(NotAllowed, match=re.escape(why)), storage_errors(path, "writing"):
        path.write_text("y")


def test_a_folder_in_which_nothing_may_be_made(folder: Path) -> None:
    path = folder / "inner" / "new"
    set_mode(path.parent, 0o555)
    why = expected("make or remove files in", path.parent, "0555")
    with pytest.raises(NotAllowed, match=re.escape(why)), storage_errors(path, "writing"):
        path.write_text("y")
    there = folder / "inner" / "file"
    set_mode(there, 0o444)
    with pytest.raises(NotAllowed, match=re.escape(why)), storage_errors(there, "removing"):
        there.unlink()


def test_a_folder_on_the_way_that_may_not_be_entered(folder: Path) -> None:
    path = folder / "inner" / "file"
    set_mode(path.parent, 0)
    why = expected("enter", path.parent, "0000")
    with pytest.raises(NotAllowed, match=re.escape(why)), storage_errors(path, "reading"):
        path.read_bytes()


def test_what_permissions_do_not_forbid_is_told_as_that() -> None:
    path = Path(tempfile.gettempdir())
    assert missing(path) is None
    for number in (errno.EPERM, errno.EACCES):
        error = storage_error(OSError(number, os.strerror(number)), path, "writing")
        assert f"{os.strerror(number)}, though its owner and mode allow it" in error.message
