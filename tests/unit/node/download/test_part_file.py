"""zchunk/node/download/part_file.py: every verified chunk survives, nothing false is vouched for."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from zchunk.clock import ManualClock
from zchunk.content import hashing
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    AlreadyRunning,
    ChunkCorrupt,
    InvalidUsage,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    TargetExists,
    ZchunkError,
)
from zchunk.node.download import part_file
from zchunk.node.download.part_file import (
    JobInfo,
    PartFile,
    load_job,
    open_part,
    remove_leftovers,
    safe_target_name,
    target_has_content,
)
from zchunk.system import disk, syscalls

SIZE = 65536
JOB_ID, OTHER_JOB = "1" * 32, "2" * 32


class File:
    """A file's bytes and its manifest."""

    def __init__(self, size: int, seed: int = 1, name: str = "film.mkv") -> None:
        self.data = random.Random(seed).randbytes(size)
        parts = [self.data[at : at + SIZE] for at in range(0, size, SIZE)]
        rows = tuple(
            ChunkRow(len(p), "identity", hashlib.sha256(p).digest(), blake3(p).digest(), None) for p in parts
        )
        self.manifest = Manifest(name, size, hashlib.sha256(self.data).digest(), SIZE, rows)
        self.count = len(rows)

    def chunk(self, index: int) -> memoryview:
        return memoryview(self.data)[index * SIZE : (index + 1) * SIZE]


def write(part: PartFile, file: File, *indexes: int) -> None:
    for index in indexes:
        part.write_chunk(index, file.chunk(index))
        part.mark(index)


def oserror(number: int) -> Callable[..., None]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextlib.contextmanager
def replaced(module: object, name: str, new: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, new)
        yield


def crash(part: PartFile) -> None:
    """What a kill does: descriptors and lock are gone, every file stays."""
    part._close_writer()
    part._lock.drop()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def job_at(path: Path) -> JobInfo:
    job = load_job(path)
    assert job is not None
    return job


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "film.mkv"


@pytest.fixture
def part_path(target: Path) -> Path:
    return target.with_name("film.mkv.zpart")


@pytest.fixture
def job_path(target: Path) -> Path:
    return target.with_name("film.mkv.zjob")


@pytest.fixture
def file() -> File:
    return File(5 * SIZE + 1234)


@pytest.fixture
def part(target: Path, file: File) -> Iterator[PartFile]:
    with open_part(target, file.manifest, JOB_ID, clock=ManualClock()) as opened:
        yield opened


# -- from beginning to end -------------------------------------------------------------


def test_a_new_download_has_its_space_and_its_journal(
    file: File, part: PartFile, target: Path, part_path: Path, job_path: Path
) -> None:
    stats = part_path.stat()
    assert stats.st_size == len(file.data)
    assert stats.st_blocks * 512 >= len(file.data)
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zlock", "film.mkv.zpart"]
    assert json.loads(job_path.read_text()) == {
        "version": 1,
        "job_id": JOB_ID,
        "file_id": file.manifest.file_id,
        "name": "film.mkv",
        "size": len(file.data),
        "chunk_size": SIZE,
        "target": str(target),
        "state": "running",
        "created_at": "2023-11-14T22:13:20.000Z",
        "completed": [],
        "manifest": base64.b64encode(file.manifest.canonical).decode(),
    }


@pytest.mark.parametrize("size", [0, 1, 4096, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 3 * SIZE + 4097])
def test_a_file_of_any_size_is_finished(target: Path, size: int) -> None:
    file = File(size)
    part = open_part(target, file.manifest, JOB_ID)
    order = list(range(file.count))
    random.Random(size).shuffle(order)
    write(part, file, *order)
    part.save()
    into = memoryview(bytearray(SIZE))
    assert all(part.read_chunk(index, into) == file.chunk(index) for index in order)
    part.finish()
    assert target.read_bytes() == file.data
    assert names(target.parent) == ["film.mkv"]


@pytest.mark.parametrize("step", [4096, SIZE - 1, SIZE, 2 * SIZE])
def test_a_chunk_is_read_in_parts_of_any_size(part: PartFile, file: File, step: int) -> None:
    write(part, file, 0, 1, 2)
    parts = [bytes(view) for view in part.read_parts(1, memoryview(bytearray(step)))]
    assert b"".join(parts) == file.chunk(1)
    assert [len(view) for view in parts[:-1]] == [step] * (len(parts) - 1)


def test_the_target_is_replaced_at_once(target: Path, file: File) -> None:
    target.write_bytes(b"an older and much longer file" * 99999)
    part = open_part(target, file.manifest, JOB_ID, replaces=True)
    write(part, file, *range(file.count))
    assert target.read_bytes().startswith(b"an older")
    part.finish()
    assert target.read_bytes() == file.data


def test_finish_is_durable_step_by_step(
    part: PartFile, file: File, monkeypatch: pytest.MonkeyPatch, part_path: Path
) -> None:
    """SPEC D5: length, file synced, descriptors closed, one rename, folder synced, then the journal."""
    write(part, file, *range(file.count))
    calls = []

    def spy(module: object, name: str, what: Any = lambda *_: None) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (calls.append(name), what(*a), real(*a))[2])

    def nothing_open(*_args: Any) -> None:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert str(part_path) not in links

    def journal_stands(*_args: Any) -> None:
        assert part_path.with_name("film.mkv.zjob").exists()

    spy(os, "ftruncate")
    spy(disk, "sync_file")
    spy(syscalls, "rename_new", nothing_open)
    spy(disk, "sync_folder", journal_stands)
    part.finish()
    assert calls == ["ftruncate", "sync_file", "rename_new", "sync_folder"]


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_part_longer_than_the_file_is_cut(
    part: PartFile, file: File, target: Path, part_path: Path
) -> None:
    os.truncate(part_path, len(file.data) + 100_000)
    write(part, file, *range(file.count))
    part.finish()
    assert target.read_bytes() == file.data


