"""protocol/extent.py (SPEC S4): a header is as large in memory as it may be, known beforehand."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import plain
from zchunk.errors import MalformedMessage
from zchunk.protocol import extent, wire

#: {"v": 1, "t": "ok", "id": 1, "f": {}, "x": ...
OPENED = b"\x85\xa1v\x01\xa1t\xa2ok\xa2id\x01\xa1f\x80\xa1x"


def values(tree: object) -> int:
    if isinstance(tree, dict):
        return 1 + sum(1 + values(item) for item in tree.values())
    return 1 + sum(map(values, tree)) if isinstance(tree, (list, tuple)) else 1


@given(tree=plain)
def test_values_are_counted_as_they_are(tree: object) -> None:
    data = msgpack.packb(tree)
    extent.check(data, values(tree))
    with pytest.raises(MalformedMessage, match="more than"):
        extent.check(data, values(tree) - 1)


@given(data=st.binary(max_size=60))
def test_what_msgpack_reads_is_not_refused(data: bytes) -> None:
    try:
        tree = msgpack.unpackb(data, raw=False, max_ext_len=0, strict_map_key=False)
    except Exception:  # noqa: BLE001 - of whatever kind, it is not ours to take
        return
    if "ExtType" not in repr(tree) and "Timestamp" not in repr(tree):
        extent.check(data, 1000)


@pytest.mark.parametrize("data", [b"\xc1", b"\xd4\x01\x01", b"\xc7\x01\x01\x01", b"\x92\x01", b""])
def test_unknown_types_and_early_ends_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        extent.check(data, 1000)


@pytest.mark.row("S4")
@pytest.mark.parametrize(
    "inside",
    [
        (b"\xdc\x4e\x20" + b"\xa2ab" * 19_999) * 100,  # each list in the last place of the one before
        (b"\xdc\x4e\x20" + b"\x81\xa0\x00" * 20_000) * 100,
        b"\x91" * 7_000_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" + b"\xa0\xc0" * 3_000_000,
    ],
    ids=["lists", "maps", "deep", "promised", "pairs"],
)
def test_a_header_within_its_bytes_does_not_become_a_hundred_times_as_much(inside: bytes) -> None:
    header = (OPENED + inside + b"\xc0")[: wire.MAX_HEADER_BYTES]
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            wire.decode([header])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_a_request_has_a_shorter_header_than_an_answer() -> None:
    header = OPENED + b"\xdb\x00\x20\x00\x00" + b"a" * 2**21
    assert wire.decode([header]).request_id == 1
    with pytest.raises(MalformedMessage, match="more than 1048576"):
        wire.decode([header], wire.MAX_REQUEST_HEADER_BYTES)
