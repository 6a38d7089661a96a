"""content/manifest.py and content/hashing.py (SPEC D1, U3, U7): the canonical bytes are a disk format for
ever."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import blake3 as blake3_module
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zchunk.content import hashing
from zchunk.content.hashing import FileDigest, add_to_inventory, inventory_digest
from zchunk.content.manifest import (
    CHUNK_SIZE_STEP,
    MAX_CHUNK_SIZE,
    MAX_NAME_BYTES,
    MIN_CHUNK_SIZE,
    ChunkRow,
    Manifest,
    block_ranges,
    chunk_count,
    chunk_length,
    chunk_size_problem,
    name_problem,
    parse,
)
from zchunk.errors import ManifestInvalid

CHUNK = MIN_CHUNK_SIZE


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def row(number: int, size: int = CHUNK) -> ChunkRow:
    return ChunkRow(size, "identity", digest(number), digest(number + 1000), None)


def make(size: int = 2 * CHUNK + 5, name: str = "Film über Wale.mov", **other: Any) -> Manifest:
    rows = tuple(row(i, chunk_length(size, CHUNK, i)) for i in range(chunk_count(size, CHUNK)))
    return Manifest(**{**_values(name, size), "chunks": rows, **other})


def _values(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "sha256": digest(7), "chunk_size": CHUNK}


def repacked(at: tuple[int, ...], value: Any, manifest: Manifest | None = None) -> bytes:
    """The canonical bytes with one part replaced."""
    parts = msgpack.unpackb((manifest or make()).canonical, raw=False)
    inner = parts
    for index in at[:-1]:
        inner = inner[index]
    inner[at[-1]] = value
    return bytes(msgpack.packb(parts, use_bin_type=True))


# -- the format never changes unnoticed ----------------------------------------------------


def test_the_canonical_bytes_are_these_for_ever() -> None:
    manifest = make()
    header = (
        b"\x97\x01"
        + b"\xb3"
        + "Film über Wale.mov".encode()
        + b"\xce\x00\x02\x00\x05"
        + b"\xc4\x20"
        + digest(7)
        + b"\xce\x00\x01\x00\x00"
        + b"\x93"
    )
    rows = b"".join(
        b"\x95" + size + b"\xa8identity" + b"\xc4\x20" + digest(i) + b"\xc4\x20" + digest(i + 1000) + b"\xc0"
        for i, size in enumerate([b"\xce\x00\x01\x00\x00", b"\xce\x00\x01\x00\x00", b"\x05"])
    )
    assert manifest.canonical == header + rows + b"\xc0"


def test_the_golden_file_ids() -> None:
    """These files lie in clusters by these ids: should one change, they are lost."""
    assert make().file_id == "e7b649604b716ad120fb626336a48fce6ca4c3d6e0449b6aa07214472976aecf"
    assert make(size=0).file_id == "62d4112afd7c8ac6c8efc6cfa213ef35dcf72ef7bc1a4c14558b2ac9d5577333"
    sealed = make(sha256=None, sealed=b"sealed")
    assert sealed.file_id == "8532bd19da63cfc7605a5134820dce1c55cd1d207165d453dd2f913ddb903b61"


def test_a_file_id_is_the_sha256_of_the_canonical_bytes() -> None:
    manifest = make()
    assert manifest.file_id == hashlib.sha256(manifest.canonical).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"sha256": digest(8)},
        {"chunks": (row(0), row(1), row(3, 5))},
        {"sealed": b"x", "sha256": None},
    ],
)
def test_whatever_differs_makes_another_file(change: dict[str, Any]) -> None:
    assert replace(make(), **change).file_id != make().file_id


# -- round trip ---------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=50)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    chunk_size = draw(st.sampled_from([CHUNK, CHUNK + CHUNK_SIZE_STEP, MAX_CHUNK_SIZE]))
    size = draw(st.integers(0, 5 * chunk_size))
    digests = st.binary(min_size=32, max_size=32)
    sealed = draw(st.none() | st.binary(max_size=40))
    more, encoding = (0, "identity") if sealed is None else (16, "aes256gcm")
    rows = tuple(
        ChunkRow(chunk_length(size, chunk_size, i) + more, encoding, draw(digests), draw(digests), None)
        for i in range(chunk_count(size, chunk_size))
    )
    sha256 = draw(digests) if sealed is None else None
    return Manifest(draw(names), size, sha256, chunk_size, rows, sealed)


@given(manifest=manifests())
def test_a_manifest_comes_back_from_its_bytes(manifest: Manifest) -> None:
    for data in (manifest.canonical, memoryview(manifest.canonical)):
        back = parse(data, manifest.file_id)
        assert back == manifest
        assert back.file_id == manifest.file_id


@given(manifest=manifests())
def test_its_chunks_cover_the_file(manifest: Manifest) -> None:
    ends = [manifest.offset(i) + manifest.length(i) for i in range(len(manifest.chunks))]
    assert ends == [*[manifest.offset(i) for i in range(1, len(ends))], manifest.size][: len(ends)]
    tags = 16 * len(manifest.chunks) if manifest.sealed is not None else 0
    assert manifest.stored_bytes == manifest.size + tags


def test_a_plain_digest_is_the_stored_one_unless_it_is_given() -> None:
    assert row(1).plain_digest == row(1).blake3
    assert replace(row(1), plain_blake3=digest(9)).plain_digest == digest(9)
    assert replace(row(1), encoding="aes").plain_digest is None


# -- everything else is refused --------------------------------------------------------------------


def test_a_manifest_of_another_file_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="does not belong"):
        parse(make().canonical, make(name="other").file_id)


@pytest.mark.parametrize("size", [0, 5, CHUNK])
def test_every_flipped_bit_is_found_by_the_file_id(size: int) -> None:
    manifest = make(size=size)
    for at in range(8 * len(manifest.canonical)):
        data = bytearray(manifest.canonical)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(ManifestInvalid):
            parse(bytes(data), manifest.file_id)


def test_without_a_file_id_a_flipped_bit_is_refused_or_makes_another_possible_manifest() -> None:
    manifest = make()
    for at in range(8 * len(manifest.canonical)):
        data = bytearray(manifest.canonical)
        data[at // 8] ^= 1 << at % 8
        try:
            other = parse(bytes(data))
        except ManifestInvalid:
            continue
        assert other.canonical == bytes(data)
        assert other.file_id != manifest.file_id


@given(data=st.binary(max_size=200))
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse(data)


@given(manifest=manifests(), data=st.data())
def test_cut_off_or_lengthened_bytes_are_refused(manifest: Manifest, data: st.DataObject) -> None:
    whole = manifest.canonical
    cut = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:cut], whole + b"\0", whole + whole):
        with pytest.raises(ManifestInvalid):
            parse(damaged)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
PLACES: list[tuple[int, ...]] = [(i,) for i in range(7)] + [(5, i) for i in range(3)]
PLACES += [(5, 1, i) for i in range(5)]


@given(at=st.sampled_from(PLACES), value=anything)
def test_whatever_stands_in_a_place_is_refused_or_canonical(at: tuple[int, ...], value: Any) -> None:
    try:
        data = repacked(at, value)
    except UnicodeEncodeError:
        return
    try:
        manifest = parse(data)
    except ManifestInvalid:
        return
    assert manifest.canonical == data
    assert type(manifest.version) is int
    assert type(manifest.size) is int
    assert all(type(chunk.stored_size) is int for chunk in manifest.chunks)


IMPOSSIBLE: list[tuple[tuple[int, ...], Any]] = [
    ((0,), 0),
    ((0,), 2),
    ((0,), True),
    ((0,), 1.0),
    ((0,), None),
    ((1,), ""),
    ((1,), "a\0b"),
    ((1,), b"bytes"),
    ((1,), None),
    ((1,), "x" * (MAX_NAME_BYTES + 1)),
    ((2,), 2 * CHUNK),
    ((2,), 3 * CHUNK + 1),
    ((2,), -1),
    ((2,), float(2 * CHUNK + 5)),
    ((2,), True),
    ((2,), "131077"),
    ((2,), None),
    ((3,), digest(1)[:31]),
    ((3,), digest(1) + b"\0"),
    ((3,), digest(1).hex()),
    ((3,), None),
    ((4,), 0),
    ((4,), -CHUNK),
    ((4,), CHUNK - CHUNK_SIZE_STEP),
    ((4,), CHUNK + 1),
    ((4,), MAX_CHUNK_SIZE + CHUNK_SIZE_STEP),
    ((4,), float(CHUNK)),
    ((5,), []),
    ((5,), None),
    ((5,), {}),
    ((5,), 7),
    ((5,), [[CHUNK, "identity", digest(1), digest(2), None]] * 2),
    ((5,), [[CHUNK, "identity", digest(1), digest(2), None]] * 4),
    ((5, 0), None),
    ((5, 0), [CHUNK, "identity", digest(1), digest(2)]),
    ((5, 0), [CHUNK, "identity", digest(1), digest(2), None, None]),
    ((5, 0, 0), CHUNK - 1),
    ((5, 0, 0), 0),
    ((5, 0, 0), -1),
    ((5, 0, 0), float(CHUNK)),
    ((5, 2, 0), CHUNK),
    ((5, 2, 0), 5.0),
    ((5, 0, 1), "gzip"),
    ((5, 0, 1), b"identity"),
    ((5, 0, 1), None),
    ((5, 0, 1), {}),
    ((5, 0, 1), [{}]),
    ((5, 0, 2), digest(1)[:31]),
    ((5, 0, 2), digest(1).hex()),
    ((5, 0, 2), None),
    ((5, 0, 3), b""),
    ((5, 0, 3), None),
    ((5, 0, 4), digest(1)),
    ((5, 0, 4), False),
    ((5, 0, 1), "aes256gcm"),  # in a manifest that is not sealed
    ((6,), b"sealed"),  # with a plain sha256 beside it
    ((6,), "text"),
    ((6,), False),
]


@pytest.mark.parametrize(("at", "value"), IMPOSSIBLE)
def test_what_cannot_be_is_refused(at: tuple[int, ...], value: Any) -> None:
    with pytest.raises(ManifestInvalid):
        parse(repacked(at, value))


def encrypted() -> Manifest:
    rows = tuple(replace(r, stored_size=r.stored_size + 16, encoding="aes256gcm") for r in make().chunks)
    return make(sha256=None, sealed=b"sealed", chunks=rows)


IMPOSSIBLE_SEALED = [
    ((3,), digest(1)),  # its plain sha256 is nobody's business
    ((6,), None),
    ((6,), "text"),
    ((5, 0, 0), CHUNK),
    ((5, 2, 0), 5),
    ((5, 0, 1), "identity"),
    ((5, 0, 4), digest(1)),
]


@pytest.mark.parametrize(("at", "value"), IMPOSSIBLE_SEALED)
def test_what_cannot_be_in_an_encrypted_file_is_refused(at: tuple[int, ...], value: Any) -> None:
    assert parse(encrypted().canonical) == encrypted()
    with pytest.raises(ManifestInvalid):
        parse(repacked(at, value, encrypted()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x97" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x3d\x09\x00" * 2000,
        b"\xdb\xff\xff\xff\xff",
        b"\x97\x01\xdb\x7f\xff\xff\xff",
        b"\xc7\x00\x01",
        bytes(msgpack.packb(list(range(7)))),
        bytes(msgpack.packb([1] * 6)),
        bytes(msgpack.packb([1] * 8)),
        bytes(msgpack.packb(msgpack.ExtType(1, b"x"))),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse(data)


def test_a_name_that_is_no_unicode_is_refused() -> None:
    data = make(name="xx").canonical.replace(b"xx", b"\xff\xfe")
    with pytest.raises(ManifestInvalid):
        parse(data)


LONGER_FORMS: list[tuple[bytes, bytes]] = [
    (b"\x97\x01", b"\xdc\x00\x07\x01"),  # an array of seven, told in three bytes
    (b"\x97\x01", b"\x97\xcc\x01"),  # the version as a longer number
    (b"\xc4\x20", b"\xc5\x00\x20"),  # a digest with a longer length
    (b"\xa8identity", b"\xd9\x08identity"),
    (b"\xce\x00\x01\x00\x00", b"\xcf\x00\x00\x00\x00\x00\x01\x00\x00"),
    (b"\xce\x00\x01\x00\x00", b"\xd2\x00\x01\x00\x00"),  # a signed number
    (b"\x93\x95", b"\xdc\x00\x03\x95"),
]


@pytest.mark.parametrize(("short", "long"), LONGER_FORMS)
def test_the_same_values_in_other_bytes_are_refused(short: bytes, long: bytes) -> None:
    canonical = make().canonical
    assert short in canonical
    data = canonical.replace(short, long, 1)
    assert msgpack.unpackb(data) == msgpack.unpackb(canonical)
    with pytest.raises(ManifestInvalid, match="canonical"):
        parse(data)


# -- names, sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "../../etc/passwd", "a\nb", "C:\\x", "\u202ename", "😀" * 1024, " "])
def test_any_text_is_a_name(name: str) -> None:
    assert name_problem(name) is None
    assert parse(make(name=name).canonical).name == name


@pytest.mark.parametrize("name", ["", "a\0", "\ud800", "x" * 4097, "😀" * 1025, None, 5, b"x"])
def test_what_is_no_name(name: Any) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("size", [MIN_CHUNK_SIZE, MIN_CHUNK_SIZE + 4096, 10 * 1024**2, MAX_CHUNK_SIZE])
def test_chunk_sizes_that_are_allowed(size: int) -> None:
    assert chunk_size_problem(size) is None


@pytest.mark.parametrize(
    "size", [0, -1, MIN_CHUNK_SIZE - 4096, MIN_CHUNK_SIZE + 1, MAX_CHUNK_SIZE + 4096, True, 65536.0, "65536"]
)
def test_chunk_sizes_that_are_not(size: Any) -> None:
    assert chunk_size_problem(size)


@given(size=st.integers(0, 10_000), chunk_size=st.integers(1, 300))
def test_chunks_cover_the_file_without_gap_or_overlap(size: int, chunk_size: int) -> None:
    lengths = [chunk_length(size, chunk_size, i) for i in range(chunk_count(size, chunk_size))]
    assert sum(lengths) == size
    assert all(length == chunk_size for length in lengths[:-1])
    assert all(0 < length <= chunk_size for length in lengths)


@given(length=st.integers(0, 1000), block=st.integers(1, 300))
def test_blocks_cover_the_chunk_without_gap_or_overlap(length: int, block: int) -> None:
    ranges = block_ranges(length, block)
    covered = [offset + i for offset, size in ranges for i in range(size)]
    assert covered == list(range(length))
    assert all(size <= block for _, size in ranges)


# -- digests -------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=1000))
def test_digests_are_the_standard_ones_and_are_counted(data: bytes) -> None:
    before = dict(hashing.counts)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert hashing.sha256(buffer) == hashlib.sha256(data).digest()
        assert hashing.blake3(buffer) == blake3_module.blake3(data).digest()
    for algorithm in ("sha256", "blake3"):
        assert hashing.counts[algorithm] - before.get(algorithm, 0) == 3 * len(data)


@given(parts=st.lists(st.binary(max_size=50)))
def test_a_files_digest_is_that_of_its_whole_content(parts: list[bytes]) -> None:
    running = FileDigest()
    for part in parts:
        running.update(part)
    assert running.digest() == hashlib.sha256(b"".join(parts)).digest()
    assert running.size == sum(map(len, parts))


def test_the_published_vectors() -> None:
    assert hashing.sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hashing.blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@given(
    kept=st.lists(st.binary(min_size=32, max_size=32), max_size=6),
    gone=st.lists(st.binary(min_size=32, max_size=32), max_size=6),
    rng=st.randoms(use_true_random=False),
)
def test_an_inventorys_digest_depends_on_what_is_there_alone(
    kept: list[bytes], gone: list[bytes], rng: Any
) -> None:
    order = kept + gone
    rng.shuffle(order)
    assert add_to_inventory(inventory_digest(order), [], gone) == inventory_digest(kept)
    assert len(inventory_digest(order)) == 32


def test_inventories_that_differ_have_other_digests() -> None:
    assert inventory_digest([]) == bytes(32)
    assert inventory_digest([digest(1)]) == digest(1)
    assert inventory_digest([digest(1)]) != inventory_digest([digest(1), digest(2)])
