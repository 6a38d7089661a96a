"""A member that sends wrong bytes (T19, SPEC D8): nothing of it is kept, it is named, it is set
apart, and the file comes from the others; where there are none, there is a clear end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import wrongdata
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Source, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.integration.test_health import listening

CHUNK = 64 * 1024


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A is honest, B is not; CURVE, as by default."""
    with Cluster(tmp_path_factory.mktemp("wrong"), SMALL) as cluster:
        cluster.start_node("A")
        cluster.start_node("B", prefix=(sys.executable, wrongdata.__file__))
        yield cluster


def wrong_bytes(part: Path, source: Source) -> list[int]:
    """Chunks of the part file that are neither the source's nor empty yet."""
    found = part.read_bytes()
    pieces = {at // CHUNK: found[at : at + CHUNK] for at in range(0, len(found), CHUNK)}
    return [i for i, piece in pieces.items() if any(piece) and piece != source.piece(i * CHUNK, CHUNK)]


@pytest.mark.row("D8")
def test_the_file_comes_from_the_other_holder(cluster: Cluster, folder: Path) -> None:
    source = make_file(folder / "twice.bin", 4 * MIB)
    file_id = cluster.client.put(source.path, "--replicas", "2").last["file_id"]
    liar = cluster.nodes["B"].peer_id
    with listening(cluster) as events:
        result = cluster.client.get(file_id, folder / "copy")
        told = events.until(lambda event: event["topic"] == "chunk.corrupt", "B is reported")
        assert told["fields"]["peer_id"] == liar
    assert sha256_of(folder / "copy") == result.last["sha256"] == source.sha256
    corrupt = result.of("corrupt")
    assert {(event["peer_id"], event["name"]) for event in corrupt} == {(liar, "B")}
    assert len(corrupt) < 16, "set apart: of 64 chunks no more than were on their way, or being checked"
    assert (
        "from B was corrupt"
        in cluster.spawn(["get", file_id, "--home", str(cluster.client.home), "-o", str(folder / "again")])
        .result()
        .expect(0)
        .stderr
    ), "a person is told, too"


@pytest.mark.row("D8")
def test_where_nobody_else_has_it_the_download_ends(cluster: Cluster, folder: Path) -> None:
    source = make_file(folder / "once.bin", 4 * MIB)
    file_id = cluster.client.put(source.path).last["file_id"]
    chunks = cluster.client.info(file_id)["chunks"]
    at_liar = {row["chunk_index"] for row in chunks if row["peer_id"] == cluster.nodes["B"].peer_id}
    result = cluster.client.get(file_id, folder / "copy", code=5)
    assert result.seconds < PATIENCE_S / 2
    assert len(at_liar) == 32
    assert result.last["code"] == "integrity"
    assert f"{len(at_liar)} chunks" in result.stderr
    assert "(B)" in result.stderr
    assert {event["chunk_index"] for event in result.of("corrupt")} == at_liar
    assert len(result.of("corrupt")) <= len(at_liar) + 2, "each once, but for the first ones"
    assert not (folder / "copy").exists()
    (part,) = folder.glob("*.zpart")
    assert wrong_bytes(part, source) == []
