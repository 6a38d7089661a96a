"""Files are committed, listed and removed; their chunks are let go."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.unit.tracker.clusters import (
    UPLOAD,
    Cluster,
    beat,
    commit,
    digest,
    distributed,
    hello,
    joined,
    make_file,
    peer_id,
    stored,
)
from zchunk.clock import read
from zchunk.node.bulk.location import location
from zchunk.protocol.messages import (
    Committed,
    ErrorReply,
    Files,
    GetRemovals,
    Goodbye,
    ListFiles,
    Locate,
    Located,
    Release,
    Released,
    Removals,
    Remove,
    Removed,
    Stored,
)

# -- commit -----------------------------------------------------------------------------------


def test_a_file_is_visible_when_every_chunk_is_confirmed(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    event = cluster.events[-1]
    assert (event.topic, event.fields["file_id"], event.fields["is_distributed"]) == (
        "file.distributed",
        file_id,
        True,
    )
    assert [file.file_id for file in cluster.ask("observer", ListFiles(page="")).files] == [file_id]


def test_a_commit_waits_for_a_report_that_is_on_its_way(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    assert isinstance(cluster.ask("client", Locate(name_or_id="film", unique=False)), ErrorReply)
    cluster.log.clear()
    stored(cluster, "B", [2])
    assert cluster.log == ["work", "reply", "work", "reply", "file.distributed"]
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_a_report_that_overtakes_the_commits_refusal_is_not_missed(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    request_id = cluster.send("client", commit())
    cluster.send("B", Stored(upload_id=UPLOAD, hashes=joined([2])))
    cluster.work()
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_a_commit_waits_for_a_peer_that_comes_back(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    cluster.perform(cluster.core.connection_gone(b"B", read(cluster.clock)))
    cluster.work()
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    cluster.ask("B", hello(2, held=[digest(2)]))
    assert isinstance(cluster.answer("client", request_id), Committed)


def test_patience_ends(cluster: Cluster) -> None:
    cluster.up("A", "B")
    request_id = cluster.send("client", commit())
    cluster.work()
    for _ in range(4):
        cluster.advance(1.0)
        cluster.ask("A", beat())
        cluster.ask("B", beat())
    stored(cluster, "A", [1])
    assert cluster.answer("client", request_id) is None
    cluster.advance(1.1)
    reply = cluster.answer("client", request_id)
    assert isinstance(reply, ErrorReply)
    assert reply.code == "not_yet_stored"
    assert reply.details["first_missing"] == (1,) or reply.details["first_missing"] == [1]
    assert not cluster.core.uploads._parked


def test_asking_again_does_not_lengthen_the_patience(cluster: Cluster) -> None:
    cluster.up("A", "B")
    request_id = cluster.send("client", commit())
    cluster.work()
    for _ in range(12):
        cluster.advance(0.5)
        cluster.perform(cluster._handle("client", commit(), request_id, b""))
        cluster.work()
        if cluster.answer("client", request_id) is not None:
            break
    assert isinstance(cluster.answer("client", request_id), ErrorReply)


def test_a_commit_is_answered_the_same_again_and_told_once(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    reply = cluster.ask("client", commit())
    assert isinstance(reply, Committed)
    assert (reply.already, reply.file.file_id) == (True, file_id)
    assert cluster.topics().count("file.distributed") == 1


def test_a_commit_with_chunks_on_too_few_peers_is_refused_at_once(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1, 2])
    assert cluster.refused("client", commit()) == "too_few_peers"


def test_copies_on_peers_that_are_down_do_not_count(cluster: Cluster) -> None:
    cluster.up("A", "B")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    cluster.ask("B", Goodbye(incarnation=1))
    request_id = cluster.send("client", commit())
    cluster.work()
    assert cluster.answer("client", request_id) is None
    assert "file.distributed" not in cluster.topics()


@pytest.mark.parametrize("manifest", [b"", b"nonsense", make_file().canonical + b"\0"])
def test_what_is_no_manifest_is_refused(cluster: Cluster, manifest: bytes) -> None:
    cluster.up("A", "B")
    assert cluster.refused("client", replace(commit(), manifest=manifest)) == "manifest_invalid"


# -- files, garbage ---------------------------------------------------------------------------


def test_locate_tells_who_holds_what(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    for asked in ("film", file_id, file_id[:8]):
        reply = cluster.ask("observer", Locate(name_or_id=asked, unique=True))
        assert isinstance(reply, Located)
        where = location(reply, asked)
        assert where.manifest == make_file()
        assert where.holder_ids() == [[peer_id("A")], [peer_id("B")]]
        assert {record.name for record in where.peers.values()} == {"A", "B"}


def test_what_is_not_there_is_not_found(cluster: Cluster) -> None:
    assert cluster.refused("client", Locate(name_or_id="film", unique=False)) == "not_found"
    assert cluster.refused("client", Remove(file_id="0" * 64)) == "not_found"
    assert cluster.ask("client", ListFiles(page="")) == Files(files=(), next_page="")
    assert cluster.refused("client", ListFiles(page="nonsense")) == "malformed"


def test_a_removal_is_told_once_and_answered_the_same_again(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    first = cluster.ask("client", Remove(file_id=file_id))
    assert isinstance(first, Removed)
    assert cluster.ask("client", Remove(file_id=file_id)) == first
    assert cluster.topics().count("file.removed") == 1
    removals = cluster.ask("A", GetRemovals(since=0))
    assert isinstance(removals, Removals)
    assert (removals.file_ids, removals.commit_number) == ((file_id,), first.commit_number)


def test_a_node_may_delete_only_what_no_file_names(cluster: Cluster) -> None:
    distributed(cluster)
    stored(cluster, "A", [5])
    reply = cluster.ask("A", Release(hashes=joined([1, 5])))
    assert isinstance(reply, Released)
    assert bytes(reply.hashes) == joined([5])
    assert reply.store_id == cluster.store.store_id
    assert cluster.store.inventory_summary(peer_id("A"))[0] == 1
