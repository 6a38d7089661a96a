"""node/download/part_file.py from beginning to end: space, chunks, journal, what it refuses."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
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
from zchunk.errors import (
    InvalidUsage,
    NoSpace,
    NotAllowed,
    NotFound,
    StorageFailure,
    TargetExists,
    ZchunkError,
)
from zchunk.node.download import leftovers
from zchunk.node.download.part_file import (
    PartFile,
    open_part,
)
from zchunk.system import disk, syscalls

# -- from beginning to end --------------------------------------------------------------------


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


@pytest.mark.row("D5")
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


# -- refusals ---------------------------------------------------------------------------------


def test_a_folder_is_no_target(tmp_path: Path, file: File) -> None:
    with pytest.raises(TargetExists, match="folder"):
        open_part(tmp_path, file.manifest, JOB_ID)
    with pytest.raises(NotFound, match="create it first"):
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
    kept = leftovers.kept_job(target, file.manifest.file_id)
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


@pytest.mark.row("D10")
@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, NotAllowed), (errno.EROFS, NotAllowed)])
def test_no_permission_is_said(target: Path, file: File, number: int, kind: type[ZchunkError]) -> None:
    with replaced(os, "open", oserror(number)), pytest.raises(kind, match="permitted"):
        open_part(target, file.manifest, JOB_ID)


@pytest.mark.row("D10")
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


@pytest.mark.row("D10")
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
        with pytest.raises(StorageFailure, match="cannot be written any more"):
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


@pytest.mark.row("D10")
@pytest.mark.parametrize(
    ("replaces", "message"), [(True, "is a folder, not a file"), (False, "was created by another program")]
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
