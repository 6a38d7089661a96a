"""The database that tests of this folder open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.tracker.store.rows import A, B, C, register
from zchunk.clock import ManualClock
from zchunk.tracker.store.store import TrackerStore


@pytest.fixture
def store() -> Iterator[TrackerStore]:
    """With the peers A, B and C."""
    opened = TrackerStore.open(":memory:", ManualClock())
    for peer_id in (A, B, C):
        register(opened, peer_id)
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tracker" / "tracker.sqlite")
