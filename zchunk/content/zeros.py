"""Chunks and blocks of zeros: known by their digest or by a look, so that they are neither
fetched nor written, and stay holes of a sparse file. Pure.

Of a manifest whose chunks have the usual size a chunk of zeros costs a comparison. For others
the digest is made, once, where two chunks of the file are alike: a single one is fetched as any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from typing import NamedTuple

from blake3 import blake3

from zchunk.content.manifest import MAX_CHUNK_SIZE, ChunkRow, Manifest

#: What of a chunk is looked at, and may become a hole. A multiple of any file system's block.
BLOCK = 64 * 1024
_PIECE = 1024 * 1024
_NO_BLOCK = bytes(BLOCK)


class Digests(NamedTuple):
    sha256: bytes
    blake3: bytes


#: Of zeros of the usual size of a chunk: this is not worth 10 ms of each command.
_KNOWN = {
    10 * 1024 * 1024: Digests(
        bytes.fromhex("e5b844cc57f57094ea4585e235f36c78c1cd222262bb89d53c94dcb4d6b3e55d"),
        bytes.fromhex("75e674ae3dd00cf6d8ac6273a2c784304cda304ac0c7af595a007dc9500bde6d"),
    )
}


@cache
def digests(length: int) -> Digests:
    """Of so many zeros."""
    if length in _KNOWN:
        return _KNOWN[length]
    canonical, prefilter, zeros = hashlib.sha256(), blake3(), view(_PIECE)
    for at in range(0, length, _PIECE):
        piece = zeros[: min(_PIECE, length - at)]
        canonical.update(piece)
        prefilter.update(piece)
    return Digests(canonical.digest(), prefilter.digest())


def view(length: int) -> memoryview:
    """So many zeros, to read."""
    return _zeros()[:length]


@cache
def _zeros() -> memoryview:
    # Memory that is read and never written is one page of the system's.
    return memoryview(bytes(MAX_CHUNK_SIZE))


def zero_chunks(manifest: Manifest) -> frozenset[int]:
    """The chunks that hold nothing but zeros, as far as that is known for next to nothing. Of an
    encrypted file only where its manifest was opened."""
    whole = manifest.size // manifest.chunk_size
    if not (manifest.chunk_size in _KNOWN or _repeats(manifest.chunks[:whole])):
        return frozenset()
    found = {i for i in range(whole) if _is_zero(manifest.chunks[i], manifest.chunk_size)}
    rest = manifest.size - whole * manifest.chunk_size
    if found and rest and _is_zero(manifest.chunks[whole], rest):
        found.add(whole)
    return frozenset(found)


def _repeats(rows: Collection[ChunkRow]) -> bool:
    return len({row.plain_digest for row in rows}) < len(rows)


def _is_zero(row: ChunkRow, length: int) -> bool:
    if row.plain_blake3 is None:
        return row.stored_size == length and row.sha256 == digests(length).sha256
    return row.plain_blake3 == digests(length).blake3


def data_runs(manifest: Manifest, without: Collection[int]) -> Iterator[tuple[int, int]]:
    """(offset, length) of what all chunks but `without` take, as few as possible."""
    begin = None
    for index in range(len(manifest.chunks)):
        if index not in without:
            begin = manifest.offset(index) if begin is None else begin
        elif begin is not None:
            yield begin, manifest.offset(index) - begin
            begin = None
    if begin is not None:
        yield begin, manifest.size - begin


def zero_runs(chunk: memoryview) -> list[tuple[int, int]]:
    """(offset, length) of the whole blocks of zeros, in order, as few as possible. Of data it
    looks at a byte of each block."""
    runs: list[tuple[int, int]] = []
    count = len(chunk) // BLOCK
    firsts = chunk[: count * BLOCK : BLOCK].tobytes()
    at = firsts.find(0)
    while at >= 0:
        offset = at * BLOCK
        if chunk[offset : offset + BLOCK].tobytes() == _NO_BLOCK:
            if runs and sum(runs[-1]) == offset:
                runs[-1] = runs[-1][0], runs[-1][1] + BLOCK
            else:
                runs.append((offset, BLOCK))
        at = firsts.find(0, at + 1)
    return runs
