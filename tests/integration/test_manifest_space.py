"""What a client can make a node keep besides chunks: manifests need a chunk of their file there, one
for each upload, and room (SPEC S4)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

import pytest
import zmq
from blake3 import blake3

from tests.integration.cluster import MIB, Cluster, make_file
from tests.integration.conftest import SMALL
from tests.integration.doors import keys_of
from tests.integration.raw import Line
from zchunk.content.manifest import ChunkRow, Manifest

CHUNK = bytes(range(256)) * 256
CAPACITY = 8 * MIB


@pytest.fixture
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Line]]:
    """A client's connection to the one node, which has room for 8 MiB."""
    with Cluster(tmp_path_factory.mktemp("manifests")) as cluster:
        node = cluster.start_node("A", "--capacity", str(CAPACITY))
        client, server = keys_of(cluster.client.home / "client"), keys_of(node.home / "node")
        with Line(zmq.DEALER, node.endpoint, client, server.public) as line:
            assert line.outcome() == "in"
            yield cluster, line


def test_a_plan_leaves_room_for_the_manifest(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A has room for just half of the chunks. It is not sent any that it could not keep."""
    folder = tmp_path_factory.mktemp("room")
    with Cluster(folder, SMALL) as cluster:
        small = cluster.start_node("A", "--capacity", str(1 * MIB))
        cluster.start_node("B")
        source = make_file(folder / "halves", 2 * MIB)
        done = cluster.client.put(source.path).last
        assert done["bytes_sent"] == source.size, "nothing was sent twice"
        assert len(small.chunks()) == 15


def large_manifest(name: str) -> Manifest:
    """Some 1.7 MB, of a file that begins with CHUNK."""
    first = ChunkRow(65536, "identity", hashlib.sha256(CHUNK).digest(), blake3(CHUNK).digest(), None)
    rows = [ChunkRow(65536, "identity", secrets.token_bytes(32), bytes(32), None) for _ in range(20_000)]
    return Manifest(name, 65536 * 20_001, bytes(32), 65536, (first, *rows))


def send(line: Line, made: Manifest, upload_id: str) -> str:
    """What a node says to it: `ok`, or the code of its refusal."""
    reply = line.ask("put_manifest", made.canonical, upload_id=upload_id, file_id=made.file_id)
    return str(reply["f"]["code"] if reply["t"] == "error" else reply["t"])


def offer(line: Line, upload_id: str) -> bool:
    digests = {"sha256": hashlib.sha256(CHUNK).digest(), "blake3": blake3(CHUNK).digest()}
    reply = line.ask("offer", upload_id=upload_id, size=len(CHUNK), **digests)
    assert reply["t"] == "offered"
    return bool(reply["f"]["have"])


def bring_chunk(line: Line, upload_id: str) -> None:
    if not offer(line, upload_id):
        block = {"upload_id": upload_id, "sha256": hashlib.sha256(CHUNK).digest(), "offset": 0}
        assert line.ask("put_block", CHUNK, **block)["f"]["stored"]


def test_manifests_of_files_that_nobody_puts_do_not_fill_a_node(line: tuple[Cluster, Line]) -> None:
    cluster, to_node = line
    node = cluster.nodes["A"]
    answers = [send(to_node, large_manifest(f"f{n}"), f"{n:032x}") for n in range(20)]
    assert set(answers) == {"not_allowed"}
    assert not list((node.store / "manifests").iterdir())
    for n in range(20):
        bring_chunk(to_node, f"{n:032x}")
        answers[n] = send(to_node, large_manifest(f"f{n}"), f"{n:032x}")
    kept = answers.count("ok")
    assert answers == ["ok"] * kept + ["no_space"] * (20 - kept)
    assert 1 <= kept <= 3, "with their rows in the index they have 3.4 MB of the 8 MiB each"
    assert send(to_node, large_manifest("second"), f"{0:032x}") == "not_allowed", "one for each upload"
    files = [path for path in node.store.rglob("*") if path.is_file() and not path.name.endswith("-wal")]
    assert sum(path.stat().st_size for path in files) < CAPACITY
