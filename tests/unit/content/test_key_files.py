"""content/key_files.py: key files are made once, for their owner alone; what is none is said."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

import pytest

from zchunk.content.encryption import Passphrase
from zchunk.content.key_files import make_key_file, passphrase_of, read_key_file, read_passphrase
from zchunk.errors import InvalidUsage, NoSpace, NotFound, TargetExists


def test_a_key_file_is_random_and_its_owners_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "key", tmp_path / "other"
    before = os.umask(0)
    try:
        made = make_key_file(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == made
    assert make_key_file(other).key_id != made.key_id


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = make_key_file(path)
    with pytest.raises(TargetExists, match="never replaced"):
        make_key_file(path)
    assert read_key_file(path) == made
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TargetExists):
        make_key_file(tmp_path / "link")


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync"])
def test_a_key_file_that_cannot_be_written_is_not_left(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(NoSpace):
            make_key_file(path)
    assert not path.exists()
    make_key_file(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        make_key_file(tmp_path / "absent" / "key")


def test_a_lost_key_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"the key file .*key does not exist"):
        read_key_file(tmp_path / "key")


@pytest.mark.parametrize("size", [0, 31, 33, 100_000])
def test_a_file_that_is_no_key_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(size))
    with pytest.raises(InvalidUsage, match="not a key file"):
        read_key_file(path)


def test_a_key_file_that_others_can_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key"
    make_key_file(path)
    with caplog.at_level(logging.WARNING):
        read_key_file(path)
        assert not caplog.records
        path.chmod(0o644)
        read_key_file(path)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("data", [b"two words", b"two words\n", b"two words\r\n"])
def test_the_line_end_is_not_part_of_a_passphrase(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(data)
    path.chmod(0o600)
    assert read_passphrase(path) == Passphrase("two words")


def test_spaces_are_part_of_a_passphrase() -> None:
    assert passphrase_of(b" x \n", "stdin") == Passphrase(" x ")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"\n", "empty"), (b"a\nb\n", "several lines"), (b"\xff\xfe", "UTF-8")],
)
def test_what_is_no_passphrase(data: bytes, message: str) -> None:
    with pytest.raises(InvalidUsage, match=message):
        passphrase_of(data, "stdin")


def test_a_lost_passphrase_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="the passphrase file"):
        read_passphrase(tmp_path / "absent")
