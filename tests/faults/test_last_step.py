"""A node that does not take the manifest is as one that takes no chunk: others take its place,
or the upload waits for it by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.tracing import needs_strace, tampered
from tests.integration.cluster import MIB, Cluster, Node, make_file, sha256_of

pytestmark = needs_strace

_NEVER_S = 600
#: Of the client: so long a node has for the manifest.
_PATIENCE = {"transfer.request_timeout_s": 2}


@pytest.fixture
def trio(small: Cluster) -> Iterator[Cluster]:
    """The nodes A, B, C; A starts again after each test."""
    yield small
    small.nodes["A"].process.end()
    small.restart("A")


def _no_manifest(node: Node, folder: Path) -> AbstractContextManager[None]:
    """Its disk takes for ever for manifests alone: chunks are stored as ever."""
    delay = f"fsync:delay_enter={_NEVER_S * 10**6}"
    return tampered(node.process, folder / "trace", delay, only=[node.store / "manifests"])


@pytest.mark.row("U6")
def test_others_take_the_chunks_of_a_node_that_does_not_keep_the_manifest(
    trio: Cluster, folder: Path
) -> None:
    source, slow = make_file(folder / "last.bin", 4 * MIB), trio.nodes["A"]
    with _no_manifest(slow, folder):
        done = trio.client.put(source.path, settings=_PATIENCE).last
        assert done["event"] == "done"
        assert set(done["peers"]) == {trio.nodes[name].peer_id for name in "BC"}
        trio.client.get("last.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


def test_an_upload_waits_by_name_for_a_node_that_it_needs(trio: Cluster, folder: Path) -> None:
    source, slow = make_file(folder / "needed.bin", 4 * MIB), trio.nodes["A"]
    with _no_manifest(slow, folder):
        put = trio.client.start("put", "--yes", "--replicas", "3", source.path, settings=_PATIENCE)
        waiting = put.until("waiting")
        (refusing,) = waiting["refusing"]
        assert (refusing["peer_id"], refusing["name"]) == (slow.peer_id, "A")
        assert f"does not keep the file's manifest: A at tcp://{slow.endpoint}" in refusing["reason"]
        assert slow.peer_id[:8] not in waiting["message"]
    assert set(put.result().expect(0).last["peers"]) == {node.peer_id for node in trio.nodes.values()}
