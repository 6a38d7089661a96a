"""What the tracker does when its own disk refuses."""

from __future__ import annotations

import pytest

from tests.unit.tracker.clusters import (
    Cluster,
    beat,
    commit,
    digest,
    distributed,
    hello,
    joined,
    make_file,
    peer_id,
    plan,
    told,
)
from zchunk.errors import Busy, NoSpace
from zchunk.node.bulk.location import location
from zchunk.protocol.messages import (
    Committed,
    FilesFound,
    FindFiles,
    GetSnapshot,
    Locate,
    Lost,
    Remove,
)

FULL = NoSpace("no space on the disk of /srv/tracker.sqlite", path="/srv/tracker.sqlite")


def test_a_commit_whose_copies_could_not_be_noted_ends_with_the_cause(cluster: Cluster) -> None:
    cluster.up("A", "B")
    told(cluster, "A", FULL)
    reply = cluster.ask("client", commit(make_file(), min_peers=1, distribute=False))
    assert (reply.code, reply.details) == ("no_space", {}), "at once, not as copies that nobody has"
    assert "tracker's disk" in reply.message
    assert "/srv" not in reply.message
    told(cluster, "A", None)
    assert isinstance(cluster.ask("client", commit(make_file(), min_peers=1, distribute=False)), Committed)


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_commit_waits_for_copies_that_are_told_again(cluster: Cluster, ends_well: bool) -> None:
    """The database was locked for a moment, or longer."""
    cluster.up("A", "B")
    told(cluster, "A", Busy("/srv/tracker.sqlite is locked", path="/srv/tracker.sqlite"))
    asked = cluster.send("client", commit(make_file(), min_peers=1, distribute=False))
    cluster.work()
    assert cluster.answer("client", asked) is None
    if ends_well:
        told(cluster, "A", None)
        assert isinstance(cluster.answer("client", asked), Committed)
    else:
        for _ in range(6):
            cluster.advance(1.0)
            cluster.ask("A", beat())
        assert cluster.answer("client", asked).code == "busy"  # type: ignore[union-attr]


def test_an_upload_is_not_begun_on_a_full_disk(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FULL

    cluster.up("A", "B")
    monkeypatch.setattr(cluster.store, "check_space", refuse)
    reply = cluster.ask("client", plan())
    assert (reply.code, "/srv" in reply.message) == ("no_space", False)


def test_the_welcome_names_the_newest_commit(cluster: Cluster) -> None:
    file_id = distributed(cluster)
    assert cluster.ask("C", hello()).commit_number == 1
    cluster.ask("client", Remove(file_id=file_id))
    assert cluster.ask("C", hello()).commit_number == 2


def test_a_node_is_told_which_of_its_manifests_are_files(cluster: Cluster) -> None:
    """One that was removed is none, and yet known: nothing was lost, and it may go."""
    known = distributed(cluster)
    removed = distributed(cluster, make_file("removed"))
    cluster.ask("client", Remove(file_id=removed))
    asked = [digest(77), bytes.fromhex(removed), bytes.fromhex(known)]
    reply = cluster.ask("A", FindFiles(file_ids=b"".join(asked)))
    assert isinstance(reply, FilesFound)
    assert (reply.store_id, reply.commit_number) == (cluster.store.store_id, 3)
    assert (bytes(reply.file_ids).hex(), bytes(reply.removed).hex()) == (known, removed)
    cluster.ask("client", commit(make_file("removed")))
    again = cluster.ask("A", FindFiles(file_ids=bytes.fromhex(removed)))
    assert (bytes(again.file_ids).hex(), bytes(again.removed)) == (removed, b""), "it was put again"
    assert cluster.refused("A", FindFiles(file_ids=bytes(32) * 4097)) == "malformed"


def test_a_node_with_unknown_files_is_an_error_in_the_log_and_news(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.up("A", "B")

    def shown() -> dict[str, int]:
        return {r.name: r.files_unknown for r in cluster.ask("observer", GetSnapshot()).peers}

    for count in (3, 3, 2):
        cluster.ask("A", beat(1, files_unknown=count))
    assert shown() == {"A": 2, "B": 0}
    assert cluster.topics().count("peer.updated") == 2
    cluster.ask("A", hello(1))
    assert shown() == {"A": 2, "B": 0}, "of a hello it is not known yet"
    cluster.ask("A", beat(1))
    assert shown() == {"A": 0, "B": 0}
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.message.startswith("A holds chunks of 3 files that this tracker does not know")


def test_what_a_node_lost_is_located_there_no_more(cluster: Cluster) -> None:
    distributed(cluster)
    cluster.ask("A", Lost(hashes=joined([1])))
    where = location(cluster.ask("client", Locate(name_or_id="film", unique=False)), "film")
    assert where.holder_ids() == [[], [peer_id("B")]]
