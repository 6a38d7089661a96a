"""SHA-256 (canonical) and BLAKE3 (fast prefilter) of chunks and files.

Both release the interpreter lock for large buffers, so they scale over threads.
`counts` tells tests how often each was asked for: the prefilter's point is that
SHA-256 is avoided, and a test can only prove that by counting.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3 as _blake3

Buffer = bytes | bytearray | memoryview

#: bytes hashed by this process, per algorithm
counts: Counter[str] = Counter()


def sha256(data: Buffer) -> bytes:
    counts["sha256"] += len(data)
    return hashlib.sha256(data).digest()


def blake3(data: Buffer) -> bytes:
    counts["blake3"] += len(data)
    return _blake3(data).digest()


class FileDigest:
    """The running SHA-256 of a file's content, fed in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def update(self, data: Buffer) -> None:
        counts["sha256"] += len(data)
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> bytes:
        """32 bytes; what `sha256sum` prints in hex."""
        return self._hash.digest()


def blake3_of(pieces: Iterable[Buffer]) -> bytes:
    """As `blake3`, of bytes that come in pieces."""
    digest = _blake3()
    for piece in pieces:
        counts["blake3"] += len(piece)
        digest.update(piece)
    return digest.digest()


class Both(NamedTuple):
    sha256: bytes
    blake3: bytes
    size: int


def both_of(pieces: Iterable[Buffer]) -> Both:
    """Both digests of bytes that come in pieces, in one pass."""
    canonical, prefilter = FileDigest(), _blake3()
    for piece in pieces:
        canonical.update(piece)
        counts["blake3"] += len(piece)
        prefilter.update(piece)
    return Both(canonical.digest(), prefilter.digest(), canonical.size)


def inventory_digest(hashes: list[bytes]) -> bytes:
    """The sum of SHA-256 digests modulo 2^256: the same for any order, kept up to date
    by adding and subtracting."""
    return add_to_inventory(bytes(32), hashes)


def add_to_inventory(digest: bytes, added: list[bytes], removed: list[bytes] | None = None) -> bytes:
    total = int.from_bytes(digest, "big")
    total += sum(int.from_bytes(h, "big") for h in added)
    total -= sum(int.from_bytes(h, "big") for h in removed or [])
    return (total % (1 << 256)).to_bytes(32, "big")
