"""Everything that a store does, in any order."""

from __future__ import annotations

import random

import pytest

from tests.unit.node.store.stores import DAY, Chunk, Stores, check, chunk_path, flip_a_bit, keep, put


@pytest.mark.parametrize("seed", range(6))
def test_any_history_leaves_a_store_that_is_right(stores: Stores, seed: int) -> None:
    """Random operations with crashes in between against a model in memory."""
    rng = random.Random(seed)
    chunks = [Chunk(n, rng.randrange(1, 6000)) for n in range(12)]
    store = stores.create()
    held: set[int] = set()
    named: dict[str, int] = {}
    for _ in range(120):
        n = rng.randrange(len(chunks))
        action = rng.choice(["put", "put", "keep", "forget", "trash", "crash", "close", "rebuild", "rot"])
        if action == "put":
            put(store, chunks[n])
            held.add(n)
        elif action == "keep":
            named[keep(store, chunks[n], name=f"{n}")] = n
        elif action == "forget" and named:
            file_id = rng.choice(sorted(named))
            store.forget_manifest(file_id)
            del named[file_id]
        elif action == "trash":
            now = stores.clock.wall() + 2 * DAY
            moved = store.trash(store.garbage(now), "s", now)
            gone = held - set(named.values())
            assert sorted(moved) == sorted(chunks[g].sha256 for g in gone)
            held -= gone
        elif action == "rot" and n in held:
            flip_a_bit(chunk_path(stores.root, chunks[n]), seed)
            assert not store.verify(chunks[n].sha256)
            store.drop_corrupt(chunks[n].sha256)
            held.discard(n)
        elif action == "rebuild":
            store.rebuild_index()
        elif action in ("crash", "close"):
            store.close() if action == "close" else stores.crash(store)
            store = stores.reopen()
        assert store.hashes() == sorted(chunks[h].sha256 for h in held)
        assert store.manifests() == sorted(named)
    check(store)
