"""The file that tests of this folder download, and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.node.download.files import JOB_ID, SIZE, File
from zchunk.clock import ManualClock
from zchunk.node.download.part_file import (
    PartFile,
    open_part,
)


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
