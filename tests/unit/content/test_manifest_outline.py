"""content/manifest_outline.py: it takes and refuses what manifest.parse does, and says the same of it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.content.test_manifest import encrypted, make, manifests
from zchunk.content import manifest_outline
from zchunk.content.manifest import MIN_CHUNK_SIZE, Manifest, parse
from zchunk.errors import ManifestInvalid


def told(data: bytes) -> tuple[Any, ...] | None:
    """What `parse` makes of it; None where it refuses it."""
    try:
        m = parse(data)
    except ManifestInvalid:
        return None
    return m.file_id, m.name, m.size, m.sha256, m.chunk_size, m.hashes, m.canonical


def outlined(data: bytes) -> tuple[Any, ...] | None:
    try:
        o = manifest_outline.read(memoryview(data), hashlib.sha256(data).hexdigest())
    except ManifestInvalid:
        return None
    return o.file_id, o.name, o.size, o.sha256, o.chunk_size, o.hashes, bytes(o.canonical)


@pytest.fixture
def no_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("parsed row by row")

    monkeypatch.setattr(manifest_outline, "parse", fail)


SIZES = [0, 1, MIN_CHUNK_SIZE, MIN_CHUNK_SIZE + 1, 5 * MIN_CHUNK_SIZE, 300 * MIN_CHUNK_SIZE + 7]


@pytest.mark.usefixtures("no_parse")
@pytest.mark.parametrize("manifest", [*map(make, SIZES), encrypted()], ids=lambda m: f"{m.size} bytes")
def test_of_a_canonical_manifest_no_row_is_parsed(manifest: Manifest) -> None:
    expected = (
        manifest.file_id,
        manifest.name,
        manifest.size,
        manifest.sha256,
        manifest.chunk_size,
        [row.sha256 for row in manifest.chunks],
        manifest.canonical,
    )
    assert outlined(manifest.canonical) == expected


@given(manifests(), st.data())
def test_a_byte_changed_anywhere_is_dealt_with_as_by_parse(manifest: Manifest, data: st.DataObject) -> None:
    changed = bytearray(manifest.canonical)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] = data.draw(st.integers(0, 255))
    assert outlined(bytes(changed)) == told(bytes(changed))


@pytest.mark.parametrize(
    "manifest", [make(3 * MIN_CHUNK_SIZE), make(5), encrypted()], ids=["3", "1", "encrypted"]
)
def test_every_flipped_bit_is_taken_and_refused_as_by_parse(manifest: Manifest) -> None:
    for at in range(len(manifest.canonical)):
        for bit in range(8):
            changed = bytearray(manifest.canonical)
            changed[at] ^= 1 << bit
            assert outlined(bytes(changed)) == told(bytes(changed)), (at, bit)


@given(manifests(), st.data())
def test_bytes_cut_out_or_put_in_are_refused_as_by_parse(manifest: Manifest, data: st.DataObject) -> None:
    whole = manifest.canonical
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    changed = whole[:begin] + data.draw(st.binary(max_size=90)) + whole[end:]
    assert outlined(changed) == told(changed)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    assert outlined(data) is None


def test_a_manifest_of_another_file_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="does not belong"):
        manifest_outline.read(make().canonical, "0" * 64)
