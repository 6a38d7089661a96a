"""A file's ordered chunks: the arithmetic, the canonical bytes, the file id. Pure.

The canonical bytes are a disk format and the thing a file id is the SHA-256 of, so
they may only ever be extended by raising `MANIFEST_VERSION`:

    msgpack([version, name, size, sha256, chunk_size, rows, sealed])
    row = [stored_size, encoding, sha256, blake3, plain_blake3]

in the shortest msgpack forms, digests as 32-byte `bin`. `plain_blake3` is nil where
the stored bytes are the plain bytes (`encoding` "identity": it equals `blake3`) and
where the plain digests are sealed. `sealed` is nil for an unencrypted file; for an
encrypted one (`encoding` "aes256gcm" throughout: the plain bytes' ciphertext and a tag of
16 bytes) it holds what only key holders may read, and `sha256` is nil. To all that is
here `sealed` is bytes: encryption.py makes and reads them.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgpack

from zchunk.errors import ManifestInvalid

MANIFEST_VERSION = 1
DIGEST_BYTES = 32
IDENTITY = "identity"
AES256GCM = "aes256gcm"
TAG_BYTES = 16
#: How stored bytes were made from plain ones, and how many more they are.
OVERHEAD = {IDENTITY: 0, AES256GCM: TAG_BYTES}

MIN_CHUNK_SIZE = 64 * 1024
MAX_CHUNK_SIZE = 64 * 1024 * 1024
#: Of one chunk as it is stored and sent.
MAX_STORED_SIZE = MAX_CHUNK_SIZE + TAG_BYTES
CHUNK_SIZE_STEP = 4096
MAX_NAME_BYTES = 4096
_ROW_BYTES = 84
#: Of what stands before the rows.
_HEAD_BYTES = 128
#: What file systems give to a file.
_BLOCK = 4096
#: So that a manifest (84 bytes a row) fits the largest frame of an answer, 64 MiB.
MAX_CHUNKS = 700_000
#: Of a file that is put today: so that its manifest fits the largest frame of a request, 16 MiB.
#: Earlier ones may have more, and are read.
MAX_NEW_CHUNKS = 150_000
#: Of an encrypted file that is put: a row has 85 bytes, and the sealed part 32 more.
MAX_NEW_SEALED_CHUNKS = 120_000
#: Of a manifest: what fits that frame.
MAX_BYTES = 64 * 1024 * 1024

#: Hex digits that a prefix of a file id has at least.
MIN_ID_PREFIX = 8

_ROW_FIELDS = 5
_FILE_ID = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk as it is stored and sent. Digests are 32 raw bytes."""

    stored_size: int
    encoding: str
    sha256: bytes
    blake3: bytes
    plain_blake3: bytes | None

    @property
    def plain_digest(self) -> bytes | None:
        """BLAKE3 of the plain bytes, or None where only a key holder knows it."""
        if self.plain_blake3 is None and self.encoding == IDENTITY:
            return self.blake3
        return self.plain_blake3


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks `size` bytes make: 0 for an empty file."""
    return -(-size // chunk_size)


def chunk_length(size: int, chunk_size: int, index: int) -> int:
    """Plain bytes in chunk `index`: `chunk_size`, less in the last one."""
    return min(chunk_size, size - index * chunk_size)


def block_ranges(length: int, block_size: int) -> list[tuple[int, int]]:
    """`[(offset, length), ...]` that cover a chunk of `length` bytes in order."""
    return [(at, min(block_size, length - at)) for at in range(0, length, block_size)]


@dataclass(frozen=True)
class Manifest:
    """What a file consists of; says nothing of time or peers, so equal files are equal."""

    name: str
    size: int
    sha256: bytes | None
    chunk_size: int
    chunks: tuple[ChunkRow, ...]
    sealed: bytes | None = None
    version: int = MANIFEST_VERSION

    @property
    def public(self) -> Manifest:
        """The manifest as everybody sees it: this one, unless its sealed part was opened."""
        return self

    def length(self, index: int) -> int:
        return chunk_length(self.size, self.chunk_size, index)

    def offset(self, index: int) -> int:
        return index * self.chunk_size

    @cached_property
    def canonical(self) -> bytes:
        rows = [(c.stored_size, c.encoding, c.sha256, c.blake3, c.plain_blake3) for c in self.chunks]
        parts = (self.version, self.name, self.size, self.sha256, self.chunk_size, rows, self.sealed)
        return bytes(msgpack.packb(parts, use_bin_type=True))

    @cached_property
    def file_id(self) -> str:
        """Hex SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.canonical).hexdigest()

    @cached_property
    def hashes(self) -> list[bytes]:
        """SHA-256 of each chunk as it is stored."""
        return [chunk.sha256 for chunk in self.chunks]

    @property
    def stored_bytes(self) -> int:
        return sum(chunk.stored_size for chunk in self.chunks)


def expected_bytes(chunks: int) -> int:
    """Of the manifest of a file of so many chunks that has a usual name and is not encrypted (two
    fifths more, if it is)."""
    return _HEAD_BYTES + _ROW_BYTES * chunks


