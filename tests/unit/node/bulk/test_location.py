"""node/bulk/location.py: the tracker's answers, checked against what was asked (SPEC D1)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from msgspec.structs import replace

from zchunk.content.manifest import ChunkRow, Manifest
from zchunk.errors import IntegrityError, MalformedMessage, ManifestInvalid, ZchunkError
from zchunk.node.bulk.location import location
from zchunk.node.upload.assignment import assignment
from zchunk.protocol import columns
from zchunk.protocol.messages import FileRecord, Located, PeerRecord, Plan, Planned

CHUNK = 64 * 1024
PEER = "ab" * 16


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def manifest(name: str = "film") -> Manifest:
    row = ChunkRow(CHUNK, "identity", digest(name), digest(name), None)
    return Manifest(name, CHUNK, digest(name), CHUNK, (row,))


def answer(content: Manifest | None = None, **record: Any) -> Located:
    content = content or manifest()
    values: dict[str, Any] = {
        "file_id": content.file_id,
        "name": content.name,
        "size": content.size,
        "sha256": content.sha256,
        "chunk_size": content.chunk_size,
        "chunks_count": len(content.chunks),
        "replicas": 1,
        "is_chunked": False,
        "is_distributed": False,
        "minimum_peers_required": 1,
        "created_at_ms": 5,
    }
    return Located(
        file=FileRecord(**{**values, **record}),
        peers=(),
        manifest=content.canonical,
        holder_counts=columns.pack(2, [0]),
        holder_peers=b"",
        holder_times=b"",
    )


FILE_ID, OTHER_ID = manifest().file_id, manifest("other").file_id


@pytest.mark.parametrize("asked", [FILE_ID, FILE_ID.upper(), FILE_ID[:8], FILE_ID[:63].upper(), "film"])
def test_the_file_that_was_asked_for_is_taken(asked: str) -> None:
    assert location(answer(), asked).manifest == manifest()


def test_a_renamed_file_is_taken_by_its_new_name() -> None:
    assert location(answer(name="new"), "new").manifest.name == "film"


@pytest.mark.parametrize(
    "asked", [OTHER_ID, OTHER_ID[:8], FILE_ID[:7], "Film", "", FILE_ID + "0", "x" * 4000, "a\nb"]
)
def test_another_file_than_was_asked_for_is_refused(asked: str) -> None:
    with pytest.raises(IntegrityError, match="another file") as caught:
        location(answer(), asked)
    assert FILE_ID in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("asked", [OTHER_ID, OTHER_ID.upper()])
def test_a_file_named_with_the_digits_of_an_id_is_not_the_file_of_that_id(asked: str) -> None:
    with pytest.raises(IntegrityError, match="another file"):
        location(answer(manifest(asked)), asked)


def test_a_manifest_of_another_file_is_refused() -> None:
    with pytest.raises(ManifestInvalid):
        location(replace(answer(), manifest=manifest("other").canonical), FILE_ID)


@pytest.mark.parametrize(
    "wrong", [{"size": CHUNK + 1}, {"sha256": digest("x")}, {"chunk_size": 2 * CHUNK}, {"chunks_count": 2}]
)
def test_a_record_that_does_not_fit_the_manifest_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="record"):
        location(answer(**wrong), FILE_ID)


# -- plans ----------------------------------------------------------------------------------------

PLAN = Plan(
    upload_id="cd" * 16,
    size=2 * CHUNK,
    chunk_size=CHUNK,
    distribute=True,
    replicas=1,
    min_peers=1,
    strategy="round_robin",
    own_peer=None,
    avoid=(),
    held_peers=(),
    only=b"",
    held=b"",
)
NODE = PeerRecord(
    peer_id=PEER,
    name="A",
    role="node",
    status="up",
    incarnation=1,
    endpoints=(),
    capacity=1,
    free=1,
    chunks=0,
    last_seen_ms=0,
)
PLANNED = Planned(
    strategy="round_robin",
    distributed=True,
    replicas=1,
    peers=(NODE,),
    assignment=columns.pack(2, [0, 0]),
)


def test_a_plan_for_what_was_asked_is_taken() -> None:
    assert assignment(PLAN, PLANNED) == [[PEER], [PEER]]


@pytest.mark.parametrize(
    "wrong",
    [{"replicas": 2}, {"distributed": False}, {"assignment": columns.pack(2, [0])}, {"peers": ()}],
)
def test_a_plan_for_something_else_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ZchunkError, match="plan"):
        assignment(PLAN, replace(PLANNED, **wrong))
