"""The tracker's database against a model, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.tracker.store.rows import (
    A,
    B,
    C,
    commit,
    digest,
    digests,
    holders,
    make,
    register,
    view,
)
from zchunk.clock import ManualClock
from zchunk.content.hashing import inventory_digest
from zchunk.content.manifest import Manifest
from zchunk.errors import (
    NotFound,
    NotYetStored,
    TooFewPeers,
)
from zchunk.tracker.store.store import HealthCounts, Removals, TrackerStore

PEERS = (A, B, C)

HASHES = st.sets(st.integers(0, 9), max_size=6)

FILES = tuple(
    make(name, chunks)
    for name, chunks in [("f", [0, 1]), ("f", [1, 2, 3]), ("g", [4, 4]), ("h", [5]), ("h", [0, 5, 9, 2])]
)

MANIFESTS = st.sampled_from(FILES)

PEER = st.sampled_from(PEERS)


@dataclass
class Model:
    """What the store should know, told in sets."""

    #: (peer, hash) -> (stored at, available)
    holdings: dict[tuple[str, bytes], tuple[int, bool]] = field(default_factory=dict)
    #: file id -> (manifest, replicas, created, commit number)
    files: dict[str, tuple[Manifest, int, int, int]] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    commit_number: int = 0

    def held_by(self, peer_id: str) -> set[bytes]:
        return {chunk_hash for peer, chunk_hash in self.holdings if peer == peer_id}

    def readable(self, chunk_hash: bytes, live: Iterable[str]) -> set[str]:
        return {p for p in live if self.holdings.get((p, chunk_hash), (0, False))[1]}

    def named(self) -> set[bytes]:
        return {row.sha256 for manifest, *_ in self.files.values() for row in manifest.chunks}

    def locations(self) -> set[tuple[Any, ...]]:
        return {
            (file_id, index, peer, row.sha256, at, ok)
            for file_id, (manifest, *_) in self.files.items()
            for index, row in enumerate(manifest.chunks)
            for (peer, chunk_hash), (at, ok) in self.holdings.items()
            if chunk_hash == row.sha256
        }


class StoreAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = TrackerStore.open(":memory:", ManualClock())
        self.model = Model()
        self.now = 100
        for peer_id in PEERS:
            register(self.store, peer_id)

    def teardown(self) -> None:
        self.store.close()

    def tick(self) -> int:
        self.now += 1
        return self.now

    @rule(peer=PEER, numbers=HASHES)
    def add(self, peer: str, numbers: set[int]) -> None:
        now, held = self.tick(), self.model.holdings
        new = [h for h in digests(numbers) if (peer, h) not in held]
        assert self.store.add_holdings(peer, digests(numbers), now) == len(new)
        held.update({(peer, h): (now, True) for h in new})

    @rule(peer=PEER, numbers=HASHES)
    def drop(self, peer: str, numbers: set[int]) -> None:
        gone = [h for h in digests(numbers) if self.model.holdings.pop((peer, h), None)]
        assert self.store.drop_holdings(peer, digests(numbers)) == len(gone)

    @rule(peer=PEER, numbers=HASHES)
    def replace(self, peer: str, numbers: set[int]) -> None:
        now, before, after = self.tick(), self.model.held_by(peer), set(digests(numbers))
        change = self.store.replace_inventory(peer, digests(numbers), now)
        assert (change.added, change.lost) == (len(after - before), len(before - after))
        touched = {
            file_id
            for file_id, (manifest, *_) in self.model.files.items()
            if {row.sha256 for row in manifest.chunks} & (before - after)
        }
        assert change.files_touched == touched
        for chunk_hash in before - after:
            del self.model.holdings[peer, chunk_hash]
        self.model.holdings.update({(peer, h): (now, True) for h in after - before})

    @rule(peer=PEER, number=st.integers(0, 9))
    def damage(self, peer: str, number: int) -> None:
        at, ok = self.model.holdings.get((peer, digest(number)), (0, False))
        assert self.store.mark_unavailable(peer, digest(number)) == ok
        if ok:
            self.model.holdings[peer, digest(number)] = at, False

    @rule(peer=PEER, numbers=HASHES)
    def checked(self, peer: str, numbers: set[int]) -> None:
        held = self.model.holdings
        again = [h for h in digests(numbers) if held.get((peer, h), (0, True))[1] is False]
        assert sorted(self.store.mark_whole(peer, digests(numbers))) == sorted(again)
        held.update({(peer, h): (held[peer, h][0], True) for h in again})

    @rule(manifest=MANIFESTS, live=st.sets(PEER), replicas=st.integers(1, 3), distributed=st.booleans())
    def commit(self, manifest: Manifest, live: set[str], replicas: int, distributed: bool) -> None:
        now, model = self.tick(), self.model
        known = model.files.get(manifest.file_id)
        by_chunk = [model.readable(row.sha256, live) for row in manifest.chunks]
        spread = set().union(*by_chunk)
        demand = {"live": live, "replicas": replicas, "distributed": distributed, "now_ms": now}
        if known is None and not all(by_chunk):
            with pytest.raises(NotYetStored) as caught:
                commit(self.store, manifest, **demand)
            assert caught.value.details["chunks_missing"] == by_chunk.count(set())
        elif known is None and distributed and len(spread) < min(2, len(by_chunk) * replicas):
            with pytest.raises(TooFewPeers):
                commit(self.store, manifest, **demand)
        else:
            record, already = commit(self.store, manifest, **demand)
            assert already == (known is not None)
            if known is None:
                model.commit_number += 1
                model.files[manifest.file_id] = manifest, replicas, now, model.commit_number
                assert record.is_distributed == (len(spread) >= 2)
            else:
                model.files[manifest.file_id] = manifest, max(replicas, known[1]), known[2], known[3]
            model.tombstones.pop(manifest.file_id, None)
            assert record.replicas == model.files[manifest.file_id][1]

    @rule(manifest=MANIFESTS)
    def remove(self, manifest: Manifest) -> None:
        file_id, model = manifest.file_id, self.model
        if model.files.pop(file_id, None) is not None:
            model.commit_number += 1
            model.tombstones[file_id] = model.commit_number
        if file_id in model.tombstones:
            assert self.store.remove_file(file_id, self.tick()) == model.tombstones[file_id]
        else:
            with pytest.raises(NotFound):
                self.store.remove_file(file_id, self.tick())

    @rule(peer=PEER, numbers=HASHES)
    def release(self, peer: str, numbers: set[int]) -> None:
        freed = self.store.release(peer, digests(numbers))
        named = self.model.named()
        assert not named & set(freed)
        assert freed == [h for h in digests(numbers) if h not in named]
        for chunk_hash in freed:
            self.model.holdings.pop((peer, chunk_hash), None)

    @rule(peer=PEER, numbers=HASHES, manifest=MANIFESTS, fails=st.booleans())
    def batched(self, peer: str, numbers: set[int], manifest: Manifest, fails: bool) -> None:
        """Adding stands though the call behind it is refused; unless the batch is given up."""
        with suppress(ZeroDivisionError), self.store.batch():
            if fails:
                self.store.add_holdings(peer, digests(numbers), self.tick())
                self.store.replace_inventory(peer, [], self.now)
                raise ZeroDivisionError
            self.add(peer, numbers)
            with pytest.raises(NotFound):
                self.store.remove_file("f" * 64, self.now)
            self.remove(manifest)

    @invariant()
    def the_view_is_the_join(self) -> None:
        assert view(self.store) == self.model.locations()

    @invariant()
    def a_chunk_is_known_while_it_is_held_or_named(self) -> None:
        table = self.store._database.models.Chunk
        held = {chunk_hash for _, chunk_hash in self.model.holdings}
        assert {bytes(row[0]) for row in table.select(table.chunk_hash).tuples()} == held | self.model.named()

    @invariant()
    def inventories_are_exact(self) -> None:
        for peer in PEERS:
            held = self.model.held_by(peer)
            assert self.store.inventory_summary(peer) == (len(held), inventory_digest(list(held)))

    @invariant()
    def files_are_found_as_committed(self) -> None:
        newest_first = sorted(self.model.files.items(), key=lambda item: item[1][3], reverse=True)
        expected = [file_id for file_id, _ in newest_first]
        assert [record.file_id for record in self.store.list_files("")[0]] == expected
        assert self.store.commit_number == self.model.commit_number
        removed = sorted(self.model.tombstones, key=self.model.tombstones.__getitem__)
        assert self.store.removals(0) == Removals(removed, self.model.commit_number, False)

    @rule()
    def forget(self) -> None:
        self.store._listing.remembered.clear()

    @precondition(lambda self: self.model.files)
    @invariant()
    def holders_are_located(self) -> None:
        for file_id, (manifest, replicas, *_) in self.model.files.items():
            expected = [self._holders_of(row.sha256) for row in manifest.chunks]
            assert holders(self.store.locate(file_id)) == expected
            live = [len(set(dict(row)) & {A, B}) for row in expected]
            low = sum(count < replicas for count in live)
            counts = HealthCounts(len(live), len(live) - live.count(0), low)
            assert self.store.health_counts(file_id, [A, B]) == counts

    def _holders_of(self, chunk_hash: bytes) -> list[tuple[str, int]]:
        found = [(at, p) for (p, h), (at, ok) in self.model.holdings.items() if h == chunk_hash and ok]
        return [(peer, at) for at, peer in sorted(found)]


TestStoreAgainstModel = StoreAgainstModel.TestCase

TestStoreAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