def kept_bytes(size: int) -> int:
    """What a node's store gives to a manifest of so many bytes: its file, and as much for its rows in
    the index."""
    return -(-2 * size // _BLOCK) * _BLOCK


def parse(data: bytes | memoryview, file_id: str | None = None) -> Manifest:
    """Bytes from disk or network -> a checked manifest.

    Raises ManifestInvalid for anything that is not the canonical form of a possible
    manifest, and where `file_id` is given and is not the bytes' SHA-256.
    """
    if len(data) > MAX_BYTES:
        raise ManifestInvalid(f"the manifest has {len(data)} bytes, more than {MAX_BYTES}")
    if file_id is not None and hashlib.sha256(data).hexdigest() != file_id:
        raise ManifestInvalid(f"the manifest does not belong to file {file_id[:12]}")
    manifest = _read(bytes(data))
    _check(manifest)
    if manifest.canonical != data:
        raise ManifestInvalid("the manifest is not in its canonical form")
    return manifest


def _read(data: bytes) -> Manifest:
    """Part by part, and a row of another shape ends it: what is refused was never in memory
    at many times its size, as small bytes nested deep would be."""
    unpacker = msgpack.Unpacker(
        io.BytesIO(data),
        raw=False,
        use_list=False,
        list_hook=_row,
        strict_map_key=True,
        max_array_len=_ROW_FIELDS,
        max_map_len=0,
        max_ext_len=0,
        max_bin_len=MAX_BYTES,
        max_str_len=MAX_NAME_BYTES,
        max_buffer_size=MAX_BYTES,
    )
    try:
        if unpacker.read_array_header() != 7:
            raise ManifestInvalid("the manifest does not have seven parts")
        version = unpacker.unpack()
        if version != MANIFEST_VERSION or isinstance(version, (bool, float)):
            raise ManifestInvalid(f"manifest version {_shown(version)} is unknown here; upgrade zchunk")
        name, size, sha256, chunk_size = (unpacker.unpack() for _ in range(4))
        count = unpacker.read_array_header()
        if count > MAX_CHUNKS:
            raise ManifestInvalid(f"the manifest has {count} chunks, more than {MAX_CHUNKS}")
        chunks = tuple(unpacker.unpack() for _ in range(count))
        return Manifest(name, size, sha256, chunk_size, chunks, unpacker.unpack(), version)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ManifestInvalid(f"the manifest cannot be read: {_shown(error)}") from None


def _row(fields: tuple[Any, ...]) -> ChunkRow:
    if len(fields) != _ROW_FIELDS or ChunkRow in map(type, fields):
        raise ManifestInvalid("a chunk row does not have five fields")
    return ChunkRow(*fields)


def _shown(value: Any) -> str:
    """Not more of what another wrote than a line takes."""
    return repr(value)[:60]


def _check(m: Manifest) -> None:
    if not all(isinstance(row, ChunkRow) for row in m.chunks):
        raise ManifestInvalid("a chunk row does not have five fields")
    problem = name_problem(m.name) or header_problem(m, len(m.chunks))
    if problem is None:
        problem = next((p for i, row in enumerate(m.chunks) if (p := _row_problem(m, i, row))), None)
    if problem is not None:
        raise ManifestInvalid(f"the manifest is invalid: {problem}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_digest(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def name_problem(name: Any) -> str | None:
    """Why `name` cannot be a file's name, or None. Any text goes, `../` too: it is data."""
    if not isinstance(name, str) or not name:
        return "the name is empty"
    if "\0" in name:
        return "the name contains a NUL character"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if len(encoded) > MAX_NAME_BYTES:
        return f"the name is longer than {MAX_NAME_BYTES} bytes"
    return None


def new_name_problem(name: Any) -> str | None:
    """Why no file may be put under `name` from now on, or None. Stricter than `name_problem`,
    which earlier files must pass."""
    problem = name_problem(name)
    if problem is None and is_file_id(name):
        return "64 hex digits always mean a file id"
    return problem


def is_file_id(text: str) -> bool:
    """Whether `text` is a file id, whatever files there are; upper case means the same."""
    return _FILE_ID.fullmatch(text) is not None


def may_begin(text: str, file_id: str) -> bool:
    """Whether `text` is enough of `file_id` to stand for it: all of it, or its beginning."""
    return len(text) >= MIN_ID_PREFIX and file_id.startswith(text.lower())


def chunk_size_problem(chunk_size: Any) -> str | None:
    """Why `chunk_size` is not allowed, or None (SPEC U3)."""
    if not _is_count(chunk_size) or not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
        return f"chunk_size {_shown(chunk_size)} is not between {MIN_CHUNK_SIZE} and {MAX_CHUNK_SIZE}"
    if chunk_size % CHUNK_SIZE_STEP:
        return f"chunk_size {chunk_size} is not a multiple of {CHUNK_SIZE_STEP}"
    return None


def header_problem(m: Manifest, chunks: int) -> str | None:
    """What is wrong with `m` if it has so many chunks, its rows and its name apart; or None."""
    if not _is_count(m.size):
        return "the size is not a number of bytes"
    if (problem := chunk_size_problem(m.chunk_size)) is not None:
        return problem
    if chunks != chunk_count(m.size, m.chunk_size):
        return f"{chunks} chunks do not add up to {m.size} bytes"
    if m.sealed is None:
        return None if is_digest(m.sha256) else "sha256 is not a digest"
    return (
        None if m.sha256 is None and isinstance(m.sealed, bytes) else "an encrypted manifest shows its sha256"
    )


def _row_problem(m: Manifest, index: int, row: ChunkRow) -> str | None:
    if row.encoding != (IDENTITY if m.sealed is None else AES256GCM):
        return f"chunk {index} has the encoding {_shown(row.encoding)}, which is unknown here"
    if not (is_digest(row.sha256) and is_digest(row.blake3)):
        return f"chunk {index} has a digest of the wrong length"
    if row.plain_blake3 is not None:
        return f"chunk {index} shows its plain digest"
    length = m.length(index) + OVERHEAD[row.encoding]
    if not _is_count(row.stored_size) or row.stored_size != length:
        return f"chunk {index} has {_shown(row.stored_size)} bytes instead of {length}"
    return None