def test_abandon_leaves_nothing(part: PartFile, file: File, target: Path) -> None:
    write(part, file, 1)
    part.save()
    part.abandon()
    part.keep()
    assert names(target.parent) == []


def test_keep_leaves_part_and_journal_for_the_next_run(part: PartFile, file: File, target: Path) -> None:
    write(part, file, 1)
    part.keep()
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zpart"]
    with pytest.raises(RuntimeError):
        part.write_chunk(0, file.chunk(0))


def test_leaving_the_block_keeps(target: Path, file: File) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 2)
    with open_part(target, file.manifest, OTHER_JOB) as part:
        assert part.scan() == {2}


@pytest.mark.parametrize("index", [-1, 6, 100])
def test_a_chunk_that_does_not_exist_is_a_bug(part: PartFile, index: int) -> None:
    calls: list[Callable[[], object]] = [lambda: part.mark(index), lambda: part.write_chunk(index, b"")]
    for call in calls:
        with pytest.raises(IndexError):
            call()


@pytest.mark.parametrize("length", [0, SIZE - 1, SIZE + 1])
def test_a_chunk_of_the_wrong_length_is_a_bug(part: PartFile, length: int) -> None:
    with pytest.raises(ValueError, match="65536"):
        part.write_chunk(0, bytes(length))


