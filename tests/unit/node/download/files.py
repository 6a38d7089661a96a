"""What tests of part files share: a file of random chunks, and a run that ends at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.node.download.job_info import JobInfo, load_job
from zchunk.node.download.part_file import PartFile

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


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def job_at(path: Path) -> JobInfo:
    job = load_job(path)
    assert job is not None
    return job
