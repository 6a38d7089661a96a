"""What the tracker needs of a manifest: its header and the digests of its chunks. Pure.

`read` refuses what `manifest.parse` refuses, and of 100,000 chunks it is ten times as fast
and takes a fifth of the memory: all rows of a canonical manifest but the last are the same
bytes around their two digests, so they are compared column by column, and no object is made
of a row. What is not laid out so is left to `parse`, which says what is wrong with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from zchunk.content.manifest import (
    DIGEST_BYTES,
    IDENTITY,
    MANIFEST_VERSION,
    MAX_BYTES,
    MAX_CHUNKS,
    MAX_NAME_BYTES,
    OVERHEAD,
    Manifest,
    chunk_length,
    header_problem,
    name_problem,
    parse,
)

#: The header with its name, and some numbers, is within so many first bytes.
_HEAD_BYTES = MAX_NAME_BYTES + 256
_NO_DIGEST = bytes(DIGEST_BYTES)
#: Of a row, counted from its end: where its SHA-256 begins, where it ends, where its BLAKE3 begins.
_SHA256_AT, _SHA256_END, _BLAKE3_AT = 67, 35, 33


@dataclass(frozen=True)
class Outline:
    """`hashes` are the SHA-256 of the chunks in order, `canonical` the bytes that were read."""

    file_id: str
    name: str
    size: int
    sha256: bytes | None
    chunk_size: int
    hashes: list[bytes]
    canonical: bytes | memoryview


class _Head(NamedTuple):
    name: str
    size: int
    sha256: bytes | None
    chunk_size: int
    chunks: int
    #: where the rows begin
    end: int


def read(data: bytes | memoryview, file_id: str) -> Outline:
    """Raises ManifestInvalid as `manifest.parse` does. `data` is kept, not copied."""
    view = memoryview(data)
    if len(view) <= MAX_BYTES and hashlib.sha256(view).hexdigest() == file_id:
        head = _head(bytes(view[:_HEAD_BYTES]))
        hashes = None if head is None else _hashes(view, head)
        if head is not None and hashes is not None:
            return Outline(file_id, head.name, head.size, head.sha256, head.chunk_size, hashes, data)
    manifest = parse(data, file_id)
    return Outline(
        file_id,
        manifest.name,
        manifest.size,
        manifest.sha256,
        manifest.chunk_size,
        manifest.hashes,
        manifest.canonical,
    )


def _head(data: bytes) -> _Head | None:
    """None where the bytes do not begin as those of a manifest do."""
    unpacker = msgpack.Unpacker(
        raw=False,
        use_list=False,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        max_bin_len=DIGEST_BYTES,
        max_str_len=MAX_NAME_BYTES,
    )
    unpacker.feed(data)
    try:
        parts = unpacker.read_array_header()
        version, name, size, sha256, chunk_size = (unpacker.unpack() for _ in range(5))
        count = unpacker.read_array_header()
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None
    packer = msgpack.Packer(use_bin_type=True)
    fields = (version, name, size, sha256, chunk_size)
    again = [packer.pack_array_header(parts), *map(packer.pack, fields)]
    again.append(packer.pack_array_header(count))
    head = _Head(name, size, sha256, chunk_size, count, unpacker.tell())
    is_canonical = b"".join(again) == data[: head.end]
    known = parts == 7 and type(version) is int and version == MANIFEST_VERSION
    return head if known and is_canonical and _is_possible(head) else None


def _is_possible(head: _Head) -> bool:
    if head.chunks > MAX_CHUNKS or name_problem(head.name) is not None:
        return False
    sealed = b"" if head.sha256 is None else None
    alone = Manifest(head.name, head.size, head.sha256, head.chunk_size, (), sealed)
    return header_problem(alone, head.chunks) is None


def _hashes(view: memoryview, head: _Head) -> list[bytes] | None:
    """None where a row is not what it must be, or what follows the rows."""
    sealed = head.sha256 is None
    encoding = next(name for name in OVERHEAD if (name == IDENTITY) != sealed)
    hashes: list[bytes] = []
    at = head.end
    for row, rows in _layout(head, encoding):
        block = view[at : at + rows * len(row)]
        if not _alike(block, row, rows):
            return None
        hashes += _digests(block, len(row))
        at += len(block)
    return hashes if _ends(view[at:], sealed) else None


def _layout(head: _Head, encoding: str) -> Iterator[tuple[bytes, int]]:
    """A row without its digests, and how many there are of it one after the other."""
    if head.chunks > 1:
        yield _row(head.chunk_size + OVERHEAD[encoding], encoding), head.chunks - 1
    if head.chunks:
        last = chunk_length(head.size, head.chunk_size, head.chunks - 1)
        yield _row(last + OVERHEAD[encoding], encoding), 1


def _row(stored_size: int, encoding: str) -> bytes:
    fields = (stored_size, encoding, _NO_DIGEST, _NO_DIGEST, None)
    return bytes(msgpack.packb(fields, use_bin_type=True))


def _alike(block: memoryview, row: bytes, rows: int) -> bool:
    """Whether `block` is so many times `row`, but for the digests."""
    width = len(row)
    if len(block) != width * rows:
        return False
    fixed = (*range(width - _SHA256_AT), *range(width - _SHA256_END, width - _BLAKE3_AT), width - 1)
    return all(bytes(block[at::width]) == row[at : at + 1] * rows for at in fixed)


def _digests(block: memoryview, width: int) -> list[bytes]:
    begin = width - _SHA256_AT
    return [bytes(block[at : at + DIGEST_BYTES]) for at in range(begin, len(block), width)]


def _ends(rest: memoryview, sealed: bool) -> bool:
    """Whether what follows the rows is the sealed part, in its shortest form, and nothing more."""
    try:
        last: Any = msgpack.unpackb(rest, raw=False, max_bin_len=MAX_BYTES, max_array_len=0, max_map_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return False
    shown = isinstance(last, bytes) if sealed else last is None
    return shown and bool(msgpack.packb(last, use_bin_type=True) == rest)
