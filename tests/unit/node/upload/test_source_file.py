"""node/upload/source_file.py: what can be uploaded, and how its changes are noticed (SPEC U3)."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for
from zchunk.clock import ManualClock
from zchunk.errors import FileChanged, InvalidUsage, NotFound
from zchunk.node.manager import PutOptions, file_name
from zchunk.node.upload.source_file import SourceFile
from zchunk.system import disk

SIZE = 40_000


@pytest.fixture
def path() -> Iterator[Path]:
    """On a disk: a tmpfs keeps no times of what is written through a mapping."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        found = Path(folder) / "film.mkv"
        found.write_bytes(bytes(SIZE))
        yield found


@pytest.fixture
def mapping(path: Path) -> Iterator[mmap.mmap]:
    """A program's that has written to the file, and may do so again."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapping:
        mapping[0] = 1
        yield mapping


def test_a_file_at_rest_is_unchanged(path: Path, mapping: mmap.mmap) -> None:
    source = SourceFile(path)
    view = source.read_chunk(0, SIZE, memoryview(bytearray(SIZE)))
    assert bytes(view) == bytes(mapping)
    assert not source.is_hole(0, SIZE)
    source.check_unchanged()
    source.close()


def test_holes_are_known(path: Path) -> None:
    chunk = 1024 * 1024
    with open(path, "wb") as file:
        file.truncate(5 * chunk + 100)
        file.seek(2 * chunk + 5000)
        file.write(b"data")
    source = SourceFile(path)
    assert [index for index in range(6) if not source.is_hole(index, chunk)] == [2]
    source.close()


def write(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"other")


def write_and_put_the_time_back(path: Path) -> None:
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [write, write_and_put_the_time_back])
def test_a_change_is_noticed(path: Path, change: object) -> None:
    source = SourceFile(path)
    change(path)  # type: ignore[operator]
    with pytest.raises(FileChanged, match="film"):
        source.check_unchanged()
    source.close()


def test_a_change_through_a_mapping_is_noticed(path: Path, mapping: mmap.mmap) -> None:
    """At once, and of a page that was dirty before."""
    for value in range(2, 30):
        source = SourceFile(path)
        mapping[0] = value
        with pytest.raises(FileChanged):
            source.check_unchanged()
        source.close()


def test_a_file_that_is_being_written_to_is_refused(
    path: Path, mapping: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each look, so that none is the last."""
    real = disk.write_back

    def written_again(fd: int) -> None:
        real(fd)
        mapping[0] = (mapping[0] + 1) % 256

    monkeypatch.setattr(disk, "write_back", written_again)
    with pytest.raises(FileChanged, match="is being written to"):
        SourceFile(path)


def test_a_writer_that_never_rests_is_never_unnoticed(path: Path, mapping: mmap.mmap) -> None:
    stop, rounds = threading.Event(), [0]

    def write_on() -> None:
        while not stop.is_set():
            for at in (0, SIZE - 1):
                mapping[at] = (mapping[at] + 1) % 256
            rounds[0] += 1

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for _ in range(5):
            try:
                source = SourceFile(path)
            except FileChanged:
                continue  # the usual; a busy machine may have kept the writer from it
            opened = rounds[0]
            wait_for(lambda opened=opened: rounds[0] > opened + 1, 30.0, "it writes again")  # type: ignore[misc]
            with pytest.raises(FileChanged):
                source.check_unchanged()
            source.close()
    finally:
        stop.set()
        writer.join()


def test_a_disk_with_another_clock_is_no_writer(path: Path) -> None:
    """A file server whose clock goes ahead of this PC's."""
    source = SourceFile(path, ManualClock(wall=path.stat().st_ctime - 3600))
    source.check_unchanged()
    source.close()


def test_times_of_whole_seconds_are_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT, and ext4 of old: a change of the same two seconds would not show."""
    slept: list[float] = []
    clock = ManualClock(wall=path.stat().st_ctime)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds + 0.1)

    real = os.fstat

    def coarse(fd: int) -> os.stat_result:
        found = real(fd)
        whole = found.st_ctime_ns - found.st_ctime_ns % 10**9
        names = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return os.stat_result(tuple(found)[:10], {**names, "st_ctime_ns": whole})

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "fstat", coarse)
    SourceFile(path, clock).close()
    assert slept == [2.0]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EROFS, errno.EIO])
def test_a_source_that_does_not_sync_is_read_all_the_same(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    SourceFile(path).close()
    assert ("may go unnoticed" in caplog.text) == (number == errno.EIO)


# -- what is no file to be uploaded ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["/proc/cpuinfo", "/proc/self/status", "/proc/self/maps"])
def test_a_file_without_a_size_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(InvalidUsage, match=f"{name} has another size than it reports"):
        SourceFile(Path(name))


def test_a_file_with_less_than_its_size_is_refused() -> None:
    path = Path("/sys/kernel/fscaps")
    assert path.stat().st_size > len(path.read_bytes())
    with pytest.raises(InvalidUsage, match="another size than it reports"):
        SourceFile(path)


@pytest.mark.parametrize("size", [0, 1, 2, 5000])
def test_small_files_are_files(path: Path, size: int) -> None:
    os.truncate(path, size)
    source = SourceFile(path)
    assert source.size == size
    source.close()


def test_what_is_no_regular_file_is_not_even_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(path), real(path, *rest))[1])
    for odd in (pipe, Path("/dev/null"), path.parent):
        with pytest.raises(InvalidUsage, match="not a regular file"):
            SourceFile(odd)
    for missing in (path.with_name("none"), path / "none"):
        with pytest.raises(NotFound):
            SourceFile(missing)
    assert opened == []


def test_a_descriptor_is_not_kept_of_what_is_refused(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(InvalidUsage):
            SourceFile(Path("/proc/cpuinfo"))
    assert len(os.listdir("/proc/self/fd")) == before


# -- names ----------------------------------------------------------------------------------------


def test_a_name_that_is_no_utf8_is_refused() -> None:
    path = Path(os.fsdecode(b"/home/caf\xe9.txt"))
    with pytest.raises(InvalidUsage, match="not valid UTF-8; choose another name with --name"):
        file_name(path, PutOptions())
    assert file_name(path, PutOptions(name="café.txt")) == "café.txt"
    assert file_name(Path("/home/café.txt"), PutOptions()) == "café.txt"