def test_chunks_go_past_the_page_cache_at_their_offset(
    part: PartFile, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(disk, "write_at", lambda d, c, data, at: calls.append((d, c, len(data), at)))
    write(part, file, 3, 5)
    assert [(length, at) for _, _, length, at in calls] == [(SIZE, 3 * SIZE), (1234, 5 * SIZE)]
    assert all(direct != cached for direct, cached, _, _ in calls)


def test_without_o_direct_the_cache_does_it(
    target: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    part = open_part(target, file.manifest, JOB_ID)
    write(part, file, *range(file.count))
    part.finish()
    assert target.read_bytes() == file.data


# -- zeros ------------------------------------------------------------------------------


class Sparse(File):
    """Chunks of 1 MiB: data, zeros, zeros, data with zeros in its middle, and zeros at the end."""

    SIZE = 1024 * 1024

    def __init__(self) -> None:
        some = random.Random(3).randbytes(self.SIZE)
        half = some[:131072] + bytes(self.SIZE // 2) + some[-(self.SIZE // 2 - 131072) :]
        parts = [some, bytes(self.SIZE), bytes(self.SIZE), half, bytes(5000)]
        self.data = b"".join(parts)
        rows = tuple(
            ChunkRow(len(p), "identity", hashlib.sha256(p).digest(), blake3(p).digest(), None) for p in parts
        )
        self.manifest = Manifest("image", len(self.data), hashlib.sha256(self.data).digest(), self.SIZE, rows)
        self.count = len(rows)
        self.parts = [memoryview(part) for part in parts]

    def chunk(self, index: int) -> memoryview:
        return self.parts[index]


@pytest.fixture
def sparse() -> Sparse:
    return Sparse()


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_chunks_of_zeros_are_there_from_the_start_and_take_no_disk(
    target: Path, sparse: Sparse, part_path: Path, job_path: Path
) -> None:
    part = open_part(target, sparse.manifest, JOB_ID)
    assert part.zeros == part.completed == {1, 2, 4}
    assert part_path.stat().st_size == len(sparse.data)
    assert used(part_path) == 2 * Sparse.SIZE
    assert job_at(job_path).completed == {1, 2, 4}
    into = memoryview(bytearray(Sparse.SIZE))
    assert all(part.read_chunk(index, into) == sparse.chunk(index) for index in part.zeros)
    write(part, sparse, 0, 3)
    part.finish()
    assert target.read_bytes() == sparse.data
    assert used(target) == 2 * Sparse.SIZE - Sparse.SIZE // 2, "and neither do zeros within a chunk"


def test_a_disk_has_to_have_room_for_the_data_alone(
    target: Path, sparse: Sparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = syscalls.fallocate
    monkeypatch.setattr(
        syscalls, "fallocate", lambda fd, at, length: (asked.append((at, length)), real(fd, at, length))
    )
    open_part(target, sparse.manifest, JOB_ID).keep()
    assert asked == [(0, Sparse.SIZE), (3 * Sparse.SIZE, Sparse.SIZE)]
    monkeypatch.setattr(syscalls, "fallocate", oserror(errno.EOPNOTSUPP))
    target.with_name("film.mkv.zpart").unlink()
    for room, fits in ((2 * Sparse.SIZE, True), (2 * Sparse.SIZE - 1, False)):
        monkeypatch.setattr(os, "fstatvfs", lambda fd, room=room: SimpleNamespace(f_bavail=room, f_frsize=1))
        if fits:
            open_part(target, sparse.manifest, JOB_ID).keep()
            continue
        with pytest.raises(NoSpace, match=f"{2 * Sparse.SIZE} bytes"):
            open_part(target, sparse.manifest, JOB_ID)


def test_a_part_that_is_gone_on_with_keeps_its_holes(target: Path, sparse: Sparse, part_path: Path) -> None:
    with open_part(target, sparse.manifest, JOB_ID) as part:
        write(part, sparse, 3)
        part.save()
    with open_part(target, sparse.manifest, JOB_ID) as part:
        assert part.scan() == {1, 2, 3, 4}
        assert used(part_path) == 2 * Sparse.SIZE - Sparse.SIZE // 2
        write(part, sparse, 0)
        part.finish()
    assert target.read_bytes() == sparse.data
    assert used(target) == 2 * Sparse.SIZE - Sparse.SIZE // 2


@pytest.mark.parametrize("punches", [True, False])
def test_zeros_are_made_where_something_else_was(
    target: Path, sparse: Sparse, part_path: Path, monkeypatch: pytest.MonkeyPatch, punches: bool
) -> None:
    """Also within a chunk, and where the disk makes no holes."""
    with open_part(target, sparse.manifest, JOB_ID) as part:
        write(part, sparse, 0, 3)
        part.save()
    part_path.write_bytes(b"x" * len(sparse.data))
    if not punches:
        monkeypatch.setattr(syscalls, "punch_hole", oserror(errno.EOPNOTSUPP))
    with open_part(target, sparse.manifest, JOB_ID) as part:
        assert part.scan() == {1, 2, 4}
        into = memoryview(bytearray(Sparse.SIZE))
        assert all(part.read_chunk(index, into) == sparse.chunk(index) for index in part.zeros)
        write(part, sparse, 0, 3)
        part.finish()
    assert target.read_bytes() == sparse.data
    assert used(target) == (2 * Sparse.SIZE - Sparse.SIZE // 2 + 4096 if punches else used(target))


def test_a_hole_that_cannot_be_made_is_an_error(
    target: Path, sparse: Sparse, part_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_part(target, sparse.manifest, JOB_ID) as part:
        monkeypatch.setattr(syscalls, "punch_hole", oserror(errno.EIO))
        with pytest.raises(StorageFailure):
            part.write_chunk(3, sparse.chunk(3))


# -- going on ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", [PartFile.keep, crash])
@pytest.mark.parametrize("saved", [True, False])
def test_the_next_run_goes_on_under_the_same_job(
    target: Path, file: File, end: Callable[[PartFile], object], saved: bool
) -> None:
    first = open_part(target, file.manifest, JOB_ID, clock=ManualClock())
    write(first, file, 0, 3, 5)
    if saved:
        first.save()
    end(first)
    with open_part(target, file.manifest, OTHER_JOB) as again:
        assert again.job_id == JOB_ID
        assert again.created_at == first.created_at
        assert again.completed == ({0, 3, 5} if saved else set())  # the journal: a hint
        assert again.scan() == {0, 3, 5}  # the bytes: the truth
        assert again.completed == {0, 3, 5}
    assert not [name for name in names(target.parent) if "aside" in name]


def test_the_journal_is_not_believed(target: Path, file: File, job_path: Path) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        part.mark(1)
        part.mark(2)
        part.save()
    assert job_at(job_path).completed == {1, 2}
    with open_part(target, file.manifest, JOB_ID) as again:
        assert again.scan() == set()
        again.save()
    assert job_at(job_path).completed == frozenset()


@pytest.mark.parametrize("seed", range(20))
def test_scan_finds_the_chunk_with_a_flipped_bit(
    target: Path, file: File, part_path: Path, seed: int
) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, *range(file.count))
        part.save()
    rng = random.Random(seed)
    position = rng.randrange(len(file.data))
    data = bytearray(file.data)
    data[position] ^= 1 << rng.randrange(8)
    part_path.write_bytes(data)
    with open_part(target, file.manifest, JOB_ID) as again:
        assert again.scan() == set(range(file.count)) - {position // SIZE}


def test_scan_costs_one_blake3_of_what_was_written_and_no_sha256(
    target: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Holes that every file system knows of; of allocated space some say it is data.
    monkeypatch.setattr(syscalls, "fallocate", oserror(errno.EOPNOTSUPP))
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 1, 5)
    with open_part(target, file.manifest, JOB_ID) as again:
        before = hashing.counts.copy()
        again.scan()
        assert hashing.counts["sha256"] == before["sha256"]
        assert hashing.counts["blake3"] - before["blake3"] == SIZE + 1234


def test_scan_reads_everything_where_holes_are_not_told(
    target: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "SEEK_DATA")
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 1)
        assert part.scan() == {1}


def test_scan_tells_its_progress(part: PartFile, file: File) -> None:
    seen = []
    part.scan(lambda done, count: seen.append((done, count)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_a_scan_that_is_broken_off_leaves_the_part_usable(part: PartFile, file: File) -> None:
    def stop(done: Any, _count: Any) -> None:
        raise KeyboardInterrupt

    write(part, file, 0)
    with pytest.raises(KeyboardInterrupt):
        part.scan(stop)
    assert part.scan() == {0}


def test_a_part_is_new_where_there_was_none(target: Path, file: File, part_path: Path) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        assert part.is_new
        write(part, file, 0)
    with open_part(target, file.manifest, JOB_ID) as part:
        assert not part.is_new
    part_path.unlink()
    with open_part(target, file.manifest, JOB_ID) as part:
        assert part.is_new


def test_scan_reads_the_disk_not_the_memory(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = disk.sync_file
    monkeypatch.setattr(disk, "sync_file", lambda fd: (calls.append("sync"), real(fd)))
    monkeypatch.setattr(disk, "drop_cache", lambda fd: calls.append("drop"))
    part.scan()
    assert calls == ["sync", "drop"]


def test_an_unreadable_chunk_is_fetched_again(
    part: PartFile, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(part, file, 0, 1, 2)
    real = os.preadv

    def bad_sector(fd: int, views: Any, offset: int) -> Any:
        return oserror(errno.EIO)() if offset == SIZE else real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", bad_sector)
    assert part.scan() == {0, 2}
    with pytest.raises(StorageFailure):
        part.read_chunk(1, memoryview(bytearray(SIZE)))


@pytest.mark.parametrize("length", [0, 100, SIZE, 2 * SIZE + 5])
def test_a_cut_part_is_filled_up_and_keeps_what_it_has(
    target: Path, file: File, part_path: Path, length: int
) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, *range(file.count))
    os.truncate(part_path, length)
    with open_part(target, file.manifest, JOB_ID) as again:
        assert part_path.stat().st_size == len(file.data)
        assert again.scan() == set(range(length // SIZE))


def test_a_part_cut_under_us_is_corrupt(part: PartFile, file: File, part_path: Path) -> None:
    write(part, file, *range(file.count))
    os.truncate(part_path, SIZE + 1)
    with pytest.raises(ChunkCorrupt, match="chunk 1"):
        part.read_chunk(1, memoryview(bytearray(SIZE)))


def test_plain_digests_that_are_sealed_cannot_be_compared(target: Path, file: File) -> None:
    rows = tuple(
        ChunkRow(r.stored_size + 16, "aes256gcm", r.sha256, r.blake3, None) for r in file.manifest.chunks
    )
    sealed = Manifest("x", len(file.data), None, SIZE, rows, b"secret")
    with open_part(target, sealed, JOB_ID) as part:
        write(part, file, 0)
        assert part.scan() == set()


def test_a_journal_without_its_part_goes_on_from_nothing(
    target: Path, file: File, part_path: Path, job_path: Path
) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 0)
        part.save()
    part_path.unlink()
    with open_part(target, file.manifest, OTHER_JOB) as again:
        assert again.job_id == JOB_ID
        assert again.completed == set()
        assert job_at(job_path).completed == frozenset()
        assert again.scan() == set()


def test_marks_can_be_taken_back(part: PartFile, file: File, job_path: Path) -> None:
    write(part, file, 0, 1)
    part.unmark(1)
    part.unmark(4)
    part.save()
    assert job_at(job_path).completed == {0}


# -- what counts as ours ----------------------------------------------------------------


def test_another_files_download_is_kept_aside(target: Path, file: File) -> None:
    other = File(3 * SIZE, seed=2)
    with open_part(target, other.manifest, OTHER_JOB) as part:
        write(part, other, 1)
    with open_part(target, file.manifest, JOB_ID) as part:
        assert part.job_id == JOB_ID
        assert part.scan() == set()
    aside = target.with_name("film.mkv.zpart.aside-1")
    assert aside.read_bytes()[SIZE : 2 * SIZE] == other.chunk(1)
    assert job_at(target.with_name("film.mkv.zjob.aside-1")).job_id == OTHER_JOB


def test_each_pair_aside_has_its_own_number(target: Path) -> None:
    for seed in range(1, 4):
        open_part(target, File(SIZE, seed).manifest, JOB_ID).keep()
    assert [n for n in names(target.parent) if "zpart.aside" in n] == [
        "film.mkv.zpart.aside-1",
        "film.mkv.zpart.aside-2",
    ]
    for number in (1, 2):
        job = job_at(target.with_name(f"film.mkv.zjob.aside-{number}"))
        assert job.file_id == File(SIZE, number).manifest.file_id


@pytest.mark.parametrize("journal", [None, b"", b"{", b"garbage", b"[]", b"{}"])
def test_a_part_without_a_readable_journal_is_kept_aside(
    target: Path, file: File, part_path: Path, job_path: Path, journal: bytes | None
) -> None:
    part_path.write_bytes(b"mine")
    if journal is not None:
        job_path.write_bytes(journal)
    with open_part(target, file.manifest, JOB_ID) as part:
        assert part.completed == set()
    assert target.with_name("film.mkv.zpart.aside-1").read_bytes() == b"mine"
    if journal is not None:
        assert target.with_name("film.mkv.zjob.aside-1").read_bytes() == journal


def test_a_part_that_is_a_link_is_not_written_through(
    target: Path, file: File, part_path: Path, tmp_path: Path
) -> None:
    with open_part(target, file.manifest, JOB_ID):
        pass
    part_path.unlink()
    (tmp_path / "precious").write_bytes(b"precious")
    part_path.symlink_to(tmp_path / "precious")
    part = open_part(target, file.manifest, JOB_ID)
    write(part, file, *range(file.count))
    part.finish()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert target.read_bytes() == file.data


def test_a_name_that_aside_files_have_is_not_overwritten(target: Path, file: File, part_path: Path) -> None:
    part_path.write_bytes(b"mine")
    target.with_name("film.mkv.zjob.aside-1").write_bytes(b"other")
    open_part(target, file.manifest, JOB_ID).keep()
    assert target.with_name("film.mkv.zjob.aside-1").read_bytes() == b"other"
    assert target.with_name("film.mkv.zpart.aside-2").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"job_id": 5},
        {"job_id": ""},
        {"state": None},
        {"file_id": "0" * 64},
        {"size": 1},
        {"chunk_size": 131072},
        {"name": "other"},
        {"manifest": "!!!"},
        {"manifest": None},
        {"manifest": ""},
        {"completed": [[0, 6]]},
        {"completed": [[-1, 0]]},
        {"completed": [[2, 1]]},
        {"completed": [[0, 1], [1, 2]]},
        {"completed": [[0]]},
        {"completed": [["a", "b"]]},
        {"completed": 5},
    ],
)
def test_a_journal_that_cannot_be_is_none(part: PartFile, job_path: Path, change: dict[str, object]) -> None:
    job = json.loads(job_path.read_text())
    assert load_job(job_path) is not None
    job_path.write_text(json.dumps(job | change))
    assert load_job(job_path) is None
    for key in change:
        del job[key]
    job_path.write_text(json.dumps(job))
    assert load_job(job_path) is None


@pytest.mark.parametrize("seed", range(50))
def test_a_journal_with_a_flipped_bit_never_raises_and_never_lies_about_the_file(
    part: PartFile, file: File, job_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(job_path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    job_path.write_bytes(data)
    job = load_job(job_path)
    assert job is None or job.manifest == file.manifest


def test_a_journal_is_none_where_there_is_no_file(tmp_path: Path) -> None:
    assert load_job(tmp_path / "nothing") is None
    assert load_job(tmp_path) is None


@pytest.mark.parametrize("seed", range(10))
def test_completed_chunks_are_written_as_ranges_and_read_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    file = File(40 * SIZE)
    chosen = {index for index in range(40) if rng.random() < rng.random()}
    with open_part(tmp_path / "f", file.manifest, JOB_ID) as part:
        for index in chosen:
            part.mark(index)
        part.state = "paused"
        part.save()
    job = job_at(tmp_path / "f.zjob")
    assert job.completed == chosen
    assert (job.state, job.job_id, job.manifest) == ("paused", JOB_ID, file.manifest)
    raw = json.loads((tmp_path / "f.zjob").read_text())["completed"]
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(raw))  # as few as possible


# -- one writer ---------------------------------------------------------------------------


def test_a_second_download_to_a_target_is_told_the_first_ones_job(
    part: PartFile, target: Path, file: File
) -> None:
    before = names(target.parent)
    for manifest in (file.manifest, File(SIZE, 9).manifest):
        with pytest.raises(AlreadyRunning, match=JOB_ID) as caught:
            open_part(target, manifest, OTHER_JOB)
        assert caught.value.details["job_id"] == JOB_ID
    assert names(target.parent) == before


def test_other_targets_are_free(part: PartFile, target: Path, file: File) -> None:
    open_part(target.with_name("b"), file.manifest, OTHER_JOB).keep()


@pytest.mark.parametrize("end", [PartFile.keep, PartFile.abandon, PartFile.finish])
def test_the_lock_ends_with_the_download_and_leaves_no_file(
    target: Path, file: File, end: Callable[[PartFile], object]
) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    end(part)
    assert "film.mkv.zlock" not in names(target.parent)
    open_part(target, file.manifest, JOB_ID).abandon()
    assert "film.mkv.zlock" not in names(target.parent)


def test_the_lock_goes_with_a_killed_process(target: Path, file: File) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            part = open_part(target, file.manifest, JOB_ID)
            write(part, file, 4)
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 1) == b"x"
    with pytest.raises(AlreadyRunning, match=JOB_ID):
        open_part(target, file.manifest, OTHER_JOB)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert "film.mkv.zlock" in names(target.parent)
    part = open_part(target, file.manifest, OTHER_JOB)
    assert part.scan() == {4}
    write(part, file, *range(file.count))
    part.finish()
    assert names(target.parent) == ["film.mkv"]


def test_a_failed_opening_leaves_no_lock(target: Path, file: File) -> None:
    with replaced(disk, "preallocate", oserror(errno.EIO)), pytest.raises(OSError, match="error"):
        open_part(target, file.manifest, JOB_ID)
    assert "film.mkv.zlock" not in names(target.parent)
    open_part(target, file.manifest, JOB_ID).keep()


# -- jobs that nobody works on -----------------------------------------------------------


def test_who_only_looks_does_not_keep_a_download_from_starting(target: Path, file: File) -> None:
    """The look holds the lock for a moment: a start in that moment waits for it."""
    open_part(target, file.manifest, JOB_ID).keep()
    looking = part_file._lock(target)
    timer = threading.Timer(0.05, looking.release)
    timer.start()
    with open_part(target, file.manifest, OTHER_JOB) as part:
        assert part.job_id == JOB_ID
    timer.join()


def test_a_job_is_discarded_for_good(target: Path, file: File) -> None:
    open_part(target, file.manifest, JOB_ID).keep()
    part_file.discard_job(target, JOB_ID)
    assert names(target.parent) == []


def test_another_job_is_not_discarded_and_neither_is_one_that_runs(target: Path, file: File) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    with pytest.raises(AlreadyRunning):
        part_file.discard_job(target, JOB_ID)
    part.keep()
    part_file.discard_job(target, OTHER_JOB)
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zpart"]


def test_a_part_without_a_journal_is_nobodys_and_stays(target: Path, part_path: Path) -> None:
    part_path.write_bytes(b"x")
    part_file.discard_job(target, JOB_ID)
    assert names(target.parent) == ["film.mkv.zpart"]


def test_with_its_folder_gone_a_job_is_discarded_and_abandoned(tmp_path: Path, file: File) -> None:
    target = tmp_path / "sub" / "film.mkv"
    target.parent.mkdir()
    part = open_part(target, file.manifest, JOB_ID)
    shutil.rmtree(target.parent)
    part.abandon()
    part_file.discard_job(target, JOB_ID)


@pytest.mark.parametrize("job_id", ["../../etc/x", "a/b", "a b", "x" * 65, "ü"])
def test_a_journal_whose_job_id_could_be_a_path_is_not_trusted(
    job_id: str, target: Path, file: File, job_path: Path
) -> None:
    open_part(target, file.manifest, JOB_ID).keep()
    job_path.write_text(job_path.read_text().replace(JOB_ID, job_id))
    assert load_job(job_path) is None


# -- refusals ------------------------------------------------------------------------------


def test_a_folder_is_no_target(tmp_path: Path, file: File) -> None:
    with pytest.raises(TargetExists, match="folder"):
        open_part(tmp_path, file.manifest, JOB_ID)
    with pytest.raises(NotFound, match="make it first"):
        open_part(tmp_path / "no" / "x", file.manifest, JOB_ID)


@pytest.mark.parametrize("replaced_mode", [0o600, 0o640, 0o755, 0o444, 0o000])
def test_the_mode_of_what_is_replaced_is_kept(
    target: Path, file: File, part_path: Path, replaced_mode: int
) -> None:
    """And nobody can read the part who could not read that."""
    target.write_bytes(b"older")
    target.chmod(replaced_mode)
    with open_part(target, file.manifest, JOB_ID, replaces=True) as part:
        assert part_path.stat().st_mode & 0o777 == replaced_mode | 0o600
        write(part, file, 0)
        part.save()
    with open_part(target, file.manifest, JOB_ID, replaces=True) as part:
        write(part, file, *range(file.count))
        part.finish()
    assert target.stat().st_mode & 0o777 == replaced_mode
    assert target.stat().st_size == len(file.data)


def test_a_mode_that_was_changed_meanwhile_counts(target: Path, file: File, part_path: Path) -> None:
    target.write_bytes(b"older")
    part = open_part(target, file.manifest, JOB_ID, replaces=True)
    write(part, file, *range(file.count))
    target.chmod(0o604)
    part.finish()
    assert target.stat().st_mode & 0o777 == 0o604


def test_a_new_file_has_the_mode_of_any_new_file(target: Path, file: File, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, *range(file.count))
        part.finish()
    assert target.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_disk_without_modes_takes_the_file(
    target: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.write_bytes(b"older")
    monkeypatch.setattr(os, "fchmod", oserror(errno.EPERM))
    part = open_part(target, file.manifest, JOB_ID, replaces=True)
    write(part, file, *range(file.count))
    part.finish()
    assert target.read_bytes() == file.data


def test_a_name_that_is_too_long_is_said(tmp_path: Path, file: File) -> None:
    with pytest.raises(InvalidUsage, match="too long"):
        open_part(tmp_path / ("x" * 256), file.manifest, JOB_ID)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["x" * 241, "x" * 246, "x" * 250, "x" * 255, "é" * 127 + "x", "x" + "é" * 127]
)
def test_a_name_as_long_as_a_name_may_be(tmp_path: Path, file: File, name: str) -> None:
    """What lies beside it has a shorter one, the same in each run."""
    target, other = tmp_path / name, File(SIZE, 7)
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 0, 1)
        part.save()
        assert any(found.endswith(".zlock") for found in names(tmp_path))
    kept = part_file.kept_job(target, file.manifest.file_id)
    assert kept is not None
    assert kept.completed == {0, 1}
    with open_part(target, file.manifest, OTHER_JOB) as part:
        assert (part.job_id, part.scan()) == (JOB_ID, {0, 1})
    with open_part(target, other.manifest, OTHER_JOB) as part:
        write(part, other, 0)
        part.finish()
    assert target.read_bytes() == other.data
    assert len([found for found in names(tmp_path) if "aside-1" in found]) == 2
    assert all(len(os.fsencode(found)) <= 255 for found in names(tmp_path))


def test_long_names_that_begin_alike_do_not_meet(tmp_path: Path, file: File) -> None:
    targets = [tmp_path / ("x" * 254 + end) for end in "abc"]
    parts = [open_part(target, file.manifest, JOB_ID) for target in targets]
    assert len(names(tmp_path)) == 9
    for part in parts:
        part.abandon()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, NotAllowed), (errno.EROFS, NotAllowed)])
def test_no_permission_is_said(target: Path, file: File, number: int, kind: type[ZchunkError]) -> None:
    with replaced(os, "open", oserror(number)), pytest.raises(kind, match="permitted"):
        open_part(target, file.manifest, JOB_ID)


def test_a_disk_too_small_is_said_at_the_start_and_the_job_kept(
    target: Path, file: File, part_path: Path, job_path: Path
) -> None:
    def full(fd: int, _offset: int, size: int) -> None:
        os.ftruncate(fd, size // 2)
        oserror(errno.ENOSPC)()

    with replaced(syscalls, "fallocate", full), pytest.raises(NoSpace, match="free some space"):
        open_part(target, file.manifest, JOB_ID)
    assert part_path.stat().st_size == 0
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zpart"]
    with open_part(target, file.manifest, OTHER_JOB) as again:
        assert again.job_id == JOB_ID


def test_a_disk_that_fills_up_in_between_keeps_the_job(target: Path, file: File, job_path: Path) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    write(part, file, 0)
    part.save()
    calls: list[Callable[[], object]] = [lambda: write(part, file, 1), part.save]
    for call in calls:
        with replaced(os, "pwrite", oserror(errno.ENOSPC)), pytest.raises(NoSpace):
            call()
    assert job_at(job_path).completed == {0}
    assert "film.mkv.zjob.tmp" not in names(target.parent)
    write(part, file, 1)  # space again: it goes on
    part.save()
    assert job_at(job_path).completed == {0, 1}
    with replaced(syscalls, "rename_new", oserror(errno.ENOSPC)), pytest.raises(NoSpace):
        part.finish()
    with open_part(target, file.manifest, OTHER_JOB) as again:
        assert (again.job_id, again.scan()) == (JOB_ID, {0, 1})


def test_the_journal_is_written_after_the_data_it_vouches_for(
    part: PartFile, file: File, monkeypatch: pytest.MonkeyPatch, part_path: Path
) -> None:
    write(part, file, 0)
    calls = []
    real = disk.sync_file

    def spy(fd: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        if len(calls) == 1:
            part.mark(3)  # marked while the data is being synced: not covered by this sync
        real(fd)

    monkeypatch.setattr(disk, "sync_file", spy)
    part.save()
    assert calls == ["film.mkv.zpart", "film.mkv.zjob.tmp"]
    assert job_at(part_path.with_name("film.mkv.zjob")).completed == {0}
    part.save()
    assert job_at(part_path.with_name("film.mkv.zjob")).completed == {0, 3}


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, StorageFailure), (errno.ENOSPC, NoSpace)])
@pytest.mark.parametrize("call", [PartFile.save, PartFile.scan, PartFile.finish])
def test_a_failed_sync_is_not_retried_and_nothing_is_vouched_for(
    target: Path,
    file: File,
    job_path: Path,
    number: int,
    kind: type[ZchunkError],
    call: Callable[[PartFile], object],
) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    write(part, file, 0)
    part.save()
    write(part, file, 1)
    with replaced(disk, "sync_file", oserror(number)), pytest.raises(kind):
        call(part)
    assert part.flag
    refused: list[Callable[[], object]] = [part.save, lambda: write(part, file, 2), part.scan, part.finish]
    if call is PartFile.finish:
        refused = []  # it has ended
    for again in refused:
        with pytest.raises(StorageFailure, match="nothing more"):
            again()
    part.keep()
    assert not target.exists()
    assert job_at(job_path).completed == {0}
    with open_part(target, file.manifest, OTHER_JOB) as fresh:
        assert fresh.scan() == {0, 1}


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_a_part_removed_meanwhile_is_said(target: Path, file: File, part_path: Path, how: str) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    part_path.unlink()
    if how == "replaced":
        part_path.write_bytes(b"mine")
    with pytest.raises(NotFound):
        part.finish()
    assert not target.exists()
    assert how == "gone" or part_path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("replaces", "message"), [(True, "is a folder and no file"), (False, "was made by somebody else")]
)
def test_a_target_that_became_a_folder_keeps_the_job(
    target: Path, file: File, part_path: Path, replaces: bool, message: str
) -> None:
    part = open_part(target, file.manifest, JOB_ID, replaces=replaces)
    write(part, file, *range(file.count))
    target.mkdir()
    with pytest.raises(TargetExists, match=message):
        part.finish()
    target.rmdir()
    with open_part(target, file.manifest, JOB_ID, replaces=replaces) as again:
        assert again.scan() == set(range(file.count))


