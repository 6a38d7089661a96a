"""Chunks of zeros take no disk in a part file."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3

from tests.unit.node.download.files import JOB_ID, File, job_at, oserror, write
from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import (
    NoSpace,
    StorageFailure,
)
from zchunk.node.download.part_file import (
    open_part,
)
from zchunk.system import syscalls


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
