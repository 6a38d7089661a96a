"""A part file of an earlier run is gone on with, by one writer, and only where it is ours."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.download.files import (
    JOB_ID,
    OTHER_JOB,
    SIZE,
    File,
    job_at,
    names,
    oserror,
    replaced,
    write,
)
from zchunk.clock import ManualClock
from zchunk.content import hashing
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    AlreadyRunning,
    ChunkCorrupt,
    StorageFailure,
)
from zchunk.node.download.job_info import load_job
from zchunk.node.download.part_file import PartFile, open_part
from zchunk.system import disk, syscalls


def crash(part: PartFile) -> None:
    """What a kill does: descriptors and lock are gone, every file stays."""
    part._close_writer()
    part._lock.drop()


# -- going on ---------------------------------------------------------------------------------


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


@pytest.mark.row("D7")
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


@pytest.mark.row("D7")
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


# -- what counts as ours ----------------------------------------------------------------------


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


@pytest.mark.row("S4")
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


# -- one writer -------------------------------------------------------------------------------


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