def test_a_file_that_was_made_meanwhile_stays_as_it_is(target: Path, file: File, job_path: Path) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    write(part, file, *range(file.count))
    part.save()
    target.write_bytes(b"made meanwhile")
    target.chmod(0o400)
    with pytest.raises(TargetExists, match="move it away"):
        part.finish()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"made meanwhile", 0o400)
    assert job_at(job_path).completed == set(range(file.count))
    target.rename(target.with_name("away"))
    with open_part(target, file.manifest, OTHER_JOB) as again:
        assert again.scan() == set(range(file.count))
        again.finish()
    assert target.read_bytes() == file.data


def test_what_cannot_be_deleted_stays_a_job(target: Path, file: File, job_path: Path) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    with replaced(os, "unlink", oserror(errno.EROFS)), pytest.raises(NotAllowed):
        part.abandon()
    assert job_at(job_path).job_id == JOB_ID
    open_part(target, file.manifest, OTHER_JOB).abandon()
    assert names(target.parent) == []


# -- kills ------------------------------------------------------------------------------------

PATCHED = (
    "open",
    "pwrite",
    "fdatasync",
    "fsync",
    "replace",
    "link",
    "unlink",
    "ftruncate",
    "close",
)


def run_killed(step: int, action: Callable[[], None]) -> bool:
    """Runs `action` in a process that dies before its `step`-th disk call; whether it got through."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(step)
            action()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137)
    return code == 0


def die_at(step: int) -> None:
    left = [step]

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return real(*args, **kwargs)

        return call

    for name in PATCHED:
        setattr(os, name, dying(getattr(os, name)))
    for name in ("rename_new", "fallocate"):
        setattr(syscalls, name, dying(getattr(syscalls, name)))


@pytest.mark.parametrize("renames", [True, False])
def test_killed_at_any_disk_call_the_next_run_keeps_what_was_verified(
    tmp_path: Path, file: File, monkeypatch: pytest.MonkeyPatch, renames: bool
) -> None:
    """SPEC D7, PITFALLS T1: and at the end there is the file, and nothing else. Also where the
    disk gives a name only by a second one."""
    if not renames:
        monkeypatch.setattr(syscalls, "rename_new", oserror(errno.EINVAL))
    steps = 0
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        folder.mkdir()
        target = folder / "film.mkv"

        def action(target: Any = target) -> None:
            part = open_part(target, file.manifest, JOB_ID)
            write(part, file, 0, 1)
            part.save()
            write(part, file, *range(2, file.count))
            part.save()
            part.finish()

        done = run_killed(step, action)
        promised = load_job(folder / "film.mkv.zjob")
        if not target_has_content(target, file.manifest):
            assert not target.exists()
            part = open_part(target, file.manifest, OTHER_JOB)
            found = part.scan()
            assert promised is None or promised.completed <= found
            assert promised is None or part.job_id == JOB_ID
            write(part, file, *set(range(file.count)) - found)
            part.finish()
        remove_leftovers(target)
        assert target.read_bytes() == file.data
        assert names(folder) == ["film.mkv"]
        steps = step
        if done:
            break
    assert steps > 30


def test_killed_at_any_disk_call_of_abandon(tmp_path: Path, file: File) -> None:
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        folder.mkdir()
        target = folder / "film.mkv"

        def action(target: Any = target) -> None:
            part = open_part(target, file.manifest, JOB_ID)
            write(part, file, 0)
            part.abandon()

        done = run_killed(step, action)
        open_part(target, file.manifest, OTHER_JOB).abandon()
        assert names(folder) == []
        if done:
            break
    assert step > 10


def test_killed_while_moving_aside_nothing_is_lost(tmp_path: Path, file: File) -> None:
    other = File(2 * SIZE, seed=3)
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        folder.mkdir()
        target = folder / "film.mkv"
        with open_part(target, other.manifest, OTHER_JOB) as part:
            write(part, other, 0, 1)
        done = run_killed(step, lambda target=target: open_part(target, file.manifest, JOB_ID).keep())  # type: ignore[misc]
        part = open_part(target, file.manifest, JOB_ID)
        write(part, file, *range(file.count))
        part.finish()
        kept = [p for p in folder.iterdir() if ".zpart.aside-" in p.name]
        assert [p.read_bytes() for p in kept] == [other.data]
        if done:
            break
    assert step > 10


def test_remove_leftovers_touches_no_download(
    target: Path, file: File, part_path: Path, job_path: Path
) -> None:
    remove_leftovers(target)
    assert names(target.parent) == []
    part = open_part(target, file.manifest, JOB_ID)
    before = names(target.parent)
    remove_leftovers(target)
    assert names(target.parent) == before
    part.keep()
    remove_leftovers(target)
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zpart"]
    os.replace(part_path, target)
    remove_leftovers(target)
    assert names(target.parent) == ["film.mkv"]


def test_remove_leftovers_leaves_a_part_that_only_has_the_targets_content(
    target: Path, file: File, part_path: Path
) -> None:
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, *range(file.count))
    shutil.copy(part_path, target)
    remove_leftovers(target)
    assert names(target.parent) == ["film.mkv", "film.mkv.zjob", "film.mkv.zpart"]
    target.unlink()
    os.link(part_path, target)
    remove_leftovers(target)
    assert names(target.parent) == ["film.mkv"]


def test_remove_leftovers_respects_a_running_process(target: Path, file: File, part_path: Path) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    part_path.unlink()  # as between the final rename and the journal's removal
    remove_leftovers(target)
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zlock"]
    part.keep()


def test_remove_leftovers_sees_a_download_that_began_meanwhile(
    target: Path, file: File, part_path: Path, job_path: Path
) -> None:
    open_part(target, file.manifest, JOB_ID).keep()
    part_path.unlink()
    real = part_file._lock

    def begun(path: Any) -> Any:
        part_path.touch()
        return real(path)

    with replaced(part_file, "_lock", begun):
        remove_leftovers(target)
    assert job_path.exists()


# -- the target ---------------------------------------------------------------------------------


def test_target_has_content_compares_size_then_hash(target: Path, file: File) -> None:
    assert not target_has_content(target, file.manifest)
    target.write_bytes(file.data)
    assert target_has_content(target, file.manifest)
    before = hashing.counts["sha256"]
    target.write_bytes(file.data + b"x")
    assert not target_has_content(target, file.manifest)
    assert hashing.counts["sha256"] == before


def test_target_has_content_tells_how_far_it_is_and_can_be_broken_off(target: Path) -> None:
    large = File(40 * SIZE)
    target.write_bytes(large.data)
    seen: list[int] = []
    assert target_has_content(target, large.manifest, seen.append)
    assert seen[-1] == len(large.data)
    assert len(seen) >= 2

    def stop(done: Any) -> None:
        raise KeyboardInterrupt

    before = hashing.counts["sha256"]
    with pytest.raises(KeyboardInterrupt):
        target_has_content(target, large.manifest, stop)
    assert hashing.counts["sha256"] < before + len(large.data)


@pytest.mark.parametrize("seed", range(5))
def test_target_has_content_finds_a_flipped_bit(target: Path, file: File, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(file.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    target.write_bytes(data)
    assert not target_has_content(target, file.manifest)


def test_target_has_content_of_an_empty_file(target: Path) -> None:
    empty = File(0).manifest
    assert not target_has_content(target, empty)
    target.touch()
    assert target_has_content(target, empty)


def test_what_is_no_file_has_no_content(tmp_path: Path, target: Path, file: File) -> None:
    assert not target_has_content(tmp_path, file.manifest)
    os.mkfifo(target)
    assert not target_has_content(target, file.manifest)
    assert not target_has_content(target / "below", file.manifest)


def test_a_sealed_file_cannot_be_recognised(target: Path, file: File) -> None:
    target.write_bytes(file.data)
    sealed = Manifest("x", len(file.data), None, SIZE, file.manifest.chunks, b"secret")
    assert not target_has_content(target, sealed)


def test_a_target_that_may_not_be_read_is_said(target: Path, file: File) -> None:
    target.write_bytes(file.data)
    with replaced(os, "open", oserror(errno.EACCES)), pytest.raises(NotAllowed):
        target_has_content(target, file.manifest)


# -- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("film.mkv", "film.mkv"),
        ("a/b/film.mkv", "film.mkv"),
        ("a\\b\\film.mkv", "film.mkv"),
        ("C:\\x\\..\\film.mkv", "film.mkv"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("folder/", "folder"),
        ("..", "download"),
        (".", "download"),
        ("...", "download"),
        ("/", "download"),
        ("a/..", "download"),
        ("a/.. ", "download"),
        ("", "download"),
        ("  ", "download"),
        ("\0\n\r\t\x1b\x7f\x85", "download"),
        ("a\0b\nc\x1b[31m", "abc[31m"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("bad\ud800name", "badname"),
        ("x.", "x"),
        ("x. . ", "x"),
        (" x", "x"),
        (".bashrc", ".bashrc"),
        ("CON", "_CON"),
        ("con.txt", "_con.txt"),
        ("nul.tar.gz", "_nul.tar.gz"),
        ("Com1 .x", "_Com1 .x"),
        ("LPT³", "_LPT³"),
        ("aux.", "_aux"),
        ("console", "console"),
        ("com10", "com10"),
        ("film.mkv.zjob", "film.mkv.zjob_"),
        ("film.mkv.ZPART", "film.mkv.ZPART_"),
        (".zlock", ".zlock_"),
        ("naïve – 日本語 🎬.mkv", "naïve – 日本語 🎬.mkv"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_target_name(name) == safe


@pytest.mark.parametrize("seed", range(300))
def test_any_name_becomes_one_that_can_be_a_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    alphabet = "ab./\\ \0\n:äß日🎬\u202e\ud800CON1" + "".join(chr(rng.randrange(0x11000)) for _ in range(9))
    name = "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 3, 20, 300, 5000])))
    safe = safe_target_name(name)
    assert safe
    assert len(safe.encode()) <= 200
    assert not set(safe) & set("/\\\0\n\u202e\ud800")
    assert safe.strip(".") != ""
    assert safe_target_name(safe) == safe
    (tmp_path / safe).write_bytes(b"x")
    assert names(tmp_path) == [safe]


def test_a_long_name_keeps_its_suffix() -> None:
    safe = safe_target_name("ä" * 300 + ".tar.gz")
    assert safe.endswith("ä.gz") or safe.endswith("ä.tar.gz")
    assert len(safe.encode()) <= 200
    assert len(safe_target_name("x" * 150 + "." + "y" * 150).encode()) <= 200
    assert len(safe_target_name("x" * 300 + ".zjob").encode()) <= 200
