"""A member that sends wrong bytes for chunks it holds whole (SPEC D8): its own check finds
nothing, so nothing but the receiver's SHA-256 stands between it and the file.

The liar is a node like others whose process changes a bit of each block on its way out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, ROOT, Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL

_CHUNK = 64 * 1024
#: Imported by the interpreter itself before it runs anything.
_LIE = """\
from zchunk.node.store.chunkstore import ChunkStore

read_block = ChunkStore.read_block

def lie(self, sha256, offset, length, lend):
    block = read_block(self, sha256, offset, length, lend)
    block[length // 2] ^= 1
    return block

ChunkStore.read_block = lie
"""


@pytest.fixture(scope="module")
def liars_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    patch = tmp_path_factory.mktemp("patch")
    (patch / "sitecustomize.py").write_text(_LIE)
    patch.chmod(0o755)
    with Cluster(tmp_path_factory.mktemp("liars"), SMALL) as cluster:
        cluster.start_nodes("A", "C")
        cluster.start_node("B", prefix=("env", f"PYTHONPATH={patch}:{ROOT}"))
        yield cluster


def test_a_liar_is_named_and_set_apart_and_the_file_completes(liars_cluster: Cluster, folder: Path) -> None:
    source = make_file(folder / "twice.bin", 6 * MIB)
    client, liar = liars_cluster.client, liars_cluster.nodes["B"]
    file_id = client.put(source.path, "--replicas", "2").last["file_id"]
    hashes = client.info(file_id)["chunks_hashes"]
    held = liar.holds(hashes)
    assert len(held) > 10, "it has much to lie about"

    result = client.get(file_id, folder / "copy")

    assert sha256_of(folder / "copy") == source.sha256
    corrupt = result.of("corrupt")
    assert {(event["peer_id"], event["name"]) for event in corrupt} == {(liar.peer_id, "B")}
    # It is set apart after two; what was being checked when the second was found out comes still.
    assert 1 <= len(corrupt) <= len(held) / 3
    # Its disk is as it should be: its own check must not believe the report, and keep all.
    assert liar.holds(hashes) == held


def test_what_only_a_liar_has_ends_in_a_clear_error_and_is_never_written(
    liars_cluster: Cluster, folder: Path
) -> None:
    source = make_file(folder / "once.bin", 2 * MIB)
    client, liar = liars_cluster.client, liars_cluster.nodes["B"]
    file_id = client.put(source.path).last["file_id"]
    hashes = client.info(file_id)["chunks_hashes"]
    lost = {index for index, sha256 in enumerate(hashes) if sha256 in liar.holds(hashes)}
    assert lost
    target = folder / "copy"

    result = client.get(file_id, target, code=5, deadline_s=PATIENCE_S)

    assert "B" in result.last["message"]
    assert not target.exists()
    (first, last), *more = json.loads((folder / "copy.zjob").read_text())["completed"]
    completed = set(range(first, last + 1)).union(*(range(a, b + 1) for a, b in more))
    assert completed == set(range(len(hashes))) - lost
    part = (folder / "copy.zpart").read_bytes()
    for index in range(len(hashes)):
        piece = part[index * _CHUNK : (index + 1) * _CHUNK]
        expected = bytes(_CHUNK) if index in lost else source.piece(index * _CHUNK, _CHUNK)
        assert piece == expected, f"chunk {index}"
