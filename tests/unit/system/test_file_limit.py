"""system/file_limit.py: who has which part of the descriptors, and that files are opened with the last
ones."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.descriptors import open_descriptors
from zchunk.errors import StorageFailure
from zchunk.node.upload.source_file import SourceFile
from zchunk.system import file_limit, json_files
from zchunk.system.file_limit import (
    close_file,
    for_connections,
    for_readers,
    keep_regular,
    open_file,
    raise_limit,
)
from zchunk.transport.guard.rules import Guard, Limits, Seen


@contextmanager
def limited(soft_limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def take_all() -> list[int]:
    """All descriptors that are left."""
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    return taken


def keep_regular_at(path: Path) -> None:
    """Opens it, and closes it where `keep_regular` lets it stand."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not keep_regular(fd):
        raise OSError("not a regular file")
    os.close(fd)


@contextmanager
def none_left() -> Iterator[list[int]]:
    """Yields those that were taken."""
    with limited(max(map(int, os.listdir("/proc/self/fd"))) + 20):
        taken = take_all()
        try:
            yield taken
        finally:
            for fd in taken:
                os.close(fd)


@pytest.fixture
def spare() -> Iterator[None]:
    file_limit.keep(3)
    yield
    file_limit.keep(0)


@pytest.mark.parametrize("read", [json_files.read, SourceFile, keep_regular_at])
def test_what_cannot_be_looked_at_is_closed(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("{}")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        with pytest.raises((OSError, StorageFailure), match=os.strerror(errno.EIO)):
            read(path)
    assert open_descriptors(tmp_path) == set()


@pytest.mark.parametrize("read", [json_files.read, keep_regular_at])
def test_what_is_no_regular_file_is_closed(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read(path)
    assert open_descriptors(tmp_path) == set()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    try:
        assert raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_those_that_are_free_are_counted_and_stay_free() -> None:
    with none_left() as taken:
        assert file_limit.free(5) == 0
        for _ in range(3):
            os.close(taken.pop())
        assert [file_limit.free(5), file_limit.free(5), file_limit.free(2)] == [3, 3, 2]
        assert file_limit.shortage("it", 3) is None
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert file_limit.shortage("it", 4) == (
            f"it needs 4 descriptors for files and connections, but 3 of {limit} are free: raise the limit"
            f" (RLIMIT_NOFILE), e.g. `ulimit -n {max(1024, 2 * limit)}`"
        )


def test_connections_and_readers_have_a_part_each() -> None:
    with limited(512):
        assert (for_connections(), for_readers(64)) == (192, 32)
    with limited(2048):
        assert (for_connections(), for_readers(64)) == (768, 64)


def test_a_guard_keeps_to_that_part() -> None:
    guard = Guard(Limits(connections=10))
    guard.at_most(4)
    found = [Seen((n, n), str(n), 0) for n in range(6)]
    assert len(guard.look(found, {}, 0.0)) == 2
    guard.at_most(1000)
    assert len(guard.look([Seen((n, n), str(n), 0) for n in range(12)], {}, 1.0)) == 2


def test_a_file_is_opened_where_all_other_descriptors_are_taken(spare: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with none_left():
        with pytest.raises(OSError, match="Too many open files"):
            os.open(tmp_path / "file", os.O_RDONLY)
        opened = [open_file(tmp_path / "file", os.O_RDONLY) for _ in range(3)]
        assert [os.pread(fd, 9, 0) for fd in opened] == [b"content"] * 3
        with pytest.raises(OSError, match="Too many open files"):
            open_file(tmp_path / "file", os.O_RDONLY)
        for fd in opened:
            close_file(fd)
        assert take_all() == [], "nobody else got what was given up for a while"
        close_file(open_file(tmp_path / "file", os.O_RDONLY))


def test_what_is_missing_is_taken_as_soon_as_there_is_some(spare: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with none_left() as taken:
        opened = [open_file(tmp_path / "file", os.O_RDONLY) for _ in range(3)]
        for _ in range(4):
            os.close(taken.pop())
        opened.append(open_file(tmp_path / "file", os.O_RDONLY))
        assert take_all() == [], "three are spare again"
        for fd in opened:
            os.close(fd)


def test_another_error_costs_none_of_them(spare: None, tmp_path: Path) -> None:
    with none_left():
        with pytest.raises(FileNotFoundError):
            open_file(tmp_path / "none", os.O_RDONLY)
        assert take_all() == []
        opened = [open_file(os.devnull, os.O_RDONLY) for _ in range(3)]
        for fd in opened:
            close_file(fd)
