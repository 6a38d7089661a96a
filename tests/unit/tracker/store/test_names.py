"""Files are found by name, by id and by the beginning of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.tracker.store.rows import A, commit, make, put, stored
from zchunk.errors import (
    AmbiguousName,
    InvalidUsage,
    NotFound,
)
from zchunk.tracker.store.store import TrackerStore


def test_a_name_means_its_newest_file(store: TrackerStore) -> None:
    """The one that was committed last, though the clock had been set back by then."""
    put(store, "f", 1, 30)
    put(store, "f", 2, 40)
    newest = put(store, "f", 3, 20)
    put(store, "other", 4, 50)
    assert store.resolve("f", unique=False) == newest


def test_of_the_same_moment_the_later_commit_is_newer(store: TrackerStore) -> None:
    put(store, "f", 1, 30)
    later = put(store, "f", 2, 30)
    assert store.resolve("f", unique=False) == later
    assert store.list_files("")[0][0] == later


def test_unique_refuses_a_name_of_several_files(store: TrackerStore) -> None:
    older, newer = put(store, "f", 1, 30), put(store, "f", 2, 40)
    alone = put(store, "g", 3, 50)
    with pytest.raises(AmbiguousName, match="name of 2 files") as caught:
        store.resolve("f", unique=True)
    assert caught.value.details == {"candidates": [newer.file_id, older.file_id]}
    assert store.resolve("g", unique=True) == alone


@pytest.mark.parametrize("length", [8, 20, 64])
def test_an_id_or_its_beginning_finds_the_file(store: TrackerStore, length: int) -> None:
    record = put(store, "f", 1, 30)
    put(store, "g", 2, 30)
    assert store.resolve(record.file_id[:length], unique=True) == record
    assert store.resolve(record.file_id[:length].upper(), unique=False) == record


@pytest.mark.parametrize("asked", ["nosuch", "", "a\0b", "deadbeef", "%", "_" * 8, "x" * 4096, "f\n"])
def test_what_is_not_there_is_named_on_one_line(store: TrackerStore, asked: str) -> None:
    put(store, "f", 1, 30)
    with pytest.raises(NotFound) as caught:
        store.resolve(asked, unique=False)
    assert repr(asked[:100])[:-1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_beginning_of_seven_digits_or_beyond_64_is_none(store: TrackerStore) -> None:
    record = put(store, "f", 1, 30)
    for asked in (record.file_id[:7], record.file_id + "0"):
        with pytest.raises(NotFound):
            store.resolve(asked, unique=False)


def test_a_beginning_of_several_ids_is_refused(store: TrackerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["deadbeef" + f"{number:056x}" for number in (1, 2)]
    for number, file_id in enumerate(ids):
        manifest = stored(store, make("f", [number]), [A])
        manifest.__dict__["file_id"] = file_id  # SHA-256 gives no such pair
        commit(store, manifest, distributed=False, now_ms=number)
    with pytest.raises(AmbiguousName, match="id of 2 files") as caught:
        store.resolve("deadbeef", unique=False)
    assert caught.value.details["candidates"] == ids[::-1]
    assert store.resolve(ids[0], unique=False).file_id == ids[0]


def test_an_exact_name_wins_over_the_beginning_of_an_id(store: TrackerStore) -> None:
    """SPEC "Command line"."""
    target = put(store, "f", 1, 30)
    prefix = put(store, target.file_id[:10], 3, 10)
    assert store.resolve(target.file_id[:10], unique=True) == prefix
    assert store.resolve(target.file_id[:11], unique=True) == target
    almost = put(store, target.file_id[:63], 4, 10)
    assert store.resolve(target.file_id[:63], unique=True) == almost


@pytest.mark.row("D1")
@pytest.mark.parametrize("change", [str, str.upper])
def test_64_hex_digits_are_an_id_and_no_name(store: TrackerStore, change: Callable[[str], str]) -> None:
    target = put(store, "f", 1, 30)
    asked = change(target.file_id)
    with pytest.raises(InvalidUsage, match="64 hex digits always mean a file id"):
        put(store, asked, 2, 40)
    assert store.resolve(asked, unique=True) == target
    store.remove_file(target.file_id, now_ms=50)
    with pytest.raises(NotFound):
        store.resolve(asked, unique=False)


def test_an_earlier_file_of_such_a_name_is_reached_by_its_own_id(store: TrackerStore) -> None:
    target, named = put(store, "f", 1, 30), put(store, "g", 2, 40)
    before = store.commit_number
    file = store._database.models.File
    file.update({file.name: target.file_id}).where(file.file_id == named.file_id).execute()
    assert store.resolve(target.file_id, unique=False) == target
    assert store.resolve(target.file_id, unique=True) == target
    assert store.resolve(named.file_id, unique=True).name == target.file_id
    assert store.locate(named.file_id).file.file_id == named.file_id
    again, already = commit(store, make("g", [2]), distributed=False, now_ms=50)
    assert (again.file_id, already) == (named.file_id, True), "a commit repeated goes well"
    assert store.commit_number == before
