"""What a store has room for: capacity, reserve, reservations, the trash."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.store.stores import Chunk, Stores, files_below, put, trashed
from zchunk.system import disk


@pytest.fixture
def disk_free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk says it has."""
    free = [1_000_000]
    monkeypatch.setattr(disk, "free_bytes", lambda _path: free[0])
    return free


def test_free_is_the_tighter_of_capacity_and_disk(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity, stores.reserve = 100_000, 5_000
    store = stores.create()
    assert store.free() == 100_000
    put(store, Chunk(1, 10_000))
    assert store.free() == 90_000
    assert store.reserve_space(20_000)
    assert store.free() == 70_000
    disk_free[0] = 50_000
    assert store.free() == 50_000 - 5_000 - 20_000
    disk_free[0] = 100
    assert store.free() == 0
    store.unreserve(20_000)
    disk_free[0] = 1_000_000
    assert store.free() == 90_000


def test_without_a_capacity_the_disk_decides(stores: Stores, disk_free: list[int]) -> None:
    stores.reserve = 1000
    store = stores.create()
    assert store.free() == 999_000
    assert store.reserve_space(999_000)
    assert not store.reserve_space(1)
    assert store.free() == 0


def test_capacity_is_reserved_before_a_transfer(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 30_000
    store = stores.create()
    assert store.reserve_space(20_000)
    assert not store.reserve_space(10_001)
    assert store.reserve_space(10_000)
    store.unreserve(20_000)
    assert store.reserve_space(20_000)


def test_threads_never_reserve_more_than_there_is(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 100
    store = stores.create()
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(store.reserve_space(7))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 100 // 7


def test_short_space_purges_the_oldest_trash_first_and_no_more_than_needed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.reserve = 100
    store = stores.create()
    chunks = [Chunk(seed, 1000) for seed in range(4)]
    for age, chunk in enumerate(chunks):
        trashed(store, stores, chunk, days=-age)

    def free(_path: Any) -> Any:
        return 5000 - store.parts.trash.bytes

    monkeypatch.setattr(disk, "free_bytes", free)
    assert store.reserve_space(2400)  # 900 are free: two of the oldest must go
    left = {Path(name).name for name in files_below(stores.root / "trash")}
    assert left == {chunks[0].hex, chunks[1].hex}
    assert len(os.listdir(stores.root / "trash")) == 2
    assert not store.reserve_space(3000)  # more than all trash would give: none is touched
    assert len(files_below(stores.root / "trash")) == 2


def test_capacity_holds_for_chunks_and_trash_together(stores: Stores, disk_free: list[int]) -> None:
    stores.capacity = 10_000
    store = stores.create()
    for age in range(4):
        trashed(store, stores, Chunk(age, 2000), days=-age)
    assert store.free() == 10_000  # trash makes way
    assert store.reserve_space(3000)
    assert len(files_below(stores.root / "trash")) == 3
    assert not store.reserve_space(7001)
    assert len(files_below(stores.root / "trash")) == 3
    assert store.reserve_space(7000)
    assert files_below(stores.root / "trash") == []
