"""The store that tests of this folder open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.node.store.stores import Stores, check
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.store_folder import MARKER


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    opened = Stores(tmp_path / "store")
    yield opened
    for store in opened.open:
        if not store.parts.folder.closed and (opened.root / MARKER).exists():
            check(store)
        store.close()


@pytest.fixture
def store(stores: Stores) -> ChunkStore:
    return stores.create()
