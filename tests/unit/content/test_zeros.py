"""zchunk/content/zeros.py: what of a file is nothing but zeros."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from zchunk.content import zeros
from zchunk.content.manifest import MAX_CHUNK_SIZE, ChunkRow, Manifest
from zchunk.content.zeros import BLOCK, data_runs, digests, zero_chunks, zero_runs

CHUNK = 64 * 1024
USUAL = 10 * 1024 * 1024


@pytest.mark.parametrize("length", [1, 4096, CHUNK, CHUNK + 1, 1024**2, 3 * 1024**2 + 5, USUAL])
def test_the_digests_are_those_of_zeros(length: int) -> None:
    data = bytes(length)
    assert digests(length) == (hashlib.sha256(data).digest(), blake3(data).digest())


def test_the_largest_chunk_of_zeros_is_there_to_read() -> None:
    assert bytes(zeros.view(MAX_CHUNK_SIZE)) == bytes(MAX_CHUNK_SIZE)
    assert zeros.view(5).readonly


def row(data: bytes, *, sealed: bool = False) -> ChunkRow:
    digest = blake3(data).digest()
    if sealed:
        secret = bytes(value ^ 1 for value in data[:100])
        other = hashlib.sha256(secret).digest()
        return ChunkRow(len(data) + 16, "aes256gcm", other, other, digest)
    return ChunkRow(len(data), "identity", hashlib.sha256(data).digest(), digest, None)


def manifest(pieces: list[bytes], chunk_size: int = CHUNK, **options: bool) -> Manifest:
    content = b"".join(pieces)
    rows = tuple(row(piece, **options) for piece in pieces)
    return Manifest("f", len(content), hashlib.sha256(content).digest(), chunk_size, rows)


DATA = [random.Random(seed).randbytes(CHUNK) for seed in range(3)]
NONE = bytes(CHUNK)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([], set()),
        ([DATA[0], DATA[1]], set()),
        ([NONE, DATA[0], NONE], {0, 2}),
        ([NONE, NONE, bytes(100)], {0, 1, 2}),
        ([NONE, NONE, b"x" * 100], {0, 1}),
        ([DATA[0], DATA[0], DATA[1]], set()),
        ([DATA[0], DATA[0], NONE], {2}),
        ([NONE, DATA[0]], set()),  # one alone is not worth a digest
        ([bytes(100)], set()),
    ],
)
def test_chunks_of_zeros_are_found(pieces: list[bytes], found: set[int], sealed: bool) -> None:
    assert zero_chunks(manifest(pieces, sealed=sealed)) == found


def test_what_only_key_holders_know_is_not_known() -> None:
    made = manifest([NONE, NONE], sealed=True)
    closed = replace(made, chunks=tuple(replace(row, plain_blake3=None) for row in made.chunks))
    assert zero_chunks(closed) == frozenset()


def test_a_single_one_of_the_usual_size_is_found_too() -> None:
    assert zero_chunks(manifest([bytes(USUAL), bytes(1000)], USUAL)) == {0, 1}


def test_no_digest_is_made_for_a_file_of_the_usual_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = manifest([random.Random(5).randbytes(USUAL), random.Random(6).randbytes(USUAL), b"x"], USUAL)
    monkeypatch.setattr(zeros, "blake3", lambda *_: 1 / 0)
    assert zero_chunks(made) == frozenset()


@given(st.lists(st.booleans(), max_size=12), st.integers(1, CHUNK))
def test_runs_cover_each_chunk_but_those_without(kept: list[bool], last: int) -> None:
    rows = tuple(row(b"x") for _ in kept)
    made = Manifest("f", max(0, len(kept) - 1) * CHUNK + (last if kept else 0), bytes(32), CHUNK, rows)
    runs = list(data_runs(made, {index for index, keep in enumerate(kept) if not keep}))
    touched = {at for offset, length in runs for at in range(offset, offset + length, CHUNK)}
    assert touched == {index * CHUNK for index, keep in enumerate(kept) if keep}
    assert sum(length for _, length in runs) == sum(made.length(i) for i, keep in enumerate(kept) if keep)
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(runs))


@given(
    st.lists(st.sampled_from([bytes(BLOCK), b"\0" * (BLOCK - 1) + b"x", b"x" + bytes(BLOCK - 1)]), max_size=8)
)
def test_runs_of_zeros_are_the_blocks_of_zeros(blocks: list[bytes]) -> None:
    chunk = b"".join(blocks) + bytes(100)
    runs = zero_runs(memoryview(chunk))
    assert all(offset % BLOCK == length % BLOCK == 0 for offset, length in runs)
    covered = {at // BLOCK for offset, length in runs for at in range(offset, offset + length, BLOCK)}
    assert covered == {index for index, block in enumerate(blocks) if not any(block)}
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(runs))
