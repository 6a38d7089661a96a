"""A file is committed when every chunk has confirmed copies on enough peers."""

from __future__ import annotations

import pytest

from tests.unit.tracker.store.rows import CHUNK, A, B, C, D, commit, digest, digests, holders, make, stored
from zchunk.errors import (
    ManifestInvalid,
    NotYetStored,
    TooFewPeers,
)
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.store.store import HealthCounts, Removals, TrackerStore


def test_a_commit_makes_the_file_visible_as_it_is(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2, 3]))
    assert store.list_files("") == ([], "")
    record, already = commit(store, manifest, replicas=1, now_ms=77)
    assert already is False
    assert record == FileRecord(
        file_id=manifest.file_id,
        name="f",
        size=3 * CHUNK,
        sha256=manifest.sha256,
        chunk_size=CHUNK,
        chunks_count=3,
        replicas=1,
        is_chunked=True,
        is_distributed=True,
        minimum_peers_required=2,
        created_at_ms=77,
    )
    assert store.list_files("") == ([record], "")
    assert store.commit_number == 1


@pytest.mark.row("U1")
def test_a_normal_upload_lies_on_one_peer(store: TrackerStore) -> None:
    """SPEC U1."""
    record, _ = commit(store, stored(store, make("f", [1, 2]), [A]), distributed=False)
    assert (record.is_chunked, record.is_distributed, record.minimum_peers_required) == (False, False, 1)


def test_fully_replicated_files_need_one_peer(store: TrackerStore) -> None:
    manifest = make("f", [1, 2])
    for peer_id in (A, B):
        store.add_holdings(peer_id, digests([1, 2]), 1)
    record, _ = commit(store, manifest, replicas=2)
    assert (record.is_distributed, record.minimum_peers_required) == (True, 1)


def test_an_encrypted_file_shows_no_digest(store: TrackerStore) -> None:
    record, _ = commit(store, stored(store, make("f", [1, 2], sealed=b"secret")))
    assert record.sha256 is None


def test_an_empty_file_has_no_chunks_and_no_holders(store: TrackerStore) -> None:
    manifest = make("empty", [])
    record, _ = commit(store, manifest, distributed=False)
    assert (record.chunks_count, record.is_distributed, record.minimum_peers_required) == (0, False, 0)
    located = store.locate(manifest.file_id)
    assert (located.peer_ids, located.holder_counts) == ((), b"")
    assert store.health_counts(manifest.file_id, [A]) == HealthCounts(0, 0, 0)


@pytest.mark.row("U5")
def test_a_commit_without_a_confirmed_copy_of_each_chunk_is_refused(store: TrackerStore) -> None:
    """SPEC U5: all or nothing."""
    manifest = make("f", range(40))
    store.add_holdings(A, digests(range(0, 40, 2)), 1)
    with pytest.raises(NotYetStored, match="20 of the 40 chunks of 'f'") as caught:
        commit(store, manifest)
    assert caught.value.details["chunks_missing"] == 20
    assert caught.value.details["first_missing"] == list(range(1, 21, 2))
    assert caught.value.retryable
    assert store.list_files("") == ([], "")
    assert store.commit_number == 0


@pytest.mark.row("U5")
@pytest.mark.parametrize("why", ["down", "damaged"])
def test_copies_that_cannot_be_read_now_do_not_count(store: TrackerStore, why: str) -> None:
    manifest = stored(store, make("f", [1, 2]))
    if why == "damaged":
        store.mark_unavailable(B, digest(2))
    live = [A, C] if why == "down" else [A, B, C]
    with pytest.raises(NotYetStored) as caught:
        commit(store, manifest, live=live)
    assert caught.value.details["first_missing"] == [1]


def test_live_peers_that_never_registered_are_no_matter(store: TrackerStore) -> None:
    assert commit(store, stored(store, make("f", [1, 2])), live={A, B, D})[1] is False


