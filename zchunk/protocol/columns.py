"""Tables as columns of little-endian integers, compact on the wire. Pure."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from zchunk.errors import MalformedMessage

_CODES = {2: "H", 4: "I", 8: "Q"}
#: In a u16 column of peers: nobody.
NOBODY = 0xFFFF
#: Digests of one message: a list of them takes three times their bytes.
MAX_HASHES = 100_000


def pack(width: int, values: Iterable[int]) -> bytes:
    """`values` as integers of `width` bytes (2, 4 or 8)."""
    column = array(_CODES[width], values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack(width: int, data: bytes | memoryview) -> array[int]:
    """The inverse; MalformedMessage where the bytes are no whole number of integers."""
    if len(data) % width:
        raise MalformedMessage(f"a column of {len(data)} bytes is not a multiple of {width}")
    column = array(_CODES[width])
    column.frombytes(bytes(data))
    if sys.byteorder == "big":
        column.byteswap()
    return column


def split_hashes(data: bytes | memoryview, most: int = MAX_HASHES) -> list[bytes]:
    """32-byte digests laid end to end, `most` of them -> a list of them."""
    if len(data) % 32:
        raise MalformedMessage(f"{len(data)} bytes are not a whole number of digests")
    if len(data) > 32 * most:
        raise MalformedMessage(f"the message has {len(data) // 32} digests, more than {most}")
    raw = bytes(data)
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def rows(flat: array[int], width: int) -> list[tuple[int, ...]]:
    """A flat column as rows of `width` entries."""
    if width < 1 or len(flat) % width:
        raise MalformedMessage(f"{len(flat)} entries are not rows of {width}")
    return [tuple(flat[at : at + width]) for at in range(0, len(flat), width)]
