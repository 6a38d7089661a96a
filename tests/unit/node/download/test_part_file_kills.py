"""A download that is killed at any call keeps what was verified, and says nothing else of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.download.files import JOB_ID, OTHER_JOB, SIZE, File, names, oserror, replaced, write
from zchunk.node.download import leftovers
from zchunk.node.download.job_info import load_job
from zchunk.node.download.leftovers import remove_leftovers
from zchunk.node.download.part_file import open_part
from zchunk.node.download.target_content import target_has_content
from zchunk.system import syscalls

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


@pytest.mark.row("D7")
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
    real = leftovers.lock_target

    def begun(path: Any) -> Any:
        part_path.touch()
        return real(path)

    with replaced(leftovers, "lock_target", begun):
        remove_leftovers(target)
    assert job_path.exists()