@pytest.mark.row("U5")
def test_a_distributed_file_on_too_few_peers_is_refused(store: TrackerStore) -> None:
    """SPEC U4: at least min_peers different peers, of those that are up."""
    manifest = stored(store, make("f", [1, 2, 3]), [A])
    with pytest.raises(TooFewPeers, match=rf"1 of the peers .*{A}.* 2 are needed") as caught:
        commit(store, manifest)
    assert caught.value.details == {"peer_ids": [A], "peers_needed": 2}
    store.add_holdings(C, [digest(1)], 1)
    with pytest.raises(TooFewPeers):
        commit(store, manifest, live=[A, B])
    assert commit(store, manifest)[1] is False


@pytest.mark.parametrize(("replicas", "peers"), [(1, [A]), (2, [A, B])])
def test_a_file_of_fewer_copies_than_peers_needs_no_more_peers_than_copies(
    store: TrackerStore, replicas: int, peers: list[str]
) -> None:
    for peer_id in peers[:-1]:
        store.add_holdings(peer_id, [digest(1)], 1)
        with pytest.raises(TooFewPeers):
            commit(store, make("f", [1]), min_peers=3, replicas=replicas)
    store.add_holdings(peers[-1], [digest(1)], 1)
    assert commit(store, make("f", [1]), min_peers=3, replicas=replicas)[1] is False


def test_equal_chunks_each_count_as_a_chunk(store: TrackerStore) -> None:
    """A file of zeros is a file like any other: it lies on two peers (SPEC U4)."""
    manifest = make("zeros", [7, 7, 7])
    store.add_holdings(A, [digest(7)], 1)
    with pytest.raises(TooFewPeers):
        commit(store, manifest)
    store.add_holdings(B, [digest(7)], 2)
    commit(store, manifest)
    assert holders(store.locate(manifest.file_id)) == [[(A, 1), (B, 2)]] * 3


@pytest.mark.row("U7")
def test_committing_again_is_the_same_file_whatever_is_up(store: TrackerStore) -> None:
    """SPEC U7, and a client that never saw the first answer."""
    manifest = stored(store, make("f", [1, 2]))
    first, _ = commit(store, manifest, now_ms=10)
    store.drop_holdings(A, [digest(1)])
    again, already = commit(store, manifest, now_ms=20, live=[])
    assert (again, already) == (first, True)
    assert store.commit_number == 1


def test_committing_again_only_raises_what_is_asked(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]), [A])
    commit(store, manifest, distributed=False, replicas=2, min_peers=1)
    store.add_holdings(B, digests([1, 2]), 30)
    record, already = commit(store, manifest, distributed=True, replicas=1, min_peers=2)
    assert already
    assert (record.replicas, record.is_chunked, record.is_distributed) == (2, True, True)
    record, _ = commit(store, manifest, distributed=False, replicas=3)
    assert (record.replicas, record.is_chunked) == (3, True)
    stored_min = store._database.models.File.select(store._database.models.File.min_peers).scalar()
    assert stored_min == 2


def test_raising_replicas_while_chunks_are_away_keeps_what_is_known_of_peers(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    record, _ = commit(store, manifest, replicas=2, live=[A])
    assert (record.replicas, record.is_distributed, record.minimum_peers_required) == (2, True, 2)


def test_a_removed_file_can_come_back(store: TrackerStore) -> None:
    manifest = stored(store, make("f", [1, 2]))
    commit(store, manifest)
    store.remove_file(manifest.file_id, 5)
    _, already = commit(store, manifest)
    assert already is False
    assert store.removals(0) == Removals([], 3, False)
    assert store.remove_file(manifest.file_id, 6) == 4


def test_two_files_may_share_chunks(store: TrackerStore) -> None:
    one, two = make("one", [1, 2]), make("two", [2, 3])
    store.add_holdings(A, digests([1, 2, 3]), 1)
    store.add_holdings(B, digests([1, 2, 3]), 1)
    commit(store, one)
    commit(store, two)
    assert store.files_of([digest(2)]) == sorted([one.file_id, two.file_id])
    assert store.files_of(digests([1, 8])) == [one.file_id]


def test_a_nul_in_a_name_is_refused_as_no_database_takes_it_alike(store: TrackerStore) -> None:
    with pytest.raises(ManifestInvalid, match="NUL"):
        commit(store, stored(store, make("a\0b", [1, 2])))
