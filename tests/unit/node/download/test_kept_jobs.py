"""Part files of jobs that nobody works on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from tests.unit.node.download.files import JOB_ID, OTHER_JOB, File, names
from zchunk.errors import (
    AlreadyRunning,
)
from zchunk.node.download import leftovers
from zchunk.node.download.job_info import load_job
from zchunk.node.download.part_file import open_part


def test_who_only_looks_does_not_keep_a_download_from_starting(target: Path, file: File) -> None:
    """The look holds the lock for a moment: a start in that moment waits for it."""
    open_part(target, file.manifest, JOB_ID).keep()
    looking = leftovers.lock_target(target)
    timer = threading.Timer(0.05, looking.release)
    timer.start()
    with open_part(target, file.manifest, OTHER_JOB) as part:
        assert part.job_id == JOB_ID
    timer.join()


def test_a_job_is_discarded_for_good(target: Path, file: File) -> None:
    open_part(target, file.manifest, JOB_ID).keep()
    leftovers.discard_job(target, JOB_ID)
    assert names(target.parent) == []


def test_another_job_is_not_discarded_and_neither_is_one_that_runs(target: Path, file: File) -> None:
    part = open_part(target, file.manifest, JOB_ID)
    with pytest.raises(AlreadyRunning):
        leftovers.discard_job(target, JOB_ID)
    part.keep()
    leftovers.discard_job(target, OTHER_JOB)
    assert names(target.parent) == ["film.mkv.zjob", "film.mkv.zpart"]


def test_a_part_without_a_journal_is_nobodys_and_stays(target: Path, part_path: Path) -> None:
    part_path.write_bytes(b"x")
    leftovers.discard_job(target, JOB_ID)
    assert names(target.parent) == ["film.mkv.zpart"]


def test_with_its_folder_gone_a_job_is_discarded_and_abandoned(tmp_path: Path, file: File) -> None:
    target = tmp_path / "sub" / "film.mkv"
    target.parent.mkdir()
    part = open_part(target, file.manifest, JOB_ID)
    shutil.rmtree(target.parent)
    part.abandon()
    leftovers.discard_job(target, JOB_ID)


@pytest.mark.parametrize("job_id", ["../../etc/x", "a/b", "a b", "x" * 65, "ü"])
def test_a_journal_whose_job_id_could_be_a_path_is_not_trusted(
    job_id: str, target: Path, file: File, job_path: Path
) -> None:
    open_part(target, file.manifest, JOB_ID).keep()
    job_path.write_text(job_path.read_text().replace(JOB_ID, job_id))
    assert load_job(job_path) is None
