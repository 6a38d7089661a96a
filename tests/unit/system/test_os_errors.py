"""system/os_errors.py: each error number as what it is; a broken disk only where the disk is broken."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from zchunk.errors import (
    InvalidUsage,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    StorageUnavailable,
    ZchunkError,
)
from zchunk.system import file_limit
from zchunk.system.os_errors import as_ours, reason_of, storage_error, storage_errors

PATH = Path("/data/x")
BROKEN = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.EUCLEAN}
BROKEN |= {errno.EBADMSG, errno.ENOMEDIUM, errno.EILSEQ}
OTHERS = {
    **dict.fromkeys([errno.ENOSPC, errno.EDQUOT, errno.EFBIG], NoSpace),
    **dict.fromkeys([errno.EACCES, errno.EPERM, errno.EROFS], NotAllowed),
    **dict.fromkeys([errno.ENOENT, errno.ENOTDIR], NotFound),
    **dict.fromkeys(
        [errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP], InvalidUsage
    ),
}


def told(number: int, doing: str = "writing") -> ZchunkError:
    return storage_error(OSError(number, os.strerror(number)), PATH, doing)


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=errno.errorcode.get)
def test_each_number_is_one_line_that_names_the_path_and_what_was_done(number: int) -> None:
    error = told(number)
    expected = StorageFailure if number in BROKEN else OTHERS.get(number, StorageUnavailable)
    assert type(error) is expected
    assert "writing /data/x" in error.message
    assert "\n" not in error.message
    assert error.details == {"path": "/data/x"}
    assert ("cannot be trusted" in error.message) is (number in BROKEN), "only a broken disk is not trusted"


def test_what_there_is_too_little_of_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"too many files and connections open (limit: {limit})" in told(errno.EMFILE).message
    assert "ulimit -n" in told(errno.EMFILE).message
    assert "this PC has too many files open" in told(errno.ENFILE).message
    assert "no memory left" in told(errno.ENOMEM).message
    assert "no memory left" in storage_error(MemoryError(), PATH, "reading").message
    monkeypatch.setattr(file_limit, "resource", None)  # as on Windows
    assert "too many files and connections open" in told(errno.EMFILE).message


def test_a_file_that_is_too_large_names_the_limit() -> None:
    assert told(errno.EFBIG).exit_code == 8
    assert "FAT32: 4 GiB - 1 byte at most" in told(errno.EFBIG).message
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (123_456_789, hard))
    try:
        assert "cannot write files larger than 123456789 bytes (`ulimit -f`)" in told(errno.EFBIG).message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_system_that_is_away_says_what_to_do() -> None:
    assert "mount it again" in told(errno.ESTALE).message
    assert "try again" in told(errno.EBUSY).message
    assert "mounted read-only" in told(errno.EROFS).message
    assert "free some space" in told(errno.ENOSPC).message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ESTALE, errno.ENOMEM, errno.EFBIG])
def test_what_may_pass_may_be_tried_again(number: int) -> None:
    assert told(number).retryable


def test_the_cause_stays_with_it() -> None:
    with pytest.raises(StorageFailure) as caught, storage_errors(PATH, "syncing"):
        raise OSError(errno.EIO, "bad sector")
    assert isinstance(caught.value.__cause__, OSError)
    assert "bad sector" in caught.value.message
    with pytest.raises(StorageUnavailable), storage_errors(PATH, "reading"):
        raise MemoryError


def test_a_refusal_without_words_of_its_own_names_its_file() -> None:
    error = as_ours(OSError(errno.EACCES, "no", "/some/file"))
    assert isinstance(error, NotAllowed)
    assert "using /some/file is not permitted" in error.message
    assert "using /by/bytes" in as_ours(OSError(errno.EIO, "no", b"/by/bytes")).message
    assert "a file or connection" in as_ours(OSError(errno.EMFILE, "no")).message
    assert "no memory" in as_ours(MemoryError()).message


def test_a_reason_is_a_few_words() -> None:
    assert reason_of(OSError(errno.EIO, "anything")) == "Input/output error"
    assert reason_of(MemoryError()) == "Cannot allocate memory"
    assert reason_of(OSError("just a text")) == "just a text"
