"""system/home_state.py: what was there once and is missing is a loss, not a first start."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from zchunk.errors import NotAllowed, StateLost
from zchunk.system import json_files
from zchunk.system.home_state import RECORD, HomeState, is_there

TRACES = {"key": ("list", "database"), "database": ("list",), "options": ()}


@pytest.fixture
def home(tmp_path: Path) -> HomeState:
    return HomeState(tmp_path / "home" / "tracker", TRACES)


def touch(home: HomeState, name: str) -> None:
    home.folder.mkdir(parents=True, exist_ok=True)
    (home.folder / name).touch()


def lost(home: HomeState) -> set[str]:
    """The parts that may not be made, were none of them there."""
    return {part for part in TRACES if is_lost(home, part)}


def is_lost(home: HomeState, part: str) -> bool:
    try:
        home.check_first(part, f"{part} is missing")
    except StateLost:
        return True
    return False


def test_a_loss_is_said_in_the_words_of_who_owns_the_part(home: HomeState) -> None:
    home.note("key")
    with pytest.raises(StateLost, match="the key is missing") as caught:
        home.check_first("key", "the key is missing")
    assert caught.value.exit_code == 2


def test_in_a_new_home_everything_may_be_made(home: HomeState) -> None:
    assert lost(home) == set()
    assert not home.folder.exists(), "to ask makes nothing"


def test_what_was_noted_is_lost_when_it_is_missing(home: HomeState) -> None:
    home.note()
    home.note("key")
    assert lost(home) == {"key"}
    home.note("database", "options")
    assert lost(HomeState(home.folder, TRACES)) == {"key", "database", "options"}


def test_a_first_start_that_was_cut_short_goes_on(home: HomeState) -> None:
    """Its key was made, and noted or not; the rest was not."""
    home.note()
    touch(home, "database")
    assert lost(home) == set()


@pytest.mark.parametrize(
    ("files", "missing"), [(["list"], {"key", "database"}), (["database"], {"key"}), (["other"], set())]
)
def test_a_home_of_an_earlier_release_is_judged_by_its_files(
    home: HomeState, files: list[str], missing: set[str]
) -> None:
    for name in files:
        touch(home, name)
    assert lost(home) == missing
    home.note()  # what it lost is not forgotten by beginning a record
    assert lost(home) == missing


def test_what_is_to_be_made_anew_may_be_made(home: HomeState) -> None:
    home.note("key", "database")
    home.forget("database")
    assert lost(home) == {"key"}
    touch(home, "list")
    assert lost(home) == {"key"}, "the record decides, where there is one"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"has": [1]}', "\xff"])
def test_a_record_that_is_damaged_is_as_none(home: HomeState, text: str) -> None:
    touch(home, "list")
    (home.folder / RECORD).write_text(text, encoding="latin-1")
    assert lost(home) == {"key", "database"}
    home.note("options")
    assert lost(home) == {"key", "database", "options"}


def test_not_being_able_to_look_is_no_absence(home: HomeState, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(NotAllowed):
        is_there(home.folder / "key.json")
    with pytest.raises(NotAllowed):
        home.was_made("key")
    monkeypatch.undo()
    monkeypatch.setattr(json_files, "read", refuse)
    with pytest.raises(NotAllowed):
        home.was_made("key")


def test_what_changes_nothing_writes_nothing(home: HomeState) -> None:
    home.note("key")
    before = (home.folder / RECORD).stat()
    home.note("key")
    home.note()
    home.forget("options")
    after = (home.folder / RECORD).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert stat.S_IMODE(after.st_mode) == 0o600
