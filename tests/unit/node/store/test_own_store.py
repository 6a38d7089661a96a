"""node/store/own_store.py: a store that is not mounted is missing, not new."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.store.stores import Chunk, files_below, oserror, put, replaced
from zchunk.clock import ManualClock
from zchunk.errors import NotAllowed, StorageFailure, StoreOffline
from zchunk.node.registration import raise_incarnation
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.own_store import open_store


def opened(folder: Path, *, other: bool = False) -> ChunkStore:
    return open_store(folder, capacity=None, reserve=0, clock=ManualClock(), other=other)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """HOME/node after a first start, in which a chunk was stored."""
    store = opened(tmp_path)
    put(store, Chunk(1))
    store.close()
    raise_incarnation(tmp_path)
    return tmp_path


def unmount(home: Path) -> Path:
    """What a disk that is not mounted leaves: an empty folder."""
    away = home / "away"
    (home / "store").rename(away)
    (home / "store").mkdir()
    return away


def test_the_first_start_makes_a_store_and_the_next_finds_it(home: Path) -> None:
    store = opened(home)
    assert store.hashes() == [Chunk(1).sha256]
    assert json.loads((home / "store.json").read_text()) == {"uuid": store.uuid}
    store.close()


@pytest.mark.parametrize("folder", ["empty", "gone"])
@pytest.mark.parametrize("known_by", ["its id", "an earlier release"])
def test_a_store_that_is_not_mounted_is_said_to_be_missing(home: Path, folder: str, known_by: str) -> None:
    away = unmount(home)
    if folder == "gone":
        (home / "store").rmdir()
    if known_by == "an earlier release":
        (home / "store.json").unlink()
    before = files_below(home)
    with pytest.raises(StoreOffline, match=r"is missing: is its disk mounted\?.*--new-store"):
        opened(home)
    assert files_below(home) == before
    shutil.rmtree(home / "store", ignore_errors=True)
    away.rename(home / "store")
    store = opened(home)
    assert store.hashes() == [Chunk(1).sha256]
    store.close()


def test_another_store_in_its_place_is_refused(home: Path) -> None:
    unmount(home)
    other = ChunkStore.create_or_open(home / "store", capacity=None, reserve=0, clock=ManualClock())
    other.close()
    with pytest.raises(StoreOffline, match="not this node's own"):
        opened(home)
    ChunkStore(home / "store", capacity=None, reserve=0, clock=ManualClock()).close()  # it was let go


@pytest.mark.parametrize("place", ["empty", "another store"])
def test_a_new_store_is_this_nodes_from_the_start_that_says_so(home: Path, place: str) -> None:
    unmount(home)
    if place == "another store":
        ChunkStore.create_or_open(home / "store", capacity=None, reserve=0, clock=ManualClock()).close()
    fresh = opened(home, other=True)
    assert fresh.count == 0
    fresh.close()
    again = opened(home)
    assert again.uuid == fresh.uuid
    again.close()


def test_the_store_of_an_earlier_release_is_this_nodes(home: Path) -> None:
    (home / "store.json").unlink()
    opened(home).close()
    unmount(home)
    with pytest.raises(StoreOffline):
        opened(home)


def test_killed_before_the_id_is_kept_the_store_is_found_again(tmp_path: Path) -> None:
    with (
        replaced(json, "dumps", oserror(errno.EIO)),
        pytest.raises(OSError),  # noqa: PT011 - a kill, at the first JSON
    ):
        opened(tmp_path)
    store = opened(tmp_path)
    store.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, NotAllowed), (errno.EIO, StorageFailure)])
@pytest.mark.parametrize("name", ["store.json", "incarnation.json", "zchunk-store.json"])
def test_what_cannot_be_looked_at_is_not_missing(home: Path, name: str, number: int, kind: type) -> None:
    if name == "incarnation.json":
        (home / "store.json").unlink()
    unmount(home)
    real = os.lstat

    def lstat(path: Any, *rest: Any, **more: Any) -> Any:
        return oserror(number)() if str(path).endswith(name) else real(path, *rest, **more)

    with replaced(os, "lstat", lstat), pytest.raises(kind):
        opened(home)
    assert files_below(home / "store") == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"uuid": 5}', '{"uuid": "../x"}'])
def test_a_damaged_id_is_said(home: Path, text: str) -> None:
    (home / "store.json").write_text(text)
    with pytest.raises(StorageFailure, match=r"store\.json is damaged"):
        opened(home)
    opened(home, other=True).close()
    opened(home).close()
