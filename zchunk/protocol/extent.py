"""How much msgpack bytes would become, before they become it. Pure.

A few bytes can make a map that takes two hundred in memory, so a limit on bytes is none on
memory. `wire` asks here about headers that are large enough for that to matter.
"""

from __future__ import annotations

from zchunk.errors import MalformedMessage

#: first byte -> bytes that follow it and belong to a value of fixed size
_FIXED = {**dict.fromkeys((0xC0, 0xC2, 0xC3), 0), **dict.fromkeys(range(0x80), 0)}
_FIXED |= {**dict.fromkeys(range(0xE0, 0x100), 0), **{first: first - 0xA0 for first in range(0xA0, 0xC0)}}
_FIXED |= {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
#: first byte -> width of the length that follows it: of bytes (bin, str), of entries (array, map)
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ENTRIES = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def check(data: bytes | bytearray | memoryview, most: int) -> None:
    """Raises MalformedMessage for more than `most` values, those within others counted, and
    for bytes that are no msgpack of known types. It keeps nothing, however deep they nest."""
    at, left, seen = 0, 1, 0
    view = memoryview(data)
    while left:
        left, seen = left - 1, seen + 1
        if at >= len(view):
            raise MalformedMessage("the header ends too early")
        first = view[at]
        at += 1
        if (size := _FIXED.get(first)) is not None:
            at += size
        elif (width := _BYTES.get(first)) is not None:
            at += width + int.from_bytes(view[at : at + width], "big")
        else:
            width, entries = _entries(first, view, at)
            at, left = at + width, left + entries
        if seen + left > most:
            raise MalformedMessage(f"the header has more than {most} values")


def _entries(first: int, view: memoryview, at: int) -> tuple[int, int]:
    """(bytes of the length that follows, values inside) of an array or a map."""
    if 0x80 <= first < 0xA0:
        return 0, (first & 15) * (2 if first < 0x90 else 1)
    width = _ENTRIES.get(first)
    if width is None:
        raise MalformedMessage(f"the header has a value of the unknown type {first:#x}")
    return width, int.from_bytes(view[at : at + width], "big") * (2 if first >= 0xDE else 1)
